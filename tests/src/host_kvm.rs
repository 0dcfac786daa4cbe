//! Can this machine's `/dev/kvm` run a stock kernel? Some machines offer a KVM that interprets
//! the guest instruction by instruction: it is there, it answers, and no distribution's kernel
//! boots on it. The probe runs a counting loop and looks at the clock: hardware takes far below a
//! millisecond, an interpreter hundreds.
//!
//! `SESAME_KVM=host` or `SESAME_KVM=lab` decides without a probe.
#![expect(unsafe_code, reason = "a guest's memory is handed to KVM by address")]
// UNSAFETY: KVM_SET_USER_MEMORY_REGION takes a raw address; there is no safe way to call it.

use std::env;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// Where guests can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine's KVM is good.
    Host,
    /// Only the lab will do; says why.
    Lab(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("guests run on this machine's KVM"),
            Self::Lab(why) => write!(f, "guests run in the lab: {why}"),
        }
    }
}

/// Turns of the loop below, two instructions each.
const TURNS: u32 = 300_000;
const FAST: Duration = Duration::from_millis(20);

/// Decides where guests run, and why.
pub fn place() -> Result<Place> {
    match env::var("SESAME_KVM").as_deref() {
        Ok("host") => return Ok(Place::Host),
        Ok("lab") => return Ok(Place::Lab("SESAME_KVM=lab says so".to_owned())),
        Ok(other) => bail!("SESAME_KVM={other}: want host or lab"),
        Err(_) => {}
    }
    // A busy machine may hold one run up, never three.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        match count() {
            Ok(time) => best = best.min(time),
            Err(error) => return Ok(Place::Lab(format!("/dev/kvm: {error:#}"))),
        }
        if best < FAST {
            return Ok(Place::Host);
        }
    }
    Ok(Place::Lab(format!(
        "/dev/kvm interprets its guests ({} ms for {} instructions), stock kernels do not boot on it",
        best.as_millis(),
        2 * TURNS
    )))
}

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Runs the loop once in a guest of one page.
#[expect(
    clippy::disallowed_methods,
    reason = "the probe asks for the host's own /dev/kvm"
)]
fn count() -> Result<Duration> {
    let mut page = Box::new(Page([0; 4096]));
    // mov ecx, TURNS; again: dec ecx; jnz again; hlt  -- in real mode, hence the 0x66 prefixes.
    let [a, b, c, d] = TURNS.to_le_bytes();
    let code = [0x66, 0xb9, a, b, c, d, 0x66, 0x49, 0x75, 0xfc, 0xf4];
    page.0[..code.len()].copy_from_slice(&code);
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x1000,
        memory_size: 4096,
        userspace_addr: (&raw const *page) as u64,
    };
    // SAFETY: the page is aligned, of that size, and outlives the VM, which is dropped before it.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = 0x1000;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    let start = Instant::now();
    let halted = matches!(vcpu.run()?, VcpuExit::Hlt);
    let time = start.elapsed();
    ensure!(halted, "the probe did not come to its hlt");
    drop((vcpu, vm, page));
    Ok(time)
}
