//! Chardevs: `chardev-add`, `-chardev`, `-serial`, and what a monitor talks through.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use devices::chardev::{BackendSpec, ChardevSpec, LogSpec, SocketRole, SocketSpec};
use fdset::SocketAddress;
use qapi_schema::QmpError;
use qapi_schema::char::{
    ChardevBackend, ChardevBackendVariant, ChardevSocket, InetSocketAddress, SocketAddressLegacy,
    SocketAddressLegacyVariant, UnixSocketAddress,
};

use super::unmet;

/// A ring buffer's size where none is given.
const RING_SIZE: u64 = 64 * 1024;
/// Bytes of the longest abstract name: `sun_path` without the zero that it begins with.
const ABSTRACT_NAME: usize = 107;

/// The TLS credentials that a monitor's chardev names, taken out of it: they are the monitor's.
pub fn take_tls(backend: &mut ChardevBackend) -> Option<String> {
    match &mut backend.r#type {
        ChardevBackendVariant::Socket(wrapped) => wrapped.data.tls_creds.take(),
        _ => None,
    }
}

/// What a chardev is to be.
///
/// # Errors
/// Members contradict each other, or a size does not fit this machine.
pub fn chardev(backend: ChardevBackend) -> Result<ChardevSpec, QmpError> {
    use ChardevBackendVariant as Kind;
    let (backend, logfile, logappend) = match backend.r#type {
        Kind::Socket(wrapped) => {
            let socket = wrapped.data;
            let log = (socket.logfile.clone(), socket.logappend);
            (BackendSpec::Socket(socket_spec(socket)?), log.0, log.1)
        }
        Kind::File(wrapped) => {
            let file = wrapped.data;
            let backend = BackendSpec::File {
                output: file.out,
                input: file.r#in,
                append: file.append.unwrap_or(false),
            };
            (backend, file.logfile, file.logappend)
        }
        Kind::Stdio(wrapped) => {
            let stdio = wrapped.data;
            let backend = BackendSpec::Stdio {
                signal: stdio.signal.unwrap_or(true),
            };
            (backend, stdio.logfile, stdio.logappend)
        }
        Kind::Pty(wrapped) => {
            let pty = wrapped.data;
            unmet::refuse(&[(
                pty.path.is_some(),
                "path",
                "a pty is found where the kernel makes it; query-chardev tells where",
            )])?;
            (BackendSpec::Pty, pty.logfile, pty.logappend)
        }
        Kind::Null(wrapped) => (
            BackendSpec::Null,
            wrapped.data.logfile,
            wrapped.data.logappend,
        ),
        Kind::Ringbuf(wrapped) => {
            let ring = wrapped.data;
            let size = usize::try_from(ring.size.unwrap_or(RING_SIZE))
                .map_err(|_| QmpError::generic("Parameter 'size' is larger than memory"))?;
            (BackendSpec::Ringbuf { size }, ring.logfile, ring.logappend)
        }
    };
    let log = logfile.map(|name| LogSpec {
        name,
        append: logappend.unwrap_or(false),
    });
    if log.is_none() && logappend.is_some() {
        return Err(QmpError::generic("Parameter 'logappend' needs 'logfile'"));
    }
    Ok(ChardevSpec { backend, log })
}

fn socket_spec(socket: ChardevSocket) -> Result<SocketSpec, QmpError> {
    let server = socket.server.unwrap_or(true);
    let reconnect = socket.reconnect_ms.unwrap_or(0);
    let reconnect = u64::try_from(reconnect)
        .map_err(|_| QmpError::generic("Parameter 'reconnect-ms' expects a non-negative value"))?;
    let role = match (server, reconnect) {
        (true, 0) => SocketRole::Server {
            wait: socket.wait.unwrap_or(false),
        },
        (true, _) => {
            return Err(QmpError::generic(
                "'reconnect-ms' is for a socket that calls: with server=on leave it out",
            ));
        }
        (false, _) if socket.wait.is_some() => {
            return Err(QmpError::generic(
                "'wait' is for a socket that listens: with server=off leave it out",
            ));
        }
        (false, 0) => SocketRole::Client,
        (false, interval) => SocketRole::Reconnecting(Duration::from_millis(interval)),
    };
    unmet::refuse(&[(
        socket.tls_creds.is_some(),
        "tls-creds",
        "TLS is spoken by monitors only, which are given on the command line",
    )])?;
    let address = address(socket.addr)?;
    let nodelay = socket.nodelay.unwrap_or(false);
    let is_unix = matches!(
        address,
        SocketAddress::Unix { .. } | SocketAddress::Abstract { .. }
    );
    unmet::refuse(&[(
        nodelay && is_unix,
        "nodelay=on",
        "only TCP ever holds small packets back",
    )])?;
    Ok(SocketSpec {
        address,
        role,
        nodelay,
    })
}

fn address(address: SocketAddressLegacy) -> Result<SocketAddress, QmpError> {
    use SocketAddressLegacyVariant as Kind;
    Ok(match address.r#type {
        Kind::Unix(wrapped) => unix(wrapped.data)?,
        Kind::Inet(wrapped) => inet(wrapped.data)?,
        Kind::Fd(wrapped) => SocketAddress::Fd {
            name: wrapped.data.str,
        },
    })
}

/// A unix socket's place.
///
/// # Errors
/// A member means nothing for it.
pub fn unix(address: UnixSocketAddress) -> Result<SocketAddress, QmpError> {
    let is_abstract = address.r#abstract.unwrap_or(false);
    let tight = address.tight.unwrap_or(true);
    unmet::refuse(&[(
        !tight && !is_abstract,
        "tight=off",
        "only an abstract name can be filled with zeros",
    )])?;
    let mut name = address.path;
    if !is_abstract {
        return Ok(SocketAddress::Unix { path: name.into() });
    }
    if !tight {
        let missing = ABSTRACT_NAME.saturating_sub(name.len());
        name.extend(std::iter::repeat_n('\0', missing));
    }
    Ok(SocketAddress::Abstract { name })
}

/// A TCP or UDP socket's place.
///
/// # Errors
/// A member asks for what cannot be had.
pub fn inet(address: InetSocketAddress) -> Result<SocketAddress, QmpError> {
    unmet::refuse(&[
        (
            address.to.is_some(),
            "to",
            "a socket listens on the port it is given",
        ),
        (
            (address.ipv4 == Some(false) && address.host.parse::<Ipv6Addr>().is_err())
                || (address.ipv6 == Some(false) && address.host.parse::<Ipv4Addr>().is_err()),
            "ipv4=off or ipv6=off",
            "the host's address says which is used",
        ),
        (
            address.keep_alive == Some(true),
            "keep-alive=on",
            "idle connections are not probed",
        ),
    ])?;
    let port = address.port.parse().map_err(|_| {
        QmpError::generic(format!(
            "Parameter 'port' expects a number, not '{}'",
            address.port
        ))
    })?;
    Ok(SocketAddress::Inet {
        host: address.host,
        port,
    })
}
