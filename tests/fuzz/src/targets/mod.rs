//! What there is to fuzz. One file for each parser or protocol; each says whom it plays, and what
//! must hold whatever comes.

mod arguments;
mod back_end;
mod framing;
mod hook;
mod images;
mod json;
mod kernels;
mod options;
mod pci;
mod plans;
mod registry;
mod rules;
mod schema;
mod sessions;
mod tpm;
mod virtio;

/// One thing to be fuzzed.
pub(crate) struct Target {
    /// Its name on the command line, and of its folder of seeds.
    pub(crate) name: &'static str,
    /// What it is, in one line.
    pub(crate) about: &'static str,
    /// Runs one input; panics when something does not hold.
    pub(crate) run: fn(&[u8]),
}

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "framing",
        about: "bytes and fds of a QMP client, cut anywhere, into requests: whose fd is whose",
        run: framing::run,
    },
    Target {
        name: "registry",
        about: "names, sets, aliases, opens and leases against a model of the fd registry",
        run: registry::run,
    },
    Target {
        name: "hook",
        about: "what a manager may answer to the open hook, and when: each question ends once",
        run: hook::run,
    },
    Target {
        name: "json",
        about: "the reader of QMP's JSON against serde_json",
        run: json::run,
    },
    Target {
        name: "sessions",
        about: "a whole QMP server and one client: one answer each, in order, and no fd left",
        run: sessions::run,
    },
    Target {
        name: "arguments",
        about: "commands' and options' arguments: strict, and the same in both forms",
        run: arguments::run,
    },
    Target {
        name: "rules",
        about: "what a monitor's clients may send: read twice, in either order",
        run: rules::run,
    },
    Target {
        name: "options",
        about: "any command line: nothing is opened, and both forms of an option mean the same",
        run: options::run,
    },
    Target {
        name: "plans",
        about: "query-open-plan for any arguments: it touches nothing",
        run: plans::run,
    },
    Target {
        name: "kernels",
        about: "bzImage and PVH ELF files: loaded inside the guest, or refused",
        run: kernels::run,
    },
    Target {
        name: "images",
        about: "qcow2 images: read, written and settled, or refused; what is only read stays as it is",
        run: images::run,
    },
    Target {
        name: "crafted",
        about: "sound qcow2 images whose fields are then broken: overlaps, edges, beyond the end",
        run: images::run_crafted,
    },
    Target {
        name: "schema",
        about: "the QAPI generator, on any schema file",
        run: schema::run,
    },
    Target {
        name: "virtio",
        about: "a mad virtio driver: rings, buffers and registers of disks, rng, console and others",
        run: virtio::run,
    },
    Target {
        name: "net",
        about: "a mad driver of a network card: packets, commands and registers",
        run: virtio::run_net,
    },
    Target {
        name: "backend",
        about: "a hostile vhost-user back end; an honest one after it is told all that is wanted",
        run: back_end::run,
    },
    Target {
        name: "mem",
        about: "a mad driver of memory by the block: requests and registers",
        run: virtio::run_mem,
    },
    Target {
        name: "input",
        about: "a mad driver of a keyboard, mouse or tablet while somebody types",
        run: virtio::run_input,
    },
    Target {
        name: "tpm",
        about: "a TPM's chip between a guest without order and an emulator that says what it likes",
        run: tpm::run,
    },
    Target {
        name: "pci",
        about: "any access to a PCI tree while cards come and go; after a reset it is as new",
        run: pci::run,
    },
];
