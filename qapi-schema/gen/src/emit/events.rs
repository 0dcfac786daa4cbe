//! Events: one enum over all files.

use proc_macro2::TokenStream;
use quote::quote;

use super::{Emitter, doc_lines, ident};
use crate::ir::{Event, marks};
use crate::naming::camel;

impl Emitter<'_> {
    pub(super) fn events(&self) -> TokenStream {
        let all: Vec<&Event> = self.schema.modules.iter().flat_map(|m| &m.events).collect();
        let variants = all.iter().map(|event| {
            let doc = doc_lines(&event.doc, &format!("Event `{}`.", event.name));
            let wire = &event.name;
            let name = ident(&camel(&event.name));
            let payload = event.args.as_ref().map(|args| {
                let ty = self.named(args, "events");
                quote! { (#ty) }
            });
            quote! { #doc #[serde(rename = #wire)] #name #payload, }
        });
        let names: Vec<&String> = all.iter().map(|event| &event.name).collect();
        let arms = all.iter().map(|event| {
            let wire = &event.name;
            let name = ident(&camel(&event.name));
            let rest = event.args.as_ref().map(|_| quote! { (_) });
            quote! { Self::#name #rest => #wire, }
        });
        let marked: Vec<_> = all
            .iter()
            .filter(|event| marks(&event.features) != 0)
            .map(|event| {
                let marks = marks(&event.features);
                let name = ident(&camel(&event.name));
                let rest = event.args.as_ref().map(|_| quote! { (_) });
                quote! { Self::#name #rest => #marks, }
            })
            .collect();
        let marks = if marked.is_empty() {
            quote! { 0 }
        } else {
            quote! { match self { #(#marked)* _ => 0 } }
        };
        quote! {
            /// Something that happened, told to every session. Serializes as its `event` and
            /// `data` members; `data` is absent where the event has none.
            #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
            #[serde(tag = "event", content = "data")]
            pub enum Event { #(#variants)* }

            impl Event {
                /// Every event's name.
                pub const NAMES: &'static [&'static str] = &[#(#names),*];

                /// The name on the wire.
                pub const fn name(&self) -> &'static str {
                    match self { #(#arms)* }
                }

                /// How it is marked, for [`crate::compat::hides`].
                pub const fn marks(&self) -> crate::compat::Marks {
                    #marks
                }
            }
        }
    }
}
