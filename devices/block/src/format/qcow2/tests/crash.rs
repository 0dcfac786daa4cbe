//! The process is killed after any write, the power is cut at any time, any write fails: QEMU finds
//! no error in what is left, and what was flushed is there.
//!
//! `cargo xtask torture` runs these with other dice and longer stories: SESAME_TORTURE is their seed.

use std::collections::BTreeSet;

use super::kept::change;
use super::memory::{Change, Memory, apply};
use super::{Rig, Tuning, run_with_status};
use crate::format::qcow2::{Snapshot, SnapshotChange};
use crate::node::NodeRef;

/// Bytes of the disk.
const SIZE: usize = 1 << 20;

/// Dice that always fall alike (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("small")
    }
}

fn dice(seed: u8) -> Dice {
    let seed = torture().unwrap_or(0).wrapping_mul(256) + u64::from(seed);
    Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

/// What each sector may read as.
#[derive(Clone)]
struct Allowed(Vec<BTreeSet<u8>>);

impl Allowed {
    fn new(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks(512)
                .map(|sector| BTreeSet::from([sector[0]]))
                .collect(),
        )
    }

    fn also(&mut self, offset: usize, len: usize, byte: u8) {
        for sector in &mut self.0[offset / 512..(offset + len) / 512] {
            sector.insert(byte);
        }
    }

    fn only(&mut self, offset: usize, len: usize, byte: u8) {
        for sector in &mut self.0[offset / 512..(offset + len) / 512] {
            *sector = BTreeSet::from([byte]);
        }
    }

    #[track_caller]
    fn check(&self, bytes: &[u8], what: &str) {
        for (number, (sector, allowed)) in bytes.chunks(512).zip(&self.0).enumerate() {
            let alike = sector.iter().all(|byte| *byte == sector[0]);
            assert!(
                alike && allowed.contains(&sector[0]),
                "{what}: sector {number} is {:#x}, allowed {allowed:x?}",
                sector[0]
            );
        }
    }
}

/// The seed of `cargo xtask torture`, if it is what runs this.
pub(super) fn torture() -> Option<u64> {
    let seed = std::env::var("SESAME_TORTURE").ok()?;
    Some(seed.parse().expect("SESAME_TORTURE is a number"))
}

/// Requests in one story: each write of the storage takes two runs of `qemu-img`.
fn rounds() -> usize {
    if torture().is_some() { 30 } else { 14 }
}

/// Requests that touch everything, and what the disk may hold after which step of the storage.
struct Story {
    /// At a flush: how many changes the storage had seen, and what each sector then was.
    flushed: Vec<(usize, Vec<u8>)>,
    /// Writes: when they began, where, and what.
    written: Vec<(usize, usize, usize, u8)>,
}

fn tell(
    rig: &Rig,
    node: &NodeRef,
    memory: &Memory,
    start: &[u8],
    seed: u8,
    rounds: usize,
) -> Story {
    let mut dice = dice(seed);
    let mut model = start.to_vec();
    let mut states = States::default();
    let mut story = Story {
        flushed: vec![(0, model.clone())],
        written: Vec::new(),
    };
    for round in 0..rounds {
        let offset = dice.below(SIZE / 512) * 512;
        let len = match dice.below(4) {
            0 => 64 << 10,
            1 => 8192,
            _ => 512,
        };
        let len = len.min(SIZE - offset);
        let began = memory.steps();
        let byte = u8::try_from(round % 200).expect("small") + 1;
        match dice.below(13) {
            way @ 0..=4 => {
                if way < 3 {
                    rig.write(node, offset as u64, vec![byte; len]);
                } else {
                    rig.write_compressed(node, offset as u64, vec![byte; len]);
                }
                model[offset..offset + len].fill(byte);
                story.written.push((began, offset, len, byte));
            }
            5 => {
                rig.zero(node, offset as u64, len as u64, true);
                model[offset..offset + len].fill(0);
                story.written.push((began, offset, len, 0));
            }
            6 => {
                // What a discard leaves as it is may read as before; the rest as zeros.
                rig.discard(node, offset as u64, len as u64);
                let now = rig.read(node, 0, SIZE);
                for at in (offset..offset + len).step_by(512) {
                    story.written.push((began, at, 512, now[at]));
                }
                model = now;
            }
            7 => {
                rig.flush(node);
                story.flushed.push((memory.steps(), model.clone()));
            }
            8 => {
                // Longer; refused where snapshots of an old version are.
                let node = node.clone();
                let len = node.len() + 65536;
                drop(rig.on_thread(move |io| async move { node.resize(&io, len).await }));
            }
            9 | 10 => states.keep(rig, node, &mut model, &mut story, memory),
            11 => states.go_back(rig, node, &mut model, &mut story, memory),
            _ => {
                rig.settle(node);
                story.flushed.push((memory.steps(), model.clone()));
            }
        }
    }
    story
}

