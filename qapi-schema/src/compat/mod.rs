//! What becomes of parts of the schema that are marked `deprecated` or `unstable` (`-compat`).
//!
//! A manager's developers switch it on to learn what their program still uses. There is one policy
//! in a process, set before the first request and never changed; as long as nothing is asked for,
//! it costs one load.
//!
//! ```text
//!   request ─► command, parameter or value marked? ─► accept │ reject: an error │ crash: the end
//!   reply, event ─► member or event marked? ────────► accept │ hide: left out
//! ```

use std::sync::atomic::{AtomicU8, Ordering};

use crate::cli::{CompatPolicy, CompatPolicyInput, CompatPolicyOutput};
use crate::{CommandSpec, ErrorClass, QmpError};

/// How something is marked: a sum of [`DEPRECATED`] and [`UNSTABLE`].
pub type Marks = u8;
/// It will go away.
pub const DEPRECATED: Marks = 1;
/// It may change or go away at any time.
pub const UNSTABLE: Marks = 2;

/// The policy: for each mark, whether input with it is rejected or ends the process, and whether
/// output with it is hidden.
static POLICY: AtomicU8 = AtomicU8::new(0);

const REJECT: u8 = 0;
const CRASH: u8 = 2;
const HIDE: u8 = 4;

/// Sets the policy of this process; what is absent is accepted.
pub fn set(policy: &CompatPolicy) {
    let input = |mark: Marks, input: Option<CompatPolicyInput>| match input {
        None | Some(CompatPolicyInput::Accept) => 0,
        Some(CompatPolicyInput::Reject) => mark << REJECT,
        Some(CompatPolicyInput::Crash) => mark << CRASH,
    };
    let output = |mark: Marks, output: Option<CompatPolicyOutput>| match output {
        None | Some(CompatPolicyOutput::Accept) => 0,
        Some(CompatPolicyOutput::Hide) => mark << HIDE,
    };
    let policy = input(DEPRECATED, policy.deprecated_input)
        | input(UNSTABLE, policy.unstable_input)
        | output(DEPRECATED, policy.deprecated_output)
        | output(UNSTABLE, policy.unstable_output);
    POLICY.store(policy, Ordering::Relaxed);
}

/// Whether output with these marks is left out.
#[must_use]
pub fn hides(marks: Marks) -> bool {
    (POLICY.load(Ordering::Relaxed) >> HIDE) & marks != 0
}

/// Whether a client may send this command.
///
/// # Errors
/// The policy rejects one of its marks.
pub fn admit_command(command: &CommandSpec) -> Result<(), QmpError> {
    if POLICY.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    let mark = |feature, mark| {
        if command.features.contains(&feature) {
            mark
        } else {
            0
        }
    };
    let marks = mark("deprecated", DEPRECATED) | mark("unstable", UNSTABLE);
    admit(marks, ErrorClass::CommandNotFound, "command", command.name)
}

/// Whether a client may use a parameter or value with these marks.
pub(crate) fn admit_part(marks: Marks, kind: &str, name: &str) -> Result<(), QmpError> {
    admit(marks, ErrorClass::GenericError, kind, name)
}

fn admit(marks: Marks, class: ErrorClass, kind: &str, name: &str) -> Result<(), QmpError> {
    let policy = POLICY.load(Ordering::Relaxed);
    for (mark, word) in [(DEPRECATED, "Deprecated"), (UNSTABLE, "Unstable")] {
        if marks & mark & (policy >> CRASH) != 0 {
            // What was asked for: a core of the moment in which the client did it.
            eprintln!("sesame: {word} {kind} {name} came from a client, and -compat wants a crash");
            std::process::abort();
        }
        if marks & mark & (policy >> REJECT) != 0 {
            let desc = format!("{word} {kind} {name} disabled by policy");
            return Err(QmpError::new(class, desc));
        }
    }
    Ok(())
}

/// Whether a member that is always there is left out, for serde.
#[must_use]
pub fn hidden<const MARKS: Marks, T>(_member: &T) -> bool {
    hides(MARKS)
}

/// Whether a member that may be absent is, or is left out, for serde.
#[must_use]
pub fn absent_or_hidden<const MARKS: Marks, T>(member: &Option<T>) -> bool {
    member.is_none() || hides(MARKS)
}

#[cfg(test)]
#[rustfmt::skip]
#[expect(dead_code, unreachable_pub, reason = "generated as the product's are")]
mod events;
#[cfg(test)]
#[rustfmt::skip]
#[expect(unreachable_pub, reason = "generated as the product's are")]
mod marked;
#[cfg(test)]
mod tests;
