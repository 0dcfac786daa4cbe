//! From what a client wrote to what is built: wire types in, resolved specs out.
//!
//! This is the one place where "absent means" is decided. Every function is pure: it opens
//! nothing, looks at no VM, and fails only where members contradict each other.
//!
//! ```text
//!   QMP arguments ─┐
//!                  ├─► qapi_schema type ──► resolve::* ──► *Spec ──► fdset, block, devices
//!   command line ──┘    (optional members)                 (nothing optional left)
//! ```

pub mod chardev;
pub mod create;
pub mod filter;
pub mod memory_device;
pub mod netdev;
pub mod node;
pub mod numa;
pub mod object;
pub mod open_hook;
pub mod qcow2;
pub(crate) mod unmet;
pub mod vsock;

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use devices::chardev::BackendSpec;
    use fdset::SocketAddress;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::{self, Config, Outcome};

    fn config(option: &str, value: &str) -> Config {
        let arguments = ["-nodefaults", option, value].map(OsString::from);
        match cli::parse(arguments, |name| Err(format!("no file '{name}'"))) {
            Ok(Outcome::Run(config)) => *config,
            Ok(Outcome::Print(text)) => panic!("shows {text}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn node_error(keys: &str) -> Option<String> {
        let options = config("-blockdev", keys).blockdevs.remove(0);
        node::node(options).err().map(|error| error.desc)
    }

    fn object_error(keys: &str) -> Option<String> {
        let options = config("-object", keys).objects.remove(0);
        object::object(options).err().map(|error| error.desc)
    }

    #[test]
    fn a_wish_for_a_node_that_cannot_be_met_is_refused_by_its_name() {
        let file = "driver=file,node-name=d,filename=x";
        assert_eq!(node_error(file), None);
        let native = format!("{file},locking=auto,aio=native");
        assert_eq!(node_error(&format!("{native},cache.direct=on")), None);
        let cached = node_error(&native);
        assert!(cached.is_some_and(|error| error.contains("requires cache.direct=on")));
        assert_eq!(node_error(&format!("{file},locking=on")), None);
        let slow = node_error("driver=null-co,node-name=n,latency-ns=5");
        assert!(slow.is_some_and(|error| error.contains("'latency-ns'")));
        assert_eq!(
            node_error(&format!("{file},force-share=on")).as_deref(),
            Some("force-share=on can only be used with read-only images")
        );
        let shared = format!("{file},force-share=on,read-only=on");
        assert_eq!(node_error(&shared), None);
    }

    #[test]
    fn a_wish_for_an_object_that_cannot_be_met_is_refused_by_its_name() {
        let file = "memory-backend-file,id=m,size=1M,mem-path=x";
        assert_eq!(object_error(file), None);
        for wish in ["align=2M", "discard-data=on", "rom=on"] {
            let error = object_error(&format!("{file},{wish}")).expect("not to be had");
            let name = wish.split('=').next().unwrap_or_default();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_wish_for_a_socket_that_cannot_be_met_is_refused_by_its_name() {
        let inet = json!({"host": "localhost", "port": "1"});
        let unix = json!({"path": "/s"});
        let named = json!({"path": "s", "abstract": true});
        for (kind, address, server, wish, name) in [
            ("inet", &inet, json!({}), json!({"to": 9}), "to"),
            ("inet", &inet, json!({}), json!({"ipv4": false}), "ipv4=off"),
            ("inet", &inet, json!({}), json!({"ipv6": false}), "ipv6=off"),
            (
                "inet",
                &inet,
                json!({}),
                json!({"keep-alive": true}),
                "keep-alive=on",
            ),
            (
                "unix",
                &unix,
                json!({}),
                json!({"tight": false}),
                "tight=off",
            ),
            (
                "unix",
                &unix,
                json!({"nodelay": true}),
                json!({}),
                "nodelay=on",
            ),
            (
                "unix",
                &named,
                json!({"nodelay": true}),
                json!({}),
                "nodelay=on",
            ),
        ] {
            assert_eq!(chardev_error(socket(kind, &[address], &[])), None);
            let refused = socket(kind, &[address, &wish], &[&server]);
            let error = chardev_error(refused).expect("not to be had");
            let wish = error.split('\'').nth(1).unwrap_or_default();
            assert!(wish.split(" or ").any(|one| one == name), "{error}");
        }
        let hurried = socket("inet", &[&inet], &[&json!({"nodelay": true})]);
        assert_eq!(chardev_error(hurried), None);
    }

    #[test]
    fn an_abstract_name_that_is_not_tight_is_filled_with_zeros() {
        let loose = json!({"path": "s", "abstract": true, "tight": false});
        let backend = qapi_schema::input::arguments(socket("unix", &[&loose], &[]));
        let spec = chardev::chardev(backend.expect("of the schema")).expect("resolved");
        let BackendSpec::Socket(socket) = spec.backend else {
            panic!("no socket");
        };
        assert_eq!(socket.address.to_string(), "unix:@s");
        let SocketAddress::Abstract { name } = socket.address else {
            panic!("not abstract");
        };
        assert_eq!(name, format!("s{}", "\0".repeat(106)));
    }

    /// The backend of a socket: members of the address, and beside it.
    fn socket(kind: &str, address: &[&Value], beside: &[&Value]) -> Value {
        let join = |parts: &[&Value]| {
            let members = parts.iter().filter_map(|part| part.as_object());
            Value::Object(
                members
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            )
        };
        let address = json!({"addr": {"type": kind, "data": join(address)}});
        let parts: Vec<&Value> = beside.iter().copied().chain([&address]).collect();
        json!({"type": "socket", "data": join(&parts)})
    }

    fn chardev_error(backend: Value) -> Option<String> {
        let backend = qapi_schema::input::arguments(backend).expect("of the schema");
        chardev::chardev(backend).err().map(|error| error.desc)
    }
}
