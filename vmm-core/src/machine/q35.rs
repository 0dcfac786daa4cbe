//! The q35 machine: a PCI Express PC that boots kernels directly.
//!
//! ```text
//!   Q35::new ── plug cold devices into pci() ── power_on ──► resume ◄──► pause
//!                                                              │  reset (while paused)
//!                                                              ▼
//!     vCPUs ─ exits ─► buses ─┬─ Board (legacy, serials, config ports)
//!       │                     └─ ECAM, BARs of PCI functions
//!       └─ guest memory ◄─ slots ◄─ RamBackend
//! ```
//!
//! Without firmware, what it would do at a reset (addresses for PCI, tables, the boot loader's work)
//! is done here, so a guest starts with its kernel's first instruction. With firmware nothing is:
//! the first vCPU starts at the reset vector, and firmware finds in fw_cfg what it needs.

use std::sync::Arc;

use devices::irq::{Doorbells, MsiController};
use devices::legacy::acpi_pm::{PM_BASE, SLEEP_TYPE_S5};
use devices::legacy::{
    AcpiPm, FwCfg, FwCfgFile, GenerationPlace, ResetControl, Rtc, RtcDrive, RtcSpec, Vmcoreinfo,
    pvpanic, vmcoreinfo, vmgenid,
};
use devices::lifecycle::Lifecycle;
use devices::memory::{GuestMem, GuestMemView};
use devices::notice::NoticeSink;
use devices::pci::PciHost;
use devices::pci::setup::{self, SetupSpec};
use devices::reactor::Reactor;
use devices::tpm::{TpmCrb, crb};
use devices::vm_clock::VmClock;
use fdset::{Lease, OpenFile};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use self::limits::{check_topology, layout};
use self::memory::Pluggable;
use super::acpi::tpm::TpmPlace;
use super::acpi::{self, AcpiSpec};
use super::board::{self, Board, BoardSpec, SCI, SerialSpec};
use super::firmware::tables::{self, AcpiFiles};
use super::firmware::{ChipSpec, Firmware};
use super::fw_cfg;
use super::identity::Identity;
use super::numa::NumaSpec;
use super::pci_tree::{INTX, pci_tree, take_down};
use super::smbios;
use super::wiring::Wiring;
use super::{BootSource, MachineError, MachineKind, MachineType};
use crate::kvm::chips::ChipState;
use crate::kvm::clock::KvmClock;
use crate::kvm::cpu_models::{CpuSpec, Said};
use crate::kvm::cpuid::{CpuModel, CpuTopology, HostCpu};
use crate::kvm::slots::Slots;
use crate::kvm::{BootEntry, Buses, KvmIrqs, KvmVm, Vcpu, VcpuEvent, VcpuSet};
use crate::memory::layout::{ECAM, GENERATION, PCI32};
use crate::memory::{Layout, RamBackend};
use crate::qtest::TestedIrqs;
use crate::types::cpu_type;
use crate::uuid::Uuid;

pub use self::memory::MemoryRoom;

/// The most vCPUs: their APIC ids fit the MADT's short entries and the IOAPIC's destinations.
pub const MAX_VCPUS: u32 = 255;
/// Ports for BARs: above everything the board has.
const PCI_IO: std::ops::Range<u64> = 0xc000..0x1_0000;
/// Full reset: the CPU's bit and the system's.
const RESET_VALUE: u8 = 6;

/// What it is called.
pub static TYPE: MachineType = MachineType {
    name: "pc-q35-sesame1",
    alias: Some("q35"),
    qom_type: "pc-q35-sesame1-machine",
    description: "PC with PCI Express (Q35 + ICH9), booting kernels directly",
    kind: MachineKind::Q35,
    max_vcpus: MAX_VCPUS,
};

