//! What clients may ask for and nothing here can do: refused with the reason, never passed over.

use qapi_schema::QmpError;

/// A wish: whether it was made, how it is written, and why it cannot be met.
pub(crate) type Wish = (bool, &'static str, &'static str);

/// Refuses the first wish that was made.
///
/// # Errors
/// One was made.
pub(crate) fn refuse(wishes: &[Wish]) -> Result<(), QmpError> {
    match wishes.iter().find(|(made, ..)| *made) {
        None => Ok(()),
        Some((_, wish, why)) => Err(QmpError::generic(format!(
            "'{wish}' cannot be had: {why}; leave it out"
        ))),
    }
}
