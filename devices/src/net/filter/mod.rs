//! Filters on a netdev: who looks at the packets between a card and its backend, copies them, takes
//! them, brings others in, or keeps them for a while.
//!
//! ```text
//!            queue rx: last filter .. first filter
//!   card ── send ───────────► Chain ───────────────► NetBackend
//!        ◄─ receive ───────── Chain ◄───────────────
//!            queue tx: last filter .. first filter
//!
//!   Dump      every packet into a file, and on
//!   Outlet    every packet into a chardev, and on (mirror) or not (redirector)
//!   Inlet     packets out of a chardev, to whoever stands behind this filter
//!   Hold      packets wait together, and go on when their time is over
//! ```
//!
//! A netdev without filters knows nothing of this room: its card speaks with the backend. The first
//! filter puts a [`Chain`] between them, which is a backend to the card and a card to the backend;
//! the last one that goes takes it out again, with the few packets that the card had not taken.
//!
//! Packets that come are filtered before the card has room for them, as many as a small [`Store`]
//! holds; so who watches sees them even if no driver runs. Everything is on the reactor's thread, and
//! nothing is allocated for a packet. **What a peer of a chardev does not take is dropped and
//! counted**: a slow watcher never stops a guest. What comes in by a chardev waits there while there is no
//! room for it, so its sender is slowed.
//!
//! This room knows packets and chardevs; it must never know queues of a guest, nor QMP. Read next:
//! [`chain`](mod@chain), then `dump`, `outlet`, `inlet`, `hold`.

mod chain;
mod dump;
mod hold;
mod inlet;
mod outlet;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fdset::{Door, Escrow, OpenError};

pub use self::chain::Chain;
use self::dump::Dump;
use self::hold::Hold;
use self::inlet::Inlet;
use self::outlet::Outlet;
pub use self::store::Store;
use super::backend::NetBackend;
use super::framing::Frames;
use super::netdev::Netdev;
use super::packet::Packet;
use super::registry::Netdevs;
use crate::chardev::{ChardevError, ChardevRegistry};
use crate::reactor::Reactor;

/// Where a packet is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the netdev, which receives it: the guest has sent it.
    Rx,
    /// From the netdev, which sends it: it is for the guest.
    Tx,
}

/// Which packets a filter sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queue {
    /// Those of the guest.
    Rx,
    /// Those for the guest.
    Tx,
    /// Both.
    #[default]
    All,
}

impl Queue {
    /// The ways on which it sees packets.
    fn ways(self) -> &'static [Way] {
        match self {
            Self::Rx => &[Way::Rx],
            Self::Tx => &[Way::Tx],
            Self::All => &[Way::Rx, Way::Tx],
        }
    }
}

/// Where among the others a filter stands, in the order of packets from the netdev.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// Before all.
    Head,
    /// Behind all.
    #[default]
    Tail,
    /// Before that filter.
    Before(String),
    /// Behind that filter.
    Behind(String),
}

/// What a filter is to be, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// Its id.
    pub id: String,
    /// The netdev it is on.
    pub netdev: String,
    /// Which packets it sees.
    pub queue: Queue,
    /// Whether it is switched on.
    pub on: bool,
    /// Where it stands.
    pub position: Position,
    /// What it does.
    pub kind: FilterKind,
}

impl FilterSpec {
    /// The name of the file that it opens, if it does.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        match &self.kind {
            FilterKind::Dump { file, .. } => Some(file),
            FilterKind::Mirror { .. }
            | FilterKind::Redirector { .. }
            | FilterKind::Buffer { .. } => None,
        }
    }
}

/// What a filter does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// Writes packets into a file.
    Dump {
        /// The file: any name that `fdset::open` takes.
        file: String,
        /// How many bytes of a packet are written, at most.
        longest: usize,
    },
    /// Copies packets into a chardev.
    Mirror {
        /// The chardev.
        outdev: String,
        /// How they are framed there.
        frames: Frames,
    },
    /// Leads packets into a chardev, and those of another one back in; at least one is there.
    Redirector {
        /// Where packets come in.
        indev: Option<String>,
        /// Where packets go.
        outdev: Option<String>,
        /// How they are framed in both.
        frames: Frames,
    },
    /// Keeps packets for a while.
    Buffer {
        /// For how long, at most.
        interval: Duration,
    },
}