/// A q35 machine, resolved.
pub struct Q35Spec {
    /// The product's name in SMBIOS: the machine type.
    pub product: String,
    /// The machine's UUID, most significant byte first; all zero if none was given.
    pub uuid: [u8; 16],
    /// How the vCPUs are arranged.
    pub topology: CpuTopology,
    /// What each vCPU is.
    pub cpu: CpuSpec,
    /// How many are present; at most as many as the topology has room for.
    pub vcpus: u32,
    /// Its NUMA nodes; without, memory and vCPUs are in one place.
    pub numa: Option<NumaSpec>,
    /// What memory devices it takes.
    pub room: MemoryRoom,
    /// Guest time minus UTC, in seconds.
    pub rtc_offset: i64,
    /// What drives the real-time clock.
    pub rtc_drive: RtcDrive,
    /// The serial ports.
    pub serials: Vec<SerialSpec>,
    /// What to boot; without it and without firmware, the CPUs wait for ever.
    pub boot: Option<BootSource>,
    /// Firmware, if there is some, and what is for it.
    pub firmware: FirmwareSpec,
    /// Whether the board's own watchdog is wired so that it does nothing.
    pub no_reboot: bool,
    /// Whether the vCPUs never run: a tester drives the machine in their place.
    pub held: bool,
}

/// Firmware, and what a guest finds in fw_cfg that the machine does not know of itself.
#[derive(Default)]
pub struct FirmwareSpec {
    /// The chips with firmware, the one with the reset vector first; none without firmware.
    pub chips: Vec<ChipSpec>,
    /// Whether the machine was told to do without a screen.
    pub no_graphic: bool,
    /// Files; their names are not the machine's own.
    pub files: Vec<FwCfgFile>,
}

/// What the host gives to a machine.
pub struct MachineHost {
    /// `/dev/kvm`.
    pub kvm: OpenFile,
    /// RAM, one piece after the other; there is at least one.
    pub memory: Vec<RamBackend>,
    /// The time that devices live in.
    pub clock: VmClock,
    /// Where their timers run.
    pub reactor: Reactor,
    /// Where devices send their news.
    pub notices: NoticeSink,
    /// Where vCPUs send theirs, from their own threads; must not block.
    pub vcpu_events: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
}

/// A q35 machine. Its owner drives it from one thread.
pub struct Q35 {
    // Dropped in this order: no vCPU may run when the devices go, no device when memory goes.
    vcpus: VcpuSet,
    board: Board,
    pci: Arc<PciHost>,
    wiring: Wiring,
    fw_cfg: Arc<FwCfg>,
    firmware: Option<Firmware>,
    acpi_files: Option<Arc<AcpiFiles>>,
    vcpu_events: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    pluggable: Pluggable,
    slots: Arc<Slots>,
    memory: GuestMem,
    backends: Vec<RamBackend>,
    layout: Layout,
    power_on: ChipState,
    clock: KvmClock,
    boot: Option<BootSource>,
    held: bool,
    host_cpu: HostCpu,
    model: CpuModel,
    identity: Identity,
    generation: Option<Uuid>,
    vm: Arc<KvmVm>,
    _kvm_lease: Option<Lease>,
}

