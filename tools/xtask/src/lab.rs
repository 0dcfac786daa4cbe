//! `cargo xtask lab -- CMD`: one command in the lab, or, for the other tasks, several in one boot.
use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tests::lab::{Lab, LabSpec};

use crate::project::{self, Inits};
use crate::shell::{install_missing, step};

#[derive(Args)]
pub(crate) struct Options {
    /// Memory of the lab machine, in MiB.
    #[arg(long, default_value_t = 4096)]
    mem: u32,
    /// CPUs of the lab machine; with several, a stock kernel may die (see `spec`).
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Shares a folder writable (the current one always is).
    #[arg(long, value_name = "DIR")]
    rw: Vec<PathBuf>,
    /// Gives up after so many seconds.
    #[arg(long, default_value_t = 600, value_name = "S")]
    timeout: u64,
    /// Adds an IOMMU with interrupt remapping, for device passthrough.
    #[arg(long)]
    iommu: bool,
    /// One more QEMU argument for the lab machine, such as a device to pass through.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let inits = project::inits()?;
    let mut spec = spec(&inits)?;
    spec.memory_mib = options.mem;
    spec.cpus = options.cpus;
    for folder in &options.rw {
        spec.shares.push(folder.canonicalize()?);
    }
    if options.iommu {
        let iommu = ["-device", "intel-iommu,intremap=on"];
        spec.devices.extend(iommu.map(str::to_owned));
    }
    spec.devices.extend(options.qemu.iter().cloned());
    let mut lab = boot(&spec)?;
    let status = lab.run(
        &options.command,
        &env::current_dir()?,
        &environment(),
        Duration::from_secs(options.timeout),
        &mut io::stdout(),
    )?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// The lab as tests, demo and bench use it. It has one CPU: with more, TCG now and then runs an
/// instruction that another CPU has just patched, and Debian's kernels patch themselves all the
/// time (jump labels); they die of it, in the lab and in its guests.
pub(crate) fn spec(inits: &Inits) -> Result<LabSpec> {
    Ok(LabSpec {
        memory_mib: 4096,
        cpus: 1,
        shares: vec![env::current_dir()?],
        init: inits.lab.clone(),
        console: project::target()?.join("guests/lab-console"),
        devices: Vec::new(),
    })
}

/// How often a lab may be booted until it comes up.
const ATTEMPTS: u32 = 3;

/// Installs what the lab is made of, and boots it: once more where the emulator has crashed the
/// kernel, which happens now and then on a busy machine.
pub(crate) fn boot(spec: &LabSpec) -> Result<Lab> {
    install_missing(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("xz", "xz-utils"),
        ("ip", "iproute2"),
    ])?;
    for attempt in 1..ATTEMPTS {
        step("booting the lab");
        match Lab::boot(spec) {
            Ok(lab) => return Ok(lab),
            Err(error) => step(&format!("attempt {attempt} of {ATTEMPTS}: {error:#}")),
        }
    }
    step("booting the lab");
    Lab::boot(spec)
}

/// Our own environment, for the command in the lab, where KVM is good.
pub(crate) fn environment() -> BTreeMap<String, String> {
    env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .chain([("SESAME_KVM".to_owned(), "host".to_owned())])
        .collect()
}
