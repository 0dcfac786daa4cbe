//! Types: as the server's (`emit/types.rs`), but read and written by serde alone, and lenient.

use proc_macro2::{Ident, TokenStream};
use quote::quote;

use super::RustClient;
use crate::emit::{doc_lines, ident};
use crate::ir::{Branch, Builtin, EnumValue, Kind, Member, TypeDef, TypeRef};
use crate::naming::{camel, snake};

impl RustClient<'_> {
    pub(super) fn type_def(&self, ty: &TypeDef) -> TokenStream {
        match &ty.kind {
            Kind::Enum(values) => enumeration(ty, values),
            Kind::Struct(members) => self.structure(ty, members),
            Kind::Union {
                base,
                tag,
                branches,
                ..
            } => self.union(ty, base, tag, branches),
            Kind::Alternate(branches) => self.alternate(ty, branches),
        }
    }

    fn structure(&self, ty: &TypeDef, members: &[Member]) -> TokenStream {
        let doc = doc_lines(
            &self.documentation(ty),
            &format!("QAPI struct `{}`.", ty.name),
        );
        let name = ident(&ty.rust_name);
        let fields = members.iter().map(|member| self.field(ty, member));
        let default = members.iter().all(|one| one.optional);
        let default = default.then(|| quote! { Default, });
        let new = self.constructor(ty, members, None);
        quote! {
            #doc
            #[derive(Clone, Debug, #default PartialEq, serde::Deserialize, serde::Serialize)]
            pub struct #name { #(#fields)* }

            #new
        }
    }

    fn field(&self, ty: &TypeDef, member: &Member) -> TokenStream {
        let doc = doc_lines(&member.doc, &format!("QAPI member `{}`.", member.name));
        let name = snake(&member.name);
        let mut rust = self.emitter.rust_type(&member.ty, &ty.module);
        if self.emitter.boxes.boxed(&ty.name, &member.name) {
            rust = quote! { Box<#rust> };
        }
        let wire = &member.name;
        let rename = (name.to_string().trim_start_matches("r#") != wire)
            .then(|| quote! { #[serde(rename = #wire)] });
        if member.optional {
            // To serde null is absence; where null is a value, what is there is kept.
            let null = self.takes_null(&member.ty).then(|| {
                quote! { #[serde(default, deserialize_with = "crate::command::present")] }
            });
            return quote! {
                #doc
                #rename
                #[serde(skip_serializing_if = "Option::is_none")]
                #null
                pub #name: Option<#rust>,
            };
        }
        quote! { #doc #rename pub #name: #rust, }
    }

    fn takes_null(&self, ty: &TypeRef) -> bool {
        match ty {
            TypeRef::Builtin(builtin) => matches!(builtin, Builtin::Null | Builtin::Any),
            TypeRef::Array(_) => false,
            TypeRef::Named(name) => match self.emitter.schema.types.get(name).map(|ty| &ty.kind) {
                Some(Kind::Alternate(branches)) => branches
                    .iter()
                    .filter_map(|branch| branch.ty.as_ref())
                    .any(|ty| self.takes_null(ty)),
                _ => false,
            },
        }
    }

    fn union(&self, ty: &TypeDef, base: &[Member], tag: &str, branches: &[Branch]) -> TokenStream {
        let doc = doc_lines(&ty.doc, &format!("QAPI union `{}`.", ty.name));
        let name = ident(&ty.rust_name);
        let variant_name = format!("{}Variant", ty.rust_name);
        let plain: Vec<Member> = base.iter().filter(|one| one.name != tag).cloned().collect();
        let fields = plain.iter().map(|member| self.field(ty, member));
        let new = self.constructor(ty, &plain, Some((tag, &variant_name)));
        let variants = self.variants(ty, tag, branches);
        let variant_name = ident(&variant_name);
        let tag_field = snake(tag);
        let tag_doc = format!(" Which kind it is (`{tag}`), with the members of that kind.");
        let variant_doc = format!(" What [`{}`] holds beside its fixed members.", ty.rust_name);
        quote! {
            #doc
            #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
            pub struct #name {
                #(#fields)*
                #[doc = #tag_doc]
                #[serde(flatten)]
                pub #tag_field: #variant_name,
            }

            #new

            #[doc = #variant_doc]
            #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
            #[serde(tag = #tag)]
            #[non_exhaustive]
            pub enum #variant_name { #variants }
        }
    }

    fn variants(&self, ty: &TypeDef, tag: &str, branches: &[Branch]) -> TokenStream {
        let names = branches.iter().map(|branch| branch.name.as_str());
        let unknown = unknown(names);
        let variants = branches.iter().map(|branch| {
            let doc = doc_lines(&branch.doc, &format!("`{tag}` is `{}`.", branch.name));
            let wire = &branch.name;
            let variant = ident(&camel(&branch.name));
            let payload = branch.ty.as_ref().map(|_| {
                let rust = self.branch_type(ty, branch);
                quote! { (#rust) }
            });
            quote! { #doc #[serde(rename = #wire)] #variant #payload, }
        });
        quote! { #(#variants)* #unknown }
    }

    fn alternate(&self, ty: &TypeDef, branches: &[Branch]) -> TokenStream {
        let doc = doc_lines(&ty.doc, &format!("QAPI alternate `{}`.", ty.name));
        let name = ident(&ty.rust_name);
        let variants = branches.iter().map(|branch| {
            let doc = doc_lines(&branch.doc, &format!("QAPI branch `{}`.", branch.name));
            let variant = ident(&camel(&branch.name));
            let rust = self.branch_type(ty, branch);
            quote! { #doc #variant(#rust), }
        });
        quote! {
            #doc
            #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
            #[serde(untagged)]
            pub enum #name { #(#variants)* }
        }
    }

    fn branch_type(&self, ty: &TypeDef, branch: &Branch) -> TokenStream {
        let of = branch.ty.as_ref();
        let rust = of.map(|of| self.emitter.rust_type(of, &ty.module));
        if self.emitter.boxes.boxed(&ty.name, &branch.name) {
            return quote! { Box<#rust> };
        }
        quote! { #rust }
    }
}

fn enumeration(ty: &TypeDef, values: &[EnumValue]) -> TokenStream {
    let doc = doc_lines(&ty.doc, &format!("QAPI enum `{}`.", ty.name));
    let name = ident(&ty.rust_name);
    let unknown = unknown(values.iter().map(|value| value.name.as_str()));
    let variants = values.iter().map(|value| {
        let doc = doc_lines(&value.doc, &format!("QAPI value `{}`.", value.name));
        let variant = ident(&camel(&value.name));
        let wire = &value.name;
        quote! { #doc #[serde(rename = #wire)] #variant, }
    });
    quote! {
        #doc
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
        #[non_exhaustive]
        pub enum #name { #(#variants)* #unknown }
    }
}

/// The place for what a newer server says.
fn unknown<'n>(mut names: impl Iterator<Item = &'n str>) -> TokenStream {
    let taken = names.any(|name| camel(name) == "Unknown");
    let name: Ident = ident(if taken { "UnknownToClient" } else { "Unknown" });
    quote! {
        /// One that this version does not know. It can be received, not sent.
        #[serde(other, skip_serializing)]
        #name,
    }
}
