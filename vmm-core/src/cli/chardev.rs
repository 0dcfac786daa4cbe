//! `-chardev`, and the short forms of `-serial` and `-qmp`, into the arguments of `chardev-add`.
//!
//! ```text
//!   -chardev socket,id=a,path=/x,server=on ─► ChardevOptions ─┐
//!   -qmp unix:/x,server=on ─► ChardevOptions ─────────────────┴─► ChardevAdd
//! ```
//!
//! The two differ in what absence means: a socket on the command line is a client, and a server
//! waits for its first peer, so both are always spelled out in what comes out.

use qapi_schema::char::{
    ChardevAdd, ChardevBackend, ChardevBackendVariant as Backend, ChardevCommon,
    ChardevCommonWrapper, ChardevFile, ChardevFileWrapper, ChardevPtyWrapper,
    ChardevRingbufWrapper, ChardevSocket, ChardevSocketWrapper, ChardevStdio, ChardevStdioWrapper,
    FdSocketAddress, FdSocketAddressWrapper, InetSocketAddress, InetSocketAddressWrapper,
    SocketAddressLegacy, SocketAddressLegacyVariant as Address, UnixSocketAddress,
    UnixSocketAddressWrapper,
};
use qapi_schema::cli::{
    ChardevFileOptions, ChardevOptions, ChardevOptionsVariant as Options, ChardevSocketOptions,
};
use qapi_schema::describe::Described;
use qapi_schema::input::Mode;
use serde_json::{Map, Value};

use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

pub(super) fn take(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<ChardevOptions>(given.text, Form::implied("backend"))?;
    let kind = parsed.value.get("backend").and_then(Value::as_str);
    if parsed.help {
        let text = match kind {
            Some(_) => help::keys_of::<ChardevOptions>(given.name, kind),
            None => help::chardevs(),
        };
        return Ok(Step::Print(text));
    }
    if kind.is_some() && parsed.value.get("id").is_none() {
        return Err(Problem::new("chardev: no id specified"));
    }
    let options: ChardevOptions = read::typed(parsed.value, parsed.mode)?;
    check_id(&options.id)?;
    draft.add_chardev(given, add(options)?)?;
    Ok(Step::Next)
}

/// Ids become parts of paths in the object tree.
fn check_id(id: &str) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if id.starts_with(|first: char| first.is_ascii_alphabetic()) && id.bytes().all(fits) {
        return Ok(());
    }
    Err(Problem::new(
        "Parameter 'id' expects an identifier: a letter, then letters, digits, '-', '.', '_'",
    ))
}

/// What a short form stands for.
pub(super) enum Short {
    /// `none`.
    Nothing,
    /// `chardev:ID`: one that has an option of its own.
    Existing(String),
    /// A new one.
    New(ChardevAdd),
}

/// Reads `stdio`, `mon:stdio`, `null`, `none`, `pty`, `file:PATH`, `unix:PATH,..`,
/// `tcp:HOST:PORT,..` or `chardev:ID`; a new chardev gets the id given.
pub(super) fn short(text: &str, id: &str) -> Result<Short, Problem> {
    if text == "none" {
        return Ok(Short::Nothing);
    }
    if let Some(existing) = text.strip_prefix("chardev:") {
        return Ok(Short::Existing(existing.to_owned()));
    }
    // `mon:` shares the terminal with a monitor for people. There is none here; what is left of
    // it is that Ctrl-C goes to the guest.
    let (text, signal) = match text.strip_prefix("mon:") {
        Some(rest) => (rest, false),
        None => (text, true),
    };
    let mut keys = match text.split_once(':') {
        None if matches!(text, "stdio" | "null" | "pty") => backend(text),
        Some(("file", path)) => {
            let mut keys = backend("file");
            keys.insert("path".to_owned(), Value::from(path));
            keys
        }
        Some(("unix", rest)) => socket(rest, Some("path"))?,
        Some(("tcp", rest)) => tcp(rest)?,
        _ => return Err(not_a_form(text)),
    };
    if text == "stdio" && !signal {
        keys.insert("signal".to_owned(), Value::from("off"));
    }
    keys.insert("id".to_owned(), Value::from(id));
    let options = read::typed(Value::Object(keys), Mode::Keyval)?;
    Ok(Short::New(add(options)?))
}

fn not_a_form(text: &str) -> Problem {
    Problem::new(format!(
        "'{text}' is not a valid char driver; wanted stdio, null, none, pty, file:PATH, \
         unix:PATH, tcp:HOST:PORT or chardev:ID"
    ))
}

fn backend(name: &str) -> Map<String, Value> {
    Map::from_iter([("backend".to_owned(), Value::from(name))])
}

/// The keys of a socket; none of them may choose the backend or the id.
fn socket(text: &str, implied: Option<&'static str>) -> Result<Map<String, Value>, Problem> {
    let form = Form {
        implied,
        json: false,
    };
    let parsed = read::parse::<SocketKeys>(text, form)?;
    let mut keys = backend("socket");
    if let Value::Object(given) = parsed.value {
        if let Some(key) = given
            .keys()
            .find(|key| ["backend", "id"].contains(&key.as_str()))
        {
            return Err(Problem::new(format!("Parameter '{key}' is unexpected")));
        }
        keys.extend(given);
    }
    Ok(keys)
}

