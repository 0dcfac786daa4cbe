//! Certificates and a key: `object-add`, `-object` with `tls-creds-x509`.
//!
//! They are read here, once, by the one open; what is left is what a monitor speaks TLS with.

use fdset::Door;
use monitor::{TlsServer, TlsSpec};
use qapi_schema::QmpError;
use qapi_schema::qom::{QCryptoTLSCredsEndpoint, TlsCredsX509Properties};

use crate::resolve::unmet;
use crate::secret;

/// Where the texts come from: names that `fdset::open` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCredsSpec {
    /// The server's certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Who signs the certificates of clients; `None`: they need none.
    pub authority: Option<String>,
}

impl TlsCredsSpec {
    /// What the properties mean, every default applied.
    ///
    /// # Errors
    /// Something cannot be had, or there is neither a name nor a directory for it.
    pub fn new(properties: TlsCredsX509Properties) -> Result<Self, QmpError> {
        unmet::refuse(&[
            (
                properties.endpoint == Some(QCryptoTLSCredsEndpoint::Client),
                "endpoint=client",
                "TLS is spoken with clients only",
            ),
            (
                properties.priority.is_some(),
                "priority",
                "the ciphers are those of TLS 1.3 and the good ones of 1.2",
            ),
            (
                properties.passwordid.is_some(),
                "passwordid",
                "a key comes as it is; hand it in as an fd of a memfd",
            ),
        ])?;
        let dir = properties.dir.as_deref();
        let named = |name: Option<String>, property, file| {
            let in_dir = || dir.map(|dir| format!("{dir}/{file}"));
            name.or_else(in_dir).ok_or_else(|| {
                QmpError::generic(format!(
                    "Parameter '{property}' is missing: name a file, or with 'dir' the directory \
                     with {file}"
                ))
            })
        };
        let authority = if properties.verify_peer.unwrap_or(true) {
            Some(named(properties.authority, "authority", "ca-cert.pem")?)
        } else {
            None
        };
        Ok(Self {
            certificate: named(properties.certificate, "certificate", "server-cert.pem")?,
            key: named(properties.key, "key", "server-key.pem")?,
            authority,
        })
    }

    /// Every name that is opened, in this order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let both = [self.certificate.as_str(), self.key.as_str()];
        both.into_iter().chain(self.authority.as_deref())
    }

    /// Reads all of it for the object `id`.
    ///
    /// # Errors
    /// A file cannot be had, or is not what it should be.
    pub fn open(&self, door: &Door, id: &str) -> Result<TlsServer, QmpError> {
        let read = |name: &str| secret::content(door, id, name);
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let authority = self.authority.as_deref().map(read).transpose()?;
        let spec = TlsSpec {
            certificate: &certificate,
            key: &key,
            authority: authority.as_deref(),
        };
        TlsServer::new(&spec).map_err(|error| {
            let error = QmpError::from_error(&error);
            QmpError::generic(format!("object '{id}': {error}"))
        })
    }
}
