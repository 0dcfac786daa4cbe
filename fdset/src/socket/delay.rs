//! Whether TCP collects small packets.

use std::io;
use std::os::fd::AsFd;

/// Makes a TCP socket send small packets at once (`TCP_NODELAY`). A listener hands that on to
/// every connection it accepts.
///
/// # Errors
/// It is not a TCP socket.
pub fn set_nodelay(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_nodelay(socket, true)?)
}
