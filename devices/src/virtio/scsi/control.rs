//! Task management (virtio 1.2, 5.6.6.2). Requests here end soon or not at all, and what the kernel
//! has taken cannot be taken back: whoever aborts waits until the unit is quiet.

use std::sync::Arc;
use std::time::Duration;

use block::Io;

use super::units::{Address, Seated, Units};

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

/// Does one control request; the response.
pub(super) async fn execute(io: &Io, units: &Units, header: &[u8]) -> Vec<u8> {
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
    match field(0) {
        MANAGE => vec![manage(io, units, field(4), lun(8)).await],
        // There are no events of units that one could ask for.
        ASK_EVENTS | WANT_EVENTS => match lun(4) {
            Some(_) => vec![0, 0, 0, 0, COMPLETE],
            None => vec![0, 0, 0, 0, BAD_TARGET],
        },
        _ => vec![REJECTED],
    }
}

async fn manage(io: &Io, units: &Units, kind: u32, address: Option<Address>) -> u8 {
    let Some(address) = address else {
        return BAD_TARGET;
    };
    let of_target: Vec<_> = units
        .all()
        .into_iter()
        .filter(|(at, _)| at.target == address.target)
        .collect();
    if of_target.is_empty() {
        return BAD_TARGET;
    }
    let this = of_target.iter().find(|(at, _)| *at == address);
    let mut concerned: Vec<Arc<Seated>> =
        this.map(|(_, unit)| Arc::clone(unit)).into_iter().collect();
    // I_T NEXUS RESET is the whole target's.
    if kind == 4 {
        concerned = of_target.into_iter().map(|(_, unit)| unit).collect();
    }
    if concerned.is_empty() {
        return NO_SUCH_UNIT;
    }
    match kind {
        // ABORT TASK, ABORT TASK SET, CLEAR TASK SET
        0 | 1 | 3 => quiet(io, &concerned).await,
        // CLEAR ACA: there is none.
        2 => {}
        // I_T NEXUS RESET, LOGICAL UNIT RESET
        4 | 5 => {
            quiet(io, &concerned).await;
            concerned.iter().for_each(|seated| seated.unit.power_on());
        }
        // QUERY TASK and QUERY TASK SET
        6 | 7 => {
            let is_busy = concerned.iter().any(|seated| !seated.is_quiet());
            return if is_busy { SUCCEEDED } else { COMPLETE };
        }
        _ => return REJECTED,
    }
    COMPLETE
}

async fn quiet(io: &Io, units: &[Arc<Seated>]) {
    while units.iter().any(|seated| !seated.is_quiet()) {
        if io.sleep(PAUSE).await.is_err() {
            return;
        }
    }
}
