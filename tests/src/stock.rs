//! What is handed in: for each resource an fd of its kind, and a path that leads to one.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::fds;
use crate::table::Resource;
use crate::{tap, tls, vm};
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, unlockpt};

const MIB: u64 = 1 << 20;

/// What stands behind one resource: something to hand in, and a place where it has a path.
#[derive(Debug)]
pub struct Stock {
    /// Where paths lead.
    pub folder: tempfile::TempDir,
    /// The other ends of connections, and those who listen for them.
    pub ends: Vec<OwnedFd>,
}

impl Stock {
    /// Its files are made in a folder within that one, which is not to be in memory: a file
    /// without a name there would be a memfd.
    pub fn new(within: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().tempdir_in(within)?;
        Ok(Self {
            folder,
            ends: Vec::new(),
        })
    }

    /// Where something of that name is, or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file system in memory, where there is one, as hugetlbfs is.
    fn memory_folder(&self) -> PathBuf {
        let shared = PathBuf::from("/dev/shm");
        if shared.is_dir() {
            return shared;
        }
        self.folder.path().to_owned()
    }

    /// Another fd of the kind that `resource` takes.
    pub fn fd(&mut self, resource: Resource) -> Result<OwnedFd> {
        Ok(match resource {
            Resource::BackingFile => {
                drop(self.fd(Resource::ImageFile)?);
                fds::open_ro(&self.path("file"))?.into()
            }
            Resource::ImageFile | Resource::DataFile | Resource::MemoryFile => {
                let path = self.path("file");
                if !path.exists() {
                    File::create_new(&path)?.set_len(MIB)?;
                }
                fds::open_rw(&path)?.into()
            }
            Resource::BlockDevice => fds::open_ro(&block_device()?)?.into(),
            Resource::MemoryDirectory => File::open(self.memory_folder())?.into(),
            Resource::Memfd => fds::memfd(MIB)?,
            Resource::Entropy => fds::open_ro(Path::new("/dev/urandom"))?.into(),
            Resource::ChardevOutput
            | Resource::ChardevLog
            | Resource::PidFile
            | Resource::NetDump => File::create(self.path("out"))?.into(),
            Resource::ChardevInput | Resource::Secret => {
                fs::write(self.path("in"), "input")?;
                fds::open_ro(&self.path("in"))?.into()
            }
            Resource::ChardevListener | Resource::MonitorListener | Resource::NetListener => {
                let path = self.path("passed");
                let _ = fs::remove_file(&path);
                UnixListener::bind(path)?.into()
            }
            Resource::ChardevConnection
            | Resource::ChardevReconnecting
            | Resource::OpenHook
            | Resource::MonitorConnection
            | Resource::NetConnection
            | Resource::NetReconnecting => {
                let (ours, theirs) = UnixStream::pair()?;
                self.ends.push(ours.into());
                theirs.into()
            }
            Resource::NetDatagram => {
                let (ours, theirs) = UnixDatagram::pair()?;
                self.ends.push(ours.into());
                theirs.into()
            }
            Resource::NetTap => tap::queues("", 1)?.pop().context("a queue")?,
            Resource::BlkdebugRules => {
                fs::write(
                    self.path("faults"),
                    "[inject-error]\nevent = \"read_aio\"\n",
                )?;
                fds::open_ro(&self.path("faults"))?.into()
            }
            Resource::Rom => {
                File::create(self.path("rom"))?.set_len(64 << 10)?;
                fds::open_ro(&self.path("rom"))?.into()
            }
            Resource::VhostNet => fds::open_rw(Path::new("/dev/vhost-net"))?.into(),
            Resource::VhostVsock => fds::open_rw(Path::new("/dev/vhost-vsock"))?.into(),
            Resource::Pty => {
                let first = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
                grantpt(&first)?;
                unlockpt(&first)?;
                first.into()
            }
            Resource::Kernel => fds::open_ro(&kernel()?)?.into(),
            Resource::Initrd => {
                fs::write(self.path("initrd"), "070701")?;
                fds::open_ro(&self.path("initrd"))?.into()
            }
            Resource::FwCfg => {
                fs::write(self.path("blob"), "blob")?;
                fds::open_ro(&self.path("blob"))?.into()
            }
            Resource::Kvm => fds::open_rw(Path::new("/dev/kvm"))?.into(),
            Resource::TlsKey => fds::open_ro(&tls::file("server-key.pem"))?.into(),
            Resource::MonitorCommands => {
                fs::write(self.path("rules"), "read-only\ndeny qom-*\n")?;
                fds::open_ro(&self.path("rules"))?.into()
            }
        })
    }

