//! The driver against QEMU's: what we write is read there and the reverse, for every option.
//!
//! `qemu-img` and `qemu-io` come with the distribution (Debian: qemu-utils); without them these
//! tests fail.

#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the images"
)]

mod bitmaps;
mod crash;
mod crossed;
mod growth;
mod hostile;
mod interrupted;
mod jobs;
mod kept;
mod made;
mod mapped;
mod memory;
mod model;
mod packed;
mod together;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use fdset::{Door, FdRegistry, Scope};
use tempfile::TempDir;

use super::{Children, ImageError, Qcow2Node, Tuning};
use crate::engine::{Io, IoThread, IoThreadSpec, Segments};
use crate::graph::BlockGraph;
use crate::node::{NodeRef, WriteFlags, ZeroFlags};
use crate::slot::{BackingSlot, ChildSlot};
use crate::spec::{DriverSpec, FileSpec, NodeOptions, NodeSpec};
use crate::toy::OPTIONS;

/// A place for images, and a thread that works on them.
pub(super) struct Rig {
    folder: TempDir,
    thread: IoThread,
}

/// Runs a program of QEMU's; its output, or a panic with it.
pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let (code, text) = run_with_status(program, arguments);
    assert_eq!(code, 0, "{program} {arguments:?}:\n{text}");
    text
}

/// Runs a program of QEMU's; how it ended, and what it said.
pub(super) fn run_with_status(program: &str, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("qemu-img and qemu-io must be installed (Debian: qemu-utils)");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// The byte at `at` of a pattern whose sectors differ, `period` of them.
pub(super) fn stripe(at: usize, period: usize) -> u8 {
    u8::try_from(at / 512 % period + 1).expect("at most 255")
}

impl Rig {
    pub(super) fn new() -> Self {
        let id = "test".to_owned();
        Self {
            folder: tempfile::tempdir().expect("folder"),
            thread: IoThread::start(IoThreadSpec { id }).expect("io-thread"),
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.to_str().expect("plain path").to_owned()
    }

    /// Lets `qemu-img` create an image.
    pub(super) fn create(&self, name: &str, options: &str, size: u64) {
        let (path, size) = (self.path(name), size.to_string());
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([path.as_str(), size.as_str()]);
        run("qemu-img", &arguments);
    }

    /// Lets `qemu-io` do things to an image.
    pub(super) fn qemu_io(&self, name: &str, commands: &[&str]) -> String {
        let path = self.path(name);
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&path);
        run("qemu-io", &arguments)
    }

    /// Lets `qemu-img` look for errors: leaks are errors here, too.
    pub(super) fn check(&self, name: &str) {
        run(
            "qemu-img",
            &["check", "-q", "-f", "qcow2", &self.path(name)],
        );
    }

    /// A file as a node.
    pub(super) fn file(&self, name: &str, options: NodeOptions) -> NodeRef {
        let filename = self.path(name);
        let spec = NodeSpec {
            keeps_access: false,
            active: None,
            force_share: false,
            name: Some("storage".to_owned()),
            options,
            driver: DriverSpec::File(FileSpec {
                filename,
                role: fdset::Role::Image,
                locking: crate::spec::Locking::Auto,
            }),
        };
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        BlockGraph::new().add(&door, spec).expect("file")
    }

    /// Does something on the thread.
    pub(super) fn on_thread<T, F>(&self, make: impl FnOnce(Io) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.thread.run(make).expect("the thread answers")
    }

    /// Opens what is in `file`.
    pub(super) fn open_on(
        &self,
        file: NodeRef,
        data: Option<NodeRef>,
        backing: Option<NodeRef>,
        tuning: Tuning,
    ) -> Result<NodeRef, ImageError> {
        let children = Children {
            file: ChildSlot::from(file),
            data: data.map(ChildSlot::from),
            backing: BackingSlot::new(backing),
        };
        let node = self.on_thread(move |io| async move {
            Qcow2Node::open(&io, "disk", children, tuning, false).await
        })?;
        let node = NodeRef::new("disk".to_owned(), "qcow2", OPTIONS, Box::new(node));
        Ok(node.expect("limits"))
    }

    /// Opens an image without anything around it.
    pub(super) fn open(&self, name: &str) -> NodeRef {
        let file = self.file(name, OPTIONS);
        let node = self.open_on(file, None, None, Tuning::default());
        node.expect("image")
    }

    pub(super) fn read(&self, node: &NodeRef, offset: u64, len: usize) -> Vec<u8> {
        let node = node.clone();
        let read = self.on_thread(move |io| async move {
            let into = Segments::owned(len, 4096)?;
            node.read(&io, offset, into.all()).await?;
            let mut bytes = vec![0; len];
            into.all().copy_to(&mut bytes);
            std::io::Result::Ok(bytes)
        });
        read.expect("read")
    }

    pub(super) fn try_write(
        &self,
        node: &NodeRef,
        offset: u64,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        let node = node.clone();
        self.on_thread(move |io| async move {
            let from = Segments::owned(bytes.len(), 4096)?;
            from.all().copy_from(&bytes);
            let flags = WriteFlags::default();
            node.write(&io, offset, from.all(), flags).await
        })
    }

    pub(super) fn write(&self, node: &NodeRef, offset: u64, bytes: Vec<u8>) {
        self.try_write(node, offset, bytes).expect("write");
    }

    /// As [`write`](Self::write), with the wish to compress.
    pub(super) fn write_compressed(&self, node: &NodeRef, offset: u64, bytes: Vec<u8>) {
        let node = node.clone();
        let written = self.on_thread(move |io| async move {
            let from = Segments::owned(bytes.len(), 4096)?;
            from.all().copy_from(&bytes);
            let flags = WriteFlags {
                compress: true,
                ..WriteFlags::default()
            };
            node.write(&io, offset, from.all(), flags).await
        });
        written.expect("compressed write");
    }

    pub(super) fn zero(&self, node: &NodeRef, offset: u64, len: u64, unmap: bool) {
        self.try_zero(node, offset, len, unmap).expect("zeros");
    }

    pub(super) fn try_zero(
        &self,
        node: &NodeRef,
        offset: u64,
        len: u64,
        unmap: bool,
    ) -> std::io::Result<()> {
        let node = node.clone();
        let flags = ZeroFlags {
            unmap,
            durable: false,
        };
        self.on_thread(move |io| async move { node.write_zeroes(&io, offset, len, flags).await })
    }

    pub(super) fn try_flush(&self, node: &NodeRef) -> std::io::Result<()> {
        let node = node.clone();
        self.on_thread(move |io| async move { node.flush(&io).await })
    }

    pub(super) fn discard(&self, node: &NodeRef, offset: u64, len: u64) {
        let node = node.clone();
        let discarded =
            self.on_thread(move |io| async move { node.discard(&io, offset, len).await });
        discarded.expect("discard");
    }

    pub(super) fn flush(&self, node: &NodeRef) {
        self.try_flush(node).expect("flush");
    }

    pub(super) fn settle(&self, node: &NodeRef) {
        let node = node.clone();
        let settled = self.on_thread(move |io| async move { node.settle(&io).await });
        settled.expect("settle");
    }

    /// Bytes of an image as QEMU reads them.
    pub(super) fn as_qemu_reads(&self, name: &str) -> Vec<u8> {
        let raw = self.path("as-qemu-reads");
        run(
            "qemu-img",
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                &self.path(name),
                &raw,
            ],
        );
        std::fs::read(&raw).expect("raw file")
    }
}
