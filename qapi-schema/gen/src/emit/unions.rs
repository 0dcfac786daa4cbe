//! Unions: a struct with the members that are always there, and an enum for the rest. The enum
//! stands in the field named after the discriminator.

use proc_macro2::TokenStream;
use quote::quote;

use super::{Emitter, doc_lines, ident, types};
use crate::ir::{Branch, Member, TypeDef};
use crate::naming::{camel, snake};

impl Emitter<'_> {
    pub(super) fn union(
        &self,
        ty: &TypeDef,
        base: &[Member],
        tag: &str,
        tag_type: &str,
        branches: &[Branch],
    ) -> TokenStream {
        let doc = doc_lines(&ty.doc, &format!("QAPI union `{}`.", ty.name));
        let name = ident(&ty.rust_name);
        let variant_name = ident(&format!("{}Variant", ty.rust_name));
        let tag_field = snake(tag);
        let tag_type = self.named(tag_type, &ty.module);
        let plain: Vec<&Member> = base.iter().filter(|member| member.name != tag).collect();
        let fields = plain.iter().map(|member| self.field(ty, member));
        let takes = plain.iter().map(|member| types::take(member));
        let arms = branches.iter().map(|branch| {
            let variant = ident(&camel(&branch.name));
            match branch.ty {
                Some(_) if self.boxes.boxed(&ty.name, &branch.name) => quote! {
                    #tag_type::#variant => #variant_name::#variant(
                        Box::new(crate::input::FromMembers::take(members)?)
                    ),
                },
                Some(_) => quote! {
                    #tag_type::#variant => #variant_name::#variant(
                        crate::input::FromMembers::take(members)?
                    ),
                },
                None => quote! { #tag_type::#variant => #variant_name::#variant, },
            }
        });
        let tag_doc =
            format!(" Which kind it is (`{tag}` on the wire), with the members of that kind.");
        let variants = self.variants(ty, &variant_name, tag, &tag_type, branches);
        quote! {
            #doc
            #[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
            pub struct #name {
                #(#fields)*
                #[doc = #tag_doc]
                #[serde(flatten)]
                pub #tag_field: #variant_name,
            }

            #variants

            impl crate::input::FromMembers for #name {
                fn take(members: &mut crate::input::Members<'_>) -> Result<Self, crate::QmpError> {
                    let tag: #tag_type = members.required(#tag)?;
                    Ok(Self {
                        #(#takes)*
                        #tag_field: match tag { #(#arms)* },
                    })
                }
            }

            crate::input::object_type!(#name);
        }
    }

    fn variants(
        &self,
        ty: &TypeDef,
        name: &proc_macro2::Ident,
        tag: &str,
        tag_type: &TokenStream,
        branches: &[Branch],
    ) -> TokenStream {
        let doc = format!(" What [`{}`] holds beside its fixed members.", ty.rust_name);
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
        let tags = branches.iter().map(|branch| {
            let variant = ident(&camel(&branch.name));
            let rest = branch.ty.as_ref().map(|_| quote! { (_) });
            quote! { Self::#variant #rest => #tag_type::#variant, }
        });
        quote! {
            #[doc = #doc]
            #[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
            #[serde(tag = #tag)]
            pub enum #name { #(#variants)* }

            impl #name {
                /// The discriminator's value.
                pub const fn tag(&self) -> #tag_type {
                    match self { #(#tags)* }
                }
            }
        }
    }
}
