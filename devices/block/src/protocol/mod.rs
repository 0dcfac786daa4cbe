//! Protocols: nodes that have no child, because they reach storage themselves.
//!
//! A protocol knows files or sockets; it knows no image format. Each open goes through
//! `fdset::open`. Read next: [`file`](mod@file) for the one that matters, [`null`] for the shape of a driver.

mod alignment;
pub mod create;
pub mod file;
pub(crate) mod lock;
pub mod null;
#[cfg(test)]
mod tests;
