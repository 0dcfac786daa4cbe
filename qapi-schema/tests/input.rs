//! Arguments in, by JSON and by `key=value`: what is taken, what is refused and in which words.

use proptest::prelude::*;
use qapi_schema::block_core::{BlockdevOptions, BlockdevOptionsVariant, BlockdevRef};
use qapi_schema::char::{ChardevAdd, ChardevBackendVariant, SocketAddressLegacyVariant};
use qapi_schema::cli::{ChardevOptions, ChardevOptionsVariant, SmpConfiguration};
use qapi_schema::control::QmpCapabilities;
use qapi_schema::describe::Described;
use qapi_schema::devices::{DeviceOptions, DeviceOptionsVariant};
use qapi_schema::fds::AddFd;
use qapi_schema::input::keyval::{KeyvalError, parse_keyval, unknown_key};
use qapi_schema::input::{FromInput, Mode, Path, Size};
use qapi_schema::qom::{ObjectOptions, ObjectOptionsVariant};
use serde_json::{Value, json};

fn json<T: FromInput>(value: Value) -> Result<T, String> {
    T::from_input(value, &Path::Root, Mode::Json).map_err(|error| error.desc)
}

fn keyval<T: FromInput>(text: &str, implied: Option<&str>) -> Result<T, String> {
    let parsed = parse_keyval(text, implied).map_err(|error| error.to_string())?;
    T::from_input(parsed.value, &Path::Root, Mode::Keyval).map_err(|error| error.desc)
}

#[test]
fn a_missing_argument_is_named() {
    let error = json::<ChardevAdd>(json!({ "id": "a" })).unwrap_err();
    assert_eq!(error, "Parameter 'backend' is missing");
}

#[test]
fn a_nested_argument_is_named_by_its_path() {
    let backend = json!({ "type": "socket", "data": { "addr": { "type": "unix", "data": {} } } });
    let error = json::<ChardevAdd>(json!({ "id": "a", "backend": backend })).unwrap_err();
    assert_eq!(error, "Parameter 'backend.data.addr.data.path' is missing");
}

#[test]
fn an_extra_argument_is_named() {
    let error = json::<AddFd>(json!({ "fdset": 1 })).unwrap_err();
    assert_eq!(error, "Parameter 'fdset' is unexpected");
    let node = json!({ "driver": "file", "filename": "x", "cache": { "x": 1 } });
    let error = json::<BlockdevOptions>(node).unwrap_err();
    assert_eq!(error, "Parameter 'cache.x' is unexpected");
}

#[test]
fn a_member_of_another_branch_is_unexpected() {
    let node = json!({ "driver": "null-co", "filename": "x" });
    let error = json::<BlockdevOptions>(node).unwrap_err();
    assert_eq!(error, "Parameter 'filename' is unexpected");
}

#[test]
fn wrong_types_are_named_with_the_wanted_one() {
    for (value, wanted) in [
        (
            json!({ "fdset-id": "1" }),
            "Invalid parameter type for 'fdset-id', expected: integer",
        ),
        (
            json!({ "fdset-id": 1.5 }),
            "Invalid parameter type for 'fdset-id', expected: integer",
        ),
        (
            json!({ "opaque": 1 }),
            "Invalid parameter type for 'opaque', expected: string",
        ),
        (json!([]), "Invalid parameter type for '', expected: object"),
    ] {
        assert_eq!(json::<AddFd>(value).unwrap_err(), wanted);
    }
    let node = |name: &str, value: Value| {
        let mut node = json!({ "driver": "raw", "file": "a" });
        node[name] = value;
        json::<BlockdevOptions>(node).unwrap_err()
    };
    assert_eq!(
        node("read-only", json!("on")),
        "Invalid parameter type for 'read-only', expected: boolean"
    );
    assert_eq!(node("size", json!(-1)), "Parameter 'size' expects uint64");
    assert_eq!(node("size", json!("1M")), "Parameter 'size' expects uint64");
    assert_eq!(
        node("file", json!(7)),
        "Invalid parameter type for 'file', expected: BlockdevRef"
    );
    assert_eq!(
        node("file", json!({ "driver": "raw", "file": null })),
        "Invalid parameter type for 'file', expected: BlockdevRef"
    );
    assert_eq!(
        node("discard", json!("maybe")),
        "Parameter 'discard' does not accept value 'maybe'"
    );
    let error = json::<QmpCapabilities>(json!({ "enable": "oob" })).unwrap_err();
    assert_eq!(
        error,
        "Invalid parameter type for 'enable', expected: array"
    );
    let error = json::<QmpCapabilities>(json!({ "enable": ["oob", "x"] })).unwrap_err();
    assert_eq!(error, "Parameter 'null' does not accept value 'x'");
}