/// The states that the image keeps inside, and what the disk was in each.
#[derive(Default)]
struct States(Vec<(String, Vec<u8>)>);

impl States {
    /// Keeps one more, or forgets the oldest of three.
    fn keep(
        &mut self,
        rig: &Rig,
        node: &NodeRef,
        model: &mut [u8],
        story: &mut Story,
        memory: &Memory,
    ) {
        if self.0.len() == 3 {
            let (oldest, _) = self.0.remove(0);
            change(rig, node, SnapshotChange::Delete(oldest)).expect("forgotten");
        } else {
            let id = memory.steps().to_string();
            let kept = Snapshot::new(&id, "kept", 1, 2);
            // Counts of one bit count no snapshot.
            if change(rig, node, SnapshotChange::Create(kept)).is_err() {
                return;
            }
            self.0.push((id, model.to_vec()));
        }
        story.flushed.push((memory.steps(), model.to_vec()));
    }

    /// Goes back to the oldest.
    fn go_back(
        &self,
        rig: &Rig,
        node: &NodeRef,
        model: &mut Vec<u8>,
        story: &mut Story,
        memory: &Memory,
    ) {
        let Some((id, old)) = self.0.first() else {
            return;
        };
        let began = memory.steps();
        change(rig, node, SnapshotChange::Apply(id.clone())).expect("gone back");
        for at in (0..SIZE).step_by(512) {
            story.written.push((began, at, 512, old[at]));
        }
        model.clone_from(old);
        story.flushed.push((memory.steps(), model.clone()));
    }
}

impl Story {
    /// What may be read after so many changes of the storage.
    fn allowed(&self, steps: usize) -> Allowed {
        let last = self.flushed.iter().rev().find(|(at, _)| *at <= steps);
        let (at, bytes) = last.expect("the start");
        let mut allowed = Allowed::new(bytes);
        for (began, offset, len, byte) in &self.written {
            if began >= at && *began <= steps {
                allowed.also(*offset, *len, *byte);
            }
        }
        allowed
    }
}

/// No errors; leaks are allowed. What QEMU reads is returned.
fn judge(rig: &Rig, bytes: &[u8], what: &str) -> Vec<u8> {
    let path = rig.path("left");
    std::fs::write(&path, bytes).expect("image");
    let (code, text) = run_with_status("qemu-img", &["check", "-f", "qcow2", &path]);
    assert!(matches!(code, 0 | 3), "{what}: {text}");
    // What was being written may be repaired first, as every user of a dirty image does.
    rig.as_qemu_reads("left")
}

const LAYOUTS: [&str; 6] = [
    "cluster_size=4096",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=64k",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=2048,refcount_bits=1",
    "compat=0.10,cluster_size=1024",
];

fn image(rig: &Rig, layout: &str) -> (Memory, Vec<u8>) {
    rig.create("start", layout, SIZE as u64);
    // Something compressed, and something that is there.
    rig.qemu_io(
        "start",
        &["write -c -P 251 0 128k", "write -P 252 512k 64k"],
    );
    let start = rig.as_qemu_reads("start");
    (
        Memory::new(std::fs::read(rig.path("start")).expect("image")),
        start,
    )
}

fn open(rig: &Rig, memory: &Memory, lazy: bool) -> NodeRef {
    let tuning = Tuning {
        l2_cache: 1 << 14,
        l2_slice: 512,
        lazy_refcounts: Some(lazy),
        pass_discard: true,
    };
    rig.open_on(memory.node(), None, None, tuning)
        .expect("image")
}

#[test]
fn process_killed_after_any_write_leaves_no_error_and_all_that_was_flushed() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let (memory, start) = image(&rig, layout);
        let first = memory.bytes();
        let node = open(&rig, &memory, false);
        let seed = u8::try_from(number).expect("small");
        let story = tell(&rig, &node, &memory, &start, seed, rounds());
        let log = memory.log();
        let mut bytes = first;
        for (step, change) in log.iter().enumerate() {
            if matches!(change, Change::Sync) {
                continue;
            }
            apply(&mut bytes, change);
            let what = format!("{layout}: killed after change {step} of {}", log.len());
            let seen = judge(&rig, &bytes, &what);
            story.allowed(step + 1).check(&seen, &what);
        }
    }
}

