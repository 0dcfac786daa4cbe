//! The tree of buses: who is plugged where, and which function a configuration access reaches.
//!
//! ```text
//!   plug(bus, address, function) ──► PciBus::insert ──► attach ──► Bridge::plugged ──► guest
//!   request_unplug(id) ──► Bridge::request_unplug ──► guest ──► eject ──► Notice::Unplugged
//!   config access (bus 0)  ──► root bus ──► function
//!   config access (bus n)  ──► the bridge whose numbers hold n ──► … ──► function
//! ```
//!
//! The tree drives the [`Lifecycle`] of everything plugged into it, so the VM calls the tree and
//! not the functions. Which addresses the guest's firmware would hand out is [`super::setup`]'s
//! affair.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::address::{Bdf, SlotAddress};
use super::bus::{BusKind, PciBus};
use super::config::CONVENTIONAL;
use super::error::PciError;
use super::function::{Attachment, PciFunction, Spaces};
use super::host_bridge::HostBridge;
use super::inspect::{BridgeView, FunctionView};
use super::intx::Wires;
use super::regs;
use crate::irq::IrqLine;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};

/// The name of the root bus.
pub const ROOT_BUS: &str = "pcie.0";

/// What a PCI host needs.
pub struct PciHostSpec {
    /// Where BARs are mapped.
    pub spaces: Spaces,
    /// The lines behind the root's wires INTA to INTD: device `d`, pin `p` (0 for INTA) is
    /// connected to line `(d + p) & 3`.
    pub intx: [Arc<dyn IrqLine>; 4],
}

/// The PCI Express hierarchy of the machine.
pub struct PciHost {
    root: Arc<PciBus>,
    spaces: Spaces,
    wires: Wires,
    started: AtomicBool,
}

/// A bus with what it takes to plug into it.
struct Socket {
    bus: Arc<PciBus>,
    bridge: Option<Arc<dyn PciFunction>>,
    wires: Wires,
}

impl Socket {
    /// Whether a card may come while the machine runs: the guest is told of it, or has not come to
    /// this bus yet and will find it there.
    fn takes_cards(&self) -> bool {
        let bridge = self.bridge.as_deref().and_then(PciFunction::bridge);
        let is_unseen = || bridge.is_some_and(|bridge| bridge.numbers().secondary == 0);
        match self.bus.kind() {
            BusKind::Root => false,
            BusKind::Port => true,
            BusKind::Conventional => is_unseen(),
        }
    }
}

impl PciHost {
    /// A host with its bridge to the CPUs at 00.0 and nothing else.
    #[must_use]
    pub fn new(spec: PciHostSpec) -> Arc<Self> {
        let host = Arc::new_cyclic(|host| {
            let root = PciBus::new(ROOT_BUS.to_owned(), BusKind::Root);
            let bridge = HostBridge::new(Weak::clone(host));
            let inserted = root.insert(Some(SlotAddress::slot(0)), Arc::new(bridge));
            debug_assert!(inserted.is_ok(), "the bus is empty");
            Self {
                root,
                spaces: spec.spaces,
                wires: Wires::new(spec.intx),
                started: AtomicBool::new(false),
            }
        });
        if let Some(bridge) = host.root.function(SlotAddress::slot(0)) {
            bridge.attach(Attachment {
                spaces: host.spaces.clone(),
                address: SlotAddress::slot(0),
                wires: host.wires.clone(),
                bus: BusKind::Root,
            });
        }
        host
    }

    /// From now on the guest has seen its buses: `pcie.0` takes no more devices, and the ports
    /// tell the guest of theirs.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    fn started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Plugs a function into the bus of this name (`None`: `pcie.0`), at an address or at the
    /// lowest free slot. Returns where it went.
    ///
    /// # Errors
    /// The bus is unknown, full, or takes none while the machine runs; the slot is taken.
    pub fn plug(
        &self,
        bus: Option<&str>,
        address: Option<SlotAddress>,
        function: Arc<dyn PciFunction>,
    ) -> Result<SlotAddress, PciError> {
        let name = bus.unwrap_or(ROOT_BUS);
        let socket = self.socket(name).ok_or_else(|| PciError::NoSuchBus {
            bus: name.to_owned(),
        })?;
        let kind = socket.bus.kind();
        let closed = || PciError::NotHotpluggable {
            bus: name.to_owned(),
        };
        if self.started() && !socket.takes_cards() {
            return Err(closed());
        }
        if kind == BusKind::Conventional && function.bridge().is_some() {
            return Err(PciError::NeedsExpress {
                bus: name.to_owned(),
                id: function.id().to_owned(),
            });
        }
        check_multifunction(&socket.bus, address, function.as_ref())?;
        let address = socket.bus.insert(address, Arc::clone(&function))?;
        // A guest that has opened the bus in between may have looked at the slot before.
        if self.started() && !socket.takes_cards() {
            socket.bus.remove(address);
            return Err(closed());
        }
        function.attach(Attachment {
            spaces: self.spaces.clone(),
            address,
            wires: socket.wires,
            bus: kind,
        });
        // A hot-plugged device of several functions comes to life with its function 0.
        if address.function() == 0
            && let Some(bridge) = socket.bridge.as_deref().and_then(PciFunction::bridge)
        {
            bridge.plugged(self.started());
        }
        Ok(address)
    }

