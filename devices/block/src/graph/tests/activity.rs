//! Nodes that leave their images to another process: QEMU's tools.

use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::bitmap::BitmapChange;
use crate::engine::Segments;
use crate::format::qcow2::Tuning;
use crate::node::WriteFlags;
use crate::spec::{BackingSpec, Qcow2Spec};

const MIB: u64 = 1 << 20;

/// Runs a program: how it ended, and what it said.
pub(super) fn tool(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("QEMU's tools are installed");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

pub(super) fn run(program: &str, arguments: &[&str]) {
    let (done, text) = tool(program, arguments);
    assert!(done, "{program} {arguments:?}: {text}");
}

/// An image in a file.
pub(super) fn image(name: &str, file: ChildSpec, backing: BackingSpec) -> NodeSpec {
    NodeSpec {
        name: Some(name.to_owned()),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file,
            data_file: None,
            backing,
            pass_discard: None,
            tuning: Tuning::default(),
        })),
        ..null(None)
    }
}

/// Writes a block of one byte to a node.
pub(super) fn write(
    thread: &IoThread,
    graph: &BlockGraph,
    node: &str,
    (offset, byte): (u64, u8),
) -> std::io::Result<()> {
    let node = graph.node(node).expect("there").node().clone();
    let written = thread.run(move |io| async move {
        let from = Segments::owned(4096, 4096)?;
        from.all().copy_from(&[byte; 4096]);
        let flags = WriteFlags::default();
        node.write(&io, offset, from.all(), flags).await
    });
    written.expect("the thread answers")
}

/// The byte of a node at an offset.
pub(super) fn read(thread: &IoThread, graph: &BlockGraph, node: &str, offset: u64) -> u8 {
    let node = graph.node(node).expect("there").node().clone();
    let read = thread.run(move |io| async move {
        let into = Segments::owned(4096, 4096)?;
        node.read(&io, offset, into.all()).await?;
        let mut bytes = [0; 4096];
        into.all().copy_to(&mut bytes);
        std::io::Result::Ok(bytes[0])
    });
    read.expect("the thread answers").expect("a read")
}

/// An image, and a graph with it as the node `disk` over the node `file`.
struct Rig {
    folder: TempDir,
    graph: BlockGraph,
    thread: IoThread,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let thread = IoThreadSpec { id: "t".to_owned() };
        let thread = IoThread::start(thread).expect("a thread");
        let mut graph = BlockGraph::new();
        graph.use_thread(thread.clone());
        let mut rig = Self {
            folder,
            graph,
            thread,
        };
        let path = rig.path();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
        rig.add("disk", None).expect("an image");
        rig
    }

    fn path(&self) -> String {
        let path = self.folder.path().join("image");
        path.to_str().expect("plain").to_owned()
    }

    fn add(&mut self, name: &str, active: Option<bool>) -> Result<NodeRef, BlockError> {
        let file = NodeSpec {
            name: Some(format!("{name}-file")),
            driver: DriverSpec::File(FileSpec {
                filename: self.path(),
                role: Role::Image,
                locking: crate::spec::Locking::On,
            }),
            ..null(None)
        };
        let spec = NodeSpec {
            active,
            ..image(name, inline(file), BackingSpec::Nothing)
        };
        self.graph.add(&door(), spec)
    }

    fn set_active(&mut self, active: bool) -> Result<(), BlockError> {
        if active {
            return self.graph.activate(Some("disk"));
        }
        let names = self.graph.to_inactivate(Some("disk"))?;
        self.graph.inactivate(&names)
    }

    fn write(&self, offset: u64, byte: u8) -> std::io::Result<()> {
        write(&self.thread, &self.graph, "disk", (offset, byte))
    }

    fn read(&self, offset: u64) -> u8 {
        read(&self.thread, &self.graph, "disk", offset)
    }

    /// Whether `qemu-io` does something, and what it says.
    fn by_qemu(&self, command: &str) -> (bool, String) {
        tool("qemu-io", &["-f", "qcow2", "-c", command, &self.path()])
    }
}

#[test]
fn inactive_image_is_another_processes_and_what_that_wrote_is_seen_afterwards() {
    let mut rig = Rig::new();
    rig.write(0, 1).expect("active");
    let (done, text) = rig.by_qemu("write -q -P 2 0 64k");
    assert!(!done && text.contains("lock"), "{text}");
    rig.set_active(false).expect("nobody minds");
    rig.set_active(false).expect("once more changes nothing");
    let view = |name: &str| rig.graph.node(name).expect("there").node().is_active();
    assert_eq!((view("disk"), view("disk-file")), (false, false));
    assert!(rig.by_qemu("read -q -P 1 0 4k").0, "all was written down");
    assert!(rig.by_qemu("write -q -P 2 0 64k").0);
    assert!(rig.by_qemu("write -q -P 3 512k 64k").0);
    run(
        "qemu-img",
        &["resize", "-q", "-f", "qcow2", &rig.path(), "2M"],
    );
    let error = rig.write(0, 4).expect_err("inactive");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    rig.set_active(true).expect("nobody has it");
    assert_eq!([rig.read(0), rig.read(MIB / 2), rig.read(MIB)], [2, 3, 0]);
    assert_eq!(rig.graph.node("disk").expect("there").node().len(), 2 * MIB);
    rig.write(2 * MIB - 4096, 5).expect("active");
    rig.graph.remove("disk").expect("unused");
    run("qemu-img", &["check", "-q", "-f", "qcow2", &rig.path()]);
    let (done, text) = rig.by_qemu("read -q -P 5 2044k 4k");
    assert!(done, "{text}");
}

