//! The devices of the ISA bus: `isa-serial` and `pvpanic`. They are there for good, so they come
//! before the machine starts.

use qapi_schema::QmpError;
use qapi_schema::devices::{IsaSerialProperties, PvpanicProperties};

use super::Plug;
use crate::device_tree::Part;
use crate::machine::SerialSpec;

/// Port and interrupt of COM1 to COM4.
const COM_PORTS: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// The port of pvpanic where the client does not say.
const PVPANIC_PORT: u16 = 0x505;
/// Panicked, and crash-loaded.
const PVPANIC_EVENTS: u8 = 0x3;

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
    let index = match options.index {
        Some(index) => index,
        None => board.free_serial().ok_or_else(|| {
            QmpError::generic("isa-serial: all four serial ports are in use")
        })?,
    };
    let place = usize::try_from(index).ok().and_then(|index| COM_PORTS.get(index)).copied();
    let Some((port, irq)) = place else {
        return Err(QmpError::generic(format!(
            "Parameter 'index' expects 0 to 3 (COM1 to COM4), not {index}"
        )));
    };
    let port = match options.iobase {
        None => port,
        Some(base) => u16::try_from(base)
            .map_err(|_| QmpError::generic(format!("Parameter 'iobase' {base:#x} is no port")))?,
    };
    let spec = SerialSpec { index, port, irq: options.irq.unwrap_or(irq), chardev };
    board.add_serial(spec).map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Board)
}

pub(super) fn plug_pvpanic(
    plug: &mut Plug<'_>,
    options: PvpanicProperties,
) -> Result<Part, QmpError> {
    refuse_if_started(plug, "pvpanic")?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    let port = options.ioport.unwrap_or(PVPANIC_PORT);
    let events = options.events.unwrap_or(PVPANIC_EVENTS) & PVPANIC_EVENTS;
    board.add_pvpanic(port, events).map_err(|error| QmpError::from_error(&error))?;
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
