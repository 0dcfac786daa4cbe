//! An option's argument into a type of the schema: from `key=value` text or JSON, with the nearest
//! known key where one is wrong.
//!
//! ```text
//!   driver=file,filenam=x ─► parse_keyval ─► Value ─► known keys? ─► T::from_input ─► T
//!   {"driver":"file", ..} ─► read_json ─────►   │
//!   server,nowait ─► server=on,wait=off ─► ..   └ help: the keys instead
//! ```

use qapi_schema::block_core::BlockdevOptions;
use qapi_schema::describe::{Described, MemberSpec};
use qapi_schema::input::keyval::parse_keyval;
use qapi_schema::input::{FromInput, Mode, Path};
use serde_json::Value;

use super::error::Problem;

/// How an option's argument looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// The key of a first part without `=`.
    pub(super) implied: Option<&'static str>,
    /// Whether the whole may be JSON.
    pub(super) json: bool,
}

impl Form {
    /// `key=value` only.
    pub(super) const KEYS: Self = Self {
        implied: None,
        json: false,
    };

    /// The same, or JSON.
    pub(super) const KEYS_OR_JSON: Self = Self {
        implied: None,
        json: true,
    };

    /// `key=value`, the first key may be left out.
    pub(super) const fn implied(key: &'static str) -> Self {
        Self {
            implied: Some(key),
            json: false,
        }
    }

    /// The same, or JSON.
    pub(super) const fn json(key: &'static str) -> Self {
        Self {
            implied: Some(key),
            json: true,
        }
    }
}

/// An argument taken apart.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) mode: Mode,
    /// Whether it asks for help.
    pub(super) help: bool,
}

/// Takes an argument for `T` apart.
pub(super) fn parse<T: Described>(text: &str, form: Form) -> Result<Parsed, Problem> {
    if form.json && text.starts_with('{') {
        let value = monitor::read_json(text)?;
        return Ok(Parsed {
            value,
            mode: Mode::Json,
            help: false,
        });
    }
    let text = spell_out_switches::<T>(text, form.implied.is_some());
    let parsed = parse_keyval(&text, form.implied)?;
    Ok(Parsed {
        value: parsed.value,
        mode: Mode::Keyval,
        help: parsed.help,
    })
}

/// Reads what [`parse`] gave.
pub(super) fn typed<T: Described + FromInput>(value: Value, mode: Mode) -> Result<T, Problem> {
    check_keys::<T>(&value, "")?;
    Ok(T::from_input(value, &Path::Root, mode)?)
}

/// Names the first key that is none of `T`'s, or the tag's value if that is unknown. `at` is what
/// stands before the keys: empty, or `file.` for the object of key `file`.
fn check_keys<T: Described>(value: &Value, at: &str) -> Result<(), Problem> {
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    let tag = T::TAG.and_then(|tag| Some((tag, object.get(tag)?.as_str()?)));
    if let Some((tag, kind)) = tag {
        let kinds = || T::VARIANTS.iter().map(|variant| variant.name);
        if !kinds().any(|known| known == kind) {
            let what = format!("Parameter '{at}{tag}' does not accept value '{kind}'");
            return Err(Problem::with_nearest(what, kind, kinds()));
        }
    }
    if T::TAG.is_some() && tag.is_none() {
        // Which keys there are is not known; the reader will ask for the tag.
        return Ok(());
    }
    let known = T::known_members(tag.map(|(_, kind)| kind));
    let names = || known.iter().map(|member| member.name);
    if let Some(key) = object.keys().find(|key| !names().any(|name| name == *key)) {
        let what = format!("Parameter '{at}{key}' is unexpected");
        return Err(Problem::with_nearest(what, key, names()));
    }
    // A node that is defined in the place of its name has the keys of any node.
    let nodes = known
        .iter()
        .filter(|member| member.type_name == "BlockdevRef");
    nodes
        .filter_map(|member| Some((member.name, object.get(member.name)?)))
        .try_for_each(|(name, node)| check_keys::<BlockdevOptions>(node, &format!("{at}{name}.")))
}

/// QEMU's short form: `server` for `server=on`, `nowait` for `wait=off`; for switches only.
fn spell_out_switches<T: Described>(text: &str, first_is_a_value: bool) -> String {
    let parts = split(text);
    let spelled: Vec<String> = parts
        .into_iter()
        .enumerate()
        .map(|(at, part)| {
            if part.contains('=') || (at == 0 && first_is_a_value) {
                return part.to_owned();
            }
            if is_switch::<T>(part) {
                return format!("{part}=on");
            }
            match part.strip_prefix("no") {
                Some(key) if is_switch::<T>(key) => format!("{key}=off"),
                _ => part.to_owned(),
            }
        })
        .collect();
    spelled.join(",")
}

fn is_switch<T: Described>(key: &str) -> bool {
    let of_variants = T::VARIANTS.iter().flat_map(|variant| variant.members);
    T::MEMBERS
        .iter()
        .chain(of_variants)
        .any(|member: &MemberSpec| member.name == key && member.type_name == "bool")
}

/// The text between single commas; doubled ones stay doubled.
pub(super) fn split(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b',', Some(b',')) => at += 2,
            (b',', _) => {
                parts.push(&text[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    parts.push(&text[start..]);
    parts
}
