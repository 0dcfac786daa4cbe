//! The language: words into what a tester wishes. Pure.
//!
//! ```text
//!   write -z -u 0 64k      read -P0x11 -s 512 -l 1k 0 4k      aio_read 0 512      aio_flush
//! ```

use std::time::Duration;

use super::breaks::{Break, Verb};

/// The most one transfer moves, in bytes: what QEMU's block layer takes at once.
const LONGEST: u64 = 0x7fff_fe00;
/// The longest sleep: the machine's commands wait meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// What is written where no pattern is given.
const PLAIN: u8 = 0xcd;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Say(String),
    Sleep(Duration),
    /// Until nothing goes on any more.
    Wait,
    Truncate(u64),
    Break(Break),
    Transfer(Transfer),
}

/// A request to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The command ends before it does.
    pub(super) goes_on: bool,
    pub(super) quiet: bool,
    pub(super) terse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read { expect: Option<Pattern>, dump: bool },
    Write { pattern: u8, durable: bool },
    Zero { unmap: bool, durable: bool },
    Discard,
    Flush,
    Length,
    Map,
    Allocated,
}

/// Bytes that a read must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) byte: u8,
    /// Where in what was read, and how many.
    pub(super) start: u64,
    pub(super) len: Option<u64>,
}

/// A command's name, the options it knows (`:` behind those with a word of their own), how many
/// words it wants, and what it does.
type Row = (&'static str, &'static str, usize, &'static str);

const COMMANDS: &[Row] = &[
    ("aio_flush", "", 0, "waits for all requests under way"),
    ("aio_read", "CiqvP:", 2, "reads while other commands run"),
    (
        "aio_write",
        "CfiquzP:",
        2,
        "writes while other commands run",
    ),
    ("alloc", "", 1, "tells how much of a range is stored"),
    (
        "break",
        "",
        2,
        "stops requests at an event of a debugging node",
    ),
    ("discard", "Cq", 2, "tells that bytes are of no more use"),
    ("flush", "", 0, "makes what was written durable"),
    ("help", "", 0, "shows the commands"),
    ("length", "", 0, "tells the length"),
    ("map", "", 0, "tells which ranges are stored"),
    ("read", "CpqvP:s:l:", 2, "reads bytes"),
    ("readv", "CqvP:", 2, "reads bytes into several buffers"),
    ("remove_break", "", 1, "forgets a place to stop"),
    ("resume", "", 1, "lets a stopped request go on"),
    ("sleep", "", 1, "waits for so many milliseconds"),
    ("truncate", "", 1, "changes the length"),
    ("wait_break", "", 1, "waits until a request is stopped"),
    ("write", "CfnpquzP:", 2, "writes bytes"),
    ("writev", "CfqP:", 2, "writes bytes out of several buffers"),
];

/// The text of an argument in double quotes, with what backslashes stand for.
pub(super) fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"') else {
        return text.to_owned();
    };
    let mut plain = String::new();
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => match letters.next() {
                Some('n') => plain.push('\n'),
                Some('r') => plain.push('\r'),
                Some(other) => plain.push(other),
                None => {}
            },
            other => plain.push(other),
        }
    }
    plain
}

/// What a line asks for, or why it cannot be.
pub(super) fn parse(line: &str) -> Result<Wish, String> {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else {
        return Ok(Wish::Nothing);
    };
    let row = COMMANDS.iter().find(|(known, ..)| *known == name);
    let Some((_, known, wanted, _)) = row else {
        return Err(format!("command \"{name}\" not found"));
    };
    let options = Options::take(words, known)?;
    let given = options.rest.len();
    if given < *wanted {
        return Err(format!(
            "bad argument count {given} to {name}, expected at least {wanted} arguments"
        ));
    }
    wish(name, &options)
}

fn wish(name: &str, options: &Options<'_>) -> Result<Wish, String> {
    let kind = match name {
        "read" | "readv" | "aio_read" => Kind::Read {
            expect: options.pattern()?,
            dump: options.has('v'),
        },
        "write" | "writev" | "aio_write" => options.write()?,
        "discard" => Kind::Discard,
        "flush" => Kind::Flush,
        "length" => Kind::Length,
        "map" => Kind::Map,
        "alloc" => Kind::Allocated,
        _ => return other(name, options),
    };
    let offset = options.rest.first().map_or(Ok(0), |word| number(word))?;
    let lengths = options.rest.iter().skip(1).map(|word| number(word));
    let lengths: Vec<u64> = lengths.collect::<Result<_, _>>()?;
    let len = lengths
        .iter()
        .fold(0_u64, |sum, len| sum.saturating_add(*len));
    let moves = matches!(kind, Kind::Read { .. } | Kind::Write { .. });
    if moves && len > LONGEST {
        return Err(format!("length cannot exceed {LONGEST}, given {len}"));
    }
    Ok(Wish::Transfer(Transfer {
        // Without a length `alloc` looks at one sector.
        len: if kind == Kind::Allocated && lengths.is_empty() {
            512
        } else {
            len
        },
        kind,
        offset,
        goes_on: name.starts_with("aio_"),
        quiet: options.has('q'),
        terse: options.has('C'),
    }))
}

