//! The graph's rules, one by one, and all together against a model.

mod activity;
mod anew;
mod change;
mod filters;
mod locks;
mod model;
mod other_image;

use std::sync::Arc;

use fdset::{FdRegistry, Scope};

use super::*;
use crate::engine::{Io, IoThreadSpec};
use crate::format::blkdebug::limits::RequestLimits;
use crate::node::ZeroFlags;
use crate::permission::Permissions;
use crate::spec::{
    CacheSpec, CompressSpec, DetectZeroes, DiscardMode, FileSpec, NodeOptions, NullSpec, RawSpec,
    ThrottleSpec,
};
use crate::throttle::ThrottleLimits;

const OPTIONS: NodeOptions = NodeOptions {
    read_only: false,
    auto_read_only: false,
    discard: DiscardMode::Unmap,
    detect_zeroes: DetectZeroes::Off,
    cache: CacheSpec {
        direct: false,
        no_flush: false,
    },
};

fn door() -> Door {
    Door::new(Arc::new(FdRegistry::new()), Scope::Process)
}

fn null(name: Option<&str>) -> NodeSpec {
    let driver = DriverSpec::NullCo(NullSpec {
        size: 1 << 20,
        read_zeroes: true,
    });
    NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: name.map(str::to_owned),
        options: OPTIONS,
        driver,
    }
}

fn raw(name: &str, file: ChildSpec) -> NodeSpec {
    let driver = DriverSpec::Raw(RawSpec {
        file,
        offset: 0,
        size: None,
    });
    NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some(name.to_owned()),
        options: OPTIONS,
        driver,
    }
}

fn on(name: &str) -> ChildSpec {
    ChildSpec::Named(name.to_owned())
}

fn inline(spec: NodeSpec) -> ChildSpec {
    ChildSpec::Inline(Box::new(spec))
}

fn names(graph: &BlockGraph) -> Vec<&str> {
    graph.nodes().map(|view| view.node().name()).collect()
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, BlockError>) -> String {
    outcome.expect_err("refused").to_string()
}

#[test]
fn node_that_compresses_stands_on_nothing_but_an_image_that_can() {
    let mut graph = BlockGraph::new();
    let mut packs = raw("packs", on("other"));
    packs.driver = DriverSpec::Compress(CompressSpec {
        file: inline(raw("disk", inline(null(None)))),
    });
    assert_eq!(
        refusal(graph.add(&door(), packs)),
        "Compression is not supported for underlying format: raw (node 'disk' must be a qcow2 \
         image that has its clusters inside)"
    );
    assert!(names(&graph).is_empty());
}

#[test]
fn inline_child_gets_a_name_comes_after_its_own_children_and_goes_with_its_parent() {
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), raw("disk", inline(null(None))))
        .expect("add");
    assert_eq!(names(&graph), ["#block001", "disk"]);
    let child = graph.node("#block001").expect("there");
    assert_eq!(child.parents().collect::<Vec<_>>(), [("file", "disk")]);
    let disk = graph.node("disk").expect("there");
    assert_eq!(disk.children().collect::<Vec<_>>(), [("file", "#block001")]);
    assert_eq!(disk.filename(), "null-co://");
    assert_eq!(disk.node().len(), 1 << 20);
    assert_eq!(
        refusal(graph.remove("#block001")),
        "Node #block001 is not owned by the monitor"
    );
    graph.remove("disk").expect("unused");
    assert!(names(&graph).is_empty());
}

#[test]
fn a_drives_node_needs_no_name_and_goes_only_with_its_drive() {
    let mut graph = BlockGraph::new();
    let mut spec = raw("unnamed", inline(null(None)));
    spec.name = None;
    let node = graph.add_drive(&door(), spec).expect("add");
    assert_eq!(node.name(), "#block001");
    assert_eq!(names(&graph).len(), 2);
    assert_eq!(
        refusal(graph.remove("#block001")),
        "Node #block001 is not owned by the monitor"
    );
    graph.remove_drive("#block001").expect("unused");
    assert!(names(&graph).is_empty());
}

#[test]
fn inline_child_with_a_second_parent_outlives_the_first() {
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), raw("one", inline(null(Some("storage")))))
        .expect("add");
    graph.add(&door(), raw("two", on("storage"))).expect("add");
    graph.remove("one").expect("unused");
    assert_eq!(names(&graph), ["storage", "two"]);
    graph.remove("two").expect("unused");
    assert!(names(&graph).is_empty());
}

#[test]
fn names_are_checked_before_anything_is_added() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("a"))).expect("add");
    let mut add = |spec| refusal(graph.add(&door(), spec));
    assert_eq!(
        add(null(None)),
        "'node-name' must be specified for the root node"
    );
    assert_eq!(add(null(Some("a"))), "Duplicate nodes with node-name='a'");
    assert_eq!(
        add(raw("b", inline(null(Some("b"))))),
        "Duplicate nodes with node-name='b'",
        "within one command too"
    );
    assert_eq!(
        add(raw("b", on("b"))),
        "Cannot find device='b' nor node-name='b'"
    );
    for bad in ["", "1st", "#block1", "with space", "a/b", &"n".repeat(32)] {
        assert_eq!(add(null(Some(bad))), format!("Invalid node-name: '{bad}'"));
    }
    assert_eq!(names(&graph), ["a"]);
}

