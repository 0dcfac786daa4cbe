//! `cargo xtask demo`: the main job, shown as it goes.
//!
//! ```text
//!   here                              where KVM works (the lab, or here)
//!   build sesame, fetch Debian's      demo-inside = the manager:
//!   kernel, make the initrd     ──►   story.rs  opens files, starts sesame as nobody,
//!                                               drives it over the monitor socket
//!                                     show.rs   → what is said, ← what comes back
//! ```
//!
//! `story.rs` is written to be read: it is the program that a manager would be.
mod show;
mod story;

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use tests::artifacts::Flavour;
use tests::host_kvm::{self, Place};

use crate::lab;
use crate::project;
use crate::shell::{install_missing, step};

/// Many times what the story takes in the lab, for a busy machine.
const STORY_TIME: Duration = Duration::from_secs(300);

#[derive(Args)]
pub(crate) struct Options {
    /// Another program in place of sesame, such as qemu-system-x86_64.
    #[arg(long, value_name = "PROGRAM")]
    vmm: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct InsideOptions {
    #[arg(long)]
    vmm: PathBuf,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    /// Colours, where the output ends on a terminal.
    #[arg(long)]
    colour: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install_missing(&[("mkfs.ext4", "e2fsprogs"), ("xz", "xz-utils")])?;
    let vmm = match &options.vmm {
        Some(program) => program.clone(),
        None => project::sesame("lab")?,
    };
    let inits = project::inits()?;
    let guest = project::guest_files(&inits, Flavour::Cloud)?;
    let start = Instant::now();
    let place = host_kvm::place()?;
    step(&place.to_string());
    let colour = io::IsTerminal::is_terminal(&io::stdout());
    let code = match place {
        Place::Host => run_inside(&InsideOptions {
            vmm,
            kernel: guest.kernel,
            initrd: guest.initrd,
            colour,
        })?,
        Place::Lab(_) => {
            let mut argv = vec![env::current_exe()?.into_os_string(), "demo-inside".into()];
            for (option, path) in [
                ("--vmm", vmm),
                ("--kernel", guest.kernel),
                ("--initrd", guest.initrd),
            ] {
                argv.extend([option.into(), path.into_os_string()]);
            }
            argv.extend(colour.then(|| "--colour".into()));
            let status = lab::boot(&lab::spec(&inits)?)?.run(
                &argv,
                &env::current_dir()?,
                &lab::environment(),
                STORY_TIME,
                &mut io::stdout(),
            )?;
            ExitCode::from(u8::try_from(status).unwrap_or(1))
        }
    };
    step(&format!(
        "the demo took {} s after the build",
        start.elapsed().as_secs()
    ));
    Ok(code)
}

pub(crate) fn run_inside(options: &InsideOptions) -> Result<ExitCode> {
    let show = show::Show::new(options.colour);
    story::tell(&show, &options.vmm, &options.kernel, &options.initrd)?;
    Ok(ExitCode::SUCCESS)
}
