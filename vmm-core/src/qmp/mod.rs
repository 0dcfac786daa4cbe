//! The VM's commands: one thin file for each schema file, each an implementation of the generated
//! trait. A handler resolves its arguments, asks the owner of the thing, and puts the answer into
//! the wire type; it holds no state and decides nothing that a room of its own could decide.

mod acpi;
mod balloon;
mod block_bitmaps;
mod block_core;
mod block_create;
mod block_graph;
mod block_stats;
mod block_throttle;
mod block_watch;
mod char;
mod cpu_models;
mod fw_cfg_devices;
mod inspect;
mod job;
mod machine;
mod memory_devices;
mod migration;
mod misc;
mod net;
mod numa;
mod open_hook;
mod pci;
mod qdev;
mod qom;
mod run_state;
mod sandbox;
mod scsi;
mod tpm;
mod transaction;
mod ui;
mod virtio;
mod watchdog;