/// `HOST:PORT,key=value..`; an IPv6 address stands in brackets.
fn tcp(text: &str) -> Result<Map<String, Value>, Problem> {
    let (address, rest) = text.split_once(',').unwrap_or((text, ""));
    let (host, port) = match address.strip_prefix('[') {
        Some(inner) => inner.split_once("]:"),
        None => address.split_once(':'),
    }
    .filter(|(_, port)| !port.is_empty())
    .ok_or_else(|| Problem::new(format!("'tcp:{address}': wanted tcp:HOST:PORT")))?;
    let mut keys = socket(rest, None)?;
    keys.insert("host".to_owned(), Value::from(host));
    keys.insert("port".to_owned(), Value::from(port));
    Ok(keys)
}

/// The keys of `-chardev socket`, for their switches.
struct SocketKeys;

impl Described for SocketKeys {
    const MEMBERS: &'static [qapi_schema::describe::MemberSpec] = ChardevSocketOptions::MEMBERS;
    const TAG: Option<&'static str> = None;
    const VARIANTS: &'static [qapi_schema::describe::VariantSpec] = &[];
}

/// The arguments of `chardev-add` that make this chardev.
fn add(options: ChardevOptions) -> Result<ChardevAdd, Problem> {
    let backend = match options.backend {
        Options::File(file) => Backend::File(ChardevFileWrapper {
            data: file_arguments(file),
        }),
        Options::Socket(socket) => Backend::Socket(ChardevSocketWrapper {
            data: socket_arguments(socket)?,
        }),
        Options::Pty(data) => Backend::Pty(ChardevPtyWrapper { data }),
        Options::Null(data) => Backend::Null(ChardevCommonWrapper { data }),
        Options::Stdio(data) => Backend::Stdio(ChardevStdioWrapper { data }),
        Options::Ringbuf(data) => Backend::Ringbuf(ChardevRingbufWrapper { data }),
    };
    Ok(ChardevAdd {
        id: options.id,
        backend: ChardevBackend { r#type: backend },
    })
}

fn file_arguments(file: ChardevFileOptions) -> ChardevFile {
    ChardevFile {
        logfile: file.logfile,
        logappend: file.logappend,
        r#in: file.input_path,
        out: file.path,
        append: file.append,
    }
}

fn socket_arguments(socket: ChardevSocketOptions) -> Result<ChardevSocket, Problem> {
    let server = socket.server.unwrap_or(false);
    if socket.wait.is_some() && !server {
        return Err(Problem::new("'wait' is for a socket with server=on"));
    }
    if socket.reconnect_ms.is_some() && server {
        return Err(Problem::new(
            "'reconnect-ms' is for a socket without server=on",
        ));
    }
    Ok(ChardevSocket {
        addr: SocketAddressLegacy {
            r#type: address(&socket)?,
        },
        server: Some(server),
        wait: server.then_some(socket.wait.unwrap_or(true)),
        nodelay: socket.nodelay,
        reconnect_ms: socket.reconnect_ms,
        tls_creds: socket.tls_creds,
        logfile: socket.logfile,
        logappend: socket.logappend,
    })
}

fn address(socket: &ChardevSocketOptions) -> Result<Address, Problem> {
    let inet = [
        ("port", socket.port.is_some()),
        ("to", socket.to.is_some()),
        ("ipv4", socket.ipv4.is_some()),
        ("ipv6", socket.ipv6.is_some()),
        ("nodelay", socket.nodelay.is_some()),
    ];
    let unix = [
        ("abstract", socket.r#abstract.is_some()),
        ("tight", socket.tight.is_some()),
    ];
    let no = |keys: &[(&str, bool)], what: &str| match keys.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(Problem::new(format!(
            "'{key}' means nothing for a socket with {what}"
        ))),
        None => Ok(()),
    };
    match (&socket.path, &socket.fd, &socket.host) {
        (Some(path), None, None) => {
            no(&inet, "'path'")?;
            Ok(Address::Unix(UnixSocketAddressWrapper {
                data: UnixSocketAddress {
                    path: path.clone(),
                    r#abstract: socket.r#abstract,
                    tight: socket.tight,
                },
            }))
        }
        (None, Some(fd), None) => {
            no(&inet, "'fd'")?;
            no(&unix, "'fd'")?;
            let data = FdSocketAddress { str: fd.clone() };
            Ok(Address::Fd(FdSocketAddressWrapper { data }))
        }
        (None, None, Some(host)) => {
            no(&unix, "'host'")?;
            let port = socket.port.clone();
            Ok(Address::Inet(InetSocketAddressWrapper {
                data: InetSocketAddress {
                    host: host.clone(),
                    port: port.ok_or_else(|| Problem::new("chardev: socket: no port given"))?,
                    numeric: None,
                    to: socket.to,
                    ipv4: socket.ipv4,
                    ipv6: socket.ipv6,
                    keep_alive: None,
                },
            }))
        }
        _ => Err(Problem::new(
            "a socket wants one of 'path', 'fd', or 'host' with 'port'",
        )),
    }
}

/// Standard input and output; `signal` says whether Ctrl-C still ends the process.
pub(super) fn stdio(id: &str, signal: bool) -> ChardevAdd {
    let data = ChardevStdio {
        signal: Some(signal),
        ..ChardevStdio::default()
    };
    with_id(id, Backend::Stdio(ChardevStdioWrapper { data }))
}

/// Nothing.
pub(super) fn null(id: &str) -> ChardevAdd {
    let data = ChardevCommon::default();
    with_id(id, Backend::Null(ChardevCommonWrapper { data }))
}

fn with_id(id: &str, backend: Backend) -> ChardevAdd {
    ChardevAdd {
        id: id.to_owned(),
        backend: ChardevBackend { r#type: backend },
    }
}