/// Why a filter cannot be had. The texts that clients match on are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There is no such netdev.
    #[error("Parameter 'netdev' expects a network backend id")]
    NoNetdev,
    /// The netdev has several queues, whose packets overtake each other.
    #[error(
        "multiqueue is not supported: netdev '{netdev}' has {queues} queues, and filters need one"
    )]
    Multiqueue {
        /// The netdev.
        netdev: String,
        /// How many it has.
        queues: u16,
    },
    /// The packets are moved by somebody else.
    #[error(
        "Vhost is not supported: the packets of netdev '{0}' never come by here; use a tap with \
         vhost=off, a stream, dgram, socket or hubport"
    )]
    Served(String),
    /// There is no filter with the id that a position names.
    #[error("filter '{0}' not found")]
    NotFound(String),
    /// The filter that a position names is on another netdev.
    #[error("filter '{0}' belongs to a different netdev")]
    Elsewhere(String),
    /// There is no chardev with this id.
    #[error("{which}Device '{id}' not found")]
    NoDevice {
        /// Which of two is meant: `IN `, `OUT `, or nothing.
        which: &'static str,
        /// What was looked for.
        id: String,
    },
    /// The chardev cannot be had.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The host refused something else.
    #[error("filter '{id}': {what} failed")]
    Host {
        /// The filter.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What becomes of a packet behind a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes on.
    Passes,
    /// It ends here.
    Taken,
}

/// Where a filter stands: what its parts must know to bring packets in.
#[derive(Debug)]
struct Place {
    id: String,
    chain: Weak<Chain>,
    queue: Queue,
    on: AtomicBool,
}

impl Place {
    /// Whether packets of the netdev have a header that says something.
    fn is_headed(&self) -> bool {
        let chain = self.chain.upgrade();
        chain.is_some_and(|chain| chain.abilities().header)
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }
}

/// A filter in its chain.
pub struct Filter {
    place: Arc<Place>,
    work: Work,
}

enum Work {
    Dump(Dump),
    Mirror(Arc<Outlet>),
    Redirector {
        inlet: Option<Arc<Inlet>>,
        outlet: Option<Arc<Outlet>>,
    },
    Buffer(Arc<Hold>),
}

impl Filter {
    fn sees(&self, way: Way) -> bool {
        self.place.is_on() && self.place.queue.ways().contains(&way)
    }

    /// Whether a packet can come; false only of one that keeps packets and has no room.
    fn has_room(&self, way: Way) -> bool {
        match &self.work {
            Work::Buffer(hold) if self.sees(way) => hold.has_room(way),
            _ => true,
        }
    }

    /// A packet comes by.
    fn look(&self, way: Way, packet: &Packet<'_>) -> Verdict {
        if !self.sees(way) {
            return Verdict::Passes;
        }
        match &self.work {
            Work::Dump(dump) => {
                dump.write(packet);
                Verdict::Passes
            }
            Work::Mirror(outlet) => {
                outlet.put(packet);
                Verdict::Passes
            }
            Work::Redirector {
                outlet: Some(outlet),
                ..
            } => {
                outlet.put(packet);
                Verdict::Taken
            }
            Work::Redirector { outlet: None, .. } => Verdict::Passes,
            Work::Buffer(hold) => {
                hold.keep(way, packet);
                Verdict::Taken
            }
        }
    }

    /// There is room behind it again, or it was switched on or off. On the reactor's thread.
    fn go_on(&self) {
        match &self.work {
            Work::Redirector {
                inlet: Some(inlet), ..
            } => inlet.go_on(),
            Work::Buffer(hold) => hold.go_on(),
            Work::Redirector { inlet: None, .. } | Work::Dump(_) | Work::Mirror(_) => {}
        }
    }
}

/// A filter on a netdev; dropping it takes it away.
pub struct NetFilter {
    netdev: Arc<Netdev>,
    chain: Arc<Chain>,
    filter: Arc<Filter>,
    reactor: Reactor,
}

impl NetFilter {
    /// The id of its netdev.
    #[must_use]
    pub fn netdev(&self) -> &str {
        self.netdev.id()
    }

    /// Switches it on or off.
    pub fn switch(&self, on: bool) {
        self.filter.place.on.store(on, Ordering::Release);
        let filter = Arc::downgrade(&self.filter);
        let told = self.reactor.run(move || {
            if let Some(filter) = filter.upgrade() {
                filter.go_on();
            }
        });
        if let Err(error) = told {
            tracing::error!(%error, filter = %self.filter.place.id, "a filter is not told");
        }
    }
}

impl Drop for NetFilter {
    fn drop(&mut self) {
        // What it keeps goes on, and nothing more comes in by it.
        self.switch(false);
        self.settle();
        if self.chain.remove(&self.filter)
            && let Err(error) = self.netdev.take_out()
        {
            tracing::error!(%error, netdev = self.netdev(), "its card cannot hear of packets");
        }
        // A handler that has begun may hold it until it returns.
        self.settle();
    }
}

