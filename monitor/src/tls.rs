//! TLS for monitors: whom the clients of a listener must be able to trust, and one connection's
//! encryption.
//!
//! ```text
//!   Port::receive ─► socket ─► cipher text ─► [ Tls ] ─► bytes of the session
//!   Port::send    ─► bytes ─► [ Tls ] ─► cipher text ─► socket; at most one record waits
//! ```
//!
//! Nothing here opens anything: keys and certificates come as text, random numbers by the system call
//! `getrandom`, so that a sealed process can still shake hands.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// How much is encrypted at once: one record.
const RECORD: usize = 16 << 10;
/// How much cipher text is received at once.
const CHUNK: usize = 16 << 10;

/// What a server shows its clients, and what it wants of them; texts are in PEM.
pub struct TlsSpec<'t> {
    /// The server's certificate, and those between it and one that clients trust.
    pub certificate: &'t [u8],
    /// The key of the certificate.
    pub key: &'t [u8],
    /// Clients must show a certificate that one of these has signed; `None`: they need none.
    pub authority: Option<&'t [u8]>,
}

/// Why clients cannot be served by TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A text is not PEM, or does not hold what it should.
    #[error("the {what} cannot be used: it must be in PEM")]
    Pem {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate that is no authority's.
    #[error("the CA certificate cannot be used")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Certificate and key do not go together, or are of an unknown kind.
    #[error("certificate and key cannot be used")]
    Pair(#[source] rustls::Error),
}

/// The server's side of TLS, for any number of clients. Clones are the same.
#[derive(Clone)]
pub struct TlsServer(Arc<ServerConfig>);

impl TlsServer {
    /// A server that shows this certificate.
    ///
    /// # Errors
    /// A text is not what it should be.
    pub fn new(spec: &TlsSpec<'_>) -> Result<Self, TlsError> {
        let failed = |what| move |source| TlsError::Pem { what, source };
        let chain = certificates(spec.certificate).map_err(failed("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(spec.key).map_err(failed("key"))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?;
        let builder = match spec.authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(authority).map_err(failed("CA certificate"))? {
                    roots
                        .add(root)
                        .map_err(|error| TlsError::Authority(error.into()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| TlsError::Authority(error.into()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(TlsError::Pair)?;
        Ok(Self(Arc::new(config)))
    }

    /// The state of a new connection.
    pub(crate) fn connection(&self) -> io::Result<Tls> {
        let connection = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        Ok(Tls(Mutex::new(connection)))
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsServer")
    }
}

/// All certificates of a text; one without any is wrong.
fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>()?;
    if all.is_empty() {
        return Err(pem::Error::NoItemsFound);
    }
    Ok(all)
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Tls(Mutex<ServerConnection>);

impl Tls {
    /// Bytes of the session, from what `receive` reads off the socket; none means the end. What the
    /// handshake has to say goes out by `send`.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut connection = self.connection();
        let mut cipher = [0; CHUNK];
        loop {
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that hung up without a word is gone as well.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            let count = receive(&mut cipher)?;
            let mut came = cipher.get(..count).unwrap_or_default();
            loop {
                connection.read_tls(&mut came)?;
                if let Err(error) = connection.process_new_packets() {
                    // The client is told by an alert, if it still listens.
                    let _ = drain(&mut connection, &mut send);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
                if came.is_empty() {
                    break;
                }
            }
            drain(&mut connection, &mut send)?;
        }
    }

    /// Encrypts as much of `bytes` as may wait, and sends it by `send`: how much that is. Nothing is
    /// taken while cipher text still waits.
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut connection = self.connection();
        if !drain(&mut connection, &mut send)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let record = bytes.get(..RECORD).unwrap_or(bytes);
        // Before the end of the handshake it waits inside, up to a limit.
        match connection.writer().write(record)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => {
                drain(&mut connection, &mut send)?;
                Ok(taken)
            }
        }
    }

    /// Sends cipher text that waits; whether none is left.
    pub(crate) fn flush(
        &self,
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        drain(&mut self.connection(), &mut send)
    }

    /// Whether cipher text waits.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.connection().wants_write()
    }

    /// Says the last word.
    pub(crate) fn close(&self, mut send: impl FnMut(&[u8]) -> io::Result<usize>) {
        let mut connection = self.connection();
        connection.send_close_notify();
        // Whoever does not read it is not owed it.
        let _ = drain(&mut connection, &mut send);
    }

    fn connection(&self) -> MutexGuard<'_, ServerConnection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what waits; whether none is left.
fn drain(
    connection: &mut ServerConnection,
    send: &mut impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<bool> {
    /// The socket, as rustls wants it.
    struct Out<'s, F>(&'s mut F);

    impl<F: FnMut(&[u8]) -> io::Result<usize>> Write for Out<'_, F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            (self.0)(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    while connection.wants_write() {
        match connection.write_tls(&mut Out(send)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
