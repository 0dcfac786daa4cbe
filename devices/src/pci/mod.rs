//! PCI Express: configuration space, BARs, interrupts, the tree of buses, hot-plug, and the part
//! of a firmware that hands out addresses.
//!
//! This room must never know what a function does (virtio, a bridge to a legacy bus, one day a
//! VFIO device), nor the command that plugged it in: it sees [`PciFunction`]s with an id.
//!
//! ```text
//!   0xcf8/0xcfc ─┐                 PciHost (bus pcie.0)
//!   ECAM ────────┴─► bus:dev.fn ─► ├─ 00.0 host bridge
//!                                  ├─ 01.0 RootPort "p1" ── bus p1 ── 00.0 PciFunction
//!                                  ├─ 02.0 RootPort "p2"        ▲
//!                                  │    └─ PciePciBridge "b1" ── bus b1 ── 00.0 to 1f.7
//!                                  └─ 1f.0 LPC                  │
//!                                              plug / unplug ───┘
//!   PciFunction ── embeds ─► PciCore: ConfigSpace + Bars ── maps ─► Bus (ports, memory)
//!                                     Msix / Msi         ── route ─► irq::MsiController
//! ```
//!
//! Read next: [`function`] (what a function is), [`config`] (registers with write masks),
//! [`host`] (the tree and the two ways in), [`root_port`] (native hot-plug), [`conventional`] (the
//! old bus, with many slots), [`setup`] (who gets which address at reset).

pub mod address;
pub mod bar;
pub mod bridge;
pub mod bus;
pub mod config;
pub mod conventional;
pub mod core;
pub mod error;
pub mod express;
pub mod function;
pub mod host;
pub mod host_bridge;
pub mod i6300esb;
pub mod inspect;
pub mod intx;
#[cfg(test)]
pub(crate) mod mock;
pub mod msi;
pub mod msix;
pub mod ports;
pub mod pvpanic;
pub mod regs;
pub mod root_port;
pub mod setup;
pub mod slot;

pub use self::address::{Bdf, SlotAddress};
pub use self::bar::{BarKind, BarSpec};
pub use self::config::ConfigSpace;
pub use self::conventional::PciePciBridge;
pub use self::core::{Identity, PciCore};
pub use self::error::PciError;
pub use self::function::{Attachment, PciFunction, Spaces};
pub use self::host::{PciHost, PciHostSpec};
pub use self::i6300esb::I6300esb;
pub use self::ports::{ConfigPorts, Ecam};
pub use self::pvpanic::PvpanicPci;
pub use self::root_port::{RootPort, RootPortSpec};
