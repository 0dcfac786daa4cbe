//! Files as nodes, over real files and a real ring.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use fdset::{Access, Door, FdRegistry, FdsetId, Handover, Origin, Request, Role, Scope};
use tempfile::NamedTempFile;

use crate::engine::{IoThread, IoThreadSpec, Segments};
use crate::error::BlockError;
use crate::graph::BlockGraph;
use crate::node::{NodeRef, Place, WriteFlags, ZeroFlags};
use crate::spec::{
    CacheSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
    RawSpec,
};

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

fn iothread() -> IoThread {
    IoThread::start(IoThreadSpec {
        id: "test".to_owned(),
    })
    .expect("io-thread")
}

fn image(bytes: &[u8]) -> NamedTempFile {
    // Here and not in /tmp, which may be a tmpfs without O_DIRECT.
    let file = NamedTempFile::new_in(".").expect("temporary file");
    file.as_file().write_all_at(bytes, 0).expect("file");
    file
}

fn file_spec(filename: &str, options: NodeOptions) -> NodeSpec {
    let driver = DriverSpec::File(FileSpec {
        filename: filename.to_owned(),
        role: Role::Image,
        locking: crate::spec::Locking::Auto,
    });
    NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("storage".to_owned()),
        options,
        driver,
    }
}

fn open(filename: &str, options: NodeOptions) -> Result<NodeRef, BlockError> {
    BlockGraph::new().add(&door(), file_spec(filename, options))
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("plain path")
}

fn read(thread: &IoThread, node: &NodeRef, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let node = node.clone();
    let task = move |io| async move {
        let into = Segments::owned(len, 1)?;
        node.read(&io, offset, into.all()).await?;
        let mut bytes = vec![0; len];
        into.all().copy_to(&mut bytes);
        Ok(bytes)
    };
    thread.run(task).expect("answer")
}

fn write(thread: &IoThread, node: &NodeRef, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let (node, bytes) = (node.clone(), bytes.to_vec());
    let task = move |io| async move {
        let from = Segments::owned(bytes.len(), 1)?;
        from.all().copy_from(&bytes);
        node.write(
            &io,
            offset,
            from.all(),
            WriteFlags {
                durable: true,
                ..WriteFlags::default()
            },
        )
        .await?;
        node.flush(&io).await
    };
    thread.run(task).expect("answer")
}

fn raw_on(file: ChildSpec, offset: u64, size: Option<u64>) -> NodeSpec {
    let driver = DriverSpec::Raw(RawSpec { file, offset, size });
    NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("top".to_owned()),
        options: OPTIONS,
        driver,
    }
}

#[test]
fn a_node_below_counts_what_goes_through_its_extents() {
    let file = image(&[1; 8192]);
    let mut graph = BlockGraph::new();
    let storage = graph
        .add(&door(), file_spec(path(&file), OPTIONS))
        .expect("storage");
    let child = ChildSpec::Named("storage".to_owned());
    let top = graph
        .add(&door(), raw_on(child, 1024, None))
        .expect("window");
    let thread = iothread();
    write(&thread, &top, 512, &[2; 1024]).expect("write");
    read(&thread, &top, 0, 512).expect("read");
    read(&thread, &top, 8192, 512).expect_err("beyond");
    let (above, below) = (top.totals(), storage.totals());
    for totals in [above, below] {
        assert_eq!((totals.reads.done, totals.reads.bytes), (1, 512));
        assert_eq!((totals.writes.done, totals.writes.bytes), (1, 1024));
        assert_eq!(totals.flushes.done, 1);
    }
    assert_eq!((above.reads.failed, below.reads.failed), (1, 0));
    assert_eq!((above.highest, below.highest), (1536, 2560));
}

