//! What is soldered onto the board: the legacy devices, the serial ports, the ports into PCI
//! configuration space; and where each answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::bus::{BusDevice, Overlap};
use devices::chardev::Chardev;
use devices::legacy::i8042::KeyboardCommand;
use devices::legacy::{
    AcpiPm, ApmPorts, CpuHotplug, FastReset, FwCfg, FwCfgLive, Keyboard, Lpc, MemoryHotplug,
    PostCode, Pvpanic, ResetControl, Rtc, RtcHost, RtcSpec, Tco, acpi_pm, cpu_hotplug, fw_cfg, lpc,
    memory_hotplug, post, pvpanic, rtc,
};
use devices::lifecycle::Lifecycle;
use devices::notice::NoticeSink;
use devices::pci::intx::Wire;
use devices::pci::{ConfigPorts, PciHost, ports};
use devices::reactor::Reactor;
use devices::serial::Uart16550;
use devices::serial::uart16550::{COM, PORTS};
use devices::state::AnyStateful;
use devices::tpm::{self, TpmCrb};
use devices::vm_clock::VmClock;
use devices::watchdog::WatchdogHost;

use indexmap::IndexMap;

use super::MachineError;
use super::acpi::SerialPort;
use super::wiring::Wiring;
use crate::kvm::Buses;

/// What the panic notifier is called among the fixtures.
pub const PVPANIC: &str = "pvpanic";
/// What the TPM is called there.
pub const TPM: &str = "tpm-crb";
/// What the place where a guest tells of its VMCOREINFO is called there.
pub const VMCOREINFO: &str = "vmcoreinfo";
/// What the place where firmware tells of the machine's generation is called there.
pub const VMGENID: &str = "vmgenid";

/// What a serial port is called there.
#[must_use]
pub fn serial_name(index: usize) -> String {
    format!("serial{index}")
}

/// The GSI of the system control interrupt.
pub const SCI: u8 = 9;

/// A device that is soldered on.
pub trait Fixture: Lifecycle + AnyStateful {}

impl<T: Lifecycle + AnyStateful> Fixture for T {}

/// A serial port to be there.
#[derive(Clone)]
pub struct SerialSpec {
    /// 0 for COM1 to 3 for COM4.
    pub index: usize,
    /// The other end; without one, output is dropped.
    pub chardev: Option<Arc<Chardev>>,
}

/// What the board needs.
pub struct BoardSpec {
    /// The store of files for the guest.
    pub fw_cfg: Arc<FwCfg>,
    /// The time that devices live in.
    pub clock: VmClock,
    /// Where their timers run.
    pub reactor: Reactor,
    /// The real-time clock's start and the RAM it tells of.
    pub rtc: RtcSpec,
    /// The serial ports.
    pub serials: Vec<SerialSpec>,
    /// The APIC ids of the places for CPUs, where CPUs come and go; empty where all stay.
    pub cpu_places: Vec<u32>,
    /// How many places for memory modules there are.
    pub dimm_slots: u32,
    /// Whether the watchdog is wired so that it does nothing.
    pub no_reboot: bool,
}

/// The board's devices, mapped. Dropping it unmaps them.
pub struct Board {
    buses: Buses,
    /// The first port of each.
    mapped: Vec<u64>,
    /// By what the object tree calls them.
    fixtures: IndexMap<String, Arc<dyn Fixture>>,
    serials: Vec<SerialPort>,
    /// The wires to the interrupt chips, by GSI: COM1 and COM3 share one, as do COM2 and COM4. A
    /// wire also spares the chips, and us a system call, what does not change its level; a console
    /// makes two accesses for each byte.
    wires: BTreeMap<u32, Arc<Wire>>,
    pm: Arc<AcpiPm>,
    rtc: Arc<Rtc>,
    cpu_hotplug: Option<Arc<CpuHotplug>>,
    memory_hotplug: Option<Arc<MemoryHotplug>>,
    pvpanic: bool,
    has_tpm: bool,
    fw_cfg: Arc<FwCfg>,
    notices: NoticeSink,
}

