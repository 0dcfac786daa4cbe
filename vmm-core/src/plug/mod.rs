//! Devices: from `device_add` or `-device` to a plugged function, and back.
//!
//! ```text
//!   DeviceOptions ──► plug ──► blk / net / rng / serial / vsock / board  one file for each family
//!        claims of backends ─────┤ (given back if anything fails)
//!        devices::* built ───────┤
//!        PciHost::plug ──────────┴──► DeviceTree
//!
//!   device_del ──► request_unplug ──► guest ──► Notice::Unplugged ──► Vm::unplugged
//! ```
//!
//! A new device model is one arm here and one file beside it.

pub mod balloon;
mod blk;
mod board;
pub(crate) mod cpu;
pub mod dimm;
mod input;
pub mod mem;
mod net;
mod pci;
pub mod pmem;
mod queue_threads;
mod rng;
mod scsi;
mod serial;
mod vhost_user;
mod vsock;

use std::sync::{Arc, Weak};

use devices::virtio::input::InputModel;
use devices::virtio::transport::VirtioPci;
use fdset::{Door, Escrow};
use qapi_schema::devices::{DeviceOptions, DeviceOptionsVariant as Kind};
use qapi_schema::qdev::{DeviceDeleted, DeviceUnplugGuestError};
use qapi_schema::{Event, QmpError};
use serde_json::Value;

use crate::boot_order;
use crate::device_tree::{Claim, Device, Part, path};
use crate::kvm::cpuid::CpuModel;
use crate::qom;
use crate::vm::Vm;

/// What the object tree calls the virtio device behind a PCI function.
pub const VIRTIO_CHILD: &str = devices::virtio::transport::pci::BACKEND;

/// A device on its way into the machine, with what it has claimed so far.
struct Plug<'a> {
    vm: &'a mut Vm,
    /// Where it finds what was handed in; names are used up when it is in.
    door: &'a Door,
    /// What it will be called.
    name: String,
    /// The bus asked for.
    bus: Option<String>,
    claims: Vec<Claim>,
    /// What carries it to the guest, if it is a virtio device.
    virtio: Weak<VirtioPci>,
}

