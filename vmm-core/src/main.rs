//! `sesame`: a virtual machine monitor that speaks QMP and opens nothing it was not handed.
//!
//! Arguments in, exit status out; everything between is in the library.

use std::process::ExitCode;

use vmm_core::cli::{self, Parsed};
use vmm_core::launch::launch;
use vmm_core::process::{Daemon, Messages};

fn main() -> ExitCode {
    let config = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Run(config)) => *config,
        Ok(Parsed::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("sesame: {error}");
            return ExitCode::FAILURE;
        }
    };
    let messages = Messages::new(&config);
    messages.start_log();
    match run(config) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            messages.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(config: cli::Config) -> anyhow::Result<u8> {
    // Before the first thread: a fork takes only the one that calls it.
    let daemon = config.daemonize.then(Daemon::fork).transpose()?;
    let mut launched = launch(config)?;
    if let Some(daemon) = daemon {
        daemon.ready(&launched.vm.null()?)?;
    }
    let status = launched.vm.run(&mut launched.event_loop)?;
    Ok(u8::try_from(status).unwrap_or(1))
}
