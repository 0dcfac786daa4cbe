//! The test's handle on the guest: the other end of `org.sesame.guest`.
//!
//! The protocol and its calls are described in `tests/guest/src/main.rs` and `agent/mod.rs`.
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lines::Lines;

/// From power-on to a guest that answers; many times what it takes even in a busy lab.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// The longest call waits this long for a disk, and then some.
const CALL_TIME: Duration = Duration::from_secs(120);

/// A guest that can be asked.
#[derive(Debug)]
pub struct Guest {
    port: UnixStream,
    lines: Lines,
    next_id: u64,
}

impl Guest {
    /// A guest whose agent port ends in `port`.
    pub fn new(port: UnixStream) -> Result<Self> {
        Ok(Self {
            lines: Lines::new(&port)?,
            port,
            next_id: 1,
        })
    }

    /// Waits for the guest to come up (again); returns its `ready` event.
    pub fn wait_ready(&mut self) -> Result<Value> {
        let deadline = Instant::now() + BOOT_TIME;
        loop {
            let message = self
                .message(deadline)
                .context("waiting for the guest to boot")?;
            if message["event"] == "ready" {
                return Ok(message);
            }
        }
    }

    /// Makes one of the calls of `tests/guest/src/agent/mod.rs`.
    pub fn call(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"id": id, "call": name});
        for (key, value) in arguments.as_object().into_iter().flatten() {
            request[key] = value.clone();
        }
        writeln!(self.port, "{request}")?;
        let reply = self
            .message(Instant::now() + CALL_TIME)
            .with_context(|| format!("asking the guest: {request}"))?;
        ensure!(
            reply["id"] == id,
            "the guest answers something else: {reply}"
        );
        match reply["error"].as_str() {
            Some(error) => bail!("in the guest: {error}"),
            None => Ok(reply["return"].clone()),
        }
    }

    /// A call without arguments whose answer is text.
    pub fn text(&mut self, name: &str) -> Result<String> {
        let value = self.call(name, json!({}))?;
        let text = value
            .as_str()
            .with_context(|| format!("{name} answers {value}"))?;
        Ok(text.to_owned())
    }

    /// The name of the disk with that serial, once it is there.
    pub fn disk(&mut self, serial: &str) -> Result<String> {
        let name = self.call("disk-wait", json!({"serial": serial, "seconds": 60}))?;
        Ok(name.as_str().context("a disk has a name")?.to_owned())
    }

    /// Waits until the disk with that serial is so many bytes long.
    pub fn disk_of_size(&mut self, serial: &str, size: u64) -> Result<()> {
        let deadline = Instant::now() + CALL_TIME;
        while Instant::now() < deadline {
            let disks = self.call("disks", json!({}))?;
            let ours = |disk: &&Value| disk["serial"] == serial && disk["size"] == size;
            if disks
                .as_array()
                .is_some_and(|all| all.iter().any(|disk| ours(&disk)))
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("disk '{serial}' does not become {size} bytes long");
    }

    /// Waits until no disk has that serial.
    pub fn disk_gone(&mut self, serial: &str) -> Result<()> {
        self.call("disk-wait-gone", json!({"serial": serial, "seconds": 60}))?;
        Ok(())
    }

    fn message(&mut self, deadline: Instant) -> Result<Value> {
        match self.lines.next(deadline)? {
            Some(line) => serde_json::from_str(&line).with_context(|| format!("not JSON: {line}")),
            None => bail!("the VMM closed the guest's port"),
        }
    }
}
