//! The host bridge at 00:00.0: Intel's Q35 memory controller hub, as far as software looks at it.
//!
//! Its PCIEXBAR says where the window into configuration space is (Intel 3 Series Express Chipset
//! datasheet, 5.1.16); firmware puts it there, or the machine that does without. All memory below
//! 1 MiB is RAM from the start, so the PAM registers say that and cannot be changed.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::address::SlotAddress;
use super::core::{Identity, PciCore};
use super::function::{Attachment, PciFunction};
use super::host::PciHost;
use super::inspect::FunctionView;
use super::ports::Ecam;
use crate::bus::Bus;
use crate::lifecycle::Lifecycle;
use crate::state::{Empty, NothingToSave, Parts, StateError, Stateful};

/// Intel's vendor id.
pub const VENDOR_INTEL: u16 = 0x8086;
/// The Q35 MCH.
pub const DEVICE_MCH: u16 = 0x29c0;
/// The subsystem ids of a part of an emulated machine.
pub const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

/// The window's register: address, length and whether it is open.
pub const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_BITS: u64 = 0xf_f000_0007;
const OPEN: u64 = 1;
const PAM: u16 = 0x90;
const MIB: u64 = 1 << 20;

/// The MCH.
pub struct HostBridge {
    core: PciCore,
    host: Weak<PciHost>,
    /// Makes "see what the register says, then map it" one step: held while `Bus` is changed,
    /// which never calls back.
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    memory: Option<Arc<Bus>>,
    mapped: Option<(u64, u64)>,
}

impl HostBridge {
    /// A host bridge of `host`; its window is closed.
    #[must_use]
    pub fn new(host: Weak<PciHost>) -> Self {
        let identity = Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_MCH,
            revision: 0,
            class: [0x06, 0x00, 0x00],
            subsystem: SUBSYSTEM,
            header: 0,
            pin: 0,
        };
        let core = PciCore::plain("", identity);
        core.amend(|config| {
            config.allow(PCIEXBAR, &PCIEXBAR_BITS.to_le_bytes());
            // Reads and writes of each piece go to RAM.
            config.store(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        });
        Self {
            core,
            host,
            window: Mutex::default(),
        }
    }

    /// What PCIEXBAR says: where the window begins and how long it is.
    fn wanted(&self) -> Option<(u64, u64)> {
        let config = self.core.config();
        let low = u64::from(config.load32(PCIEXBAR));
        let value = u64::from(config.load32(PCIEXBAR + 4)) << 32 | low;
        let len = match value >> 1 & 3 {
            0 => 256 * MIB,
            1 => 128 * MIB,
            2 => 64 * MIB,
            _ => return None,
        };
        let base = value & PCIEXBAR_BITS & !7;
        (value & OPEN != 0 && base != 0).then_some((base - base % len, len))
    }

    fn place(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let Window { memory, mapped } = &mut *window;
        let wanted = self.wanted().filter(|_| memory.is_some());
        let Some(memory) = memory else { return };
        if wanted == *mapped {
            return;
        }
        if let Some((base, _)) = mapped.take() {
            memory.remove(base);
        }
        if let Some((base, len)) = wanted {
            let ecam = Arc::new(Ecam::new(self.host.clone()));
            match memory.insert(base, len, ecam) {
                Ok(()) => *mapped = wanted,
                Err(overlap) => tracing::debug!(%overlap, "PCIEXBAR not mapped"),
            }
        }
    }
}

impl NothingToSave for HostBridge {
    const KIND: &'static str = "q35-host-bridge";
}

impl Stateful for HostBridge {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("config", &self.core)]
    }

    fn settle(&self) {
        self.place();
    }
}

impl Lifecycle for HostBridge {
    fn reset(&self) {
        self.core.reset();
        self.place();
    }
}

impl PciFunction for HostBridge {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.write(offset, data);
        self.place();
    }

    fn attach(&self, attachment: Attachment) {
        debug_assert_eq!(attachment.address, SlotAddress::slot(0));
        self.core.attach(&attachment);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.memory = Some(Arc::clone(&attachment.spaces.memory));
    }

    fn detach(&self) {
        self.core.detach();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(memory), Some((base, _))) = (window.memory.take(), window.mapped.take()) {
            memory.remove(base);
        }
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}
