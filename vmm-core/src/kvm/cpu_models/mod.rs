//! Which CPUs a guest can be shown: the host's own, and processors that many hosts can stand for.
//!
//! `-cpu MODEL,...` becomes a [`CpuSpec`]; with what KVM supports on this host it becomes the leaves
//! of CPUID. This room must never know the machine: how many CPUs there are, and which of them a
//! leaf speaks of, is filled in by [`cpuid`](super::cpuid).
//!
//! ```text
//!   catalog: names ─┐                          KVM: what is supported
//!                   ▼                                    │
//!   CpuSpec ─► features wanted ─► what hangs on others ─►├─► wanted and supported ─► leaves
//!              (features)         is off with them       └─► wanted and lacking ─► told, refused
//! ```
//!
//! Read next: [`catalog`] (the models), `features` (the names of bits), `build` (how leaves come
//! about).

mod build;
pub mod catalog;
mod features;
mod leaves;
#[cfg(test)]
mod tests;
mod view;

pub use catalog::{HOST, MODELS, Model, find_model};
pub use features::{feature_names, find_feature};
pub use view::{CpuIdentity, FeatureWord};

pub(super) use build::{Facts, build};
pub(super) use leaves::Leaves;
pub(super) use view::{identity, words};

/// Every CPU feature with a name, and whether `leaves` show it.
pub(super) fn features(leaves: &Leaves) -> Vec<(&'static str, bool)> {
    let names = feature_names().into_iter();
    names
        .map(|name| (name, features::shows(leaves, name)))
        .collect()
}

/// The CPU that a guest is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSpec {
    /// What it is to begin with.
    pub model: &'static Model,
    /// Features by their names, and whether the guest is to see them; a later one counts.
    pub switches: Vec<(&'static str, bool)>,
    /// What else is not as the model has it; a later one counts.
    pub said: Vec<Said>,
    /// What becomes of features that this host lacks.
    pub lacking: Lacking,
}

impl CpuSpec {
    /// The model as it is.
    #[must_use]
    pub fn plain(model: &'static Model) -> Self {
        Self {
            model,
            switches: Vec::new(),
            said: Vec::new(),
            lacking: Lacking::Told,
        }
    }
}

/// What becomes of features that are wanted and that this host lacks. The guest never sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Nothing is said.
    Silent,
    /// A line on standard error names them.
    Told,
    /// There is no guest.
    Refused,
}

/// Something about a CPU that is no feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The vendor's name, of twelve characters.
    Vendor([u8; 12]),
    /// The family, with its extension.
    Family(u32),
    /// The model in the family, with its extension.
    Model(u32),
    /// The stepping, below 16.
    Stepping(u32),
    /// What it calls itself, of at most 48 bytes.
    Brand(String),
    /// The last basic leaf.
    Level(u32),
    /// The last extended leaf.
    ExtendedLevel(u32),
    /// How many bits a guest physical address has.
    PhysicalBits(u32),
    /// It has as many as the host's.
    HostPhysicalBits,
    /// The guest is not told that KVM runs it.
    HidesKvm,
    /// Whether the guest has the performance counters that KVM can give it. A model of the table has
    /// none by itself, the host's CPU has them.
    Counters(bool),
    /// Its caches are the host's.
    HostCaches,
    /// There is no cache of the third level, unless the caches are the host's.
    NoL3Cache,
}
