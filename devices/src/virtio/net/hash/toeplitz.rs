//! The Toeplitz hash: for each bit of the input that is set, the 32 bits of the key that begin at its
//! place, all of them added without carry.
//!
//! What four bits of the input come to is worked out with the key, so that a packet costs two looks
//! for each byte.

/// The longest input in bytes: two addresses of IPv6 and two ports.
pub(super) const INPUT: usize = 36;
/// The longest key in bytes: the last bit of the longest input needs 32 of its bits.
pub(super) const KEY: usize = INPUT + 4;

/// What the high and the low half of a byte come to.
type Byte = [[u32; 16]; 2];

/// One key, prepared.
#[derive(Debug)]
pub(super) struct Toeplitz {
    bytes: Box<[Byte; INPUT]>,
}

impl Toeplitz {
    /// Prepares a key: zeros follow a short one, and of a long one the end is never needed.
    pub(super) fn new(key: &[u8]) -> Self {
        let mut padded = [0; KEY];
        for (to, from) in padded.iter_mut().zip(key) {
            *to = *from;
        }
        let half = |place: usize, bit: usize| {
            let window = |more: usize| window(&padded, place, bit + more);
            let windows = [3, 2, 1, 0].map(window);
            std::array::from_fn(|value| {
                let is_set = |at: &usize| value >> at & 1 != 0;
                let set = (0..windows.len()).filter(is_set);
                set.fold(0, |hash, at| hash ^ windows[at])
            })
        };
        let byte = |place| [half(place, 0), half(place, 4)];
        Self {
            bytes: Box::new(std::array::from_fn(byte)),
        }
    }

    /// The hash of `parts` one behind the other, as far as [`INPUT`] goes.
    pub(super) fn hash(&self, parts: &[&[u8]]) -> u32 {
        let input = parts.iter().copied().flatten();
        let each = input.zip(self.bytes.iter());
        each.fold(0, |hash, (byte, [high, low])| {
            hash ^ high[usize::from(byte >> 4)] ^ low[usize::from(byte & 0xf)]
        })
    }
}

/// The 32 bits of a key from the bit `bit`, the highest first, of the byte `place` on.
fn window(key: &[u8; KEY], place: usize, bit: usize) -> u32 {
    let mut five = [0; 8];
    for (to, from) in five.iter_mut().zip(key.iter().skip(place).take(5)) {
        *to = *from;
    }
    let [a, b, c, d, ..] = (u64::from_be_bytes(five) << bit).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition, bit by bit.
    fn naive(key: &[u8], input: &[u8]) -> u32 {
        let bit = |bytes: &[u8], at: usize| {
            let byte = bytes.get(at / 8).copied().unwrap_or(0);
            u32::from(byte >> (7 - at % 8) & 1)
        };
        let mut hash = 0;
        for at in 0..8 * input.len() {
            if bit(input, at) == 1 {
                hash ^= (0..32).fold(0, |window, more| window << 1 | bit(key, at + more));
            }
        }
        hash
    }

    proptest! {
        #[test]
        fn the_prepared_hash_is_the_defined_one(
            key in prop::collection::vec(any::<u8>(), 0..=KEY),
            input in prop::collection::vec(any::<u8>(), 0..=INPUT),
            cut in any::<prop::sample::Index>(),
        ) {
            let toeplitz = Toeplitz::new(&key);
            let (first, second) = input.split_at(cut.index(input.len() + 1));
            prop_assert_eq!(toeplitz.hash(&[first, second]), naive(&key, &input));
        }
    }
}
