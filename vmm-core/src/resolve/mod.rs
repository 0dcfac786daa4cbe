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
pub mod node;
pub mod object;
pub mod open_hook;
pub(crate) mod unmet;

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{self, Config, Outcome};

    fn config(option: &str, value: &str) -> Config {
        let arguments = ["-nodefaults", option, value].map(OsString::from);
        match cli::parse(arguments) {
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
        assert_eq!(node_error(&format!("{file},locking=auto,aio=native")), None);
        assert_eq!(
            node_error(&format!("{file},locking=on")).as_deref(),
            Some("'locking=on' cannot be had: images are not locked; leave it out")
        );
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
        for wish in ["reserve=off", "align=2M", "discard-data=on", "rom=on"] {
            let error = object_error(&format!("{file},{wish}")).expect("not to be had");
            let name = wish.split('=').next().unwrap_or_default();
            assert!(error.contains(name), "{error}");
        }
    }
}
