//! The generated half of the Rust client: types that serde reads and writes, a struct for each
//! command, an enum of events. The other half (`clients/rust/src`) knows sockets and no command.
//!
//! Unlike the server's types these take what a newer server says: members they do not know are
//! passed over, and each enum has a place for values they do not know.

mod commands;
mod types;

use proc_macro2::TokenStream;
use quote::quote;

use super::client::{Client, Unions};
use super::{Emitter, ident, rust_file};
use crate::GeneratedFile;
use crate::ir::{Builtin, Member, Schema, TypeDef, TypeRef};
use crate::naming::snake;

const FOLDER: &str = "clients/rust/src/generated";

/// What the emitters of the Rust client need to know.
struct RustClient<'s> {
    client: Client<'s>,
    emitter: Emitter<'s>,
}

pub(super) fn files(schema: &Schema) -> Vec<GeneratedFile> {
    let rust = RustClient {
        client: Client::new(schema, Unions::Nested),
        emitter: Emitter::new(schema),
    };
    let mut files = Vec::new();
    let mut index = Vec::new();
    for module in &schema.modules {
        let types = rust.client.types().filter(|ty| ty.module == module.name);
        let types: Vec<_> = types.map(|ty| rust.type_def(ty)).collect();
        let commands: Vec<_> = rust
            .client
            .commands()
            .into_iter()
            .filter(|one| module.commands.iter().any(|own| own.name == one.name))
            .map(|command| rust.command(command, &module.name))
            .collect();
        if types.is_empty() && commands.is_empty() {
            continue;
        }
        let from = format!("schema/{}.json", module.name.replace('_', "-"));
        let body = quote! { #(#types)* #(#commands)* };
        files.push(rust_file(FOLDER, &module.name, &module.title, &from, body));
        let (name, doc) = (snake(&module.name), format!(" {}.", module.title));
        index.push(quote! { #[doc = #doc] pub mod #name; });
    }
    let events = rust.events();
    files.push(rust_file(
        FOLDER,
        "events",
        "Every event",
        "schema/*.json",
        events,
    ));
    let index = quote! { #(#index)* pub(crate) mod events; };
    files.push(rust_file(
        FOLDER,
        "mod",
        "All that is generated",
        "schema/*.json",
        index,
    ));
    files
}

impl RustClient<'_> {
    /// `new`, with what must be given; none where nothing must, or where only the server makes it.
    fn constructor(
        &self,
        ty: &TypeDef,
        members: &[Member],
        variant: Option<(&str, &str)>,
    ) -> TokenStream {
        let needs = variant.is_some() || members.iter().any(|one| !one.optional);
        if !needs || !self.client.is_sent(ty) {
            return TokenStream::new();
        }
        let mut parameters = Vec::new();
        let mut fields = Vec::new();
        for member in members {
            let name = snake(&member.name);
            if member.optional {
                fields.push(quote! { #name: None });
                continue;
            }
            let text = member.ty == TypeRef::Builtin(Builtin::Str);
            let boxed = self.emitter.boxes.boxed(&ty.name, &member.name);
            let rust = self.emitter.rust_type(&member.ty, &ty.module);
            let rust = if text {
                quote! { impl Into<String> }
            } else {
                rust
            };
            parameters.push(quote! { #name: #rust });
            fields.push(match (text, boxed) {
                (true, _) => quote! { #name: #name.into() },
                (false, true) => quote! { #name: Box::new(#name) },
                (false, false) => quote! { #name },
            });
        }
        if let Some((field, rust)) = variant {
            let (field, rust) = (snake(field), ident(rust));
            parameters.push(quote! { #field: #rust });
            fields.push(quote! { #field });
        }
        let name = ident(&ty.rust_name);
        quote! {
            impl #name {
                /// With what must be given, and all else absent.
                pub fn new(#(#parameters),*) -> Self {
                    Self { #(#fields),* }
                }
            }
        }
    }
}
