//! The calls a test can make of the guest. One table, so that an unknown call is told what exists.
//!
//! ```text
//!   line ─► answer ─► CALLS[name](arguments) ─► {"id":..,"return":..} | {"id":..,"error":".."}
//! ```
mod cpu;
mod dhcp;
pub(crate) mod disk;
mod files;
mod ledger;
mod memory;
mod net;
mod pci;
pub(crate) mod system;
mod transfer;

use std::io;

use serde_json::{Value, json};

type Call = fn(&Arguments<'_>) -> io::Result<Value>;

const CALLS: &[(&str, Call)] = &[
    ("ping", |_| Ok(json!("pong"))),
    ("mount", files::mount),
    ("mount-share", files::mount_share),
    ("unmount", files::unmount),
    ("write-file", files::write),
    ("read-file", files::read),
    ("disks", |_| disk::list()),
    ("disk-wait", disk::wait),
    ("disk-wait-gone", disk::wait_gone),
    ("disk-write", disk::write_pattern),
    ("disk-verify", disk::verify_pattern),
    ("disk-discard", disk::discard),
    ("disk-zero", disk::zero),
    ("ledger-start", ledger::start),
    ("ledger-count", ledger::count),
    ("ledger-stop", ledger::stop),
    ("cards", |_| net::list()),
    ("card-wait", net::wait),
    ("card-wait-gone", net::wait_gone),
    ("card-wait-carrier", net::wait_carrier),
    ("card-up", net::up),
    ("card-address", net::set_address),
    ("card-dhcp", dhcp::ask),
    ("card-channels", net::channels),
    ("card-set-channels", net::set_channels),
    ("card-spread", net::spread),
    ("card-set-spread", net::set_spread),
    ("vsock-wait", transfer::wait_vsock),
    ("send", transfer::send),
    ("receive", transfer::receive),
    ("pour", transfer::pour),
    ("ask-often", transfer::ask_often),
    ("port-write", files::port_write),
    ("port-read", files::port_read),
    ("run", system::run),
    ("kernel", |_| Ok(json!(system::kernel_release()))),
    ("cmdline", |_| files::read_proc("/proc/cmdline")),
    ("cpus", |_| Ok(json!(system::cpus()))),
    ("cpu-online", cpu::online),
    ("cpu-gone", cpu::gone),
    ("memory", |_| system::memory()),
    ("memory-wait", memory::wait),
    ("memory-touch", memory::touch),
    ("time", |_| system::time()),
    ("dmesg", system::dmesg),
    ("warnings", |_| system::warnings()),
    ("pci", |_| pci::functions()),
    ("pci-config", |_| pci::config()),
    ("modules", |_| system::modules()),
    ("reboot", |_| system::reboot()),
    ("poweroff", |_| system::poweroff()),
    ("crash", |_| system::crash()),
];

/// Answers one line of the protocol with one line.
pub(crate) fn answer(line: &str) -> Value {
    let request: Value = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return json!({"error": format!("not JSON: {error}")}),
    };
    let id = &request["id"];
    let name = request["call"].as_str().unwrap_or_default();
    let result = match CALLS.iter().find(|(known, _)| *known == name) {
        Some((_, call)) => call(&Arguments(&request)).map_err(|error| format!("{name}: {error}")),
        None => {
            let known: Vec<_> = CALLS.iter().map(|(name, _)| *name).collect();
            Err(format!("no call {name:?}; there are: {}", known.join(", ")))
        }
    };
    match result {
        Ok(value) => json!({"id": id, "return": value}),
        Err(error) => json!({"id": id, "error": error}),
    }
}

/// The members of a request, each asked for by name and type.
pub(crate) struct Arguments<'a>(&'a Value);

impl Arguments<'_> {
    pub(crate) fn text(&self, name: &str) -> io::Result<&str> {
        self.0[name]
            .as_str()
            .ok_or_else(|| io::Error::other(format!("argument {name}: want a string")))
    }

    pub(crate) fn number(&self, name: &str) -> io::Result<u64> {
        self.0[name]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("argument {name}: want a number")))
    }

    pub(crate) fn texts(&self, name: &str) -> io::Result<Vec<String>> {
        self.0[name]
            .as_array()
            .and_then(|list| {
                list.iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect()
            })
            .ok_or_else(|| io::Error::other(format!("argument {name}: want a list of strings")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_call_is_told_what_exists() {
        let reply = answer(r#"{"id":3,"call":"pong"}"#);
        assert_eq!(reply["id"], 3);
        assert!(reply["error"].as_str().unwrap().contains("ping"));
    }

    #[test]
    fn a_missing_argument_is_named() {
        let reply = answer(r#"{"id":4,"call":"read-file"}"#);
        assert!(reply["error"].as_str().unwrap().contains("path"));
    }

    #[test]
    fn a_line_that_is_not_json_gets_an_error_and_no_panic() {
        assert!(answer("hello")["error"].is_string());
    }
}
