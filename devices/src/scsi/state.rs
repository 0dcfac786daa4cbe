//! What a snapshot keeps of a unit. Which medium is in it, whoever builds it says.

use serde::{Deserialize, Serialize};

use super::optical::TrayNews;
use super::sense::Sense;
use super::unit::{Kind, ScsiUnit};
use crate::state::{SavedState, StateError, Stateful};

/// A unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScsiUnitState {
    /// What it tells the guest before anything else.
    pub attention: Option<Sense>,
    /// Whether the tray is open.
    pub open: bool,
    /// Whether the guest keeps the medium in.
    pub locked: bool,
    /// What the guest has not yet asked about the tray.
    pub news: TrayNews,
}

impl SavedState for ScsiUnitState {
    const KIND: &'static str = "scsi-unit";
    const VERSION: u32 = 1;
}

impl Stateful for ScsiUnit {
    type State = ScsiUnitState;

    fn save(&self) -> ScsiUnitState {
        let state = self.state();
        ScsiUnitState {
            attention: state.attention,
            open: state.open,
            locked: state.locked,
            news: state.news,
        }
    }

    fn load(&self, saved: ScsiUnitState) -> Result<(), StateError> {
        if saved.open && self.kind() == Kind::Disk {
            return Err(ScsiUnitState::refused("open: a disk has no tray"));
        }
        let mut state = self.state();
        state.attention = saved.attention;
        state.open = saved.open;
        state.locked = saved.locked;
        state.news = saved.news;
        Ok(())
    }
}
