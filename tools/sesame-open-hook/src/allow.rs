//! The allow list: who may have what, by role, right and path.
//!
//! ```text
//!   # what            right  where
//!   image             rw     /srv/vm/*.raw
//!   kernel,initrd     ro     /boot/**
//!   chardev-log       rwc    /var/log/vm/*.log
//!   kvm               rw     /dev/kvm
//! ```
//!
//! A request needs one line that fits wholly. Nothing is allowed by default. The path that is
//! held against a pattern is the real one, without symbolic links.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use qapi_schema::open_hook::OpenRole;

/// How far a line lets somebody go. Each right has those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// `ro`: read what is there.
    Read,
    /// `rw`: write what is there, too, or connect to a socket.
    Write,
    /// `rwc`: make what is not there, too, or listen at a socket.
    Create,
}

/// One line.
#[derive(Debug)]
struct Rule {
    /// Empty: any role.
    roles: Vec<OpenRole>,
    right: Right,
    pattern: String,
}

/// All lines.
#[derive(Debug)]
pub(crate) struct AllowList(Vec<Rule>);

impl AllowList {
    /// Reads the list.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "this program is here to open")]
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the allow list {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the allow list {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).enumerate();
        let rules = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let rules: Result<Vec<Rule>> = rules
            .map(|(at, line)| rule(line).with_context(|| format!("line {}", at + 1)))
            .collect();
        Ok(Self(rules?))
    }

    /// Whether someone may go that far with the real path `path`.
    pub(crate) fn permits(&self, role: OpenRole, right: Right, path: &str) -> bool {
        self.0.iter().any(|rule| {
            (rule.roles.is_empty() || rule.roles.contains(&role))
                && rule.right >= right
                && matches(rule.pattern.as_bytes(), path.as_bytes())
        })
    }
}

fn rule(line: &str) -> Result<Rule> {
    // A pattern may hold spaces; the words before it may not.
    let (roles, right, pattern) = line
        .split_once(char::is_whitespace)
        .and_then(|(roles, rest)| {
            let (right, pattern) = rest.trim_start().split_once(char::is_whitespace)?;
            Some((roles, right, pattern))
        })
        .context("wanted ROLES RIGHTS PATTERN")?;
    let roles = match roles {
        "any" => Vec::new(),
        roles => roles
            .split(',')
            .map(|role| role.parse().map_err(|error| anyhow!("{error}")))
            .collect::<Result<_>>()?,
    };
    let right = match right {
        "ro" => Right::Read,
        "rw" => Right::Write,
        "rwc" => Right::Create,
        other => bail!("'{other}' is none of ro, rw, rwc"),
    };
    let pattern = pattern.trim_start().to_owned();
    if !pattern.starts_with('/') {
        bail!("'{pattern}' is no absolute path");
    }
    Ok(Rule {
        roles,
        right,
        pattern,
    })
}

/// Whether `text` fits `pattern`, in time that grows with the product of their lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // reached[i]: the text so far can fit the first i bytes of the pattern.
    let mut reached = vec![false; pattern.len() + 1];
    reached[0] = true;
    skip_stars(pattern, &mut reached);
    for byte in text {
        let mut next = vec![false; pattern.len() + 1];
        for (at, from) in pattern.iter().enumerate() {
            if !reached[at] {
                continue;
            }
            match from {
                b'*' if *byte != b'/' || is_double(pattern, at) => next[at] = true,
                b'*' => {}
                b'?' if *byte != b'/' => next[at + 1] = true,
                other if other == byte => next[at + 1] = true,
                _ => {}
            }
        }
        skip_stars(pattern, &mut next);
        reached = next;
    }
    reached[pattern.len()]
}

/// A star fits nothing, too.
fn skip_stars(pattern: &[u8], reached: &mut [bool]) {
    for (at, byte) in pattern.iter().enumerate() {
        if *byte == b'*' && reached[at] {
            reached[at + 1] = true;
        }
    }
}

/// Whether the star at `at` is one of `**`.
fn is_double(pattern: &[u8], at: usize) -> bool {
    let is_star = |at: Option<usize>| at.and_then(|at| pattern.get(at)) == Some(&b'*');
    is_star(at.checked_sub(1)) || is_star(at.checked_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn a_star_stays_within_a_folder_and_two_do_not() {
        assert!(fits("/srv/*.raw", "/srv/a.raw"));
        assert!(fits("/srv/*.raw", "/srv/.raw"));
        assert!(!fits("/srv/*.raw", "/srv/b/a.raw"));
        assert!(!fits("/srv/*.raw", "/srv/a.raw2"));
        assert!(fits("/srv/**", "/srv/a/b/c"));
        assert!(fits("/srv/**/c", "/srv/a/b/c"));
        assert!(!fits("/srv/**", "/srw/a"));
        assert!(fits("/d?", "/d1"));
        assert!(!fits("/d?", "/d/"));
        assert!(!fits("/d", "/d1"));
        assert!(!fits("/d1", "/d"));
    }

    #[test]
    fn a_pattern_made_to_take_long_does_not() {
        let pattern = format!("/{}b", "*a".repeat(200));
        assert!(!fits(&pattern, &format!("/{}", "a".repeat(4000))));
    }

    #[test]
    fn a_line_permits_its_roles_and_rights_and_no_more() {
        let list = AllowList::parse("# disks\nimage,kernel  ro  /a b/*\n\nany rwc /tmp/x\n");
        let list = list.expect("a good list");
        assert!(list.permits(OpenRole::Image, Right::Read, "/a b/c"));
        assert!(list.permits(OpenRole::Kernel, Right::Read, "/a b/c"));
        assert!(!list.permits(OpenRole::Image, Right::Write, "/a b/c"));
        assert!(!list.permits(OpenRole::Chardev, Right::Read, "/a b/c"));
        assert!(list.permits(OpenRole::Chardev, Right::Write, "/tmp/x"));
        assert!(!list.permits(OpenRole::Chardev, Right::Read, "/tmp/y"));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, wanted) in [
            ("image ro", "line 1: wanted ROLES RIGHTS PATTERN"),
            ("\nimage xx /a", "line 2: 'xx' is none of ro, rw, rwc"),
            ("image ro a", "line 1: 'a' is no absolute path"),
            ("disk ro /a", "line 1: 'disk' is none of image, backing"),
        ] {
            let error = format!("{:#}", AllowList::parse(text).expect_err("wrong"));
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