impl NetFilter {
    fn settle(&self) {
        if let Err(error) = self.reactor.settle() {
            tracing::error!(%error, "dev-io cannot be waited for");
        }
    }
}

impl fmt::Debug for NetFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NetFilter")
            .field(&self.filter.place.id)
            .finish()
    }
}

impl Netdevs {
    /// Puts a filter on a netdev; the chardevs that it names are of `chardevs`. A name that it uses up
    /// is used up at the end, when everything has worked.
    ///
    /// # Errors
    /// The netdev cannot have filters, or something cannot be had; then nothing has changed.
    pub fn add_filter(
        &self,
        spec: &FilterSpec,
        door: &Door,
        chardevs: &ChardevRegistry,
    ) -> Result<NetFilter, FilterError> {
        let netdev = self.find(&spec.netdev).ok_or(FilterError::NoNetdev)?;
        let existing = netdev.chain();
        let chain = match &existing {
            Some(chain) => Arc::clone(chain),
            None => Chain::before(netdev)?,
        };
        let at = self.place_of(&spec.position, &chain)?;
        let escrow = Arc::new(Escrow::new(Arc::clone(door.registry())));
        let door = door.clone().with_escrow(Arc::clone(&escrow));
        let place = Arc::new(Place {
            id: spec.id.clone(),
            chain: Arc::downgrade(&chain),
            queue: spec.queue,
            // Until it stands there.
            on: AtomicBool::new(false),
        });
        let reactor = chain.reactor().clone();
        let work = work(&spec.kind, &place, &door, chardevs, &reactor)?;
        let filter = Arc::new(Filter { place, work });
        chain.insert(at, &filter);
        if existing.is_none() {
            netdev.put_between(&chain).map_err(|source| {
                chain.remove(&filter);
                FilterError::Host {
                    id: spec.id.clone(),
                    what: "watching the netdev's descriptors",
                    source,
                }
            })?;
        }
        escrow.use_up();
        let filter = NetFilter {
            netdev: Arc::clone(netdev),
            chain,
            filter,
            reactor,
        };
        if spec.on {
            filter.switch(true);
        }
        Ok(filter)
    }

    /// Where in `chain` a new filter goes.
    fn place_of(&self, position: &Position, chain: &Chain) -> Result<usize, FilterError> {
        let (id, behind) = match position {
            Position::Head => return Ok(0),
            Position::Tail => return Ok(usize::MAX),
            Position::Before(id) => (id, 0),
            Position::Behind(id) => (id, 1),
        };
        if let Some(at) = chain.find(id) {
            return Ok(at + behind);
        }
        let mut chains = self.iter().filter_map(|netdev| netdev.chain());
        Err(if chains.any(|chain| chain.find(id).is_some()) {
            FilterError::Elsewhere(id.clone())
        } else {
            FilterError::NotFound(id.clone())
        })
    }
}

/// What a filter does its work with.
fn work(
    kind: &FilterKind,
    place: &Arc<Place>,
    door: &Door,
    chardevs: &ChardevRegistry,
    reactor: &Reactor,
) -> Result<Work, FilterError> {
    let find = |which, id: &String| {
        let found = chardevs.find(id);
        found.map_err(|_| FilterError::NoDevice {
            which,
            id: id.clone(),
        })
    };
    Ok(match kind {
        FilterKind::Dump { file, longest } => {
            Work::Dump(Dump::open(&place.id, file, *longest, door)?)
        }
        FilterKind::Mirror { outdev, frames } => {
            Work::Mirror(Outlet::at(&find("", outdev)?, place, *frames)?)
        }
        FilterKind::Redirector {
            indev,
            outdev,
            frames,
        } => {
            let indev = indev.as_ref().map(|id| find("IN ", id)).transpose()?;
            let outdev = outdev.as_ref().map(|id| find("OUT ", id)).transpose()?;
            let inlet = indev.map(|chardev| Inlet::at(&chardev, place, *frames));
            let outlet = outdev.map(|chardev| Outlet::at(&chardev, place, *frames));
            Work::Redirector {
                inlet: inlet.transpose()?,
                outlet: outlet.transpose()?,
            }
        }
        FilterKind::Buffer { interval } => {
            let hold = Hold::new(place, *interval, reactor);
            Work::Buffer(hold.map_err(|source| FilterError::Host {
                id: place.id.clone(),
                what: "making its timer",
                source,
            })?)
        }
    })
}
