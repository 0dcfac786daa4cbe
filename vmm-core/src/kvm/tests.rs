//! Real vCPUs running a few bytes of code. Where there is no `/dev/kvm` these tests say so and
//! pass.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use devices::bus::{Bus, BusDevice};
use devices::irq::{Doorbells, MsiController, MsiMessage};
use devices::memory::GuestMemView;
use devices::notice::Notice;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::cpu_models::{self, CpuSpec};
use super::cpuid::{CpuModel, CpuTopology, HostCpu};
use super::slots::Slots;
use super::*;

const CODE: u32 = 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(60);

/// `/dev/kvm`, or a word about why there is none.
pub(crate) fn dev_kvm() -> Option<OwnedFd> {
    let door = fdset::Door::new(Arc::new(fdset::FdRegistry::new()), fdset::Scope::Process);
    let request = fdset::Request::new(
        "/dev/kvm",
        fdset::Access::ReadWrite,
        fdset::Role::Kvm,
        "a test",
    );
    match fdset::open(&door, &request) {
        Ok(file) => Some(file.into_parts().0),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A list that another thread fills, to wait on.
pub(crate) struct Heard<T>(Mutex<Vec<T>>, Condvar);

impl<T> Default for Heard<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()), Condvar::new())
    }
}

impl<T: Clone> Heard<T> {
    pub(crate) fn add(&self, item: T) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(item);
        self.1.notify_all();
    }

    /// Waits until there are `count` items, and returns all.
    pub(crate) fn wait(&self, count: usize) -> Vec<T> {
        let items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (items, timeout) = self
            .1
            .wait_timeout_while(items, PATIENCE, |items| items.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "only {} of {count} came", items.len());
        items.clone()
    }
}

/// A port that remembers what was written, and reads as a running number.
impl BusDevice for Heard<Vec<u8>> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.add(data.to_vec());
    }
}

struct Guest {
    vcpus: VcpuSet,
    written: Arc<Heard<Vec<u8>>>,
    events: Arc<Heard<VcpuEvent>>,
    irqs: Arc<KvmIrqs>,
    slots: Slots,
    vm: Arc<KvmVm>,
}

/// Vcpus that will run `code`, with a port at 0x3f8 and a register at 0xd000_0000.
fn guest(code: &[u8], vcpus: u32) -> Option<Guest> {
    let vm = KvmVm::new(dev_kvm()?).unwrap();
    let irqs = KvmIrqs::new(Arc::clone(&vm)).unwrap();
    let memory = GuestMemView::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    memory
        .write_slice(code, GuestAddress(u64::from(CODE)))
        .unwrap();
    let slots = Slots::new(Arc::clone(&vm));
    slots.add_all(&memory).unwrap();
    let buses = Buses {
        pio: Arc::default(),
        mmio: Arc::<Bus>::default(),
    };
    let written = Arc::new(Heard::<Vec<u8>>::default());
    buses
        .pio
        .insert(0x3f8, 8, Arc::clone(&written) as _)
        .unwrap();
    buses
        .mmio
        .insert(0xd000_0000, 0x1000, Arc::clone(&written) as _)
        .unwrap();
    let events = Arc::new(Heard::<VcpuEvent>::default());
    let host = HostCpu::of(&vm).unwrap();
    let spec = CpuSpec::plain(cpu_models::HOST);
    let model = CpuModel::new(&host, &spec, CpuTopology::flat(vcpus)).unwrap();
    let vcpus = (0..vcpus)
        .map(|index| {
            let events = Arc::clone(&events);
            let report = Arc::new(move |event| events.add(event));
            Vcpu::new(&vm, index, &model, index, buses.clone(), report).unwrap()
        })
        .collect();
    let vcpus = VcpuSet::new(vcpus);
    let entry = BootEntry::Pvh {
        entry: CODE,
        start_info: 0,
    };
    entry.write_tables(&memory).unwrap();
    vcpus.reset(Some(entry)).unwrap();
    Some(Guest {
        vcpus,
        written,
        events,
        irqs,
        slots,
        vm,
    })
}

/// Writes "AB" to port 0x3f8 byte by byte, then reads it and stores that at 0xd000_0000.
const TALK: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xb0, b'A', 0xee, // mov al, 'A'; out dx, al
    0xb0, b'B', 0xee, // mov al, 'B'; out dx, al
    0xec, // in al, dx
    0xa2, 0x00, 0x00, 0x00, 0xd0, // mov [0xd0000000], al
    0xf4, 0xeb, 0xfd, // hlt; jmp back to it
];
/// Counts for ever.
const SPIN: &[u8] = &[0x40, 0xeb, 0xfd];
const UNDEFINED: &[u8] = &[0x0f, 0x0b];
/// Jumps to where no memory is.
const LOST: &[u8] = &[0xb8, 0x00, 0x00, 0x00, 0xe0, 0xff, 0xe0];

#[test]
fn a_guests_accesses_reach_the_buses() {
    let Some(guest) = guest(TALK, 1) else { return };
    guest.vcpus.resume();
    assert_eq!(guest.written.wait(3), [[b'A'], [b'B'], [0x5a]]);
    guest.vcpus.pause();
    assert_eq!(
        guest.vcpus.iter().next().unwrap().state(),
        VcpuState::Paused
    );
}

#[test]
fn a_reset_vcpu_starts_again_where_it_began() {
    let Some(guest) = guest(TALK, 1) else { return };
    guest.vcpus.resume();
    guest.written.wait(3);
    let vcpu = guest.vcpus.iter().next().unwrap();
    assert!(matches!(
        vcpu.reset(None),
        Err(KvmError::NotPaused { index: 0, .. })
    ));
    guest.vcpus.pause();
    let entry = BootEntry::Pvh {
        entry: CODE,
        start_info: 0x6000,
    };
    guest.vcpus.reset(Some(entry)).unwrap();
    let rbx = vcpu.with_cpu(|cpu| cpu.get_regs().unwrap().rbx).unwrap();
    assert_eq!(rbx, 0x6000);
    guest.vcpus.resume();
    assert_eq!(guest.written.wait(6)[3..], [[b'A'], [b'B'], [0x5a]]);
}

