//! `cargo xtask soak`: very many rejected requests that carry fds, and what the VMM holds before and
//! after. The short run of the same test is in `cargo xtask test`.
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::project::{self, cargo};
use crate::shell::run as sh;

#[derive(Args)]
pub(crate) struct Options {
    /// How many requests.
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// The profile of sesame.
    #[arg(long, default_value = "lab")]
    profile: String,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let vmm = project::sesame(&options.profile)?;
    sh(cargo()
        .args(["test", "-q", "-p", "tests", "--test", "soak", "--"])
        .args(["--ignored", "--nocapture"])
        .env("SESAME_VMM", vmm)
        .env("SESAME_SOAK", options.count.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