#[test]
fn image_that_is_not_let_go_of_stays_inactive_and_the_other_keeps_its_locks() {
    let mut rig = Rig::new();
    // The same process with a second open file counts as another one.
    let error = rig.add("other", None).expect_err("locked");
    assert!(error.to_string().contains("\"write\" lock"), "{error}");
    rig.add("other", Some(false)).expect("takes no lock");
    for _ in 0..2 {
        let error = rig.graph.activate(Some("other")).expect_err("locked");
        assert!(error.to_string().contains("\"write\" lock"), "{error}");
        rig.write(0, 1).expect("as before");
    }
    rig.set_active(false).expect("nobody minds");
    rig.graph.activate(Some("other")).expect("free");
    rig.set_active(true).expect_err("taken");
    let names = rig.graph.to_inactivate(None).expect("all");
    assert_eq!(
        names,
        ["other", "other-file"],
        "who stands on another first"
    );
    rig.graph.inactivate(&names).expect("nobody minds");
    rig.set_active(true).expect("free again");
    assert_eq!(rig.read(0), 1);
}

#[test]
fn image_that_was_broken_meanwhile_stays_inactive_until_it_is_whole() {
    let mut rig = Rig::new();
    rig.write(0, 7).expect("active");
    rig.set_active(false).expect("nobody minds");
    #[expect(clippy::disallowed_methods, reason = "the test plays another process")]
    let whole = std::fs::read(rig.path()).expect("the image");
    #[expect(clippy::disallowed_methods, reason = "the test plays another process")]
    std::fs::write(rig.path(), &whole[..100]).expect("half an image");
    let error = rig.set_active(true).expect_err("no image");
    assert!(matches!(error, BlockError::NotRenewed { .. }), "{error}");
    assert!(rig.write(0, 8).is_err(), "nothing has changed");
    let (done, text) = tool("qemu-io", &["-f", "raw", "-c", "length", &rig.path()]);
    assert!(done, "its locks are gone: {text}");
    #[expect(clippy::disallowed_methods, reason = "the test plays another process")]
    std::fs::write(rig.path(), &whole).expect("the image");
    rig.set_active(true).expect("whole");
    assert_eq!(rig.read(0), 7);
}

#[test]
fn bitmaps_go_along_in_the_image_and_those_in_memory_forget_nothing() {
    let mut rig = Rig::new();
    let node = rig.graph.node("disk").expect("there").node().clone();
    for (name, persistent) in [("kept", true), ("memory", false)] {
        let change = BitmapChange::Add {
            name: name.to_owned(),
            granularity: None,
            persistent,
            enabled: true,
        };
        let (told, claimed) = (change.clone(), node.clone());
        let claimed = rig
            .thread
            .run(move |io| async move { claimed.claim_bitmaps(&io, &told).await });
        claimed.expect("the thread answers").expect("storable");
        node.change_bitmap(change).expect("new");
    }
    let marked = |name: &str| {
        let bitmap = node.bitmaps().find(name).expect("there");
        bitmap.map.expect("consistent").count()
    };
    rig.write(0, 1).expect("active");
    let before = (marked("kept"), marked("memory"));
    assert!(before.0 > 0 && before.0 < MIB, "{before:?}");
    rig.set_active(false).expect("nobody minds");
    let refused = node.change_bitmap(BitmapChange::Clear("kept".to_owned()));
    refused.expect_err("it is not ours");
    assert!(rig.by_qemu("write -q 512k 64k").0);
    rig.set_active(true).expect("nobody has it");
    assert_eq!(marked("kept"), 2 * before.0, "what the other recorded, too");
    assert_eq!(marked("memory"), MIB, "nobody recorded for it");
}

#[test]
fn what_stands_on_inactive_nodes_is_inactive_and_active_nodes_keep_what_is_below() {
    let mut graph = BlockGraph::new();
    let node = |name: &str, on: ChildSpec, active| NodeSpec {
        active,
        ..raw(name, on)
    };
    let is_active =
        |graph: &BlockGraph, name: &str| graph.node(name).expect("there").node().is_active();
    graph.add(&door(), null(Some("disk"))).expect("node");
    graph.add(&door(), raw("one", on("disk"))).expect("node");
    graph.add(&door(), raw("two", on("disk"))).expect("node");
    let error = graph.to_inactivate(Some("disk")).expect_err("in use");
    assert_eq!(error.to_string(), "Node has active parent node");
    let names = graph.to_inactivate(Some("one")).expect("free");
    assert_eq!(names, ["one"], "the other still has what is below");
    graph.inactivate(&names).expect("nothing to write down");
    assert!(is_active(&graph, "disk"));
    let names = graph.to_inactivate(Some("two")).expect("free");
    assert_eq!(names, ["two", "disk"]);
    graph.inactivate(&names).expect("nothing to write down");
    let error = graph.add(&door(), raw("three", on("two"))).expect_err("it");
    assert_eq!(
        error.to_string(),
        "Inactive 'two' can't be a file child of active 'three'"
    );
    graph
        .add(&door(), node("three", on("two"), Some(false)))
        .expect("inactive as well");
    let inline = inline(null(Some("below")));
    graph
        .add(&door(), node("four", inline, Some(false)))
        .expect("node");
    assert!(!is_active(&graph, "below"), "as what it came with");
    assert_eq!(
        graph.to_resize("two").expect_err("inactive").to_string(),
        "Permission 'resize' unavailable on inactive node"
    );
    let disk = Usage::disk(false, false);
    graph.attach("two", "vda", disk).expect("it can wait");
    let again = [node("two", on("disk"), Some(true))];
    let error = graph.prepare_anew(&door(), &again).expect_err("no option");
    assert_eq!(error.to_string(), "Cannot change the option 'active'");
}
