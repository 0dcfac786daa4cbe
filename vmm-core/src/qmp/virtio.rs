//! `virtio.json`: virtio devices and their drivers, for who looks for a fault.

use std::sync::Weak;

use devices::vhost::{Rings, ServedView};
use devices::virtio::names::{self, Name};
use devices::virtio::transport::pci::BACKEND;
use devices::virtio::transport::state::QueueRegistersState;
use devices::virtio::transport::status::Status;
use devices::virtio::transport::{QueueView, VirtioPci, VirtioView};
use qapi_schema::virtio::{
    Commands, VirtQueueStatus, VirtVhostQueueStatus, VirtioDeviceFeatures, VirtioDeviceStatus,
    VirtioInfo, VirtioStatus, XQueryVirtioQueueStatus, XQueryVirtioStatus,
    XQueryVirtioVhostQueueStatus,
};
use qapi_schema::{Context, QmpError};

use crate::device_tree;
use crate::vm::Vm;

/// What a device of a kind without a name is called.
const NAMELESS: &str = "virtio";

impl Commands for Vm {
    fn x_query_virtio(&mut self, _cx: &mut dyn Context) -> Result<Vec<VirtioInfo>, QmpError> {
        let devices = self.devices.iter().filter_map(|(name, device)| {
            let view = device.virtio.upgrade()?.view();
            let path = device_tree::path(name, device.id.is_some());
            Some(VirtioInfo {
                path: format!("{path}/{BACKEND}"),
                name: kind(&view).to_owned(),
            })
        });
        Ok(devices.collect())
    }

    fn x_query_virtio_status(
        &mut self,
        _cx: &mut dyn Context,
        args: XQueryVirtioStatus,
    ) -> Result<VirtioStatus, QmpError> {
        let view = self.virtio_at(&args.path)?;
        Ok(status(&view, self.run_state.is_running()))
    }

    fn x_query_virtio_queue_status(
        &mut self,
        _cx: &mut dyn Context,
        args: XQueryVirtioQueueStatus,
    ) -> Result<VirtQueueStatus, QmpError> {
        let view = self.virtio_at(&args.path)?;
        let queue = queue(&view, &args.path, args.queue)?;
        Ok(queue_status(kind(&view), args.queue, queue))
    }

    fn x_query_virtio_vhost_queue_status(
        &mut self,
        _cx: &mut dyn Context,
        args: XQueryVirtioVhostQueueStatus,
    ) -> Result<VirtVhostQueueStatus, QmpError> {
        let view = self.virtio_at(&args.path)?;
        let queue = queue(&view, &args.path, args.queue)?;
        let outside = queue.outside.ok_or_else(|| {
            QmpError::generic(format!(
                "queue {} of '{}' is not served outside of this process now; \
                 x-query-virtio-queue-status shows it",
                args.queue, args.path
            ))
        })?;
        Ok(served_status(kind(&view), &queue.registers, outside))
    }
}

impl Vm {
    /// A look at the virtio device that a client calls `path`.
    fn virtio_at(&self, path: &str) -> Result<VirtioView, QmpError> {
        let full = self.full_path(path);
        let device = full.strip_suffix(BACKEND).unwrap_or(&full);
        let device = device.trim_end_matches('/');
        let Some(found) = self.devices.find(device) else {
            return Err(self.unknown(&full));
        };
        let carrier: Option<_> = Weak::<VirtioPci>::upgrade(&found.virtio);
        carrier.map(|carrier| carrier.view()).ok_or_else(|| {
            QmpError::generic(format!(
                "'{path}' ({}) is no virtio device; x-query-virtio lists them",
                found.driver
            ))
        })
    }
}

fn kind(view: &VirtioView) -> &'static str {
    names::of(view.device_type).map_or(NAMELESS, |(name, _)| name)
}

fn queue<'a>(view: &'a VirtioView, path: &str, index: u16) -> Result<&'a QueueView, QmpError> {
    view.queues.get(usize::from(index)).ok_or_else(|| {
        QmpError::generic(format!(
            "'{path}' has no queue {index}: it has {}, counted from 0",
            view.queues.len()
        ))
    })
}

fn status(view: &VirtioView, vm_running: bool) -> VirtioStatus {
    let negotiated = &view.negotiated;
    let named = |bits| features(view.device_type, bits);
    let status = view.status();
    VirtioStatus {
        name: kind(view).to_owned(),
        device_id: view.device_type,
        vhost_started: view.server.is_some(),
        guest_features: named(negotiated.accepted),
        host_features: named(view.offered),
        backend_features: named(view.server.unwrap_or(0) & view.offered),
        num_vqs: i64::try_from(view.queues.len()).unwrap_or(i64::MAX),
        status: statuses(status),
        isr: negotiated.signals.isr,
        queue_sel: negotiated.queue_select,
        vm_running,
        broken: status.contains(Status::NEEDS_RESET),
        started: status.contains(Status::DRIVER_OK),
    }
}

