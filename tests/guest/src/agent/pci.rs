//! The machine's PCI functions as the guest's kernel found and set them up.
use std::fmt::Write as _;
use std::fs;
use std::io;

use serde_json::{Value, json};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Every PCI function: address, vendor and device, class, driver.
pub(super) fn functions() -> io::Result<Value> {
    let mut functions = Vec::new();
    for entry in fs::read_dir(DEVICES)?.flatten() {
        let attribute = |name: &str| {
            fs::read_to_string(entry.path().join(name))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let driver = fs::read_link(entry.path().join("driver"))
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        functions.push(json!({
            "address": entry.file_name().to_string_lossy(),
            "vendor": attribute("vendor"),
            "device": attribute("device"),
            "class": attribute("class"),
            "driver": driver,
        }));
    }
    functions.sort_by_key(|function| function["address"].to_string());
    Ok(Value::Array(functions))
}

/// The configuration space of every function, in the form that `lspci -xxxx` prints and reads.
pub(super) fn config() -> io::Result<Value> {
    let mut entries: Vec<_> = fs::read_dir(DEVICES)?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut text = String::new();
    for entry in entries {
        let address = entry.file_name().to_string_lossy().into_owned();
        let bytes = fs::read(entry.path().join("config"))?;
        let address = address.trim_start_matches("0000:");
        let mut dump = format!("{address} a function\n");
        for (row, bytes) in bytes.chunks(16).enumerate() {
            let _ = write!(dump, "{:02x}:", row * 16);
            for byte in bytes {
                let _ = write!(dump, " {byte:02x}");
            }
            dump.push('\n');
        }
        text.push_str(&dump);
        text.push('\n');
    }
    Ok(json!(text))
}
