//! `sesame`: a virtual machine monitor that speaks QMP and opens nothing it was not handed.
//!
//! Arguments in, exit status out; everything between is in the library.

use std::process::ExitCode;

use fdset::Inherited;
use vmm_core::cli::{self, Config, Outcome};
use vmm_core::launch::{Activation, launch, read_config};
use vmm_core::messages::{self, MessageStyle};
use vmm_core::process::Daemon;

fn main() -> ExitCode {
    // Before anything is opened: what is there now was handed in, and nothing later was.
    let inherited = Inherited::at_start();
    let config = match cli::parse(std::env::args_os().skip(1), |name| {
        read_config(name).map_err(|error| format!("{error:#}"))
    }) {
        Ok(Outcome::Run(config)) => *config,
        Ok(Outcome::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            messages::report(error);
            return ExitCode::FAILURE;
        }
    };
    messages::start(MessageStyle {
        timestamp: config.messages.timestamp,
        guest: config
            .messages
            .guest_name
            .then(|| config.name.guest.clone())
            .flatten(),
    });
    run(config, inherited).unwrap_or_else(|error| {
        messages::report(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn run(config: Config, inherited: Inherited) -> anyhow::Result<ExitCode> {
    let activation = Activation::from_environment()?;
    // Before the first thread: a fork takes only the one that calls it.
    let daemon = if config.daemonize {
        Some(Daemon::fork()?)
    } else {
        None
    };
    let launched = launch(config, activation, inherited)?;
    if let (Some(daemon), Some(null)) = (daemon, &launched.null) {
        daemon.ready(null)?;
    }
    Ok(launched.run()?)
}
