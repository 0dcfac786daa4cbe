//! The kinds of thread there are, and what each may call once the process is sealed.
//!
//! The lists are the whole truth: a call that is not in a kind's list ends the process with a line
//! that names both. They are made from what a thread of that kind does on its way, not from what
//! the process did before the seal; the forbidden calls of [`super::floor`] are in none of them.

use libc::{
    SYS_accept4, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone,
    SYS_clone3, SYS_close, SYS_dup, SYS_dup2, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fadvise64,
    SYS_fallocate, SYS_fcntl, SYS_fdatasync, SYS_flock, SYS_fstat, SYS_fstatfs, SYS_fsync,
    SYS_ftruncate, SYS_futex, SYS_getpeername, SYS_getpid, SYS_getrandom, SYS_getsockname,
    SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_io_uring_enter, SYS_ioctl, SYS_lseek,
    SYS_madvise, SYS_mbind, SYS_memfd_create, SYS_mlock, SYS_mmap, SYS_mprotect, SYS_mremap,
    SYS_msync, SYS_munlock, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_pipe2, SYS_poll,
    SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_pwrite64, SYS_pwritev, SYS_read,
    SYS_readlink, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_rseq,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp,
    SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setsockopt, SYS_shutdown,
    SYS_sigaltstack, SYS_socketpair, SYS_statx, SYS_sync_file_range, SYS_tgkill,
    SYS_timerfd_settime, SYS_write, SYS_writev,
};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// The owner of the VM: commands, hot-plug, reset. New threads begin with its list.
    Main,
    /// The QMP sessions.
    QmpIo,
    /// A guest's CPU.
    Vcpu,
    /// A ring and the queues on it.
    IoThread,
    /// Chardevs and slow queues.
    DevIo,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Main,
        Self::QmpIo,
        Self::Vcpu,
        Self::IoThread,
        Self::DevIo,
    ];
}

/// What an argument of a call must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// Exactly this, in its lower 32 bits.
    Is(u32),
    /// This, after the mask.
    Masked { mask: u32, value: u32 },
}

/// Tests of arguments, by their position from 0: all must hold.
pub(super) type Tests = Vec<(u8, Test)>;

/// The way of each list to the filter: a call, and when it may be made (no tests: always). A call
/// that stands twice may be made either way.
pub(super) type AllowList = Vec<(i64, Tests)>;

/// What any thread needs to live, allocate, wait, log and die.
const ANY: &[i64] = &[
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_pread64,
    SYS_preadv,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_lseek,
    SYS_close,
    SYS_dup,
    SYS_fstat,
    SYS_poll,
    SYS_ppoll,
    SYS_futex,
    SYS_sched_yield,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_restart_syscall,
    SYS_getrandom,
    SYS_gettid,
    SYS_getpid,
    SYS_brk,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_sigaltstack,
    SYS_sched_getaffinity,
    SYS_exit,
    SYS_exit_group,
];

/// To wait for many descriptors at once, and to tell others.
const EVENTS: &[i64] = &[SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_eventfd2];

/// To talk over sockets that exist, and to take calls on those that listen.
const SOCKETS: &[i64] = &[
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
];

/// To begin as a thread: made by the main thread, done by the new one.
const BEGIN: &[i64] = &[
    // Answered with ENOSYS by a filter of its own: its flags are where no filter can look.
    SYS_clone3,
    SYS_set_robust_list,
    SYS_rseq,
];

/// To open nothing, but to use what was handed over in every way a backend does.
const BACKENDS: &[i64] = &[
    SYS_memfd_create,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_flock,
    SYS_fstatfs,
    SYS_fsync,
    SYS_fdatasync,
    SYS_fadvise64,
    SYS_sync_file_range,
    SYS_mlock,
    SYS_munlock,
    SYS_msync,
    SYS_mbind,
    SYS_pipe2,
    SYS_dup2,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_timerfd_settime,
];