    /// Asks the guest to let go of the device `id`; the news of its end is
    /// [`Notice::Unplugged`]. Before the machine has started, nobody needs to be asked.
    ///
    /// # Errors
    /// No such device, or one on a bus without hot-plug; or the guest is being asked already.
    pub fn request_unplug(&self, id: &str) -> Result<(), PciError> {
        let (socket, address) = self
            .locate(id)
            .ok_or_else(|| PciError::NoSuchDevice { id: id.to_owned() })?;
        let Some(bridge) = socket.bridge.as_deref().and_then(PciFunction::bridge) else {
            return Err(PciError::NotHotpluggable {
                bus: socket.bus.name().to_owned(),
            });
        };
        if self.started() {
            return bridge.request_unplug(address, id);
        }
        bridge.eject(address);
        Ok(())
    }

    /// Takes the device `id` off its bus without asking or telling anybody: for a plug that has
    /// to be undone. `true` if there was one.
    pub fn withdraw(&self, id: &str) -> bool {
        let Some((socket, address)) = self.locate(id) else {
            return false;
        };
        let Some(function) = socket.bus.remove(address) else {
            return false;
        };
        function.detach();
        if let Some(bridge) = socket.bridge.as_deref().and_then(PciFunction::bridge) {
            bridge.withdrawn(self.started());
        }
        true
    }

    /// The function of the device `id`; a part of the machine has none.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<dyn PciFunction>> {
        let (socket, address) = self.locate(id)?;
        socket.bus.function(address)
    }

    /// The names of all buses, `pcie.0` first.
    #[must_use]
    pub fn bus_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.walk(|socket| {
            names.push(socket.bus.name().to_owned());
            None::<()>
        });
        names
    }

    /// The root bus.
    #[must_use]
    pub fn root(&self) -> &Arc<PciBus> {
        &self.root
    }

    /// The function that answers at `bdf`, as the bridges are programmed now.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        self.bus(bdf.bus)?.function(bdf.slot)
    }

    /// The bus of this number, as the bridges are programmed now.
    fn bus(&self, number: u8) -> Option<Arc<PciBus>> {
        let mut bus = Arc::clone(&self.root);
        if number == 0 {
            return Some(bus);
        }
        // At most one bridge per bus number lies on the way.
        for _ in 0..=u8::MAX {
            let function = bus.bridge_to(number)?;
            let bridge = function.bridge()?;
            bus = Arc::clone(bridge.bus());
            if bridge.numbers().secondary == number {
                return Some(bus);
            }
        }
        None
    }

    /// Who answers at a register. A cycle on a conventional bus has no bits for the extended
    /// ones: the bridge turns such a request down.
    fn answering(&self, bdf: Bdf, offset: u16) -> Option<Arc<dyn PciFunction>> {
        let bus = self.bus(bdf.bus)?;
        let is_reached = bus.kind() != BusKind::Conventional || usize::from(offset) < CONVENTIONAL;
        bus.function(bdf.slot).filter(|_| is_reached)
    }

    /// A configuration read. Where nobody answers, `data` becomes all ones.
    pub fn config_read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        match self.answering(bdf, offset) {
            Some(function) => function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A configuration write; lost where nobody answers.
    pub fn config_write(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        if let Some(function) = self.answering(bdf, offset) {
            function.config_write(offset, data);
        }
    }

    /// All functions with what is behind the bridges, for `query-pci`.
    #[must_use]
    pub fn inspect(&self) -> Vec<FunctionView> {
        inspect_bus(&self.root, 0)
    }

    /// Guest memory has other regions from now on: all functions are told.
    ///
    /// # Errors
    /// One cannot work with these; the first that says so is named.
    pub fn memory_changed(&self) -> Result<(), PciError> {
        let mut outcome = Ok(());
        self.each_function(|function| {
            if let Err(source) = function.memory_changed()
                && outcome.is_ok()
            {
                let id = function.id().to_owned();
                outcome = Err(PciError::Memory { id, source });
            }
        });
        outcome
    }

    fn socket(&self, name: &str) -> Option<Socket> {
        self.walk(|socket| (socket.bus.name() == name).then(|| socket.clone()))
    }

    fn locate(&self, id: &str) -> Option<(Socket, SlotAddress)> {
        if id.is_empty() {
            return None;
        }
        self.walk(|socket| {
            let functions = socket.bus.functions();
            let (address, _) = functions.iter().find(|(_, function)| function.id() == id)?;
            Some((socket.clone(), *address))
        })
    }

    /// Visits every bus, parents first, until `visit` finds something.
    fn walk<T>(&self, mut visit: impl FnMut(&Socket) -> Option<T>) -> Option<T> {
        let mut waiting = vec![Socket {
            bus: Arc::clone(&self.root),
            bridge: None,
            wires: self.wires.clone(),
        }];
        while let Some(socket) = waiting.pop() {
            if let Some(found) = visit(&socket) {
                return Some(found);
            }
            for (address, function) in socket.bus.functions().into_iter().rev() {
                if let Some(bridge) = function.bridge() {
                    waiting.push(Socket {
                        bus: Arc::clone(bridge.bus()),
                        wires: socket.wires.behind(address.device()),
                        bridge: Some(Arc::clone(&function)),
                    });
                }
            }
        }
        None
    }

    fn each_function(&self, mut act: impl FnMut(&Arc<dyn PciFunction>)) {
        self.walk(|socket| {
            for (_, function) in socket.bus.functions() {
                act(&function);
            }
            None::<()>
        });
    }
}

