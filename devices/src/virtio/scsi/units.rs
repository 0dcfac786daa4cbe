//! The bus: which unit has which address, and what is asked of a target itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Io, Segments};

use crate::scsi::{Done, ScsiUnit, Sense};

/// The highest target.
pub const MAX_TARGET: u8 = 255;
/// The highest unit of a target (virtio 1.2, 5.6.4).
pub const MAX_LUN: u16 = 16383;

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Its target.
    pub target: u8,
    /// Its number there, at most [`MAX_LUN`].
    pub lun: u16,
}

impl Address {
    /// Reads the eight bytes of a request: one, the target, the unit in two bytes (5.6.6.1).
    pub(super) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [1, target, high, low, ..] = bytes else {
            return None;
        };
        let lun = u16::from_be_bytes([high, low]) & MAX_LUN;
        Some(Self { target, lun })
    }

    /// As a request, or an event, has it.
    pub(super) fn bytes(self) -> [u8; 8] {
        let [high, low] = self.lun.to_be_bytes();
        // Flat addressing where a byte does not do.
        let flat = if self.lun > 255 { 0x40 } else { 0 };
        [1, self.target, high | flat, low, 0, 0, 0, 0]
    }
}

/// Why a unit cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    /// Another one is there.
    #[error("lun already used: scsi-id {} lun {} has a device", .0.target, .0.lun)]
    Taken(Address),
    /// Every address has a unit.
    #[error("no free target on the bus: give scsi-id and lun of a place that is free")]
    Full,
}

/// A unit on the bus, and how many requests are on their way to it.
#[derive(Debug)]
pub(super) struct Seated {
    pub(super) unit: Arc<ScsiUnit>,
    busy: AtomicUsize,
}

/// All units.
#[derive(Debug, Default)]
pub(super) struct Units(Mutex<BTreeMap<Address, Arc<Seated>>>);

impl Units {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Address, Arc<Seated>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a place: what is wanted, or the first free one.
    pub(super) fn place(&self, target: Option<u8>, lun: Option<u16>) -> Result<Address, PlugError> {
        let units = self.lock();
        let free = |address: &Address| !units.contains_key(address);
        match (target, lun) {
            (Some(target), Some(lun)) => {
                let address = Address { target, lun };
                free(&address)
                    .then_some(address)
                    .ok_or(PlugError::Taken(address))
            }
            (Some(target), None) => (0..=MAX_LUN)
                .map(|lun| Address { target, lun })
                .find(free)
                .ok_or(PlugError::Full),
            (None, lun) => (0..=MAX_TARGET)
                .map(|target| Address {
                    target,
                    lun: lun.unwrap_or(0),
                })
                .find(free)
                .ok_or(PlugError::Full),
        }
    }

    pub(super) fn add(&self, address: Address, unit: Arc<ScsiUnit>) {
        let seated = Seated {
            unit,
            busy: AtomicUsize::new(0),
        };
        self.lock().insert(address, Arc::new(seated));
    }

    pub(super) fn remove(&self, unit: &Arc<ScsiUnit>) -> Option<Address> {
        let mut units = self.lock();
        let found = units.iter().find(|(_, it)| Arc::ptr_eq(&it.unit, unit));
        let address = found.map(|(address, _)| *address)?;
        let removed = units.remove(&address);
        drop(units);
        drop(removed);
        Some(address)
    }

    pub(super) fn find(&self, address: Address) -> Option<Arc<Seated>> {
        self.lock().get(&address).cloned()
    }

    /// Whether this unit is on the bus.
    pub(super) fn has(&self, unit: &Arc<Seated>) -> bool {
        self.lock().values().any(|it| Arc::ptr_eq(it, unit))
    }

    /// Every unit, with its address.
    pub(super) fn all(&self) -> Vec<(Address, Arc<Seated>)> {
        let units = self.lock();
        units
            .iter()
            .map(|(at, unit)| (*at, Arc::clone(unit)))
            .collect()
    }

    /// The units of a target, by number.
    fn luns(&self, target: u8) -> Vec<u16> {
        let range = Address { target, lun: 0 }..=Address {
            target,
            lun: u16::MAX,
        };
        self.lock().range(range).map(|(at, _)| at.lun).collect()
    }

    /// The unit that is asked, if it is not its target that answers.
    pub(super) fn asked(&self, address: Address, cdb: &[u8]) -> Option<Arc<Seated>> {
        let asks_for_luns = cdb.first() == Some(&REPORT_LUNS);
        self.find(address).filter(|_| !asks_for_luns)
    }

    /// Answers a command as a target does, in place of its units; `None` if there is no such target.
    pub(super) fn answer(&self, target: u8, cdb: &[u8], into: &Segments) -> Option<Done> {
        let luns = self.luns(target);
        if luns.is_empty() {
            return None;
        }
        Some(match of_target(&luns, cdb) {
            Ok((answer, limit)) => {
                let len = (answer.len() as u64).min(limit).min(into.len());
                into.all().part(0, len).copy_from(&answer);
                Done::moved(len)
            }
            Err(sense) => Done::refused(sense),
        })
    }
}

const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const REPORT_LUNS: u8 = 0xa0;

/// What a target answers in place of a unit that is not there, and of which are (SPC-4, 6.33).
fn of_target(luns: &[u16], cdb: &[u8]) -> Result<(Vec<u8>, u64), Sense> {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |all, &byte| all << 8 | u64::from(byte))
    };
    let limit = |from, to| number(cdb.get(from..to).unwrap_or_default());
    match cdb.first() {
        Some(&REPORT_LUNS) => {
            // Unit 0 is always named: it is whom one asks.
            let named = luns.iter().copied().filter(|&lun| lun != 0);
            let entries = std::iter::once(0).chain(named).map(|lun| {
                let address = Address { target: 0, lun };
                let [_, _, high, low, ..] = address.bytes();
                [high, low, 0, 0, 0, 0, 0, 0]
            });
            let entries = entries.flatten().collect::<Vec<_>>();
            let len = u32::try_from(entries.len()).unwrap_or(0);
            let mut answer = len.to_be_bytes().to_vec();
            answer.extend([0; 4]);
            answer.extend(entries);
            Ok((answer, limit(6, 10)))
        }
        Some(&INQUIRY) => {
            // Could be there, and is not.
            let mut answer = vec![0x7f, 0, 5, 2, 31, 0, 0, 0];
            answer.resize(36, b' ');
            Ok((answer, limit(3, 5)))
        }
        Some(&REQUEST_SENSE) => Ok((Sense::NO_SUCH_UNIT.bytes().to_vec(), limit(4, 5))),
        _ => Err(Sense::NO_SUCH_UNIT),
    }
}

impl Seated {
    /// Does a command.
    pub(super) async fn execute(
        &self,
        io: &Io,
        cdb: &[u8],
        out: &Segments,
        into: &Segments,
    ) -> Done {
        let _busy = Busy::new(&self.busy);
        self.unit.execute(io, cdb, out, into).await
    }

    /// Whether no request is on its way to the unit.
    pub(super) fn is_quiet(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }
}

/// A request on its way.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
