//! Making a card's address known: packets that switches learn from, in rounds.
//!
//! ```text
//!   round 1 ── initial ── round 2 ── initial + step ── round 3 ── .. ── at most max ── ..
//! ```

use std::time::Duration;

/// Bytes of a RARP packet, filled up to the shortest that Ethernet has.
pub const RARP: usize = 60;

/// How often, and how long between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// From the first round to the second.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
    /// How many rounds.
    pub rounds: u64,
    /// By how much each wait is longer than the one before.
    pub step: Duration,
}

impl Announcement {
    /// How long to wait after round `done`, counted from 1; `None` after the last.
    #[must_use]
    pub fn wait_after(&self, done: u64) -> Option<Duration> {
        if done >= self.rounds {
            return None;
        }
        let longer = u32::try_from(done.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.step.checked_mul(longer).unwrap_or(self.max);
        Some(self.initial.saturating_add(wait).min(self.max))
    }
}

/// "Who am I", which every switch on the way learns from (RFC 903).
#[must_use]
pub fn rarp(mac: [u8; 6]) -> [u8; RARP] {
    let mut packet = [0; RARP];
    let parts: [(usize, &[u8]); 7] = [
        (0, &[0xff; 6]),
        (6, &mac),
        (12, &[0x80, 0x35]),
        // Ethernet, IPv4, their lengths; the request "reverse".
        (14, &[0, 1, 8, 0, 6, 4, 0, 3]),
        (22, &mac),
        (28, &[0; 4]),
        (32, &mac),
    ];
    for (at, bytes) in parts {
        for (to, from) in packet.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_step_up_to_the_longest_and_end_with_the_last_round() {
        let ms = Duration::from_millis;
        let rounds = Announcement {
            initial: ms(50),
            max: ms(120),
            rounds: 5,
            step: ms(40),
        };
        let waits: Vec<_> = (1..=5).map(|done| rounds.wait_after(done)).collect();
        let wanted = [50, 90, 120, 120].map(|wait| Some(ms(wait)));
        assert_eq!(waits, [wanted.as_slice(), &[None]].concat());
        let none = Announcement {
            rounds: 0,
            ..rounds
        };
        assert_eq!(none.wait_after(0), None);
    }

    #[test]
    fn a_packet_says_who_it_is_from_to_everybody() {
        let packet = rarp([1, 2, 3, 4, 5, 6]);
        assert_eq!(packet[..6], [0xff; 6]);
        assert_eq!(packet[6..12], [1, 2, 3, 4, 5, 6]);
        assert_eq!(packet[12..14], [0x80, 0x35]);
        assert_eq!(packet[22..28], [1, 2, 3, 4, 5, 6]);
        assert_eq!(packet[32..38], [1, 2, 3, 4, 5, 6]);
    }
}