#[test]
fn integers_keep_all_their_64_bits() {
    let node = json!({ "driver": "null-co", "size": u64::MAX });
    let node: BlockdevOptions = json(node).expect("a size is a uint64");
    let BlockdevOptionsVariant::NullCo(null) = node.driver else {
        panic!("the tag says null-co");
    };
    assert_eq!(null.size, Some(u64::MAX));
    let added: AddFd = json(json!({ "fdset-id": i64::MIN })).expect("an int is an int64");
    assert_eq!(added.fdset_id, Some(i64::MIN));
    assert!(json::<AddFd>(json!({ "fdset-id": u64::MAX })).is_err());
}

#[test]
fn a_block_node_may_hold_another_or_name_it() {
    let node = json!({
        "driver": "raw", "node-name": "top", "offset": 512,
        "file": { "driver": "file", "filename": "fd:disk", "aio": "io_uring" },
    });
    let node: BlockdevOptions = json(node).expect("a definition in place is fine");
    let BlockdevOptionsVariant::Raw(raw) = &node.driver else {
        panic!("the tag says raw");
    };
    assert_eq!(raw.offset, Some(512));
    let BlockdevRef::Definition(inner) = &raw.file else {
        panic!("an object is a definition");
    };
    assert!(
        matches!(&inner.driver, BlockdevOptionsVariant::File(file) if file.filename == "fd:disk")
    );

    let node: BlockdevOptions = keyval("driver=raw,file=below", None).expect("a name is fine");
    let BlockdevOptionsVariant::Raw(raw) = &node.driver else {
        panic!("the tag says raw");
    };
    assert_eq!(raw.file, BlockdevRef::Reference("below".to_owned()));
}

#[test]
fn dotted_keys_reach_into_objects() {
    let node: BlockdevOptions = keyval(
        "file,node-name=a,filename=/a,,b,cache.direct=on,cache.no-flush=no,read-only=yes",
        Some("driver"),
    )
    .expect("each key is known");
    let cache = node.cache.expect("cache.* was given");
    assert_eq!((cache.direct, cache.no_flush), (Some(true), Some(false)));
    assert_eq!(node.read_only, Some(true));
    let BlockdevOptionsVariant::File(file) = node.driver else {
        panic!("the implied key is the driver");
    };
    assert_eq!(file.filename, "/a,b");
}

#[test]
fn command_line_leaves_are_read_as_their_type_wants() {
    let memory: ObjectOptions = keyval(
        "memory-backend-memfd,id=ram,size=1.5G,share=on,prealloc-threads=0x2",
        Some("qom-type"),
    )
    .expect("each key is known");
    let ObjectOptionsVariant::MemoryBackendMemfd(memfd) = memory.qom_type else {
        panic!("the implied key is the type");
    };
    assert_eq!(memfd.size, 3 << 29);
    assert_eq!(memfd.prealloc_threads, Some(2));

    let error = keyval::<ObjectOptions>("memory-backend-ram,id=m,size=lots", Some("qom-type"));
    assert!(
        error
            .unwrap_err()
            .starts_with("Parameter 'size' expects a size")
    );
    let error = keyval::<ObjectOptions>("memory-backend-ram,id=m,size=1,share=1", Some("qom-type"));
    assert_eq!(
        error.unwrap_err(),
        "Parameter 'share' expects 'on' or 'off'"
    );
    let error = keyval::<SmpConfiguration>("two", Some("cpus"));
    assert_eq!(error.unwrap_err(), "Parameter 'cpus' expects integer");
}

#[test]
fn what_libvirt_writes_for_a_monitor_and_a_disk_is_taken() {
    let text = "socket,id=charmonitor,fd=31,server=on,wait=off";
    let chardev: ChardevOptions = keyval(text, Some("backend")).expect("libvirt's monitor");
    let ChardevOptionsVariant::Socket(socket) = chardev.backend else {
        panic!("it is a socket");
    };
    assert_eq!(socket.fd.as_deref(), Some("31"));
    assert_eq!((socket.server, socket.wait), (Some(true), Some(false)));

    let disk = json!({
        "driver": "virtio-blk-pci", "bus": "pci.1", "addr": "0x0", "drive": "libvirt-1-storage",
        "id": "virtio-disk0", "bootindex": 1, "write-cache": "on",
    });
    let disk: DeviceOptions = json(disk).expect("libvirt's disk");
    let DeviceOptionsVariant::VirtioBlkPci(blk) = disk.driver else {
        panic!("it is a disk");
    };
    assert_eq!((blk.addr.as_deref(), blk.bootindex), (Some("0x0"), Some(1)));

    let channel = json!({
        "id": "c", "backend": { "type": "socket", "data": {
            "addr": { "type": "fd", "data": { "str": "channel1" } }, "server": true, "wait": false,
        } },
    });
    let channel: ChardevAdd = json(channel).expect("libvirt's hot-added channel");
    let ChardevBackendVariant::Socket(socket) = channel.backend.r#type else {
        panic!("it is a socket");
    };
    let SocketAddressLegacyVariant::Fd(address) = socket.data.addr.r#type else {
        panic!("its address is an fd");
    };
    assert_eq!(address.data.str, "channel1");
}

