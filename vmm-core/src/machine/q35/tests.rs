//! Whole machines on real KVM, with guests of a few bytes. Where there is no `/dev/kvm` these
//! tests say so and pass.

use std::io::Write;
use std::os::fd::AsRawFd;

use devices::bus::BusDevice;
use devices::chardev::{BackendSpec, Chardev, ChardevSpec};
use devices::notice::Notice;
use devices::pci::{PciFunction, RootPort, RootPortSpec};
use fdset::{Door, FdRegistry, OpenFile, Scope};

use super::*;
use crate::kvm::cpu_models;
use crate::kvm::tests::{Heard, dev_kvm};
use crate::kvm::{VcpuFault, VcpuState};
use crate::machine::kernel::tests::pvh_elf;
use crate::memory::{HostMemory, MemoryError, RamBackendSpec};

fn door() -> Door {
    Door::new(Arc::new(FdRegistry::new()), Scope::Process)
}

/// A machine, and what it tells.
struct Bench {
    machine: Q35,
    notices: Arc<Heard<Notice>>,
    faults: Arc<Heard<VcpuFault>>,
}

fn kernel(code: &[u8]) -> BootSource {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pvh_elf(code, true)).unwrap();
    BootSource::new(OpenFile::new(file.into(), None), None, "quiet").unwrap()
}

fn spec(code: &[u8], vcpus: u32) -> Q35Spec {
    Q35Spec {
        firmware: FirmwareSpec::default(),
        product: TYPE.name.to_owned(),
        uuid: [0; 16],
        topology: CpuTopology::flat(vcpus),
        cpu: CpuSpec::plain(cpu_models::HOST),
        vcpus,
        numa: None,
        room: MemoryRoom::default(),
        rtc_offset: 0,
        rtc_drive: RtcDrive::Host,
        serials: Vec::new(),
        boot: (!code.is_empty()).then(|| kernel(code)),
        no_reboot: false,
        held: false,
    }
}

fn build(spec: Q35Spec, memory: RamBackendSpec) -> Option<Result<Bench, MachineError>> {
    let kvm = dev_kvm()?;
    let notices = Arc::new(Heard::<Notice>::default());
    let faults = Arc::new(Heard::<VcpuFault>::default());
    let (heard, failed) = (Arc::clone(&notices), Arc::clone(&faults));
    let told = Arc::clone(&notices);
    let host = MachineHost {
        kvm: fdset::OpenFile::new(kvm, None),
        clock: VmClock::Host,
        reactor: Reactor::new(),
        memory: vec![RamBackend::open(&door(), memory).unwrap()],
        notices: NoticeSink::new(move |notice| heard.add(notice)),
        vcpu_events: Arc::new(move |event| match event {
            VcpuEvent::Notice(notice) => told.add(notice),
            VcpuEvent::Fault { fault, .. } => failed.add(fault),
        }),
    };
    Some(Q35::new(spec, host).map(|machine| Bench {
        machine,
        notices,
        faults,
    }))
}

fn small() -> RamBackendSpec {
    RamBackendSpec::anonymous("pc.ram", 16 << 20)
}

/// A ring that keeps what the guest says.
fn ring() -> Arc<Chardev> {
    let reactor = Reactor::new();
    let spec = ChardevSpec {
        backend: BackendSpec::Ringbuf { size: 4096 },
        log: None,
    };
    Chardev::open("com", &spec, &door(), &reactor).unwrap()
}