fn statuses(status: Status) -> VirtioDeviceStatus {
    let names = status.iter_names();
    let names = names.map(|(name, _)| format!("VIRTIO_CONFIG_S_{name}"));
    let unknown = status.difference(Status::all()).bits();
    VirtioDeviceStatus {
        statuses: names.collect(),
        unknown_statuses: (unknown != 0).then_some(unknown),
    }
}

fn features(device_type: u16, bits: u64) -> VirtioDeviceFeatures {
    let mut unknown = bits;
    let mut take = |known: &[Name]| {
        let mut names = Vec::new();
        for (number, name) in known {
            if unknown >> number & 1 != 0 {
                unknown &= !(1 << number);
                names.push((*name).to_owned());
            }
        }
        names
    };
    let transports = take(names::TRANSPORT);
    let dev_features = names::of(device_type).map(|(_, own)| take(own));
    VirtioDeviceFeatures {
        transports,
        dev_features,
        unknown_dev_features: (unknown != 0).then_some(unknown),
    }
}

fn queue_status(name: &str, index: u16, queue: &QueueView) -> VirtQueueStatus {
    let registers = &queue.registers;
    let (place, rings) = (registers.place, queue.rings);
    let used = place.map(|place| place.next_used);
    let used = used.or(rings.map(|rings| rings.used)).unwrap_or(0);
    let taken = place.map(|place| place.next_avail);
    let taken = taken.or(rings.map(|rings| rings.available));
    VirtQueueStatus {
        name: name.to_owned(),
        queue_index: index,
        inuse: taken.unwrap_or(used).wrapping_sub(used).into(),
        vring_num: registers.size.into(),
        vring_num_default: queue.most.into(),
        vring_desc: registers.descriptors,
        vring_avail: registers.driver,
        vring_used: registers.device,
        last_avail_idx: place.map(|place| place.next_avail),
        shadow_avail_idx: rings.map(|rings| rings.available),
        used_idx: used,
    }
}

fn served_status(
    name: &str,
    registers: &QueueRegistersState,
    outside: ServedView,
) -> VirtVhostQueueStatus {
    let [desc_size, avail_size, used_size] = Rings::lengths(registers.size);
    VirtVhostQueueStatus {
        name: name.to_owned(),
        kick: outside.kick.into(),
        call: outside.call.into(),
        desc: outside.rings.descriptors,
        avail: outside.rings.available,
        used: outside.rings.used,
        num: registers.size.into(),
        desc_phys: registers.descriptors,
        desc_size,
        avail_phys: registers.driver,
        avail_size,
        used_phys: registers.device,
        used_size,
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::transport::state::QueuePlace;
    use devices::virtio::transport::view::RingIndices;

    use super::*;

    #[test]
    fn features_have_names_and_what_has_none_is_a_number() {
        let card = features(1, 1 << 32 | 1 << 29 | 1 << 60 | 1 | 1 << 42);
        assert_eq!(
            card.transports,
            ["VIRTIO_F_VERSION_1", "VIRTIO_RING_F_EVENT_IDX"]
        );
        let own = ["VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_RSS"].map(str::to_owned);
        assert_eq!(card.dev_features, Some(own.to_vec()));
        assert_eq!(card.unknown_dev_features, Some(1 << 42));
        let strange = features(60, 1);
        assert_eq!(strange.dev_features, None);
        assert_eq!(strange.unknown_dev_features, Some(1));
    }

    #[test]
    fn a_status_is_told_by_names_too() {
        let told = statuses(Status::from_bits_retain(0x4f | 0x20));
        let wanted = [
            "ACKNOWLEDGE",
            "DRIVER",
            "DRIVER_OK",
            "FEATURES_OK",
            "NEEDS_RESET",
        ];
        let wanted = wanted.map(|name| format!("VIRTIO_CONFIG_S_{name}"));
        assert_eq!(told.statuses, wanted);
        assert_eq!(told.unknown_statuses, Some(0x20));
    }

    #[test]
    fn indices_are_the_devices_own_where_it_says_them_and_the_rings_otherwise() {
        let mut queue = QueueView {
            most: 256,
            registers: QueueRegistersState {
                size: 128,
                enabled: false,
                descriptors: 0x1000,
                driver: 0x2000,
                device: 0x3000,
                place: None,
                running: false,
            },
            rings: None,
            outside: None,
        };
        let shown = |queue: &QueueView| {
            let shown = queue_status("virtio-net", 3, queue);
            (
                shown.inuse,
                shown.last_avail_idx,
                shown.shadow_avail_idx,
                shown.used_idx,
            )
        };
        assert_eq!(shown(&queue), (0, None, None, 0));
        queue.rings = Some(RingIndices {
            available: 2,
            used: 0xfffe,
        });
        assert_eq!(shown(&queue), (4, None, Some(2), 0xfffe));
        queue.registers.place = Some(QueuePlace {
            next_avail: 1,
            next_used: 0xffff,
        });
        assert_eq!(shown(&queue), (2, Some(1), Some(2), 0xffff));
    }
}
