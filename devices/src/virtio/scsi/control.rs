//! Task management (virtio 1.2, 5.6.6.2). Requests here end soon or not at all, and what the kernel
//! has taken cannot be taken back: whoever aborts waits until the unit is quiet. What failed and
//! waits for the machine to go on is one of the unit's requests: who aborts that waits with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::Io;

use super::device::Controller;
use super::units::{Address, Seated};

/// Responses (5.6.6.1, 5.6.6.2).
const COMPLETE: u8 = 0;
const BAD_TARGET: u8 = 3;
const SUCCEEDED: u8 = 10;
const REJECTED: u8 = 11;
const NO_SUCH_UNIT: u8 = 12;

/// Types of control requests.
const MANAGE: u32 = 0;
const ASK_EVENTS: u32 = 1;
const WANT_EVENTS: u32 = 2;

/// How long between two looks at a unit.
const PAUSE: Duration = Duration::from_millis(1);

/// The bytes of the header and of the response of any control request.
pub(super) const HEADER: usize = 24;
pub(super) const RESPONSE: usize = 5;
/// A response to task management is one byte.
pub(super) const SHORT: usize = 1;

/// Does one control request; the response. `None`: it is to be done again when the queue is started
/// again, as `stop` says that it is being stopped.
pub(super) async fn execute(
    io: &Io,
    controller: &Controller,
    header: &[u8],
    stop: &AtomicBool,
) -> Option<Vec<u8>> {
    let field = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|four| four.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    let lun = |at: usize| {
        let bytes = header
            .get(at..at + 8)
            .and_then(|eight| eight.try_into().ok());
        bytes.and_then(Address::parse)
    };
    Some(match field(0) {
        MANAGE => vec![manage(io, controller, (field(4), lun(8)), stop).await?],
        // There are no events of units that one could ask for.
        ASK_EVENTS | WANT_EVENTS => match lun(4) {
            Some(_) => vec![0, 0, 0, 0, COMPLETE],
            None => vec![0, 0, 0, 0, BAD_TARGET],
        },
        _ => vec![REJECTED],
    })
}

async fn manage(
    io: &Io,
    controller: &Controller,
    (kind, address): (u32, Option<Address>),
    stop: &AtomicBool,
) -> Option<u8> {
    let Some(address) = address else {
        return Some(BAD_TARGET);
    };
    let of_target: Vec<_> = controller
        .units
        .all()
        .into_iter()
        .filter(|(at, _)| at.target == address.target)
        .collect();
    if of_target.is_empty() {
        return Some(BAD_TARGET);
    }
    let mut concerned = of_target;
    // I_T NEXUS RESET is the whole target's.
    if kind != 4 {
        concerned.retain(|(at, _)| *at == address);
    }
    if concerned.is_empty() {
        return Some(NO_SUCH_UNIT);
    }
    match kind {
        // ABORT TASK, ABORT TASK SET, CLEAR TASK SET
        0 | 1 | 3 => quiet(io, controller, &concerned, stop).await?,
        // CLEAR ACA: there is none.
        2 => {}
        // I_T NEXUS RESET, LOGICAL UNIT RESET
        4 | 5 => {
            quiet(io, controller, &concerned, stop).await?;
            concerned
                .iter()
                .for_each(|(_, seated)| seated.unit.power_on());
        }
        // QUERY TASK and QUERY TASK SET
        6 | 7 => {
            let is_busy = has_waiting(controller, &concerned) || is_busy(&concerned);
            return Some(if is_busy { SUCCEEDED } else { COMPLETE });
        }
        _ => return Some(REJECTED),
    }
    Some(COMPLETE)
}

type Concerned = [(Address, Arc<Seated>)];

fn is_busy(units: &Concerned) -> bool {
    units.iter().any(|(_, seated)| !seated.is_quiet())
}

fn has_waiting(controller: &Controller, units: &Concerned) -> bool {
    let waiting = &controller.waiting;
    let mut addresses = units.iter().map(|(at, _)| *at);
    addresses.any(|at| waiting.any(|request| request.is_for(at)))
}

/// Waits until no request is on its way to the units; `None` if one waits for the next start.
async fn quiet(
    io: &Io,
    controller: &Controller,
    units: &Concerned,
    stop: &AtomicBool,
) -> Option<()> {
    loop {
        let waits = has_waiting(controller, units);
        if !waits && !is_busy(units) {
            return Some(());
        }
        if waits && stop.load(Ordering::Acquire) {
            return None;
        }
        if io.sleep(PAUSE).await.is_err() {
            return Some(());
        }
    }
}
