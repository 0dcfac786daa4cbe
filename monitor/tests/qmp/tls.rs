//! A monitor behind TLS, with clients that shake hands, do not, or stop in the middle.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use monitor::{Endpoint, MonitorSpec, TlsError, TlsServer, TlsSpec};
use qapi_schema::{Event, MonitorId};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::stage::{GREETING, Stage};

const AUTHORITY: &[u8] = include_bytes!("../tls/ca-cert.pem");
const SERVER: (&[u8], &[u8]) = (
    include_bytes!("../tls/server-cert.pem"),
    include_bytes!("../tls/server-key.pem"),
);
const CLIENT: (&[u8], &[u8]) = (
    include_bytes!("../tls/client-cert.pem"),
    include_bytes!("../tls/client-key.pem"),
);
const STRANGER: (&[u8], &[u8]) = (
    include_bytes!("../tls/stranger-cert.pem"),
    include_bytes!("../tls/stranger-key.pem"),
);

type Pair = (&'static [u8], &'static [u8]);

fn server(verifies: bool) -> TlsServer {
    let spec = TlsSpec {
        certificate: SERVER.0,
        key: SERVER.1,
        authority: verifies.then_some(AUTHORITY),
    };
    TlsServer::new(&spec).expect("credentials")
}

/// Our end of a connection to a new monitor behind TLS.
fn connection(stage: &Stage, verifies: bool) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut spec = MonitorSpec::new(MonitorId(0), Endpoint::Stream(ours.into()));
    spec.tls = Some(server(verifies));
    stage.server.add_monitor(spec).expect("a monitor");
    let timeout = Some(std::time::Duration::from_secs(20));
    theirs.set_read_timeout(timeout).expect("a timeout");
    theirs
}

type Client = BufReader<StreamOwned<ClientConnection, UnixStream>>;

fn client(socket: UnixStream, shows: Option<Pair>) -> Client {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(AUTHORITY).expect("a certificate"))
        .expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match shows {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
            builder
                .with_client_auth_cert(vec![certificate], key)
                .expect("a pair")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    BufReader::new(StreamOwned::new(connection, socket))
}

fn line(client: &mut Client) -> io::Result<String> {
    let mut line = String::new();
    client.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn ask(client: &mut Client, request: &str) -> String {
    client
        .get_mut()
        .write_all(request.as_bytes())
        .expect("sent");
    line(client).expect("an answer")
}

fn negotiated(client: &mut Client) {
    assert_eq!(line(client).expect("a greeting"), GREETING);
    assert_eq!(
        ask(client, "{'execute': 'qmp_capabilities'}"),
        "{\"return\": {}}"
    );
}

#[test]
fn a_client_that_shows_its_certificate_has_a_session_like_any_other() {
    let stage = Stage::new();
    let socket = connection(&stage, true);
    let server = stage.run();
    let mut client = client(socket, Some(CLIENT));
    negotiated(&mut client);
    let schema = ask(&mut client, "{'execute': 'query-qmp-schema'}");
    assert!(schema == format!("{{\"return\": {}}}", qapi_schema::INTROSPECTION));
    server.events().emit(Event::Stop);
    assert!(line(&mut client).expect("an event").contains("STOP"));
    server.shutdown();
    assert_eq!(line(&mut client).expect("the last word"), "");
}

#[test]
fn who_shows_nothing_is_served_where_nobody_is_verified_and_nowhere_else() {
    for (verifies, shows, served) in [
        (false, None, true),
        (false, Some(STRANGER), true),
        (true, None, false),
        (true, Some(STRANGER), false),
    ] {
        let stage = Stage::new();
        let mut client = client(connection(&stage, verifies), shows);
        let first = line(&mut client);
        assert_eq!(first.is_ok_and(|line| line == GREETING), served);
    }
}

#[test]
fn what_is_no_tls_ends_the_connection_and_nothing_else() {
    let stage = Stage::new();
    let plain = connection(&stage, false);
    let silent = connection(&stage, false);
    let half = connection(&stage, false);
    let good = connection(&stage, false);
    stage.run();
    let mut plain = plain;
    plain
        .write_all(b"{'execute': 'qmp_capabilities'}")
        .expect("sent");
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"{"), "nothing is said in the open");
    let mut half = half;
    half.write_all(&[0x16, 3, 1, 0]).expect("sent");
    drop(half);
    negotiated(&mut client(good, None));
    drop(silent);
}

#[test]
fn a_handshake_that_comes_byte_by_byte_is_one() {
    /// A socket that takes one byte at a time.
    struct Slow(UnixStream);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let room = buffer.len().min(1);
            self.0.read(&mut buffer[..room])
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(&bytes[..bytes.len().min(1)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let stage = Stage::new();
    let socket = connection(&stage, true);
    stage.run();
    let StreamOwned { conn, sock } = client(socket, Some(CLIENT)).into_inner();
    let mut slow = BufReader::new(StreamOwned::new(conn, Slow(sock)));
    let mut greeting = String::new();
    slow.read_line(&mut greeting).expect("a greeting");
    assert_eq!(greeting.trim_end(), GREETING);
}

#[test]
fn a_client_that_does_not_read_for_a_while_misses_nothing() {
    let stage = Stage::new();
    let socket = connection(&stage, false);
    let server = stage.run();
    let mut client = client(socket, None);
    negotiated(&mut client);
    for _ in 0..20_000 {
        server.events().emit(Event::Stop);
    }
    for _ in 0..20_000 {
        assert!(line(&mut client).expect("an event").contains("STOP"));
    }
    assert!(ask(&mut client, "{'execute': 'query-status'}").contains("played"));
}

#[test]
fn credentials_that_are_none_are_told_by_what_is_wrong() {
    let told = |certificate, key, authority| {
        let spec = TlsSpec {
            certificate,
            key,
            authority,
        };
        TlsServer::new(&spec).expect_err("wrong")
    };
    let text = b"no PEM";
    let what = |error| match error {
        TlsError::Pem { what, .. } => what,
        TlsError::Authority(_) => "authority",
        TlsError::Pair(_) => "pair",
    };
    assert_eq!(what(told(text, SERVER.1, None)), "certificate");
    assert_eq!(what(told(SERVER.0, text, None)), "key");
    assert_eq!(what(told(SERVER.0, SERVER.1, Some(text))), "CA certificate");
    assert_eq!(what(told(SERVER.0, CLIENT.1, None)), "pair");
}
