//! Which types the published JSON Schema names: each command's arguments and reply, each event's
//! data. The schemas themselves come from schemars, so they describe what serde does.

use proc_macro2::TokenStream;
use quote::quote;

use super::Emitter;

impl Emitter<'_> {
    pub(super) fn catalogue(&self) -> TokenStream {
        let commands = self
            .schema
            .modules
            .iter()
            .flat_map(|m| &m.commands)
            .map(|command| {
                let name = &command.name;
                let description = command.doc.one_line();
                let arguments = match &command.args {
                    Some(args) => {
                        let ty = self.named(args, "catalogue");
                        quote! { Some(generator.subschema_for::<#ty>()) }
                    }
                    None => quote! { None },
                };
                let returns = match &command.returns {
                    Some(ty) => {
                        let ty = self.rust_type(ty, "catalogue");
                        quote! { Some(generator.subschema_for::<#ty>()) }
                    }
                    None => quote! { None },
                };
                quote! {
                    Entry {
                        name: #name,
                        description: #description,
                        input: #arguments,
                        output: #returns,
                    }
                }
            });
        let events = self
            .schema
            .modules
            .iter()
            .flat_map(|m| &m.events)
            .map(|event| {
                let name = &event.name;
                let description = event.doc.one_line();
                let output = match &event.args {
                    Some(args) => {
                        let ty = self.named(args, "catalogue");
                        quote! { Some(generator.subschema_for::<#ty>()) }
                    }
                    None => quote! { None },
                };
                quote! {
                    Entry { name: #name, description: #description, input: None, output: #output }
                }
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
