//! What each type has for members, as constants: for `help`, for suggestions, for
//! `device-list-properties`.

use proc_macro2::TokenStream;
use quote::quote;

use super::{Emitter, ident};
use crate::ir::{Kind, Member, TypeDef, TypeRef};

impl Emitter<'_> {
    pub(super) fn described(&self, ty: &TypeDef) -> TokenStream {
        let name = ident(&ty.rust_name);
        let (members, tag, variants) = match &ty.kind {
            Kind::Enum(_) | Kind::Alternate(_) => return TokenStream::new(),
            Kind::Struct(members) => (members, quote! { None }, Vec::new()),
            Kind::Union {
                base,
                tag,
                branches,
                ..
            } => {
                let variants = branches.iter().map(|branch| {
                    let wire = &branch.name;
                    let text = branch.doc.one_line();
                    let members = match &branch.ty {
                        Some(TypeRef::Named(of)) => {
                            let of = self.named(of, &ty.module);
                            quote! { <#of as crate::describe::Described>::MEMBERS }
                        }
                        _ => quote! { &[] },
                    };
                    quote! {
                        crate::describe::VariantSpec {
                            name: #wire, description: #text, members: #members,
                        }
                    }
                });
                (base, quote! { Some(#tag) }, variants.collect())
            }
        };
        let members = members.iter().map(|member| self.member_spec(member));
        quote! {
            impl crate::describe::Described for #name {
                const MEMBERS: &'static [crate::describe::MemberSpec] = &[#(#members),*];
                const TAG: Option<&'static str> = #tag;
                const VARIANTS: &'static [crate::describe::VariantSpec] = &[#(#variants),*];
            }
        }
    }

    fn member_spec(&self, member: &Member) -> TokenStream {
        let name = &member.name;
        let type_name = member.ty.name();
        let values = match &member.ty {
            TypeRef::Named(of) => match &self.schema.types[of].kind {
                Kind::Enum(values) => values.iter().map(|value| value.name.clone()).collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let optional = member.optional;
        let description = member.doc.one_line();
        let default = match member.doc.default_value() {
            Some(value) => quote! { Some(#value) },
            None => quote! { None },
        };
        quote! {
            crate::describe::MemberSpec {
                name: #name,
                type_name: #type_name,
                values: &[#(#values),*],
                optional: #optional,
                description: #description,
                default: #default,
            }
        }
    }
}
