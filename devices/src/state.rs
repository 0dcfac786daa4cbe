//! What a device is saved as: a tree of kinds, versions and values. A snapshot keeps it, and
//! `x-inspect` shows it.
//!
//! A device is written against [`Stateful`], with a type of its own for what it saves. Everybody
//! else sees [`AnyStateful`], which each of them is without a further line.
//!
//! ```text
//!   Stateful (one device, one type)          AnyStateful            StateTree
//!     save ───► State ───────────────────────► tree ────────────────► kind, version, state
//!     parts ──► what it is made of ──────────►  │                     └─ parts: name ─► ..
//!     load ◄─── State ◄─ kind, version, layout ─ restore ◄─────────────┘
//!     settle ◄─ after the last part ─────────────┘
//! ```
//!
//! **What.** All that a guest could tell apart: registers, indices, what its driver negotiated. Not
//! what the device was configured with (whoever loads has built the same device), and nothing of the
//! host: no fd, no path, no address of this process.
//!
//! **When.** A tree may be taken at any time: each device looks under its own leaf lock, so what one
//! device says of itself fits together. On a running machine two devices may speak of two moments,
//! and what is with somebody else (the indices of a queue that is being served) is left out. It is
//! whole, and can be loaded, if it was taken while the machine was paused. Loading is for a paused
//! machine only. One that is refused may have been loaded in part: the machine is reset or given up.
//!
//! This room must never know where trees come from and go to. Read next: [`crate::lifecycle`].

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The part of a device that is written to a snapshot. Extend only: a new member needs a default
/// that means "as before", and a change of meaning needs a new [`VERSION`](Self::VERSION).
pub trait SavedState: Serialize + DeserializeOwned {
    /// The device's kind in the snapshot, never reused for another layout.
    const KIND: &'static str;
    /// The layout's version.
    const VERSION: u32;

    /// A state that has the right layout and cannot be: `what` says which member and why.
    fn refused(what: impl Into<String>) -> StateError {
        StateError::Refused {
            kind: Self::KIND,
            what: what.into(),
        }
    }
}

/// The state of a device that has nothing of its own to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Empty<T> {
    #[serde(skip)]
    of: PhantomData<T>,
}

impl<T> Default for Empty<T> {
    fn default() -> Self {
        Self { of: PhantomData }
    }
}

/// A device, or a part of one, that has nothing of its own to save. If that changes, its state
/// becomes a type of the same kind whose members all have defaults.
pub trait NothingToSave {
    /// What kind it is.
    const KIND: &'static str;
}

impl<T: NothingToSave> SavedState for Empty<T> {
    const KIND: &'static str = T::KIND;
    const VERSION: u32 = 1;
}

/// What a device is made of: names, unique in it, and the parts.
pub type Parts<'a> = Vec<(&'static str, &'a dyn AnyStateful)>;

/// A device, or a part of one, that has something to save.
pub trait Stateful {
    /// What it saves.
    type State: SavedState;

    /// Its state, without that of its parts. A look: it changes nothing, and waits for nobody
    /// longer than a lock of its own is held.
    fn save(&self) -> Self::State;

    /// Goes on from a saved state. The machine is paused, no queue runs.
    ///
    /// # Errors
    /// No device with this configuration is ever in that state; it is as it was before.
    fn load(&self, state: Self::State) -> Result<(), StateError>;

    /// What it is made of, in the order of loading.
    fn parts(&self) -> Parts<'_> {
        Parts::new()
    }

    /// It and all of its parts are loaded: what follows from several of them follows now.
    fn settle(&self) {}
}

/// A state as it is kept and shown, with those of the parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateTree {
    /// What kind of device or part this is: [`SavedState::KIND`].
    pub kind: String,
    /// The layout's version: [`SavedState::VERSION`].
    pub version: u32,
    /// Its own state.
    pub state: Value,
    /// The parts by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, StateTree>,
}

/// Anything [`Stateful`], whatever the type of its state.
pub trait AnyStateful {
    /// What kind it is: [`SavedState::KIND`].
    fn kind(&self) -> &'static str;

    /// It and its parts as they are now.
    ///
    /// # Errors
    /// A state cannot be written as JSON: a mistake in its type.
    fn tree(&self) -> Result<StateTree, StateError>;

    /// Goes on from a saved state, with all parts. See [`Stateful::load`].
    ///
    /// # Errors
    /// The tree is another kind's or another version's, has other parts, or a state in it is
    /// refused.
    fn restore(&self, tree: &StateTree) -> Result<(), StateError>;
}

