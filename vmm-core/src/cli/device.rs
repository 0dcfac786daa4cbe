//! `-object`, `-blockdev`, `-netdev`, `-device` and `-global`: the arguments of `object-add`,
//! `blockdev-add`, `netdev_add` and `device_add`; and `-audiodev`, written as they are.

use qapi_schema::QmpError;
use qapi_schema::block_core::BlockdevOptions;
use qapi_schema::cli::{AudiodevOptions, GlobalOptions, TpmdevOptions};
use qapi_schema::describe::{Described, MemberSpec};
use qapi_schema::devices::DeviceOptions;
use qapi_schema::drivers::{DRIVERS, DriverSpec, find_driver};
use qapi_schema::input::{FromInput, Mode, Path, Size};
use qapi_schema::net::Netdev;
use qapi_schema::qom::ObjectOptions;
use serde_json::{Map, Value};

use super::config::GlobalSpec;
use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

/// A global of a part that is soldered on elsewhere, and how it is here.
struct Soldered {
    driver: &'static str,
    property: &'static str,
    type_name: &'static str,
    /// What holds here, and why; without it any value does, as it makes no difference.
    holds: Option<(u64, &'static str)>,
}

/// Whether the bridge's watchdog does nothing.
const NO_REBOOT: &str = "noreboot";
const NO_SLEEP: Option<(u64, &str)> = Some((1, "this machine has no sleep states"));

/// Every such global. How the watchdog is wired, the machine is told.
const SOLDERED: &[Soldered] = &[
    soldered(NO_REBOOT, "bool", None),
    soldered("disable_s3", "uint64", NO_SLEEP),
    soldered("disable_s4", "uint64", NO_SLEEP),
];

const fn soldered(
    property: &'static str,
    type_name: &'static str,
    holds: Option<(u64, &'static str)>,
) -> Soldered {
    Soldered {
        driver: "ICH9-LPC",
        property,
        type_name,
        holds,
    }
}

pub(super) fn take_object(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if matches!(given.text, "help" | "?") {
        return Ok(Step::Print(help::objects()));
    }
    match take::<ObjectOptions>(given, Form::json("qom-type"))? {
        Taken::Help(text) => Ok(Step::Print(text)),
        Taken::Value(object) => {
            draft.objects.push(object);
            Ok(Step::Next)
        }
    }
}

pub(super) fn take_blockdev(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    match take::<BlockdevOptions>(given, Form::json("driver"))? {
        Taken::Help(text) => Ok(Step::Print(text)),
        Taken::Value(node) if node.node_name.is_none() => Err(Problem::new(
            "'node-name' must be specified for the root node",
        )),
        Taken::Value(node) => {
            draft.blockdevs.push(node);
            Ok(Step::Next)
        }
    }
}

pub(super) fn take_netdev(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if matches!(given.text, "help" | "?") {
        return Ok(Step::Print(help::netdevs()));
    }
    match take::<Netdev>(given, Form::json("type"))? {
        Taken::Help(text) => Ok(Step::Print(text)),
        Taken::Value(netdev) => {
            draft.netdevs.push(netdev);
            Ok(Step::Next)
        }
    }
}

pub(super) fn take_tpmdev(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    match take::<TpmdevOptions>(given, Form::json("type"))? {
        Taken::Help(text) => Ok(Step::Print(text)),
        Taken::Value(tpmdev) => {
            draft.tpmdevs.push(tpmdev);
            Ok(Step::Next)
        }
    }
}

/// Where sound would go: it is looked at, so that a mistake is told, and forgotten.
pub(super) fn take_audiodev(_draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    Ok(
        match take::<AudiodevOptions>(given, Form::json("driver"))? {
            Taken::Help(text) => Step::Print(text),
            Taken::Value(_) => Step::Next,
        },
    )
}

enum Taken<T> {
    Value(T),
    Help(String),
}

fn take<T: Described + FromInput>(given: &Given<'_>, form: Form) -> Result<Taken<T>, Problem> {
    let parsed = read::parse::<T>(given.text, form)?;
    if parsed.help {
        let kind = form.implied.and_then(|tag| parsed.value.get(tag));
        let text = help::keys_of::<T>(given.name, kind.and_then(Value::as_str));
        return Ok(Taken::Help(text));
    }
    read::typed(parsed.value, parsed.mode).map(Taken::Value)
}

pub(super) fn take_device(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    match read_device(given)? {
        Taken::Help(text) => Ok(Step::Print(text)),
        Taken::Value(device) => {
            draft.devices.push((given.typed.to_owned(), device));
            Ok(Step::Next)
        }
    }
}

/// A device as a person writes it: what `-device` takes.
///
/// # Errors
/// There is no such model, or a property or its value is wrong.
pub fn device(text: &str) -> Result<DeviceOptions, Problem> {
    let given = Given {
        typed: "device_add",
        name: "device",
        text,
    };
    match read_device(&given)? {
        Taken::Value(device) => Ok(device),
        Taken::Help(_) => Err(Problem::new("help is on the command line: -device help")),
    }
}

fn read_device(given: &Given<'_>) -> Result<Taken<DeviceOptions>, Problem> {
    let mut parsed = read::parse::<DeviceOptions>(given.text, Form::json("driver"))?;
    let named = parsed.value.get("driver").and_then(Value::as_str);
    let driver = match named {
        Some(name) => Some(known_driver(name)?),
        None => None,
    };
    if parsed.help {
        let text = match driver {
            Some(driver) => help::keys_of::<DeviceOptions>(given.name, Some(driver.name)),
            None => help::devices(),
        };
        return Ok(Taken::Help(text));
    }
    if let (Some(driver), Some(keys)) = (driver, parsed.value.as_object_mut()) {
        keys.insert("driver".to_owned(), Value::from(driver.name));
    }
    read::typed(parsed.value, parsed.mode).map(Taken::Value)
}

fn known_driver(name: &str) -> Result<&'static DriverSpec, Problem> {
    find_driver(name).ok_or_else(|| {
        let names = DRIVERS
            .iter()
            .flat_map(|driver| [Some(driver.name), driver.alias]);
        let what = format!("'{name}' is not a valid device model name");
        Problem::with_nearest(what, name, names.flatten())
    })
}

/// `driver.property=value`, where the value may hold anything, or the three keys.
pub(super) fn take_global(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let global = match short_global(given.text) {
        Some(global) => global,
        None => {
            let parsed = read::parse::<GlobalOptions>(given.text, Form::KEYS)?;
            if parsed.help {
                return Ok(Step::Print(help::keys_of::<GlobalOptions>("global", None)));
            }
            read::typed(parsed.value, parsed.mode)?
        }
    };
    let is_meant = |one: &&Soldered| one.driver == global.driver && one.property == global.property;
    if let Some(part) = SOLDERED.iter().find(is_meant) {
        let value = read_as(part.type_name, &global.property, &global.value)?;
        return match part.holds {
            Some((holds, why)) if value != holds => Err(Problem::new(format!(
                "{}.{}={}: {why}; only {holds} is possible",
                part.driver, part.property, global.value
            ))),
            _ => {
                if part.property == NO_REBOOT {
                    draft.no_reboot = value == true;
                }
                Ok(Step::Next)
            }
        };
    }
    let driver = known_driver(&global.driver)?;
    let names = || driver.properties().iter().map(|property| property.name);
    let property = driver
        .properties()
        .iter()
        .find(|known| known.name == global.property);
    let property = property.ok_or_else(|| {
        let what = format!("Property '{}.{}' not found", driver.name, global.property);
        Problem::with_nearest(what, &global.property, names())
    })?;
    draft.globals.push(GlobalSpec {
        driver: driver.name.to_owned(),
        property: global.property,
        value: in_json(property, &global.value)?,
    });
    Ok(Step::Next)
}

fn short_global(text: &str) -> Option<GlobalOptions> {
    let (left, value) = text.split_once('=')?;
    let (driver, property) = left.split_once('.')?;
    Some(GlobalOptions {
        driver: driver.to_owned(),
        property: property.to_owned(),
        value: value.to_owned(),
    })
}

/// A property's value as a client would write it.
fn in_json(property: &MemberSpec, text: &str) -> Result<Value, Problem> {
    if property.values.is_empty() {
        return read_as(property.type_name, property.name, text);
    }
    if property.values.contains(&text) {
        return Ok(Value::from(text));
    }
    let what = format!(
        "Parameter '{}' does not accept value '{text}'",
        property.name
    );
    Err(Problem::with_nearest(
        what,
        text,
        property.values.iter().copied(),
    ))
}

fn read_as(type_name: &str, name: &str, text: &str) -> Result<Value, Problem> {
    let at = Path::Member(&Path::Root, name);
    let value = Value::from(text);
    Ok(match type_name {
        "str" => value,
        "bool" => Value::from(bool::from_input(value, &at, Mode::Keyval)?),
        "size" => Value::from(Size::from_input(value, &at, Mode::Keyval)?.0),
        "uint64" => Value::from(u64::from_input(value, &at, Mode::Keyval)?),
        _ => Value::from(i64::from_input(value, &at, Mode::Keyval)?),
    })
}

/// The same device with the globals of its model in the places where it says nothing itself; of
/// two globals for one property the later wins.
///
/// # Errors
/// A global's value does not fit its property.
pub fn apply_globals(
    globals: &[GlobalSpec],
    device: DeviceOptions,
) -> Result<DeviceOptions, QmpError> {
    let driver = device.driver.tag().as_str();
    let mut for_this = globals
        .iter()
        .filter(|global| global.driver == driver)
        .peekable();
    if for_this.peek().is_none() {
        return Ok(device);
    }
    let as_json = serde_json::to_value(&device).map_err(|error| QmpError::from_error(&error))?;
    let mut keys = Map::new();
    for global in for_this {
        keys.insert(global.property.clone(), global.value.clone());
    }
    if let Value::Object(own) = as_json {
        keys.extend(own);
    }
    DeviceOptions::from_input(Value::Object(keys), &Path::Root, Mode::Json)
}
