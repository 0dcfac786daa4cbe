//! A new regular file: made where its name is a path, emptied where it is there or was handed in.
//!
//! ```text
//!   NewFile::open ── on main: the one thing that opens ──► NewFile::make ── on an io-thread:
//!                                                          emptied, given its length and space
//! ```

use std::io;
use std::sync::Arc;

use fdset::{Access, Door, Existing, Identity, Kind, OpenError, OpenFile, Request, Role};
use nix::unistd::ftruncate;

use super::lock::ImageLock;
use crate::engine::Io;
use crate::engine::transfer::send_zeroes;
use crate::format::qcow2::Preallocation;
use crate::permission::{Permissions, Usage};
use crate::spec::Locking;

/// Permission bits of a file that is made, before the umask.
const MODE: u32 = 0o644;
/// Zeros are sent from memory that begins at such an address.
const ALIGNMENT: usize = 4096;

/// What whoever makes a file does with it.
const ALONE: Usage = Usage {
    uses: Permissions::WRITE.union(Permissions::RESIZE),
    shares: Permissions::CONSISTENT_READ,
};

/// A file that is to be made anew. What is in it stays until [`make`](Self::make).
#[derive(Debug)]
pub struct NewFile(OpenFile);

impl NewFile {
    /// What is asked of the one open.
    #[must_use]
    pub fn request<'a>(filename: &'a str, reason: &'a str) -> Request<'a> {
        Request::new(filename, Access::ReadWrite, Role::Image, reason)
            .kinds(&[Kind::File, Kind::Memfd])
            .create(MODE, Existing::Keep)
    }

    /// Opens it, for `reason`.
    ///
    /// # Errors
    /// It cannot be opened for reading and writing, or is no regular file.
    pub fn open(door: &Door, filename: &str, reason: &str) -> Result<Self, OpenError> {
        let file = fdset::open(door, &Self::request(filename, reason))?;
        Ok(Self(file))
    }

    /// Which file it is; `None` if the kernel would not say.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.0.identity().ok()
    }

    /// The file itself, as it is.
    pub(crate) fn into_file(self) -> OpenFile {
        self.0
    }

    /// Empties it, and gives it its length in bytes and what is to be there from the start.
    ///
    /// # Errors
    /// Another process uses it, or the storage failed or is full.
    pub async fn make(self, io: &Io, size: u64, with: Preallocation) -> io::Result<()> {
        let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
        let signed = i64::try_from(size).map_err(too_large)?;
        let file = Arc::new(self.0);
        let lock = ImageLock::new(Locking::Auto);
        let made = match lock.widen(&file, ALONE) {
            Ok(()) => fill(io, &file, size, signed, with).await,
            Err(why) => Err(io::Error::other(format!(
                "{why}: is another process using the image?"
            ))),
        };
        // Whoever handed the file in may have the same open file still.
        lock.narrow(&file, Usage::NONE);
        made
    }
}

async fn fill(
    io: &Io,
    file: &Arc<OpenFile>,
    size: u64,
    signed: i64,
    with: Preallocation,
) -> io::Result<()> {
    ftruncate(file, 0)?;
    ftruncate(file, signed)?;
    match with {
        _ if size == 0 => Ok(()),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => io.allocate(file, 0, 0, size).await.map(drop),
        Preallocation::Full => {
            send_zeroes(io, file, 0, size, ALIGNMENT, false).await?;
            io.sync(file).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use fdset::{FdRegistry, Scope};

    use super::*;
    use crate::engine::{IoThread, IoThreadSpec};

    #[test]
    fn new_file_has_its_length_and_nothing_of_what_was_there() {
        let mut old = tempfile::NamedTempFile::new().expect("a file");
        let name = old.path().to_str().expect("a name").to_owned();
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let thread = IoThread::start(IoThreadSpec {
            id: "new".to_owned(),
        });
        let thread = thread.expect("a thread");
        for with in [
            Preallocation::Off,
            Preallocation::Falloc,
            Preallocation::Full,
        ] {
            old.write_all(b"what was there").expect("written");
            let new = NewFile::open(&door, &name, "a test").expect("opened");
            let made = thread.run(move |io| async move { new.make(&io, 65536, with).await });
            made.expect("run").expect("made");
            let mut now = Vec::new();
            let mut file = old.reopen().expect("there");
            file.read_to_end(&mut now).expect("read");
            assert_eq!(now, vec![0; 65536]);
            let blocks = file.metadata().expect("there").blocks();
            assert_eq!(blocks == 0, with == Preallocation::Off, "{with:?}");
        }
        assert!(NewFile::open(&door, "/dev/null", "a test").is_err());
    }

    #[test]
    fn file_that_another_process_writes_to_is_left_alone() {
        let mut old = tempfile::NamedTempFile::new().expect("a file");
        old.write_all(b"what was there").expect("written");
        let name = old.path().to_str().expect("a name").to_owned();
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        // Another open file is as good as another process.
        let theirs = NewFile::open(&door, &name, "a test").expect("opened");
        let lock = ImageLock::new(Locking::Auto);
        let disk = Usage::disk(false, false);
        lock.widen(&theirs.0, disk).expect("theirs");
        let thread = IoThread::start(IoThreadSpec {
            id: "kept".to_owned(),
        });
        let thread = thread.expect("a thread");
        let make = || {
            let new = NewFile::open(&door, &name, "a test").expect("opened");
            let made = thread.run(|io| async move { new.make(&io, 512, Preallocation::Off).await });
            made.expect("run")
        };
        let error = make().expect_err("in use").to_string();
        assert!(error.starts_with("Failed to get \"write\" lock"), "{error}");
        assert_eq!(old.as_file().metadata().expect("there").len(), 14);
        lock.narrow(&theirs.0, Usage::NONE);
        make().expect("free");
        assert_eq!(old.as_file().metadata().expect("there").len(), 512);
    }
}
