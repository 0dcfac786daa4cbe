//! Opening what the allow list permits, and nothing that a link in its place leads to.
//!
//! A path can be turned into a link between the look and the open. So the look is the open: the
//! file is held first, in a way that gives no access (`O_PATH`), the kernel tells where it really
//! is, that is held against the list, and what is held is opened.
//!
//! ```text
//!   name ─► O_PATH ─► /proc/self/fd/N: the real path ─► permitted? ─► open /proc/self/fd/N
//!   missing, and may be made: the same with its folder, then made in it
//! ```

#![expect(clippy::disallowed_methods, reason = "this program is here to open")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, unlockpt};
use qapi_schema::open_hook::{OpenAccess, OpenExisting, OpenHookOpen, OpenKind};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::allow::{AllowList, Right};

/// How many connections may wait for Sesame to accept them.
const BACKLOG: i32 = 128;
/// Where new ptys come from.
const PTMX: &str = "/dev/ptmx";
/// Permission bits of files that are made.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Opens what `wish` asks for.
pub(crate) fn open(list: &AllowList, wish: &OpenHookOpen) -> Result<OwnedFd> {
    let path = Path::new(&wish.name);
    let is_nameless = wish.kind == OpenKind::Terminal;
    ensure!(
        is_nameless || path.is_absolute(),
        "only absolute paths are opened"
    );
    match wish.kind {
        OpenKind::Terminal => new_pty(list, wish),
        OpenKind::ListeningSocket => listen_at(list, wish, path),
        OpenKind::ConnectedSocket => connect_to(list, wish, path),
        OpenKind::DatagramSocket | OpenKind::Tap => bail!(
            "a {} has no path from which it could be opened; hand one in",
            wish.kind
        ),
        OpenKind::RegularFile
        | OpenKind::Memory
        | OpenKind::BlockDevice
        | OpenKind::Kvm
        | OpenKind::VhostNet
        | OpenKind::VhostVsock
        | OpenKind::Stream => {
            match (
                openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()),
                wish.create,
            ) {
                (Ok(held), create) => open_held(list, wish, &held, create),
                (Err(Errno::NOENT), Some(_)) => create(list, wish, path),
                (Err(error), _) => Err(error.into()),
            }
        }
    }
}

/// Opens a file that is there.
fn open_held(
    list: &AllowList,
    wish: &OpenHookOpen,
    held: &OwnedFd,
    existing: Option<OpenExisting>,
) -> Result<OwnedFd> {
    let right = match wish.access {
        OpenAccess::ReadOnly => Right::Read,
        OpenAccess::WriteOnly | OpenAccess::ReadWrite => Right::Write,
    };
    permit(list, wish, right, &real_path(held)?)?;
    let kind = FileType::from_raw_mode(fstat(held)?.st_mode);
    let fits = match wish.kind {
        OpenKind::RegularFile => kind == FileType::RegularFile,
        OpenKind::Memory => matches!(kind, FileType::RegularFile | FileType::Directory),
        OpenKind::BlockDevice => kind == FileType::BlockDevice,
        OpenKind::Kvm | OpenKind::VhostNet | OpenKind::VhostVsock => {
            kind == FileType::CharacterDevice
        }
        OpenKind::Stream => matches!(
            kind,
            FileType::RegularFile | FileType::CharacterDevice | FileType::Fifo
        ),
        OpenKind::Terminal
        | OpenKind::ListeningSocket
        | OpenKind::ConnectedSocket
        | OpenKind::DatagramSocket
        | OpenKind::Tap => false,
    };
    ensure!(fits, "it is a {kind:?}, which will not do as {}", wish.kind);
    let more = match existing {
        None | Some(OpenExisting::Keep) => OFlags::empty(),
        Some(OpenExisting::Truncate) => OFlags::TRUNC,
        Some(OpenExisting::Append) => OFlags::APPEND,
        Some(OpenExisting::Refuse) => return Err(Errno::EXIST.into()),
    };
    let flags = match kind {
        // To make a file in it needs no more than to read it.
        FileType::Directory => OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        _ => flags(wish) | more,
    };
    Ok(openat(CWD, through(held), flags, Mode::empty())?)
}

/// Makes a file that is not there.
fn create(list: &AllowList, wish: &OpenHookOpen, path: &Path) -> Result<OwnedFd> {
    let (folder, name) = hold_folder(path)?;
    permit(list, wish, Right::Create, &real_child(&folder, name)?)?;
    let flags = flags(wish) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    Ok(openat(&folder, name, flags, MODE)?)
}