/// The ioctls of KVM that a guest's access to a device can lead to: memory, bells and interrupts
/// move with a BAR, a bus reset, an MSI-X table. Numbers of `linux/kvm.h`.
const KVM_DEVICES: &[u8] = &[
    0x46, // SET_USER_MEMORY_REGION
    0x61, // IRQ_LINE
    0x6a, // SET_GSI_ROUTING
    0x76, // IRQFD
    0x79, // IOEVENTFD
    0xa5, // SIGNAL_MSI (and SET_XSAVE, which has its number)
];

/// The ioctls of KVM that start, stop and reset need: the state of the machine and its vCPUs.
const KVM_STATE: &[u8] = &[
    0x02, // GET_MSR_INDEX_LIST
    0x03, // CHECK_EXTENSION
    0x41, // CREATE_VCPU
    0x42, // GET_DIRTY_LOG
    0x62, 0x63, // GET_IRQCHIP, SET_IRQCHIP
    0x7b, 0x7c, // SET_CLOCK, GET_CLOCK
    0x81, 0x82, 0x83, 0x84, // registers
    0x88, 0x89, // GET_MSRS, SET_MSRS
    0x8c, 0x8d, // FPU
    0x8e, 0x8f, // LAPIC
    0x90, 0x91, // SET_CPUID2, GET_CPUID2
    0x98, 0x99, // MP_STATE
    0x9a, // NMI
    0x9f, 0xa0, // PIT2, vCPU events
    0xa1, 0xa2, // DEBUGREGS
    0xa3, // GET_TSC_KHZ
    0xa4, 0xcf, // GET_XSAVE, GET_XSAVE2
    0xa6, 0xa7, // XCRS
    0xad, // KVMCLOCK_CTRL
];

const KVM_RUN: u8 = 0x80;

/// The size of a block device, and the modes of a terminal.
const FILE_IOCTLS: &[u32] = &[
    0x8008_1272, // BLKGETSIZE64
    0x1268,      // BLKSSZGET
    0x127b,      // BLKPBSZGET
    0x5402,      // TCSETS
    0x5403,      // TCSETSW
    0x5404,      // TCSETSF
    0x5413,      // TIOCGWINSZ
    0x5421,      // FIONBIO
];

/// What a tap's queue is told while it is in use.
const TAP_IOCTLS: &[u32] = &[
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d9, // TUNSETQUEUE
];

/// To set a tap's queue up, too.
const TAP_SETUP_IOCTLS: &[u32] = &[
    0x4004_54d4, // TUNSETSNDBUF
    0x4004_54d8, // TUNSETVNETHDRSZ
];

/// What vhost is told when queues start and stop, which any thread that a guest's driver reaches may
/// have to do.
const VHOST_IOCTLS: &[u32] = &[
    0x4008_af00, // SET_FEATURES
    0x4008_af03, // SET_MEM_TABLE
    0x4008_af10, // SET_VRING_NUM
    0x4028_af11, // SET_VRING_ADDR
    0x4008_af12, // SET_VRING_BASE
    0xc008_af12, // GET_VRING_BASE
    0x4008_af20, // SET_VRING_KICK
    0x4008_af21, // SET_VRING_CALL
    0x4008_af22, // SET_VRING_ERR
    0x4008_af30, // NET_SET_BACKEND
    0x4004_af61, // VSOCK_SET_RUNNING
    0xaf02,      // RESET_OWNER, by whoever drops it last
];

/// To set vhost up, too.
const VHOST_SETUP_IOCTLS: &[u32] = &[
    0x8008_af00, // GET_FEATURES
    0xaf01,      // SET_OWNER
    0x4008_af60, // VSOCK_SET_GUEST_CID
];

/// What a handed-over device is, asked by `fdset`.
const KIND_IOCTLS: &[u32] = &[
    0x5401,      // TCGETS
    0x8004_54d2, // TUNGETIFF
    0x8004_5430, // TIOCGPTN
    0xae00,      // KVM_GET_API_VERSION
];

