//! Text that is no schema: refused with a line, never a panic.

use proptest::prelude::*;
use qapi_gen::parse;

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_at_a_line_it_has(text in "[#@{}\\[\\]:,' \na-z]*") {
        if let Err(error) = parse::file("x.json", &text) {
            prop_assert!(error.at.line >= 1);
            prop_assert!(error.at.line <= text.split('\n').count());
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn any_unicode_is_parsed_or_refused(text in ".*") {
        let _ = parse::file("x.json", &text);
    }
}
