//! How the kernel is asked what an fd is.
//!
//! Nothing here changes the file or its state, and no path is opened. Devices with a fixed number
//! are known by it, and asked only then: an ioctl means different things to different drivers.
//! Those whose number is chosen at run time (VFIO, iommufd) are known by the name that sysfs gives
//! to the number; where sysfs is not mounted, they are character devices like any other.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, fcntl, readlink};
use nix::sys::stat::{FileStat, fstat, major, minor};
use nix::sys::termios::tcgetattr;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};

use crate::kernel;
use crate::kind::{Kind, Nature};
use crate::lease::{FileType, Identity};
use crate::request::Access;

/// The device number of character devices that have one for good (`admin-guide/devices.txt`).
const MISC: u64 = 10;
const TUN: u64 = 200;
const KVM: u64 = 232;
const VHOST_NET: u64 = 238;
const VHOST_VSOCK: u64 = 241;

/// The only version that KVM has had since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// Looks at `fd`.
pub(crate) fn nature(fd: BorrowedFd<'_>) -> Nature {
    let access = Access::of(fd);
    let Ok(stat) = fstat(fd) else {
        return Nature {
            kind: Kind::Other,
            access,
            identity: None,
        };
    };
    let kind = if access.is_none() {
        Kind::Path
    } else {
        kind(fd, &stat)
    };
    Nature {
        kind,
        access,
        identity: Some(Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
        }),
    }
}

fn kind(fd: BorrowedFd<'_>, stat: &FileStat) -> Kind {
    match FileType::of(stat) {
        FileType::Regular if is_memory(fd, stat) => Kind::Memfd,
        FileType::Regular => Kind::File,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharDevice => char_device(fd, stat.st_rdev),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => socket(fd),
        FileType::Directory => Kind::Directory,
        FileType::Other => kernel_object(fd),
    }
}

/// Only files in memory have seals, and a memfd is born without a link.
fn is_memory(fd: BorrowedFd<'_>, stat: &FileStat) -> bool {
    stat.st_nlink == 0 && fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
}

fn char_device(fd: BorrowedFd<'_>, device: u64) -> Kind {
    match (major(device), minor(device)) {
        (MISC, TUN) if kernel::is_tap_queue(fd) => Kind::Tap,
        (MISC, TUN) => Kind::Tun,
        (MISC, KVM) if kernel::kvm_api_version(fd) == Ok(KVM_API_VERSION) => Kind::Kvm,
        (MISC, VHOST_NET) => Kind::VhostNet,
        (MISC, VHOST_VSOCK) => Kind::VhostVsock,
        (major, minor) => {
            if tcgetattr(fd).is_ok() {
                return Kind::Terminal;
            }
            let link = readlink(format!("/sys/dev/char/{major}:{minor}").as_str());
            link.ok()
                .and_then(|to| to.into_string().ok())
                .map_or(Kind::CharDevice, |to| named_device(major, &to))
        }
    }
}

/// The kind of a device that sysfs calls `path`.
fn named_device(major: u64, path: &str) -> Kind {
    let mut names = path.rsplit('/');
    match (names.next(), names.next()) {
        (Some("iommu"), Some("misc")) if major == MISC => Kind::Iommufd,
        (Some(_), Some("vfio-dev")) => Kind::Vfio,
        _ => Kind::CharDevice,
    }
}

fn socket(fd: BorrowedFd<'_>) -> Kind {
    let (Ok(family), Ok(socket_type)) = (socket_domain(fd), socket_type(fd)) else {
        return Kind::Socket;
    };
    let [listener, stream, datagram] = match family {
        AddressFamily::UNIX => [Kind::UnixListener, Kind::UnixStream, Kind::UnixDatagram],
        AddressFamily::INET | AddressFamily::INET6 => {
            [Kind::InetListener, Kind::InetStream, Kind::InetDatagram]
        }
        AddressFamily::VSOCK => [Kind::VsockListener, Kind::VsockStream, Kind::Socket],
        _ => return Kind::Socket,
    };
    match socket_type {
        SocketType::STREAM if socket_acceptconn(fd) == Ok(true) => listener,
        SocketType::STREAM if is_connected(fd) => stream,
        SocketType::DGRAM => datagram,
        _ => Kind::Socket,
    }
}

fn is_connected(fd: BorrowedFd<'_>) -> bool {
    getpeername(fd).is_ok_and(|peer| peer.is_some())
}

