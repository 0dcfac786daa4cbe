//! The reader of arguments, for the types that have the most ways to be wrong, as JSON and as
//! `key=value` text.
//!
//! What must hold: what is accepted says the same when it is written and read again, in whichever
//! form it came; nothing that was given is left out of it; and one member more is refused by name.

use qapi_schema::input::keyval::parse_keyval;
use qapi_schema::input::{FromInput, Mode, Path};
use qapi_schema::{block_core, char, cli, control, devices, fds, open_hook, qom, sandbox, to_wire};
use serde_json::Value;

/// A member that no type has.
const UNKNOWN: &str = "x-no-such-member";

pub(super) fn run(input: &[u8]) {
    let [form, kind, text @ ..] = input else {
        return;
    };
    let (value, mode) = if form.is_multiple_of(2) {
        let Ok(value) = serde_json::from_slice(text) else {
            return;
        };
        (value, Mode::Json)
    } else {
        let Ok(parsed) = parse_keyval(&String::from_utf8_lossy(text), Some("driver")) else {
            return;
        };
        (parsed.value, Mode::Keyval)
    };
    let check = CHECKS[usize::from(*kind) % CHECKS.len()];
    check(value, mode);
}

/// One for each type.
const CHECKS: &[fn(Value, Mode)] = &[
    check::<block_core::BlockdevOptions>,
    check::<qom::ObjectOptions>,
    check::<devices::DeviceOptions>,
    check::<char::ChardevAdd>,
    check::<cli::ChardevOptions>,
    check::<cli::MachineOptions>,
    check::<cli::SmpConfiguration>,
    check::<cli::MemorySizeConfiguration>,
    check::<cli::RtcOptions>,
    check::<fds::AddFd>,
    check::<fds::Getfd>,
    check::<fds::RemoveFd>,
    check::<fds::FdUnclaimedSet>,
    check::<control::QmpCapabilities>,
    check::<open_hook::OpenHookSet>,
    check::<open_hook::QueryOpenPlan>,
    check::<open_hook::OpenHookAnswer>,
    check::<sandbox::Seal>,
];

fn check<T>(value: Value, mode: Mode)
where
    T: FromInput + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let read = |value: Value, mode| T::from_input(value, &Path::Root, mode);
    let Ok(taken) = read(value.clone(), mode) else {
        return;
    };
    let text = to_wire(&taken).expect("it can be written");
    let written: Value = serde_json::from_str(&text).expect("JSON");
    assert_all_there(&value, &written, mode);
    let again = read(written, Mode::Json);
    assert_eq!(again.as_ref(), Ok(&taken), "from {text}");
    if let Value::Object(mut members) = value {
        members.insert(UNKNOWN.to_owned(), Value::from("0"));
        let error = read(Value::Object(members), mode).expect_err("one member too many");
        assert!(error.desc.contains(UNKNOWN), "{error}");
    }
}

/// Every member of `given` is in `written`, with the same value where both were JSON.
fn assert_all_there(given: &Value, written: &Value, mode: Mode) {
    match (given, written) {
        (Value::Object(given), Value::Object(written)) => {
            for (name, value) in given {
                let found = written.get(name);
                let found = found.unwrap_or_else(|| panic!("'{name}' was passed over"));
                assert_all_there(value, found, mode);
            }
        }
        (Value::Array(given), Value::Array(written)) => {
            assert_eq!(given.len(), written.len());
            for (given, written) in given.iter().zip(written) {
                assert_all_there(given, written, mode);
            }
        }
        (given, written) => {
            let same =
                mode == Mode::Keyval || given == written || given.as_f64() == written.as_f64();
            assert!(same, "{given} was read as {written}");
        }
    }
}
