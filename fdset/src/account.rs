//! Who a user is: the C library reads it from wherever this host keeps its accounts.

use std::ffi::CString;
use std::io;

use nix::unistd::{User, getgrouplist};

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's own group.
    pub gid: u32,
    /// All groups that the user is in.
    pub groups: Vec<u32>,
}

/// The account with that name, if there is one. The databases are opened by their paths: to be
/// called before a policy forbids that.
///
/// # Errors
/// The databases cannot be read.
pub fn account(name: &str) -> io::Result<Option<Account>> {
    let Some(user) = User::from_name(name)? else {
        return Ok(None);
    };
    let groups = getgrouplist(&CString::new(name)?, user.gid)?;
    Ok(Some(Account {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(|group| group.as_raw()).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_user_0_and_an_unknown_name_is_nobody() {
        let root = account("root").expect("readable").expect("there is root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(account("no such user").expect("readable"), None);
    }
}