#[test]
fn endless_nesting_is_refused() {
    let mut spec = null(None);
    for _ in 0..=MAX_DEPTH {
        spec = NodeSpec {
            keeps_access: false,
            active: None,
            force_share: false,
            name: None,
            ..raw("x", inline(spec))
        };
    }
    spec.name = Some("top".to_owned());
    let error = refusal(BlockGraph::new().add(&door(), spec));
    assert_eq!(error, "Node 'top' is nested more than 64 levels deep");
}

#[test]
fn node_in_use_is_not_removed() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("storage"))).expect("add");
    graph.add(&door(), raw("disk", on("storage"))).expect("add");
    graph
        .attach("disk", "vda", Usage::disk(false, false))
        .expect("free");
    let error = refusal(graph.remove("storage"));
    assert_eq!(error, "Block device storage is in use");
    assert_eq!(refusal(graph.remove("disk")), "Node disk is in use");
    assert!(graph.detach("disk", "vda"));
    assert!(!graph.detach("disk", "vda"));
    graph.remove("disk").expect("unused");
    graph.remove("storage").expect("unused");
}

#[test]
fn second_writer_is_refused_on_the_node_and_through_shared_storage() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("storage"))).expect("add");
    graph.add(&door(), raw("left", on("storage"))).expect("add");
    graph
        .add(&door(), raw("right", on("storage")))
        .expect("add");
    let disk = Usage::disk(false, false);
    graph.attach("left", "vda", disk).expect("free");
    assert_eq!(
        refusal(graph.attach("left", "vdb", disk)),
        "Permission conflict on node 'left': permissions 'write' are both required by block device \
         'vda' (uses node 'left' as 'root' child) and unshared by block device 'vdb' (uses node \
         'left' as 'root' child)."
    );
    assert_eq!(
        refusal(graph.attach("right", "vdb", disk)),
        "Permission conflict on node 'storage': permissions 'write' are both required by node \
         'left' (uses node 'storage' as 'file' child) and unshared by node 'right' (uses node \
         'storage' as 'file' child)."
    );
    assert_eq!(
        refusal(graph.attach("left", "vda", disk)),
        "Device 'vda' already uses node 'left'"
    );
    graph.detach("left", "vda");
    graph
        .attach("left", "vda", Usage::disk(false, true))
        .expect("free");
    graph
        .attach("right", "vdb", Usage::disk(false, true))
        .expect("both share");
}

#[test]
fn read_only_storage_makes_a_read_only_node_or_none() {
    let mut graph = BlockGraph::new();
    let mut storage = null(Some("storage"));
    storage.options.read_only = true;
    graph.add(&door(), storage).expect("add");
    assert_eq!(
        refusal(graph.add(&door(), raw("disk", on("storage")))),
        "Block node is read-only: 'storage'"
    );
    let mut disk = raw("disk", on("storage"));
    disk.options.auto_read_only = true;
    assert!(graph.add(&door(), disk).expect("add").is_read_only());
    assert_eq!(
        refusal(graph.attach("disk", "vda", Usage::disk(false, false))),
        "Block node is read-only: 'disk'"
    );
    graph
        .attach("disk", "vda", Usage::disk(true, false))
        .expect("a reader");
}

#[test]
fn window_that_splits_a_sector_is_refused() {
    for (offset, size) in [(100, None), (0, Some(1000)), (512, Some(513))] {
        let driver = DriverSpec::Raw(RawSpec {
            file: inline(null(None)),
            offset,
            size,
        });
        let window = NodeSpec {
            keeps_access: false,
            active: None,
            force_share: false,
            driver,
            ..null(Some("disk"))
        };
        let mut graph = BlockGraph::new();
        let error = refusal(graph.add(&door(), window));
        assert!(error.contains("multiples of 512 bytes"), "{error}");
        assert!(names(&graph).is_empty());
    }
}

