//! `virtio-serial-pci` and its ports, `virtconsole` and `virtserialport`.

use std::sync::Arc;

use devices::virtio::console::{ConsoleSpec, PortKind, PortSpec, VirtioConsole};
use qapi_schema::QmpError;
use qapi_schema::devices::{VirtSerialPortProperties, VirtioSerialProperties};

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::Part;

/// Ports of a device where the client does not say.
const MAX_PORTS: u32 = 31;

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioSerialProperties) -> Result<Part, QmpError> {
    let max_ports = options.max_ports.unwrap_or(MAX_PORTS);
    let mut place = virtio_place!(options);
    // As in QEMU, fewer than there are queues (two for each port): Linux then lets all queues
    // share one vector instead of programming one for each port that will never be there.
    place.vectors.get_or_insert(max_ports.saturating_add(1));
    let spec = ConsoleSpec {
        id: plug.name.clone(),
        max_ports,
    };
    let console = VirtioConsole::new(spec, plug.vm.reactor.clone(), plug.vm.mailbox.notices())
        .map_err(|error| QmpError::from_error(&error))?;
    plug_virtio(plug, place, Arc::clone(&console) as _)?;
    Ok(Part::Console(console))
}

pub(super) fn plug_console(
    plug: &mut Plug<'_>,
    options: VirtSerialPortProperties,
) -> Result<Part, QmpError> {
    port(plug, options, PortKind::Console)
}

pub(super) fn plug_port(
    plug: &mut Plug<'_>,
    options: VirtSerialPortProperties,
) -> Result<Part, QmpError> {
    port(plug, options, PortKind::Serial)
}

fn port(
    plug: &mut Plug<'_>,
    options: VirtSerialPortProperties,
    kind: PortKind,
) -> Result<Part, QmpError> {
    let Some((_, console)) = plug.vm.devices.console(plug.bus.as_deref()) else {
        return Err(QmpError::generic(match &plug.bus {
            Some(bus) => format!("Bus '{bus}' not found"),
            None => format!(
                "No 'virtio-serial-bus' bus found for device '{}'; add a virtio-serial-pci first",
                plug.name
            ),
        }));
    };
    let console = Arc::clone(console);
    let chardev = options
        .chardev
        .map(|id| plug.vm.chardevs.find(&id))
        .transpose()
        .map_err(|error| QmpError::from_error(&error))?;
    let number = console
        .plug_port(&PortSpec {
            // A nameless device has nobody who could be told of its changes.
            id: (!plug.name.starts_with("device[")).then(|| plug.name.clone()),
            kind,
            name: options.name,
            number: options.nr,
            chardev,
        })
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Port { console, number })
}
