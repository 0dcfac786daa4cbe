//! How much clients may leave with the registry. What is passed on the command line is not
//! counted against them, and not refused: whoever starts the process decides.
//!
//! Every fd is also one of the process's, whose own limit (`RLIMIT_NOFILE`) may be lower.

/// The most fds that the clients of one monitor, or one session where names belong to it, may keep
/// under names.
pub const MAX_NAMES: usize = 1024;

/// The most fds in all sets together.
pub const MAX_MEMBERS: usize = 4096;

/// The longest name of an fd, in bytes.
pub const MAX_NAME: usize = 255;

/// The longest text beside a member of a set, in bytes: a path and a word before it.
pub const MAX_OPAQUE: usize = 8192;
