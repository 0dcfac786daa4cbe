//! The machines a VM can be: what is soldered on, where it lies, and how a kernel gets started.
//!
//! ```text
//!   Q35Spec ──► Q35 ─┬─ KvmVm, slots, interrupts, vCPUs   (kvm)
//!                    ├─ GuestMem by the layout            (memory)
//!                    ├─ buses, PCI tree, LPC, serials…    (devices)
//!                    └─ reset(): PCI setup, tables, kernel → entry
//! ```
//!
//! This room must never know QMP, run states, or where a spec came from.
//!
//! Read next: [`q35`], [`kernel`] (what can be booted), [`acpi`], [`smbios`], [`none`].

pub mod acpi;
pub mod kernel;
pub mod smbios;