impl Clone for Socket {
    fn clone(&self) -> Self {
        Self {
            bus: Arc::clone(&self.bus),
            bridge: self.bridge.clone(),
            wires: self.wires.clone(),
        }
    }
}

impl Lifecycle for PciHost {
    fn pause(&self) {
        self.each_function(|function| function.pause());
    }

    fn resume(&self) {
        self.each_function(|function| function.resume());
    }

    /// Resets every function; the ports finish the unplugs that the guest has left unanswered.
    /// The machine then hands out addresses anew with [`super::setup`].
    fn reset(&self) {
        self.each_function(|function| function.reset());
    }
}

/// Takes every function off `bus`, and reports each by its id.
pub fn eject_all(bus: &PciBus, notices: &NoticeSink) {
    eject(bus, bus.functions(), notices);
}

/// Takes the device in slot `device` off `bus`, and reports each of its functions by its id.
pub fn eject_device(bus: &PciBus, device: u8, notices: &NoticeSink) {
    eject(bus, bus.functions_of(device), notices);
}

fn eject(bus: &PciBus, functions: Vec<(SlotAddress, Arc<dyn PciFunction>)>, notices: &NoticeSink) {
    // Function 0 last: while it is there, the others are reachable.
    for (address, function) in functions.into_iter().rev() {
        if bus.remove(address).is_none() {
            continue;
        }
        function.detach();
        let id = function.id().to_owned();
        // The owner of the device must be the last to hold it when it hears of this.
        drop(function);
        notices.send(Notice::Unplugged { id });
    }
}

fn check_multifunction(
    bus: &PciBus,
    address: Option<SlotAddress>,
    function: &dyn PciFunction,
) -> Result<(), PciError> {
    let Some(address) = address.filter(|address| address.function() != 0) else {
        return Ok(());
    };
    let Some(first) = bus.function(SlotAddress::slot(address.device())) else {
        return Ok(());
    };
    let mut header = [0];
    first.config_read(regs::HEADER_TYPE, &mut header);
    if header[0] & regs::HEADER_MULTIFUNCTION == 0 {
        return Err(PciError::NotMultifunction {
            bus: bus.name().to_owned(),
            address,
            id: function.id().to_owned(),
        });
    }
    Ok(())
}

fn inspect_bus(bus: &PciBus, number: u8) -> Vec<FunctionView> {
    bus.functions()
        .into_iter()
        .map(|(address, function)| {
            let mut view = function.inspect();
            view.bus = number;
            view.address = address;
            view.bridge = function.bridge().map(|bridge| {
                let numbers = bridge.numbers();
                let (memory, prefetchable) = bridge.windows();
                BridgeView {
                    bus: bridge.bus().name().to_owned(),
                    kind: bridge.bus().kind(),
                    primary: numbers.primary,
                    secondary: numbers.secondary,
                    subordinate: numbers.subordinate,
                    memory,
                    prefetchable,
                    functions: inspect_bus(bridge.bus(), numbers.secondary),
                }
            });
            view
        })
        .collect()
}

#[cfg(test)]
mod tests;
