//! What a node is made of, resolved: every default is applied before a spec is made.
//!
//! Where an `Option` stands, absence has a meaning of its own, said beside it.

use std::time::Duration;

use fdset::Role;

use crate::format::blkdebug::limits::RequestLimits;
use crate::format::blkdebug::rules::Rules;
use crate::format::qcow2::Tuning;
pub use crate::protocol::lock::Locking;

/// One node, and the nodes it brings with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name; `None` for a node that nobody needs to name: the graph makes up `#blockNNN`.
    pub name: Option<String>,
    /// What every node has.
    pub options: NodeOptions,
    /// Whether it was said of this very node that it is read-only or not: it then does not follow
    /// the one it comes inline with.
    pub keeps_access: bool,
    /// Whether the storage is this process's from the start; `None` as of the node that it comes
    /// inline with, and if there is none, that it is.
    pub active: Option<bool>,
    /// Whether others may do anything with its storage while it is read-only, and with that of the
    /// nodes that it brings inline.
    pub force_share: bool,
    /// Its kind, and what only this kind has.
    pub driver: DriverSpec,
}

/// The options of every node, whatever its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Become read-only instead of failing when the storage cannot be written.
    pub auto_read_only: bool,
    /// What a discard does.
    pub discard: DiscardMode,
    /// What a write of zeros does.
    pub detect_zeroes: DetectZeroes,
    /// How the host caches.
    pub cache: CacheSpec,
}

/// What a discard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardMode {
    /// Nothing.
    Ignore,
    /// It frees space where the storage can.
    Unmap,
}

/// What happens to a write of nothing but zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Nothing special; it is not even looked at.
    Off,
    /// It becomes a write-zeroes.
    On,
    /// It becomes a write-zeroes that may free space (if `discard` allows).
    Unmap,
}

impl DetectZeroes {
    /// The name in QMP.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

/// How the host caches a node. (Whether the guest sees a write cache is its device's business.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Go around the host's page cache (O_DIRECT).
    pub direct: bool,
    /// Ignore flushes: fast, and everything is lost with the host.
    pub no_flush: bool,
}

/// The kind of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverSpec {
    /// A regular file.
    File(FileSpec),
    /// A block device of the host.
    HostDevice(FileSpec),
    /// Nothing: writes vanish.
    NullCo(NullSpec),
    /// The same under its other name.
    NullAio(NullSpec),
    /// The bytes of another node, or a window of them.
    Raw(RawSpec),
    /// An image of clusters that appear when they are written.
    Qcow2(Box<Qcow2Spec>),
    /// Another node, whose requests fail as rules say.
    Blkdebug(BlkdebugSpec),
    /// Another node, into which is copied what is read through it.
    CopyOnRead(CopyOnReadSpec),
    /// An image, into which is written compressed what is written through this node.
    Compress(CompressSpec),
    /// Another node, whose requests wait.
    Throttle(ThrottleSpec),
    /// Another node, of which is saved what is about to be overwritten.
    CopyBeforeWrite(Box<CopyBeforeWriteSpec>),
    /// What such a node has saved.
    SnapshotAccess(SnapshotAccessSpec),
}

impl DriverSpec {
    /// The name in QMP.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::HostDevice(_) => "host_device",
            Self::NullCo(_) => "null-co",
            Self::NullAio(_) => "null-aio",
            Self::Raw(_) => "raw",
            Self::Qcow2(_) => "qcow2",
            Self::Blkdebug(_) => "blkdebug",
            Self::CopyOnRead(_) => "copy-on-read",
            Self::Compress(_) => "compress",
            Self::Throttle(_) => "throttle",
            Self::CopyBeforeWrite(_) => "copy-before-write",
            Self::SnapshotAccess(_) => "snapshot-access",
        }
    }

    /// Whether the node, or one that comes inline with it, is opened by requests on an io-thread.
    pub fn needs_thread(&self) -> bool {
        matches!(self, Self::Qcow2(_))
            || self.children().any(|(_, child)| match child {
                ChildSpec::Named(_) => false,
                ChildSpec::Inline(spec) => spec.driver.needs_thread(),
            })
    }

    /// Its children, by role.
    pub fn children(&self) -> impl Iterator<Item = (&'static str, &ChildSpec)> {
        let mut more = None;
        let first = match self {
            Self::Raw(raw) => Some(("file", &raw.file)),
            Self::Blkdebug(blkdebug) => Some(("image", &blkdebug.image)),
            Self::CopyOnRead(filter) => Some(("file", &filter.file)),
            Self::Compress(filter) => Some(("file", &filter.file)),
            Self::Throttle(throttle) => Some(("file", &throttle.file)),
            Self::CopyBeforeWrite(filter) => Some(("file", &filter.file)),
            Self::SnapshotAccess(access) => Some(("file", &access.file)),
            Self::Qcow2(qcow2) => {
                more = Some(qcow2);
                Some(("file", &qcow2.file))
            }
            _ => None,
        };
        let data = more.and_then(|qcow2| qcow2.data_file.as_ref());
        let backing = more.and_then(|qcow2| match &qcow2.backing {
            BackingSpec::Child(child) => Some(("backing", child)),
            BackingSpec::FromHeader(_) | BackingSpec::Nothing => None,
        });
        let data = data.map(|data| ("data-file", data));
        let target = match self {
            Self::CopyBeforeWrite(filter) => Some(("target", &filter.target)),
            _ => None,
        };
        first.into_iter().chain(data).chain(backing).chain(target)
    }
}