fn kernel_object(fd: BorrowedFd<'_>) -> Kind {
    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str());
    if link.is_ok_and(|name| name == "anon_inode:[eventfd]") {
        Kind::Eventfd
    } else {
        Kind::Other
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::Arc;

    use nix::sys::eventfd::EventFd;
    use rustix::net::SocketFlags;

    use super::*;
    use crate::registry::{Door, FdRegistry, Scope};
    use crate::request::{Request, Role};
    use crate::socket::{SocketAddress, listen};
    use crate::{MemfdSpec, memfd, open, pty};

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn kind_of(fd: impl AsFd) -> Kind {
        Nature::of(fd).kind
    }

    fn path(name: &str, access: Access) -> crate::OpenFile {
        open(
            &door(),
            &Request::new(name, access, Role::CommandLine, "test"),
        )
        .expect(name)
    }

    #[test]
    fn files_devices_and_pipes_are_told_apart() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        assert_eq!(kind_of(&file), Kind::File);
        assert_eq!(kind_of(path("/", Access::ReadOnly)), Kind::Directory);
        assert_eq!(
            kind_of(path("/dev/null", Access::ReadOnly)),
            Kind::CharDevice
        );
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        assert_eq!(kind_of(&reader), Kind::Fifo);
        assert_eq!(Nature::of(&reader).access, Some(Access::ReadOnly));
        let eventfd = EventFd::new().expect("an eventfd");
        assert_eq!(kind_of(&eventfd), Kind::Eventfd);
        let ours = pty(&door(), Role::Chardev, "test").expect("a pty");
        assert_eq!(kind_of(&ours.master), Kind::Terminal);
    }

    #[test]
    fn a_memfd_is_not_taken_for_a_file_whatever_its_seals() {
        for sealed in [false, true] {
            let spec = MemfdSpec {
                size: 4096,
                sealed,
                huge: None,
            };
            let memory = memfd(&door(), "ram", spec, Role::Memory, "test").expect("memory");
            assert_eq!(kind_of(&memory), Kind::Memfd);
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "makes what a manager would hand over"
    )]
    fn sockets_are_told_apart_by_family_type_and_state() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        assert_eq!(kind_of(&ours), Kind::UnixStream);
        let (ours, _theirs) = UnixDatagram::pair().expect("a pair");
        assert_eq!(kind_of(&ours), Kind::UnixDatagram);
        let unbound: OwnedFd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        assert_eq!(kind_of(&unbound), Kind::Socket);
        let name = format!("sesame-kind-{}", std::process::id());
        let listener = listen(
            &door(),
            &SocketAddress::Abstract { name },
            Role::Chardev,
            "test",
        );
        assert_eq!(kind_of(listener.expect("a listener")), Kind::UnixListener);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "makes what a manager would hand over"
    )]
    fn sockets_of_the_internet_are_told_apart_too() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert_eq!(kind_of(&listener), Kind::InetListener);
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("it listens");
        assert_eq!(kind_of(&stream), Kind::InetStream);
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
        assert_eq!(kind_of(&datagrams), Kind::InetDatagram);
    }

    #[test]
    fn kvm_and_an_unused_tun_device_are_known_where_there_are_any() {
        for (name, kind) in [("/dev/kvm", Kind::Kvm), ("/dev/net/tun", Kind::Tun)] {
            let request = Request::new(name, Access::ReadWrite, Role::CommandLine, "test");
            if let Ok(file) = open(&door(), &request) {
                assert_eq!(kind_of(&file), kind, "{name}");
            }
        }
    }

    #[test]
    fn devices_without_a_fixed_number_are_known_by_their_name_in_sysfs() {
        for (path, kind) in [
            ("../../devices/virtual/misc/iommu", Kind::Iommufd),
            (
                "../../devices/pci0000:00/0000:00:03.0/vfio-dev/vfio0",
                Kind::Vfio,
            ),
            ("../../devices/virtual/vfio/12", Kind::CharDevice),
            ("../../devices/virtual/misc/rfkill", Kind::CharDevice),
            ("iommu", Kind::CharDevice),
        ] {
            assert_eq!(named_device(MISC, path), kind, "{path}");
        }
        assert_eq!(named_device(511, "virtual/misc/iommu"), Kind::CharDevice);
    }
}