#[test]
fn a_file_takes_the_length_it_is_given_also_through_a_window_without_an_end() {
    let file = image(&[1; 8192]);
    let length = || file.as_file().metadata().expect("length").len();
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), file_spec(path(&file), OPTIONS))
        .expect("storage");
    let child = || ChildSpec::Named("storage".to_owned());
    let top = graph
        .add(&door(), raw_on(child(), 1024, None))
        .expect("window");
    resize(&top, 15 << 10).expect("longer");
    assert_eq!((length(), top.len()), (16 << 10, 15 << 10));
    let thread = iothread();
    assert_eq!(read(&thread, &top, 14 << 10, 512).expect("read"), [0; 512]);
    resize(&top, 1024).expect("shorter");
    assert_eq!((length(), top.len()), (2048, 1024));
    read(&thread, &top, 1024, 512).expect_err("it was cut off");
    resize(&top, u64::MAX).expect_err("no node is that long");
    assert_eq!(length(), 2048);
    graph.remove("top").expect("unused");
    let fixed = graph
        .add(&door(), raw_on(child(), 0, Some(512)))
        .expect("window");
    let error = resize(&fixed, 1024).expect_err("it has an end of its own");
    assert!(error.to_string().contains("fixed-size"), "{error}");
}

#[test]
fn a_read_only_node_and_one_without_storage_keep_their_length() {
    let file = image(&[1; 512]);
    let options = NodeOptions {
        read_only: true,
        ..OPTIONS
    };
    let node = open(path(&file), options).expect("node");
    let error = resize(&node, 1024).expect_err("read-only");
    assert!(error.to_string().contains("read-only"), "{error}");
    assert_eq!(file.as_file().metadata().expect("length").len(), 512);
    let null = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("null".to_owned()),
        options: OPTIONS,
        driver: DriverSpec::NullCo(crate::spec::NullSpec {
            size: 512,
            read_zeroes: true,
        }),
    };
    let null = BlockGraph::new().add(&door(), null).expect("node");
    resize(&null, 1024).expect_err("nothing to make longer");
}

fn resize(node: &NodeRef, len: u64) -> Result<(), BlockError> {
    let node = node.clone();
    let task = move |io| async move { node.resize(&io, len).await };
    iothread().run(task).expect("answer")
}

#[test]
fn raw_window_reads_and_writes_its_part_of_the_file_only() {
    let file = image(&[1; 4096]);
    let inline = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        ..file_spec(path(&file), OPTIONS)
    };
    let file_child = ChildSpec::Inline(Box::new(inline));
    let driver = DriverSpec::Raw(RawSpec {
        file: file_child,
        offset: 1024,
        size: Some(1024),
    });
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("part".to_owned()),
        options: OPTIONS,
        driver,
    };
    let (thread, node) = (
        iothread(),
        BlockGraph::new().add(&door(), spec).expect("node"),
    );
    assert_eq!(node.len(), 1024);
    write(&thread, &node, 0, &[2; 1024]).expect("write");
    assert_eq!(read(&thread, &node, 512, 512).expect("read"), [2; 512]);
    let beyond = read(&thread, &node, 1000, 100).expect_err("beyond the window");
    assert_eq!(beyond.raw_os_error(), Some(libc::EIO));
    let mut bytes = [0; 4096];
    file.as_file().read_exact_at(&mut bytes, 0).expect("file");
    assert_eq!(bytes[..1024], [1; 1024]);
    assert_eq!(bytes[1024..2048], [2; 1024]);
    assert_eq!(bytes[2048..], [1; 2048]);
}

#[test]
fn passed_fd_serves_a_node_until_the_node_is_gone() {
    let file = image(&[5; 512]);
    let (registry, mut graph) = (Arc::new(FdRegistry::new()), BlockGraph::new());
    let fd = file.as_file().as_fd().try_clone_to_owned().expect("dup");
    let set = registry
        .add(Handover::new(fd, Origin::CommandLine), None, None)
        .0;
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let node = graph
        .add(&door, file_spec(&format!("/dev/fdset/{set}"), OPTIONS))
        .expect("node");
    let thread = iothread();
    assert_eq!(read(&thread, &node, 0, 512).expect("read"), [5; 512]);
    registry
        .remove(set.value(), None)
        .expect("there is a member");
    assert_eq!(
        read(&thread, &node, 0, 512).expect("read"),
        [5; 512],
        "the node has its own"
    );
    graph.remove("storage").expect("unused");
    assert_eq!(
        registry.query().len(),
        1,
        "a node in someone's hands keeps its lease"
    );
    drop(node);
    // The thread's last operation has let go of the file once it answers again.
    thread.run(|_| async {}).expect("answer");
    assert!(
        registry.query().is_empty(),
        "the set vanished with its last lease"
    );
}

