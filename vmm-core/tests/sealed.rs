//! A sealed process, seen from inside: each kind of thread, running when the seal came or started
//! after it, tries what it may not do, and the process ends with a line that says so.
//!
//! ```text
//!   test ── runs itself with SESAME_PROBE="vcpu openat late" ──► threads, seal, the call ──► abort
//! ```
#![expect(unsafe_code, reason = "calls that must not succeed")]
// UNSAFETY: raw system calls with no arguments, which the seal must stop.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use vmm_core::sandbox::{self, Sandbox, ThreadKind};

const PROBE: &str = "SESAME_PROBE";
const KINDS: [(&str, ThreadKind); 5] = [
    ("main", ThreadKind::Main),
    ("qmp-io", ThreadKind::QmpIo),
    ("vcpu", ThreadKind::Vcpu),
    ("iothread", ThreadKind::IoThread),
    ("dev-io", ThreadKind::DevIo),
];
const FORBIDDEN: [(&str, i64); 7] = [
    ("openat", libc::SYS_openat),
    ("socket", libc::SYS_socket),
    ("connect", libc::SYS_connect),
    ("execve", libc::SYS_execve),
    ("unlink", libc::SYS_unlink),
    ("ptrace", libc::SYS_ptrace),
    ("io_uring_setup", libc::SYS_io_uring_setup),
];
/// The first is for all, the second for the main thread only.
const HARMLESS: [(&str, i64); 2] = [
    ("getpid", libc::SYS_getpid),
    ("memfd_create", libc::SYS_memfd_create),
];

fn probe(what: &str) -> Output {
    Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "the_probed_process", "--ignored", "--nocapture"])
        .env(PROBE, what)
        .output()
        .expect("it runs")
}

#[test]
fn a_forbidden_call_ends_the_process_with_the_names_of_thread_and_call() {
    for (kind, _) in KINDS {
        for (call, number) in FORBIDDEN {
            let output = probe(&format!("{kind} {call} early"));
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{kind} {call}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let line = format!(
                "sesame: sealed: thread 'probe-{kind}' made the system call {call} ({number}), \
                 which it may not make: the process ends\n"
            );
            assert!(stderr.contains(&line), "{kind} {call}: {stderr}");
        }
    }
}

#[test]
fn threads_that_start_after_the_seal_are_under_it_from_their_first_instruction() {
    for when in ["uncovered", "late"] {
        for (kind, _) in KINDS.iter().skip(1) {
            let output = probe(&format!("{kind} openat {when}"));
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{kind} {when}");
        }
    }
}

#[test]
fn a_late_thread_begins_with_the_main_threads_list_and_gets_its_own() {
    let before = probe("iothread memfd_create uncovered");
    assert!(before.status.success(), "{before:?}");
    let after = probe("iothread memfd_create late");
    assert_eq!(after.status.signal(), Some(libc::SIGABRT));
}

#[test]
fn a_process_that_keeps_to_its_lists_lives() {
    for (kind, _) in KINDS {
        let output = probe(&format!("{kind} getpid early"));
        assert!(output.status.success(), "{kind}: {output:?}");
    }
}

/// A thread that waits for calls to make.
fn start(kind: &str) -> (i32, Sender<i64>, thread::JoinHandle<()>) {
    let (tell, told) = channel();
    let (order, orders) = channel();
    let thread = thread::Builder::new()
        .name(format!("probe-{kind}"))
        .spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).expect("asked");
            for number in orders {
                make(number);
            }
        })
        .expect("a thread");
    (told.recv().expect("an id"), order, thread)
}

fn make(number: i64) {
    // SAFETY: stopped by the filter, or harmless without arguments.
    unsafe { libc::syscall(number, 0, 0, 0, 0) };
}

#[test]
#[ignore = "the process that the other tests run"]
fn the_probed_process() {
    let Ok(what) = env::var(PROBE) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let [name, call, when] = words[..] else {
        panic!("{what}: wanted kind, call and when");
    };
    let (_, kind) = *KINDS.iter().find(|(other, _)| *other == name).expect(name);
    let mut calls = FORBIDDEN.iter().chain(&HARMLESS);
    let (_, number) = *calls.find(|(other, _)| *other == call).expect(call);
    // SAFETY: takes numbers: no core file of a process that ends as it should.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    sandbox::prepare();
    let mut sandbox = Sandbox::default();
    if kind == ThreadKind::Main {
        nix::sys::prctl::set_name(c"probe-main").expect("a name");
        sandbox.seal(&[]).expect("sealed");
        make(number);
        return;
    }
    let early = (when == "early").then(|| start(name));
    let threads: Vec<_> = early.iter().map(|(id, ..)| (kind, *id)).collect();
    sandbox.seal(&threads).expect("sealed");
    let (id, order, thread) = early.unwrap_or_else(|| start(name));
    if when == "late" {
        sandbox.cover(&[(kind, id)]).expect("covered");
    }
    assert_eq!(sandbox.covers(id), when != "uncovered");
    order.send(number).expect("it waits");
    drop(order);
    thread.join().expect("it ends");
}
