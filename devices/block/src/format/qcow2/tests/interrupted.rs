//! Jobs over images whose storage dies or fills up on the way: what the chain reads stays the same,
//! and the image that was being written has no error.

use std::path::Path;

use super::crash::torture;
use super::jobs::run;
use super::memory::{Change, Memory, apply};
use super::{Rig, Tuning, run_with_status};
use crate::job::chain::Chain;
use crate::job::commit::{CommitSpec, commit};
use crate::job::stream::{StreamSpec, stream};
use crate::job::{JobFailure, OnError};
use crate::node::NodeRef;
use crate::toy::OPTIONS;

const SIZE: usize = 1 << 20;
/// Layouts of the base and of the overlay.
const LAYOUTS: [[&str; 2]; 3] = [
    ["cluster_size=4096", "cluster_size=64k"],
    ["cluster_size=2048,lazy_refcounts=on", "cluster_size=512"],
    [
        "compat=0.10,cluster_size=1024",
        "extended_l2=on,cluster_size=16k",
    ],
];

/// Which job, and so which of the two images it writes.
#[derive(Clone, Copy, Debug)]
enum Job {
    Stream,
    Commit,
}

impl Job {
    fn written(self) -> &'static str {
        match self {
            Self::Stream => "top",
            Self::Commit => "base",
        }
    }
}

/// Two images that a job works on, the one that it writes in storage that dies.
struct Scene {
    top: NodeRef,
    base: NodeRef,
    memory: Memory,
    /// What the storage was before.
    before: Vec<u8>,
    /// What the chain reads as.
    wanted: Vec<u8>,
}

impl Scene {
    fn new(rig: &Rig, job: Job, [below, above]: [&str; 2]) -> Self {
        let seed = torture().unwrap_or(0) % 13 + 1;
        rig.create("base", below, SIZE as u64);
        let backing = format!("backing_file={},backing_fmt=qcow2,", rig.path("base"));
        rig.create("top", &(backing + above), SIZE as u64);
        let skewed = |kib: u64| format!("{}k", kib + seed);
        rig.qemu_io(
            "base",
            &[
                &format!("write -P 1 {} 200k", skewed(0)),
                &format!("write -P 2 {} 3k", skewed(600)),
            ],
        );
        rig.qemu_io(
            "top",
            &[
                &format!("write -P 3 {} 70k", skewed(100)),
                &format!("write -z {} 64k", skewed(580)),
                &format!("write -P 4 {} 2k", skewed(900)),
            ],
        );
        let before = std::fs::read(rig.path(job.written())).expect("image");
        let memory = Memory::new(before.clone());
        let place = |name: &str| match name == job.written() {
            true => memory.node(),
            false => rig.file(name, OPTIONS),
        };
        let open = |file, backing| rig.open_on(file, None, backing, Tuning::default());
        let base = open(place("base"), None).expect("base");
        let top = open(place("top"), Some(base.clone())).expect("top");
        let wanted = rig.as_qemu_reads("top");
        Self {
            top,
            base,
            memory,
            before,
            wanted,
        }
    }

    fn run(&self, rig: &Rig, job: Job) -> Result<(), JobFailure> {
        let (top, base) = (self.top.clone(), self.base.clone());
        match job {
            Job::Stream => {
                let spec = StreamSpec {
                    top,
                    between: Chain::new(vec![base]),
                    on_error: OnError::Report,
                };
                run(rig, move |cx| stream(cx, spec))
            }
            Job::Commit => {
                let spec = CommitSpec {
                    above: Chain::new(vec![top.clone()]),
                    top,
                    base,
                    on_error: OnError::Report,
                };
                run(rig, move |cx| commit(cx, spec))
            }
        }
    }

    /// No error in the image, leaks aside, and the chain reads as ever.
    fn judge(&self, rig: &Rig, job: Job, bytes: &[u8], what: &str) {
        let path = rig.path(job.written());
        let kept = std::fs::read(&path).expect("image");
        std::fs::write(&path, bytes).expect("image");
        // A dirty image says itself that its counts are late; they are made right first.
        if bytes[79] & 1 != 0 {
            run_with_status("qemu-img", &["check", "-r", "all", &path]);
        }
        let (code, text) = run_with_status("qemu-img", &["check", "-f", "qcow2", &path]);
        assert!(matches!(code, 0 | 3), "{what}: {text}");
        assert!(rig.as_qemu_reads("top") == self.wanted, "{what}");
        std::fs::write(Path::new(&path), kept).expect("image");
    }
}

fn scenes() -> impl Iterator<Item = (Job, [&'static str; 2])> {
    let each = |job| LAYOUTS.into_iter().map(move |layouts| (job, layouts));
    [Job::Stream, Job::Commit].into_iter().flat_map(each)
}

#[test]
fn job_killed_after_any_write_leaves_a_sound_chain_that_reads_the_same() {
    let rig = Rig::new();
    for (job, layouts) in scenes() {
        let scene = Scene::new(&rig, job, layouts);
        scene.run(&rig, job).expect("it ends well");
        if matches!(job, Job::Stream) {
            // As at the end of every stream: what was below is no longer named.
            let top = scene.top.clone();
            let changed =
                rig.on_thread(move |io| async move { top.change_backing(&io, None, None).await });
            changed.expect("another name");
        }
        rig.settle(&scene.top);
        rig.settle(&scene.base);
        let log = scene.memory.log();
        let mut bytes = scene.before.clone();
        for (step, change) in log.iter().enumerate() {
            if matches!(change, Change::Sync) {
                continue;
            }
            apply(&mut bytes, change);
            let what = format!("{job:?} {layouts:?}: killed after change {step}");
            scene.judge(&rig, job, &bytes, &what);
        }
        assert!(log.len() > 5, "{job:?} {layouts:?}: it wrote");
    }
}

#[test]
fn job_whose_storage_is_full_or_bad_at_any_write_fails_and_loses_nothing() {
    let rig = Rig::new();
    for (job, layouts) in scenes() {
        for (error, lasting) in [(libc::ENOSPC, true), (libc::EIO, false)] {
            let mut failing = 0;
            loop {
                let scene = Scene::new(&rig, job, layouts);
                scene.memory.fail_after(failing, error, lasting);
                let what = format!("{job:?} {layouts:?}: change {failing} fails with {error}");
                let done = scene.run(&rig, job);
                if scene.memory.will_fail() {
                    done.expect("nothing has failed");
                    break;
                }
                scene.memory.mend();
                rig.settle(&scene.top);
                rig.settle(&scene.base);
                scene.judge(&rig, job, &scene.memory.bytes(), &what);
                // Once there is room again, a second try succeeds.
                scene.run(&rig, job).expect("the second try");
                rig.settle(&scene.top);
                rig.settle(&scene.base);
                scene.judge(&rig, job, &scene.memory.bytes(), &what);
                failing += 1 + failing / 4;
            }
            assert!(
                failing > 2,
                "{job:?} {layouts:?}: there were writes to fail"
            );
        }
    }
}
