//! What older command lines say of disks.

use serde_json::{Value, json};

use super::*;

/// The drive's id, its node as JSON, and whether there is a write cache.
fn drive(text: &str) -> (String, Value, bool) {
    let mut drives = config(&["-drive", text]).drives;
    let drive = drives.remove(0);
    let node = serde_json::to_value(drive.node).expect("a node is JSON");
    (drive.id, node, drive.write_cache)
}

fn node(text: &str) -> Value {
    drive(text).1
}

#[test]
fn a_drive_is_a_node_a_name_and_a_disk() {
    let config = config(&[
        "-device",
        "virtio-rng-pci",
        "-drive",
        "file=/a,,b,format=raw,if=virtio,cache=none,aio=threads,discard=unmap",
        "-drive",
        "file=/c,format=raw,if=none,id=d,read-only",
    ]);
    let ids: Vec<_> = config
        .drives
        .iter()
        .map(|drive| drive.id.as_str())
        .collect();
    assert_eq!(ids, ["virtio0", "d"]);
    assert_eq!(config.devices.len(), 2);
    let DeviceOptionsVariant::VirtioBlkPci(disk) = &config.devices[1].driver else {
        panic!("no disk");
    };
    assert_eq!(disk.drive, "virtio0");
    let first = serde_json::to_value(&config.drives[0].node).expect("a node is JSON");
    assert_eq!(
        first,
        json!({"driver": "raw", "auto-read-only": true, "discard": "unmap",
            "cache": {"direct": true, "no-flush": false},
            "file": {"driver": "file", "filename": "/a,b", "aio": "threads"}})
    );
    assert_eq!(config.drives[1].node.read_only, Some(true));
}

#[test]
fn a_name_of_a_file_can_stand_for_a_node() {
    let raw = |file: Value| json!({"driver": "raw", "auto-read-only": true, "file": file});
    let (null, wanted) = (
        node("if=none,file=null-co://,file.read-zeroes=on,format=raw"),
        raw(json!({"driver": "null-co", "read-zeroes": true})),
    );
    assert_eq!(null, wanted);
    assert_eq!(
        node("if=none,file=blkdebug::/x,format=raw"),
        raw(json!({"driver": "blkdebug", "image": {"driver": "file", "filename": "/x"}}))
    );
    assert_eq!(
        node("if=none,file=blkdebug:/rules:/dev/sdz,format=raw"),
        raw(json!({"driver": "blkdebug", "config": "/rules",
            "image": {"driver": "host_device", "filename": "/dev/sdz"}}))
    );
    assert_eq!(
        node("if=none,file.filename=/dev/fdset/3,format=raw"),
        raw(json!({"driver": "file", "filename": "/dev/fdset/3"}))
    );
    assert_eq!(
        node(
            r#"if=none,file=json:{"driver": "raw",, "file": {"driver": "null-co",, "size": 512}}"#
        ),
        raw(json!({"driver": "null-co", "size": 512}))
    );
    assert_eq!(
        node("if=none,driver=null-co,size=1M,node-name=n"),
        json!({"driver": "null-co", "size": 1 << 20, "node-name": "n", "auto-read-only": true})
    );
    assert_eq!(
        node("if=none,driver=file,file=fd:disk"),
        json!({"driver": "file", "filename": "fd:disk", "auto-read-only": true})
    );
}

#[test]
fn the_modes_of_a_cache_are_switches_of_the_node_and_of_the_disk() {
    for (mode, direct, no_flush, write_cache) in [
        ("writeback", false, false, true),
        ("none", true, false, true),
        ("directsync", true, false, false),
        ("writethrough", false, false, false),
        ("unsafe", false, true, true),
    ] {
        let (_, node, shown) = drive(&format!("if=none,file=/a,format=raw,cache={mode}"));
        assert_eq!(
            node["cache"],
            json!({"direct": direct, "no-flush": no_flush})
        );
        assert_eq!(shown, write_cache, "{mode}");
    }
    let (_, _, shown) = drive("if=none,file=/a,format=raw,cache.writeback=off");
    assert!(!shown);
}

#[test]
fn limits_of_a_drive_are_said_by_either_name_and_for_a_group() {
    let of = |text: &str| config(&["-drive", text]).drives.remove(0).throttling;
    let (group, limits) = of(
        "file=/a,format=raw,throttling.bps-read=7,iops=5,iops_max=9,\
                              throttling.group=g",
    );
    assert_eq!(group.as_deref(), Some("g"));
    assert_eq!(limits.bytes.read.average, 7);
    let total = limits.requests.total;
    assert_eq!((total.average, total.burst), (5, 9));
    let (group, limits) = of("file=/a,format=raw,throttling.bps-total=0");
    assert!(group.is_none() && !limits.any());
}

