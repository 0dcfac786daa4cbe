//! `qemu-io NODE "COMMAND"`: reads and writes of a tester, through the block layer.
//!
//! ```text
//!   line ─► name + words ─► Wish (words.rs) ─► io-thread: NodeRef (transfer.rs) ─► report.rs
//!                                                                                    │
//!                       the reply is empty, as QEMU's ◄──── standard output ◄────────┘
//! ```
//!
//! QEMU's tests of images do a guest's work in this language and compare what it prints, so its
//! texts are theirs, and go to standard output: a reply has text only if there is no such node.
//! Requests that begin with `aio_` go on when the command ends; `aio_flush` waits for them.
//!
//! This room must never know a format, and has no way to a node but `NodeRef`.
//!
//! Read next: [`words`] for the language.

mod breaks;
mod report;
mod transfer;
mod words;

use std::io::Write as _;
use std::sync::mpsc;
use std::thread;

use block::NodeRef;
use qapi_schema::block_core::{BlockResize, Commands as _};
use qapi_schema::{Context, QmpError};

use self::words::Wish;
use crate::device_tree::path;
use crate::plug::VIRTIO_CHILD;
use crate::vm::Vm;

/// Requests that go on when their command has ended. Each holds the other end of its channel.
#[derive(Debug, Default)]
pub(crate) struct Outstanding(Vec<mpsc::Receiver<()>>);

impl Outstanding {
    fn add(&mut self) -> mpsc::Sender<()> {
        let is_under_way = |one: &mut mpsc::Receiver<()>| {
            !matches!(one.try_recv(), Err(mpsc::TryRecvError::Disconnected))
        };
        self.0.retain_mut(is_under_way);
        let (held, done) = mpsc::channel();
        self.0.push(done);
        held
    }

    fn wait(&mut self) {
        for done in self.0.drain(..) {
            // Nothing is ever sent: the sender goes when the request has ended.
            let _ended = done.recv();
        }
    }
}

/// Runs one line, without the command's own name.
pub(super) fn run(vm: &mut Vm, cx: &mut dyn Context, line: &str) -> Result<String, QmpError> {
    let (by_device, rest) = match line.strip_prefix("-d ") {
        Some(rest) => (true, rest.trim_start()),
        None => (false, line),
    };
    let (name, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = words::unquote(command.trim());
    if name.is_empty() || command.is_empty() {
        return Ok(
            "qemu-io: string expected\nTry \"help qemu-io\" for more information".to_owned(),
        );
    }
    let node = node(vm, name, by_device)?;
    match words::parse(&command) {
        Ok(wish) => obey(vm, cx, &node, wish),
        Err(complaint) => {
            show(&format!("{complaint}\n"));
            Ok(String::new())
        }
    }
}

fn obey(vm: &mut Vm, cx: &mut dyn Context, node: &NodeRef, wish: Wish) -> Result<String, QmpError> {
    match wish {
        Wish::Nothing => {}
        Wish::Say(text) => show(&text),
        Wish::Sleep(time) => thread::sleep(time),
        Wish::Wait => vm.outstanding.wait(),
        Wish::Break(wish) => show(&wish.obey(vm, node)?),
        Wish::Truncate(len) => {
            let size = i64::try_from(len).unwrap_or(i64::MAX);
            let args = BlockResize {
                device: None,
                node_name: Some(node.name().to_owned()),
                size,
            };
            vm.block_resize(cx, args)?;
        }
        Wish::Transfer(transfer) => {
            let (iothread, node) = (vm.default_iothread()?, node.clone());
            if transfer.goes_on {
                let held = vm.outstanding.add();
                iothread.spawn(move |io| async move {
                    show(&transfer::run(&io, &node, &transfer).await);
                    drop(held);
                });
            } else {
                let text = iothread
                    .run(move |io| async move { transfer::run(&io, &node, &transfer).await })
                    .map_err(|error| QmpError::from_error(&error))?;
                vm.tell_corruptions();
                show(&text);
            }
        }
    }
    Ok(String::new())
}

/// The node that a tester means: by its own name, its drive's or its disk's.
fn node(vm: &Vm, name: &str, by_device: bool) -> Result<NodeRef, QmpError> {
    let child = format!("/{VIRTIO_CHILD}");
    let device = name.strip_suffix(&child).unwrap_or(name);
    if by_device {
        let found = vm
            .devices
            .disks()
            .find(|(own, about, _)| *own == device || path(own, about.id.is_some()) == device);
        return match found {
            Some((.., disk)) => disk
                .node()
                .ok_or_else(|| QmpError::generic(format!("Device '{name}' has no medium"))),
            None => Err(QmpError::device_not_found(name)),
        };
    }
    let name = vm.find_node(Some(device), Some(name))?;
    let view = vm.graph.node(&name);
    view.map(|view| view.node().clone())
        .map_err(|error| QmpError::from_error(&error))
}

/// What cannot be shown is of no use to anyone: a standard output that is closed is no failure.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let _shown = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_last_request_has() {
        let mut outstanding = Outstanding::default();
        let (first, second) = (outstanding.add(), outstanding.add());
        drop(first);
        let third = outstanding.add();
        assert_eq!(outstanding.0.len(), 2, "what has ended is forgotten");
        let ends = thread::spawn(move || drop((second, third)));
        outstanding.wait();
        assert!(outstanding.0.is_empty());
        ends.join().unwrap();
    }
}
