//! A unit: who it is, what medium is in, what it has to tell the guest first.
//!
//! ```text
//!   Closed, medium ◄── insert, close ── Open, empty
//!        │  ▲                              ▲
//!   open │  │ close                        │ remove
//!        ▼  │                              │
//!   Open, medium ──────────────────────────┘         (a disk stays in the first for life)
//! ```
//!
//! A request takes a seat at the gate of its medium, under the lock that guards which medium is in:
//! whoever takes the medium out and then drains its node waits for every request on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use block::engine::executor::own_waker;
use block::job::{ErrorAction, OnError};
use block::throttle::Direction;
use block::{
    Account, BlockError, Drain, Histograms, Io, Limiter, NodeRef, Root, Seat, Segments, Totals,
};

use super::answers::{self, Medium};
use super::command::Command;
use super::optical::{self, TrayNews};
use super::sense::Sense;
use crate::failures::Failures;
use crate::geometry::Geometry;
use crate::notice::{Notice, NoticeSink};

/// The block of a CD.
pub const CD_BLOCK: u32 = 2048;

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Disk,
    /// A CD drive.
    Cd,
}

impl Kind {
    /// The peripheral device type (SPC-4, 6.6.2).
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Disk => 0,
            Self::Cd => 5,
        }
    }
}

/// What a unit is made of, resolved.
#[derive(Clone, Debug)]
pub struct ScsiUnitSpec {
    /// The device's id or QOM path, for notices and logs.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Its maker: the guest sees 8 characters.
    pub vendor: String,
    /// Its name: the guest sees 16 characters.
    pub product: String,
    /// Its version: the guest sees 4 characters.
    pub version: String,
    /// Its serial number; the guest sees 36 characters.
    pub serial: String,
    /// A name for the page of identifiers; without, the serial number.
    pub device_id: Option<String>,
    /// Its worldwide name, for the same page.
    pub wwn: Option<u64>,
    /// The worldwide name of its target's port.
    pub port_wwn: Option<u64>,
    /// The number of its target's port.
    pub port_index: Option<u16>,
    /// The version of SPC that it claims: 3 (SPC) to 7 (SPC-5).
    pub scsi_version: u8,
    /// Rotations of its medium in a minute, 1 of one that does not rotate, 0 where that is not said.
    pub rotation_rate: u16,
    /// What the guest is told of cylinders, of a disk.
    pub geometry: Option<Geometry>,
    /// Whether it says of itself that its medium can be taken out.
    pub removable: bool,
    /// The guest's unit of addressing in bytes: a power of two, 512 to 32768; 2048 of a CD.
    pub logical_block_size: u32,
    /// The unit the guest should write in, in bytes: a power of two, at least the logical one.
    pub physical_block_size: u32,
    /// Whether a write may stay in a cache until the guest flushes.
    pub write_cache: bool,
    /// What is done when a read fails, and when anything else does.
    pub on_error: [OnError; 2],
    /// Where I/O errors and the tray's moves are told.
    pub notices: NoticeSink,
}

/// Why a unit cannot be made of a spec, or does not take a medium.
#[derive(Debug, thiserror::Error)]
pub enum ScsiUnitError {
    /// The node cannot be a medium.
    #[error(transparent)]
    Node(#[from] BlockError),
    /// A number out of range.
    #[error("Property '{name}' takes a power of two from {least} to 32768, not {came}")]
    BlockSize {
        /// The property.
        name: &'static str,
        /// The least that it takes.
        least: u32,
        /// What came.
        came: u32,
    },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Why it was not done; `None`: it was.
    pub sense: Option<Sense>,
    /// Bytes moved to or from the guest.
    pub moved: u64,
    /// The guest's buffers are shorter than what it asked to move.
    pub overrun: bool,
    /// The host failed and the machine stops: it is to be done again when that goes on, and the guest
    /// is told nothing.
    pub waits: bool,
}

impl Done {
    pub(crate) fn moved(moved: u64) -> Self {
        Self {
            moved,
            ..Self::default()
        }
    }

