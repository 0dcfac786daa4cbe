//! Limits on what goes through nodes: a group of nodes shares them.
//!
//! ```text
//!   node 'throttle' ─┐             ┌─ buckets: how long until one more may go?   (pure: time is given)
//!   node 'throttle' ─┼─► ThrottleGroup
//!   node 'throttle' ─┘             └─ turns: whose request is next?              (pure)
//!                                         │
//!                         the request sleeps on its own io-thread's timer
//! ```
//!
//! This room knows no node and no graph: [`crate::format::throttle`] is the driver that asks here.
//! Where a group has no limits, asking is one load.
//!
//! Read next: `limits` (what can be said), `buckets` (what that means), `turns` (fairness), `group`
//! (how a request waits).

mod buckets;
mod group;
mod limits;
mod turns;

pub use buckets::Direction;
pub use group::{Member, ThrottleGroup};
pub use limits::{LimitsError, Rate, Rates, ThrottleLimits};
