//! The open hook: `open-hook-set`, `-open-hook`.

use std::time::Duration;

use fdset::SocketAddress;
use qapi_schema::QmpError;

use crate::hook::HookSpec;

/// How long the manager may take where nothing else is said.
const TIMEOUT_MS: u32 = 10_000;

/// Where the manager is and how long it may take.
///
/// # Errors
/// Not exactly one place is given, or no time at all.
pub fn open_hook(
    fd: Option<String>,
    path: Option<String>,
    timeout_ms: Option<u32>,
) -> Result<HookSpec, QmpError> {
    let address = match (fd, path) {
        (Some(name), None) => SocketAddress::Fd { name },
        (None, Some(path)) => SocketAddress::Unix { path: path.into() },
        (None, None) => {
            return Err(QmpError::generic(
                "An open hook needs 'fd', a connection, or 'path', a socket to connect to",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(QmpError::generic(
                "Parameters 'fd' and 'path' exclude each other: an open hook has one connection",
            ));
        }
    };
    let timeout = timeout_ms.unwrap_or(TIMEOUT_MS);
    if timeout == 0 {
        return Err(QmpError::generic(
            "An open hook needs time to answer: its timeout is at least 1 ms",
        ));
    }
    Ok(HookSpec {
        address,
        timeout: Duration::from_millis(timeout.into()),
    })
}