impl<T: Stateful> AnyStateful for T {
    fn kind(&self) -> &'static str {
        T::State::KIND
    }

    fn tree(&self) -> Result<StateTree, StateError> {
        let kind = T::State::KIND;
        let state = serde_json::to_value(self.save());
        let state = state.map_err(|source| StateError::Unwritable { kind, source })?;
        let part = |(name, part): (&str, &dyn AnyStateful)| {
            let tree = part.tree().map_err(|error| error.in_part(name))?;
            Ok((name.to_owned(), tree))
        };
        Ok(StateTree {
            kind: kind.to_owned(),
            version: T::State::VERSION,
            state,
            parts: self
                .parts()
                .into_iter()
                .map(part)
                .collect::<Result<_, _>>()?,
        })
    }

    fn restore(&self, tree: &StateTree) -> Result<(), StateError> {
        let parts = self.parts();
        check::<T::State>(tree, &parts)?;
        let state = T::State::deserialize(&tree.state);
        self.load(state.map_err(|source| StateError::Layout {
            kind: T::State::KIND,
            version: T::State::VERSION,
            source,
        })?)?;
        for (name, part) in parts {
            if let Some(tree) = tree.parts.get(name) {
                part.restore(tree).map_err(|error| error.in_part(name))?;
            }
        }
        self.settle();
        Ok(())
    }
}

/// Whether `tree` is of this kind and version and has these parts.
fn check<S: SavedState>(tree: &StateTree, parts: &Parts<'_>) -> Result<(), StateError> {
    let kind = S::KIND;
    if tree.kind != kind {
        let came = tree.kind.clone();
        return Err(StateError::Kind { kind, came });
    }
    if tree.version != S::VERSION {
        return Err(StateError::Version {
            kind,
            wanted: S::VERSION,
            came: tree.version,
        });
    }
    if let Some((name, _)) = parts
        .iter()
        .find(|(name, _)| !tree.parts.contains_key(*name))
    {
        return Err(StateError::NoPart { kind, name });
    }
    let is_known = |name: &str| parts.iter().any(|(known, _)| *known == name);
    match tree.parts.keys().find(|name| !is_known(name)) {
        Some(name) => Err(StateError::StrayPart {
            kind,
            name: name.clone(),
        }),
        None => Ok(()),
    }
}

impl StateTree {
    /// The part at the end of `path`, names with `/` between; the tree itself for an empty one.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&Self> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(self, |tree, name| tree.parts.get(name))
    }
}

/// Why a state could not be taken or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is another kind's.
    #[error("a state of kind '{came}' for a device of kind '{kind}'")]
    Kind {
        /// What the device is.
        kind: &'static str,
        /// What came.
        came: String,
    },
    /// It has another version's layout.
    #[error("state '{kind}': version {came}, and this program knows version {wanted} only")]
    Version {
        /// What the device is.
        kind: &'static str,
        /// The version that is known.
        wanted: u32,
        /// What came.
        came: u32,
    },
    /// It is not laid out as its version is.
    #[error("state '{kind}': not laid out as version {version} is")]
    Layout {
        /// What the device is.
        kind: &'static str,
        /// The layout's version.
        version: u32,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// It lacks a part that the device has.
    #[error("state '{kind}': the part '{name}' is missing")]
    NoPart {
        /// What the device is.
        kind: &'static str,
        /// The part.
        name: &'static str,
    },
    /// It has a part that the device has not.
    #[error("state '{kind}': a part '{name}', which this device does not have")]
    StrayPart {
        /// What the device is.
        kind: &'static str,
        /// The part.
        name: String,
    },
    /// No device with this configuration is ever in that state.
    #[error("state '{kind}': {what}")]
    Refused {
        /// What the device is.
        kind: &'static str,
        /// Which member, what was wanted, what came.
        what: String,
    },
    /// It cannot be written as JSON.
    #[error("state '{kind}' cannot be written")]
    Unwritable {
        /// What the device is.
        kind: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Something of this with a part of the device.
    #[error("part '{name}'")]
    Part {
        /// Which part.
        name: String,
        /// What.
        #[source]
        source: Box<StateError>,
    },
}

impl StateError {
    fn in_part(self, name: &str) -> Self {
        Self::Part {
            name: name.to_owned(),
            source: Box::new(self),
        }
    }
}

#[cfg(test)]
pub(crate) mod trial;

#[cfg(test)]
mod tests;
