//! What test runners say at their end, added up.
use std::io::{self, Write};

/// What test runners said at their end, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Count {
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A program that died without a count has failed.
pub(super) fn counted(success: bool, text: &str) -> Count {
    let mut count = count(text);
    if !success && count.failed == 0 {
        count.failed = 1;
    }
    count
}

/// Keeps what is written to it, and shows it: at once, or as a whole at its end where others
/// write, too.
pub(super) struct Tee {
    kept: Vec<u8>,
    at_once: bool,
}

impl Tee {
    pub(super) fn new(at_once: bool) -> Self {
        Self {
            kept: Vec::new(),
            at_once,
        }
    }

    /// One more line, of who runs the program.
    pub(super) fn note(&mut self, line: &str) {
        if self.at_once {
            print!("{line}");
        }
        self.kept.extend_from_slice(line.as_bytes());
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        if !self.at_once {
            // Nobody is left to tell that the output has gone.
            let _ = io::stdout().write_all(&self.kept);
        }
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept.extend_from_slice(bytes);
        if self.at_once {
            return io::stdout().write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Adds up the closing lines of libtest and nextest.
pub(super) fn count(text: &str) -> Count {
    let mut total = Count::default();
    for line in text.lines() {
        let line = strip_colour(line);
        let closing = line.trim_start();
        if !closing.starts_with("test result:") && !closing.starts_with("Summary [") {
            continue;
        }
        let mut words = closing
            .split(|c: char| c.is_whitespace() || ";,.():[]".contains(c))
            .filter(|word| !word.is_empty())
            .peekable();
        while let Some(word) = words.next() {
            let (Ok(number), Some(what)) = (word.parse::<u64>(), words.peek()) else {
                continue;
            };
            match *what {
                "passed" => total.passed += number,
                "failed" | "timed" => total.failed += number,
                "ignored" | "skipped" => total.skipped += number,
                _ => {}
            }
        }
    }
    total
}

fn strip_colour(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_both_runners_are_counted() {
        let text = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out\n\
            \x1b[32m     Summary\x1b[0m [   0.4s] 7 tests run: 6 passed (1 leaky), 1 failed, 4 skipped";
        let expected = Count {
            passed: 9,
            failed: 2,
            skipped: 6,
        };
        assert_eq!(count(text), expected);
    }

    #[test]
    fn a_test_that_talks_of_numbers_is_not_counted() {
        assert_eq!(count("hello 5 passed"), Count::default());
    }

    #[test]
    fn a_program_that_dies_without_a_count_has_failed() {
        assert_eq!(counted(false, "").failed, 1);
    }
}
