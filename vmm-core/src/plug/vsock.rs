//! `vhost-vsock-pci`.

use std::sync::Arc;

use devices::vhost::VhostVsock;
use devices::virtio::vsock::{VirtioVsock, VirtioVsockSpec};
use fdset::{Kind, Role};
use qapi_schema::QmpError;
use qapi_schema::vsock::VhostVsockProperties;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::Part;
use crate::resolve;

pub(super) fn plug(plug: &mut Plug<'_>, options: VhostVsockProperties) -> Result<Part, QmpError> {
    let place = virtio_place!(options);
    let spec = resolve::vsock::vsock(&options)?;
    let reason = format!("device '{}'", plug.name);
    let kinds = &[Kind::VhostVsock];
    let file = fdset::handed_in(plug.door, &spec.device, Role::Vhost, kinds, &reason)
        .map_err(|error| QmpError::from_error(&error))?;
    let server = VhostVsock::new(file, spec.cid).map_err(|error| {
        let why = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => "another guest is called so; give another 'guest-cid'",
            Some(libc::EBUSY) => {
                "the fd serves another process; open /dev/vhost-vsock once for each guest"
            }
            _ => "the kernel refuses",
        };
        QmpError::generic(format!(
            "vhost-vsock: unable to set guest cid {}: {why}: {error}",
            spec.cid
        ))
    })?;
    let device = VirtioVsock::new(VirtioVsockSpec {
        id: plug.name.clone(),
        cid: spec.cid,
        seqpacket: spec.seqpacket,
        server: Arc::new(server),
        reactor: plug.vm.reactor.clone(),
    });
    plug_virtio(plug, place, device)?;
    Ok(Part::Function)
}
