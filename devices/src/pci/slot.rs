//! A hot-plug slot (PCI Express Base 5.0, 6.7): what is asked of the guest, and what it answered.
//!
//! ```text
//!                  cold plug                 ask: button pressed
//!      Empty ─────────────────────► On ─────────────────────────► Asked
//!       ▲ │ ▲                       ▲ │ ▲                         │  │
//!       │ │ └──── ask ───┐ indicator│ │ └── blinking ends in "on": │  │ indicator off,
//!       │ │              │    on    │ │     the guest refuses ─────┘  │ or a reset:
//!       │ │ hot plug     │          │ ▼ indicator off               │ the card is ejected
//!       │ └───────────► Idle ───────┘ │                             │
//!       │                ▲────────────┘                             │
//!       └───────────────────────────────────────────────────────────┘
//!
//!      Idle, On ── ask, while the guest turns the card on or off ──► Wanted
//!      Wanted ──── indicator on: button pressed ───────────────────► Asked
//!      Wanted ──── indicator off, or a reset: the card is ejected ─► Empty
//! ```
//!
//! While the indicator blinks the button means "never mind" (6.7.1.3), so a request that comes then
//! waits for the guest to be done. QEMU refuses such a request, and who asks must guess when to ask
//! again.
//!
//! The slot has a button, a power indicator and link-active reporting; it has no power
//! controller and completes commands at once. The choice makes Linux' pciehp fast and leaves no
//! race: without a power controller it does not sleep a second after removal (in which it also
//! *drops* presence changes, and a disk plugged right then would never appear), and with "no
//! command completed" it waits after no register write. The "on to off" of the indicator is then
//! the guest's word that the card may be pulled (6.7.1.1.2). The five seconds between button and
//! removal are pciehp's own, for a human to change their mind; the only native event that cuts
//! them short is a surprise removal, which makes drivers fail their outstanding writes.

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use super::express::{
    BUTTON_PRESSED, HOT_PLUG_INTERRUPT, INDICATOR_BLINK, INDICATOR_OFF, INDICATOR_ON, LINK_ACTIVE,
    LINK_CHANGED, LINK_CHANGED_ENABLE, LINK_CONTROL, LINK_DISABLE, LINK_STATUS, LINK_TRAINED,
    POWER_INDICATOR, PRESENCE_CHANGED, PRESENT, SLOT_CONTROL, SLOT_STATUS,
};

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No card.
    Empty,
    /// A card that the guest does not use: not yet, or no longer.
    Idle,
    /// A card that the guest uses.
    On,
    /// A card that the host wants back, and the guest is just turning on or off.
    Wanted,
    /// A card that the guest has been asked to let go of.
    Asked,
}

/// What happens to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A card is there before the guest starts: firmware has turned it on.
    ColdPlug,
    /// A card appears under the guest's eyes.
    HotPlug,
    /// The host wants the card.
    Ask,
    /// The host wants the card while the guest is busy with it.
    AskLater,
    /// The guest turns the power indicator on.
    TurnOn,
    /// The guest ends the blinking by turning the power indicator on.
    StopBlinking,
    /// The guest turns the power indicator off.
    TurnOff,
    /// The card is gone, whatever was before.
    Pull,
    /// The machine is reset.
    Reset,
}

/// Every change of phase; what is not listed changes nothing.
pub const TRANSITIONS: &[(Phase, Event, Phase)] = &[
    (Phase::Empty, Event::ColdPlug, Phase::On),
    (Phase::Empty, Event::HotPlug, Phase::Idle),
    (Phase::Idle, Event::TurnOn, Phase::On),
    (Phase::Idle, Event::StopBlinking, Phase::On),
    (Phase::Idle, Event::Ask, Phase::Empty),
    (Phase::Idle, Event::Reset, Phase::On),
    (Phase::On, Event::Ask, Phase::Asked),
    (Phase::On, Event::TurnOff, Phase::Idle),
    (Phase::Idle, Event::AskLater, Phase::Wanted),
    (Phase::On, Event::AskLater, Phase::Wanted),
    (Phase::Wanted, Event::TurnOn, Phase::Asked),
    (Phase::Wanted, Event::StopBlinking, Phase::Asked),
    (Phase::Wanted, Event::TurnOff, Phase::Empty),
    (Phase::Wanted, Event::Reset, Phase::Empty),
    (Phase::Wanted, Event::Pull, Phase::Empty),
    (Phase::Asked, Event::TurnOff, Phase::Empty),
    (Phase::Asked, Event::StopBlinking, Phase::On),
    (Phase::Asked, Event::Reset, Phase::Empty),
    (Phase::Idle, Event::Pull, Phase::Empty),
    (Phase::On, Event::Pull, Phase::Empty),
    (Phase::Asked, Event::Pull, Phase::Empty),
];

impl Phase {
    /// Where `event` leads.
    #[must_use]
    pub fn next(self, event: Event) -> Self {
        TRANSITIONS
            .iter()
            .find(|(from, on, _)| (*from, *on) == (self, event))
            .map_or(self, |&(_, _, to)| to)
    }
}

