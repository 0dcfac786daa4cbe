//! A guest with one CPU and as little else as there can be: how soon its init runs, and what the
//! VMM needs beyond the guest's RAM.
use std::time::{Duration, Instant};

use ::tests::fds::{proportional_size, proportional_size_of_large};
use ::tests::vm::{Builder, Vmm};
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::InsideOptions;
use super::mebibytes;
use super::table::{Bar, Row};

/// The guest's RAM is the one mapping that is at least so large.
const RAM: u64 = 200 << 20;

/// One boot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Seconds from the start of the VMM to the start of the guest's init.
    boot: f64,
    /// MiB beyond the guest's RAM.
    size: f64,
}

/// Takes turns with both programs; `sample` boots one of them once.
pub(super) fn measure(
    pair: &[Vmm; 2],
    boots: usize,
    mut sample: impl FnMut(&Vmm) -> Result<Sample>,
) -> Result<Vec<Row>> {
    let mut boot = [Vec::new(), Vec::new()];
    let mut size = [Vec::new(), Vec::new()];
    for _ in 0..boots {
        for (index, vmm) in pair.iter().enumerate() {
            let sample = sample(vmm).with_context(|| vmm.program.display().to_string())?;
            boot[index].push(sample.boot);
            size[index].push(sample.size);
        }
    }
    Ok(vec![
        Row::new("start to the guest's init", "s", boot, Bar::Share(0.55)),
        Row::new(
            "size (PSS) beyond the guest's RAM",
            "MiB",
            size,
            Bar::Share(1.0 / 10.0),
        ),
    ])
}

/// Boots a guest once.
pub(super) fn sample(options: &InsideOptions) -> Result<Sample> {
    let start = Instant::now();
    let mut vm = Builder::new(Vmm::at(&options.vmm))
        .boots(&options.kernel)
        .initrd(&options.initrd)
        .start()?;
    let ready = vm.guest_port().wait_ready()?;
    let boot = start.elapsed().saturating_sub(since_init(&ready));
    let whole = proportional_size(vm.pid())?;
    let ram = proportional_size_of_large(vm.pid(), RAM)?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    Ok(Sample {
        boot: boot.as_secs_f64(),
        size: mebibytes(whole.saturating_sub(ram)),
    })
}

/// How long before its `ready` event the guest's init began: it loads modules in between, which
/// is the same work in any VMM.
fn since_init(ready: &Value) -> Duration {
    let clock = |key: &str| Duration::from_nanos(ready[key].as_u64().unwrap_or(0));
    clock("uptime-ns").saturating_sub(clock("init-ns"))
}

impl Sample {
    pub(super) fn to_json(self) -> Value {
        json!({"boot": self.boot, "size": self.size})
    }

    /// Out of what the program in the lab has printed.
    pub(super) fn find(output: &str) -> Option<Self> {
        output.lines().find_map(|line| {
            let value: Value = serde_json::from_str(line).ok()?;
            Some(Self {
                boot: value["boot"].as_f64()?,
                size: value["size"].as_f64()?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_survives_the_way_out_of_the_lab() {
        let sample = Sample {
            boot: 2.5,
            size: 3.25,
        };
        let output = format!("some other line\n{}\n", sample.to_json());
        assert_eq!(Sample::find(&output), Some(sample));
        assert_eq!(Sample::find("some other line"), None);
    }
}
