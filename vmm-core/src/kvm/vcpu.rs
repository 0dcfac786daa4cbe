//! The life of a vCPU: one thread each, named `vcpu-N`, driven by orders.
//!
//! ```text
//!                  Resume
//!        ┌───────────────────────┐
//!        │                       ▼
//!     Paused                  Running
//!      │   ▲                     │ │
//!      │   └─────────────────────┘ │
//!      │    Pause, or its own news │
//!      │ Quit                 Quit │
//!      └──────────► Stopped ◄──────┘
//! ```
//!
//! The vCPU's KVM handle has one owner at a time: the thread while it runs, the slot beside the
//! state while it is paused, so that the VM's owner can read and reset it ([`Vcpu::with_cpu`]).
//!
//! A running vCPU is kicked out of the guest by a signal. The handler sets `immediate_exit` in
//! the thread's own `kvm_run`, so a signal that comes just before KVM_RUN is not lost.
#![expect(unsafe_code, reason = "signals: a handler, and a kick to one thread")]
// UNSAFETY: the kick needs a real-time signal, which no safe wrapper offers.

use std::cell::Cell;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;

use super::cpu_state::CpuState;
use super::cpuid::CpuModel;
use super::run::{self, Pause, Stay};
use super::{BootEntry, Buses, KvmError, KvmVm, VcpuEvent};

/// Where a vCPU is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuState {
    /// Outside the guest, its registers complete and readable.
    Paused,
    /// In the guest, or serving an access of it.
    Running,
    /// Its thread has ended.
    Stopped,
}

/// What a vCPU can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuOrder {
    /// Leave the guest.
    Pause,
    /// Enter the guest.
    Resume,
    /// End the thread.
    Quit,
}

/// Every change of state there is; an order without a line here changes nothing.
pub const TRANSITIONS: &[(VcpuState, VcpuOrder, VcpuState)] = &[
    (VcpuState::Paused, VcpuOrder::Resume, VcpuState::Running),
    (VcpuState::Paused, VcpuOrder::Quit, VcpuState::Stopped),
    (VcpuState::Running, VcpuOrder::Pause, VcpuState::Paused),
    (VcpuState::Running, VcpuOrder::Quit, VcpuState::Stopped),
];

/// Where `order` leads from `state`.
#[must_use]
pub fn next(state: VcpuState, order: VcpuOrder) -> VcpuState {
    TRANSITIONS
        .iter()
        .find(|&&(from, by, _)| (from, by) == (state, order))
        .map_or(state, |&(_, _, to)| to)
}

struct Status {
    state: VcpuState,
    order: VcpuOrder,
    /// The KVM handle, while the thread does not use it.
    cpu: Option<VcpuFd>,
}

struct Shared {
    /// Leaf lock: nothing is called with it.
    status: Mutex<Status>,
    changed: Condvar,
    /// Whether the order is anything but Resume: what the run loop looks at between two stays.
    leave: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, status: MutexGuard<'a, Status>) -> MutexGuard<'a, Status> {
        self.changed
            .wait(status)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, status: &mut Status, order: VcpuOrder) {
        status.order = order;
        self.leave
            .store(order != VcpuOrder::Resume, Ordering::Release);
        self.changed.notify_all();
    }
}

/// A vCPU and its thread. Dropping it ends both.
pub struct Vcpu {
    index: usize,
    thread_id: i32,
    power_on: Arc<CpuState>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Whether it has ever run: until then it is as it was made, and a reset has little to do.
    has_run: AtomicBool,
}

impl Vcpu {
    /// Makes the vCPU with this index, paused, and its thread. `report` is called on that thread
    /// when the vCPU has paused itself, and must not block.
    ///
    /// # Errors
    /// KVM refuses the vCPU or its CPUID, or the host has no thread left.
    pub fn new(
        vm: &KvmVm,
        index: u32,
        model: &CpuModel,
        apic_id: u32,
        buses: Buses,
        report: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    ) -> Result<Self, KvmError> {
        let parked = ParkedVcpu::create(vm, index, model, apic_id)?;
        parked.start(buses, report).map_err(|(_, error)| error)
    }

    /// Ends the thread and keeps what KVM does not let go of; `None` while somebody is at work on
    /// it.
    #[must_use]
    pub fn park(self) -> Option<ParkedVcpu> {
        self.pause();
        let cpu = self.shared.lock().cpu.take()?;
        Some(ParkedVcpu {
            index: self.index,
            cpu,
            power_on: Arc::clone(&self.power_on),
            has_run: self.has_run.load(Ordering::Acquire),
        })
    }

    /// The vCPU's number, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The host's id of its thread, as `query-cpus-fast` shows it.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Where it is now.
    #[must_use]
    pub fn state(&self) -> VcpuState {
        self.shared.lock().state
    }