/// Adds a device to the machine.
///
/// # Errors
/// The id is taken, a property is wrong, a backend is missing or busy, or the bus refuses. Then
/// nothing has changed.
pub fn plug(vm: &mut Vm, door: &Door, options: DeviceOptions) -> Result<(), QmpError> {
    let shown = picture(&options, vm.machine.cpu_model());
    boot_order::check(&vm.devices, boot_order::index(&shown))?;
    let driver = options.driver.tag().as_str();
    let name = vm.devices.name(options.id.as_deref())?;
    let escrow = Arc::new(Escrow::new(Arc::clone(door.registry())));
    let door = door.clone().with_escrow(Arc::clone(&escrow));
    let mut plug = Plug {
        vm,
        door: &door,
        name,
        bus: options.bus,
        claims: Vec::new(),
        virtio: Weak::new(),
    };
    let outcome = match options.driver {
        Kind::VirtioBlkPci(disk) | Kind::VirtioBlkPciNonTransitional(disk) => {
            blk::plug(&mut plug, disk)
        }
        Kind::VirtioBalloonPci(balloon) | Kind::VirtioBalloonPciNonTransitional(balloon) => {
            balloon::plug(&mut plug, balloon)
        }
        Kind::VirtioMemPci(memory) => mem::plug(&mut plug, memory),
        Kind::VirtioPmemPci(memory) => pmem::plug(&mut plug, &memory),
        Kind::VirtioNetPci(card) | Kind::VirtioNetPciNonTransitional(card) => {
            net::plug(&mut plug, card)
        }
        Kind::VirtioRngPci(rng) | Kind::VirtioRngPciNonTransitional(rng) => {
            rng::plug(&mut plug, rng)
        }
        Kind::VhostVsockPci(vsock) | Kind::VhostVsockPciNonTransitional(vsock) => {
            vsock::plug(&mut plug, vsock)
        }
        Kind::VirtioSerialPci(serial) | Kind::VirtioSerialPciNonTransitional(serial) => {
            serial::plug(&mut plug, serial)
        }
        Kind::VirtioScsiPci(bus) | Kind::VirtioScsiPciNonTransitional(bus) => {
            scsi::plug(&mut plug, bus)
        }
        Kind::VhostUserBlkPci(disk) | Kind::VhostUserBlkPciNonTransitional(disk) => {
            vhost_user::plug_blk(&mut plug, disk)
        }
        Kind::VhostUserFsPci(share) => vhost_user::plug_fs(&mut plug, share),
        Kind::ScsiHd(disk) => scsi::plug_disk(&mut plug, disk),
        Kind::ScsiCd(drive) => scsi::plug_cd(&mut plug, drive),
        Kind::Virtconsole(port) => serial::plug_console(&mut plug, port),
        Kind::Virtserialport(port) => serial::plug_port(&mut plug, port),
        Kind::PcDimm(module) => dimm::plug(&mut plug, &module),
        Kind::PciePciBridge(place) => pci::plug_pci_bridge(&mut plug, place),
        Kind::PcieRootPort(port) => pci::plug_root_port(&mut plug, port),
        Kind::IsaSerial(serial) => board::plug_serial(&mut plug, serial),
        Kind::BroadwellNoTSXX86_64Cpu(cpu)
        | Kind::BroadwellX86_64Cpu(cpu)
        | Kind::CascadelakeServerX86_64Cpu(cpu)
        | Kind::EPYCMilanX86_64Cpu(cpu)
        | Kind::EPYCRomeX86_64Cpu(cpu)
        | Kind::EPYCX86_64Cpu(cpu)
        | Kind::HaswellNoTSXX86_64Cpu(cpu)
        | Kind::HaswellX86_64Cpu(cpu)
        | Kind::IcelakeServerX86_64Cpu(cpu)
        | Kind::IvyBridgeX86_64Cpu(cpu)
        | Kind::NehalemX86_64Cpu(cpu)
        | Kind::SandyBridgeX86_64Cpu(cpu)
        | Kind::SkylakeClientX86_64Cpu(cpu)
        | Kind::SkylakeServerX86_64Cpu(cpu)
        | Kind::WestmereX86_64Cpu(cpu)
        | Kind::HostX86_64Cpu(cpu)
        | Kind::Kvm64X86_64Cpu(cpu)
        | Kind::MaxX86_64Cpu(cpu)
        | Kind::Qemu64X86_64Cpu(cpu)
        | Kind::X86_64V1X86_64Cpu(cpu)
        | Kind::X86_64V2X86_64Cpu(cpu)
        | Kind::X86_64V3X86_64Cpu(cpu)
        | Kind::X86_64V4X86_64Cpu(cpu) => cpu::plug(&mut plug, driver, &cpu),
        Kind::VirtioKeyboardPci(input) => input::plug(&mut plug, InputModel::Keyboard, input),
        Kind::VirtioMousePci(input) => input::plug(&mut plug, InputModel::Mouse, input),
        Kind::VirtioTabletPci(input) => input::plug(&mut plug, InputModel::Tablet, input),
        Kind::PvpanicPci(pvpanic) => pci::plug_pvpanic(&mut plug, pvpanic),
        Kind::TpmCrb(tpm) => board::plug_tpm(&mut plug, tpm),
        Kind::Vmcoreinfo(_) => board::plug_vmcoreinfo(&mut plug),
        Kind::Vmgenid(vmgenid) => board::plug_vmgenid(&mut plug, vmgenid),
        Kind::I6300esb(watchdog) => pci::plug_watchdog(&mut plug, watchdog),
        Kind::Pvpanic(pvpanic) => board::plug_pvpanic(&mut plug, pvpanic),
    };
    let Plug {
        vm,
        name,
        claims,
        virtio,
        ..
    } = plug;
    match outcome {
        Ok(part) => {
            escrow.use_up();
            vm.devices.add(
                name,
                Device {
                    id: options.id,
                    driver,
                    part,
                    claims,
                    virtio,
                    shown,
                },
            );
            Ok(())
        }
        Err(error) => {
            vm.release(&name, &claims);
            Err(error)
        }
    }
}

