//! Limits on what goes through nodes: a group of nodes shares them.
//!
//! ```text
//!   node 'throttle' ─┐             ┌─ buckets: how long until one more may go?   (pure: time is given)
//!   node 'throttle' ─┼─► ThrottleGroup
//!   a disk's Limiter ┘             └─ turns: whose request is next?              (pure)
//!                                         │
//!                         the request sleeps on its own io-thread's timer
//! ```
//!
//! This room knows no node and no graph: [`crate::format::throttle`] is the driver that asks here.
//! Where a group has no limits, asking is one load.
//!
//! Read next: `limits` (what can be said), `buckets` (what that means), `turns` (fairness), `group`
//! (how a request waits), `limiter` (a user's own place in a group).

mod buckets;
mod group;
mod limiter;
mod limits;
mod turns;

pub use buckets::Direction;
pub use group::{Member, ThrottleGroup};
pub use limiter::Limiter;
pub use limits::{LimitsError, Rate, Rates, ThrottleLimits};
