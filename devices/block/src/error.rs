//! What can go wrong with nodes and the graph.

use std::io;

use fdset::Identity;

use crate::bitmap::BitmapError;
use crate::engine::IoThreadError;
use crate::format::blkdebug::config::ConfigError;
use crate::format::blkdebug::limits::LimitError;
use crate::format::qcow2::ImageError;
use crate::permission::Permissions;

/// Why a graph command was refused or a node could not be made. Where a client of QEMU matches on
/// a text, the text is that one.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The node at which copying is to end is not there.
    #[error("Bottom node '{name}' not found")]
    NoBottom {
        /// Its name.
        name: String,
    },
    /// The node at which copying is to end is not behind the one that is copied into.
    #[error("Bottom node '{name}' is not in the backing chain of node '{top}'")]
    BottomElsewhere {
        /// Its name.
        name: String,
        /// The node into which is copied.
        top: String,
    },
    /// What is copied before it is overwritten has no room.
    #[error("Node '{node}' copies {wanted} bytes to '{target}', which has {len}: make it as long")]
    ShortTarget {
        /// The node.
        node: String,
        /// Where it copies to.
        target: String,
        /// The bytes that are there.
        len: u64,
        /// The bytes that are wanted.
        wanted: u64,
    },
    /// A snapshot is to be read of a node that keeps none.
    #[error(
        "Node '{node}' ({driver}) keeps no snapshot that could be read: it must be a \
         copy-before-write node"
    )]
    NoSnapshot {
        /// The node.
        node: String,
        /// Its driver.
        driver: &'static str,
    },
    /// A bitmap is not there, or of no use.
    #[error("{source}")]
    Bitmap {
        /// Why.
        source: BitmapError,
    },
    /// A node that compresses stands on one that cannot store what is compressed.
    #[error(
        "Compression is not supported for underlying format: {driver} (node '{name}' must be a \
         qcow2 image that has its clusters inside)"
    )]
    NotCompressible {
        /// The node below.
        name: String,
        /// Its driver.
        driver: &'static str,
    },
    /// A node is to have the limits of a group that is not there.
    #[error("Throttle group '{name}' does not exist; make it with object-add first")]
    NoThrottleGroup {
        /// Its name.
        name: String,
    },
    /// Disks have made a group of this name, and use it.
    #[error("A group with this name already exists: throttle group '{name}' is used by '{user}'")]
    ThrottleGroupExists {
        /// Its name.
        name: String,
        /// A disk in it.
        user: String,
    },
    /// A group whose limits a node has cannot go.
    #[error("object '{name}' is in use by '{node}', can not be deleted")]
    ThrottleGroupInUse {
        /// Its name.
        name: String,
        /// The node.
        node: String,
    },
    /// The node name breaks the rules: a letter first, then letters, digits and `-._`, at most 31
    /// bytes.
    #[error("Invalid node-name: '{name}'")]
    InvalidName {
        /// The name that came.
        name: String,
    },
    /// A top-level node without a name could never be used nor removed.
    #[error("'node-name' must be specified for the root node")]
    NameMissing,
    /// The name is taken.
    #[error("Duplicate nodes with node-name='{name}'")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// No node has this name.
    #[error("Failed to find node with node-name='{name}'")]
    NoSuchNode {
        /// The name.
        name: String,
    },
    /// No node has the name by which a new node calls its child.
    #[error("Cannot find device='{name}' nor node-name='{name}'")]
    NoSuchChild {
        /// The name.
        name: String,
    },
    /// No node has the name by which a node is to call another child.
    #[error("Cannot find device='' nor node-name='{name}'")]
    NoSuchReference {
        /// The name.
        name: String,
    },
    /// The node has no child of this role.
    #[error("Node '{node}' has no child '{role}'")]
    NoSuchRole {
        /// The node.
        node: String,
        /// The role: `file`, `backing`.
        role: String,
    },
    /// A device has the node; `x-debug-query-block-graph` shows which.
    #[error("Node {name} is in use")]
    InUse {
        /// The node.
        name: String,
    },
    /// Another node stands on this one; `x-debug-query-block-graph` shows which.
    #[error("Block device {name} is in use")]
    UnderNode {
        /// The node.
        name: String,
    },
    /// Another node shows what is in this one.
    #[error("Node '{name}' is busy: node is used as backing hd of '{parent}'")]
    Backs {
        /// The node.
        name: String,
        /// The node above it.
        parent: String,
    },
    /// The node came with its parent and goes with it.
    #[error("Node {name} is not owned by the monitor")]
    NotOwned {
        /// The node.
        name: String,
    },
    /// Nodes nested deeper than any real chain.
    #[error("Node '{name}' is nested more than {limit} levels deep")]
    TooDeep {
        /// The outermost node of the spec.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// An image that cannot be used.
    #[error("Could not open node '{node}'")]
    Image {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The snapshots inside an image stay as they are.
    #[error("The snapshots of node '{node}' cannot be changed")]
    Snapshots {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// An image is opened by requests, and there is no thread for them.
    #[error("Node '{node}' is an image, and no io-thread was given to open it on")]
    NoThread {
        /// The node.
        node: String,
    },
    /// The thread on which images are opened has ended.
    #[error("Images cannot be opened")]
    Thread {
        /// Why.
        #[source]
        source: IoThreadError,
    },
    /// A blkdebug node's file of rules cannot be read.
    #[error("Could not read the rules of node '{node}'")]
    RulesUnread {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blkdebug node's file of rules says something unknown.
    #[error("Could not parse the rules of node '{node}'")]
    BadRules {
        /// The node.
        node: String,
        /// What.
        #[source]
        source: ConfigError,
    },
    /// A blkdebug node claims limits that no request could meet.
    #[error("Could not open node '{node}'")]
    BadRequestLimits {
        /// The node.
        node: String,
        /// Which.
        #[source]
        source: LimitError,
    },
    /// Two users cannot agree.
    #[error(
        "Permission conflict on node '{node}': permissions '{permissions}' are both required by {user} \
         and unshared by {other}."
    )]
    Conflict {
        /// The node both want.
        node: String,
        /// Who does something, and as what.
        user: String,
        /// Who does not allow it.
        other: String,
        /// What is not allowed.
        permissions: Permissions,
    },
    /// A device has this node already.
    #[error("Device '{user}' already uses node '{node}'")]
    AlreadyAttached {
        /// The node.
        node: String,
        /// The device.
        user: String,
    },
    /// Its storage is left to another process.
    #[error(
        "Node '{node}' is inactive: another process may be writing to its storage; activate it with \
         blockdev-set-active first"
    )]
    Inactive {
        /// The node.
        node: String,
    },
    /// Something is to be done with a node whose storage is left to another process.
    #[error("Permission '{permissions}' unavailable on inactive node")]
    NotPermitted {
        /// What.
        permissions: Permissions,
    },
    /// A node that is at work would stand on one that is not.
    #[error("Inactive '{child}' can't be a {role} child of active '{parent}'")]
    InactiveChild {
        /// The node below.
        child: String,
        /// As what.
        role: &'static str,
        /// The node above.
        parent: String,
    },
    /// A node on which another one stands cannot be left to another process before that.
    #[error("Node has active parent node")]
    ActiveParent,
    /// What a node saves of another is of no use once others write to that.
    #[error(
        "Node '{node}' (copy-before-write) cannot become inactive: it saves only what is \
         overwritten through it; remove it first"
    )]
    KeepsSnapshot {
        /// The node.
        node: String,
    },
    /// What another process has left in the storage cannot be taken over.
    #[error("Node '{node}' stays inactive: what is in its storage now cannot be read")]
    NotRenewed {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing is wanted where it cannot be.
    #[error("Block node is read-only: '{node}'")]
    ReadOnly {
        /// The node.
        node: String,
    },
    /// What stands on a node is to be written, and the node was said to be read-only.
    #[error("Block node is read-only")]
    FixedAccess {
        /// The node.
        node: String,
    },
    /// A node that would stand on itself.
    #[error("Node '{node}' would stand on itself")]
    Loop {
        /// The node.
        node: String,
    },
    /// A child that would make a node stand on itself.
    #[error("Making '{child}' a {role} child of '{parent}' would create a cycle")]
    Cycle {
        /// Who would be the child.
        child: String,
        /// In which role.
        role: &'static str,
        /// The node.
        parent: String,
    },
    /// A node that is to be made anew has no name by which to find it.
    #[error("node-name not specified")]
    NodeNotNamed,
    /// A file that is to be made anew is a node's.
    #[error(
        "'{filename}' is the file of node '{node}': what is in it would be lost; remove the node \
         first"
    )]
    FileTaken {
        /// The file's name.
        filename: String,
        /// The node.
        node: String,
    },
    /// What is behind a node has to be said again.
    #[error("backing is missing for '{node}'")]
    BackingNotGiven {
        /// The node.
        node: String,
    },
    /// What a node has in memory could not be written.
    #[error("Node '{node}' cannot write down what it has in memory: it stays as it is")]
    Unsettled {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A job works on the node.
    #[error("Node '{node}' is busy: block device is in use by block job: {kind}")]
    Busy {
        /// The node.
        node: String,
        /// What the job does: `stream`.
        kind: &'static str,
    },
    /// A snapshot's new top is somebody's already.
    #[error("The overlay is already in use")]
    OverlayInUse,
    /// A snapshot's new top would make disks shorter.
    #[error(
        "The overlay '{overlay}' has {len} bytes, and node '{node}' {had}, which somebody uses: was \
         another disk's handed in?"
    )]
    ShortOverlay {
        /// The new top.
        overlay: String,
        /// Its bytes.
        len: u64,
        /// What its users have now.
        node: String,
        /// Its bytes.
        had: u64,
    },
    /// A snapshot's new top has something below it already.
    #[error("The overlay already has a backing image")]
    OverlayBacked,
    /// A snapshot's new top can have nothing below it.
    #[error("The overlay does not support backing images")]
    OverlayUnable,
    /// An option that stays as it was when the node was made.
    #[error("Cannot change the option '{option}'")]
    FixedOption {
        /// The node.
        node: String,
        /// The option.
        option: &'static str,
    },
    /// A node that somebody uses would have another length.
    #[error(
        "Cannot change the option 'file': node '{node}' is in use and has {had} bytes, and the image \
         there has {len}; resize it first"
    )]
    OtherLength {
        /// The node.
        node: String,
        /// The bytes that it has.
        had: u64,
        /// The bytes that it would have.
        len: u64,
    },
    /// A link between nodes on which a job relies.
    #[error("Cannot change frozen '{role}' link from '{parent}' to '{child}'")]
    Frozen {
        /// The node above.
        parent: String,
        /// As what it has the other.
        role: &'static str,
        /// The node below.
        child: String,
    },
    /// A node that somebody writes to cannot become read-only.
    #[error("Read-only block node '{node}' cannot support read-write users")]
    Written {
        /// The node.
        node: String,
    },
    /// More of an image's L2 tables is to be read at once than there is of one.
    #[error(
        "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
    )]
    L2Slice {
        /// The bytes of a cluster.
        cluster: u64,
    },
    /// The page cache cannot be bypassed under a user with smaller blocks.
    #[error(
        "Cannot change the option 'cache.direct': node '{node}' would move multiples of \
         {alignment} bytes only, and '{user}' has blocks of {block} bytes"
    )]
    DirectUnderUser {
        /// The node.
        node: String,
        /// What its storage would want, in bytes.
        alignment: u32,
        /// The device or the node that uses it.
        user: String,
        /// The bytes of one of that one's blocks.
        block: u32,
    },
    /// What was opened with another access mode is not the same file.
    #[error(
        "Node '{node}': '{filename}' now leads to another file ({came}) than before ({had}); hand \
         in the same file with the other access mode"
    )]
    OtherFile {
        /// The node.
        node: String,
        /// The name that was opened.
        filename: String,
        /// The file that the node has, as device and number.
        had: Identity,
        /// The file that came.
        came: Identity,
    },
    /// The storage could not be opened.
    #[error(transparent)]
    Open(#[from] fdset::OpenError),
    /// What was opened is not what the driver is for.
    #[error("'{driver}' driver requires '{filename}' to be {wanted}, it is {came}")]
    WrongKind {
        /// The driver.
        driver: &'static str,
        /// The name that was opened.
        filename: String,
        /// What the driver takes.
        wanted: &'static str,
        /// What came.
        came: &'static str,
    },
    /// A window outside the child.
    #[error(
        "Node '{node}': the sum of offset ({offset}) and size ({size}) has to be smaller or \
         equal to the size of the containing node ({available})"
    )]
    Window {
        /// The node.
        node: String,
        /// The window's start in bytes.
        offset: u64,
        /// The window's length in bytes.
        size: u64,
        /// The child's length in bytes.
        available: u64,
    },
    /// A window that splits a sector, or that O_DIRECT cannot reach.
    #[error("Node '{node}': offset {offset} and size must be multiples of {alignment} bytes")]
    UnalignedWindow {
        /// The node.
        node: String,
        /// The window's start in bytes.
        offset: u64,
        /// What the storage wants, in bytes.
        alignment: u32,
    },
    /// Two nodes have one file, and their users cannot agree. Clients look for the beginning.
    #[error(
        "Failed to get \"{permission}\" lock\nNodes '{node}' and '{other}' have the same file \
         [{filename}]: was it handed in twice, or in another's place?"
    )]
    SameFile {
        /// The node that came later.
        node: String,
        /// Its name for the file.
        filename: String,
        /// The other node.
        other: String,
        /// What one does and the other does not allow.
        permission: Permissions,
    },
    /// Another process uses the image in a way that does not fit, or it cannot be locked.
    #[error("{why}\nIs another process using the image [{filename}]?")]
    Locked {
        /// The name that was opened.
        filename: String,
        /// Which lock it is, in QEMU's words.
        why: String,
    },
    /// The node ends within a sector.
    #[error(
        "Node '{node}' is {len} bytes long: a disk is a multiple of its blocks of {block} bytes; {fix}"
    )]
    NotADisk {
        /// The node.
        node: String,
        /// Its length in bytes.
        len: u64,
        /// The disk's logical block size in bytes.
        block: u32,
        /// What to do.
        fix: String,
    },
    /// The node's length cannot change, or not to this.
    #[error("Node '{node}' cannot be resized to {len} bytes: {why}")]
    NotResizable {
        /// The node.
        node: String,
        /// The length that was wanted, in bytes.
        len: u64,
        /// Why not, and what can be done.
        why: String,
    },
    /// The storage did not take the new length.
    #[error("Node '{node}': cannot change the length to {len} bytes")]
    Resize {
        /// The node.
        node: String,
        /// The length that was wanted, in bytes.
        len: u64,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The disk's blocks are smaller than what O_DIRECT can move.
    #[error(
        "Node '{node}' moves multiples of {alignment} bytes only (O_DIRECT): set logical_block_size={alignment} or cache.direct=off"
    )]
    BlockTooSmall {
        /// The node.
        node: String,
        /// What the storage wants, in bytes.
        alignment: u32,
    },
    /// A driver reported limits that make no sense.
    #[error("Node '{node}': impossible limits (alignment {alignment}, length {len})")]
    BadLimits {
        /// The node.
        node: String,
        /// The request alignment it reported.
        alignment: u32,
        /// The length it reported.
        len: u64,
    },
    /// The storage failed when it was looked at.
    #[error("Node '{node}': cannot {what} of '{filename}'")]
    Storage {
        /// The node.
        node: String,
        /// The name that was opened.
        filename: String,
        /// What was tried: `read the size`.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
