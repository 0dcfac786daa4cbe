//! Bytes that say where they belong: each 8-byte word is made of a seed and its own offset, so a
//! block that lands in the wrong place, or an old one, never verifies.

/// The word at byte `offset` (a multiple of 8) of the pattern `seed`.
fn word(seed: u64, offset: u64) -> u64 {
    let mixed = (offset ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29) ^ seed
}

/// Fills `bytes`, which lie at `offset` (a multiple of 8) of the disk.
pub fn fill(bytes: &mut [u8], seed: u64, offset: u64) {
    let mut at = offset;
    for chunk in bytes.chunks_mut(8) {
        let word = word(seed, at).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
        at = at.wrapping_add(8);
    }
}

/// The offset of the first byte of `bytes` that is not the pattern's, if any.
pub fn first_difference(bytes: &[u8], seed: u64, offset: u64) -> Option<u64> {
    let mut at = offset;
    for chunk in bytes.chunks(8) {
        let word = word(seed, at).to_le_bytes();
        if let Some(index) = (0..chunk.len()).find(|&i| chunk[i] != word[i]) {
            return Some(at + index as u64);
        }
        at = at.wrapping_add(8);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_verifies_only_with_its_own_seed_and_place() {
        let mut bytes = vec![0; 4096];
        fill(&mut bytes, 7, 8192);
        assert_eq!(first_difference(&bytes, 7, 8192), None);
        assert!(first_difference(&bytes, 8, 8192).is_some());
        assert!(first_difference(&bytes, 7, 4096).is_some());
    }

    #[test]
    fn one_changed_byte_is_found_where_it_is() {
        let mut bytes = vec![0; 512];
        fill(&mut bytes, 1, 0);
        bytes[100] ^= 1;
        assert_eq!(first_difference(&bytes, 1, 0), Some(100));
    }
}
