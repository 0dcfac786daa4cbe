//! `cargo xtask test`: unit tests here, guest tests where KVM works, one count for all.
//!
//! ```text
//!   cargo test --workspace  (nextest where it is installed)          on this machine
//!   every fuzz target for a few seconds                              on this machine
//!   the test programs of tests/, guest tests included      ──► in two labs side by side,
//!                                                              or here when KVM is good
//!   "N passed, N failed, N skipped"                            the last line
//! ```
mod count;
mod lanes;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ::tests::artifacts::{self, Flavour, run_as_root};
use ::tests::debian;
use ::tests::fds::open_rw;
use ::tests::host_kvm;
use anyhow::Result;
use clap::Args;

use crate::fuzz;
use crate::lab;
use crate::project::{self, Inits, cargo};
use crate::root;
use crate::shell::{has, install_missing, output, run as sh, step};
use count::{Count, Tee, count};
use lanes::{Work, watched};

/// Test programs that need a monitor, a paused machine, or a guest of a few bytes: any KVM will do.
const WITHOUT_GUEST: &[&str] = &[
    "bad_clients-",
    "bad_input-",
    "by_line-",
    "clients-",
    "compat-",
    "ctl-",
    "ctl_terminal-",
    "fds-",
    "goes_on-",
    "handed-",
    "image_chain-",
    "interop-",
    "killed-",
    "open_hook-",
    "open_hook_trouble-",
    "packages-",
    "restart-",
    "rights-",
    "schema_consumers-",
    "seal-",
    "sealed_commands-",
    "signals-",
    "snapshots-",
    "soak-",
    "starved-",
    "table-",
    "tls-",
];

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only guest tests whose name contains this; no unit tests.
    filter: Option<String>,
    /// Tests another program instead of sesame, such as qemu-system-x86_64.
    #[arg(long, value_name = "PROGRAM")]
    vmm: Option<PathBuf>,
    /// Only the tests that need no stock kernel.
    #[arg(long)]
    host_only: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut total = Count::default();
    if options.filter.is_none() {
        total.add(unit_tests()?);
        total.add(fuzz_targets()?);
    }
    total.add(guest_tests(options)?);
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    Ok(if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything that needs no guest. Guest tests count as ignored here; they have their turn.
fn unit_tests() -> Result<Count> {
    // The judges of images, and who else writes them.
    install_missing(&[("qemu-img", "qemu-utils"), ("qemu-io", "qemu-utils")])?;
    step("unit tests");
    let mut command = cargo();
    if has("cargo-nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
        command.args(["--status-level", "fail", "--final-status-level", "fail"]);
        command.env("NEXTEST_SHOW_PROGRESS", "none");
    } else {
        command.args([
            "test",
            "-q",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    let mut tee = Tee::new(true);
    watched(&mut command, &mut tee)?;
    let mut count = count(&tee.text());
    count.skipped = 0;
    // A build that fails runs no test and must not pass for "none failed".
    if count.passed + count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// Every fuzz target, shortly; each is one test.
fn fuzz_targets() -> Result<Count> {
    let (passed, failed) = fuzz::short()?;
    Ok(Count {
        passed,
        failed,
        skipped: 0,
    })
}

/// The programs of `tests/tests`, each where its tests can run.
fn guest_tests(options: &Options) -> Result<Count> {
    install_missing(&[
        ("python3", "python3-venv"),
        ("socat", "socat"),
        ("tmux", "tmux"),
        ("passt", "passt"),
        ("swtpm", "swtpm"),
        ("mmdebstrap", "mmdebstrap"),
        ("mkfs.ext4", "e2fsprogs"),
        ("unshare", "util-linux"),
        ("xz", "xz-utils"),
        ("lspci", "pciutils"),
    ])?;
    let inits = project::inits()?;
    let environment = environment(options, &inits)?;
    let mut programs = test_programs()?;
    if options.host_only {
        programs.retain(|program| stays_here(program));
    }
    let place = host_kvm::place()?;
    step(&place.to_string());
    let filter = options.filter.as_deref();
    let lab = lab::spec(&inits)?;
    Work::new(programs, filter, &environment, place, stays_here, lab).run()
}

/// What the test programs are told: the VMM, the guest's files, the foreign clients.
fn environment(options: &Options, inits: &Inits) -> Result<BTreeMap<String, String>> {
    let vmm = match &options.vmm {
        Some(program) => program.clone(),
        None => project::sesame("lab")?,
    };
    let mut environment = lab::environment();
    if !options.host_only {
        let guest = project::guest_files(inits, Flavour::Cloud)?;
        let newest = project::guest_files(inits, Flavour::Newest)?;
        let ovmf = artifacts::ovmf()?;
        for (key, path) in [
            ("SESAME_OVMF_CODE", ovmf.code),
            ("SESAME_OVMF_VARS", ovmf.variables),
            ("SESAME_EFI_STUB", artifacts::efi_stub()?),
            ("SESAME_DEBIAN", debian::disk()?),
            ("SESAME_GUEST_KERNEL", guest.kernel),
            ("SESAME_GUEST_INITRD", guest.initrd),
            ("SESAME_NEWEST_KERNEL", newest.kernel),
            ("SESAME_NEWEST_INITRD", newest.initrd),
        ] {
            environment.insert(key.to_owned(), path.display().to_string());
        }
    }
    // A failed test shows its error; where in the harness it was made helps nobody.
    environment.insert("RUST_LIB_BACKTRACE".to_owned(), "0".to_owned());
    for (key, path) in [
        ("SESAME_VMM", &vmm),
        ("SESAME_PYTHON", &python()?),
        ("SESAME_TYPESCRIPT", &typescript()?),
        ("SESAME_QUICKTYPE", &quicktype()?),
        ("SESAME_GO", &go()?),
        ("SESAME_QAPI_CLIENT", &qapi_client()?),
        ("SESAME_OPEN_HOOK", &project::tool("sesame-open-hook")?),
        ("SESAME_CTL", &project::tool("sesame-ctl")?),
        ("SESAME_LIBVIRT", &libvirt()?),
    ] {
        environment.insert(key.to_owned(), path.display().to_string());
    }
    Ok(environment)
}

/// Whether a program's tests do without a guest: any KVM will do, and this machine is quicker.
fn stays_here(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let without_guest = WITHOUT_GUEST.iter().any(|prefix| name.starts_with(prefix));
    without_guest && open_rw(Path::new("/dev/kvm")).is_ok()
}

/// A virtual environment with what tests/interop needs, made once per set of requirements.
fn python() -> Result<PathBuf> {
    let requirements = root().join("tests/interop/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let folder = artifacts::cache()?.join("python");
    let stamp = folder.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(folder.join("bin/python"));
    }
    step("making a Python environment for the foreign clients");
    let make = || {
        sh(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder))
    };
    // Debian's Python comes without the other half of its venv module.
    make().or_else(|_| {
        run_as_root(&["apt-get", "install", "-y", "-qq", "python3-venv"]).and_then(|()| make())
    })?;
    sh(Command::new(folder.join("bin/pip"))
        .args(["install", "-q", "--disable-pip-version-check", "-r"])
        .arg(&requirements))?;
    fs::write(stamp, wanted)?;
    Ok(folder.join("bin/python"))
}

/// The program of tests/interop that uses the Go client, built.
fn go() -> Result<PathBuf> {
    install_missing(&[("go", "golang-go")])?;
    step("building the Go client");
    let program = artifacts::cache()?.join("sesame_go");
    let source = root().join("tests/interop/sesame_go");
    let mut build = Command::new("go");
    sh(build
        .args(["build", "-o"])
        .arg(&program)
        .current_dir(source))?;
    Ok(program)
}

/// The program of tests/interop that uses the crate `qapi`, built with dependencies of its own.
fn qapi_client() -> Result<PathBuf> {
    step("building the client by the crate qapi");
    let folder = artifacts::cache()?.join("qapi_client");
    let manifest = root().join("tests/interop/qapi_client/Cargo.toml");
    sh(cargo()
        .args(["build", "-q", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&folder))?;
    Ok(folder.join("debug/qapi_client"))
}

/// The TypeScript client, built outside of the repository.
fn typescript() -> Result<PathBuf> {
    install_missing(&[("node", "nodejs"), ("npm", "npm")])?;
    let folder = artifacts::cache()?.join("typescript");
    fs::create_dir_all(&folder)?;
    let client = root().join("clients/typescript");
    for part in ["package.json", "tsconfig.json", "src"] {
        sh(Command::new("cp")
            .arg("-rT")
            .arg(client.join(part))
            .arg(folder.join(part)))?;
    }
    packages(&folder, "fetching the TypeScript compiler")?;
    step("building the TypeScript client");
    let compiler = folder.join("node_modules/.bin/tsc");
    sh(Command::new(compiler).current_dir(&folder))?;
    Ok(folder)
}

/// A folder with quicktype, which makes types of a JSON Schema.
fn quicktype() -> Result<PathBuf> {
    install_missing(&[("node", "nodejs"), ("npm", "npm")])?;
    let folder = artifacts::cache()?.join("quicktype");
    fs::create_dir_all(&folder)?;
    let package = root().join("tests/interop/quicktype/package.json");
    sh(Command::new("cp").arg(package).arg(&folder))?;
    packages(&folder, "fetching quicktype")?;
    Ok(folder)
}

/// What the `package.json` of a folder asks for, fetched once per version of that file.
fn packages(folder: &Path, what: &str) -> Result<()> {
    let wanted = fs::read_to_string(folder.join("package.json"))?;
    let stamp = folder.join("installed.json");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
        step(what);
        let install = ["install", "--silent", "--ignore-scripts"];
        sh(Command::new("npm").args(install).current_dir(folder))?;
        fs::write(stamp, wanted)?;
    }
    Ok(())
}

/// The distribution's libvirt, unpacked outside of the repository.
fn libvirt() -> Result<PathBuf> {
    let folder = artifacts::cache()?.join("libvirt");
    let fetch = root().join("tests/interop/libvirt/fetch");
    sh(Command::new(fetch).arg(&folder))?;
    Ok(folder)
}

/// The programs with guest tests, built.
fn test_programs() -> Result<Vec<PathBuf>> {
    step("building the guest tests");
    let text = output(cargo().args([
        "test",
        "-q",
        "-p",
        "tests",
        "--tests",
        "--no-run",
        "--message-format=json",
    ]))?;
    let mut programs: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .collect();
    programs.sort();
    Ok(programs)
}
