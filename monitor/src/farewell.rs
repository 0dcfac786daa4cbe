//! Why a session ends.

use std::io;

use crate::transport::QUEUE_LIMIT;

/// Why a client is no longer served; what is worth a line in the log says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Farewell {
    /// It has gone, or has all it asked for.
    #[error("the client has gone")]
    Gone,
    /// It does not read.
    #[error("the client does not read: more than {QUEUE_LIMIT} bytes wait for it")]
    Overrun,
    /// It does not speak TLS, or shows no certificate that it should.
    #[error("TLS cannot be spoken with the client: {0}")]
    NotTls(#[source] io::Error),
    /// Its output cannot be watched.
    #[error("the client cannot be watched")]
    Unwatched(#[from] io::Error),
}