/// `device_del`: asks the guest to let go of a device, or takes it where nobody needs to be asked.
///
/// # Errors
/// There is no such device, it is there for good, or the guest has been asked already.
pub fn request_unplug(vm: &mut Vm, id: &str) -> Result<(), QmpError> {
    if let Some(index) = cpu::soldered(vm, id) {
        return cpu::request_unplug(vm, index);
    }
    let Some(name) = vm.devices.resolve(id).map(str::to_owned) else {
        return Err(QmpError::device_not_found(id));
    };
    let part = vm
        .devices
        .find(&name)
        .map(|device| (device.part.clone(), device.driver));
    match part {
        None => Err(QmpError::device_not_found(id)),
        Some((Part::Board(_), driver)) => Err(QmpError::generic(format!(
            "Device '{id}' of type '{driver}' is part of the board and cannot be unplugged"
        ))),
        Some((Part::Port { console, number }, _)) => {
            console
                .unplug_port(number)
                .map_err(|error| QmpError::from_error(&error))?;
            unplugged(vm, &name);
            Ok(())
        }
        Some((Part::Cpu(index), _)) => cpu::request_unplug(vm, index),
        Some((Part::Module(module), _)) => dimm::request_unplug(vm, module),
        Some((Part::ScsiUnit(..), _)) => {
            unplugged(vm, &name);
            Ok(())
        }
        // As with QEMU: what the guest has mapped there would be gone.
        Some((Part::Persistent(_), _)) => Err(QmpError::generic(
            "this virtio based memory devices cannot be unplugged",
        )),
        Some((Part::Memory(memory), _)) => {
            memory
                .leave()
                .map_err(|error| QmpError::from_error(&error))?;
            let asked = request_removal(vm, &name);
            if asked.is_err() {
                memory.stay();
            }
            asked
        }
        Some((_, _)) => request_removal(vm, &name),
    }
}

/// Asks the guest to let go of a PCI function.
fn request_removal(vm: &Vm, name: &str) -> Result<(), QmpError> {
    let pci = vm.machine.pci_host("device_del")?;
    pci.request_unplug(name)
        .map_err(|error| QmpError::from_error(&error))
}

/// The guest keeps a device that it was asked for: tells the clients.
pub fn refused(vm: &Vm, name: &str) {
    let Some(device) = vm.devices.find(name) else {
        return;
    };
    if let Part::Memory(memory) = &device.part {
        memory.stay();
    }
    vm.events
        .emit(Event::DeviceUnplugGuestError(DeviceUnplugGuestError {
            device: device.id.clone(),
            path: path(name, device.id.is_some()),
        }));
}

/// A device has left its bus: gives back what it used and tells the clients.
pub fn unplugged(vm: &mut Vm, name: &str) {
    let Some(device) = vm.devices.remove(name) else {
        return;
    };
    if let Part::Console(console) = &device.part {
        for port in vm.devices.ports_of(console) {
            unplugged(vm, &port);
        }
    }
    if let Part::ScsiBus(bus) = &device.part {
        for unit in vm.devices.units_of(bus) {
            unplugged(vm, &unit);
        }
    }
    if let Part::ScsiUnit(bus, unit) = &device.part {
        scsi::leave(vm, name, bus, unit);
    }
    if let (Part::Memory(_) | Part::Module(_) | Part::Persistent(_), Ok(board)) =
        (&device.part, vm.machine.board_mut(name))
    {
        board.unplug_memory(name);
    }
    let has_id = device.id.is_some();
    let Device {
        id, claims, part, ..
    } = device;
    // What the device had open is closed before anybody hears that it is gone.
    drop(part);
    vm.release(name, &claims);
    for claim in &claims {
        if let Claim::Drive(id) = claim {
            vm.cancel_jobs_on(id);
            vm.remove_drive(id);
        }
    }
    vm.events.emit(Event::DeviceDeleted(DeviceDeleted {
        device: id,
        path: path(name, has_id),
    }));
}

impl Plug<'_> {
    fn claim(&mut self, claim: Claim) {
        self.claims.push(claim);
    }
}

/// How the object tree shows a device: its properties as they were given. A virtio device on PCI
/// has the device itself as a child, as in QEMU: `query-block` names disks by it.
fn picture(options: &DeviceOptions, cpus: Option<&CpuModel>) -> qom::Object {
    let driver = options.driver.tag().as_str();
    let mut object = qom::Object::new(driver);
    if let Ok(Value::Object(members)) = serde_json::to_value(options) {
        for (name, value) in members {
            if !matches!(name.as_str(), "driver" | "id" | "bus") {
                object = object.with_json(&name, value);
            }
        }
    }
    if driver.ends_with("-x86_64-cpu") {
        return cpu::picture(object, cpus);
    }
    match driver.split_once("-pci") {
        Some((device, _)) if device.starts_with("virtio-") || device.starts_with("vhost-") => {
            object.with_child(VIRTIO_CHILD, qom::Object::new(format!("{device}-device")))
        }
        _ => object,
    }
}