    /// Lets it run; returns at once. Nothing happens if it runs already.
    pub fn resume(&self) {
        let mut status = self.shared.lock();
        if next(status.state, VcpuOrder::Resume) == VcpuState::Running {
            self.has_run.store(true, Ordering::Release);
            self.shared.order(&mut status, VcpuOrder::Resume);
        }
    }

    /// Asks it to leave the guest, without waiting.
    pub fn begin_pause(&self) {
        self.tell(VcpuOrder::Pause);
    }

    /// Returns when it has left the guest: no access of it is under way any more.
    pub fn wait_paused(&self) {
        let mut status = self.shared.lock();
        while status.state == VcpuState::Running {
            status = self.shared.wait(status);
        }
    }

    /// Asks it to leave the guest and waits until it has.
    pub fn pause(&self) {
        self.begin_pause();
        self.wait_paused();
    }

    /// Works on the KVM handle of a paused vCPU.
    ///
    /// # Errors
    /// It is not paused, or another caller is at work on it.
    pub fn with_cpu<R>(&self, work: impl FnOnce(&VcpuFd) -> R) -> Result<R, KvmError> {
        let mut status = self.shared.lock();
        let paused = status.state == VcpuState::Paused && status.order == VcpuOrder::Pause;
        let cpu = if paused { status.cpu.take() } else { None };
        let Some(cpu) = cpu else {
            return Err(KvmError::NotPaused {
                index: self.index,
                state: status.state,
            });
        };
        drop(status);
        let result = work(&cpu);
        self.shared.lock().cpu = Some(cpu);
        self.shared.changed.notify_all();
        Ok(result)
    }

    /// Sends it a non-maskable interrupt, for when it runs.
    ///
    /// # Errors
    /// It is not paused, or KVM refuses.
    pub fn inject_nmi(&self) -> Result<(), KvmError> {
        self.with_cpu(VcpuFd::nmi)?
            .map_err(KvmError::ioctl("a non-maskable interrupt"))
    }

    /// Back to power-on; with an `entry`, at a kernel's first instruction. The first vCPU without
    /// one halts: a machine with nothing to boot waits for ever.
    ///
    /// # Errors
    /// It is not paused, or KVM refuses a register.
    pub fn reset(&self, entry: Option<BootEntry>) -> Result<(), KvmError> {
        self.with_cpu(|cpu| {
            if self.has_run.load(Ordering::Acquire) {
                self.power_on.restore(cpu, entry)
            } else {
                self.power_on.prepare(cpu, entry)
            }
        })?
    }

    fn tell(&self, order: VcpuOrder) {
        let mut status = self.shared.lock();
        let kick = status.state == VcpuState::Running;
        self.shared.order(&mut status, order);
        drop(status);
        if kick {
            kick_thread(self.thread_id);
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.tell(VcpuOrder::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by then.
            let _ = thread.join();
        }
    }
}

/// A vCPU without a thread. KVM knows a vCPU for as long as the VM lives, and makes none with the
/// same APIC id again: one that is taken out of the machine waits as this for its return.
pub struct ParkedVcpu {
    index: usize,
    cpu: VcpuFd,
    power_on: Arc<CpuState>,
    has_run: bool,
}

impl ParkedVcpu {
    /// Has KVM make the vCPU with this index.
    ///
    /// # Errors
    /// KVM refuses the vCPU or its CPUID.
    fn create(vm: &KvmVm, index: u32, model: &CpuModel, apic_id: u32) -> Result<Self, KvmError> {
        let cpu = vm
            .fd()
            .create_vcpu(u64::from(apic_id))
            .map_err(KvmError::ioctl("a vCPU"))?;
        let tsc_khz = cpu.get_tsc_khz().ok().filter(|&khz| khz > 0);
        cpu.set_cpuid2(&model.cpuid(index, tsc_khz)?)
            .map_err(KvmError::ioctl("the vCPU's CPUID"))?;
        Ok(Self {
            index: index as usize,
            power_on: Arc::new(CpuState::capture(vm, &cpu)?),
            cpu,
            has_run: false,
        })
    }

