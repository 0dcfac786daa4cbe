//! Files given as qcow2 images: opened, read, written, settled, and opened again.
//!
//! What must hold: whatever header and tables say, each request ends with bytes or an error; what
//! was written reads the same at once; and a file that nobody wrote to is as it was.

mod crafted;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use arbitrary::Unstructured;
use block::format::qcow2::{Snapshot, SnapshotChange, Tuning};
use block::spec::{
    BackingSpec, CacheSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec,
    NodeOptions, NodeSpec, Qcow2Spec,
};
use block::{
    BlockError, BlockGraph, Io, IoThread, IoThreadSpec, NodeRef, Segments, Status, WriteFlags,
    ZeroFlags,
};
use fdset::{Door, FdRegistry, FdsetId, Handover, Origin, Scope};

const SECTOR: usize = 512;
/// The longest image: what is cheap to copy for each input.
const LONGEST: usize = 1 << 18;

/// Bytes that are an image, behind one that says what is done to it.
pub(super) fn run(input: &[u8]) {
    if let [choices, image @ ..] = input
        && image.len() <= LONGEST
    {
        judge(*choices, image);
    }
}

/// An image that is made well, and then broken.
pub(super) fn run_crafted(input: &[u8]) {
    let mut input = Unstructured::new(input);
    if let Ok(choices) = input.arbitrary()
        && let Ok(image) = crafted::image(&mut input)
    {
        judge(choices, &image);
    }
}

fn file_of(image: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(image, 0).expect("room on the disk");
    file
}

fn judge(choices: u8, image: &[u8]) {
    let file = file_of(image);
    let read_only = choices & 1 != 0;
    let mut graph = BlockGraph::new();
    let Ok(node) = open(&mut graph, &file, read_only) else {
        assert!(
            bytes(&file) == image,
            "an image that was refused has changed"
        );
        return;
    };
    on_thread(&node, move |io, node| async move { look(&io, &node).await });
    assert!(
        is_made_ready(image, read_only) || bytes(&file) == image,
        "an image that was only read has changed"
    );
    if read_only {
        return;
    }
    let kind = choices >> 1;
    on_thread(&node, move |io, node| async move {
        change(&io, &node, kind).await
    });
    drop(node);
    graph.remove("image").expect("nobody uses it");
    // What is there now is an image still, or one that says that it is corrupt.
    let again = open(&mut BlockGraph::new(), &file, true);
    again.expect("an image that was written is opened");
}

/// Whether opening an image makes it ready for changes: its bitmaps would lie if they were not
/// marked as in use at once, and with that goes the rest (the header anew, a repair of a dirty one).
fn is_made_ready(image: &[u8], read_only: bool) -> bool {
    const AUTOCLEAR: usize = 88;
    const BITMAPS: u8 = 1;
    let last = image.get(AUTOCLEAR + 7);
    !read_only && last.is_some_and(|last| last & BITMAPS != 0)
}

fn bytes(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("a file").len();
    let mut bytes = vec![0; usize::try_from(len).expect("short")];
    file.read_exact_at(&mut bytes, 0).expect("all of it");
    bytes
}

fn iothread() -> &'static IoThread {
    static IOTHREAD: OnceLock<IoThread> = OnceLock::new();
    IOTHREAD.get_or_init(|| {
        let id = "images".to_owned();
        IoThread::start(IoThreadSpec { id }).expect("a thread and a ring")
    })
}

/// Runs a task to its end; a task that panics ends the thread, which is a finding.
fn on_thread<F>(node: &NodeRef, make: impl FnOnce(Io, NodeRef) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let node = node.clone();
    let done = iothread().run(move |io| make(io, node));
    done.expect("the task ends");
}

