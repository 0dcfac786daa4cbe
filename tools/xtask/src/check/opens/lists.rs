//! What is known of the functions that the product calls and that are not its own.

/// Part of a function's name, and why it may open.
pub(super) type Exemption = (&'static str, &'static str);

/// Functions of the C library (and of the unwinder) that open, connect, bind, create, remove and
/// start nothing. Any other is taken for one that does.
#[rustfmt::skip]
pub(super) const HARMLESS: &[&str] = &[
    "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "_Unwind_Backtrace",
    "_Unwind_DeleteException", "_Unwind_FindEnclosingFunction", "_Unwind_GetCFA",
    "_Unwind_GetDataRelBase", "_Unwind_GetIP", "_Unwind_GetIPInfo",
    "_Unwind_GetLanguageSpecificData", "_Unwind_GetRegionStart", "_Unwind_GetTextRelBase",
    "_Unwind_RaiseException", "_Unwind_Resume", "_Unwind_SetGR", "_Unwind_SetIP",
    "__cxa_finalize", "__cxa_thread_atexit_impl", "__errno_location", "__gmon_start__",
    "__libc_current_sigrtmin", "__libc_start_main", "__tls_get_addr",
    "__xpg_strerror_r", "abort", "bcmp", "calloc", "chdir", "chroot", "clock_nanosleep", "setgroups", "setresgid", "setresuid", "setuid", "cfmakeraw", "clock_gettime", "close",
    "dl_iterate_phdr", "dup", "dup2", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd",
    "exit", "fcntl", "free", "freeaddrinfo", "fstat", "fstat64", "fstatat", "ftruncate",
    "gai_strerror", "getauxval", "getcwd", "getenv", "getpid", "getrandom", "getsockopt",
    "gettid", "gnu_get_libc_version", "ioctl", "lseek", "lseek64", "lstat", "madvise",
    "malloc", "mallopt", "memcmp", "memcpy", "memmove", "memset", "mlockall", "mmap", "mmap64",
    "mprotect", "munmap", "pause", "poll", "posix_memalign", "ppoll", "prctl", "pread", "pread64",
    "pthread_attr_destroy", "pthread_attr_getguardsize", "pthread_attr_getstack",
    "pthread_attr_init", "pthread_attr_setstacksize", "pthread_create", "pthread_detach",
    "pthread_join", "pthread_key_create", "pthread_key_delete",
    "pthread_self", "pthread_setname_np", "pthread_setspecific", "pthread_sigmask", 
    "pwrite", "raise", "read", "readlink", "readlinkat", "realloc", "recv", "sched_yield", "send", "sendmsg",
    "setsid", "shutdown", "sigaction", "sigaddset", "sigaltstack", "sigemptyset", "sigismember",
    "signal", "signalfd", "socketpair", "stat64", "statx", "strlen", "sysconf", "tcflush",
    "tcgetattr", "tcsetattr", "write", "writev",
];

/// Who may call the kernel by number, by the beginning of its name, and for what.
pub(super) const BY_NUMBER: &[(&str, &str)] = &[
    (
        "std::",
        "futex; getrandom; statx of a path, which opens nothing",
    ),
    (
        "core::ptr::drop_in_place::<",
        "futex, when a lock of std is given back",
    ),
    (
        "io_uring::sys::io_uring_enter",
        "entering a ring that is restricted",
    ),
    ("io_uring::sys::io_uring_register", "restricting it"),
    ("getrandom::util_libc::getrandom_syscall", "random numbers"),
    ("nix::unistd::gettid", "the thread's own number"),
    ("seccompiler::apply_filter", "seccomp"),
    (
        "vmm_core::kvm::vcpu::kick_thread",
        "tgkill, to a thread of its own",
    ),
    (
        "vmm_core::sandbox::delivery::",
        "gettid, tgkill to a thread of its own, seccomp",
    ),
    ("vmm_core::sandbox::landlock::", "Landlock's three"),
    (
        "rustix::backend::net::syscalls::accept_with",
        "taking a call on a socket that listens",
    ),
    (
        "rustix::backend::net::syscalls::getpeername",
        "asking a socket",
    ),
    (
        "rustix::backend::net::syscalls::getsockname",
        "asking a socket",
    ),
    ("rustix::backend::net::syscalls::recv", "receiving"),
    ("rustix::backend::net::syscalls::send", "sending"),
    ("rustix::backend::net::sockopt::", "options of a socket"),
    (
        "rustix::backend::net::syscalls::socketpair",
        "two sockets that lead to each other only",
    ),
];

/// Parts of the names of functions that may lead to something that opens, and why that is right.
pub(super) const EXEMPT: &[Exemption] = &[
    (
        "block::engine::rings::make",
        "io_uring_setup; each ring is restricted before its first use, and none is made after the seal",
    ),
    (
        "vmm_core::process::Daemon::fork",
        "-daemonize: before the first thread and the first fd",
    ),
    (
        "vmm_core::process::local_time_offset",
        "the C library reads /etc/localtime once, before the seal",
    ),
    (
        "std::sys::random::linux::getrandom",
        "the keys of hash tables: /dev/urandom where the kernel has no getrandom, before Linux 3.17",
    ),
    (
        "<std::sys::thread::unix::Thread>::new",
        "dlsym, for the least stack of a thread, in what is loaded already",
    ),
    (
        "std::backtrace_rs::symbolize::gimli::Cache",
        "the report of a panic, where RUST_BACKTRACE asks for the names of functions; the process \
         is about to end, and a sealed one ends there",
    ),
];