#[test]
fn failed_add_leaves_neither_node_nor_fd() {
    let image = tempfile::NamedTempFile::new().expect("image");
    image.as_file().set_len(4096).expect("length");
    let path = image.into_temp_path();
    let filename = path.to_str().expect("plain path").to_owned();
    let file = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        options: OPTIONS,
        driver: DriverSpec::File(FileSpec {
            filename: filename.clone(),
            role: Role::Image,
            locking: crate::spec::Locking::Auto,
        }),
    };
    let driver = DriverSpec::Raw(RawSpec {
        file: inline(file),
        offset: 4096,
        size: Some(1),
    });
    let window = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("disk".to_owned()),
        options: OPTIONS,
        driver,
    };
    let mut graph = BlockGraph::new();
    let error = refusal(graph.add(&door(), window));
    assert!(
        error.contains("sum of offset (4096) and size (1)"),
        "{error}"
    );
    assert!(names(&graph).is_empty());
    let open = std::fs::read_dir("/proc/self/fd")
        .expect("fds")
        .filter_map(Result::ok);
    let mut targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert!(
        !targets.any(|target| *target == *path),
        "the image is closed again"
    );
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they write the files that they hand in"
)]
fn rules_come_from_a_file_and_a_bad_file_changes_nothing() {
    let blkdebug = |config: &std::path::Path| NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        driver: DriverSpec::Blkdebug(BlkdebugSpec {
            image: inline(null(Some("below"))),
            config: Some(config.display().to_string()),
            rules: Rules::new(Vec::new(), Vec::new()),
            limits: RequestLimits::default(),
        }),
        ..null(Some("above"))
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules");
    let mut graph = BlockGraph::new();
    std::fs::write(&file, "[sing]").expect("written");
    let error = graph.add(&door(), blkdebug(&file)).expect_err("no rules");
    assert_eq!(
        error.to_string(),
        "Could not parse the rules of node 'above'"
    );
    assert_eq!(graph.nodes().count(), 0);
    std::fs::write(&file, "[inject-error]\nerrno = \"28\"\n").expect("written");
    graph.add(&door(), blkdebug(&file)).expect("good rules");
    assert_eq!(graph.nodes().count(), 2);
    graph.remove("above").expect("nobody uses it");
    assert_eq!(graph.nodes().count(), 0);
}

#[test]
fn a_length_changes_only_where_all_users_agree() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("base"))).expect("base");
    graph.add(&door(), raw("disk", on("base"))).expect("disk");
    graph.add(&door(), null(Some("other"))).expect("other");
    graph
        .attach("disk", "vda", Usage::disk(false, false))
        .expect("a disk minds no new length");
    assert!(graph.to_resize("base").is_ok());
    let strict = Usage {
        uses: Permissions::CONSISTENT_READ,
        shares: Permissions::CONSISTENT_READ,
    };
    graph.attach("other", "job", strict).expect("attach");
    let error = graph.to_resize("other").expect_err("the job minds");
    let text = error.to_string();
    assert!(
        text.contains("device 'job'") && text.contains("'resize'"),
        "{text}"
    );
    assert!(graph.to_resize("nobody").is_err());
    assert!(graph.stands_on("disk", "base") && graph.stands_on("base", "base"));
    assert!(!graph.stands_on("base", "disk") && !graph.stands_on("other", "base"));
}

fn throttle(name: &str, group: &str, file: ChildSpec) -> NodeSpec {
    let driver = DriverSpec::Throttle(ThrottleSpec {
        group: group.to_owned(),
        file,
    });
    NodeSpec {
        driver,
        ..raw(name, on("unused"))
    }
}

#[test]
fn throttle_needs_its_group_and_the_group_stays_while_a_node_is_in_it() {
    let mut graph = BlockGraph::new();
    let spec = throttle("slow", "g", inline(null(None)));
    let missing = graph.add(&door(), spec.clone());
    assert!(matches!(missing, Err(BlockError::NoThrottleGroup { .. })));
    let added = graph.add_throttle_group("g".to_owned(), ThrottleLimits::default());
    added.expect("a new name");
    graph.add(&door(), spec).expect("added");
    let view = graph.node("slow").expect("there");
    assert!(
        view.throttle_group()
            .is_some_and(|group| group.name() == "g")
    );
    let used = graph.remove_throttle_group("g").expect_err("in use");
    assert_eq!(
        used.to_string(),
        "object 'g' is in use by 'slow', can not be deleted"
    );
    graph.remove("slow").expect("removed");
    graph.remove_throttle_group("g").expect("nobody is in it");
    assert!(graph.throttle_group("g").is_err());
}

#[test]
fn drain_and_a_hurrying_user_let_what_waits_for_limits_through() {
    let mut graph = BlockGraph::new();
    let mut limits = ThrottleLimits::default();
    limits.bytes.total.average = 1;
    let added = graph.add_throttle_group("g".to_owned(), limits);
    added.expect("a new name");
    let spec = throttle("slow", "g", inline(null(None)));
    graph.add(&door(), spec).expect("added");
    let usage = Usage {
        uses: Permissions::WRITE,
        ..Usage::NONE
    };
    let root = graph.attach("slow", "disk", usage).expect("attached");
    let id = "test".to_owned();
    let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
    let zero = |io: Io, node: NodeRef| async move {
        let flags = ZeroFlags::default();
        node.write_zeroes(&io, 0, 1 << 20, flags).await
    };
    for hurry in [
        |graph: &BlockGraph, _: &Root| graph.drain(&["slow"]),
        |_: &BlockGraph, root: &Root| root.hurry(),
    ] {
        let hurrying = hurry(&graph, &root);
        for _ in 0..3 {
            let node = root.node();
            let done = thread.run(move |io| zero(io, node));
            done.expect("the thread answers").expect("written");
        }
        drop(hurrying);
    }
}