fn open(graph: &mut BlockGraph, file: &File, read_only: bool) -> Result<NodeRef, BlockError> {
    let registry = Arc::new(FdRegistry::new());
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let fd = file.try_clone().expect("a second fd");
    let passed = Handover::new(fd.into(), Origin::CommandLine);
    registry.add(passed, FdsetId::new(0).ok(), None);
    let options = NodeOptions {
        read_only,
        auto_read_only: false,
        discard: DiscardMode::Unmap,
        detect_zeroes: DetectZeroes::Off,
        cache: CacheSpec {
            direct: false,
            no_flush: true,
        },
    };
    let storage = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        // The fd can be written, and an image that is only read must not be.
        options: NodeOptions {
            read_only: false,
            ..options
        },
        driver: DriverSpec::File(FileSpec {
            filename: "/dev/fdset/0".to_owned(),
            role: fdset::Role::Image,
            locking: block::spec::Locking::Auto,
        }),
    };
    let driver = DriverSpec::Qcow2(Box::new(Qcow2Spec {
        file: ChildSpec::Inline(Box::new(storage)),
        data_file: None,
        backing: BackingSpec::Nothing,
        pass_discard: None,
        tuning: Tuning::default(),
    }));
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("image".to_owned()),
        options,
        driver,
    };
    graph.use_thread(iothread().clone());
    graph.add(&door, spec)
}

/// Places worth a look: the ends, the middle, and what lies at powers of two.
fn places(node: &NodeRef) -> Vec<u64> {
    let sectors = node.len() / SECTOR as u64;
    let mut places = vec![0, 1, 7, 64, 128, 1024, sectors / 2];
    places.push(sectors.saturating_sub(1));
    places.retain(|sector| *sector < sectors);
    places.iter().map(|sector| sector * SECTOR as u64).collect()
}

async fn look(io: &Io, node: &NodeRef) {
    let into = Segments::owned(8 * SECTOR, 4096).expect("memory");
    for at in places(node) {
        let len = (node.len() - at).min(into.len()) / SECTOR as u64 * SECTOR as u64;
        // An error is an answer.
        drop(node.read(io, at, into.all().part(0, len)).await);
        if let Ok(Status { len: told, .. }) = node.status(io, at, len).await {
            assert!((1..=len).contains(&told), "{told} of {len} bytes");
        }
    }
}

async fn change(io: &Io, node: &NodeRef, kind: u8) {
    let sector = Segments::owned(SECTOR, 4096).expect("memory");
    let seen = Segments::owned(SECTOR, 4096).expect("memory");
    for (number, at) in places(node).into_iter().enumerate() {
        let byte = u8::try_from(number + 1).expect("few");
        sector.all().copy_from(&[byte; SECTOR]);
        let flags = WriteFlags::default();
        if node.write(io, at, sector.all(), flags).await.is_ok()
            && node.read(io, at, seen.all()).await.is_ok()
        {
            let mut bytes = [0; SECTOR];
            seen.all().copy_to(&mut bytes);
            assert_eq!(bytes, [byte; SECTOR], "at {at}");
        }
        if number % 3 == usize::from(kind % 3) {
            let len = (node.len() - at).min(1 << 17) / SECTOR as u64 * SECTOR as u64;
            let unmap = kind & 4 != 0;
            let flags = ZeroFlags {
                unmap,
                durable: false,
            };
            drop(node.write_zeroes(io, at, len, flags).await);
            drop(node.discard(io, at, len).await);
        }
        if kind & 8 != 0 {
            drop(node.flush(io).await);
        }
    }
    if kind & 16 != 0 {
        keep_states(io, node).await;
    }
    drop(node.flush(io).await);
    if kind & 32 != 0 {
        let len = node.len();
        // Far longer would only fill the host's disk with tables.
        drop(node.resize(io, len.saturating_add(1 << 20)).await);
        drop(
            node.resize(io, len / 2 / SECTOR as u64 * SECTOR as u64)
                .await,
        );
    }
    drop(node.settle(io).await);
}

/// Takes a state of the disk, goes back to one of the image's own, and deletes both.
async fn keep_states(io: &Io, node: &NodeRef) {
    let kept = node
        .details()
        .map_or(Vec::new(), |details| details.snapshots);
    let own = kept.first().map_or("1", |first| &first.id).to_owned();
    let changes = [
        SnapshotChange::Create(Snapshot::new("new", "made here", 1, 2)),
        SnapshotChange::Apply(own.clone()),
        SnapshotChange::Delete(own),
        SnapshotChange::Delete("new".to_owned()),
    ];
    for change in changes {
        drop(node.change_snapshots(io, change).await);
    }
}
