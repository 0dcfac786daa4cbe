//! What a guest tells of its memory (virtio 1.2, 5.5.6.4).

/// The value of what the guest did not tell.
pub const UNKNOWN: u64 = u64::MAX;

/// Every statistic there is, by its tag; the names are those that QMP has for them. Tags above 9
/// are Linux' (`include/uapi/linux/virtio_balloon.h`).
pub const STATS: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];

/// The bytes of one statistic: a tag of two bytes, a value of eight.
pub(super) const ENTRY: usize = 10;
/// The most that a guest's answer is read of: four times what there is.
pub(super) const ANSWER: usize = 4 * STATS.len() * ENTRY;

/// A guest's last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStats {
    /// When it came, in seconds since 1970; 0 if none did.
    pub last_update: u64,
    /// The values in the order of [`STATS`].
    pub values: [u64; STATS.len()],
}

impl Default for GuestStats {
    fn default() -> Self {
        Self {
            last_update: 0,
            values: [UNKNOWN; STATS.len()],
        }
    }
}

impl GuestStats {
    /// Reads an answer that came at `now`. Tags that nobody knows are passed over.
    #[must_use]
    pub fn parse(answer: &[u8], now: u64) -> Self {
        let mut stats = Self {
            last_update: now,
            ..Self::default()
        };
        for entry in answer.chunks_exact(ENTRY) {
            if let [low, high, value @ ..] = entry
                && let Ok(value) = value.try_into()
                && let Some(known) = stats
                    .values
                    .get_mut(usize::from(u16::from_le_bytes([*low, *high])))
            {
                *known = u64::from_le_bytes(value);
            }
        }
        stats
    }

    /// The values with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STATS.into_iter().zip(self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_taken_and_the_rest_is_unknown() {
        let mut answer = Vec::new();
        for (tag, value) in [(4_u16, 77_u64), (999, 1), (15, 3)] {
            answer.extend(tag.to_le_bytes());
            answer.extend(value.to_le_bytes());
        }
        answer.extend([4, 0, 1]);
        let stats = GuestStats::parse(&answer, 1234);
        assert_eq!(stats.last_update, 1234);
        let known: Vec<_> = stats
            .iter()
            .filter(|(_, value)| *value != UNKNOWN)
            .collect();
        assert_eq!(
            known,
            [("stat-free-memory", 77), ("stat-direct-reclaims", 3)]
        );
    }
}