/// Says "Hi" on COM1, then powers off: SLP_EN with the S5 type into PM1_CNT.
const HELLO: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xb0, b'H', 0xee, 0xb0, b'i', 0xee, // 'H', 'i'
    0xba, 0x04, 0x06, 0x00, 0x00, // mov edx, 0x604
    0x66, 0xb8, 0x00, 0x20, // mov ax, 0x2000
    0x66, 0xef, // out dx, ax
    0xf4, 0xeb, 0xfd, // hlt; jmp back to it
];
/// Resets through 0xcf9.
const RESET: &[u8] = &[
    0xba, 0xf9, 0x0c, 0x00, 0x00, // mov edx, 0xcf9
    0xb0, 0x06, 0xee, // mov al, 6; out dx, al
    0xf4, 0xeb, 0xfd,
];
/// Has COM1 and COM3 interrupt, which share line 4, takes COM3's interrupt back, and says on COM1
/// which interrupts the PIC is asked for. The line is made level-triggered first (ELCR).
const SHARE: &[u8] = &[
    0xba, 0xd0, 0x04, 0x00, 0x00, 0xb0, 0x10, 0xee, // 0x10 to port 0x4d0
    0xba, 0xf9, 0x03, 0x00, 0x00, 0xb0, 0x02, 0xee, // 2 to 0x3f9: when the sender is empty
    0xba, 0xe9, 0x03, 0x00, 0x00, 0xee, // the same to 0x3e9
    0xb0, 0x00, 0xee, // 0 to 0x3e9
    0xe4, 0x20, // in al, 0x20
    0xba, 0xf8, 0x03, 0x00, 0x00, 0xee, // out 0x3f8, al
    0xba, 0x04, 0x06, 0x00, 0x00, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, // power off, as above
    0xf4, 0xeb, 0xfd,
];
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Jumps to where no memory is.
const LOST: &[u8] = &[0xb8, 0x00, 0x00, 0x00, 0xa0, 0xff, 0xe0];

#[test]
fn a_guest_speaks_powers_off_and_does_it_again_after_a_reset() {
    let chardev = ring();
    let mut spec = spec(HELLO, 2);
    spec.serials = vec![SerialSpec {
        index: 0,
        chardev: Some(Arc::clone(&chardev)),
    }];
    let Some(bench) = build(spec, small()) else {
        return;
    };
    let bench = bench.unwrap();
    bench.machine.power_on().unwrap();
    for round in 1..=3 {
        bench.machine.resume().unwrap();
        assert_eq!(bench.notices.wait(round).last(), Some(&Notice::PowerOff));
        bench.machine.pause().unwrap();
        assert_eq!(chardev.read_ring(100), Some(b"Hi".to_vec()));
        bench.machine.reset().unwrap();
    }
}

#[test]
fn serial_ports_that_share_a_line_do_not_silence_each_other() {
    let chardev = ring();
    let mut spec = spec(SHARE, 1);
    spec.serials = [(0, Some(Arc::clone(&chardev))), (2, None)]
        .map(|(index, chardev)| SerialSpec { index, chardev })
        .to_vec();
    let Some(bench) = build(spec, small()) else {
        return;
    };
    let bench = bench.unwrap();
    bench.machine.power_on().unwrap();
    bench.machine.resume().unwrap();
    assert_eq!(bench.notices.wait(1), [Notice::PowerOff]);
    let requested = chardev.read_ring(1).unwrap();
    assert_eq!(requested, [1 << 4], "COM1 still asks for its interrupt");
}

#[test]
fn the_reset_register_is_heard() {
    let Some(bench) = build(spec(RESET, 1), small()) else {
        return;
    };
    let bench = bench.unwrap();
    bench.machine.power_on().unwrap();
    bench.machine.resume().unwrap();
    assert_eq!(bench.notices.wait(1), [Notice::Reset]);
}

#[test]
fn a_guest_that_kvm_cannot_run_is_reset_and_runs_again() {
    let Some(bench) = build(spec(LOST, 1), small()) else {
        return;
    };
    let bench = bench.unwrap();
    bench.machine.power_on().unwrap();
    for round in 1..=2 {
        bench.machine.resume().unwrap();
        let faults = bench.faults.wait(round);
        assert!(matches!(
            faults.last(),
            Some(VcpuFault::Internal { suberror: 1, .. })
        ));
        bench.machine.pause().unwrap();
        bench.machine.reset().unwrap();
    }
}

#[test]
fn without_a_kernel_the_machine_waits() {
    let Some(bench) = build(spec(&[], 2), small()) else {
        return;
    };
    let bench = bench.unwrap();
    bench.machine.power_on().unwrap();
    bench.machine.resume().unwrap();
    bench.machine.pause().unwrap();
    let paused = |vcpu: &Vcpu| vcpu.state() == VcpuState::Paused;
    assert!(bench.machine.vcpus().iter().all(paused));
}

