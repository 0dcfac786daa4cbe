//! The first steps of process 1: kernel file systems, modules, and the way out.
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Where the initramfs keeps its modules; lists in it name them, dependencies first, each with what
/// it is told.
pub const MODULES: &str = "/modules";
/// The list of those that are loaded at once.
pub const AT_ONCE: &str = "order";
/// The list of those that are loaded when a test wants them.
pub const LATER: &str = "later";

/// Mounts `/proc`, `/sys` and `/dev` as a distribution's init would.
pub fn mount_kernel_filesystems() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_at(kind, kind, target, "")?;
    }
    Ok(())
}

/// Mounts `source` of type `kind` on `target`, making the folder first; already mounted is fine.
pub fn mount_at(kind: &str, source: &str, target: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let (flags, options) = match options.strip_prefix("ro,") {
        Some(rest) => (MsFlags::MS_RDONLY, rest),
        None => (MsFlags::empty(), options),
    };
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(io::Error::other(format!(
            "mount {source} ({kind}) on {target}: {error}"
        ))),
    }
}

/// Loads the modules of a list in [`MODULES`] in their order. One that the kernel refuses (a driver for
/// another processor, say) is reported and skipped: what needs it will fail by name.
pub fn load_modules(list: &str) -> io::Result<()> {
    for line in fs::read_to_string(Path::new(MODULES).join(list))?.lines() {
        let (name, options) = line.split_once(' ').unwrap_or((line, ""));
        let file = File::open(Path::new(MODULES).join(name))?;
        match finit_module(&file, &CString::new(options)?, ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => eprintln!("init: module {name} refused: {error}"),
        }
    }
    Ok(())
}

/// Nanoseconds since the kernel started.
pub fn uptime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(TimeSpec::new(0, 0));
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let rest = u64::try_from(now.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Writes everything back and leaves the machine; comes back only when the kernel refuses.
pub fn leave(mode: RebootMode) -> io::Error {
    nix::unistd::sync();
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}
