//! Nodes that get another image, and that exchange theirs.

use tempfile::TempDir;

use super::activity::{image, read, run, write};
use super::*;
use crate::spec::BackingSpec;

/// Images `a` and `b`, each with its first block filled with one byte, as nodes over the files
/// `a-file` and `b-file`; and a file `c-file` of whatever a test wants.
struct Rig {
    folder: TempDir,
    graph: BlockGraph,
    thread: IoThread,
}

impl Rig {
    fn new(make_c: &[&str]) -> Self {
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
        let c = rig.path("c");
        for name in ["a", "b"] {
            let path = rig.path(name);
            run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
        }
        run("qemu-img", &[make_c, &[c.as_str(), "1M"]].concat());
        for name in ["a", "b", "c"] {
            let spec = NodeSpec {
                name: Some(format!("{name}-file")),
                driver: DriverSpec::File(FileSpec {
                    filename: rig.path(name),
                    role: Role::Image,
                    locking: crate::spec::Locking::On,
                }),
                ..null(None)
            };
            rig.graph.add(&door(), spec).expect("a file");
        }
        for (name, byte) in [("a", 0xa), ("b", 0xb)] {
            rig.graph
                .add(&door(), over(name, &format!("{name}-file")))
                .expect("an image");
            write(&rig.thread, &rig.graph, name, (0, byte)).expect("room");
        }
        rig
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("plain").to_owned()
    }

    fn anew(&mut self, specs: &[NodeSpec]) -> Result<(), BlockError> {
        let prepared = self.graph.prepare_anew(&door(), specs)?;
        self.graph.make_anew(prepared).map(drop)
    }

    /// The first bytes of `a` and `b`.
    fn first(&self) -> [u8; 2] {
        ["a", "b"].map(|name| read(&self.thread, &self.graph, name, 0))
    }

    /// What has `a` and `b` refused to become, both at once.
    fn refused(&mut self, a: &str, b: &str) -> String {
        let error = self
            .anew(&[over("a", a), over("b", b)])
            .expect_err("refused");
        assert_eq!(self.first(), [0xa, 0xb], "nothing has changed");
        for (name, offset) in [("a", 8192), ("b", 8192)] {
            write(&self.thread, &self.graph, name, (offset, 1)).expect("both go on");
        }
        let source = std::error::Error::source(&error);
        let source = source.map_or(String::new(), |source| format!(": {source}"));
        format!("{error}{source}")
    }
}

fn over(name: &str, file: &str) -> NodeSpec {
    image(name, on(file), BackingSpec::FromHeader(None))
}

