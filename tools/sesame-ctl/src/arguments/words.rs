//! Splitting a line into words, as a shell does, except that JSON needs no quotes.
//!
//! A word that begins with `{`, or goes on with `{`, `[` or `"` behind `:=`, reaches to the end of
//! that JSON value.

/// A word of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// Its text, without quotes.
    pub(crate) text: String,
    /// Where it begins in the line, in bytes.
    pub(crate) start: usize,
}

/// A line in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// Words that a space ends.
    pub(crate) done: Vec<Word>,
    /// The word at the end, which may be going on.
    pub(crate) last: Option<Word>,
    /// What is still open: a quote, or JSON.
    pub(crate) open: Option<&'static str>,
}

/// All words of a whole line.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let line = parse(line);
    match line.open {
        Some(what) => Err(format!("the line ends inside {what}")),
        None => {
            let words = line.done.into_iter().chain(line.last);
            Ok(words.map(|word| word.text).collect())
        }
    }
}

/// A line that may be going on, as when the cursor is at its end.
pub(crate) fn parse(line: &str) -> Line {
    let mut parsed = Line::default();
    let mut rest = line.char_indices().peekable();
    let mut word: Option<Word> = None;
    while let Some((at, letter)) = rest.next() {
        if letter.is_whitespace() {
            parsed.done.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_with(|| Word {
            text: String::new(),
            start: at,
        });
        let json = match letter {
            '{' => at == word.start || word.text.ends_with(":="),
            '[' | '"' => word.text.ends_with(":="),
            _ => false,
        };
        if json {
            let length = json_length(&line[at..]);
            if length.is_none() {
                parsed.open = Some("JSON");
            }
            let end = at + length.unwrap_or(line.len() - at);
            word.text.push_str(&line[at..end]);
            while rest.next_if(|(next, _)| *next < end).is_some() {}
            continue;
        }
        match letter {
            '\'' => parsed.open = quoted(&mut rest, '\'', &mut word.text),
            '"' => parsed.open = quoted(&mut rest, '"', &mut word.text),
            '\\' => word.text.extend(rest.next().map(|(_, next)| next)),
            plain => word.text.push(plain),
        }
    }
    parsed.last = word;
    parsed
}

/// The rest of a quoted text; says what is open if it does not end.
fn quoted(
    rest: &mut impl Iterator<Item = (usize, char)>,
    quote: char,
    text: &mut String,
) -> Option<&'static str> {
    while let Some((_, letter)) = rest.next() {
        match letter {
            '\\' if quote == '"' => text.extend(rest.next().map(|(_, next)| next)),
            end if end == quote => return None,
            plain => text.push(plain),
        }
    }
    Some("a quote")
}

/// How long the JSON value at the beginning is; none if it does not end.
fn json_length(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match (in_string, letter) {
            (true, '\\') => {
                letters.next();
            }
            (_, '"') => in_string = !in_string,
            (false, '{' | '[') => depth += 1,
            (false, '}' | ']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && !in_string {
            return Some(at + letter.len_utf8());
        }
    }
    None
}

/// A word as it must be written in a line.
pub(crate) fn quote(word: &str) -> String {
    let plain = !word.starts_with('#') && split(word).is_ok_and(|words| words == [word]);
    if plain {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Words as one line.
pub(crate) fn join(words: &[String]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_and_json_hold_words_together() {
        let words = split(r#" a 'b c'\ d  "e \"f" {"g": [" }"]} h:=[1, 2] i:="j k" l{m "#);
        let wanted = [
            "a",
            "b c d",
            "e \"f",
            "{\"g\": [\" }\"]}",
            "h:=[1, 2]",
            "i:=\"j k\"",
            "l{m",
        ];
        assert_eq!(words.expect("whole"), wanted);
    }

    #[test]
    fn a_line_that_goes_on_says_what_is_open() {
        assert_eq!(parse("a 'b").open, Some("a quote"));
        assert_eq!(parse("a {\"b\": 1").open, Some("JSON"));
        let line = parse("a  b=c");
        assert_eq!(line.done.len(), 1);
        let last = Word {
            text: "b=c".to_owned(),
            start: 3,
        };
        assert_eq!(line.last, Some(last));
        assert_eq!(parse("a ").last, None);
    }

    proptest! {
        #[test]
        fn quoted_words_are_read_back(words in prop::collection::vec("[^\n]{0,12}", 0..5)) {
            prop_assert_eq!(split(&join(&words)), Ok(words));
        }

        #[test]
        fn any_line_is_read_without_a_panic(line in "\\PC{0,40}") {
            let _ = split(&line);
        }
    }
}
