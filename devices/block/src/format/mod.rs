//! Formats: nodes whose bytes lie in another node, in some order.
//!
//! A format knows its own layout and reaches its storage only through a
//! [`NodeRef`](crate::node::NodeRef); it opens nothing. Read next: [`raw`], the layout that is none, and
//! [`filter`], for nodes that have no layout but a say in requests.

pub mod blkdebug;
pub mod cbw;
pub mod compress;
pub mod copy_on_read;
pub(crate) mod filter;
pub(crate) mod pass;
pub mod qcow2;
pub mod raw;
pub mod throttle;
