//! The devices of the ISA bus, `isa-serial` and `pvpanic`, and those of no bus, `tpm-crb`,
//! `vmcoreinfo` and `vmgenid`. They are there for good, so they come before the machine starts.

use devices::legacy::pvpanic;
use devices::serial::uart16550::COM;
use devices::virtio::rng::{Builtin, Entropy};
use qapi_schema::QmpError;
use qapi_schema::devices::{IsaSerialProperties, PvpanicProperties};
use qapi_schema::drivers::{BusKind, find_driver};
use qapi_schema::fw_cfg_devices::VmgenidProperties;
use qapi_schema::tpm::TpmCrbProperties;

use super::Plug;
use crate::device_tree::Part;
use crate::machine::board::{self, SerialSpec, serial_name};
use crate::resolve::unmet;
use crate::uuid::{self, Uuid};

pub(super) fn plug_serial(
    plug: &mut Plug<'_>,
    options: IsaSerialProperties,
) -> Result<Part, QmpError> {
    let chardev = options
        .chardev
        .map(|id| plug.vm.chardevs.find(&id))
        .transpose()
        .map_err(|error| QmpError::from_error(&error))?;
    refuse_if_started(plug, "isa-serial")?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    let taken = board.board().serials();
    let free = || (0..).find(|index| !taken.iter().any(|port| u32::from(port.index) == *index));
    let index = options.index.or_else(free).unwrap_or(0);
    let place = usize::try_from(index).unwrap_or(usize::MAX);
    let Some(&(port, irq)) = COM.get(place) else {
        return Err(QmpError::generic(format!(
            "isa-serial: the board has four serial ports, index 0 to 3, not {index}"
        )));
    };
    if options.iobase.is_some_and(|base| u64::from(base) != port)
        || options.irq.is_some_and(|wanted| wanted != irq)
    {
        return Err(QmpError::generic(format!(
            "isa-serial: port {index} has iobase={port:#x} and irq={irq}, and no others"
        )));
    }
    board
        .add_serial(SerialSpec {
            index: place,
            chardev,
        })
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board(serial_name(place)))
}

pub(super) fn plug_pvpanic(
    plug: &mut Plug<'_>,
    options: PvpanicProperties,
) -> Result<Part, QmpError> {
    refuse_if_started(plug, "pvpanic")?;
    if options
        .ioport
        .is_some_and(|port| u64::from(port) != pvpanic::BASE)
    {
        return Err(QmpError::generic(format!(
            "pvpanic: it has ioport={:#x}, and no other",
            pvpanic::BASE,
        )));
    }
    let board = plug.vm.machine.board_mut(&plug.name)?;
    board
        .add_pvpanic(options.events.unwrap_or(pvpanic::EVENTS))
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board(board::PVPANIC.to_owned()))
}

pub(super) fn plug_tpm(plug: &mut Plug<'_>, options: TpmCrbProperties) -> Result<Part, QmpError> {
    refuse_if_started(plug, "tpm-crb")?;
    unmet::refuse(&[(
        options.ppi == Some(true),
        "ppi=on",
        "there is no firmware that a guest could leave wishes for",
    )])?;
    plug.vm.machine.board(&plug.name)?;
    let chip = plug.vm.tpm_chip(&options.tpmdev)?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    board
        .add_tpm(chip)
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board(board::TPM.to_owned()))
}

pub(super) fn plug_vmcoreinfo(plug: &mut Plug<'_>) -> Result<Part, QmpError> {
    refuse_if_started(plug, "vmcoreinfo")?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    board
        .add_vmcoreinfo()
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board(board::VMCOREINFO.to_owned()))
}

pub(super) fn plug_vmgenid(
    plug: &mut Plug<'_>,
    options: VmgenidProperties,
) -> Result<Part, QmpError> {
    refuse_if_started(plug, "vmgenid")?;
    let generation = match options.guid.as_deref() {
        None | Some("auto") => random_uuid()?,
        Some(guid) => uuid::parse(guid).map_err(|error| QmpError::from_error(&error))?,
    };
    let board = plug.vm.machine.board_mut(&plug.name)?;
    if board.generation().is_some() {
        return Err(QmpError::generic("at most one vmgenid device is permitted"));
    }
    board
        .add_generation(generation)
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board(board::VMGENID.to_owned()))
}

fn random_uuid() -> Result<Uuid, QmpError> {
    let mut bytes = [0; 16];
    let filled = Builtin.fill(&mut bytes);
    if !matches!(filled, Ok(16)) {
        return Err(QmpError::generic(
            "guid=auto: the host has no random numbers yet: give the UUID",
        ));
    }
    Ok(uuid::from_random(bytes))
}

fn refuse_if_started(plug: &Plug<'_>, driver: &str) -> Result<(), QmpError> {
    if !plug.vm.is_powered_on() {
        return Ok(());
    }
    let who = match find_driver(driver).map(|driver| driver.bus) {
        Some(BusKind::Isa) => "Bus 'isa.0'".to_owned(),
        _ => format!("Device '{driver}'"),
    };
    Err(QmpError::generic(format!(
        "{who} does not support hotplugging: give '-device {driver}' at the start"
    )))
}