/// What a thread of `kind` may call; `kick` is the signal that calls a vCPU out of its guest,
/// `seal` the one that brings a filter.
pub(super) fn allowed(kind: ThreadKind, kick: i32, seal: i32) -> AllowList {
    let mut list = AllowList::new();
    // First what is called most: the tests of one call are made in this order.
    if kind == ThreadKind::Vcpu {
        allow_kvm(&mut list, &[KVM_RUN]);
    }
    always(&mut list, ANY);
    allow_carefully(&mut list);
    allow_signal(&mut list, libc::SIGABRT);
    match kind {
        ThreadKind::Main => {
            always(&mut list, EVENTS);
            always(&mut list, SOCKETS);
            always(&mut list, BEGIN);
            always(&mut list, BACKENDS);
            // A new thread starts with this list, and an io-thread's ring is its first business.
            always(&mut list, &[SYS_io_uring_enter]);
            allow_kvm(&mut list, KVM_DEVICES);
            allow_kvm(&mut list, KVM_STATE);
            allow_kvm(&mut list, &[KVM_RUN]);
            allow_kinds(&mut list);
            allow_ioctls(&mut list, FILE_IOCTLS);
            allow_ioctls(&mut list, TAP_IOCTLS);
            allow_ioctls(&mut list, TAP_SETUP_IOCTLS);
            allow_ioctls(&mut list, VHOST_IOCTLS);
            allow_ioctls(&mut list, VHOST_SETUP_IOCTLS);
            allow_new_thread(&mut list);
            allow_signal(&mut list, kick);
            allow_signal(&mut list, seal);
        }
        ThreadKind::QmpIo => {
            always(&mut list, EVENTS);
            always(&mut list, SOCKETS);
            allow_kinds(&mut list);
        }
        ThreadKind::Vcpu => {
            always(&mut list, &[SYS_eventfd2, SYS_epoll_ctl]);
            always(&mut list, &[SYS_sendto, SYS_sendmsg, SYS_shutdown]);
            allow_kvm(&mut list, KVM_DEVICES);
            // The registers, for the report of an instruction KVM cannot handle.
            allow_kvm(&mut list, &[0x81]);
            // A driver negotiates offloads.
            allow_ioctls(&mut list, TAP_IOCTLS);
            allow_ioctls(&mut list, VHOST_IOCTLS);
        }
        ThreadKind::IoThread => {
            // An image grows while it is written.
            always(
                &mut list,
                &[SYS_io_uring_enter, SYS_eventfd2, SYS_ftruncate],
            );
            allow_kvm(&mut list, KVM_DEVICES);
        }
        ThreadKind::DevIo => {
            always(&mut list, EVENTS);
            always(&mut list, SOCKETS);
            // For a vhost-user back end's own requests; it leads to nobody else.
            let unix = Test::Is(libc::AF_UNIX.unsigned_abs());
            when(&mut list, SYS_socketpair, vec![(0, unix)]);
            allow_kvm(&mut list, KVM_DEVICES);
            allow_ioctls(&mut list, TAP_IOCTLS);
            allow_ioctls(&mut list, VHOST_IOCTLS);
        }
    }
    list
}

fn always(list: &mut AllowList, calls: &[i64]) {
    list.extend(calls.iter().map(|call| (*call, Tests::new())));
}

fn when(list: &mut AllowList, call: i64, tests: Tests) {
    list.push((call, tests));
}

/// What any thread needs, but not in every form.
fn allow_carefully(list: &mut AllowList) {
    // No new code: nothing is mapped or made executable.
    let no_code = (
        2,
        Test::Masked {
            mask: libc::PROT_EXEC.unsigned_abs(),
            value: 0,
        },
    );
    when(list, SYS_mmap, vec![no_code]);
    when(list, SYS_mprotect, vec![no_code]);
    let no_path = |position| {
        let flag = libc::AT_EMPTY_PATH.unsigned_abs();
        vec![(
            position,
            Test::Masked {
                mask: flag,
                value: flag,
            },
        )]
    };
    when(list, SYS_newfstatat, no_path(3));
    when(list, SYS_statx, no_path(2));
    for name in [libc::PR_SET_NAME, libc::PR_GET_NAME] {
        when(list, SYS_prctl, vec![(0, Test::Is(name.unsigned_abs()))]);
    }
    for command in [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_OFD_SETLK,
        libc::F_OFD_GETLK,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ] {
        when(list, SYS_fcntl, vec![(1, Test::Is(command.unsigned_abs()))]);
    }
}

