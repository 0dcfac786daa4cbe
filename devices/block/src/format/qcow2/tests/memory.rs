//! Storage in memory that writes down what is done to it, and fails when it is told to.

use std::future::ready;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::{Io, Window};
use crate::node::ResizeError;
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, ResizeFuture, WriteFlags, ZeroFlags,
    errno,
};
use crate::toy::OPTIONS;

/// A change of the storage.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
    /// Not a change: everything before it survives a power cut.
    Sync,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Change>,
    /// Changes until one fails, and how; until it is mended, all after it fail, too.
    fail: Option<(usize, i32)>,
    lasting: bool,
    broken: Option<i32>,
}

/// The storage. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Mutex<State>>);

impl Memory {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State {
            bytes,
            ..State::default()
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn node(&self) -> NodeRef {
        let body = Box::new(self.clone());
        NodeRef::new("storage".to_owned(), "memory", OPTIONS, body).expect("limits")
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// What was done until now.
    pub(super) fn log(&self) -> Vec<Change> {
        self.state().log.clone()
    }

    pub(super) fn steps(&self) -> usize {
        self.state().log.len()
    }

    /// Lets the change fail that comes after so many others.
    pub(super) fn fail_after(&self, changes: usize, errno: i32, lasting: bool) {
        let mut state = self.state();
        state.fail = Some((changes, errno));
        state.lasting = lasting;
    }

    /// Lets everything succeed again.
    pub(super) fn mend(&self) {
        self.state().broken = None;
    }

    /// Whether the failure is still to come.
    pub(super) fn will_fail(&self) -> bool {
        self.state().fail.is_some()
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.state();
        if !matches!(change, Change::Sync)
            && let Some((left, number)) = state.fail
        {
            state.fail = left.checked_sub(1).map(|left| (left, number));
            if state.fail.is_none() {
                state.broken = state.lasting.then_some(number);
                return Err(errno(number));
            }
        }
        if let Some(number) = state.broken {
            return Err(errno(number));
        }
        apply(&mut state.bytes, &change);
        state.log.push(change);
        Ok(())
    }
}

/// Does to `bytes` what was written down.
pub(super) fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, new) => {
            let end = at + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(new);
        }
        Change::Length(len) => bytes.resize(*len, 0),
        Change::Sync => {}
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl BlockNode for Memory {
    fn length(&self) -> u64 {
        self.state().bytes.len() as u64
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, _: u64, len: u64, _: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, _: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        into.copy_from(&self.state().bytes[at(offset)..]);
        Box::pin(ready(Ok(())))
    }

    fn write<'a>(
        &'a self,
        _: &'a Io,
        offset: u64,
        from: Window<'a>,
        _: WriteFlags,
    ) -> IoFuture<'a> {
        let mut bytes = vec![0; at(from.len())];
        from.copy_to(&mut bytes);
        Box::pin(ready(self.change(Change::Write(at(offset), bytes))))
    }

    fn write_zeroes<'a>(&'a self, _: &'a Io, offset: u64, len: u64, _: ZeroFlags) -> IoFuture<'a> {
        let change = Change::Write(at(offset), vec![0; at(len)]);
        Box::pin(ready(self.change(change)))
    }

    /// What is discarded is lost at once. Advice, which does not fail.
    fn discard<'a>(&'a self, _: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        let change = Change::Write(at(offset), vec![0xdd; at(len)]);
        let mut state = self.state();
        apply(&mut state.bytes, &change);
        state.log.push(change);
        Box::pin(ready(Ok(())))
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        Box::pin(ready(self.change(Change::Sync)))
    }

    fn resize<'a>(&'a self, _: &'a Io, len: u64) -> ResizeFuture<'a> {
        let changed = self.change(Change::Length(at(len)));
        Box::pin(ready(changed.map_err(ResizeError::Storage)))
    }
}