    /// The vCPU's number, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Gives it a thread; it is paused, and what it was when it was parked until it is reset.
    ///
    /// # Errors
    /// The host has no thread left; it stays parked.
    pub fn start(
        self,
        buses: Buses,
        report: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    ) -> Result<Vcpu, (Option<Box<Self>>, KvmError)> {
        install_kick_handler();
        let index = self.index;
        let shared = Arc::new(Shared {
            status: Mutex::new(Status {
                state: VcpuState::Paused,
                order: VcpuOrder::Pause,
                cpu: Some(self.cpu),
            }),
            changed: Condvar::new(),
            leave: AtomicBool::new(true),
        });
        let (tell, told) = mpsc::sync_channel(1);
        let life = Life {
            index,
            shared: Arc::clone(&shared),
            buses,
            report,
        };
        let thread = Builder::new().name(format!("vcpu-{index}")).spawn(move || {
            unblock_kick();
            // Nobody waits only if `start` has failed, and then there are orders to quit.
            let _ = tell.send(nix::unistd::gettid().as_raw());
            life.live();
        });
        let mut vcpu = Vcpu {
            index,
            thread_id: 0,
            power_on: self.power_on,
            shared,
            thread: None,
            has_run: AtomicBool::new(self.has_run),
        };
        let started = thread.and_then(|thread| {
            vcpu.thread = Some(thread);
            told.recv()
                .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        });
        match started {
            Ok(thread_id) => {
                vcpu.thread_id = thread_id;
                Ok(vcpu)
            }
            Err(source) => {
                let error = KvmError::Thread { index, source };
                Err((vcpu.park().map(Box::new), error))
            }
        }
    }
}

/// The thread's side.
struct Life {
    index: usize,
    shared: Arc<Shared>,
    buses: Buses,
    report: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
}

impl Life {
    fn live(&self) {
        while let Some(mut cpu) = self.wait_for_resume() {
            let news = self.run(&mut cpu);
            {
                let mut status = self.shared.lock();
                status.cpu = Some(cpu);
                status.state = next(status.state, VcpuOrder::Pause);
                if news.is_some() && status.order == VcpuOrder::Resume {
                    self.shared.order(&mut status, VcpuOrder::Pause);
                }
            }
            self.shared.changed.notify_all();
            if let Some(news) = news {
                (self.report)(news);
            }
        }
    }

    /// Waits, paused, for the order to run; `None` is the order to quit.
    fn wait_for_resume(&self) -> Option<VcpuFd> {
        let mut status = self.shared.lock();
        loop {
            match status.order {
                VcpuOrder::Quit => {
                    status.state = next(status.state, VcpuOrder::Quit);
                    let cpu = status.cpu.take();
                    drop(status);
                    self.shared.changed.notify_all();
                    drop(cpu);
                    return None;
                }
                VcpuOrder::Resume => {
                    if let Some(cpu) = status.cpu.take() {
                        status.state = next(status.state, VcpuOrder::Resume);
                        return Some(cpu);
                    }
                }
                VcpuOrder::Pause => {}
            }
            status = self.shared.wait(status);
        }
    }

    /// Stays in the guest until told to leave; returns the news if it left by itself.
    fn run(&self, cpu: &mut VcpuFd) -> Option<VcpuEvent> {
        let _kickable = Kickable::new(cpu);
        while !self.shared.leave.load(Ordering::Acquire) {
            match run::enter(cpu, &self.buses) {
                Stay::GoOn => {}
                Stay::Pause(Pause::Notice(notice)) => return Some(VcpuEvent::Notice(notice)),
                Stay::Pause(Pause::Fault(fault)) => {
                    return Some(VcpuEvent::Fault {
                        index: self.index,
                        fault,
                    });
                }
            }
        }
        run::complete_access(cpu);
        None
    }
}

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs; null outside [`Life::run`].
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// While it lives, a kick makes this thread leave the guest.
struct Kickable;

impl Kickable {
    fn new(cpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut cpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: not null only while `Kickable` lives on this very thread, and with it the
        // mapping of kvm_run. The kernel reads the byte; this thread's own accesses are at
        // points where a lost update only costs one more look at `leave`.
        unsafe { byte.write_volatile(1) };
    }
}

fn install_kick_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask); the handler only
        // touches a const-initialised thread-local cell and the byte it points to, which is
        // async-signal-safe. The signal number is in range by its definition.
        let failed = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            let handler: extern "C" fn(libc::c_int) = on_kick;
            action.sa_sigaction = handler as usize;
            libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) != 0
        };
        if failed {
            tracing::error!(
                error = %std::io::Error::last_os_error(),
                "vCPUs cannot be kicked: no handler for the kick signal"
            );
        }
    });
}

/// Lets this thread be kicked, whatever mask it has inherited from whoever started us.
fn unblock_kick() {
    // SAFETY: an all-zero set is storage for `sigemptyset` to fill; the calls write only to it.
    let failed = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut())
    };
    if failed != 0 {
        tracing::error!("this vCPU cannot be kicked: the kick signal stays blocked");
    }
}

/// The first real-time signal that the C library leaves to programs.
#[must_use]
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn kick_thread(thread_id: i32) {
    // SAFETY: tgkill takes three numbers. A thread of ours that has just ended, or another that
    // got its number, is unharmed: the handler does nothing outside `Life::run`.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread_id, kick_signal());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_vcpu_obeys_nothing() {
        for order in [VcpuOrder::Pause, VcpuOrder::Resume, VcpuOrder::Quit] {
            assert_eq!(next(VcpuState::Stopped, order), VcpuState::Stopped);
        }
    }

    #[test]
    fn pausing_twice_is_pausing_once() {
        assert_eq!(
            next(VcpuState::Running, VcpuOrder::Pause),
            VcpuState::Paused
        );
        assert_eq!(next(VcpuState::Paused, VcpuOrder::Pause), VcpuState::Paused);
    }
}
