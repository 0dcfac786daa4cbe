//! What `-fw_cfg`, `-boot` and `-nographic` put into the guest's fw_cfg.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, bail};
use devices::legacy::FwCfgFile;
use fdset::{Access, Door, Request, Role};

use crate::cli::Config;
use crate::cli::config::{FwCfgSource, FwCfgSpec};

/// The most bytes of one file: it is held in memory as long as the machine lives.
const LONGEST: usize = 256 << 20;
/// How much is read at once.
const PIECE: usize = 1 << 20;

/// What a guest finds there beside what the machine knows of itself.
pub(super) fn files(door: &Door, config: &Config) -> Result<Vec<FwCfgFile>> {
    let mut files = waits(config);
    for spec in &config.fw_cfg {
        let bytes = bytes(door, spec).with_context(|| format!("-fw_cfg {}", spec.name))?;
        files.push(FwCfgFile {
            name: spec.name.clone(),
            bytes,
        });
    }
    Ok(files)
}

/// How long a firmware waits; the names and the numbers' widths are those that firmware knows.
fn waits(config: &Config) -> Vec<FwCfgFile> {
    let file = |name: &str, bytes: Vec<u8>| FwCfgFile {
        name: name.to_owned(),
        bytes,
    };
    let boot = &config.boot;
    let fail = boot.fail_wait.map(|time| time.to_le_bytes().to_vec());
    let splash = boot.splash_time.map(|time| time.to_le_bytes().to_vec());
    let fail = fail.map(|bytes| file("etc/boot-fail-wait", bytes));
    let splash = splash.map(|bytes| file("etc/boot-menu-wait", bytes));
    fail.into_iter().chain(splash).collect()
}

fn bytes(door: &Door, spec: &FwCfgSpec) -> Result<Vec<u8>> {
    let name = match &spec.source {
        FwCfgSource::Text(text) => return Ok(text.as_bytes().to_vec()),
        FwCfgSource::File(name) => name,
    };
    read_blob(door, name, &format!("-fw_cfg {}", spec.name), LONGEST)
}

/// The whole of a file for the guest, at most `longest` bytes; `reason` is who wants it.
pub(super) fn read_blob(door: &Door, name: &str, reason: &str, longest: usize) -> Result<Vec<u8>> {
    let request = Request::new(name, Access::ReadOnly, Role::Firmware, reason);
    let file = File::from(fdset::open(door, &request)?.into_parts().0);
    // By offset: that of a passed fd is the manager's, and may stand anywhere.
    let mut bytes = Vec::new();
    loop {
        let done = bytes.len();
        bytes.resize(done.saturating_add(PIECE), 0);
        let read = file.read_at(bytes.get_mut(done..).unwrap_or_default(), done as u64);
        let read = read.with_context(|| format!("cannot read '{name}'"))?;
        bytes.truncate(done + read);
        if bytes.len() > longest {
            bail!("'{name}' has more than the {longest} bytes that it can have here");
        }
        if read == 0 {
            return Ok(bytes);
        }
    }
}
