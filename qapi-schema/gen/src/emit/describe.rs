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
        let values: Vec<String> = match &member.ty {
            TypeRef::Named(of) => match &self.schema.types[of].kind {
                Kind::Enum(values) => values.iter().map(|value| value.name.clone()).collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let description = member.doc.one_line();
        let new = match member.optional {
            true => quote! { optional },
            false => quote! { required },
        };
        let values = (!values.is_empty()).then(|| quote! { .one_of(&[#(#values),*]) });
        let default = member
            .doc
            .default_value()
            .map(|value| quote! { .default_is(#value) });
        quote! {
            crate::describe::MemberSpec::#new(#name, #type_name, #description) #values #default
        }
    }
}
