//! How long the users of nodes waited while the graph changed under them.

use std::time::Duration;

use qapi_schema::block_graph::BlockPauses;

/// Sums since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses {
    count: u64,
    last: Duration,
    longest: Duration,
    total: Duration,
}

impl Pauses {
    /// One more.
    pub(crate) fn add(&mut self, pause: Duration) {
        self.count = self.count.saturating_add(1);
        self.last = pause;
        self.longest = self.longest.max(pause);
        self.total = self.total.saturating_add(pause);
    }

    /// As clients know it.
    pub(crate) fn shown(&self) -> BlockPauses {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        BlockPauses {
            count: self.count,
            last_us: micros(self.last),
            longest_us: micros(self.longest),
            total_us: micros(self.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_and_the_longest_stays() {
        let mut pauses = Pauses::default();
        for micros in [3, 9, 5] {
            pauses.add(Duration::from_micros(micros));
        }
        let shown = pauses.shown();
        assert_eq!((shown.count, shown.last_us), (3, 5));
        assert_eq!((shown.longest_us, shown.total_us), (9, 17));
    }
}
