//! What a place for vCPUs and one for memory modules have in common: what is on its way, and what
//! the guest last said of it (ACPI 6.5, 6.3).
//!
//! ```text
//!   empty ── come ─► inserting ── guest clears ─► there ── ask_to_go ─► removing ── eject ─► empty
//! ```

use serde::{Deserialize, Serialize};

/// In the flags of a place: something is there.
pub(super) const ENABLED: u8 = 1;
/// Something has come; written, it is known.
pub(super) const INSERTING: u8 = 2;
/// What is there is to go; written, that is known.
pub(super) const REMOVING: u8 = 4;
/// Written: what is there goes now.
pub(super) const EJECT: u8 = 8;

/// What the guest is to hear of a place, and what it said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HotplugEvents {
    inserting: bool,
    removing: bool,
    ost_event: u32,
    ost_status: u32,
}

impl HotplugEvents {
    /// Something is there now; with `tell` the guest is to hear of it.
    pub(super) fn come(&mut self, tell: bool) {
        (self.inserting, self.removing) = (tell, false);
    }

    /// What is there, if anything, is to go.
    pub(super) fn ask_to_go(&mut self, is_there: bool) {
        self.removing = is_there;
    }

    /// Whether the guest has not heard of everything yet.
    pub(super) fn has_event(self) -> bool {
        self.inserting || self.removing
    }

    /// Its flags, as the guest reads them.
    pub(super) fn flags(self, is_there: bool) -> u8 {
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        flag(is_there, ENABLED) | flag(self.inserting, INSERTING) | flag(self.removing, REMOVING)
    }

    /// Takes what the guest wrote to the flags. Whether what is there is to go now.
    pub(super) fn control(&mut self, flags: u8) -> bool {
        self.inserting &= flags & INSERTING == 0;
        self.removing &= flags & REMOVING == 0;
        flags & EJECT != 0
    }

    /// What was there has gone.
    pub(super) fn ejected(&mut self) {
        self.removing = false;
    }

    /// Takes the event of the guest's `_OST`.
    pub(super) fn set_event(&mut self, event: u32) {
        self.ost_event = event;
    }

    /// Takes the status of the guest's `_OST`; both, which are complete by that.
    pub(super) fn set_status(&mut self, status: u32) -> (u32, u32) {
        self.ost_status = status;
        self.ost()
    }

    /// What the guest last said: event and status of its `_OST`.
    pub(super) fn ost(self) -> (u32, u32) {
        (self.ost_event, self.ost_status)
    }

    /// The guest begins anew. Whether what is there was to go, and is in nobody's use any more.
    pub(super) fn reset(&mut self) -> bool {
        std::mem::take(self).removing
    }
}
