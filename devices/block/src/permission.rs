//! What a user of a node does with it, and what it lets others do: pure bookkeeping.
//!
//! ```text
//!   device ── uses: read, write      shares: read, write-unchanged ──┐
//!   job    ── uses: read             shares: everything ─────────────┼──► node
//!   parent ── uses what its own users use, and shares what they share ┘
//! ```
//!
//! Two users fit if each uses only what the other shares.

use std::fmt;

bitflags::bitflags! {
    /// A set of things one can do with a node.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// Read what was written before, and rely on it.
        const CONSISTENT_READ = 1;
        /// Change what others read.
        const WRITE = 2;
        /// Write without changing what others read (a stream job, a cache).
        const WRITE_UNCHANGED = 4;
        /// Change the length.
        const RESIZE = 8;
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::CONSISTENT_READ, "consistent read"),
            (Self::WRITE, "write"),
            (Self::WRITE_UNCHANGED, "write unchanged"),
            (Self::RESIZE, "resize"),
        ];
        let mut first = true;
        for (_, name) in names.into_iter().filter(|(bit, _)| self.contains(*bit)) {
            if !first {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
            first = false;
        }
        Ok(())
    }
}

/// What one user does with a node and lets others do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What it does.
    pub uses: Permissions,
    /// What others may do.
    pub shares: Permissions,
}

impl Usage {
    /// A user that does nothing and minds nothing: a parent without users of its own.
    pub const NONE: Self = Self {
        uses: Permissions::empty(),
        shares: Permissions::all(),
    };

    /// A disk of the guest. With `share_rw` several may write at once, and the guests coordinate.
    pub fn disk(read_only: bool, share_rw: bool) -> Self {
        let mut uses = Permissions::CONSISTENT_READ;
        uses.set(Permissions::WRITE, !read_only);
        let mut shares =
            Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED | Permissions::RESIZE;
        shares.set(Permissions::WRITE, share_rw);
        Self { uses, shares }
    }

    /// Both users together: what either does, and what both let others do.
    pub fn and(self, other: Self) -> Self {
        Self {
            uses: self.uses | other.uses,
            shares: self.shares & other.shares,
        }
    }

    /// What the other does and this one does not allow.
    pub fn refuses(self, other: Self) -> Permissions {
        other.uses - self.shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writing_disks_conflict_unless_both_share() {
        let alone = Usage::disk(false, false);
        let shared = Usage::disk(false, true);
        let reader = Usage::disk(true, false);
        assert_eq!(alone.refuses(alone), Permissions::WRITE);
        assert_eq!(alone.refuses(shared), Permissions::WRITE);
        assert_eq!(shared.refuses(shared), Permissions::empty());
        assert_eq!(shared.refuses(alone), Permissions::empty());
        assert_eq!(reader.refuses(reader), Permissions::empty());
        assert_eq!(reader.refuses(alone), Permissions::WRITE);
        assert_eq!(alone.refuses(Usage::NONE), Permissions::empty());
    }
}
