//! What a guest can make happen again and again is told ever more rarely.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often one thing has happened to one device. A log line is due at the first, second, fourth,
/// eighth... time, so that no guest fills the host's disk with them and none is silent for ever.
#[derive(Debug, Default)]
pub struct Repeats(AtomicU64);

impl Repeats {
    /// Notes one more time; the count, when a line is due. At most 64 are, whatever happens.
    pub fn note(&self) -> Option<u64> {
        let times = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        times.is_power_of_two().then_some(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_times_are_twenty_lines() {
        let repeats = Repeats::default();
        let lines: Vec<u64> = (0..1_000_000).filter_map(|_| repeats.note()).collect();
        assert_eq!(lines.len(), 20);
        assert_eq!(lines[..4], [1, 2, 4, 8]);
    }
}
