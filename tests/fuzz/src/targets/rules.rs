//! The file that says what a monitor's clients may send (`-mon commands=`).
//!
//! What must hold: an error names a line that is there; the order of the lines means nothing; what is
//! denied stays denied; `read-only` never allows more; a pattern fits what the slow and plain way to
//! compare says.

use monitor::CommandPolicy;
use qapi_schema::COMMANDS;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    let policy = match CommandPolicy::from_rules("rules", text) {
        Ok(policy) => policy,
        Err(error) => {
            let told = error.to_string();
            let line = told
                .strip_prefix("line ")
                .and_then(|rest| rest.split_once(':'));
            let number: usize = line.expect("a line").0.parse().expect("its number");
            assert!((1..=lines.len()).contains(&number), "{told}");
            return;
        }
    };
    let backwards: Vec<&str> = lines.iter().rev().copied().collect();
    let backwards = CommandPolicy::from_rules("rules", &backwards.join("\n")).expect("the same");
    let without_quit = format!("{text}\ndeny quit");
    let without_quit = CommandPolicy::from_rules("rules", &without_quit).expect("one line more");
    let read_only = policy.clone().read_only();
    for command in COMMANDS {
        let allowed = policy.allows(command);
        assert_eq!(allowed, backwards.allows(command), "{}", command.name);
        assert_eq!(
            allowed,
            expected(&lines, command.name, command.is_read_only())
        );
        assert_eq!(
            without_quit.allows(command),
            allowed && command.name != "quit"
        );
        assert_eq!(read_only.allows(command), allowed && command.is_read_only());
    }
}

/// What the rules say, read a second time.
fn expected(lines: &[&str], command: &str, is_read_only: bool) -> bool {
    let (mut some_allow, mut allowed, mut denied) = (false, false, false);
    for line in lines {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or("")
            .split_ascii_whitespace();
        let rule = words.next();
        let named = words.any(|pattern| fits(pattern.as_bytes(), command.as_bytes()));
        match rule {
            Some("read-only") => {
                some_allow = true;
                allowed |= is_read_only;
            }
            Some("allow") => {
                some_allow = true;
                allowed |= named;
            }
            Some("deny") => denied |= named,
            _ => {}
        }
    }
    !denied && (allowed || !some_allow)
}

/// Whether `name` fits `pattern`, by a table of both.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let mut row = vec![false; name.len() + 1];
    row[0] = true;
    for wanted in pattern {
        let mut next = vec![false; name.len() + 1];
        next[0] = row[0] && *wanted == b'*';
        for (at, letter) in name.iter().enumerate() {
            next[at + 1] = match wanted {
                b'*' => row[at + 1] || next[at],
                b'?' => row[at],
                wanted => row[at] && wanted == letter,
            };
        }
        row = next;
    }
    row[name.len()]
}
