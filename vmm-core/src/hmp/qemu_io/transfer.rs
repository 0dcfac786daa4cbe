//! One request of a tester, on an io-thread, and what there is to say of it.

use std::io;
use std::time::Instant;

use block::node::Place;
use block::{Io, NodeRef, Segments, WriteFlags, ZeroFlags};

use super::report::{Moved, dump, size};
use super::words::{Kind, Pattern, Transfer};

/// The most memory one request takes; a longer one goes in pieces.
const PIECE: u64 = 4 << 20;

/// Does it; gives the lines that tell of it.
pub(super) async fn run(io: &Io, node: &NodeRef, transfer: &Transfer) -> String {
    let started = Instant::now();
    let mut told = String::new();
    let result = request(io, node, transfer, &mut told).await;
    let (verb, name) = match transfer.kind {
        Kind::Read { .. } => ("read", "read"),
        Kind::Write { .. } | Kind::Zero { .. } => ("wrote", "write"),
        Kind::Discard => ("discard", "discard"),
        Kind::Flush => ("", "flush"),
        Kind::Length | Kind::Map | Kind::Allocated => ("", "map"),
    };
    let aio = if transfer.goes_on { "aio_" } else { "" };
    match result {
        Err(error) => told.push_str(&format!("{aio}{name} failed: {}\n", reason(&error))),
        Ok(()) if verb.is_empty() || transfer.quiet => {}
        Ok(()) => told.push_str(
            &Moved {
                verb,
                offset: transfer.offset,
                len: transfer.len,
                took: started.elapsed(),
                terse: transfer.terse,
            }
            .text(),
        ),
    }
    told
}

/// The C library's text alone.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = text.find(" (os error");
    number.map_or(text.as_str(), |end| &text[..end]).to_owned()
}

async fn request(
    io: &Io,
    node: &NodeRef,
    transfer: &Transfer,
    told: &mut String,
) -> io::Result<()> {
    let Transfer { offset, len, .. } = *transfer;
    match &transfer.kind {
        Kind::Read { expect, dump } => read(io, node, (offset, len), (*expect, *dump), told).await,
        Kind::Write { pattern, durable } => {
            write(io, node, (offset, len), (*pattern, *durable)).await
        }
        Kind::Zero { unmap, durable } => {
            let (unmap, durable) = (*unmap, *durable);
            node.write_zeroes(io, offset, len, ZeroFlags { unmap, durable })
                .await
        }
        Kind::Discard => node.discard(io, offset, len).await,
        Kind::Flush => node.flush(io).await,
        Kind::Length => {
            told.push_str(&format!("{}\n", size(node.len())));
            Ok(())
        }
        Kind::Map => map(io, node, told).await,
        Kind::Allocated => allocated(io, node, (offset, len), told).await,
    }
}

/// The pieces of a range: where each begins in it, and how long it is. An empty range is one
/// empty piece, so that it is checked all the same.
fn pieces(len: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = len.div_ceil(PIECE).max(1);
    (0..count).map(move |index| (index * PIECE, (len - index * PIECE).min(PIECE)))
}

fn memory(len: u64) -> io::Result<(Segments, Vec<u8>)> {
    let len = usize::try_from(len.min(PIECE)).map_err(io::Error::other)?;
    Ok((Segments::owned(len, 4096)?, vec![0; len]))
}

async fn read(
    io: &Io,
    node: &NodeRef,
    (offset, len): (u64, u64),
    (expect, shown): (Option<Pattern>, bool),
    told: &mut String,
) -> io::Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > node.len()) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    let (segments, mut bytes) = memory(len)?;
    let mut differs = false;
    for (start, len) in pieces(len) {
        let into = segments.all().part(0, len);
        node.read(io, offset + start, into).await?;
        let bytes = &mut bytes[..usize::try_from(len).map_err(io::Error::other)?];
        into.copy_to(bytes);
        if let Some(pattern) = expect {
            differs |= !pattern.is_in(start, bytes);
        }
        if shown {
            told.push_str(&dump(offset + start, bytes));
        }
    }
    if let (Some(pattern), true) = (expect, differs) {
        let at = offset.saturating_add(pattern.start);
        let count = pattern.len.unwrap_or(len.saturating_sub(pattern.start));
        told.insert_str(
            0,
            &format!("Pattern verification failed at offset {at}, {count} bytes\n"),
        );
    }
    Ok(())
}

impl Pattern {
    /// Whether the part of `bytes` that must have it does; they begin `start` bytes into the read.
    fn is_in(self, start: u64, bytes: &[u8]) -> bool {
        let end = self
            .len
            .map_or(u64::MAX, |len| self.start.saturating_add(len));
        let mut all = (start..).zip(bytes);
        all.all(|(at, byte)| at < self.start || at >= end || *byte == self.byte)
    }
}

async fn write(
    io: &Io,
    node: &NodeRef,
    (offset, len): (u64, u64),
    (pattern, durable): (u8, bool),
) -> io::Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > node.len()) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    let (segments, mut bytes) = memory(len)?;
    bytes.fill(pattern);
    segments.all().copy_from(&bytes);
    for (start, len) in pieces(len) {
        let from = segments.all().part(0, len);
        node.write(
            io,
            offset + start,
            from,
            WriteFlags {
                durable,
                ..WriteFlags::default()
            },
        )
        .await?;
    }
    Ok(())
}

