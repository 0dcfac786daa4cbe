//! Where one JSON value ends and the next begins, found while the bytes come in.
//!
//! QMP has no line or length framing: a client may send values in any split or concatenation, with
//! or without newlines. So the framer is a lexer with two counters, one for braces and one for
//! brackets. Each byte is looked at once; the tokens it finds are kept for the parser
//! ([`crate::json`]), which therefore never looks for them again.
//!
//! ```text
//!             token text                 braces or brackets open
//!   bytes ──► [ lexer ] ──► tokens ──► ◇ ───────────────────────► keep collecting
//!                │                     │ both zero, or one below zero
//!                │ lexical error       ▼
//!                ▼                   Frame (text + tokens)
//!            Malformed, then Recovery: skip to a structural character,
//!            a control character other than TAB, 0xFE or 0xFF
//! ```
//!
//! The rules and texts are those that QMP clients know (QEMU's `qmp-spec`, "client-server
//! synchronization", and the limits of its JSON streamer): 64 MiB of token text, 2 Mi tokens and a
//! nesting of 1024 for one value.

/// The most token text one value may have, in bytes.
const TEXT_LIMIT: usize = 64 << 20;
/// The most tokens one value may have.
const TOKEN_LIMIT: usize = 2 << 20;
/// The most braces and brackets that may be open at once.
pub(crate) const NESTING_LIMIT: usize = 1024;
/// What a framer keeps allocated between values; a larger value gives its buffers back.
const KEPT_TEXT: usize = 64 << 10;
/// How much of an offending token an error repeats.
const STRAY_LIMIT: usize = 256;

/// What a token is; its text is in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    Colon,
    Comma,
    Integer,
    Float,
    Keyword,
    String,
}

/// One token: it ends at `end` and begins where the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    end: u32,
}

/// One whole value as tokens, not yet parsed: it may still be wrong inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    text: &'a [u8],
    tokens: &'a [Token],
}

impl<'a> Frame<'a> {
    /// The tokens in order, each with its text.
    pub(crate) fn tokens(self) -> impl Iterator<Item = (Kind, &'a [u8])> {
        let mut start = 0;
        self.tokens.iter().map(move |token| {
            let end = token.end as usize;
            let text = self.text.get(start..end).unwrap_or_default();
            start = end;
            (token.kind, text)
        })
    }
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// One value is complete.
    Frame(Frame<'a>),
    /// The input so far cannot become a value; the text says why. The framer is ready for the next.
    Malformed(String),
    /// All input is used up and no value is complete.
    Incomplete,
}

/// Where the lexer stands within a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lexer {
    Start,
    Recovery,
    Keyword,
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// In a string that ends at this quote.
    Text(u8),
    /// In such a string, after a backslash.
    Escape(u8),
}

/// What one byte does to the lexer.
enum Move {
    /// The byte belongs to the token, which goes on.
    Take(Lexer),
    /// The byte is the last of a token.
    Finish(Kind),
    /// The token ended before this byte, which is still to be looked at.
    FinishBefore(Kind),
    /// The byte is white space or skipped.
    Skip,
    /// The byte ends recovery and is still to be looked at.
    Recovered,
    /// The byte cannot be here.
    Stray,
}

/// Finds the values in a stream of bytes.
#[derive(Debug)]
pub(crate) struct Framer {
    lexer: Lexer,
    text: Vec<u8>,
    tokens: Vec<Token>,
    /// Where the token that is being read began in `text`.
    token_start: usize,
    braces: i32,
    brackets: i32,
    /// A frame was handed out; its text goes at the next call.
    spent: bool,
}

impl Framer {
    /// A framer between two values.
    pub(crate) fn new() -> Self {
        Self {
            lexer: Lexer::Start,
            text: Vec::new(),
            tokens: Vec::new(),
            token_start: 0,
            braces: 0,
            brackets: 0,
            spent: false,
        }
    }

