//! Commands: one trait and one dispatch per file, and the table of all.

use proc_macro2::TokenStream;
use quote::quote;

use super::{Emitter, doc_lines, ident};
use crate::ir::{Command, Module};
use crate::naming::{camel, snake};

impl Emitter<'_> {
    pub(super) fn commands(&self, module: &Module) -> TokenStream {
        if module.commands.is_empty() {
            return TokenStream::new();
        }
        let methods = module
            .commands
            .iter()
            .map(|command| self.method(module, command));
        let arms = module.commands.iter().map(arm);
        let doc = format!(
            " The commands of `{}.json`, for whoever implements them.",
            module.name.replace('_', "-")
        );
        quote! {
            #[doc = #doc]
            pub trait Commands { #(#methods)* }

            /// Parses a command's arguments, runs it, and writes its reply.
            pub fn dispatch(
                handler: &mut dyn Commands,
                name: &str,
                cx: &mut dyn crate::Context,
                arguments: serde_json::Value,
            ) -> Result<crate::Reply, crate::QmpError> {
                match name {
                    #(#arms)*
                    _ => Err(crate::QmpError::command_not_found(name)),
                }
            }
        }
    }

    fn method(&self, module: &Module, command: &Command) -> TokenStream {
        let mut doc = command.doc.clone();
        if doc.paragraphs.is_empty() {
            doc.paragraphs.push(format!("Command `{}`.", command.name));
        }
        if let Some(returns) = &command.returns_doc {
            doc.paragraphs
                .push(format!("Returns: {}", returns.one_line()));
        }
        if let Some(errors) = &command.errors_doc {
            doc.paragraphs
                .push(format!("Errors: {}", errors.one_line()));
        }
        let doc = doc_lines(&doc, "");
        let name = snake(&command.name);
        if !command.generated {
            return quote! {
                #doc
                fn #name(
                    &mut self,
                    cx: &mut dyn crate::Context,
                    arguments: serde_json::Value,
                ) -> Result<crate::Reply, crate::QmpError>;
            };
        }
        let args = command.args.as_ref().map(|args| {
            let ty = self.named(args, &module.name);
            quote! { , args: #ty }
        });
        let returns = match &command.returns {
            Some(ty) => self.rust_type(ty, &module.name),
            None => quote! { () },
        };
        quote! {
            #doc
            fn #name(
                &mut self,
                cx: &mut dyn crate::Context
                #args
            ) -> Result<#returns, crate::QmpError>;
        }
    }

    pub(super) fn command_table(&self) -> TokenStream {
        let mut all: Vec<(&str, &Command)> = Vec::new();
        for module in &self.schema.modules {
            all.extend(
                module
                    .commands
                    .iter()
                    .map(|one| (module.name.as_str(), one)),
            );
        }
        all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let modules = self
            .schema
            .modules
            .iter()
            .filter(|m| !m.commands.is_empty());
        let variants = modules.map(|module| {
            let name = ident(&camel(&module.name));
            let doc = format!(" {}.", module.title);
            quote! { #[doc = #doc] #name, }
        });
        let entries = all.iter().enumerate().map(|(number, (module, command))| {
            let name = &command.name;
            let module = ident(&camel(module));
            let Command {
                allow_oob,
                allow_preconfig,
                success_response,
                fds,
                features,
                ..
            } = command;
            quote! {
                crate::CommandSpec {
                    number: #number,
                    name: #name,
                    module: Module::#module,
                    allow_oob: #allow_oob,
                    allow_preconfig: #allow_preconfig,
                    success_response: #success_response,
                    fds: #fds,
                    features: &[#(#features),*],
                }
            }
        });
        quote! {
            /// The schema file that a command belongs to, and so who implements it.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum Module { #(#variants)* }

            /// Every command, sorted by name.
            pub const COMMANDS: &[crate::CommandSpec] = &[#(#entries),*];
        }
    }
}

fn arm(command: &Command) -> TokenStream {
    let wire = &command.name;
    let name = snake(&command.name);
    if !command.generated {
        return quote! { #wire => handler.#name(cx, arguments), };
    }
    let (parse, call) = match command.args {
        Some(_) => (
            quote! { let args = crate::input::arguments(arguments)?; },
            quote! { handler.#name(cx, args)? },
        ),
        None => (
            quote! { crate::input::no_arguments(arguments)?; },
            quote! { handler.#name(cx)? },
        ),
    };
    match command.returns {
        Some(_) => quote! { #wire => { #parse crate::Reply::of(&#call) } },
        None => quote! { #wire => { #parse #call; Ok(crate::Reply::EMPTY) } },
    }
}
