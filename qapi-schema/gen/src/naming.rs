//! QAPI names to Rust names. One function each way, never by hand.

use proc_macro2::{Ident, Span};

/// `fdset-id` → `fdset_id`, with `r#` where Rust keeps the word for itself.
pub fn snake(name: &str) -> Ident {
    let text = name.replace(['-', '.'], "_").to_ascii_lowercase();
    if syn::parse_str::<Ident>(&text).is_ok() {
        Ident::new(&text, Span::call_site())
    } else if text.starts_with(|c: char| c.is_ascii_digit()) {
        Ident::new(&format!("_{text}"), Span::call_site())
    } else {
        Ident::new_raw(&text, Span::call_site())
    }
}

/// `null-co` → `NullCo`, `BLOCK_IO_ERROR` → `BlockIoError`, `x86_64` → `X86_64`.
pub fn camel(name: &str) -> String {
    let shouting = !name.contains(|c: char| c.is_ascii_lowercase());
    let mut out = String::new();
    let mut upper = true;
    let mut gap = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() {
            upper = true;
            gap = true;
            continue;
        }
        if gap && c.is_ascii_digit() && out.ends_with(|c: char| c.is_ascii_digit()) {
            out.push('_');
        }
        gap = false;
        out.push(match (upper, shouting) {
            (true, _) => c.to_ascii_uppercase(),
            (false, true) => c.to_ascii_lowercase(),
            (false, false) => c,
        });
        upper = false;
    }
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, 'V');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_become_snake_case_and_keywords_are_escaped() {
        assert_eq!(snake("fdset-id").to_string(), "fdset_id");
        assert_eq!(snake("type").to_string(), "r#type");
        assert_eq!(snake("UUID").to_string(), "uuid");
    }

    #[test]
    fn values_commands_and_events_become_camel_case() {
        assert_eq!(camel("null-co"), "NullCo");
        assert_eq!(camel("io_uring"), "IoUring");
        assert_eq!(camel("BLOCK_IO_ERROR"), "BlockIoError");
        assert_eq!(camel("STOP"), "Stop");
        assert_eq!(camel("x86_64"), "X86_64");
        assert_eq!(camel("2d"), "V2d");
    }
}