impl Board {
    /// Builds and maps everything.
    ///
    /// # Errors
    /// A serial port does not exist or is there twice, or its chardev is in use.
    pub fn new(
        spec: BoardSpec,
        buses: &Buses,
        wiring: &Wiring,
        pci: &Arc<PciHost>,
        notices: &NoticeSink,
    ) -> Result<Self, MachineError> {
        let sci = wiring.line(u32::from(SCI));
        let rtc = RtcHost {
            reactor: spec.reactor.clone(),
            clock: spec.clock.clone(),
            line: wiring.line(u32::from(rtc::IRQ)),
        };
        let watchdog = WatchdogHost {
            reactor: spec.reactor,
            clock: spec.clock.clone(),
            notices: notices.clone(),
        };
        let mut board = Self {
            buses: buses.clone(),
            mapped: Vec::new(),
            fixtures: IndexMap::new(),
            serials: Vec::new(),
            wires: BTreeMap::new(),
            pm: AcpiPm::new(spec.clock.since_now(), sci, notices.clone()),
            rtc: Rtc::new(&spec.rtc, rtc),
            cpu_hotplug: None,
            memory_hotplug: None,
            pvpanic: false,
            has_tpm: false,
            fw_cfg: Arc::clone(&spec.fw_cfg),
            notices: notices.clone(),
        };
        let watchdog = Tco::new(watchdog, spec.no_reboot).map_err(MachineError::Watchdog)?;
        board.add_pci(pci, notices)?;
        board.add_lpc(pci, watchdog)?;
        board.add_legacy(notices)?;
        board.add("fw-cfg", fw_cfg::BASE, fw_cfg::LEN, spec.fw_cfg)?;
        for serial in spec.serials {
            board.add_serial(serial, wiring)?;
        }
        if !spec.cpu_places.is_empty() {
            board.add_cpu_hotplug(spec.cpu_places)?;
        }
        if spec.dimm_slots > 0 {
            board.add_memory_hotplug(spec.dimm_slots)?;
        }
        Ok(board)
    }

    /// Adds a serial port. Before the machine's power-on, which tells the guest of it.
    ///
    /// # Errors
    /// There is no such port, it is there already, or its chardev is in use.
    pub fn add_serial(&mut self, spec: SerialSpec, wiring: &Wiring) -> Result<(), MachineError> {
        let index = spec.index;
        let &(port, irq) = COM.get(index).ok_or(MachineError::Serial { index })?;
        let wire = self.wires.entry(irq);
        let uart = Uart16550::new(wire.or_insert_with(|| Wire::new(wiring.line(irq))).source());
        if let Some(chardev) = &spec.chardev {
            uart.connect(chardev)
                .map_err(|source| MachineError::Chardev { index, source })?;
        }
        self.map(port, PORTS, Arc::clone(&uart) as _)
            .map_err(|_| MachineError::Serial { index })?;
        self.fixtures.insert(serial_name(index), uart);
        self.serials.push(SerialPort {
            index: u8::try_from(index).unwrap_or(0),
            port: u16::try_from(port).unwrap_or(0),
            irq: u8::try_from(irq).unwrap_or(0),
        });
        Ok(())
    }

    /// Adds the panic notifier, which can tell of `events`. Before the machine's power-on, which tells the guest of it.
    ///
    /// # Errors
    /// There is one already.
    pub fn add_pvpanic(&mut self, events: u8) -> Result<(), MachineError> {
        let pvpanic = Arc::new(Pvpanic::new(self.notices.clone(), events));
        self.add(PVPANIC, pvpanic::BASE, 1, pvpanic)?;
        self.pvpanic = true;
        Ok(())
    }

    /// Adds a device that is a file of fw_cfg. Before the machine's power-on: the guest reads the
    /// list of files once.
    ///
    /// # Errors
    /// There is such a file already.
    pub fn add_file<D>(
        &mut self,
        fixture: &str,
        name: &str,
        device: Arc<D>,
    ) -> Result<(), MachineError>
    where
        D: FwCfgLive + Fixture + 'static,
    {
        self.fw_cfg.add_file(name, Arc::clone(&device) as _)?;
        self.fixtures.insert(fixture.to_owned(), device);
        Ok(())
    }

    /// Adds a TPM. Before the machine's power-on, which tells the guest of it.
    ///
    /// # Errors
    /// There is one already.
    pub fn add_tpm(&mut self, chip: Arc<TpmCrb>) -> Result<(), MachineError> {
        self.buses
            .mmio
            .insert(tpm::crb::BASE, tpm::crb::LEN, Arc::clone(&chip) as _)?;
        self.fixtures.insert(TPM.to_owned(), chip);
        self.has_tpm = true;
        Ok(())
    }

    /// Whether there is a TPM.
    #[must_use]
    pub fn has_tpm(&self) -> bool {
        self.has_tpm
    }

    /// Where its devices answer.
    #[must_use]
    pub fn buses(&self) -> &Buses {
        &self.buses
    }

    /// Whether there is a panic notifier.
    #[must_use]
    pub fn has_pvpanic(&self) -> bool {
        self.pvpanic
    }

    /// The serial ports that exist.
    #[must_use]
    pub fn serials(&self) -> &[SerialPort] {
        &self.serials
    }

    /// Where the guest learns of CPUs that come and go, on a machine where they do.
    #[must_use]
    pub fn cpu_hotplug(&self) -> Option<&Arc<CpuHotplug>> {
        self.cpu_hotplug.as_ref()
    }

    /// Where the guest learns of memory modules that come and go, on a machine with places for them.
    #[must_use]
    pub fn memory_hotplug(&self) -> Option<&Arc<MemoryHotplug>> {
        self.memory_hotplug.as_ref()
    }

