//! Jobs over images: what QEMU finds in them afterwards is what was there before.

use std::sync::Arc;
use std::sync::mpsc;

use super::{Rig, Tuning};
use crate::drain::Gate;
use crate::job::chain::Chain;
use crate::job::commit::{CommitSpec, commit};
use crate::job::stream::{StreamSpec, stream};
use crate::job::{Control, JobCx, JobFailure, JobNews, JobSink, OnError};
use crate::node::NodeRef;
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;

struct Images {
    top: NodeRef,
    middle: NodeRef,
    base: NodeRef,
}

/// How many MiB base, middle and top of a chain have: what backs an image is shorter or longer.
const SIZES: [[u64; 3]; 4] = [[4, 4, 5], [5, 4, 3], [2, 5, 4], [4, 2, 5]];

/// A chain whose images say so of each other, with something of everything in it.
fn images(rig: &Rig, sizes: [u64; 3]) -> Images {
    rig.create("base", "cluster_size=4096", sizes[0] * MIB);
    rig.create(
        "middle",
        &format!("backing_file={},backing_fmt=qcow2", rig.path("base")),
        sizes[1] * MIB,
    );
    rig.create(
        "top",
        &format!("backing_file={},backing_fmt=qcow2", rig.path("middle")),
        sizes[2] * MIB,
    );
    rig.qemu_io("base", &[&format!("write -P 1 0 {}M", sizes[0])]);
    rig.qemu_io(
        "middle",
        &[
            "write -P 2 100k 300k",
            "write -z 1M 256k",
            &format!("write -P 4 {}M 1k", sizes[1] - 1),
        ],
    );
    let late = format!("write -P 5 {}k 64k", sizes[2] * 1024 - 600);
    rig.qemu_io("top", &["write -P 3 200k 3k", &late]);
    let over = |name: &str, backing| {
        let file = rig.file(name, OPTIONS);
        let node = rig.open_on(file, None, backing, Tuning::default());
        node.expect("image")
    };
    let base = over("base", None);
    let middle = over("middle", Some(base.clone()));
    let top = over("top", Some(middle.clone()));
    Images { top, middle, base }
}

/// Runs a job to its end.
pub(super) fn run<F>(
    rig: &Rig,
    body: impl FnOnce(JobCx) -> F + Send + 'static,
) -> Result<(), JobFailure>
where
    F: Future<Output = Result<(), JobFailure>> + 'static,
{
    let (tell, heard) = mpsc::channel();
    let sink = JobSink::new(move |news| drop(tell.send(news)));
    rig.thread.spawn(move |io| async move {
        let control = Arc::new(Control::default());
        let cx = JobCx::new(io, control, sink.clone(), &Gate::new()).await;
        sink.ended(body(cx).await);
    });
    for news in heard {
        if let JobNews::Ended(result) = news {
            return result;
        }
    }
    panic!("the job said nothing");
}

#[test]
fn streamed_overlay_reads_the_same_without_what_was_between() {
    for sizes in SIZES {
        streamed(sizes);
    }
}

fn streamed(sizes: [u64; 3]) {
    let rig = Rig::new();
    let images = images(&rig, sizes);
    let before = rig.read(&images.top, 0, len(&images.top));
    let (top, between) = (images.top.clone(), Chain::new(vec![images.middle]));
    let spec = StreamSpec {
        top,
        between,
        on_error: OnError::Report,
    };
    run(&rig, move |cx| stream(cx, spec)).expect("streamed");
    let (node, path) = (images.top.clone(), rig.path("base"));
    let changed = rig.on_thread(move |io| async move {
        node.change_backing(&io, Some(&path), Some("qcow2")).await
    });
    changed.expect("a new name");
    rig.settle(&images.top);
    drop(images.top);
    drop(images.base);
    rig.check("top");
    assert!(rig.as_qemu_reads("top") == before, "{sizes:?}");
}

#[test]
fn committed_base_reads_as_the_top_did() {
    for sizes in SIZES {
        committed(sizes);
    }
}

fn committed(sizes: [u64; 3]) {
    let rig = Rig::new();
    let images = images(&rig, sizes);
    let before = rig.read(&images.top, 0, len(&images.top));
    let spec = CommitSpec {
        above: Chain::new(vec![images.top.clone(), images.middle]),
        top: images.top,
        base: images.base.clone(),
        on_error: OnError::Report,
    };
    run(&rig, move |cx| commit(cx, spec)).expect("committed");
    rig.settle(&images.base);
    drop(images.base);
    rig.check("base");
    let after = rig.as_qemu_reads("base");
    // A base that was longer stays so.
    assert!(after.starts_with(&before), "{sizes:?}");
}

fn len(node: &NodeRef) -> usize {
    usize::try_from(node.len()).expect("small")
}