    /// Reads from `input` up to the end of one value or of one error, and leaves the rest in it.
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Step<'_> {
        if self.spent {
            self.reset();
        }
        loop {
            if let Lexer::Text(quote) = self.lexer
                && let Err(error) = self.take_text(quote, input)
            {
                return self.fail(error, Lexer::Recovery);
            }
            let Some((&byte, rest)) = input.split_first() else {
                return Step::Incomplete;
            };
            let mut finished = None;
            match next(self.lexer, byte) {
                Move::Take(lexer) => {
                    self.lexer = lexer;
                    self.text.push(byte);
                    *input = rest;
                }
                Move::Finish(kind) => {
                    self.text.push(byte);
                    *input = rest;
                    finished = Some(kind);
                }
                Move::FinishBefore(kind) => finished = Some(kind),
                Move::Skip => *input = rest,
                Move::Recovered => self.lexer = Lexer::Start,
                Move::Stray => {
                    self.text.push(byte);
                    *input = rest;
                    let stray = stray_text(self.text.get(self.token_start..).unwrap_or_default());
                    return self.fail(
                        format!("JSON parse error, stray '{stray}'"),
                        Lexer::Recovery,
                    );
                }
            }
            if self.text.len() > TEXT_LIMIT {
                return self.fail("JSON token size limit exceeded".into(), Lexer::Recovery);
            }
            if let Some(kind) = finished {
                self.lexer = Lexer::Start;
                match self.finish_token(kind) {
                    Err(error) => return self.fail(error, Lexer::Start),
                    Ok(false) => {}
                    Ok(true) => {
                        self.spent = true;
                        return Step::Frame(Frame {
                            text: &self.text,
                            tokens: &self.tokens,
                        });
                    }
                }
            }
        }
    }

    /// Takes the plain part of a string in one piece.
    fn take_text(&mut self, quote: u8, input: &mut &[u8]) -> Result<(), String> {
        let plain = input
            .iter()
            .position(|&byte| byte == quote || byte == b'\\' || !(0x20..=0xFD).contains(&byte))
            .unwrap_or(input.len());
        let room = TEXT_LIMIT.saturating_sub(self.text.len());
        let (taken, rest) = input.split_at(plain.min(room.saturating_add(1)));
        self.text.extend_from_slice(taken);
        *input = rest;
        if self.text.len() > TEXT_LIMIT {
            return Err("JSON token size limit exceeded".into());
        }
        Ok(())
    }

    /// Counts a token; true when it completes the value.
    fn finish_token(&mut self, kind: Kind) -> Result<bool, String> {
        match kind {
            Kind::OpenBrace => self.braces += 1,
            Kind::CloseBrace => self.braces -= 1,
            Kind::OpenBracket => self.brackets += 1,
            Kind::CloseBracket => self.brackets -= 1,
            _ => {}
        }
        if self.tokens.len() >= TOKEN_LIMIT {
            return Err("JSON token count limit exceeded".into());
        }
        if usize::try_from(self.braces + self.brackets).unwrap_or(0) > NESTING_LIMIT {
            return Err("JSON nesting depth limit exceeded".into());
        }
        let Ok(end) = u32::try_from(self.text.len()) else {
            return Err("JSON token size limit exceeded".into());
        };
        self.tokens.push(Token { kind, end });
        self.token_start = self.text.len();
        let open = self.braces > 0 || self.brackets > 0;
        let possible = self.braces >= 0 && self.brackets >= 0;
        Ok(!(open && possible))
    }

    fn fail(&mut self, error: String, next: Lexer) -> Step<'_> {
        self.reset();
        self.lexer = next;
        Step::Malformed(error)
    }

    /// Forgets the value at hand, not the lexer's place.
    fn reset(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT);
        self.tokens.clear();
        self.tokens.shrink_to(KEPT_TEXT / size_of::<Token>());
        self.token_start = 0;
        self.braces = 0;
        self.brackets = 0;
        self.spent = false;
    }
}

