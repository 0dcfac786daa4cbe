//! What the lists do to real calls: each is tried in a child process of its own.
#![expect(unsafe_code, reason = "fork, and calls that must not succeed")]
// UNSAFETY: the point is to make the calls that nothing else here makes.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use seccompiler::BpfProgram;

use super::thread::{ThreadKind, allowed};
use super::{filter, floor};
use crate::kvm::vcpu::kick_signal;

const BRING_FILTERS: i32 = 35;

/// A system call and its first arguments.
type Attempt = (i64, [i64; 4]);

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It went through to the kernel, whatever that said.
    Made,
    Trapped,
}

/// Makes the call in a child process under the filter.
fn try_call(program: &BpfProgram, (call, arguments): Attempt) -> Fate {
    // SAFETY: the child only makes system calls: it takes no lock and allocates nothing.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            // No core file of a child that ends as it should. SAFETY: takes numbers.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
            let status = i32::from(seccompiler::apply_filter(program).is_err());
            let [a, b, c, d] = arguments;
            // SAFETY: it is trapped, or harmless with these arguments; the child then ends.
            unsafe {
                libc::syscall(call, a, b, c, d, 0_i64, 0_i64);
                libc::_exit(status)
            }
        }
        ForkResult::Parent { child } => match waitpid(child, None).expect("its end") {
            WaitStatus::Exited(_, 0) => Fate::Made,
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Fate::Trapped,
            other => panic!("{call}: {other:?}"),
        },
    }
}

fn list(kind: ThreadKind) -> BpfProgram {
    filter::allow_list(allowed(kind, kick_signal(), BRING_FILTERS)).expect("a valid list")
}

#[test]
fn no_thread_of_any_kind_makes_a_forbidden_call() {
    for kind in ThreadKind::ALL {
        let program = list(kind);
        for call in floor::FORBIDDEN {
            let fate = try_call(&program, (*call, [0; 4]));
            assert_eq!(fate, Fate::Trapped, "{kind:?}: {}", super::names::of(*call));
        }
    }
}

#[test]
fn the_floor_alone_stops_every_forbidden_call_and_no_other() {
    let program = filter::floor().expect("a valid list");
    for call in floor::FORBIDDEN {
        let fate = try_call(&program, (*call, [0; 4]));
        assert_eq!(fate, Fate::Trapped, "{}", super::names::of(*call));
    }
    let process = (libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0]);
    assert_eq!(try_call(&program, process), Fate::Trapped);
    for call in [libc::SYS_getppid, libc::SYS_read, libc::SYS_ioctl] {
        assert_eq!(try_call(&program, (call, [-1; 4])), Fate::Made);
    }
}

#[test]
fn calls_with_two_faces_are_made_only_with_the_good_one() {
    const READ_WRITE: i64 = (libc::PROT_READ | libc::PROT_WRITE) as i64;
    const EXECUTE: i64 = READ_WRITE | libc::PROT_EXEC as i64;
    const KVM_CREATE_VM: i64 = 0xae01;
    let kick = i64::from(kick_signal());
    let empty_path = i64::from(libc::AT_EMPTY_PATH);
    let everywhere: [(Attempt, Fate); 9] = [
        ((libc::SYS_mprotect, [0, 0, READ_WRITE, 0]), Fate::Made),
        ((libc::SYS_mprotect, [0, 0, EXECUTE, 0]), Fate::Trapped),
        ((libc::SYS_mmap, [0, 0, EXECUTE, 0]), Fate::Trapped),
        ((libc::SYS_newfstatat, [-1, 0, 0, empty_path]), Fate::Made),
        ((libc::SYS_newfstatat, [-100, 0, 0, 0]), Fate::Trapped),
        (
            (libc::SYS_fcntl, [-1, i64::from(libc::F_GETFL), 0, 0]),
            Fate::Made,
        ),
        (
            (libc::SYS_fcntl, [-1, i64::from(libc::F_SETOWN), 1, 0]),
            Fate::Trapped,
        ),
        ((libc::SYS_ioctl, [-1, KVM_CREATE_VM, 0, 0]), Fate::Trapped),
        // To a process that is not ours, whatever the signal.
        ((libc::SYS_tgkill, [1, 1, kick, 0]), Fate::Trapped),
    ];
    for kind in ThreadKind::ALL {
        let program = list(kind);
        for (attempt, fate) in &everywhere {
            assert_eq!(try_call(&program, *attempt), *fate, "{kind:?}: {attempt:?}");
        }
        let enters_guests = matches!(kind, ThreadKind::Vcpu | ThreadKind::Main);
        let run = try_call(&program, (libc::SYS_ioctl, [-1, 0xae80, 0, 0]));
        assert_eq!(run == Fate::Made, enters_guests, "{kind:?}");
        let ring = try_call(&program, (libc::SYS_io_uring_enter, [-1, 0, 0, 0]));
        let uses_rings = matches!(kind, ThreadKind::IoThread | ThreadKind::Main);
        assert_eq!(ring == Fate::Made, uses_rings, "{kind:?}");
    }
}

#[test]
fn the_main_thread_may_put_on_a_filter_but_not_take_hold_of_calls() {
    let program = list(ThreadKind::Main);
    let set = i64::from(libc::SECCOMP_SET_MODE_FILTER);
    assert_eq!(
        try_call(&program, (libc::SYS_seccomp, [set, 0, 0, 0])),
        Fate::Made
    );
    let listener: i64 = 1 << 3;
    for attempt in [[set, listener, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]] {
        let fate = try_call(&program, (libc::SYS_seccomp, attempt));
        assert_eq!(fate, Fate::Trapped, "{attempt:?}");
    }
}
