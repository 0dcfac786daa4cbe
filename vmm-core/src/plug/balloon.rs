//! `virtio-balloon-pci`, and what its object shows while it lives.

use std::sync::Arc;

use devices::virtio::balloon::{BalloonHost, BalloonSpec, VirtioBalloon};
use qapi_schema::QmpError;
use qapi_schema::balloon::VirtioBalloonProperties;
use serde_json::{Map, Value};

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::Part;
use crate::memory::{RamBackend, RamReclaim};
use crate::objects::read_only;
use crate::qom::Object;

const INTERVAL: &str = "guest-stats-polling-interval";

pub(super) fn plug(
    plug: &mut Plug<'_>,
    options: VirtioBalloonProperties,
) -> Result<Part, QmpError> {
    if plug.vm.devices.balloon().is_some() {
        return Err(QmpError::generic(
            "Only one balloon device is supported, and there is one already",
        ));
    }
    let board = plug.vm.machine.board(&plug.name)?;
    let pages = board.backends().iter().map(RamBackend::page);
    let page = pages.max().unwrap_or(devices::virtio::balloon::PAGE);
    let reclaim = RamReclaim::new(board.memory().clone(), page);
    let spec = BalloonSpec {
        deflate_on_oom: options.deflate_on_oom.unwrap_or(false),
        free_page_reporting: options.free_page_reporting.unwrap_or(false),
    };
    let balloon = VirtioBalloon::new(
        spec,
        BalloonHost {
            reclaim: Arc::new(reclaim),
            reactor: plug.vm.reactor.clone(),
            clock: plug.vm.clock.clone(),
            notices: plug.vm.mailbox.notices(),
        },
    );
    plug_virtio(plug, virtio_place!(options), Arc::clone(&balloon) as _)?;
    Ok(Part::Balloon(balloon))
}

/// Adds to the picture of a balloon what it knows now.
pub fn show(balloon: &VirtioBalloon, object: Object) -> Object {
    let stats = balloon.guest_stats();
    let values: Map<_, _> = stats
        .iter()
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    let told = serde_json::json!({ "stats": values, "last-update": stats.last_update });
    object.with("guest-stats", "guest statistics", told).with(
        INTERVAL,
        "int",
        balloon.polling_interval(),
    )
}

/// Changes a property of a balloon.
///
/// # Errors
/// It is another than the polling interval, or the value is no number of seconds.
pub fn set(
    balloon: &VirtioBalloon,
    object: &Object,
    property: &str,
    value: &Value,
) -> Result<(), QmpError> {
    if property != INTERVAL {
        return Err(read_only(object, property));
    }
    let seconds = value.as_i64().map(u32::try_from);
    let Some(Ok(seconds)) = seconds else {
        return Err(QmpError::generic(format!(
            "Parameter '{property}' expects 0 to {} seconds, not {value}",
            u32::MAX
        )));
    };
    balloon
        .set_polling_interval(seconds)
        .map_err(|error| QmpError::from_error(&error))
}