/// What `byte` does to a lexer that stands at `lexer`.
fn next(lexer: Lexer, byte: u8) -> Move {
    use Lexer::{
        Digits, Escape, Exponent, ExponentDigits, ExponentSign, Fraction, Keyword, Minus, Point,
        Recovery, Start, Text, Zero,
    };
    match (lexer, byte) {
        (Start, _) => start(byte),
        (Recovery, 0..=8 | 10..=31 | 0xFE.. | b'{' | b'}' | b'[' | b']' | b':' | b',') => {
            Move::Recovered
        }
        (Recovery, _) => Move::Skip,
        (Text(quote), _) if byte == quote => Move::Finish(Kind::String),
        (Text(quote), b'\\') => Move::Take(Escape(quote)),
        (Text(quote) | Escape(quote), 0x20..=0xFD) => Move::Take(Text(quote)),
        (Text(_) | Escape(_), _) => Move::Stray,
        (Keyword, b'a'..=b'z') => Move::Take(Keyword),
        (Keyword, _) => Move::FinishBefore(Kind::Keyword),
        (Minus, b'0') => Move::Take(Zero),
        (Minus, b'1'..=b'9') => Move::Take(Digits),
        (Zero, b'0'..=b'9') => Move::Stray,
        (Digits, b'0'..=b'9') => Move::Take(Digits),
        (Zero | Digits, b'.') => Move::Take(Point),
        (Zero | Digits | Fraction, b'e' | b'E') => Move::Take(Exponent),
        (Zero | Digits, _) => Move::FinishBefore(Kind::Integer),
        (Point | Fraction, b'0'..=b'9') => Move::Take(Fraction),
        (Exponent, b'+' | b'-') => Move::Take(ExponentSign),
        (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => Move::Take(ExponentDigits),
        (Fraction | ExponentDigits, _) => Move::FinishBefore(Kind::Float),
        (Minus | Point | Exponent | ExponentSign, _) => Move::Stray,
    }
}

/// What `byte` does between tokens.
fn start(byte: u8) -> Move {
    match byte {
        b' ' | b'\t' | b'\r' | b'\n' => Move::Skip,
        b'{' => Move::Finish(Kind::OpenBrace),
        b'}' => Move::Finish(Kind::CloseBrace),
        b'[' => Move::Finish(Kind::OpenBracket),
        b']' => Move::Finish(Kind::CloseBracket),
        b':' => Move::Finish(Kind::Colon),
        b',' => Move::Finish(Kind::Comma),
        b'"' | b'\'' => Move::Take(Lexer::Text(byte)),
        b'-' => Move::Take(Lexer::Minus),
        b'0' => Move::Take(Lexer::Zero),
        b'1'..=b'9' => Move::Take(Lexer::Digits),
        b'a'..=b'z' => Move::Take(Lexer::Keyword),
        _ => Move::Stray,
    }
}

/// The offending token as an error shows it: its end, where the offence is, when it is long.
fn stray_text(token: &[u8]) -> String {
    let cut = token.len().saturating_sub(STRAY_LIMIT);
    let tail = String::from_utf8_lossy(token.get(cut..).unwrap_or_default());
    if cut == 0 {
        tail.into_owned()
    } else {
        format!("...{tail}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every frame's tokens joined by spaces, every error as its text.
    fn steps(chunks: &[&[u8]]) -> Vec<String> {
        let mut framer = Framer::new();
        let mut seen = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            loop {
                match framer.advance(&mut input) {
                    Step::Frame(frame) => {
                        let tokens: Vec<_> = frame
                            .tokens()
                            .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
                            .collect();
                        seen.push(tokens.join(" "));
                    }
                    Step::Malformed(error) => seen.push(error),
                    Step::Incomplete => break,
                }
            }
        }
        seen
    }

    #[test]
    fn values_need_no_newline_between_them() {
        assert_eq!(
            steps(&[b"{'a':1}{\"b\" : [true]}[] "]),
            ["{ 'a' : 1 }", "{ \"b\" : [ true ] }", "[ ]"]
        );
    }

    #[test]
    fn a_bare_word_or_number_ends_at_the_next_separator_only() {
        assert!(steps(&[b"null"]).is_empty());
        assert_eq!(steps(&[b"nul", b"l\n12", b"e+3 "]), ["null", "12e+3"]);
    }

    #[test]
    fn a_closing_bracket_too_many_ends_the_value() {
        assert_eq!(steps(&[b"{]{'a':1}"]), ["{ ]", "{ 'a' : 1 }"]);
    }

    #[test]
    fn a_lexical_error_is_told_at_once_and_input_recovers() {
        assert_eq!(
            steps(&[b"{\xFF{'a':1}", b"{'bad \xFF{}", b"%p{}", b"{\x01{}"]),
            [
                "JSON parse error, stray '\u{FFFD}'",
                "{ 'a' : 1 }",
                "JSON parse error, stray ''bad \u{FFFD}'",
                "{ }",
                "JSON parse error, stray '%'",
                "{ }",
                "JSON parse error, stray '\u{1}'",
                "{ }",
            ]
        );
    }

    #[test]
    fn a_newline_in_a_string_is_an_error_that_ends_there() {
        assert_eq!(
            steps(&[b"{'execute': 'x', 'id':'\n", b"{}"]),
            ["JSON parse error, stray ''\n'", "{ }"]
        );
    }

    #[test]
    fn the_reset_byte_always_leaves_a_clean_state() {
        for start in ["", "{", "'x", "12", "[[[", "tru", "{'a':", "-"] {
            let mut bytes = start.as_bytes().to_vec();
            bytes.push(0xFF);
            let told = steps(&[&bytes, b"{}"]);
            assert_eq!(told.last().map(String::as_str), Some("{ }"), "{start}");
            assert!(told.iter().any(|text| text.contains('\u{FFFD}')), "{start}");
        }
    }

    #[test]
    fn nesting_is_allowed_to_1024_and_no_further() {
        let mut deep = vec![b'['; NESTING_LIMIT];
        deep.extend(vec![b']'; NESTING_LIMIT]);
        assert_eq!(steps(&[&deep]).len(), 1);
        assert_eq!(
            steps(&[&vec![b'['; NESTING_LIMIT + 1]]),
            ["JSON nesting depth limit exceeded"]
        );
    }

    #[test]
    fn token_count_and_text_are_limited() {
        let list = vec![b"1,".as_slice(); TOKEN_LIMIT / 2 + 1].concat();
        assert_eq!(
            steps(&[b"[", &list]).first().map(String::as_str),
            Some("JSON token count limit exceeded")
        );
        let long = vec![b'a'; TEXT_LIMIT + 10];
        assert_eq!(
            steps(&[b"{'", &long, b"'}{}"]).first().map(String::as_str),
            Some("JSON token size limit exceeded")
        );
    }

    #[test]
    fn a_long_stray_token_is_told_by_its_end() {
        let mut bytes = vec![b'"'];
        bytes.extend(vec![b'a'; 10_000]);
        bytes.push(b'\n');
        assert!(steps(&[&bytes])[0].len() < 400);
    }

    fn anything() -> impl Strategy<Value = Vec<u8>> {
        let json =
            proptest::sample::select(&b"{}[]:,'\"\\ \n\t0123456789.eE+-truefalsn\x01\xFF"[..]);
        proptest::collection::vec(prop_oneof![9 => json, 1 => any::<u8>()], 0..200)
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(bytes in anything(), cuts in proptest::collection::vec(0usize..200, 0..8)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(steps(&chunks), steps(&[&bytes]));
        }

        #[test]
        fn random_bytes_keep_the_framer_within_their_size(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut framer = Framer::new();
            let mut input = bytes.as_slice();
            while !matches!(framer.advance(&mut input), Step::Incomplete) {}
            prop_assert!(framer.text.len() <= bytes.len() && framer.tokens.len() <= bytes.len());
        }
    }
}
