//! Every property that takes what is handed in: when it does, and how it lets go.
//!
//! ```text
//!                           command line      while it runs     after a reset
//!   `netdev_add` tap: fd       each: a named fd, a set, the hook, an fd of the wrong kind,
//!   ...                        too few, too many, given back and used by another process
//! ```
//!
//! Written once, in [`rows`]: [`walk`] goes through it with the program itself, and `cargo xtask
//! codegen` writes it into `docs/fds.md`. [`schema`] reads every string that the program's own
//! schema and command line take, so that none of them can be a name of something to open and have no
//! row here. Where a resource may come from is another table, [`crate::table`].
//!
//! Read next: [`rows`], then [`walk`].

pub mod rows;
pub mod schema;
pub mod walk;

use std::fmt::Write as _;

use serde_json::Value;

use crate::table::Resource;
pub use rows::PROPERTIES;

/// A command and its arguments.
pub type Step = (&'static str, Value);

/// How a running program is given something by a property, and lets go of it.
#[derive(Debug)]
pub struct Way {
    /// The command that opens.
    pub open: Step,
    /// What puts it to use.
    pub then: Vec<Step>,
    /// What gives it back.
    pub undo: Vec<Step>,
}

/// The options of a launch that open something by these names.
pub type Options = fn(&[String]) -> Vec<String>;

/// How something is opened by these names.
pub type Ways = fn(&[String]) -> Way;

/// What must be there before something can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// So many queues of a tap, in sets 90 and up.
    TapQueues(usize),
    /// A certificate that goes with the key, in set 98.
    Certificate,
    /// Something to write to, in set 99.
    Output,
    /// A CD drive `cd`, without a medium.
    CdDrive,
    /// A netdev `w`, for filters.
    Netdev,
}

/// One property, or several that are the same thing.
#[derive(Debug)]
pub struct Property {
    /// Where it stands in the schema: how the paths of [`schema`] end.
    pub schema: &'static [&'static str],
    /// Its name in the guide.
    pub title: &'static str,
    /// What it takes.
    pub resource: Resource,
    /// The role in which the hook is asked for it (`OpenRole`).
    pub role: &'static str,
    /// How many fds it takes in the test.
    pub count: usize,
    /// What it wants beside.
    pub beside: Beside,
    /// The options of a launch that open it by these names.
    pub launch: Option<Options>,
    /// How it is opened by these names while the program runs.
    pub hotplug: Option<Ways>,
}

impl Property {
    /// Whether only a kernel with its vhost devices has what it takes.
    pub fn wants_vhost(&self) -> bool {
        matches!(self.resource, Resource::VhostNet | Resource::VhostVsock)
    }
}

/// The table as Markdown.
pub fn markdown() -> String {
    let mut text = String::from(
        "| Property | Command line | While it runs | After a reset |\n|---|:-:|:-:|:-:|\n",
    );
    let cell = |there: bool| if there { "yes" } else { "–" };
    for row in PROPERTIES {
        let (launch, hotplug) = (row.launch.is_some(), row.hotplug.is_some());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            row.title,
            cell(launch),
            cell(hotplug),
            if hotplug { "yes" } else { "stays" },
        );
    }
    text
}
