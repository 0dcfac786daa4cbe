//! Commands, which are their arguments; and the enum of events.

use proc_macro2::TokenStream;
use quote::quote;

use super::RustClient;
use crate::doc::DocText;
use crate::emit::{doc_lines, ident};
use crate::ir::{Command, Event, TypeDef};
use crate::naming::camel;

impl RustClient<'_> {
    pub(super) fn command(&self, command: &Command, module: &str) -> TokenStream {
        let name = ident(&camel(&command.name));
        let wire = &command.name;
        let definition = self.definition(command, module);
        let reply = match &command.returns {
            Some(ty) => {
                let ty = self.emitter.rust_type(ty, module);
                quote! { type Reply = #ty; }
            }
            None => quote! {
                type Reply = ();

                fn read_reply(_: serde_json::Value) -> Result<(), serde_json::Error> {
                    Ok(())
                }
            },
        };
        let kind = ident(if command.fds > 0 { "TakesFd" } else { "Plain" });
        quote! {
            #definition

            impl crate::Command for #name {
                const NAME: &'static str = #wire;
                #reply
            }

            impl crate::#kind for #name {}
        }
    }

    /// The struct, where its arguments are not one already.
    fn definition(&self, command: &Command, module: &str) -> TokenStream {
        let name = ident(&camel(&command.name));
        let doc = doc_lines(&spoken(command), &format!("Command `{}`.", command.name));
        match command.args.as_deref() {
            None => quote! {
                #doc
                #[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
                pub struct #name;
            },
            // A struct of the command's name is its arguments, too.
            Some(args) if args.starts_with("q_obj_") || args == camel(&command.name) => {
                TokenStream::new()
            }
            Some(args) => {
                let ty = self.emitter.named(args, module);
                quote! {
                    #doc
                    #[derive(Clone, Debug, PartialEq, serde::Serialize)]
                    #[serde(transparent)]
                    pub struct #name(
                        /// What there is to say.
                        pub #ty,
                    );
                }
            }
        }
    }

    /// What a type is; of a command's arguments, what the command does.
    pub(super) fn documentation(&self, ty: &TypeDef) -> DocText {
        let commands = self.client.commands().into_iter();
        let events = self.client.events().into_iter();
        let is_args = |args: &Option<String>| args.as_deref() == Some(ty.name.as_str());
        let own = ty.name.starts_with("q_obj_");
        let command = commands.filter(|one| own && is_args(&one.args)).map(spoken);
        let event = events
            .filter(|one| own && is_args(&one.args))
            .map(|one| one.doc.clone());
        command
            .chain(event)
            .next()
            .unwrap_or_else(|| ty.doc.clone())
    }

    pub(super) fn events(&self) -> TokenStream {
        let events = self.client.events();
        let variants = events.iter().map(|event| {
            let doc = doc_lines(&event.doc, &format!("Event `{}`.", event.name));
            let name = ident(&camel(&event.name));
            let payload = self.payload(event).map(|ty| quote! { (#ty) });
            quote! { #doc #name #payload, }
        });
        let names = events.iter().map(|event| {
            let (name, wire) = (ident(&camel(&event.name)), &event.name);
            let rest = event.args.as_ref().map(|_| quote! { (_) });
            quote! { Self::#name #rest => #wire, }
        });
        let arms = events.iter().map(|event| {
            let (name, wire) = (ident(&camel(&event.name)), &event.name);
            match event.args {
                Some(_) => quote! { #wire => Self::#name(serde_json::from_value(data)?), },
                None => quote! { #wire => Self::#name, },
            }
        });
        quote! {
            /// Something that happened.
            #[derive(Clone, Debug, PartialEq)]
            #[non_exhaustive]
            pub enum Event {
                #(#variants)*
                /// An event that this version does not know.
                Unknown {
                    /// Its name on the wire.
                    name: String,
                    /// What came with it.
                    data: serde_json::Value,
                },
            }

            impl Event {
                /// The name on the wire.
                pub fn name(&self) -> &str {
                    match self {
                        #(#names)*
                        Self::Unknown { name, .. } => name,
                    }
                }

                /// Reads an event's data by its name.
                pub(crate) fn read(
                    name: String,
                    data: serde_json::Value,
                ) -> Result<Self, serde_json::Error> {
                    Ok(match name.as_str() {
                        #(#arms)*
                        _ => Self::Unknown { name, data },
                    })
                }
            }
        }
    }

    fn payload(&self, event: &Event) -> Option<TokenStream> {
        let args = event.args.as_deref()?;
        Some(self.emitter.named(args, "events"))
    }
}

/// A command's documentation with what it returns and how it fails.
fn spoken(command: &Command) -> DocText {
    let mut doc = command.doc.clone();
    for (title, text) in [
        ("Returns", &command.returns_doc),
        ("Errors", &command.errors_doc),
    ] {
        if let Some(text) = text {
            doc.paragraphs.push(format!("{title}: {}", text.one_line()));
        }
    }
    doc
}
