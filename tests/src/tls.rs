//! Certificates for tests, and a client that speaks TLS and is not ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Connects, negotiates, asks, and prints the answer.
const CLIENT: &str = r#"
import json, socket, ssl, sys
port, authority, *own = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
if own:
    context.load_cert_chain(*own)
with socket.create_connection(("127.0.0.1", int(port))) as plain:
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        lines = tls.makefile("r")
        assert "QMP" in json.loads(lines.readline())
        tls.sendall(b'{"execute": "qmp_capabilities"} {"execute": "query-status"}')
        lines.readline()
        print(tls.version(), lines.readline().strip())
"#;

/// A file of the test certificates: `ca-cert.pem`, and `NAME-cert.pem` with `NAME-key.pem` for
/// `server`, `client` and `stranger`.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../monitor/tests/tls")
        .join(name)
}

/// What Python's client is told at that port when it shows the certificate of `own`; an error where
/// it is told nothing.
///
/// # Errors
/// There is no session for it.
pub fn ask(port: u16, own: Option<&str>) -> Result<String> {
    let mut python = Command::new("python3");
    python.args(["-c", CLIENT, &port.to_string()]);
    python.arg(file("ca-cert.pem"));
    for kind in own
        .iter()
        .flat_map(|name| [format!("{name}-cert.pem"), format!("{name}-key.pem")])
    {
        python.arg(file(&kind));
    }
    let output = python.output().context("python3")?;
    let told = String::from_utf8(output.stdout)?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(told)
}