#[test]
fn what_a_drive_cannot_be_is_said() {
    for (text, wanted) in [
        ("if=none", "wanted an image"),
        (
            "file=/a,format=raw,backing.node-name=b",
            "'backing' is unexpected",
        ),
        (
            "file=/a,format=qcow2,backing.cache.direct=on",
            "'backing.driver' is missing",
        ),
        ("file=/a,format=raw,driver=raw", "Cannot specify both"),
        ("file=/a,format=qcow3", "does not accept value 'qcow3'"),
        ("file=nbd:host:1,format=raw", "Unknown protocol 'nbd'"),
        ("file=/a,format=raw,if=ide", "does not accept value 'ide'"),
        ("file=/a,format=raw,snapshot=on", "snapshot=on"),
        ("file=/a,format=raw,media=cdrom", "media"),
        (
            "file=/a,format=raw,throttling.iops-total=5M",
            "'throttling.iops-total' expects a number",
        ),
        (
            "file=/a,format=raw,bps=5,throttling.bps-total=5",
            "at the same time",
        ),
        (
            "file=/a,format=raw,iops_max=5",
            "require corresponding bps/iops values",
        ),
        ("file=/a,format=raw,throttling.iops=5", "'throttling"),
        (
            "file=/a,format=raw,cache=fast",
            "invalid cache option 'fast'",
        ),
        ("file=/a,format=raw,colour=red", "'colour' is unexpected"),
        ("file=/a,format=raw,id=1x", "1x"),
        ("file=json:[],format=raw", "wanted an object"),
        ("file=blkdebug:x,format=raw", "RULES may be empty"),
    ] {
        let error = error(&["-drive", text]);
        assert!(error.starts_with("-drive: "), "{error}");
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let twice = [
        "-drive",
        "file=/a,format=raw,id=d",
        "-drive",
        "file=/b,format=raw,id=d",
    ];
    assert_eq!(error(&twice), "-drive: Duplicate ID 'd' for drive");
}

#[test]
fn the_formats_are_listed_as_clients_parse_them() {
    let text = printed(&["-machine", "none", "-drive", "format=help"]);
    let first = text.lines().next().unwrap_or_default();
    assert!(first.starts_with("Supported formats: "), "{text}");
    assert!(first.split(' ').any(|name| name == "raw"));
}

#[test]
fn images_that_only_headers_name_can_be_named_and_the_last_be_put_on_a_node() {
    use block::spec::{BackingSpec, Behind, ChildSpec};

    let behind = |text: &str| config(&["-drive", text]).drives.remove(0).behind;
    let text = "if=none,file=/a,format=qcow2,backing.node-name=mid,backing.backing.backing=base";
    let last = Behind {
        name: None,
        backing: BackingSpec::Child(ChildSpec::Named("base".to_owned())),
    };
    let wanted = Behind {
        name: Some("mid".to_owned()),
        backing: BackingSpec::FromHeader(Some(Box::new(last))),
    };
    assert_eq!(behind(text), Some(wanted));
    assert_eq!(behind("if=none,file=/a,format=qcow2,backing=mid"), None);
    let given = "if=none,file=/a,format=qcow2,backing.driver=null-co,backing.node-name=b";
    assert_eq!(behind(given), None);
}

#[test]
fn an_image_that_says_what_it_is_needs_no_format() {
    let mut drives = config(&["-drive", "if=none,file=/a"]).drives;
    let drive = drives.remove(0);
    assert!(drive.recognised);
    assert_eq!(
        serde_json::to_value(drive.node).expect("a node is JSON"),
        json!({"driver": "qcow2", "auto-read-only": true,
            "file": {"driver": "file", "filename": "/a"}})
    );
    assert!(!config(&["-drive", "if=none,file=/a,format=qcow2"]).drives[0].recognised);
}

#[test]
fn a_file_is_below_all_formats() {
    assert_eq!(
        node("if=none,driver=raw,file.driver=qcow2,file=/a"),
        json!({"driver": "raw", "auto-read-only": true, "file": {"driver": "qcow2",
            "file": {"driver": "file", "filename": "/a"}}})
    );
}
