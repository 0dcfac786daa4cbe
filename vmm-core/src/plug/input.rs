//! `virtio-keyboard-pci`, `virtio-mouse-pci` and `virtio-tablet-pci`.

use std::sync::Arc;

use devices::virtio::input::{InputModel, VirtioInput};
use qapi_schema::QmpError;
use qapi_schema::ui::VirtioInputProperties;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::Part;

/// How long a serial number can be: an answer of the device's configuration (virtio 1.2, 5.8.4).
const SERIAL: usize = 128;

pub(super) fn plug(
    plug: &mut Plug<'_>,
    model: InputModel,
    options: VirtioInputProperties,
) -> Result<Part, QmpError> {
    let place = virtio_place!(options);
    let serial = options.serial.unwrap_or_default();
    if serial.len() > SERIAL {
        return Err(QmpError::generic(format!(
            "Parameter 'serial' expects at most {SERIAL} bytes, not {}",
            serial.len()
        )));
    }
    let input = VirtioInput::new(model, serial, plug.vm.reactor.clone());
    plug_virtio(plug, place, Arc::clone(&input) as _)?;
    Ok(Part::Input(input))
}