/// To see what was handed over. For a device or a kernel object only sysfs and proc tell.
fn allow_kinds(list: &mut AllowList) {
    always(list, &[SYS_readlink]);
    allow_ioctls(list, KIND_IOCTLS);
}

fn allow_ioctls(list: &mut AllowList, numbers: &[u32]) {
    for number in numbers {
        when(list, SYS_ioctl, vec![(1, Test::Is(*number))]);
    }
}

/// A signal to a thread of our own.
fn allow_signal(list: &mut AllowList, signal: i32) {
    let own = std::process::id();
    let tests = vec![(0, Test::Is(own)), (2, Test::Is(signal.unsigned_abs()))];
    when(list, SYS_tgkill, tests);
}

/// Any argument beside the request's type and number is KVM's own business.
fn allow_kvm(list: &mut AllowList, numbers: &[u8]) {
    const KVM_TYPE: u32 = 0xae;
    for number in numbers {
        let request = Test::Masked {
            mask: 0xffff,
            value: KVM_TYPE << 8 | u32::from(*number),
        };
        when(list, SYS_ioctl, vec![(1, request)]);
    }
}

/// A thread as the C library makes it, and nothing else that `clone` can make; and the one change
/// of filters that a new thread needs, which can only take away.
fn allow_new_thread(list: &mut AllowList) {
    const OF_A_THREAD: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let flags = Test::Masked {
        // Without effect since Linux 2.6; musl still gives it.
        mask: !libc::CLONE_DETACHED.unsigned_abs(),
        value: OF_A_THREAD.unsigned_abs(),
    };
    when(list, SYS_clone, vec![(0, flags)]);
    let no_flags = Test::Is(0);
    when(
        list,
        SYS_seccomp,
        vec![(0, Test::Is(libc::SECCOMP_SET_MODE_FILTER)), (1, no_flags)],
    );
}

#[cfg(test)]
mod tests {
    use super::super::floor;
    use super::*;

    #[test]
    fn no_kind_of_thread_may_make_a_forbidden_call() {
        for kind in ThreadKind::ALL {
            for (call, _) in allowed(kind, 34, 35) {
                assert!(!floor::FORBIDDEN.contains(&call), "{kind:?}: {call}");
            }
        }
    }

    #[test]
    fn only_the_main_thread_starts_threads_and_brings_filters() {
        for kind in ThreadKind::ALL {
            let list = allowed(kind, 34, 35);
            for call in [SYS_clone, SYS_clone3, SYS_seccomp, SYS_memfd_create] {
                let has = list.iter().any(|(other, _)| *other == call);
                assert_eq!(has, kind == ThreadKind::Main, "{kind:?}: {call}");
            }
        }
    }

    #[test]
    fn a_call_is_allowed_always_or_on_conditions_but_not_both() {
        for kind in ThreadKind::ALL {
            let list = allowed(kind, 34, 35);
            for (call, tests) in &list {
                let agree = list
                    .iter()
                    .all(|(other, theirs)| other != call || theirs.is_empty() == tests.is_empty());
                assert!(agree, "{kind:?}: {call}");
            }
        }
    }

    #[test]
    fn only_a_vcpu_and_the_main_thread_enter_guests() {
        let run = |kind| {
            let request = Test::Masked {
                mask: 0xffff,
                value: 0xae80,
            };
            allowed(kind, 34, 35).contains(&(SYS_ioctl, vec![(1, request)]))
        };
        assert!(run(ThreadKind::Vcpu) && run(ThreadKind::Main));
        assert!(!run(ThreadKind::QmpIo) && !run(ThreadKind::IoThread) && !run(ThreadKind::DevIo));
    }
}
