//! Limits on the wire and in the block layer: of the object `throttle-group`, of disks, of drives.
//!
//! ```text
//!   block_set_io_throttle, -drive throttling.* ─► the same, of the group that the disk is in
//!   object-add, qom-set limits ─► members by name ─► ThrottleLimits (block), checked ─► BlockGraph
//!   qom-get, qom-list          ◄─ all members, each with its value now ◄──────────────┘
//! ```

use block::throttle::{Rate, Rates};
use block::{ThrottleGroup, ThrottleLimits};
use qapi_schema::QmpError;
use qapi_schema::block_core::BlockDeviceInfo;
use qapi_schema::block_throttle::BlockIOThrottle;
use qapi_schema::qom::{ThrottleGroupProperties, ThrottleLimits as WireLimits};
use serde_json::{Map, Value};

use crate::qom::Object;

/// What stands before members that are properties by themselves.
const PLAIN: &str = "x-";
/// The longest burst, in seconds, as QEMU has it.
const LONGEST: u64 = u32::MAX as u64;

/// Every member of a group's limits with its place.
fn places(limits: &mut ThrottleLimits) -> Vec<(String, &mut u64)> {
    let mut places = Vec::new();
    for (unit, rates) in [("iops", &mut limits.requests), ("bps", &mut limits.bytes)] {
        let Rates { total, read, write } = rates;
        for (what, rate) in [("total", total), ("read", read), ("write", write)] {
            let Rate {
                average,
                burst,
                burst_seconds,
            } = rate;
            places.push((format!("{unit}-{what}"), average));
            places.push((format!("{unit}-{what}-max"), burst));
            places.push((format!("{unit}-{what}-max-length"), burst_seconds));
        }
    }
    places.push(("iops-size".to_owned(), &mut limits.request_size));
    places
}

/// The limits that an object is made with.
///
/// # Errors
/// They contradict each other.
pub fn limits(properties: &ThrottleGroupProperties) -> Result<ThrottleLimits, QmpError> {
    let mut members = members_of(serde_json::to_value(properties));
    let limits = members.remove("limits");
    if limits.is_some() && !members.is_empty() {
        return Err(QmpError::generic(
            "Parameter 'limits' and those that begin with 'x-' are mutually exclusive: give one of \
             them",
        ));
    }
    match limits {
        Some(Value::Object(limits)) => changed(ThrottleLimits::default(), "", &limits),
        _ => changed(ThrottleLimits::default(), PLAIN, &members),
    }
}

/// Limits with what `value` says changed, and the others as they were.
///
/// # Errors
/// It is something else, or the limits then contradict each other.
pub fn set(now: ThrottleLimits, value: &Value) -> Result<ThrottleLimits, QmpError> {
    let limits: WireLimits = qapi_schema::input::arguments(value.clone())?;
    changed(now, "", &members_of(serde_json::to_value(&limits)))
}

/// The limits of a disk. What is below 0 is too high, as QEMU has it.
///
/// # Errors
/// They contradict each other.
pub fn of_disk(wire: &BlockIOThrottle) -> Result<ThrottleLimits, QmpError> {
    let mut members = members_of(serde_json::to_value(wire));
    let mut limits = ThrottleLimits::default();
    let mut named = Map::new();
    for (place, _) in places(&mut limits) {
        if let Some(value) = members.remove(&older(&place)) {
            named.insert(place, value.as_u64().unwrap_or(u64::MAX).into());
        }
    }
    changed(limits, "", &named)
}

/// The keys of a drive that say what limits it has, as typed, and which of [`of_drive`] they mean.
pub fn keys_of_drives() -> impl Iterator<Item = (String, String)> {
    let places: Vec<String> = {
        let mut limits = ThrottleLimits::default();
        let places = places(&mut limits).into_iter();
        places.map(|(name, _)| name).collect()
    };
    places.into_iter().flat_map(|place| {
        let newer = format!("throttling.{place}");
        [(newer, place.clone()), (older(&place), place)]
    })
}