#[test]
fn two_vcpus_are_paused_and_resumed_a_thousand_times() {
    let Some(guest) = guest(SPIN, 2) else { return };
    let mut before = 0;
    for round in 0..1000 {
        guest.vcpus.resume();
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        guest.vcpus.pause();
        for vcpu in guest.vcpus.iter() {
            assert_eq!(vcpu.state(), VcpuState::Paused);
        }
    }
    // And it still runs: with time, the counter moves on.
    let count = || {
        let first = guest.vcpus.iter().next().unwrap();
        first.with_cpu(|cpu| cpu.get_regs().unwrap().rax).unwrap()
    };
    for _ in 0..1000 {
        guest.vcpus.resume();
        std::thread::sleep(Duration::from_millis(1));
        guest.vcpus.pause();
        let now = count();
        if before != 0 && now != before {
            return;
        }
        before = now;
    }
    panic!("the guest has stopped counting at {before}");
}

#[test]
// UNSAFETY: the C library changes a thread's signal mask through pointers.
#[expect(unsafe_code, reason = "the signal mask of this thread")]
fn a_vcpu_is_kicked_even_if_its_maker_blocks_signals() {
    // SAFETY: plain data, filled by sigfillset before its use; only this test's thread changes.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    let Some(guest) = guest(SPIN, 1) else { return };
    guest.vcpus.resume();
    std::thread::sleep(Duration::from_millis(20));
    guest.vcpus.pause();
}

#[test]
fn a_triple_fault_asks_for_a_reset() {
    let Some(guest) = guest(UNDEFINED, 1) else {
        return;
    };
    guest.vcpus.resume();
    let events = guest.events.wait(1);
    assert_eq!(events, [VcpuEvent::Notice(Notice::Reset)]);
    guest.vcpus.iter().next().unwrap().wait_paused();
}

#[test]
fn code_that_kvm_cannot_run_is_a_fault_with_one_line() {
    let Some(guest) = guest(LOST, 1) else { return };
    guest.vcpus.resume();
    let events = guest.events.wait(1);
    let VcpuEvent::Fault { index: 0, fault } = &events[0] else {
        panic!("{events:?}");
    };
    let line = fault.to_string();
    assert!(line.starts_with("KVM internal error, suberror 1"), "{line}");
    assert!(!line.contains('\n'));
    // The vCPU is paused and can be looked at; the VM can be reset and used again.
    let vcpu = guest.vcpus.iter().next().unwrap();
    vcpu.with_cpu(|cpu| assert_eq!(cpu.get_regs().unwrap().rip, 0xe000_0000))
        .unwrap();
}

#[test]
fn threads_are_named_and_known_by_their_id() {
    let Some(guest) = guest(SPIN, 2) else { return };
    let ids: Vec<i32> = guest.vcpus.iter().map(Vcpu::thread_id).collect();
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|&id| id > 0));
    drop(guest);
}

#[test]
fn vectors_are_routed_triggered_and_given_back() {
    let Some(guest) = guest(SPIN, 1) else { return };
    let vector = guest.irqs.vector().unwrap();
    vector.trigger();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x30,
    };
    vector.route(Some(message)).unwrap();
    vector.trigger();
    assert!(vector.eventfd().is_some());
    vector.route(None).unwrap();
    vector.route(Some(message)).unwrap();
    guest.irqs.send(message);
    assert_eq!(guest.irqs.vectors(), 1);
    drop(vector);
    assert_eq!(guest.irqs.vectors(), 0);
    let again = guest.irqs.vector().unwrap();
    again.route(Some(message)).unwrap();
}

#[test]
fn a_doorbell_is_taken_once_and_can_be_given_back() {
    let Some(guest) = guest(SPIN, 1) else { return };
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest.irqs.assign(0xd000_2000, 0, &bell).unwrap();
    let error = guest.irqs.assign(0xd000_2000, 0, &bell).unwrap_err();
    assert_eq!(error.to_string(), "no doorbell at 0xd0002000 to be had");
    guest.irqs.unassign(0xd000_2000, 0, &bell);
    guest.irqs.assign(0xd000_2000, 0, &bell).unwrap();
}

#[test]
fn the_clock_stands_still_while_the_guest_does() {
    let Some(guest) = guest(SPIN, 1) else { return };
    let clock = clock::KvmClock::default();
    clock.stop(&guest.vm).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    clock.start(&guest.vm, &guest.vcpus).unwrap();
    clock.start(&guest.vm, &guest.vcpus).unwrap();
}

#[test]
fn slots_and_chips_come_and_go() {
    let Some(guest) = guest(SPIN, 1) else { return };
    let chips = chips::ChipState::capture(&guest.vm).unwrap();
    chips.restore(&guest.vm).unwrap();
    guest.slots.log_dirty(true).unwrap();
    assert!(guest.slots.take_dirty(0).is_ok());
    guest.slots.log_dirty(false).unwrap();
    guest.slots.remove(0).unwrap();
    assert!(matches!(
        guest.slots.remove(0),
        Err(KvmError::NoSuchSlot { slot: 0 })
    ));
}

#[test]
fn an_fd_that_is_not_kvm_is_refused() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let error = KvmVm::new(file).err().unwrap();
    assert!(matches!(error, KvmError::NotKvm { .. }), "{error}");
}