impl Q35 {
    /// Builds the machine: everything but what is plugged into its PCI buses. It does not run,
    /// and its memory is empty, until [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// A spec contradicts itself or the host cannot provide it; each error says which.
    pub fn new(mut spec: Q35Spec, host: MachineHost) -> Result<Self, MachineError> {
        let highest = check_topology(spec.topology, spec.vcpus)?;
        let (kvm, kvm_lease) = host.kvm.into_parts();
        let vm = KvmVm::new(kvm)?;
        let places = spec.topology.total().unwrap_or(spec.vcpus);
        vm.check_vcpus(places as usize, highest)?;
        let irqs = KvmIrqs::new(Arc::clone(&vm))?;
        let power_on = ChipState::capture(&vm)?;
        let host_cpu = HostCpu::of(&vm)?;
        let model = CpuModel::new(&host_cpu, &spec.cpu, spec.topology)?;
        if spec.cpu.said.contains(&Said::Counters(false)) {
            vm.forgo_counters()?;
        }
        let sizes = host.memory.iter().map(|backend| backend.spec().size);
        let ram = sizes.fold(0, u64::saturating_add);
        let layout = layout(ram, spec.room.addresses(), model.physical_bits())?;
        let memory = RamBackend::map_all(&host.memory, &layout)?;
        let slots = Arc::new(Slots::new(Arc::clone(&vm)));
        slots.add_all(&memory.memory())?;
        let buses = Buses {
            pio: Arc::default(),
            mmio: Arc::default(),
        };
        let wiring = if spec.held {
            Wiring::tested(irqs, memory.clone())
        } else {
            Wiring::new(irqs)
        };
        let pci = pci_tree(&buses, &wiring);
        let identity = Identity {
            product: spec.product.clone(),
            uuid: spec.uuid,
            topology: spec.topology,
            cpu_type: cpu_type(spec.cpu.model.name),
            numa: spec.numa.clone(),
        };
        let mut told = fw_cfg::contents(&mut spec, &layout)?;
        let chips = std::mem::take(&mut spec.firmware.chips);
        let firmware = Firmware::new(chips, &slots, &buses)?;
        if firmware.is_some() {
            let smbios = identity.smbios(&model, &layout);
            told.files.extend(tables::fixed_files(&smbios));
        }
        let fw_cfg = Arc::new(FwCfg::new(told, memory.clone())?);
        let acpi_files = firmware.is_some().then(|| AcpiFiles::new(&pci));
        if let Some(files) = &acpi_files {
            files.list(&fw_cfg)?;
        }
        let board = BoardSpec {
            fw_cfg: Arc::clone(&fw_cfg),
            clock: host.clock,
            reactor: host.reactor,
            rtc: RtcSpec {
                offset: spec.rtc_offset,
                drive: spec.rtc_drive,
                ram_below_4g: layout.low,
                ram_above_4g: layout.high,
            },
            serials: spec.serials,
            cpu_places: cpus::places(spec.topology, spec.vcpus),
            dimm_slots: spec.room.slots,
            no_reboot: spec.no_reboot,
        };
        let board = Board::new(board, &buses, &wiring, &pci, &host.notices)?;
        let vcpus = (0..spec.vcpus)
            .map(|index| {
                let id = spec.topology.apic_id(index);
                let report = Arc::clone(&host.vcpu_events);
                Vcpu::new(&vm, index, &model, id, buses.clone(), report)
            })
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(registers) = board.cpu_hotplug() {
            vcpus
                .iter()
                .for_each(|vcpu| registers.plug(vcpu.index(), false));
        }
        Ok(Self {
            vcpus: VcpuSet::new(vcpus),
            board,
            pci,
            wiring,
            vcpu_events: host.vcpu_events,
            fw_cfg,
            firmware,
            acpi_files,
            pluggable: Pluggable::new(spec.room.places(&layout)),
            slots,
            memory,
            backends: host.memory,
            layout,
            power_on,
            clock: KvmClock::default(),
            boot: spec.boot,
            held: spec.held,
            host_cpu,
            model,
            identity,
            generation: None,
            vm,
            _kvm_lease: kvm_lease,
        })
    }

    /// Ends the building: what is plugged now is there from the start, and from here on only
    /// hot-pluggable buses take devices.
    ///
    /// # Errors
    /// See [`reset`](Self::reset).
    pub fn power_on(&self) -> Result<(), MachineError> {
        self.reset()?;
        self.pci.set_started();
        Ok(())
    }

