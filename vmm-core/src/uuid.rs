//! UUIDs as they are written: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.

/// The 16 bytes of a UUID, in the order in which they are written.
pub type Uuid = [u8; 16];

/// Digits in each group.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// What is written is no UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to parse UUID string: wrong format: '{0}'; wanted \
     xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal"
)]
pub struct UuidError(String);

/// Reads a UUID.
///
/// # Errors
/// It is none.
pub fn parse(text: &str) -> Result<Uuid, UuidError> {
    read(text).ok_or_else(|| UuidError(text.to_owned()))
}

fn read(text: &str) -> Option<Uuid> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    if groups != GROUPS {
        return None;
    }
    let (pairs, _) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}

/// Writes a UUID, in small letters.
#[must_use]
pub fn text(uuid: Uuid) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    let parts: Vec<&str> = parts.into_iter().filter_map(|part| hex.get(part)).collect();
    parts.join("-")
}

/// Makes random bytes a UUID of version 4 (RFC 9562, 5.4).
#[must_use]
pub const fn from_random(mut bytes: Uuid) -> Uuid {
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_in_the_order_in_which_it_is_written() {
        let read = parse("00112233-4455-6677-8899-aabbCCDDeeff").unwrap();
        let bytes: [u8; 16] = std::array::from_fn(|at| u8::try_from(at * 0x11).unwrap());
        assert_eq!(read, bytes);
        assert_eq!(text(read), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_uuid_has_its_dashes_in_the_right_places() {
        for wrong in [
            "0011223-34455-6677-8899-aabbccddeeff",
            "00112233445566778899aabbccddeeff",
            "é0112233-4455-6677-8899-aabbccddeef",
        ] {
            assert_eq!(parse(wrong), Err(UuidError(wrong.to_owned())));
        }
    }

    #[test]
    fn random_bytes_say_that_they_are_random() {
        assert_eq!(
            text(from_random([0xff; 16])),
            "ffffffff-ffff-4fff-bfff-ffffffffffff"
        );
    }
}
