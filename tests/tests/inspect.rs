//! What `x-inspect` shows, of everything there is.

use anyhow::Result;
use serde_json::{Value, json};
use tests::inspect::look_at_all;
use tests::{Vm, fds};

/// The board's devices: here, as the table of commands has them in a machine that is there already.
const BOARD: [&str; 4] = ["isa-serial", "pvpanic", "vmcoreinfo", "vmgenid"];

fn refusal(vm: &mut Vm, path: &str) -> Result<String> {
    let refused = vm.qmp.attempt("x-inspect", json!({"path": path}), &[])?;
    Ok(refused.expect_err("nothing is there").desc)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn everything_in_the_object_tree_has_a_state_or_a_reason_why_not() -> Result<()> {
    let mut builder = Vm::paused().root_ports(2).disk("disk", fds::disk(1 << 20)?);
    for driver in BOARD {
        builder = builder.args(["-device", &format!("{driver},id=its-{driver}")]);
    }
    let mut vm = builder
        .args(["-device", "virtio-rng-pci,bus=port0,id=rng0"])
        .args(["-device", "virtio-serial-pci,id=serial"])
        .args(["-device", "virtserialport,bus=serial.0,nr=3,id=port"])
        .args(["-device", "virtio-balloon-pci"])
        .start()?;
    let kinds = look_at_all(&mut vm)?;
    let kind_of = |end: &str| {
        let mut of = kinds.iter().filter(|(path, _)| path.ends_with(end));
        of.next().map(|(_, kind)| kind.as_str())
    };
    for (end, kind) in [
        ("/peripheral/its-isa-serial", "uart16550"),
        ("/peripheral/its-vmcoreinfo", "vmcoreinfo"),
        ("/peripheral/rng0", "virtio-pci"),
        ("/peripheral/port", "virtio-serial-port"),
        ("/peripheral/port0", "pcie-root-port"),
        ("/unattached/q35-host-bridge", "q35-host-bridge"),
        ("/unattached/lpc", "lpc"),
        ("/unattached/tco", "tco"),
        ("/unattached/rtc", "rtc"),
        ("/unattached/ioapic", "kvm-ioapic"),
        ("/unattached/pic", "kvm-i8259"),
        ("/unattached/pit", "kvm-pit"),
        ("/unattached/pci-config-ports", "pci-config-ports"),
    ] {
        assert_eq!(kind_of(end), Some(kind), "{end}: {kinds:?}");
    }
    assert_eq!(
        kind_of("/unattached/vmcoreinfo"),
        None,
        "a device's is there only"
    );

    let state = vm.execute("x-inspect", json!({"path": "port0"}))?;
    assert_eq!(state["state"], json!({"phase": "on", "interrupt": false}));
    let queue = vm.execute("x-inspect", json!({"path": "rng0"}))?["state"]["queues"][0].clone();
    assert_eq!((&queue["size"], &queue["place"]), (&json!(8), &Value::Null));
    let backend = vm.execute("x-inspect", json!({"path": "rng0/virtio-backend/"}))?;
    assert_eq!(backend["path"], "/machine/peripheral/rng0/virtio-backend");

    assert_eq!(
        refusal(&mut vm, "rng1")?,
        "Device 'rng1' not found; did you mean 'rng0'?"
    );
    assert_eq!(
        refusal(&mut vm, "rng0/msx")?,
        "'/machine/peripheral/rng0' has no part 'msx': it has config, msix, virtio-backend"
    );
    let container = refusal(&mut vm, "/machine/peripheral")?;
    assert!(container.contains("has no state of its own"), "{container}");
    vm.shutdown_clean()
}
