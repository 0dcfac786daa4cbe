//! Path aliases: a passed fd answers for a path.
//!
//! ```text
//!   add-fd-alias path=/images/base.qcow2 fdset-id=3
//!   open("/images/base.qcow2")   ══ open("/dev/fdset/3")
//! ```
//!
//! So a name that stands in an image's header or in a recorded configuration leads to what was
//! handed in for it, and the file system is never asked. Paths are compared by their text, after
//! empty and `.` components are dropped: `/images//./base` is `/images/base`. What `..` means
//! depends on symbolic links, so a path with such a component is no alias and matches none.
//!
//! An alias keeps nothing alive and goes with its set: a later set of the same number would be
//! something else. Whatever was opened through it stays open when it is removed.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::error::RegistryError;
use crate::open::{NAMED_PREFIX, SET_PREFIX};
use crate::sets::FdsetId;

/// How many there can be: more than any chain of images, and little to hold.
const MAX_ALIASES: usize = 4096;

/// The longest path, in bytes (`PATH_MAX` of Linux, without the end).
const MAX_PATH: usize = 4095;

/// All path aliases of the process.
#[derive(Debug, Default)]
pub(crate) struct Aliases(BTreeMap<String, FdsetId>);

impl Aliases {
    /// Lets `set` answer for `path`. To say the same twice is no mistake.
    pub(crate) fn add(&mut self, path: &str, set: FdsetId) -> Result<(), RegistryError> {
        let refused = |problem| RegistryError::BadAlias {
            path: path.chars().take(MAX_PATH).collect(),
            problem,
        };
        if path.starts_with(NAMED_PREFIX) || path.starts_with(SET_PREFIX) {
            return Err(refused("it leads to a passed fd already"));
        }
        if path.len() > MAX_PATH || path.contains('\0') {
            return Err(refused(
                "no path is longer than 4095 bytes or has a zero byte",
            ));
        }
        let key = normal(path).ok_or_else(|| refused("it is empty or has a component '..'"))?;
        match self.0.get(&key) {
            Some(other) if *other == set => Ok(()),
            Some(other) => Err(RegistryError::AliasTaken {
                path: key,
                set: *other,
            }),
            None if self.0.len() >= MAX_ALIASES => Err(refused("there are 4096 aliases already")),
            None => {
                self.0.insert(key, set);
                Ok(())
            }
        }
    }

    /// Takes an alias back.
    pub(crate) fn remove(&mut self, path: &str) -> Result<(), RegistryError> {
        normal(path)
            .and_then(|key| self.0.remove(&key))
            .map(drop)
            .ok_or_else(|| RegistryError::NoSuchAlias(path.to_owned()))
    }

    /// Takes back all aliases of a set that has gone.
    pub(crate) fn forget(&mut self, gone: FdsetId) {
        self.0.retain(|_, set| *set != gone);
    }

    /// The set that answers for `path`.
    pub(crate) fn find(&self, path: &str) -> Option<FdsetId> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&normal(path)?).copied()
    }

    /// All aliases, by path.
    pub(crate) fn list(&self) -> Vec<(String, FdsetId)> {
        let each = self.0.iter();
        each.map(|(path, set)| (path.clone(), *set)).collect()
    }
}

/// `path` without empty and `.` components; `None` if nothing is left or it has a `..`.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    if parts.is_empty() {
        return None;
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    Some(format!("{root}{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: i64) -> FdsetId {
        FdsetId::new(id).expect("not negative")
    }

    #[test]
    fn one_path_has_many_spellings_but_none_with_a_parent() {
        let mut aliases = Aliases::default();
        aliases.add("/images//base.qcow2", set(3)).expect("a path");
        for spelling in [
            "/images/base.qcow2",
            "//images/./base.qcow2",
            "/images/base.qcow2/",
        ] {
            assert_eq!(aliases.find(spelling), Some(set(3)), "{spelling}");
        }
        for other in [
            "images/base.qcow2",
            "/images/x/../base.qcow2",
            "/images",
            "/",
            "",
        ] {
            assert_eq!(aliases.find(other), None, "{other}");
        }
        aliases.add("./base", set(4)).expect("a path");
        assert_eq!(aliases.find("base"), Some(set(4)));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = "x".repeat(MAX_PATH + 1);
        for path in [
            "",
            "/",
            ".",
            "/a/../b",
            "fd:disk",
            "/dev/fdset/3",
            "a\0b",
            &long,
        ] {
            let error = Aliases::default().add(path, set(0)).expect_err("no path");
            assert!(matches!(error, RegistryError::BadAlias { .. }), "{error}");
        }
    }

    #[test]
    fn a_path_is_the_alias_of_one_set_only() {
        let mut aliases = Aliases::default();
        aliases.add("/a", set(3)).expect("free");
        aliases.add("/a", set(3)).expect("the same");
        assert_eq!(
            aliases.add("//a", set(4)).expect_err("taken").to_string(),
            "Path '/a' is an alias of fd set 3 already; take that back with remove-fd-alias first"
        );
        aliases.remove("/a/.").expect("it is there");
        assert_eq!(
            aliases.remove("/a").expect_err("gone").to_string(),
            "Path '/a' is no alias; query-fd-aliases lists them"
        );
    }

    #[test]
    fn there_is_an_end_to_aliases() {
        let mut aliases = Aliases::default();
        for number in 0..MAX_ALIASES {
            aliases.add(&format!("/{number}"), set(0)).expect("room");
        }
        assert!(aliases.add("/more", set(0)).is_err());
        aliases.add("/1", set(0)).expect("it is there already");
    }
}
