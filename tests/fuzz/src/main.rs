//! Fuzz targets: every parser and every protocol, against anything that a client, a manager, an
//! image or a guest could send; each with an oracle of its own, not only "does not crash".
//!
//! ```text
//!   cargo xtask fuzz TARGET ─► built with coverage, libFuzzer in front ─┐
//!   cargo test -p fuzz ─► every seed of every target, as a plain test ──┼─► Target::run(bytes)
//!   fuzz TARGET FILE.. ─► these inputs, with a debugger at hand ────────┘         │
//!                            seeds/TARGET/*, checked in                 a panic is a finding
//! ```
//!
//! A target makes everything anew for each input, touches nothing outside the process, and leaves
//! nothing behind: `fds::Watch` counts. What a finding was goes into `seeds/TARGET/`, and a test
//! that says it in a sentence beside the code that was wrong.
//!
//! Read next: `targets` (what there is), `fds` (fds that can be told apart).
#![cfg_attr(fuzzing, no_main)]
#![expect(
    clippy::disallowed_methods,
    reason = "the fuzzer plays client, manager and guest: it makes the files that it hands in"
)]

mod board;
mod fds;
mod targets;

use targets::{TARGETS, Target};

/// The target of that name.
fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Prints the name of each target and what it is.
fn list() {
    for target in TARGETS {
        println!("{:10} {}", target.name, target.about);
    }
}

#[cfg(fuzzing)]
mod engine {
    use std::sync::OnceLock;

    use super::targets::Target;

    static TARGET: OnceLock<&'static Target> = OnceLock::new();

    // The engine owns the arguments, so the target comes by the environment.
    libfuzzer_sys::fuzz_target!(
        init: {
            let name = std::env::var("SESAME_FUZZ_TARGET").unwrap_or_default();
            let Some(target) = super::target(&name) else {
                super::list();
                std::process::exit(0);
            };
            TARGET.get_or_init(|| target);
        },
        |input: &[u8]| {
            if let Some(target) = TARGET.get() {
                (target.run)(input);
            }
        }
    );
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        list();
        return std::process::ExitCode::SUCCESS;
    };
    let Some(target) = target(&name) else {
        eprintln!("fuzz: there is no target '{name}'; without arguments all are listed");
        return std::process::ExitCode::FAILURE;
    };
    for file in arguments {
        match std::fs::read(&file) {
            Ok(input) => (target.run)(&input),
            Err(error) => {
                eprintln!("fuzz: {file}: {error}");
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    std::process::ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn every_target_takes_its_seeds_nothing_and_noise() {
        let _alone = crate::fds::alone();
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        let mut state = 1_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).to_le_bytes()[0]
        };
        for target in TARGETS {
            let folder = seeds.join(target.name);
            let files = fs::read_dir(&folder).unwrap_or_else(|error| {
                panic!("a target has seeds in {}: {error}", folder.display())
            });
            for file in files {
                let path = file.expect("a file").path();
                println!("{}", path.display());
                (target.run)(&fs::read(&path).expect("a seed"));
            }
            for length in 0..32 {
                let input: Vec<u8> = (0..length * 8).map(|_| noise()).collect();
                println!("{} {input:?}", target.name);
                (target.run)(&input);
            }
        }
    }
}
