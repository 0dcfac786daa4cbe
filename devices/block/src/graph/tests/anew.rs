//! Nodes made anew: what of a driver's own can change, what a job relies on, the page cache.

use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;

use super::*;

fn anew(graph: &mut BlockGraph, spec: NodeSpec) -> Result<(), BlockError> {
    let prepared = graph.prepare_anew(&door(), &[spec])?;
    graph.make_anew(prepared).map(drop)
}

fn part(name: &str, offset: u64, size: Option<u64>) -> NodeSpec {
    let file = on("base");
    let driver = DriverSpec::Raw(RawSpec { file, offset, size });
    NodeSpec {
        driver,
        ..raw(name, on("base"))
    }
}

fn len(graph: &BlockGraph, name: &str) -> u64 {
    graph.node(name).expect("there").node().len()
}

#[test]
fn a_part_of_a_node_moves_but_keeps_its_length_under_whoever_uses_it() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("base"))).expect("add");
    graph.add(&door(), raw("part", on("base"))).expect("add");
    anew(&mut graph, part("part", 1 << 19, None)).expect("nobody uses it");
    assert_eq!(len(&graph, "part"), 1 << 19);
    let usage = Usage::disk(false, false);
    graph.attach("part", "vda", usage).expect("free");
    anew(&mut graph, part("part", 0, Some(1 << 19))).expect("as long");
    for (offset, size, option) in [(0, None, "offset"), (0, Some(1 << 18), "size")] {
        assert_eq!(
            refusal(anew(&mut graph, part("part", offset, size))),
            format!("Cannot change the option '{option}'")
        );
    }
    assert!(refusal(anew(&mut graph, part("part", 1 << 20, Some(1 << 19)))).contains("sum of"));
    assert!(refusal(anew(&mut graph, part("part", 3, Some(1 << 19)))).contains("multiples of"));
    assert_eq!(len(&graph, "part"), 1 << 19);
    // What it is by now is what the next change is compared with.
    anew(&mut graph, part("part", 0, Some(1 << 19))).expect("nothing changes");
}

#[test]
fn what_a_job_relies_on_stays_and_all_else_changes_under_it() {
    let mut graph = BlockGraph::new();
    for name in ["one", "two"] {
        graph.add(&door(), null(Some(name))).expect("add");
    }
    graph.add(&door(), raw("disk", on("one"))).expect("add");
    let held = ["disk", "one"].map(|name| (name.to_owned(), Grip::Work));
    graph.hold(&held, "job0", "stream", &Gate::new());
    assert_eq!(
        refusal(anew(&mut graph, raw("disk", on("two")))),
        "Cannot change frozen 'file' link from 'disk' to 'one'"
    );
    let with = |read_only, detect_zeroes| NodeSpec {
        options: NodeOptions {
            read_only,
            detect_zeroes,
            ..OPTIONS
        },
        ..raw("disk", on("one"))
    };
    assert_eq!(
        refusal(anew(&mut graph, with(true, DetectZeroes::Off))),
        "Read-only block node 'disk' cannot support read-write users"
    );
    anew(&mut graph, with(false, DetectZeroes::On)).expect("no matter to a job");
    let detects = graph.node("disk").expect("there").node().options();
    assert_eq!(detects.detect_zeroes, DetectZeroes::On);
    graph.let_go("job0");
    let held = [("one".to_owned(), Grip::Work)];
    graph.hold(&held, "job1", "stream", &Gate::new());
    anew(&mut graph, raw("disk", on("two"))).expect("the job has not this link");
}

/// A file with a node over it, where the file system has O_DIRECT.
fn stored(graph: &mut BlockGraph, direct: bool) -> Option<(NamedTempFile, NodeSpec)> {
    let file = NamedTempFile::new_in(".").expect("temporary file");
    file.as_file().write_all_at(&[7; 8192], 0).expect("file");
    let driver = DriverSpec::File(FileSpec {
        filename: file.path().to_str().expect("plain path").to_owned(),
        role: Role::Image,
        locking: crate::spec::Locking::Auto,
    });
    let spec = NodeSpec {
        driver,
        ..null(Some("storage"))
    };
    let probe = BlockGraph::new().add(&door(), cached(&spec, true));
    probe.ok()?;
    graph.add(&door(), cached(&spec, direct)).expect("add");
    Some((file, spec))
}

fn cached(spec: &NodeSpec, direct: bool) -> NodeSpec {
    let mut spec = spec.clone();
    spec.options.cache.direct = direct;
    spec
}

#[test]
fn the_page_cache_is_bypassed_and_used_again_under_a_disk_with_blocks_as_large() {
    let mut graph = BlockGraph::new();
    let Some((_file, spec)) = stored(&mut graph, false) else {
        return;
    };
    graph.add(&door(), raw("disk", on("storage"))).expect("add");
    let alignment = |graph: &BlockGraph, name: &str| {
        let view = graph.node(name).expect("there");
        view.node().limits().request_alignment
    };
    assert_eq!(alignment(&graph, "disk"), 1);
    let usage = Usage::disk(false, false);
    let root = graph.attach("disk", "vda", usage).expect("free");
    root.check_disk(256).expect("nothing to align to");
    let refused = refusal(anew(&mut graph, cached(&spec, true)));
    assert!(
        refused.contains("'vda' has blocks of 256 bytes"),
        "{refused}"
    );
    assert_eq!(alignment(&graph, "storage"), 1, "given up");
    root.check_disk(4096).expect("larger ones");
    anew(&mut graph, cached(&spec, true)).expect("large enough");
    assert!(alignment(&graph, "storage") >= 512);
    assert_eq!(alignment(&graph, "disk"), alignment(&graph, "storage"));
    let thread = IoThread::start(IoThreadSpec {
        id: "test".to_owned(),
    })
    .expect("io-thread");
    let node = root.node();
    let read = thread.run(move |io| async move {
        let into = crate::engine::Segments::owned(4096, 4096)?;
        node.read(&io, 4096, into.all()).await?;
        let mut bytes = vec![0; 4096];
        into.all().copy_to(&mut bytes);
        Ok::<_, std::io::Error>(bytes)
    });
    assert_eq!(read.expect("answer").expect("read"), vec![7; 4096]);
    anew(&mut graph, cached(&spec, false)).expect("back");
    assert_eq!(alignment(&graph, "disk"), 1);
    assert!(
        !graph
            .node("storage")
            .expect("there")
            .node()
            .options()
            .cache
            .direct
    );
}