/// A new pty, for whom the list permits `rwc` of the device that makes them.
fn new_pty(list: &AllowList, wish: &OpenHookOpen) -> Result<OwnedFd> {
    permit(list, wish, Right::Create, PTMX)?;
    let first = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&first)?;
    unlockpt(&first)?;
    Ok(first.into())
}

fn listen_at(list: &AllowList, wish: &OpenHookOpen, path: &Path) -> Result<OwnedFd> {
    let (folder, name) = hold_folder(path)?;
    permit(list, wish, Right::Create, &real_child(&folder, name)?)?;
    let address = SocketAddrUnix::new(format!("{}/{name}", through(&folder)))?;
    let socket = stream_socket()?;
    match bind(&socket, &address) {
        // Left behind by a process that died.
        Err(Errno::ADDRINUSE)
            if connect(&stream_socket()?, &address) == Err(Errno::CONNREFUSED) =>
        {
            unlinkat(&folder, name, AtFlags::empty())?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn connect_to(list: &AllowList, wish: &OpenHookOpen, path: &Path) -> Result<OwnedFd> {
    let held = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    permit(list, wish, Right::Write, &real_path(&held)?)?;
    let socket = stream_socket()?;
    connect(&socket, &SocketAddrUnix::new(through(&held))?)?;
    Ok(socket)
}

fn permit(list: &AllowList, wish: &OpenHookOpen, right: Right, real: &str) -> Result<()> {
    if list.permits(wish.role, right, real) {
        return Ok(());
    }
    let how = match right {
        Right::Read => "reading",
        Right::Write => "writing",
        Right::Create => "creating",
    };
    bail!(
        "no line of the allow list permits {how} {real} as {}",
        wish.role
    )
}

fn flags(wish: &OpenHookOpen) -> OFlags {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= match wish.access {
        OpenAccess::ReadOnly => OFlags::RDONLY,
        OpenAccess::WriteOnly => OFlags::WRONLY,
        OpenAccess::ReadWrite => OFlags::RDWR,
    };
    flags.set(OFlags::DIRECT, wish.direct);
    // A FIFO whose other end is not there must not hold up the others.
    flags.set(OFlags::NONBLOCK, wish.kind == OpenKind::Stream);
    flags
}

fn stream_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn hold_folder(path: &Path) -> Result<(OwnedFd, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (folder, name) = path.parent().zip(name).context("it names no file")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((openat(CWD, folder, flags, Mode::empty())?, name))
}

/// Where a file that is held can be named, whatever happens to its path.
fn through(held: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", held.as_raw_fd())
}

fn real_path(held: &impl AsFd) -> Result<String> {
    let link = format!("/proc/self/fd/{}", held.as_fd().as_raw_fd());
    let path = readlinkat(CWD, link, Vec::new())?;
    path.into_string().ok().context("its real path is no text")
}

fn real_child(folder: &OwnedFd, name: &str) -> Result<String> {
    let folder = real_path(folder)?;
    Ok(format!("{}/{name}", folder.trim_end_matches('/')))
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests make the files that are opened"
)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use qapi_schema::open_hook::OpenRole;

    use super::*;

    fn wish(path: &Path, kind: OpenKind, access: OpenAccess) -> OpenHookOpen {
        OpenHookOpen {
            name: path.to_str().expect("text").to_owned(),
            role: OpenRole::Image,
            kind,
            access,
            create: None,
            direct: false,
            reason: "node 'n'".to_owned(),
            command: None,
            deadline_ms: 1000,
        }
    }

    fn list(folder: &Path, rights: &str) -> AllowList {
        let file = folder.join("allow");
        fs::write(&file, format!("image {rights} {}/in/*", folder.display())).expect("written");
        AllowList::read(&file).expect("a good list")
    }

    /// A real folder with `in` and `out`.
    fn stage() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("it is there");
        fs::create_dir(real.join("in")).expect("a folder");
        fs::create_dir(real.join("out")).expect("a folder");
        (folder, real)
    }

    #[test]
    fn a_link_does_not_lead_out_of_what_is_permitted() {
        let (_folder, real) = stage();
        let list = list(&real, "rwc");
        fs::write(real.join("out/secret"), "s").expect("written");
        symlink(real.join("out/secret"), real.join("in/link")).expect("a link");
        symlink(real.join("out"), real.join("in/folder")).expect("a link");
        for path in ["in/link", "in/folder/secret", "in/../out/secret"] {
            let wish = wish(
                &real.join(path),
                OpenKind::RegularFile,
                OpenAccess::ReadOnly,
            );
            let error = open(&list, &wish).expect_err("outside").to_string();
            assert!(error.contains("permits reading"), "{error}");
        }
        let mut made = wish(
            &real.join("in/folder/new"),
            OpenKind::RegularFile,
            OpenAccess::ReadWrite,
        );
        made.create = Some(OpenExisting::Keep);
        assert!(open(&list, &made).is_err());
        assert!(!real.join("out/new").exists());
    }

    #[test]
    fn rights_are_read_write_and_create_in_this_order() {
        let (_folder, real) = stage();
        fs::write(real.join("in/disk"), "d").expect("written");
        for (rights, reads, writes, creates) in [
            ("ro", true, false, false),
            ("rw", true, true, false),
            ("rwc", true, true, true),
        ] {
            let list = list(&real, rights);
            let there = |access| wish(&real.join("in/disk"), OpenKind::RegularFile, access);
            assert_eq!(open(&list, &there(OpenAccess::ReadOnly)).is_ok(), reads);
            assert_eq!(open(&list, &there(OpenAccess::ReadWrite)).is_ok(), writes);
            let mut new = wish(
                &real.join("in/new"),
                OpenKind::Stream,
                OpenAccess::WriteOnly,
            );
            new.create = Some(OpenExisting::Truncate);
            assert_eq!(open(&list, &new).is_ok(), creates);
        }
    }

    #[test]
    fn a_pty_is_made_for_whom_may_create_them() {
        let (_folder, real) = stage();
        let file = real.join("allow");
        let mut pty = wish(Path::new("pty"), OpenKind::Terminal, OpenAccess::ReadWrite);
        pty.role = OpenRole::Chardev;
        for (rights, made) in [("rw", false), ("rwc", true)] {
            fs::write(&file, format!("chardev {rights} /dev/ptmx")).expect("written");
            let list = AllowList::read(&file).expect("a good list");
            assert_eq!(open(&list, &pty).is_ok(), made, "{rights}");
        }
    }

    #[test]
    fn an_existing_file_is_cut_appended_to_or_refused_as_asked() {
        let (_folder, real) = stage();
        let list = list(&real, "rwc");
        let path = real.join("in/log");
        for (existing, wanted) in [
            (OpenExisting::Keep, Some("xbc")),
            (OpenExisting::Append, Some("abcx")),
            (OpenExisting::Truncate, Some("x")),
            (OpenExisting::Refuse, None),
        ] {
            fs::write(&path, "abc").expect("written");
            let mut wish = wish(&path, OpenKind::Stream, OpenAccess::WriteOnly);
            wish.create = Some(existing);
            let opened = open(&list, &wish);
            assert_eq!(opened.is_ok(), wanted.is_some());
            if let (Ok(fd), Some(wanted)) = (opened, wanted) {
                fs::File::from(fd).write_all(b"x").expect("room");
                assert_eq!(fs::read_to_string(&path).expect("text"), wanted);
            }
        }
    }

    #[test]
    fn a_file_of_the_wrong_kind_and_a_relative_path_are_refused() {
        let (_folder, real) = stage();
        let list = list(&real, "rwc");
        fs::create_dir(real.join("in/folder")).expect("a folder");
        for kind in [
            OpenKind::RegularFile,
            OpenKind::Stream,
            OpenKind::BlockDevice,
        ] {
            let wish = wish(&real.join("in/folder"), kind, OpenAccess::ReadOnly);
            assert!(open(&list, &wish).is_err());
        }
        let relative = wish(Path::new("in/disk"), OpenKind::Stream, OpenAccess::ReadOnly);
        assert!(open(&list, &relative).is_err());
    }

    #[test]
    fn a_socket_is_made_or_connected_to_and_a_stale_one_replaced() {
        let (_folder, real) = stage();
        let list = list(&real, "rwc");
        let path = real.join("in/socket");
        drop(UnixListener::bind(&path).expect("a socket that nobody serves"));
        let listening = wish(&path, OpenKind::ListeningSocket, OpenAccess::ReadWrite);
        let listener = open(&list, &listening).expect("replaced");
        UnixStream::connect(&path).expect("it listens");
        assert!(open(&list, &listening).is_err(), "it is served");
        let connected = wish(&path, OpenKind::ConnectedSocket, OpenAccess::ReadWrite);
        open(&list, &connected).expect("a connection");
        drop(listener);
        assert!(open(&list, &connected).is_err());
    }
}