/// How far from `offset` on bytes are alike: stored or not.
async fn stretch(io: &Io, node: &NodeRef, offset: u64, end: u64) -> io::Result<(u64, bool)> {
    let (mut at, mut kind) = (offset, None);
    while at < end {
        let status = node.status(io, at, end - at).await?;
        let stored = status.place != Place::Below;
        if kind.is_some_and(|kind| kind != stored) {
            break;
        }
        kind = Some(stored);
        at = at.saturating_add(status.len.max(1)).min(end);
    }
    Ok((at - offset, kind.unwrap_or(false)))
}

async fn map(io: &Io, node: &NodeRef, told: &mut String) -> io::Result<()> {
    let (mut at, end) = (0, node.len());
    while at < end {
        let (len, stored) = stretch(io, node, at, end).await?;
        let is = if stored {
            "    allocated"
        } else {
            "not allocated"
        };
        told.push_str(&format!(
            "{} ({len:#x}) bytes {is} at offset {} ({at:#x})\n",
            size(len),
            size(at)
        ));
        at += len;
    }
    Ok(())
}

async fn allocated(
    io: &Io,
    node: &NodeRef,
    (offset, len): (u64, u64),
    told: &mut String,
) -> io::Result<()> {
    let end = offset.saturating_add(len).min(node.len());
    let (mut at, mut sum) = (offset, 0);
    while at < end {
        let (len, stored) = stretch(io, node, at, end).await?;
        sum += if stored { len } else { 0 };
        at += len;
    }
    let place = size(offset);
    told.push_str(&format!("{sum}/{len} bytes allocated at offset {place}\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::spec::{
        CacheSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
    };
    use block::{BlockGraph, IoThread, IoThreadSpec};
    use fdset::{Door, FdRegistry, Scope};

    use super::*;
    use crate::hmp::qemu_io::words::{Wish, parse};

    struct Rig {
        node: NodeRef,
        thread: IoThread,
        _graph: BlockGraph,
        _file: tempfile::NamedTempFile,
    }

    impl Rig {
        fn new(len: u64) -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(len).unwrap();
            let filename = file.path().to_str().unwrap().to_owned();
            let spec = NodeSpec {
                keeps_access: false,
                active: None,
                force_share: false,
                name: Some("disk".to_owned()),
                options: NodeOptions {
                    read_only: false,
                    auto_read_only: false,
                    discard: DiscardMode::Unmap,
                    detect_zeroes: DetectZeroes::Off,
                    cache: CacheSpec {
                        direct: false,
                        no_flush: false,
                    },
                },
                driver: DriverSpec::File(FileSpec {
                    filename,
                    role: fdset::Role::Image,
                    locking: block::spec::Locking::Auto,
                }),
            };
            let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
            let mut graph = BlockGraph::new();
            let node = graph.add(&door, spec).unwrap();
            let id = "test".to_owned();
            let thread = IoThread::start(IoThreadSpec { id }).unwrap();
            Self {
                node,
                thread,
                _graph: graph,
                _file: file,
            }
        }

        /// What a command says, without how long it took.
        fn say(&self, line: &str) -> String {
            let Ok(Wish::Transfer(transfer)) = parse(line) else {
                panic!("{line} is no transfer");
            };
            let node = self.node.clone();
            let task = move |io| async move { run(&io, &node, &transfer).await };
            let text = self.thread.run(task).unwrap();
            let lines = text.lines().map(|line| match line.split_once(" ops; ") {
                Some((before, _)) => format!("{before} ops\n"),
                None => format!("{line}\n"),
            });
            lines.collect()
        }
    }

    #[test]
    fn what_was_written_is_found_and_anything_else_is_told() {
        let rig = Rig::new(16 << 20);
        assert_eq!(
            rig.say("write -P 7 1M 5M"),
            "wrote 5242880/5242880 bytes at offset 1048576\n5 MiB, 1 ops\n"
        );
        assert_eq!(
            rig.say("read -P 7 1M 5M"),
            "read 5242880/5242880 bytes at offset 1048576\n5 MiB, 1 ops\n"
        );
        assert_eq!(rig.say("read -q -P 0 -l 1M 0 2M"), "");
        assert_eq!(
            rig.say("read -q -P 7 0 6M"),
            "Pattern verification failed at offset 0, 6291456 bytes\n"
        );
        assert_eq!(rig.say("write -q -z 1M 64k"), "");
        assert_eq!(rig.say("read -q -P 0 1M 64k"), "");
        assert!(
            rig.say("discard 1M 1M")
                .starts_with("discard 1048576/1048576 bytes")
        );
        assert_eq!(rig.say("flush"), "");
        assert_eq!(rig.say("length"), "16 MiB\n");
    }

    #[test]
    fn a_request_beyond_the_end_fails_as_a_whole() {
        let rig = Rig::new(8 << 20);
        assert_eq!(
            rig.say("write -P 7 1M 8M"),
            "write failed: Input/output error\n"
        );
        assert_eq!(rig.say("read -q -P 0 0 8M"), "", "nothing was written");
        assert_eq!(
            rig.say("aio_read 8M 512"),
            "aio_read failed: Input/output error\n"
        );
        assert_eq!(
            rig.say("discard 8M 512"),
            "discard failed: Input/output error\n"
        );
    }

    #[test]
    fn a_file_is_stored_from_end_to_end() {
        let rig = Rig::new(1 << 20);
        assert_eq!(
            rig.say("map"),
            "1 MiB (0x100000) bytes     allocated at offset 0 bytes (0x0)\n"
        );
        assert_eq!(
            rig.say("alloc 0 64k"),
            "65536/65536 bytes allocated at offset 0 bytes\n"
        );
    }
}