/// The limits of a drive, from what was typed.
///
/// # Errors
/// What was typed is no number, or they contradict each other.
pub fn of_drive(typed: &[(String, String, String)]) -> Result<ThrottleLimits, QmpError> {
    let mut members = Map::new();
    for (key, place, value) in typed {
        let number: u64 = value.parse().map_err(|_| {
            QmpError::generic(format!("Parameter '{key}' expects a number, not '{value}'"))
        })?;
        members.insert(place.clone(), number.into());
    }
    changed(ThrottleLimits::default(), "", &members)
}

/// What a limit is called where it is one of a disk: `bps-read-max` is `bps_rd_max`.
fn older(place: &str) -> String {
    let short = place.replace("-total", "");
    let short = short.replace("-read", "-rd").replace("-write", "-wr");
    short.replace('-', "_")
}

/// Shows limits in what is said of a node.
pub fn show(info: &mut BlockDeviceInfo, group: &ThrottleGroup) {
    let limits = group.limits();
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let burst = |rate: Rate| (rate.burst != 0).then(|| number(rate.burst));
    let length = |rate: Rate| (rate.burst != 0).then(|| number(rate.burst_seconds));
    let Rates { total, read, write } = limits.bytes;
    (info.bps, info.bps_rd) = (number(total.average), number(read.average));
    info.bps_wr = number(write.average);
    (info.bps_max, info.bps_rd_max, info.bps_wr_max) = (burst(total), burst(read), burst(write));
    (info.bps_max_length, info.bps_rd_max_length) = (length(total), length(read));
    info.bps_wr_max_length = length(write);
    let Rates { total, read, write } = limits.requests;
    (info.iops, info.iops_rd) = (number(total.average), number(read.average));
    info.iops_wr = number(write.average);
    (info.iops_max, info.iops_rd_max, info.iops_wr_max) = (burst(total), burst(read), burst(write));
    (info.iops_max_length, info.iops_rd_max_length) = (length(total), length(read));
    info.iops_wr_max_length = length(write);
    info.iops_size = (limits.request_size != 0).then(|| number(limits.request_size));
    info.group = Some(group.name().to_owned());
}

