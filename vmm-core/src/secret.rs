//! Secrets: `object-add`, `-object` with `secret`.
//!
//! libvirt hands each guest one, with which it would encrypt others. No object, device or node
//! here asks for a secret, so it is read, to tell of one that cannot be had, and forgotten.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fdset::{Access, Door, Request, Role};
use nix::errno::Errno;
use nix::sys::uio::pread;
use qapi_schema::QmpError;

use crate::base64;

/// The longest secret, in bytes.
const LONGEST: usize = 1 << 20;

/// What a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretSpec {
    /// Where it comes from.
    pub source: SecretSource,
    /// Whether it is written in base64.
    pub base64: bool,
}

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// From the client itself.
    Text(String),
    /// From a file: any name that `fdset::open` takes.
    File(String),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(name) => f.debug_tuple("File").field(name).finish(),
        }
    }
}

/// Whether the secret `id` can be had.
///
/// # Errors
/// Its file cannot be read or is longer than a secret can be, or it is not what its format says.
pub fn check(door: &Door, id: &str, spec: &SecretSpec) -> Result<(), QmpError> {
    let bytes = match &spec.source {
        SecretSource::Text(text) => text.clone().into_bytes(),
        SecretSource::File(name) => content(door, id, name)?,
    };
    if bytes.len() > LONGEST {
        return Err(QmpError::generic(format!(
            "secret '{id}' is too long: at most {LONGEST} bytes are possible"
        )));
    }
    let is_base64 = || {
        let text = str::from_utf8(&bytes).ok()?;
        base64::decode(text.trim_end())
    };
    if spec.base64 && is_base64().is_none() {
        return Err(QmpError::generic(format!(
            "secret '{id}' is not valid base64, which its 'format' says it is"
        )));
    }
    Ok(())
}

/// What the object `id` reads from the file `name`.
///
/// # Errors
/// It cannot be opened or read.
pub fn content(door: &Door, id: &str, name: &str) -> Result<Vec<u8>, QmpError> {
    let reason = format!("object '{id}'");
    let request = Request::new(name, Access::ReadOnly, Role::Secret, &reason);
    let file = fdset::open(door, &request).map_err(|error| QmpError::from_error(&error))?;
    read(file.as_fd()).map_err(|error| {
        QmpError::generic(format!("cannot read secret '{id}' from '{name}': {error}"))
    })
}

/// What is in a file from its beginning, and a byte more than a secret can have at most. The
/// offset of a passed fd is neither used nor moved.
fn read(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() <= LONGEST {
        let at = i64::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        match pread(file, &mut piece, at) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use fdset::{FdRegistry, Scope};

    use super::*;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn outcome(source: SecretSource, base64: bool) -> Result<(), String> {
        let spec = SecretSpec { source, base64 };
        check(&door(), "key", &spec).map_err(|error| error.desc)
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn from_file(file: &tempfile::NamedTempFile) -> SecretSource {
        SecretSource::File(file.path().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_secret_may_be_any_bytes_of_a_file() {
        let key = file(&[0, 255, 10, 128]);
        assert_eq!(outcome(from_file(&key), false), Ok(()));
    }

    #[test]
    fn a_secret_in_base64_may_end_in_a_line_end() {
        let key = file(b"AQID\n");
        assert_eq!(outcome(from_file(&key), true), Ok(()));
        let wrong = outcome(SecretSource::Text("A Q".to_owned()), true);
        assert!(wrong.unwrap_err().contains("'key' is not valid base64"));
    }

    #[test]
    fn a_secret_that_is_not_there_or_too_long_is_an_error() {
        let absent = SecretSource::File("/nowhere/at/all".to_owned());
        assert!(outcome(absent, false).unwrap_err().contains("/nowhere"));
        let long = file(&vec![7; LONGEST + 1]);
        let error = outcome(from_file(&long), false).unwrap_err();
        assert!(error.contains("too long"), "{error}");
        let just = file(&vec![7; LONGEST]);
        assert_eq!(outcome(from_file(&just), false), Ok(()));
    }

    #[test]
    fn a_secret_is_not_in_the_log() {
        let source = SecretSource::Text("hush".to_owned());
        assert!(!format!("{source:?}").contains("hush"));
    }
}
