//! Which types the published JSON Schema names: each command's arguments and reply, each event's
//! data. The schemas themselves come from schemars, so they describe what serde does.

use proc_macro2::TokenStream;
use quote::quote;

use super::Emitter;

impl Emitter<'_> {
    pub(super) fn catalogue(&self) -> TokenStream {
        let modules = &self.schema.modules;
        let commands = modules.iter().flat_map(|m| &m.commands).map(|command| {
            let returns = command.returns.as_ref();
            let output = schema_of(returns.map(|ty| self.rust_type(ty, "catalogue")));
            let input = schema_of(command.args.as_ref().map(|ty| self.named(ty, "catalogue")));
            entry(&command.name, &command.doc.one_line(), &input, &output)
        });
        let events = modules.iter().flat_map(|m| &m.events).map(|event| {
            let output = schema_of(event.args.as_ref().map(|ty| self.named(ty, "catalogue")));
            entry(
                &event.name,
                &event.doc.one_line(),
                &quote! { None },
                &output,
            )
        });
        quote! {
            use crate::export::Entry;

            /// Every command's arguments and reply.
            pub(crate) fn commands(generator: &mut schemars::SchemaGenerator) -> Vec<Entry> {
                vec![#(#commands),*]
            }

            /// Every event's data.
            pub(crate) fn events(generator: &mut schemars::SchemaGenerator) -> Vec<Entry> {
                vec![#(#events),*]
            }
        }
    }
}

fn schema_of(ty: Option<TokenStream>) -> TokenStream {
    match ty {
        Some(ty) => quote! { Some(generator.subschema_for::<#ty>()) },
        None => quote! { None },
    }
}

fn entry(name: &str, description: &str, input: &TokenStream, output: &TokenStream) -> TokenStream {
    quote! {
        Entry {
            name: #name,
            description: #description,
            input: #input,
            output: #output,
        }
    }
}