    /// Everything back to power-on, PCI addresses handed out, tables and kernel loaded, the first
    /// vCPU at the kernel's first instruction. RAM keeps what it held, as on hardware. The
    /// machine is paused or not yet started.
    ///
    /// # Errors
    /// The kernel's files can no longer be read, something does not fit, or KVM refuses.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.pci.reset();
        self.pluggable.reset();
        self.board.reset();
        self.power_on.restore(&self.vm)?;
        self.fw_cfg.set_cpus(fw_cfg::narrow(self.vcpu_count()));
        if let Some(firmware) = self.firmware.as_ref().filter(|_| !self.held) {
            self.vcpus.reset(Some(self.start_firmware(firmware)?))?;
            return Ok(());
        }
        // A tester plays the firmware as well: but for the way to its registers, it finds PCI as it
        // is after power-on.
        let last_bus = if self.held {
            setup::open_window(&self.pci, ECAM.start);
            0
        } else {
            setup::last_bus(&setup::assign(&self.pci, &self.setup()))
        };
        let entry = self.load(last_bus)?;
        self.vcpus.reset(entry)?;
        Ok(())
    }

    /// Lets the guest run: devices first, vCPUs last.
    ///
    /// # Errors
    /// KVM refuses the guest's clock.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.clock.start(&self.vm, &self.vcpus)?;
        self.board.resume();
        if let Some(firmware) = &self.firmware {
            firmware.resume();
        }
        self.pci.resume();
        if !self.held {
            self.vcpus.resume();
        }
        Ok(())
    }

    /// Stops the guest: returns when no vCPU is in it and no device touches its memory.
    ///
    /// # Errors
    /// KVM does not tell the guest's clock; the guest stands still all the same.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.vcpus.pause();
        self.pci.pause();
        self.board.pause();
        if let Some(firmware) = &self.firmware {
            firmware.pause();
        }
        self.clock.stop(&self.vm)?;
        Ok(())
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.board.pm().power_button();
    }

    /// Adds a serial port; only before [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// There is no such port, it is there already, or its chardev is in use.
    pub fn add_serial(&mut self, spec: SerialSpec) -> Result<(), MachineError> {
        self.board.add_serial(spec, &self.wiring)
    }

    /// The PCI tree: plug and unplug here, cold and hot.
    #[must_use]
    pub fn pci(&self) -> &Arc<PciHost> {
        &self.pci
    }

    /// Where PCI functions get their message-signalled interrupts.
    #[must_use]
    pub fn msi(&self) -> Arc<dyn MsiController> {
        self.wiring.msi()
    }

    /// What a tester sees of the interrupts, if one drives the machine.
    #[must_use]
    pub fn tested_irqs(&self) -> Option<&Arc<TestedIrqs>> {
        self.wiring.tester()
    }

    /// Where virtio queues register their doorbells.
    #[must_use]
    pub fn doorbells(&self) -> Arc<dyn Doorbells> {
        self.wiring.doorbells()
    }

    /// The two address spaces that a vCPU's accesses go to.
    #[must_use]
    pub fn buses(&self) -> &Buses {
        self.board.buses()
    }

    /// What the host tells the guest's programs.
    #[must_use]
    pub fn fw_cfg(&self) -> &FwCfg {
        &self.fw_cfg
    }

    /// What vCPUs can show a guest on this host.
    #[must_use]
    pub fn host_cpu(&self) -> &HostCpu {
        &self.host_cpu
    }

    /// What the vCPUs show a guest.
    #[must_use]
    pub fn cpu_model(&self) -> &CpuModel {
        &self.model
    }

    /// Sends each vCPU a non-maskable interrupt; one that stands still gets it when it runs.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn inject_nmi(&self, runs: bool) -> Result<(), MachineError> {
        self.vcpus.pause();
        let sent = self.vcpus.iter().try_for_each(Vcpu::inject_nmi);
        if runs && !self.held {
            self.vcpus.resume();
        }
        Ok(sent?)
    }

    /// The power management block.
    #[must_use]
    pub fn pm(&self) -> &Arc<AcpiPm> {
        self.board.pm()
    }

    /// The clock.
    #[must_use]
    pub fn rtc(&self) -> &Arc<Rtc> {
        self.board.rtc()
    }

    /// The board's devices.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Adds a panic notifier that can tell of `events`, before [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// There is one already.
    pub fn add_pvpanic(&mut self, events: u8) -> Result<(), MachineError> {
        self.board.add_pvpanic(events)
    }

    /// Adds the place where the guest tells of its VMCOREINFO, before [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// There is one already.
    pub fn add_vmcoreinfo(&mut self) -> Result<(), MachineError> {
        let file = Arc::new(Vmcoreinfo::default());
        self.board
            .add_file(board::VMCOREINFO, vmcoreinfo::FILE, file)
    }

    /// Adds a TPM, before [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// There is one already.
    pub fn add_tpm(&mut self, chip: Arc<TpmCrb>) -> Result<(), MachineError> {
        self.board.add_tpm(chip)
    }

    /// Adds the number that tells the guest whether it is a copy, before
    /// [`power_on`](Self::power_on).
    ///
    /// # Errors
    /// There is one already.
    pub fn add_generation(&mut self, generation: Uuid) -> Result<(), MachineError> {
        if self.firmware.is_some() {
            let place = Arc::new(GenerationPlace::default());
            self.board.add_file(board::VMGENID, vmgenid::FILE, place)?;
        }
        self.generation = Some(generation);
        Ok(())
    }

    /// That number, if there is one.
    #[must_use]
    pub fn generation(&self) -> Option<Uuid> {
        self.generation
    }

    /// How many interrupt vectors are taken: for leak checks.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.wiring.vectors()
    }

    fn setup(&self) -> SetupSpec {
        SetupSpec {
            ecam: ECAM.start,
            io: PCI_IO,
            memory32: PCI32,
            memory64: self.layout.pci64.clone(),
            port_memory: SetupSpec::PORT_MEMORY,
            port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
        }
    }

    /// Leaves everything to firmware.
    fn start_firmware(&self, firmware: &Firmware) -> Result<BootEntry, MachineError> {
        firmware.reset();
        firmware.shadow(&self.memory.memory())?;
        if let Some(generation) = self.generation {
            let file = tables::generation(generation);
            self.fw_cfg.set_file(acpi::GENERATION_FILE, file)?;
        }
        if let Some(files) = &self.acpi_files {
            files.describe(self.acpi(0));
        }
        Ok(BootEntry::ResetVector)
    }

    /// Puts tables and kernel into memory. The tables name PCI's buses up to `last_bus`.
    fn load(&self, last_bus: u8) -> Result<Option<BootEntry>, MachineError> {
        let memory = self.memory.memory();
        let tables =
            acpi::build(&self.acpi(last_bus)).ok_or(MachineError::Tables { tables: "ACPI" })?;
        write(&memory, tables.rsdp, &tables.bytes)?;
        let smbios = smbios::build(&self.identity.smbios(&self.model, &self.layout))
            .ok_or(MachineError::Tables { tables: "SMBIOS" })?;
        write(&memory, smbios.address, &smbios.bytes)?;
        if let Some(generation) = self.generation {
            let place = GENERATION.start + u64::from(acpi::vmgenid::OFFSET);
            write(&memory, place, &acpi::vmgenid::guest_order(generation))?;
        }
        let Some(boot) = &self.boot else {
            return Ok(None);
        };
        Ok(Some(boot.load(&memory, &self.layout, tables.rsdp)?))
    }

    fn acpi(&self, last_bus: u8) -> AcpiSpec {
        AcpiSpec {
            cpus: self.cpu_entries(),
            cpu_hotplug: self.board.cpu_hotplug().is_some(),
            dimm_slots: self
                .board
                .memory_hotplug()
                .map_or(0, |places| places.places()),
            numa: self.identity.numa.clone(),
            layout: self.layout.clone(),
            last_bus,
            intx: INTX,
            pm_base: port(PM_BASE),
            sci: SCI,
            s5_type: SLEEP_TYPE_S5,
            reset: (port(ResetControl::PORT), RESET_VALUE),
            serials: self.board.serials().to_vec(),
            rtc: true,
            pvpanic: self.board.has_pvpanic().then(|| port(pvpanic::BASE)),
            fw_cfg: port(devices::legacy::fw_cfg::BASE),
            generation: self.generation.is_some(),
            tpm: self.board.has_tpm().then(tpm_place),
        }
    }
}

impl Drop for Q35 {
    fn drop(&mut self) {
        self.vcpus = VcpuSet::default();
        take_down(self.pci.root());
    }
}

fn write(memory: &GuestMemView, address: u64, bytes: &[u8]) -> Result<(), MachineError> {
    Ok(memory.write_slice(bytes, GuestAddress(address))?)
}

fn tpm_place() -> TpmPlace {
    let low = |address| u32::try_from(address).unwrap_or(u32::MAX);
    TpmPlace {
        base: low(crb::BASE),
        len: low(crb::LEN),
        control_area: crb::CONTROL_AREA,
    }
}

/// A port number out of a bus address.
fn port(address: u64) -> u16 {
    u16::try_from(address).unwrap_or(u16::MAX)
}

mod cpus;
mod fixtures;
mod limits;
mod memory;
#[cfg(test)]
mod tests;
