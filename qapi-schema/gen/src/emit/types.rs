//! Types: what they are in Rust, how they go out (serde), how they come in (`FromInput`).

use proc_macro2::TokenStream;
use quote::quote;

use super::{Emitter, doc_lines, ident};
use crate::ir::{Branch, Builtin, EnumValue, Kind, Member, TypeDef, TypeRef, marks};
use crate::naming::{camel, snake};

impl Emitter<'_> {
    pub(super) fn type_def(&self, ty: &TypeDef) -> TokenStream {
        let body = match &ty.kind {
            Kind::Enum(values) => enumeration(ty, values),
            Kind::Struct(members) => self.structure(ty, members),
            Kind::Union {
                base,
                tag,
                tag_type,
                branches,
            } => self.union(ty, base, tag, tag_type, branches),
            Kind::Alternate(branches) => self.alternate(ty, branches),
        };
        let described = self.described(ty);
        quote! { #body #described }
    }

    fn structure(&self, ty: &TypeDef, members: &[Member]) -> TokenStream {
        let doc = doc_lines(&ty.doc, &format!("QAPI struct `{}`.", ty.name));
        let name = ident(&ty.rust_name);
        let fields = members.iter().map(|member| self.field(ty, member));
        let takes = members.iter().map(take);
        let default = self.has_default(ty).then(|| quote! { Default, });
        let unused = members.is_empty().then(|| quote! { let _ = members; });
        quote! {
            #doc
            #[derive(Clone, Debug, #default PartialEq, serde::Serialize, schemars::JsonSchema)]
            pub struct #name { #(#fields)* }

            impl crate::input::FromMembers for #name {
                fn take(members: &mut crate::input::Members<'_>) -> Result<Self, crate::QmpError> {
                    #unused
                    Ok(Self { #(#takes)* })
                }
            }

            crate::input::object_type!(#name);
        }
    }

    pub(super) fn field(&self, ty: &TypeDef, member: &Member) -> TokenStream {
        let doc = doc_lines(&member.doc, &format!("QAPI member `{}`.", member.name));
        let name = snake(&member.name);
        let mut rust = self.rust_type(&member.ty, &ty.module);
        if self.boxes.boxed(&ty.name, &member.name) {
            rust = quote! { Box<#rust> };
        }
        let wire = &member.name;
        let rename = (name.to_string().trim_start_matches("r#") != wire)
            .then(|| quote! { #[serde(rename = #wire)] });
        let marks = marks(&member.features);
        let skip = match (member.optional, marks) {
            (true, 0) => Some("Option::is_none".to_owned()),
            (true, marks) => Some(format!("crate::compat::absent_or_hidden::<{marks}, _>")),
            (false, 0) => None,
            (false, marks) => Some(format!("crate::compat::hidden::<{marks}, _>")),
        };
        let skip = skip.map(|skip| quote! { #[serde(skip_serializing_if = #skip)] });
        if member.optional {
            rust = quote! { Option<#rust> };
        }
        quote! { #doc #rename #skip pub #name: #rust, }
    }

    fn alternate(&self, ty: &TypeDef, branches: &[Branch]) -> TokenStream {
        let doc = doc_lines(&ty.doc, &format!("QAPI alternate `{}`.", ty.name));
        let name = ident(&ty.rust_name);
        let qapi = &ty.name;
        let variants = branches.iter().map(|branch| {
            let doc = doc_lines(&branch.doc, &format!("QAPI branch `{}`.", branch.name));
            let variant = ident(&camel(&branch.name));
            let rust = self.branch_type(ty, branch);
            quote! { #doc #variant(#rust), }
        });
        let arms = branches.iter().map(|branch| {
            let variant = ident(&camel(&branch.name));
            let pattern = branch.ty.as_ref().map(|ty| self.json_pattern(ty));
            quote! {
                #pattern => crate::input::FromInput::from_input(value, at, mode).map(Self::#variant),
            }
        });
        quote! {
            #doc
            #[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
            #[serde(untagged)]
            pub enum #name { #(#variants)* }

            impl crate::input::FromInput for #name {
                fn from_input(
                    value: serde_json::Value,
                    at: &crate::input::Path<'_>,
                    mode: crate::input::Mode,
                ) -> Result<Self, crate::QmpError> {
                    match value {
                        #(#arms)*
                        _ => Err(crate::input::wrong_alternate(at, #qapi)),
                    }
                }
            }

            crate::input::deserialize_through_input!(#name);
        }
    }

    pub(super) fn branch_type(&self, ty: &TypeDef, branch: &Branch) -> TokenStream {
        let rust = branch.ty.as_ref().map(|of| self.rust_type(of, &ty.module));
        if self.boxes.boxed(&ty.name, &branch.name) {
            return quote! { Box<#rust> };
        }
        quote! { #rust }
    }

    fn json_pattern(&self, ty: &TypeRef) -> TokenStream {
        match ty {
            TypeRef::Array(_) => quote! { serde_json::Value::Array(_) },
            TypeRef::Named(name) => match self.schema.types[name].kind {
                Kind::Enum(_) => quote! { serde_json::Value::String(_) },
                _ => quote! { serde_json::Value::Object(_) },
            },
            TypeRef::Builtin(builtin) => match builtin.json_type() {
                "string" => quote! { serde_json::Value::String(_) },
                "boolean" => quote! { serde_json::Value::Bool(_) },
                "null" => quote! { serde_json::Value::Null },
                _ => quote! { serde_json::Value::Number(_) },
            },
        }
    }

    /// Whether "all absent, zero, empty" is a value of the type.
    fn has_default(&self, ty: &TypeDef) -> bool {
        let Kind::Struct(members) = &ty.kind else {
            return false;
        };
        members.iter().all(|member| {
            member.optional
                || match &member.ty {
                    TypeRef::Named(name) => self.has_default(&self.schema.types[name]),
                    TypeRef::Array(_) => true,
                    TypeRef::Builtin(builtin) => *builtin != Builtin::Any,
                }
        })
    }
}

/// `name: members.required("name")?,`
pub(super) fn take(member: &Member) -> TokenStream {
    let field = snake(&member.name);
    let wire = &member.name;
    let size = member.ty == TypeRef::Builtin(Builtin::Size);
    let how = match (size, member.optional) {
        (true, true) => quote! { optional_size },
        (true, false) => quote! { required_size },
        (false, true) => quote! { optional },
        (false, false) => quote! { required },
    };
    let marks = marks(&member.features);
    let marked = (marks != 0).then(|| quote! { .marked(#wire, #marks)? });
    quote! { #field: members #marked .#how(#wire)?, }
}

fn enumeration(ty: &TypeDef, values: &[EnumValue]) -> TokenStream {
    let doc = doc_lines(&ty.doc, &format!("QAPI enum `{}`.", ty.name));
    let name = ident(&ty.rust_name);
    let variants = values.iter().map(|value| {
        let doc = doc_lines(&value.doc, &format!("QAPI value `{}`.", value.name));
        let variant = ident(&camel(&value.name));
        let wire = &value.name;
        quote! { #doc #[serde(rename = #wire)] #variant, }
    });
    let idents: Vec<_> = values
        .iter()
        .map(|value| ident(&camel(&value.name)))
        .collect();
    let wires: Vec<_> = values.iter().map(|value| &value.name).collect();
    let marked: Vec<_> = values
        .iter()
        .zip(&idents)
        .map(|(value, ident)| (ident, marks(&value.features)))
        .filter(|(_, marks)| *marks != 0)
        .map(|(ident, marks)| quote! { Self::#ident => #marks, })
        .collect();
    let (marks, macro_end) = if marked.is_empty() {
        (TokenStream::new(), TokenStream::new())
    } else {
        let marks = quote! {
            /// How the value is marked.
            pub(crate) const fn marks(self) -> crate::compat::Marks {
                match self { #(#marked)* _ => 0 }
            }
        };
        (marks, quote! { , marked })
    };
    quote! {
        #doc
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
            serde::Serialize, schemars::JsonSchema,
        )]
        pub enum #name { #(#variants)* }

        impl #name {
            /// Every value, in the schema's order.
            pub const ALL: &'static [Self] = &[#(Self::#idents),*];

            /// The name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { #(Self::#idents => #wires,)* }
            }

            #marks
        }

        crate::input::named_values!(#name #macro_end);
    }
}