/// The slot registers of the capability at an offset. The phase is the port's; this is only how
/// it is shown and read.
#[derive(Clone, Copy, Debug)]
pub struct SlotRegisters(pub u16);

impl SlotRegisters {
    /// Shows a card or none. With `tell`, the change is an event.
    pub fn show(self, config: &mut ConfigSpace, present: bool, tell: bool) {
        let Self(at) = self;
        let was_present = config.load16(at + SLOT_STATUS) & PRESENT != 0;
        let status = config.load16(at + SLOT_STATUS) & !PRESENT;
        let changed = if tell && was_present != present {
            PRESENCE_CHANGED
        } else {
            0
        };
        let shown = if present { PRESENT } else { 0 };
        config.store16(at + SLOT_STATUS, status | shown | changed);
        self.settle_link(config, tell);
    }

    /// The link is up while there is a card and the guest has not disabled it.
    pub fn settle_link(self, config: &mut ConfigSpace, tell: bool) {
        let Self(at) = self;
        let present = config.load16(at + SLOT_STATUS) & PRESENT != 0;
        let disabled = config.load16(at + LINK_CONTROL) & LINK_DISABLE != 0;
        let was_up = config.load16(at + LINK_STATUS) & LINK_ACTIVE != 0;
        let up = present && !disabled;
        let active = if up { LINK_ACTIVE } else { 0 };
        config.store16(at + LINK_STATUS, LINK_TRAINED | active);
        if tell && up != was_up {
            self.raise(config, LINK_CHANGED);
        }
    }

    /// The attention button is pressed.
    pub fn press(self, config: &mut ConfigSpace) {
        self.raise(config, BUTTON_PRESSED);
    }

    fn raise(self, config: &mut ConfigSpace, event: u16) {
        let status = config.load16(self.0 + SLOT_STATUS);
        config.store16(self.0 + SLOT_STATUS, status | event);
    }

    /// Sets the power indicator as firmware leaves it: on over a card, off over an empty slot.
    pub fn light(self, config: &mut ConfigSpace, on: bool) {
        let control = config.load16(self.0 + SLOT_CONTROL) & !POWER_INDICATOR;
        let indicator = if on { INDICATOR_ON } else { INDICATOR_OFF };
        config.store16(self.0 + SLOT_CONTROL, control | indicator);
    }

    /// The power indicator as the guest has set it.
    #[must_use]
    pub fn indicator(self, config: &ConfigSpace) -> u16 {
        config.load16(self.0 + SLOT_CONTROL) & POWER_INDICATOR
    }

    /// What a change of the power indicator says.
    #[must_use]
    pub fn event(before: u16, after: u16) -> Option<Event> {
        match (before, after) {
            (before, after) if before == after => None,
            (_, INDICATOR_OFF) => Some(Event::TurnOff),
            (INDICATOR_BLINK, INDICATOR_ON) => Some(Event::StopBlinking),
            (_, INDICATOR_ON) => Some(Event::TurnOn),
            _ => None,
        }
    }

    /// Whether an event waits that the guest wants an interrupt for (6.7.3.4).
    #[must_use]
    pub fn interrupt(self, config: &ConfigSpace) -> bool {
        let control = config.load16(self.0 + SLOT_CONTROL);
        let status = config.load16(self.0 + SLOT_STATUS);
        let wanted = control & status & (BUTTON_PRESSED | PRESENCE_CHANGED) != 0
            || control & LINK_CHANGED_ENABLE != 0 && status & LINK_CHANGED != 0;
        control & HOT_PLUG_INTERRUPT != 0 && wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PHASES: [Phase; 5] = [
        Phase::Empty,
        Phase::Idle,
        Phase::On,
        Phase::Wanted,
        Phase::Asked,
    ];

    #[test]
    fn every_phase_but_empty_can_be_pulled() {
        for phase in PHASES {
            assert_eq!(phase.next(Event::Pull), Phase::Empty);
        }
    }

    #[test]
    fn no_pair_of_phase_and_event_is_listed_twice() {
        for (index, (from, event, _)) in TRANSITIONS.iter().enumerate() {
            let again = TRANSITIONS
                .iter()
                .skip(index + 1)
                .any(|(other, on, _)| (other, on) == (from, event));
            assert!(!again, "{from:?} on {event:?}");
        }
    }

    proptest! {
        /// A guest can only make a card disappear that the host has asked for.
        #[test]
        fn the_guest_alone_never_empties_a_slot(
            events in prop::collection::vec(prop::sample::select(vec![
                Event::TurnOn, Event::TurnOff, Event::StopBlinking,
            ]), 0..20),
            hot in any::<bool>(),
        ) {
            let plug = if hot { Event::HotPlug } else { Event::ColdPlug };
            let end = events.into_iter().fold(Phase::Empty.next(plug), Phase::next);
            prop_assert!(end == Phase::On || end == Phase::Idle);
        }
    }
}