fn other(name: &str, options: &Options<'_>) -> Result<Wish, String> {
    let word = |at: usize| options.rest.get(at).copied().unwrap_or_default();
    let (first, second) = (word(0), word(1));
    let tagged = |verb| {
        let tag = first.to_owned();
        Wish::Break(Break { verb, tag })
    };
    match name {
        "aio_flush" => Ok(Wish::Wait),
        "truncate" => number(first).map(Wish::Truncate),
        "sleep" => {
            let time = first.parse().map(Duration::from_millis).ok();
            let fits = time.filter(|time| *time <= LONGEST_SLEEP);
            fits.map(Wish::Sleep)
                .ok_or_else(|| format!("{first} is not from 0 to 10000 milliseconds"))
        }
        "break" => Ok(Wish::Break(Break {
            verb: Verb::Set(first.to_owned()),
            tag: second.to_owned(),
        })),
        "remove_break" => Ok(tagged(Verb::Remove)),
        "resume" => Ok(tagged(Verb::Resume)),
        "wait_break" => Ok(tagged(Verb::Wait)),
        _ => {
            let line = |(name, _, _, about): &Row| format!("{name} -- {about}\n");
            Ok(Wish::Say(COMMANDS.iter().map(line).collect()))
        }
    }
}

#[derive(Default)]
struct Options<'a> {
    switches: Vec<char>,
    values: Vec<(char, &'a str)>,
    rest: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Takes the options out of words, as getopt does: several in one word, a value in the same
    /// word or the next.
    fn take(words: impl Iterator<Item = &'a str>, known: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let Some(mut letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                options.rest.push(word);
                continue;
            };
            while let Some(letter) = letters.chars().next() {
                letters = &letters[letter.len_utf8()..];
                let at = known.find(letter).filter(|_| letter != ':');
                let at = at.ok_or_else(|| format!("invalid option -- '{letter}'"))?;
                if known.as_bytes().get(at + 1) != Some(&b':') {
                    options.switches.push(letter);
                    continue;
                }
                let own = std::mem::take(&mut letters);
                let value = if own.is_empty() {
                    words.next()
                } else {
                    Some(own)
                };
                let value =
                    value.ok_or_else(|| format!("option requires an argument -- '{letter}'"))?;
                options.values.push((letter, value));
            }
        }
        Ok(options)
    }

    fn has(&self, switch: char) -> bool {
        self.switches.contains(&switch)
    }

    fn value(&self, name: char) -> Option<&'a str> {
        let mut last = self.values.iter().rev();
        last.find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    fn byte(&self) -> Result<Option<u8>, String> {
        let Some(text) = self.value('P') else {
            return Ok(None);
        };
        let number = integer(text).and_then(|number| u8::try_from(number).ok());
        let byte = number.ok_or_else(|| format!("{text} is not a valid pattern byte"))?;
        Ok(Some(byte))
    }

    fn pattern(&self) -> Result<Option<Pattern>, String> {
        let start = self.value('s').map(number).transpose()?;
        let len = self.value('l').map(number).transpose()?;
        match self.byte()? {
            Some(byte) => Ok(Some(Pattern {
                byte,
                start: start.unwrap_or(0),
                len,
            })),
            None if start.is_some() || len.is_some() => {
                Err("-s and -l require -P to be specified".to_owned())
            }
            None => Ok(None),
        }
    }

    fn write(&self) -> Result<Kind, String> {
        let (pattern, durable) = (self.byte()?, self.has('f'));
        if self.has('z') {
            if pattern.is_some() {
                return Err("-z and -P cannot be specified at the same time".to_owned());
            }
            let unmap = self.has('u');
            return Ok(Kind::Zero { unmap, durable });
        }
        for switch in ['n', 'u'] {
            if self.has(switch) {
                return Err(format!("-{switch} requires -z to be specified"));
            }
        }
        let pattern = pattern.unwrap_or(PLAIN);
        Ok(Kind::Write { pattern, durable })
    }
}

