//! A guest with one CPU and as little else as there can be: how soon its init runs, and what the
//! VMM needs beyond the guest's RAM.
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
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
    vm.guest()?;
    let boot = start.elapsed().as_secs_f64();
    let whole = proportional_size(vm.pid())?;
    let ram = proportional_size_of_large(vm.pid(), RAM)?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    Ok([boot, mebibytes(whole.saturating_sub(ram))])
}