    /// As many, which belong together: queues of one interface.
    ///
    /// # Errors
    /// As [`Self::fd`].
    pub fn fds(&mut self, resource: Resource, count: usize) -> Result<Vec<OwnedFd>> {
        match resource {
            Resource::NetTap => tap::queues("", count),
            _ => (0..count).map(|_| self.fd(resource)).collect(),
        }
    }

    /// A real path to such a thing.
    pub fn real_path(&mut self, resource: Resource) -> Result<String> {
        let path = match resource {
            Resource::BlockDevice => block_device()?,
            Resource::MemoryDirectory => self.memory_folder(),
            Resource::Entropy => "/dev/urandom".into(),
            Resource::Kernel => kernel()?,
            Resource::Kvm => "/dev/kvm".into(),
            Resource::BlkdebugRules => {
                drop(self.fd(resource)?);
                self.path("faults")
            }
            Resource::Rom => {
                drop(self.fd(resource)?);
                self.path("rom")
            }
            Resource::VhostNet => "/dev/vhost-net".into(),
            Resource::VhostVsock => "/dev/vhost-vsock".into(),
            Resource::ImageFile
            | Resource::BackingFile
            | Resource::DataFile
            | Resource::MemoryFile
            | Resource::Memfd => {
                drop(self.fd(Resource::MemoryFile)?);
                self.path("file")
            }
            Resource::ChardevInput | Resource::Secret => {
                drop(self.fd(resource)?);
                self.path("in")
            }
            Resource::Initrd => {
                drop(self.fd(resource)?);
                self.path("initrd")
            }
            Resource::FwCfg => {
                drop(self.fd(resource)?);
                self.path("blob")
            }
            Resource::ChardevConnection
            | Resource::ChardevReconnecting
            | Resource::OpenHook
            | Resource::MonitorConnection
            | Resource::NetConnection
            | Resource::NetReconnecting => {
                let path = self.path("listening");
                let _ = fs::remove_file(&path);
                self.ends.push(UnixListener::bind(&path)?.into());
                path
            }
            Resource::TlsKey => tls::file("server-key.pem"),
            Resource::MonitorCommands => {
                drop(self.fd(resource)?);
                self.path("rules")
            }
            Resource::NetTap => "/dev/net/tun".into(),
            Resource::ChardevListener
            | Resource::MonitorListener
            | Resource::NetListener
            | Resource::NetDatagram => self.path("bound"),
            Resource::ChardevOutput
            | Resource::ChardevLog
            | Resource::PidFile
            | Resource::NetDump => self.path("new"),
            Resource::Pty => return Ok(String::new()),
        };
        Ok(path.to_str().context("a path that is text")?.to_owned())
    }
}

fn kernel() -> Result<PathBuf> {
    vm::variable("SESAME_GUEST_KERNEL")
}

/// Any block device of this machine: it is only read, and only its size.
fn block_device() -> Result<PathBuf> {
    let is_block = |path: &PathBuf| {
        let kind = fs::metadata(path).map(|it| it.file_type());
        kind.is_ok_and(|kind| std::os::unix::fs::FileTypeExt::is_block_device(&kind))
    };
    let devices = fs::read_dir("/dev")?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut devices: Vec<_> = devices.filter(is_block).collect();
    devices.sort();
    let device = devices.into_iter().find(|path| File::open(path).is_ok());
    device.context("this machine has no block device")
}
