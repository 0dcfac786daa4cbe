//! One bus: which function sits in which slot. Pure bookkeeping.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::address::SlotAddress;
use super::error::PciError;
use super::function::PciFunction;

/// What kind of slots a bus has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// The root bus: 32 slots, no hot-plug.
    Root,
    /// Behind a PCI Express port: slot 0 only, hot-pluggable.
    Port,
    /// Behind a bridge to conventional PCI: 32 slots, and nobody who would tell a guest of a card.
    Conventional,
}

impl BusKind {
    /// Whether cards can come while the machine runs.
    #[must_use]
    pub const fn takes_hot_plug(self) -> bool {
        matches!(self, Self::Port)
    }
}

/// A bus and its functions.
pub struct PciBus {
    name: String,
    kind: BusKind,
    functions: Mutex<BTreeMap<SlotAddress, Arc<dyn PciFunction>>>,
}

impl PciBus {
    /// An empty bus.
    #[must_use]
    pub fn new(name: String, kind: BusKind) -> Arc<Self> {
        Arc::new(Self {
            name,
            kind,
            functions: Mutex::new(BTreeMap::new()),
        })
    }

    /// The bus's name: `pcie.0`, or the id of its port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of slots it has.
    #[must_use]
    pub const fn kind(&self) -> BusKind {
        self.kind
    }

    /// The function at `address`.
    #[must_use]
    pub fn function(&self, address: SlotAddress) -> Option<Arc<dyn PciFunction>> {
        self.lock().get(&address).cloned()
    }

    /// All functions, in the order of their addresses.
    #[must_use]
    pub fn functions(&self) -> Vec<(SlotAddress, Arc<dyn PciFunction>)> {
        self.lock()
            .iter()
            .map(|(&address, function)| (address, Arc::clone(function)))
            .collect()
    }

    /// The functions of the device in slot `device`, in the order of their addresses.
    #[must_use]
    pub fn functions_of(&self, device: u8) -> Vec<(SlotAddress, Arc<dyn PciFunction>)> {
        let mut functions = self.functions();
        functions.retain(|(address, _)| address.device() == device);
        functions
    }

    /// Whether nothing is plugged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The bridge through which a configuration access for bus `number` goes.
    #[must_use]
    pub fn bridge_to(&self, number: u8) -> Option<Arc<dyn PciFunction>> {
        self.lock()
            .values()
            .find(|function| {
                function
                    .bridge()
                    .is_some_and(|bridge| bridge.numbers().forwards(number))
            })
            .cloned()
    }

    /// Puts a function into a slot: the one asked for, or the lowest free one.
    ///
    /// # Errors
    /// The slot is taken or does not exist, or none is free.
    pub fn insert(
        &self,
        wanted: Option<SlotAddress>,
        function: Arc<dyn PciFunction>,
    ) -> Result<SlotAddress, PciError> {
        let mut functions = self.lock();
        let address = match wanted {
            Some(address) => {
                self.admit(&functions, address, function.id())?;
                address
            }
            None => self
                .lowest_free(&functions)
                .ok_or_else(|| PciError::BusFull {
                    bus: self.name.clone(),
                    id: function.id().to_owned(),
                })?,
        };
        functions.insert(address, function);
        Ok(address)
    }

    fn admit(
        &self,
        functions: &BTreeMap<SlotAddress, Arc<dyn PciFunction>>,
        address: SlotAddress,
        id: &str,
    ) -> Result<(), PciError> {
        if self.kind == BusKind::Port && address.device() != 0 {
            return Err(PciError::OneSlotOnly {
                bus: self.name.clone(),
                address,
                id: id.to_owned(),
            });
        }
        if let Some(holder) = functions.get(&address) {
            return Err(PciError::SlotTaken {
                bus: self.name.clone(),
                address,
                by: display_id(holder.id()).to_owned(),
                id: id.to_owned(),
            });
        }
        Ok(())
    }

    fn lowest_free(
        &self,
        functions: &BTreeMap<SlotAddress, Arc<dyn PciFunction>>,
    ) -> Option<SlotAddress> {
        let slots = match self.kind {
            BusKind::Root | BusKind::Conventional => 32,
            BusKind::Port => 1,
        };
        let taken = |device| functions.keys().any(|address| address.device() == device);
        (0..slots)
            .find(|&device| !taken(device))
            .map(SlotAddress::slot)
    }

    /// Takes a function out of its slot.
    pub fn remove(&self, address: SlotAddress) -> Option<Arc<dyn PciFunction>> {
        self.lock().remove(&address)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SlotAddress, Arc<dyn PciFunction>>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an error names a function without an id.
fn display_id(id: &str) -> &str {
    if id.is_empty() { "the machine" } else { id }
}
