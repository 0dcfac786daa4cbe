//! The devices of the ISA bus: `isa-serial` and `pvpanic`. They are there for good, so they come
//! before the machine starts.

use devices::legacy::pvpanic;
use devices::serial::uart16550::COM;
use qapi_schema::QmpError;
use qapi_schema::devices::{IsaSerialProperties, PvpanicProperties};

use super::Plug;
use crate::device_tree::Part;
use crate::machine::board::SerialSpec;

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
    Ok(Part::Board)
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
    Ok(Part::Board)
}

fn refuse_if_started(plug: &Plug<'_>, driver: &str) -> Result<(), QmpError> {
    if plug.vm.is_powered_on() {
        return Err(QmpError::generic(format!(
            "Bus 'isa.0' does not support hotplugging: give '-device {driver}' at the start"
        )));
    }
    Ok(())
}