#[test]
fn power_cut_at_any_time_leaves_no_error_and_all_that_was_flushed() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let (memory, start) = image(&rig, layout);
        let first = memory.bytes();
        let node = open(&rig, &memory, false);
        let seed = 100 + u8::try_from(number).expect("small");
        let story = tell(&rig, &node, &memory, &start, seed, rounds());
        let log = memory.log();
        let mut dice = dice(seed);
        // What was synced is there; of what came after, anything may be.
        let mut synced = first;
        let mut since: Vec<&Change> = Vec::new();
        for (step, change) in log.iter().enumerate() {
            if !matches!(change, Change::Sync) {
                since.push(change);
                continue;
            }
            for _ in 0..3 {
                let mut bytes = synced.clone();
                let mut kept: Vec<&Change> = since
                    .iter()
                    .copied()
                    .filter(|_| dice.below(2) == 0)
                    .collect();
                if !kept.is_empty() {
                    let turn = dice.below(kept.len());
                    kept.rotate_left(turn);
                }
                // Where two of them overlap, the later one wins or is not there: their order counts.
                kept.sort_by_key(|change| {
                    since.iter().position(|other| std::ptr::eq(*other, *change))
                });
                kept.iter().for_each(|change| apply(&mut bytes, change));
                let what = format!("{layout}: power cut before sync {step}");
                let seen = judge(&rig, &bytes, &what);
                story.allowed(step).check(&seen, &what);
            }
            since
                .drain(..)
                .for_each(|change| apply(&mut synced, change));
        }
    }
}

#[test]
fn any_write_that_fails_is_told_harms_nothing_and_later_ones_go_on() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let lazy = number % 2 == 1 && number != 5;
        // One failure, as of a bad sector; and all that follow, as of a full disk, until there is
        // room again.
        for (error, lasting) in [(libc::ENOSPC, true), (libc::EIO, false)] {
            let mut failing = 0;
            loop {
                let (memory, start) = image(&rig, layout);
                let node = open(&rig, &memory, lazy);
                memory.fail_after(failing, error, lasting);
                let mut tried = try_everything(&rig, &node, &start, &memory);
                // One bit counts no snapshot.
                if !layout.contains("refcount_bits=1") {
                    try_states(&rig, &node, &mut tried);
                }
                let what = format!("{layout}: change {failing} fails with {error}");
                if memory.will_fail() {
                    break;
                }
                assert_eq!(tried.1, Some(error), "{what}: it is told");
                memory.mend();
                rig.settle(&node);
                let seen = judge(&rig, &memory.bytes(), &what);
                tried.0.check(&seen, &what);
                failing += 1 + failing / 8;
            }
            assert!(failing > 10, "{layout}: there were writes to fail");
        }
    }
}

/// A state is kept, gone back to and forgotten, on through failures.
fn try_states(rig: &Rig, node: &NodeRef, tried: &mut (Allowed, Option<i32>)) {
    let mut fails = |wanted| {
        let done = change(rig, node, wanted);
        if let Err(error) = &done {
            tried.1 = tried.1.or(number_of(error));
        }
        done.is_err()
    };
    let kept = tried.0.clone();
    let state = Snapshot::new("s", "state", 1, 2);
    if fails(SnapshotChange::Create(state)) {
        return;
    }
    let written = rig.try_write(node, 700 << 10, vec![6; 8192]);
    let lost = fails(SnapshotChange::Apply("s".to_owned()));
    fails(SnapshotChange::Delete("s".to_owned()));
    if lost {
        // Still the present state, or already the old one.
        tried.0.also(700 << 10, 8192, 6);
    } else {
        tried.0 = kept;
    }
    if let Err(error) = written {
        tried.1 = tried.1.or(error.raw_os_error());
    }
}

/// The number of the error that is the reason of this one.
fn number_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(this) = error {
        if let Some(number) = this
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
        {
            return Some(number);
        }
        error = this.source();
    }
    None
}

/// Some of everything, on through failures. What may be read then, and which error came.
fn try_everything(
    rig: &Rig,
    node: &NodeRef,
    start: &[u8],
    memory: &Memory,
) -> (Allowed, Option<i32>) {
    let mut allowed = Allowed::new(start);
    let mut told = None;
    let steps: [(usize, usize, u8); 7] = [
        (4096, 8192, 1),
        (300 << 10, 200 << 10, 2),
        (512 << 10, 4096, 0),
        (600 << 10, 64 << 10, 3),
        (512, 512, 4),
        (300 << 10, 16 << 10, 0),
        (900 << 10, 100 << 10, 5),
    ];
    for (offset, len, byte) in steps {
        let done = if byte == 0 {
            rig.try_zero(node, offset as u64, len as u64, true)
        } else {
            rig.try_write(node, offset as u64, vec![byte; len])
        };
        match done {
            Ok(()) => allowed.only(offset, len, byte),
            Err(error) => {
                allowed.also(offset, len, byte);
                told = told.or(error.raw_os_error());
            }
        }
        if let Err(error) = rig.try_flush(node) {
            told = told.or(error.raw_os_error());
        }
    }
    // What nobody waited for failed without a request: the flush at the end says it.
    if told.is_none()
        && !memory.will_fail()
        && let Err(error) = rig.try_flush(node)
    {
        told = error.raw_os_error();
    }
    (allowed, told)
}