/// A node over an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// What `fdset::open` is asked for: `/dev/fdset/N`, `fd:NAME` or a path.
    pub filename: String,
    /// What it is for: [`Role::Image`], or the role of a file that only an image's header names.
    pub role: Role,
    /// Whether other processes are told how it is used.
    pub locking: Locking,
}

/// A node over nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullSpec {
    /// Its length in bytes.
    pub size: u64,
    /// Whether reads give zeros; if not, they leave the buffer as it is.
    pub read_zeroes: bool,
}

/// A node over another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSpec {
    /// The node with the bytes.
    pub file: ChildSpec,
    /// Where in it this node begins, in bytes.
    pub offset: u64,
    /// The length in bytes; `None` follows the end of the other node.
    pub size: Option<u64>,
}

/// An image of clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Spec {
    /// The node with header and tables.
    pub file: ChildSpec,
    /// The node with the guest's clusters, for images that have them outside; `None` is the file
    /// that the header names.
    pub data_file: Option<ChildSpec>,
    /// What is behind the image.
    pub backing: BackingSpec,
    /// Whether what the guest discards is discarded in the file; `None` as the node's own discards
    /// are.
    pub pass_discard: Option<bool>,
    /// How it is handled.
    pub tuning: Tuning,
}

/// What is behind an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackingSpec {
    /// The file that the header names, if it names one; with a say in what becomes of it.
    FromHeader(Option<Box<Behind>>),
    /// Nothing, whatever the header says.
    Nothing,
    /// This node.
    Child(ChildSpec),
}

/// What is said of a node that only a header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Its name; `None` as of any node that nobody needs to name.
    pub name: Option<String>,
    /// What is behind it in turn. Anything but what its own header names makes it an error that it
    /// has nothing behind it.
    pub backing: BackingSpec,
}

/// A node over another one that fails on purpose, and may take few kinds of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkdebugSpec {
    /// The node with the bytes.
    pub image: ChildSpec,
    /// A file of rules, which come before the others: any name that can be opened.
    pub config: Option<String>,
    /// Which requests fail.
    pub rules: Rules,
    /// Which requests the node takes.
    pub limits: RequestLimits,
}

/// A node that keeps what is read through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOnReadSpec {
    /// The node into which is copied.
    pub file: ChildSpec,
    /// The name of the lowest node of its chain from which is copied; `None`: from any.
    pub bottom: Option<String>,
}

/// A node whose writes are compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressSpec {
    /// The image into which is written.
    pub file: ChildSpec,
}

/// A node over another one whose requests wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleSpec {
    /// The name of the group whose limits hold.
    pub group: String,
    /// The node with the bytes.
    pub file: ChildSpec,
}

/// A node over another one that saves what is about to be overwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyBeforeWriteSpec {
    /// The node that is written to.
    pub file: ChildSpec,
    /// The node to which is copied.
    pub target: ChildSpec,
    /// A node and a bitmap of it: only what that marks is saved.
    pub bitmap: Option<(String, String)>,
    /// Who bears it where copying fails.
    pub on_failure: CbwFailure,
    /// How long a write waits for its copy; `None` as long as that takes.
    pub timeout: Option<Duration>,
    /// How many bytes are copied at once, at least: a power of two.
    pub piece: u64,
}

/// Who bears it where something cannot be copied before it is overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CbwFailure {
    /// The writer: its write fails.
    BreakGuestWrite,
    /// The reader: the snapshot is given up.
    BreakSnapshot,
}

/// A node that reads what another one has saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotAccessSpec {
    /// The node that saves it.
    pub file: ChildSpec,
}

/// A child: a node that is there, or one that comes and goes with its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildSpec {
    /// The name of a node that was added before.
    Named(String),
    /// A node made for this parent.
    Inline(Box<NodeSpec>),
}
