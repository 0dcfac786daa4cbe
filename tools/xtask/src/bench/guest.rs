//! A guest with one CPU and as little else as there can be: how soon its init runs, and what the
//! VMM needs beyond the guest's RAM.
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::fds::{proportional_size, proportional_size_of_large};
use tests::vm::{Builder, Vmm};

use super::InsideOptions;
use super::monitor::mebibytes;
use super::table::Row;

/// The guest's RAM is the one mapping that is at least so large.
const RAM: u64 = 200 << 20;

pub(super) fn measure(options: &InsideOptions) -> Result<Vec<Row>> {
    let pair = [Vmm::at(&options.vmm), Vmm::at(super::on_path(super::PEER)?)];
    let mut boot = [Vec::new(), Vec::new()];
    let mut size = [Vec::new(), Vec::new()];
    for _ in 0..options.boots {
        for (index, vmm) in pair.iter().enumerate() {
            let sample = sample(vmm, options).with_context(|| vmm.program.display().to_string())?;
            boot[index].push(sample[0]);
            size[index].push(sample[1]);
        }
    }
    Ok(vec![
        Row::new("start to the guest's init", "s", boot, 0.55),
        Row::new("size (PSS) beyond the guest's RAM", "MiB", size, 1.0 / 10.0),
    ])
}

fn sample(vmm: &Vmm, options: &InsideOptions) -> Result<[f64; 2]> {
    let start = Instant::now();
    let mut vm = Builder::new(vmm.clone())
        .boots(&options.kernel)
        .initrd(&options.initrd)
        .start()?;
    let ready = vm.guest_port().wait_ready()?;
    let boot = start
        .elapsed()
        .saturating_sub(since_init(&ready))
        .as_secs_f64();
    let whole = proportional_size(vm.pid())?;
    let ram = proportional_size_of_large(vm.pid(), RAM)?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    Ok([boot, mebibytes(whole.saturating_sub(ram))])
}

/// How long before its `ready` event the guest's init began: it loads modules in between, which
/// is the same work in any VMM.
fn since_init(ready: &Value) -> Duration {
    let clock = |key: &str| Duration::from_nanos(ready[key].as_u64().unwrap_or(0));
    clock("uptime-ns").saturating_sub(clock("init-ns"))
}