#[test]
fn keyval_text_that_contradicts_itself_is_refused() {
    let error = |text| parse_keyval(text, None).unwrap_err();
    assert_eq!(error("a"), KeyvalError::NoValue("a".to_owned()));
    assert_eq!(error("a=1,b"), KeyvalError::NoValue("b".to_owned()));
    assert_eq!(error("a=1,a=2"), KeyvalError::Twice("a".to_owned()));
    assert_eq!(error("a=1,a.b=2"), KeyvalError::Mixed("a".to_owned()));
    assert_eq!(error("a.b=1,a=2"), KeyvalError::Mixed("a".to_owned()));
    assert_eq!(error("a.b=1,a.b.c=2"), KeyvalError::Mixed("a.b".to_owned()));
    assert_eq!(error("a..b=1"), KeyvalError::BadKey("a..b".to_owned()));
    assert_eq!(error("=1"), KeyvalError::BadKey(String::new()));
    let gap = KeyvalError::Gap {
        key: "a".to_owned(),
        index: 0,
    };
    assert_eq!(error("a.1=x"), gap);
}

#[test]
fn keyval_lists_are_in_the_order_of_their_indices() {
    let parsed = parse_keyval("l.1.x=b,l.0.x=a,s=1", None).expect("indices run from 0");
    assert_eq!(
        parsed.value,
        json!({ "l": [{ "x": "a" }, { "x": "b" }], "s": "1" })
    );
    assert!(!parsed.help);
    assert!(
        parse_keyval("help", Some("driver"))
            .expect("help alone is fine")
            .help
    );
    assert!(
        parse_keyval("file,help", Some("driver"))
            .expect("so is help for one")
            .help
    );
}

#[test]
fn an_unknown_key_is_told_with_the_nearest_known_one() {
    let parsed = parse_keyval("file,file-name=x", Some("driver")).expect("the text is well-formed");
    let known = BlockdevOptions::known_members(Some("file"));
    let line = unknown_key(&parsed.value, &known);
    assert_eq!(
        line.as_deref(),
        Some("unknown key 'file-name'; did you mean 'filename'?")
    );
}

#[test]
fn sizes_are_exact_and_never_wrap() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("0x10", 16),
        ("4k", 4096),
        ("0.5M", 1 << 19),
    ] {
        assert_eq!(Size::parse(text), Some(Size(bytes)), "{text}");
    }
    for text in [
        "",
        "k",
        "-1",
        "16E",
        "1.",
        ".5k",
        "1.5",
        "1 k",
        "99999999999999999999",
    ] {
        assert_eq!(Size::parse(text), None, "{text}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["raw", "file", "null-co", "driver", ".*"].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let name = prop_oneof![
            "driver",
            "file",
            "filename",
            "size",
            "cache",
            "node-name",
            ".*"
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(value in any_json()) {
        if let Ok(node) = json::<BlockdevOptions>(value) {
            let written = serde_json::to_value(&node).expect("a node is writable");
            prop_assert_eq!(json::<BlockdevOptions>(written), Ok(node));
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in ".*") {
        if let Ok(parsed) = parse_keyval(&text, Some("driver")) {
            prop_assert!(parsed.value.is_object());
        }
    }
}

/// `null-co` below so many `raw`.
fn tower(height: usize) -> Value {
    let mut node = json!({ "driver": "null-co" });
    for _ in 0..height {
        let mut above = serde_json::Map::new();
        above.insert("driver".to_owned(), "raw".into());
        above.insert("file".to_owned(), node);
        node = above.into();
    }
    node
}

#[test]
fn nesting_is_bounded_before_the_stack_is() {
    assert!(json::<BlockdevOptions>(tower(60)).is_ok());
    let error = json::<BlockdevOptions>(tower(1022)).unwrap_err();
    assert!(
        error.ends_with("is nested more than 64 levels deep"),
        "{error}"
    );
    let text = format!("{}a=1", "a.".repeat(10_000));
    assert!(matches!(
        parse_keyval(&text, None),
        Err(KeyvalError::TooDeep(_))
    ));
}
