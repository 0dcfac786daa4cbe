//! What `-h`, `-machine help` and their siblings show. Clients parse the lists of machines and
//! devices, so those two have QEMU's form.

use std::fmt::Write;

use qapi_schema::char::ChardevBackendKind;
use qapi_schema::cli::AccelType;
use qapi_schema::describe::{Described, MemberSpec};
use qapi_schema::drivers::DRIVERS;
use qapi_schema::net::NetClientDriver;
use qapi_schema::qom::ObjectType;

use super::options::{OPTIONS, OptionSpec};
use crate::kvm::cpu_models::{MODELS, feature_names};
use crate::machine;

/// The widest line of the text for people.
const WIDTH: usize = 92;
/// How long the list of an enum's values may be to be shown in place of its type.
const SHORT_LIST: usize = 50;

/// `-h`
pub(super) fn all() -> String {
    let mut text = String::from("usage: sesame [OPTION [ARGUMENT]]..\n");
    for option in OPTIONS {
        text.push('\n');
        describe(&mut text, option);
    }
    text.push_str("\nIn a KEY=VALUE list ',,' is a comma of a value. A FILE is a path, or ");
    text.push_str("/dev/fdset/N for an fd\nthat -add-fd put into set N.\n");
    text
}

fn describe(text: &mut String, option: &OptionSpec) {
    let names = [Some(option.name), option.alias].into_iter().flatten();
    let names: Vec<String> = names.map(|name| format!("-{name}")).collect();
    text.push_str(&names.join(", "));
    if let Some(argument) = option.argument {
        text.push(' ');
        text.push_str(argument);
    }
    text.push('\n');
    wrap(text, "    ", option.about);
    keys(text, "      ", option.keys.members);
    for variant in option.keys.variants {
        let about = match variant.description {
            "" => variant.name.to_owned(),
            about => format!("{}: {about}", variant.name),
        };
        wrap(text, "      ", &about);
    }
}

fn keys(text: &mut String, indent: &str, members: &[MemberSpec]) {
    for member in members {
        let line = format!("{}=<{}>: {}", member.name, kind(member), member.description);
        wrap(text, indent, &line);
    }
}

fn kind(member: &MemberSpec) -> String {
    match member.values {
        [] if member.type_name == "bool" => "on|off".to_owned(),
        [] => member.type_name.to_owned(),
        values => Some(values.join("|"))
            .filter(|list| list.len() <= SHORT_LIST)
            .unwrap_or_else(|| member.type_name.to_owned()),
    }
}

/// Adds a paragraph; later lines of it stand two columns further in.
fn wrap(text: &mut String, indent: &str, paragraph: &str) {
    let mut line = indent.to_owned();
    let mut begun = false;
    for word in paragraph.split_whitespace() {
        if begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = format!("{indent}  ");
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    text.push_str(&line);
    text.push('\n');
}

/// `-version`
pub(super) fn version() -> String {
    format!("sesame {}\n", env!("CARGO_PKG_VERSION"))
}

/// `-machine help`
pub(super) fn machines() -> String {
    let mut text = String::from("Supported machines are:\n");
    for &machine in machine::TYPES {
        let about = machine.description;
        if let Some(alias) = machine.alias {
            let _ = writeln!(text, "{alias:<20} {about} (alias of {})", machine.name);
        }
        let default = if machine == machine::DEFAULT {
            " (default)"
        } else {
            ""
        };
        let _ = writeln!(text, "{:<20} {about}{default}", machine.name);
    }
    text
}

/// `-accel help`
pub(super) fn accels() -> String {
    list(
        "Supported accelerators:",
        AccelType::ALL.iter().map(|accel| accel.as_str()),
    )
}

/// `-cpu help`
pub(super) fn cpus() -> String {
    let mut text = String::from("Available CPUs:\n");
    for model in MODELS {
        let _ = writeln!(text, "  {:<20} {}", model.name, model.about);
    }
    text.push_str("\nRecognized CPUID flags:");
    let mut width = usize::MAX;
    for name in feature_names() {
        if width.saturating_add(name.len()) > 76 {
            text.push_str("\n ");
            width = 1;
        }
        let _ = write!(text, " {name}");
        width += name.len() + 1;
    }
    text.push('\n');
    text
}

/// `-chardev help`
pub(super) fn chardevs() -> String {
    let kinds = ChardevBackendKind::ALL.iter().map(|kind| kind.as_str());
    list("Available chardev backend types:", kinds)
}

/// `-netdev help`
pub(super) fn netdevs() -> String {
    let kinds = NetClientDriver::ALL.iter().map(|kind| kind.as_str());
    list("Available netdev backend types:", kinds)
}

/// `-object help`
pub(super) fn objects() -> String {
    list(
        "List of user creatable objects:",
        ObjectType::ALL.iter().map(|kind| kind.as_str()),
    )
}

fn list<'n>(title: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut text = format!("{title}\n");
    for name in names {
        let _ = writeln!(text, "  {name}");
    }
    text
}

/// `-device help`
pub(super) fn devices() -> String {
    let mut text = String::new();
    for driver in DRIVERS {
        let _ = write!(
            text,
            "name \"{}\", bus {}",
            driver.name,
            driver.bus.as_str()
        );
        if let Some(alias) = driver.alias {
            let _ = write!(text, ", alias \"{alias}\"");
        }
        let _ = writeln!(text, ", desc \"{}\"", driver.description());
    }
    text
}

/// `-OPTION help` and `-OPTION KIND,help`: the keys, or the kinds where there are kinds.
pub(super) fn keys_of<T: Described>(title: &str, kind: Option<&str>) -> String {
    let mut text = format!("{} options:\n", kind.unwrap_or(title));
    if kind.is_none() && !T::VARIANTS.is_empty() {
        keys(&mut text, "  ", T::MEMBERS);
        for variant in T::VARIANTS {
            wrap(
                &mut text,
                "  ",
                &format!("{}: {}", variant.name, variant.description),
            );
        }
        return text;
    }
    for member in T::known_members(kind) {
        if Some(member.name) != T::TAG {
            let line = format!(
                "{}=<{}> - {}",
                member.name,
                self::kind(member),
                member.description
            );
            wrap(&mut text, "  ", &line);
        }
    }
    text
}