#[test]
fn two_nodes_exchange_their_images_at_once_and_neither_gets_the_others_alone() {
    let mut rig = Rig::new(&["create", "-q", "-f", "raw"]);
    let error = rig.anew(&[over("a", "b-file")]).expect_err("it is b's");
    assert_eq!(
        error.to_string(),
        "Permission conflict on node 'b-file': permissions 'write, resize' are both required by \
         node 'b' (uses node 'b-file' as 'file' child) and unshared by node 'a' (uses node \
         'b-file' as 'file' child)."
    );
    let disk = Usage::disk(false, false);
    rig.graph.attach("a", "vda", disk).expect("free");
    for turn in 1..4 {
        let (a, b, first) = match turn % 2 {
            1 => ("b-file", "a-file", [0xb, 0xa]),
            _ => ("a-file", "b-file", [0xa, 0xb]),
        };
        rig.anew(&[over("a", a), over("b", b)]).expect("both");
        assert_eq!(rig.first(), first);
        let view = rig.graph.node("a").expect("there");
        let name = if turn % 2 == 1 { "b" } else { "a" };
        assert_eq!(view.filename(), rig.path(name));
        // In the cluster that is there, and in a new one.
        for offset in [4096 * turn, turn << 17] {
            let (own, other) = (0x10 + turn, 0x20 + turn);
            let byte = |byte: u64| u8::try_from(byte).expect("small");
            write(&rig.thread, &rig.graph, "a", (offset, byte(own))).expect("room");
            write(&rig.thread, &rig.graph, "b", (offset, byte(other))).expect("room");
        }
    }
    rig.graph.detach("a", "vda");
    for name in ["a", "b"] {
        rig.graph.remove(name).expect("unused");
    }
    // Odd turns wrote by 'a' what is in b's file.
    for (name, bytes) in [("a", [0x21, 0x12, 0x23]), ("b", [0x11, 0x22, 0x13])] {
        let path = rig.path(name);
        run("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
        for (turn, byte) in (1..).zip(bytes) {
            for offset in [4096 * turn, turn << 17] {
                let command = format!("read -q -P {byte} {offset} 4k");
                run("qemu-io", &["-f", "qcow2", "-c", &command, &path]);
            }
        }
    }
}

#[test]
fn image_that_a_node_cannot_have_leaves_all_nodes_with_theirs() {
    let mut rig = Rig::new(&["create", "-q", "-f", "raw"]);
    let text = rig.refused("b-file", "c-file");
    assert!(text.starts_with("Could not open node 'b'"), "{text}");
    let kinds: [(&[&str], &str); 3] = [
        (&["-o", "cluster_size=4k"], "another kind"),
        (&["-o", "compression_type=zstd"], "another kind"),
        (
            &["-b", "nowhere", "-u", "-F", "raw"],
            "backing is missing for 'b'",
        ),
    ];
    for (options, expected) in kinds {
        let make = [&["create", "-q", "-f", "qcow2"], options].concat();
        let text = Rig::new(&make).refused("b-file", "c-file");
        assert!(text.contains(expected), "{options:?}: {text}");
    }
}

#[test]
fn node_in_use_keeps_its_length_and_one_that_nobody_has_gets_that_of_the_image() {
    let mut rig = Rig::new(&["create", "-q", "-f", "qcow2"]);
    run(
        "qemu-img",
        &["resize", "-q", "-f", "qcow2", &rig.path("c"), "2M"],
    );
    rig.graph.activate(None).expect("all are");
    let disk = Usage::disk(false, false);
    rig.graph.attach("b", "vda", disk).expect("free");
    let text = rig.refused("b-file", "c-file");
    assert!(
        text.contains("has 1048576 bytes, and the image there has 2097152"),
        "{text}"
    );
    rig.graph.detach("b", "vda");
    rig.anew(&[over("b", "c-file")]).expect("nobody has it");
    assert_eq!(rig.graph.node("b").expect("there").node().len(), 2 << 20);
    assert_eq!(rig.first(), [0xa, 0]);
}

#[test]
fn overlays_handed_in_for_each_other_make_no_disk_shorter() {
    let mut rig = Rig::new(&["create", "-q", "-f", "raw"]);
    let disk = Usage::disk(false, false);
    for (name, size) in [("small", "512k"), ("large", "2M")] {
        let path = rig.path(name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", &path, size]);
        let file = NodeSpec {
            driver: DriverSpec::File(FileSpec {
                filename: path,
                role: Role::Image,
                locking: crate::spec::Locking::On,
            }),
            ..null(None)
        };
        let overlay = image(name, inline(file), BackingSpec::Nothing);
        rig.graph.add(&door(), overlay).expect("an image");
    }
    for (name, device) in [("a", "vda"), ("b", "vdb")] {
        rig.graph.attach(name, device, disk).expect("free");
    }
    let mut sketch = rig.graph.sketch();
    let first = rig.graph.plan_snapshot(&mut sketch, "a", "large");
    first.expect("longer is fine");
    let second = rig.graph.plan_snapshot(&mut sketch, "b", "small");
    assert_eq!(
        second.expect_err("shorter").to_string(),
        "The overlay 'small' has 524288 bytes, and node 'b' 1048576, which somebody uses: was another \
         disk's handed in?"
    );
    assert_eq!(rig.first(), [0xa, 0xb], "nothing has changed");
    rig.graph.detach("b", "vdb");
    let mut sketch = rig.graph.sketch();
    let alone = rig.graph.plan_snapshot(&mut sketch, "b", "small");
    alone.expect("nobody has it");
}