fn integer(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A number of bytes: plain, in hexadecimal, or with the letter of a unit.
fn number(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
    };
    if let Some(bytes) = integer(text) {
        return Ok(bytes);
    }
    let last = text.chars().next_back().ok_or_else(wrong)?;
    let unit = "bkmgtpe"
        .find(last.to_ascii_lowercase())
        .ok_or_else(wrong)?;
    let count = text.strip_suffix(last).unwrap_or_default();
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let shift = u32::try_from(unit * 10).map_err(|_| wrong())?;
    1_u64
        .checked_shl(shift)
        .and_then(|unit| unit.checked_mul(count))
        .ok_or_else(|| format!("Parsing error: argument too large -- {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(line: &str) -> Transfer {
        match parse(line) {
            Ok(Wish::Transfer(transfer)) => transfer,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn patterns_stand_in_their_options_word_or_in_the_next() {
        for line in [
            "write -P 0x33 63k 2k",
            "write -P0x33 0xfc00 2048",
            "write 63k 2k -P51",
        ] {
            let wish = transfer(line);
            let kind = Kind::Write {
                pattern: 0x33,
                durable: false,
            };
            assert_eq!(
                (wish.kind, wish.offset, wish.len),
                (kind, 63 << 10, 2048),
                "{line}"
            );
        }
        let expect = Some(Pattern {
            byte: 5,
            start: 512,
            len: Some(1024),
        });
        let wish = transfer("read -vq -P 5 -s 512 -l 1k 0 1M");
        assert_eq!(wish.kind, Kind::Read { expect, dump: true });
        assert!(wish.quiet && !wish.goes_on);
    }

    #[test]
    fn zeros_unmap_and_are_durable_where_that_is_said() {
        let wish = transfer("aio_write -zuf 1M 64k");
        let kind = Kind::Zero {
            unmap: true,
            durable: true,
        };
        assert_eq!((wish.kind, wish.goes_on), (kind, true));
        assert!(parse("write -zP 1 0 512").is_err());
        assert!(parse("write -u 0 512").is_err());
    }

    #[test]
    fn breakpoints_have_names() {
        let wish = |line| parse(line).expect("a wish");
        let of = |verb| {
            let tag = "A".to_owned();
            Wish::Break(Break { verb, tag })
        };
        assert_eq!(
            wish("break write_aio A"),
            of(Verb::Set("write_aio".to_owned()))
        );
        assert_eq!(wish("remove_break A"), of(Verb::Remove));
        assert_eq!(wish("resume A"), of(Verb::Resume));
        assert_eq!(wish("wait_break A"), of(Verb::Wait));
    }

    #[test]
    fn several_lengths_are_one_transfer() {
        assert_eq!(transfer("readv 0 512 1k").len, 1536);
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_that_tests_compare() {
        for (line, text) in [
            ("sing 1", "command \"sing\" not found"),
            (
                "read 0",
                "bad argument count 1 to read, expected at least 2 arguments",
            ),
            ("write -P 300 0 512", "300 is not a valid pattern byte"),
            ("write -n 0 512", "-n requires -z to be specified"),
            ("read -y 0 512", "invalid option -- 'y'"),
            ("read -P", "option requires an argument -- 'P'"),
            (
                "break write_aio",
                "bad argument count 1 to break, expected at least 2 arguments",
            ),
            (
                "read 0 8E",
                "length cannot exceed 2147483136, given 9223372036854775808",
            ),
            ("read 0 99E", "Parsing error: argument too large -- 99E"),
        ] {
            assert_eq!(parse(line), Err(text.to_owned()), "{line}");
        }
        let error = parse("read x 512").expect_err("no number");
        assert!(
            error.starts_with("Parsing error: non-numeric argument"),
            "{error}"
        );
        assert!(parse("sleep 10001").is_err());
    }

    #[test]
    fn quotes_are_taken_off_and_backslashes_resolved() {
        assert_eq!(unquote("\"write 0 \\\"4k\\\"\" rest"), "write 0 \"4k\"");
        assert_eq!(unquote("flush"), "flush");
        assert_eq!(unquote("\"flush\\"), "flush");
        assert_eq!(parse("  "), Ok(Wish::Nothing));
    }

    #[test]
    fn commands_are_sorted_and_stand_in_the_help() {
        assert!(COMMANDS.is_sorted_by_key(|(name, ..)| *name));
        let Ok(Wish::Say(help)) = parse("help") else {
            panic!("no help");
        };
        assert_eq!(help.lines().count(), COMMANDS.len());
    }
}
