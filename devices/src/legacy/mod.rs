//! The parts of a PC that are older than PCI, as far as today's guests still look at them.
//!
//! This room must never know what the machine does with the news (power-off, reset, panic): it
//! reports a [`Notice`](crate::notice::Notice) and goes on.
//!
//! ```text
//!   0x60/0x64 i8042 ─┐
//!   0x92 fast reset ─┼─► Notice::Reset        0x70/0x71 Rtc ── Clock (wall)
//!   0xcf9 ───────────┘                          └─► IRQ 8: alarms, updates, periods
//!   0x600 AcpiPm ──► Notice::PowerOff, SCI    0x505 Pvpanic ──► Notice::GuestPanicked
//!   0x660 Tco ──► Notice::Watchdog            0x80 PostCode: swallowed
//!     └─ 00:1f.0 Lpc (PCI function), 0xb2 ACPI on/off     0x510 FwCfg: files of the host's
//!   0xcd8 CpuHotplug ──► Notice::CpuEjected, GPE 2
//!   0xa00 MemoryHotplug ──► Notice::MemoryEjected, GPE 3
//!   below 4 GiB: Pflash, the firmware's chips
//! ```
//!
//! Read next: [`acpi_pm`] (power button and sleep), [`reset`] (the ways to reset a PC), [`i8042`],
//! [`rtc`], [`tco`] (a watchdog), [`fw_cfg`], [`pflash`].

pub mod acpi_pm;
pub mod clock;
pub mod cpu_hotplug;
pub mod fw_cfg;
mod hotplug_events;
pub mod i8042;
pub mod lpc;
pub mod memory_hotplug;
pub mod pflash;
pub mod post;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod tco;
pub mod vmcoreinfo;
pub mod vmgenid;

pub use self::acpi_pm::{AcpiPm, ApmPorts};
pub use self::clock::Clock;
pub use self::cpu_hotplug::CpuHotplug;
pub use self::fw_cfg::{FwCfg, FwCfgError, FwCfgFile, FwCfgKernel, FwCfgLive, FwCfgSpec};
pub use self::i8042::Keyboard;
pub use self::lpc::Lpc;
pub use self::memory_hotplug::{DimmSpec, MemoryHotplug};
pub use self::pflash::store::FlashStore;
pub use self::pflash::{FlashArray, Pflash};
pub use self::post::PostCode;
pub use self::pvpanic::Pvpanic;
pub use self::reset::{FastReset, ResetControl};
pub use self::rtc::{Rtc, RtcDrive, RtcHost, RtcSpec};
pub use self::tco::Tco;
pub use self::vmcoreinfo::Vmcoreinfo;
pub use self::vmgenid::GenerationPlace;