fn members_of(wire: serde_json::Result<Value>) -> Map<String, Value> {
    match wire {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

fn changed(
    mut limits: ThrottleLimits,
    prefix: &str,
    members: &Map<String, Value>,
) -> Result<ThrottleLimits, QmpError> {
    for (name, place) in places(&mut limits) {
        let name = format!("{prefix}{name}");
        let Some(value) = members.get(&name) else {
            continue;
        };
        let number = value.as_u64();
        let number =
            number.ok_or_else(|| QmpError::generic("Property values cannot be negative"))?;
        if name.ends_with("-length") && number > LONGEST {
            return Err(QmpError::generic(format!(
                "{name} value must be in the range [0, {LONGEST}]"
            )));
        }
        *place = number;
    }
    limits
        .check()
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(limits)
}

/// How the object tree shows a group.
pub fn shown(mut limits: ThrottleLimits) -> Object {
    let members: Vec<(String, u64)> = places(&mut limits)
        .into_iter()
        .map(|(name, place)| (name, *place))
        .collect();
    let whole: Map<String, Value> = members
        .iter()
        .map(|(name, number)| (name.clone(), Value::from(*number)))
        .collect();
    let group = Object::new("throttle-group").with("limits", "ThrottleLimits", whole);
    members.into_iter().fold(group, |group, (name, number)| {
        group.with(&format!("{PLAIN}{name}"), "int", number)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn group(value: Value) -> Result<ThrottleLimits, String> {
        let properties: ThrottleGroupProperties =
            qapi_schema::input::arguments(value).expect("properties");
        limits(&properties).map_err(|error| error.to_string())
    }

    #[test]
    fn members_alone_and_members_of_limits_mean_the_same() {
        let whole = group(json!({"limits": {"iops-total": 10, "iops-total-max": 20,
            "iops-total-max-length": 3, "bps-read": 1000, "iops-size": 4096}}));
        let parts = group(json!({"x-iops-total": 10, "x-iops-total-max": 20,
            "x-iops-total-max-length": 3, "x-bps-read": 1000, "x-iops-size": 4096}));
        assert_eq!(whole, parts);
        let limits = whole.expect("limits");
        assert_eq!(limits.requests.total.burst_seconds, 3);
        assert_eq!(limits.bytes.read.average, 1000);
        let shown = shown(limits);
        let whole = shown.property("limits").expect("limits").value;
        assert_eq!(whole["iops-total-max"], 20);
        assert_eq!(whole["bps-write-max-length"], 1);
        let part = shown.property("x-bps-read").expect("x-bps-read");
        assert_eq!(part.value, 1000);
    }

    #[test]
    fn what_is_not_set_anew_stays_and_what_makes_no_sense_is_refused() {
        let limits = group(json!({"limits": {"iops-read": 10}})).expect("limits");
        let more = set(limits, &json!({"bps-total": 500})).expect("more");
        assert_eq!(more.requests.read.average, 10);
        assert_eq!(more.bytes.total.average, 500);
        assert!(set(more, &json!({"bps-write": 5})).is_err());
        assert!(set(more, &json!({"iops-total": -1})).is_err());
        assert!(set(more, &json!({"unknown": 1})).is_err());
        assert!(set(more, &json!(7)).is_err());
        assert!(group(json!({"limits": {"iops-read": 1}, "x-bps-read": 1})).is_err());
    }

    #[test]
    fn every_member_of_the_wire_has_a_place() {
        let mut limits = ThrottleLimits::default();
        let names: Vec<String> = places(&mut limits)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let all: Map<String, Value> = names
            .iter()
            .map(|name| (name.clone(), Value::from(1)))
            .collect();
        let wire: WireLimits = qapi_schema::input::arguments(Value::Object(all)).expect("known");
        assert_eq!(members_of(serde_json::to_value(&wire)).len(), names.len());
        assert_eq!(names.len(), 19);
    }

    #[test]
    fn every_limit_of_a_disk_is_called_as_it_is_of_a_drive_by_its_older_name() {
        let mut disk = serde_json::to_value(BlockIOThrottle::default()).expect("JSON");
        let older: Vec<String> = keys_of_drives()
            .map(|(key, _)| key)
            .filter(|key| !key.starts_with("throttling."))
            .collect();
        for key in &older {
            disk[key] = Value::from(1);
        }
        disk["id"] = "d".into();
        let disk: BlockIOThrottle = qapi_schema::input::arguments(disk).expect("known");
        let shown = members_of(serde_json::to_value(&disk));
        assert_eq!(shown.len(), older.len() + 1);
        assert_eq!(older.len(), 19);
    }

    #[test]
    fn limits_of_a_disk_and_of_a_drive_are_those_of_a_group() {
        let disk: BlockIOThrottle = qapi_schema::input::arguments(json!({"id": "d", "bps": 0,
            "bps_rd": 10, "bps_wr": 0, "iops": 7, "iops_rd": 0, "iops_wr": 0, "bps_rd_max": 20,
            "bps_rd_max_length": 4, "iops_size": 4096}))
        .expect("known");
        let wanted = group(json!({"limits": {"bps-read": 10, "bps-read-max": 20,
            "bps-read-max-length": 4, "iops-total": 7, "iops-size": 4096}}));
        assert_eq!(of_disk(&disk).map_err(|error| error.desc), wanted);
        let typed = [
            ("bps_rd", "10"),
            ("throttling.bps-read-max", "20"),
            ("throttling.bps-read-max-length", "4"),
            ("throttling.iops-total", "7"),
            ("iops_size", "4096"),
        ];
        let typed = typed.map(|(key, value)| {
            let mut keys = keys_of_drives();
            let (_, place) = keys.find(|(known, _)| known == key).expect(key);
            (key.to_owned(), place, value.to_owned())
        });
        assert_eq!(of_drive(&typed).map_err(|error| error.desc), wanted);
        let wrong = BlockIOThrottle { bps_wr: -1, ..disk };
        let error = of_disk(&wrong).expect_err("below 0");
        assert!(error.desc.contains("must be within [0, 1000000000000000]"));
    }
}