    pub(crate) fn refused(sense: Sense) -> Self {
        Self {
            sense: Some(sense),
            ..Self::default()
        }
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub(super) enum Stop {
    Sense(Sense),
    Overrun,
    /// The host failed; whether at a write.
    Host(std::io::Error, bool),
}

impl From<Sense> for Stop {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    medium: Option<Root>,
    pub(super) attention: Option<Sense>,
    pub(super) open: bool,
    pub(super) locked: bool,
    pub(super) news: TrayNews,
}

/// A logical unit.
#[derive(Debug)]
pub struct ScsiUnit {
    pub(super) spec: ScsiUnitSpec,
    state: Mutex<State>,
    pub(super) account: Account,
    /// How long requests took, where a client wants to know.
    pub(super) histograms: Histograms,
    /// What its requests ask before they go, whatever medium is in.
    limiter: Limiter,
    failures: Failures,
}

/// A request's hold on the medium. The seat goes last: whoever waits for it finds nothing held.
pub(super) struct Hold {
    pub(super) root: Root,
    seat: Seat,
}

impl ScsiUnit {
    /// A unit with `medium` in it, switched on.
    ///
    /// # Errors
    /// A block size out of range, or a node that cannot be a medium.
    pub fn new(spec: ScsiUnitSpec, medium: Option<Root>) -> Result<Self, ScsiUnitError> {
        let (logical, physical) = (spec.logical_block_size, spec.physical_block_size);
        for (name, least, came) in [
            ("logical_block_size", 512, logical),
            ("physical_block_size", logical, physical),
        ] {
            if !came.is_power_of_two() || !(least..=32768).contains(&came) {
                return Err(ScsiUnitError::BlockSize { name, least, came });
            }
        }
        let unit = Self {
            failures: Failures::new(spec.id.clone(), spec.on_error, spec.notices.clone()),
            spec,
            state: Mutex::default(),
            account: Account::new(),
            histograms: Histograms::default(),
            limiter: medium
                .as_ref()
                .map(Root::limiter)
                .cloned()
                .unwrap_or_default(),
        };
        if let Some(medium) = &medium {
            unit.check_medium(&medium.node())?;
        }
        unit.state().medium = medium;
        unit.power_on();
        Ok(unit)
    }

    /// Whether `node` can be its medium.
    ///
    /// # Errors
    /// It ends within a block, or its storage cannot move single blocks.
    pub fn check_medium(&self, node: &NodeRef) -> Result<(), BlockError> {
        // A CD's last block may be a part; it is not shown.
        let block = match self.spec.kind {
            Kind::Disk => self.spec.logical_block_size,
            Kind::Cd => 512,
        };
        node.check_disk(block)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.spec.kind
    }

    /// The bytes of one of its blocks.
    pub fn block_size(&self) -> u32 {
        self.spec.logical_block_size
    }

    /// The node of the medium that is in.
    pub fn node(&self) -> Option<NodeRef> {
        self.state().medium.as_ref().map(Root::node)
    }

    /// What its reads and writes ask before they go.
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// What it does about failures of its storage.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Has requests wait for no limits of the medium until the end of what is given back.
    pub fn hurry(&self) -> Option<Drain> {
        let medium = self.state().medium.clone();
        medium.map(|root| root.hurry())
    }

    /// What the guest has asked of it until now.
    pub fn totals(&self) -> Totals {
        self.account.totals()
    }

    /// How long its requests took, where a client wants to know.
    pub fn histograms(&self) -> &Histograms {
        &self.histograms
    }

    /// Whether the tray is open.
    pub fn is_open(&self) -> bool {
        self.state().open
    }

    /// Whether the guest keeps the medium in.
    pub fn is_locked(&self) -> bool {
        self.state().locked
    }

    /// Asks the guest to let go of the medium.
    pub fn request_eject(&self) {
        self.state().news.eject_wanted = true;
    }

    /// Opens or closes the tray from outside; whether it moved.
    pub fn move_tray(&self, open: bool) -> bool {
        let mut state = self.state();
        if state.open == open {
            return false;
        }
        state.open = open;
        state.locked = false;
        let present = state.medium.is_some();
        state.news = TrayNews {
            eject_wanted: false,
            arrived: !open && present,
            left: open,
        };
        if !open && present {
            state.attention = Some(Sense::MEDIUM_CHANGED);
        }
        true
    }

    /// Takes the medium out. Requests may still be on their way to it: its node is drained by the
    /// caller before anything else is done with it.
    pub fn take_medium(&self) -> Option<Root> {
        self.state().medium.take()
    }

    /// Puts a medium in, which was checked.
    pub fn insert_medium(&self, medium: Root) {
        let mut state = self.state();
        state.medium = Some(medium);
        if !state.open {
            state.attention = Some(Sense::MEDIUM_CHANGED);
            state.news.arrived = true;
        }
    }

    /// The node's length has changed.
    pub fn capacity_changed(&self) {
        self.state().attention = Some(Sense::CAPACITY_CHANGED);
    }

    /// Back to the state after power-on: what the guest is told first.
    pub fn power_on(&self) {
        let mut state = self.state();
        state.locked = false;
        state.attention = Some(Sense::POWER_ON);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one command with the guest's buffers: those to read from, those to fill.
    pub async fn execute(&self, io: &Io, cdb: &[u8], out: &Segments, into: &Segments) -> Done {
        let outcome = match Command::parse(cdb) {
            Ok((command, limit)) => self.obey(io, command, limit, out, into).await,
            Err(sense) => Err(sense),
        };
        outcome.unwrap_or_else(Done::refused)
    }

    async fn obey(
        &self,
        io: &Io,
        command: Command,
        limit: u32,
        out: &Segments,
        into: &Segments,
    ) -> Result<Done, Sense> {
        if !command.passes_attention()
            && let Some(sense) = self.state().attention.take()
        {
            return Err(sense);
        }
        if let Some(answer) = self.answer(command)? {
            let len = (answer.len() as u64).min(limit.into()).min(into.len());
            into.all().part(0, len).copy_from(&answer);
            return Ok(Done::moved(len));
        }
        let hold = self.hold(own_waker().await)?;
        hold.seat.pass().await;
        let node = hold.root.node();
        let moved = match self.wait_for_limits(io, command).await {
            Ok(()) => self.move_blocks(io, command, &node, out, into).await,
            Err(stop) => Err(stop),
        };
        match moved {
            Ok(()) => Ok(Done::moved(self.moves(command, out))),
            Err(Stop::Sense(sense)) => Err(sense),
            Err(Stop::Overrun) => Ok(Done {
                overrun: true,
                ..Done::default()
            }),
            Err(Stop::Host(error, write)) => {
                match self.failures.report(node.name(), &error, write) {
                    ErrorAction::Report => Err(Sense::of(&error)),
                    ErrorAction::Ignore => Ok(Done::moved(self.moves(command, out))),
                    ErrorAction::Stop => Ok(Done {
                        waits: true,
                        ..Done::default()
                    }),
                }
            }
        }
    }

    async fn wait_for_limits(&self, io: &Io, command: Command) -> Result<(), Stop> {
        let Some((direction, bytes)) = self.limited(command) else {
            return Ok(());
        };
        let passed = self.limiter.pass(io, direction, bytes).await;
        passed.map_err(|error| Stop::Host(error, direction == Direction::Write))
    }

    /// What is answered without waiting for the medium; `None` for what moves its blocks.
    fn answer(&self, command: Command) -> Result<Option<Vec<u8>>, Sense> {
        let (spec, is_cd) = (&self.spec, self.spec.kind == Kind::Cd);
        Ok(Some(match command {
            Command::TestUnitReady => {
                self.ready()?;
                Vec::new()
            }
            Command::Spin => Vec::new(),
            Command::RequestSense => {
                let sense = self.state().attention.take();
                sense.unwrap_or(Sense::NONE).bytes().to_vec()
            }
            Command::Inquiry(page) => answers::inquiry(spec, self.medium(), page)?,
            Command::ModeSense(asked) => {
                answers::mode_sense(spec, self.medium(), spec.write_cache, asked)?
            }
            Command::ReadCapacity10 => answers::capacity10(spec.logical_block_size, self.ready()?),
            Command::ReadCapacity16 => answers::capacity16(spec, self.ready()?),
            Command::Prevent(locked) => {
                self.state().locked = locked;
                Vec::new()
            }
            Command::Tray(inward) if is_cd => {
                self.move_tray_inside(!inward)?;
                Vec::new()
            }
            Command::Tray(_) => Vec::new(),
            Command::ReadToc {
                minutes,
                format,
                track,
            } if is_cd => optical::toc(
                self.ready()?.len / u64::from(CD_BLOCK),
                minutes,
                format,
                track,
            )?,
            Command::GetConfiguration if is_cd => {
                let medium = self.ready().ok();
                optical::configuration(medium.map(|medium| medium.len / u64::from(CD_BLOCK)))
            }
            Command::GetEventStatus { polled, classes } if is_cd => {
                if !polled {
                    return Err(Sense::INVALID_FIELD);
                }
                let mut state = self.state();
                let news = std::mem::take(&mut state.news);
                optical::event_status(classes, news, state.open, state.medium.is_some())
            }
            Command::ReadToc { .. }
            | Command::GetConfiguration
            | Command::GetEventStatus { .. }
            | Command::ReportLuns => return Err(Sense::INVALID_OPCODE),
            _ => return Ok(None),
        }))
    }

    /// The medium, or why there is none to be reached.
    fn ready(&self) -> Result<Medium, Sense> {
        let state = self.state();
        state.reachable()?;
        Ok(self.look(&state))
    }

    /// What is known of the medium; zeroes without one.
    fn medium(&self) -> Medium {
        self.look(&self.state())
    }

    fn look(&self, state: &State) -> Medium {
        let node = state.medium.as_ref().map(Root::node);
        node.map_or_else(Medium::default, |node| {
            let read_only = node.is_read_only() || self.spec.kind == Kind::Cd;
            Medium {
                len: node.len(),
                read_only,
                discard: !read_only,
            }
        })
    }

    fn hold(&self, waker: std::task::Waker) -> Result<Hold, Sense> {
        let state = self.state();
        let root = state.reachable()?.clone();
        let seat = root.gate().take_seat(waker);
        Ok(Hold { root, seat })
    }

    /// The guest moves the tray.
    fn move_tray_inside(&self, open: bool) -> Result<(), Sense> {
        if open && self.is_locked() {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        if self.move_tray(open) {
            let id = self.spec.id.clone();
            self.spec.notices.send(Notice::TrayMoved { id, open });
        }
        Ok(())
    }
}

impl State {
    fn reachable(&self) -> Result<&Root, Sense> {
        match &self.medium {
            _ if self.open => Err(Sense::TRAY_OPEN),
            Some(medium) => Ok(medium),
            None => Err(Sense::NO_MEDIUM),
        }
    }
}