#[test]
fn ram_may_be_a_memfd_or_a_passed_file() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 << 20).unwrap();
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let hosts = [
        HostMemory::Memfd {
            sealed: true,
            huge: None,
        },
        HostMemory::File { name, offset: 0 },
    ];
    for host in hosts {
        let memory = RamBackendSpec {
            host,
            share: true,
            prealloc: true,
            ..small()
        };
        let Some(bench) = build(spec(HELLO, 1), memory) else {
            return;
        };
        let bench = bench.unwrap();
        bench.machine.power_on().unwrap();
        bench.machine.resume().unwrap();
        assert_eq!(bench.notices.wait(1), [Notice::PowerOff]);
    }
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0x10_0000).unwrap();
    assert_eq!(byte[0], HELLO[0], "the kernel is in the shared file");
}

#[test]
fn a_file_that_is_too_short_for_its_memory_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let memory = RamBackendSpec {
        host: HostMemory::File {
            name: format!("/proc/self/fd/{}", file.as_raw_fd()),
            offset: 0,
        },
        ..small()
    };
    let error = RamBackend::open(&door(), memory).unwrap_err();
    assert!(matches!(error, MemoryError::FileTooShort { .. }));
    assert_eq!(
        error.to_string(),
        "memory backend 'pc.ram': the file has 1048576 bytes, the backend wants 16777216: \
         grow the file or lower the size"
    );
    let odd = RamBackendSpec::anonymous("m", 4097);
    let error = RamBackend::open(&door(), odd).unwrap_err();
    assert!(
        error.to_string().ends_with("page size 4096: use 8192"),
        "{error}"
    );
}

#[test]
fn specs_that_contradict_themselves_are_refused() {
    let Some(built) = build(spec(SPIN, 1), RamBackendSpec::anonymous("m", 1 << 20)) else {
        return;
    };
    assert!(matches!(
        built.err(),
        Some(MachineError::MemoryTooSmall { .. })
    ));
    let many = Q35Spec {
        vcpus: 3,
        topology: CpuTopology::flat(2),
        ..spec(SPIN, 1)
    };
    let built = build(many, small()).unwrap();
    assert!(matches!(built.err(), Some(MachineError::Topology { .. })));
    let port = SerialSpec {
        index: 0,
        chardev: None,
    };
    let twice = Q35Spec {
        serials: vec![port.clone(), port],
        ..spec(SPIN, 1)
    };
    let built = build(twice, small()).unwrap();
    assert!(matches!(
        built.err(),
        Some(MachineError::Serial { index: 0 })
    ));
}

#[test]
fn firmware_is_told_at_a_reset_of_the_vcpus_that_are_there() {
    let spec = Q35Spec {
        topology: CpuTopology::flat(3),
        ..spec(SPIN, 1)
    };
    let Some(bench) = build(spec, small()) else {
        return;
    };
    let mut machine = bench.unwrap().machine;
    let told = |machine: &Q35| {
        machine.fw_cfg().write(0, &5u16.to_le_bytes());
        let mut low = [0];
        machine.fw_cfg().read(1, &mut low);
        low
    };
    machine.power_on().unwrap();
    assert_eq!(told(&machine), [1]);
    machine.plug_cpu(2, true, false).unwrap();
    machine.plug_cpu(1, true, false).unwrap();
    machine.reset().unwrap();
    assert_eq!(told(&machine), [3]);
    assert!(machine.unplug_cpu(1));
    machine.reset().unwrap();
    assert_eq!(told(&machine), [2]);
}

#[test]
fn a_dropped_machine_leaves_nothing_behind() {
    let Some(bench) = build(spec(SPIN, 2), small()) else {
        return;
    };
    let bench = bench.unwrap();
    let machine = &bench.machine;
    let port = RootPort::new(RootPortSpec {
        id: "p1".into(),
        port: 1,
        slot: 1,
        multifunction: false,
        msi: machine.msi(),
        notices: NoticeSink::new(|_| {}),
    })
    .unwrap();
    machine
        .pci()
        .plug(None, None, Arc::clone(&port) as Arc<dyn PciFunction>)
        .unwrap();
    machine.power_on().unwrap();
    machine.resume().unwrap();
    let (pci, irqs) = (
        Arc::downgrade(machine.pci()),
        Arc::downgrade(machine.wiring.chips()),
    );
    let vm = Arc::downgrade(&machine.vm);
    drop(bench);
    assert_eq!(Arc::strong_count(&port), 1);
    drop(port);
    assert!(pci.upgrade().is_none(), "the PCI tree is gone");
    assert!(irqs.upgrade().is_none(), "the interrupts are gone");
    assert!(vm.upgrade().is_none(), "the VM is gone");
}