    /// What is soldered on, by what the object tree calls it, in the order of soldering.
    pub fn fixtures(&self) -> impl Iterator<Item = (&str, &Arc<dyn Fixture>)> {
        let all = self.fixtures.iter();
        all.map(|(name, fixture)| (name.as_str(), fixture))
    }

    /// The power management block.
    #[must_use]
    pub fn pm(&self) -> &Arc<AcpiPm> {
        &self.pm
    }

    /// The clock.
    #[must_use]
    pub fn rtc(&self) -> &Arc<Rtc> {
        &self.rtc
    }

    fn add_pci(&mut self, pci: &Arc<PciHost>, notices: &NoticeSink) -> Result<(), Overlap> {
        let reset = Arc::new(ResetControl::new(notices.clone()));
        let config = ConfigPorts::new(Arc::clone(pci), Arc::clone(&reset) as _);
        self.fixtures.insert("reset-control".to_owned(), reset);
        let (base, len) = (ports::PORTS_BASE, ports::PORTS_LEN);
        self.add("pci-config-ports", base, len, Arc::new(config))
    }

    /// The bridge maps what is behind it, where the guest wants that.
    fn add_lpc(&mut self, pci: &Arc<PciHost>, watchdog: Arc<Tco>) -> Result<(), MachineError> {
        let pm = Arc::clone(&self.pm);
        let bridge = Lpc::new(Arc::clone(&pm), Arc::clone(&watchdog));
        pci.plug(None, lpc::ADDRESS, Arc::new(bridge))?;
        self.fixtures.insert("acpi-pm".to_owned(), pm);
        self.fixtures.insert("tco".to_owned(), watchdog);
        Ok(())
    }

    fn add_legacy(&mut self, notices: &NoticeSink) -> Result<(), Overlap> {
        let apm = Arc::new(ApmPorts(Arc::clone(&self.pm)));
        self.map(acpi_pm::APM_BASE, acpi_pm::APM_LEN, apm)?;
        let rtc = Arc::clone(&self.rtc);
        self.add("rtc", rtc::BASE, rtc::LEN, rtc)?;
        self.add("post-code", post::BASE, 1, Arc::new(PostCode))?;
        let fast = Arc::new(FastReset::new(notices.clone()));
        self.add("fast-reset", FastReset::PORT, 1, fast)?;
        let keyboard = Arc::new(Keyboard::new(notices.clone()));
        self.add("i8042", Keyboard::DATA, 1, Arc::clone(&keyboard))?;
        let command = Arc::new(KeyboardCommand(keyboard));
        self.map(Keyboard::COMMAND, 1, command)?;
        Ok(())
    }

    fn add_cpu_hotplug(&mut self, apic_ids: Vec<u32>) -> Result<(), Overlap> {
        let pm = Arc::clone(&self.pm);
        let registers = Arc::new(CpuHotplug::new(apic_ids, pm, self.notices.clone()));
        self.cpu_hotplug = Some(Arc::clone(&registers));
        self.add(
            "acpi-cpu-hotplug",
            cpu_hotplug::BASE,
            cpu_hotplug::LEN,
            registers,
        )
    }

    fn add_memory_hotplug(&mut self, places: u32) -> Result<(), Overlap> {
        let pm = Arc::clone(&self.pm);
        let registers = Arc::new(MemoryHotplug::new(places, pm, self.notices.clone()));
        self.memory_hotplug = Some(Arc::clone(&registers));
        let (base, len) = (memory_hotplug::BASE, memory_hotplug::LEN);
        self.add("acpi-memory-hotplug", base, len, registers)
    }

    /// Maps a device with a life at a range of ports.
    fn add<D: BusDevice + Fixture + 'static>(
        &mut self,
        name: &str,
        base: u64,
        len: u64,
        device: Arc<D>,
    ) -> Result<(), Overlap> {
        self.map(base, len, Arc::clone(&device) as _)?;
        self.fixtures.insert(name.to_owned(), device);
        Ok(())
    }

    fn map(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        self.buses.pio.insert(base, len, device)?;
        self.mapped.push(base);
        Ok(())
    }
}

impl Lifecycle for Board {
    fn pause(&self) {
        self.fixtures.values().for_each(|fixture| fixture.pause());
    }

    fn resume(&self) {
        self.fixtures.values().for_each(|fixture| fixture.resume());
    }

    fn reset(&self) {
        self.fixtures.values().for_each(|fixture| fixture.reset());
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // The configuration ports hold the PCI tree, and the tree holds the buses.
        for base in std::mem::take(&mut self.mapped) {
            self.buses.pio.remove(base);
        }
        if self.has_tpm {
            self.buses.mmio.remove(tpm::crb::BASE);
        }
    }
}