#[test]
fn read_only_fd_needs_auto_read_only_and_then_refuses_writes() {
    let file = image(&[5; 512]);
    let registry = Arc::new(FdRegistry::new());
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let request = Request::new(path(&file), Access::ReadOnly, Role::Image, "a test");
    let (reader, _) = fdset::open(&door, &request).expect("open").into_parts();
    let set = registry
        .add(Handover::new(reader, Origin::CommandLine), None, None)
        .0;
    let filename = format!("/dev/fdset/{set}");
    let mut graph = BlockGraph::new();
    let error = graph
        .add(&door, file_spec(&filename, OPTIONS))
        .expect_err("no such member");
    assert!(error.to_string().contains("storage"), "{error}");
    let options = NodeOptions {
        auto_read_only: true,
        ..OPTIONS
    };
    let node = graph
        .add(&door, file_spec(&filename, options))
        .expect("node");
    assert!(node.is_read_only());
    let error = write(&iothread(), &node, 0, &[1; 512]).expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn direct_node_moves_unaligned_memory_through_a_buffer() {
    let file = image(&[0; 64 << 10]);
    let cache = CacheSpec {
        direct: true,
        no_flush: false,
    };
    let node = match open(path(&file), NodeOptions { cache, ..OPTIONS }) {
        Ok(node) => node,
        // A file system without O_DIRECT has nothing to test.
        Err(BlockError::Open(error)) if error.errno() == libc::EINVAL => return,
        Err(error) => panic!("{error}"),
    };
    let alignment = u64::from(node.limits().request_alignment);
    assert!(alignment >= 512, "{alignment}");
    let thread = iothread();
    let moved = node.clone();
    let bytes = thread
        .run(move |io| async move {
            let memory = Segments::owned(16 << 10, 4096)?;
            let odd = memory.all().part(1, 8 << 10);
            odd.copy_from(&[0xa5; 8 << 10]);
            moved.write(&io, 4096, odd, WriteFlags::default()).await?;
            let into = memory.all().part(3, 8 << 10);
            into.fill_zero();
            moved.read(&io, 4096, into).await?;
            let mut bytes = vec![0; 8 << 10];
            into.copy_to(&mut bytes);
            Ok::<_, std::io::Error>(bytes)
        })
        .expect("answer")
        .expect("transfer");
    assert_eq!(bytes, vec![0xa5; 8 << 10]);
    let error = read(&thread, &node, 1, 512).expect_err("off the alignment");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn direct_file_that_ends_within_a_block_reads_as_zeros_to_the_end_of_it() {
    let file = image(&[7; 4096 + 100]);
    let cache = CacheSpec {
        direct: true,
        no_flush: false,
    };
    let node = match open(path(&file), NodeOptions { cache, ..OPTIONS }) {
        Ok(node) => node,
        // A file system without O_DIRECT has nothing to test.
        Err(BlockError::Open(error)) if error.errno() == libc::EINVAL => return,
        Err(error) => panic!("{error}"),
    };
    let block = u64::from(node.limits().request_alignment);
    assert_eq!(node.len(), 4196_u64.next_multiple_of(block));
    let thread = iothread();
    let (len, read_from) = (node.len(), node.clone());
    // Once straight into memory, once through a buffer.
    let both = thread.run(move |io| async move {
        let mut both = Vec::new();
        for skip in [0, 1] {
            let memory = Segments::owned(16 << 10, 4096)?;
            memory.all().copy_from(&[0xee; 16 << 10]);
            let part = memory.all().part(skip, len);
            read_from.read(&io, 0, part).await?;
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            part.copy_to(&mut bytes);
            both.push(bytes);
        }
        Ok::<_, std::io::Error>(both)
    });
    for bytes in both.expect("answer").expect("reads") {
        assert!(bytes[..4196].iter().all(|byte| *byte == 7));
        assert!(bytes[4196..].iter().all(|byte| *byte == 0));
    }
    let error = read(&thread, &node, len, 512).expect_err("beyond the end");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn discard_and_unmapping_zeroes_free_space_only_where_the_node_allows() {
    for (mode, frees) in [(DiscardMode::Unmap, true), (DiscardMode::Ignore, false)] {
        let file = image(&[7; 64 << 10]);
        file.as_file().sync_all().expect("sync");
        let node = open(
            path(&file),
            NodeOptions {
                discard: mode,
                ..OPTIONS
            },
        )
        .expect("node");
        let before = file.as_file().metadata().expect("stat").blocks();
        let moved = node.clone();
        iothread()
            .run(move |io| async move { moved.discard(&io, 0, 32 << 10).await })
            .expect("answer")
            .expect("discard");
        let after = file.as_file().metadata().expect("stat").blocks();
        assert_eq!(
            after < before,
            frees,
            "{mode:?}: {before} blocks, then {after}"
        );
    }
}

#[test]
fn detect_zeroes_turns_a_write_of_zeros_into_a_hole() {
    let file = image(&[7; 64 << 10]);
    file.as_file().sync_all().expect("sync");
    let options = NodeOptions {
        detect_zeroes: DetectZeroes::Unmap,
        ..OPTIONS
    };
    let (thread, node) = (iothread(), open(path(&file), options).expect("node"));
    let before = file.as_file().metadata().expect("stat").blocks();
    write(&thread, &node, 0, &[0; 32 << 10]).expect("write");
    write(&thread, &node, 32 << 10, &[3; 4096]).expect("write");
    assert!(file.as_file().metadata().expect("stat").blocks() < before);
    assert_eq!(read(&thread, &node, 0, 4096).expect("read"), [0; 4096]);
    assert_eq!(
        read(&thread, &node, 32 << 10, 4096).expect("read"),
        [3; 4096]
    );
}

#[test]
fn zeroes_without_unmap_keep_the_space() {
    let file = image(&[7; 64 << 10]);
    file.as_file().sync_all().expect("sync");
    let node = open(path(&file), OPTIONS).expect("node");
    let before = file.as_file().metadata().expect("stat").blocks();
    let moved = node.clone();
    let thread = iothread();
    let flags = ZeroFlags {
        unmap: false,
        durable: true,
    };
    thread
        .run(move |io| async move { moved.write_zeroes(&io, 100, 20_000, flags).await })
        .expect("answer")
        .expect("zeroes");
    assert!(file.as_file().metadata().expect("stat").blocks() >= before);
    let bytes = read(&thread, &node, 0, 20_200).expect("read");
    assert!(
        bytes[..100]
            .iter()
            .chain(&bytes[20_100..])
            .all(|byte| *byte == 7)
    );
    assert!(bytes[100..20_100].iter().all(|byte| *byte == 0));
}

#[test]
fn file_cut_short_behind_our_back_reads_as_zeros() {
    let file = image(&[7; 8192]);
    let (thread, node) = (iothread(), open(path(&file), OPTIONS).expect("node"));
    file.as_file().set_len(100).expect("cut");
    let bytes = read(&thread, &node, 0, 8192).expect("read");
    assert!(bytes[..100].iter().all(|byte| *byte == 7));
    assert!(bytes[100..].iter().all(|byte| *byte == 0));
}

#[test]
fn wrong_kind_of_file_is_refused_with_both_kinds() {
    let error = open("/dev/null", OPTIONS)
        .expect_err("not a file")
        .to_string();
    assert!(
        error.contains("it is a character device; needed is a regular file"),
        "{error}"
    );
    let file = image(&[0; 512]);
    let driver = DriverSpec::HostDevice(FileSpec {
        filename: path(&file).to_owned(),
        role: Role::Image,
        locking: crate::spec::Locking::Auto,
    });
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("dev".to_owned()),
        options: OPTIONS,
        driver,
    };
    let error = BlockGraph::new()
        .add(&door(), spec)
        .expect_err("no device")
        .to_string();
    assert!(
        error.contains("to be a block device, it is a regular file"),
        "{error}"
    );
}

fn add_member(door: &Door, file: &NamedTempFile, access: Access) {
    let request = Request::new(path(file), access, Role::Image, "a test");
    let (fd, _) = fdset::open(door, &request).expect("open").into_parts();
    let handover = Handover::new(fd, Origin::CommandLine);
    door.registry().add(handover, FdsetId::new(1).ok(), None);
}

fn with_access(options: NodeOptions, read_only: bool) -> NodeOptions {
    NodeOptions {
        read_only,
        ..options
    }
}

#[test]
fn node_becomes_writable_by_the_sets_other_member_and_gives_it_back() {
    let file = image(&[7; 4096]);
    let door = door();
    add_member(&door, &file, Access::ReadOnly);
    let spec = file_spec("/dev/fdset/1", with_access(OPTIONS, true));
    let (thread, mut graph) = (iothread(), BlockGraph::new());
    let node = graph.add(&door, spec).expect("node");
    let writable = with_access(OPTIONS, false);
    let uses = || door.registry().uses().len();
    let error = node.prepare_reopen(&door, writable).expect_err("no member");
    assert!(error.to_string().contains("storage"), "{error}");
    add_member(&door, &file, Access::ReadWrite);
    let before = uses();
    drop(node.prepare_reopen(&door, writable).expect("a member"));
    assert!(node.is_read_only(), "given up");
    assert_eq!(uses(), before, "and closed");
    node.prepare_reopen(&door, writable)
        .expect("a member")
        .commit();
    assert_eq!(uses(), before + 1);
    write(&thread, &node, 0, &[9; 512]).expect("writable");
    // The way back asks nobody: not even a set that is gone is missed.
    door.registry().remove(1, None).expect("members");
    let back = node.prepare_reopen(&door, with_access(OPTIONS, true));
    back.expect("nothing to open").commit();
    thread.run(|_| async {}).expect("answer");
    let error = write(&thread, &node, 0, &[1; 512]).expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(read(&thread, &node, 0, 512).expect("read"), [9; 512]);
}

#[test]
fn another_file_under_the_same_name_is_refused_when_the_access_changes() {
    let (file, other) = (image(&[7; 4096]), image(&[8; 4096]));
    let door = door();
    let spec = file_spec(path(&file), with_access(OPTIONS, true));
    let node = BlockGraph::new().add(&door, spec).expect("node");
    let other = other.into_temp_path();
    other.persist(file.path()).expect("renamed");
    let error = node
        .prepare_reopen(&door, with_access(OPTIONS, false))
        .expect_err("another file");
    assert!(matches!(error, BlockError::OtherFile { .. }), "{error}");
    assert!(node.is_read_only());
}

#[test]
fn file_tells_its_holes_and_changes_its_length() {
    let file = image(&[]);
    file.as_file().set_len(1 << 20).expect("length");
    file.as_file()
        .write_all_at(&[1; 4096], 64 << 10)
        .expect("data");
    let node = open(path(&file), OPTIONS).expect("node");
    let moved = node.clone();
    let task = move |io| async move {
        let mut seen = Vec::new();
        let mut at = 0;
        while at < moved.len() {
            let status = moved.status(&io, at, moved.len() - at).await?;
            seen.push((at, status.place));
            at += status.len;
        }
        moved
            .resize(&io, 2 << 20)
            .await
            .map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>(seen)
    };
    let seen = iothread().run(task).expect("answer").expect("works");
    let data = Place::Data { at: Some(64 << 10) };
    assert!(seen.contains(&(64 << 10, data)), "{seen:?}");
    assert_eq!(seen.first(), Some(&(0, Place::Zero)), "{seen:?}");
    assert_eq!(node.len(), 2 << 20);
    assert_eq!(file.as_file().metadata().expect("stat").len(), 2 << 20);
}
