//! What is soldered onto the board: the legacy devices, the serial ports, the ports into PCI
//! configuration space; and where each answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::bus::{BusDevice, Overlap};
use devices::chardev::Chardev;
use devices::legacy::reset::KeyboardCommand;
use devices::legacy::{
    AcpiPm, ApmPorts, Clock, CpuHotplug, FastReset, FwCfg, FwCfgLive, Keyboard, MemoryHotplug,
    PostCode, Pvpanic, ResetControl, Rtc, RtcSpec, acpi_pm, cpu_hotplug, fw_cfg, memory_hotplug,
    post, pvpanic, rtc,
};
use devices::lifecycle::Lifecycle;
use devices::notice::NoticeSink;
use devices::pci::intx::Wire;
use devices::pci::{ConfigPorts, PciHost, ports};
use devices::serial::Uart16550;
use devices::serial::uart16550::{COM, PORTS};
use devices::tpm::{self, TpmCrb};
use devices::vm_clock::VmClock;

use super::MachineError;
use super::acpi::SerialPort;
use super::wiring::Wiring;
use crate::kvm::Buses;

/// The GSI of the system control interrupt.
pub const SCI: u8 = 9;

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
    /// The real-time clock's start and the RAM it tells of.
    pub rtc: RtcSpec,
    /// The serial ports.
    pub serials: Vec<SerialSpec>,
    /// The APIC ids of the places for CPUs, where CPUs come and go; empty where all stay.
    pub cpu_places: Vec<u32>,
    /// How many places for memory modules there are.
    pub dimm_slots: u32,
}

/// The board's devices, mapped. Dropping it unmaps them.
pub struct Board {
    buses: Buses,
    /// The first port of each.
    mapped: Vec<u64>,
    devices: Vec<Arc<dyn Lifecycle>>,
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
        let mut board = Self {
            buses: buses.clone(),
            mapped: Vec::new(),
            devices: Vec::new(),
            serials: Vec::new(),
            wires: BTreeMap::new(),
            pm: AcpiPm::new(spec.clock.since_now(), sci, notices.clone()),
            rtc: Arc::new(Rtc::new(spec.rtc, Clock::wall())),
            cpu_hotplug: None,
            memory_hotplug: None,
            pvpanic: false,
            has_tpm: false,
            fw_cfg: Arc::clone(&spec.fw_cfg),
            notices: notices.clone(),
        };
        board.add_pci(pci, notices)?;
        board.add_legacy(notices)?;
        board.add(fw_cfg::BASE, fw_cfg::LEN, spec.fw_cfg)?;
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
        self.devices.push(uart);
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
        self.add(pvpanic::BASE, 1, pvpanic)?;
        self.pvpanic = true;
        Ok(())
    }

    /// Adds a device that is a file of fw_cfg. Before the machine's power-on: the guest reads the
    /// list of files once.
    ///
    /// # Errors
    /// There is such a file already.
    pub fn add_file<D>(&mut self, name: &str, device: Arc<D>) -> Result<(), MachineError>
    where
        D: FwCfgLive + Lifecycle + 'static,
    {
        self.fw_cfg.add_file(name, Arc::clone(&device) as _)?;
        self.devices.push(device);
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
        self.devices.push(chip);
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
        self.devices.push(reset);
        self.map(ports::PORTS_BASE, ports::PORTS_LEN, Arc::new(config))
    }

    fn add_legacy(&mut self, notices: &NoticeSink) -> Result<(), Overlap> {
        let pm = Arc::clone(&self.pm);
        self.add(acpi_pm::PM_BASE, acpi_pm::PM_LEN, Arc::clone(&pm))?;
        let apm = Arc::new(ApmPorts(pm));
        self.map(acpi_pm::APM_BASE, acpi_pm::APM_LEN, apm)?;
        let rtc = Arc::clone(&self.rtc);
        self.add(rtc::BASE, rtc::LEN, rtc)?;
        self.add(post::BASE, 1, Arc::new(PostCode))?;
        let fast = Arc::new(FastReset::new(notices.clone()));
        self.add(FastReset::PORT, 1, fast)?;
        let keyboard = Arc::new(Keyboard::new(notices.clone()));
        self.add(Keyboard::DATA, 1, Arc::clone(&keyboard))?;
        let command = Arc::new(KeyboardCommand(keyboard));
        self.map(Keyboard::COMMAND, 1, command)?;
        Ok(())
    }

    fn add_cpu_hotplug(&mut self, apic_ids: Vec<u32>) -> Result<(), Overlap> {
        let pm = Arc::clone(&self.pm);
        let registers = Arc::new(CpuHotplug::new(apic_ids, pm, self.notices.clone()));
        self.cpu_hotplug = Some(Arc::clone(&registers));
        self.add(cpu_hotplug::BASE, cpu_hotplug::LEN, registers)
    }

    fn add_memory_hotplug(&mut self, places: u32) -> Result<(), Overlap> {
        let pm = Arc::clone(&self.pm);
        let registers = Arc::new(MemoryHotplug::new(places, pm, self.notices.clone()));
        self.memory_hotplug = Some(Arc::clone(&registers));
        self.add(memory_hotplug::BASE, memory_hotplug::LEN, registers)
    }

    /// Maps a device with a life at a range of ports.
    fn add<D: BusDevice + Lifecycle + 'static>(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<D>,
    ) -> Result<(), Overlap> {
        self.map(base, len, Arc::clone(&device) as _)?;
        self.devices.push(device);
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
        self.devices.iter().for_each(|device| device.pause());
    }

    fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
    }

    fn reset(&self) {
        self.devices.iter().for_each(|device| device.reset());
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
