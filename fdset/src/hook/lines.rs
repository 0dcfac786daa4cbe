//! Bytes and fds into lines, each with its fds.
//!
//! The kernel lets plain bytes that were sent before share a read with a message that carries
//! fds, but never bytes that were sent after it. So the fds of a read belong to the last line of
//! which it brought a byte:
//!
//! ```text
//!   read: {"id":1,"error":".."}\n{"id":2}\n  + fd      the fd is line 2's
//!   read: {"id":3,                           + fd      line 3's, which the next read completes
//!   read: "error":".."}\n
//! ```

use std::os::fd::OwnedFd;

use crate::scm::Received;

/// The longest line, in bytes without its end.
pub(super) const MAX_LINE: usize = 64 << 10;

/// The most fds that one line may gather: an answer has one.
const MAX_FDS: usize = 8;

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    /// Without its end.
    pub(super) bytes: Vec<u8>,
    /// What came with it.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether fds that came with it are lost, because this process has no room for more.
    pub(super) lost: bool,
}

/// Why the peer does not speak our protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    /// No answer is that long.
    #[error("it sent a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// No answer has that many; they would use up those of the process.
    #[error("it sent more than {MAX_FDS} fds with one line")]
    TooManyFds,
}

/// The line that is not complete.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
    fds: Vec<OwnedFd>,
    lost: bool,
}

impl Lines {
    /// Takes in what one receive call brought; `buffer` is what it filled. Gives the lines that
    /// are complete, in their order.
    pub(super) fn push(
        &mut self,
        buffer: &[u8],
        received: Received,
    ) -> Result<Vec<Line>, LineError> {
        let bytes = buffer.get(..received.bytes).unwrap_or_default();
        let mut complete = Vec::new();
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        // What follows the last line end is the beginning of a line, and maybe an empty one.
        let rest = pieces.next_back().unwrap_or_default();
        for piece in pieces {
            self.extend(piece)?;
            complete.push(self.end());
        }
        self.extend(rest)?;
        let (fds, lost) = match complete.last_mut() {
            Some(line) if rest.is_empty() => (&mut line.fds, &mut line.lost),
            _ => (&mut self.fds, &mut self.lost),
        };
        if fds.len() + received.fds.len() > MAX_FDS {
            return Err(LineError::TooManyFds);
        }
        fds.extend(received.fds);
        *lost |= received.truncated;
        Ok(complete)
    }

    fn extend(&mut self, piece: &[u8]) -> Result<(), LineError> {
        if self.begun.len() + piece.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        self.begun.extend_from_slice(piece);
        Ok(())
    }

    fn end(&mut self) -> Line {
        Line {
            bytes: std::mem::take(&mut self.begun),
            fds: std::mem::take(&mut self.fds),
            lost: std::mem::take(&mut self.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn received(bytes: &[u8], fds: usize) -> Received {
        Received {
            bytes: bytes.len(),
            fds: (0..fds)
                .map(|_| std::io::pipe().expect("a pipe").0.into())
                .collect(),
            truncated: false,
        }
    }

    fn push(lines: &mut Lines, bytes: &[u8], fds: usize) -> Vec<(String, usize)> {
        let complete = lines.push(bytes, received(bytes, fds)).expect("short");
        complete
            .into_iter()
            .map(|line| {
                let text = String::from_utf8(line.bytes).expect("text");
                (text, line.fds.len())
            })
            .collect()
    }

    #[test]
    fn fds_belong_to_the_last_line_of_which_their_read_brought_a_byte() {
        let mut lines = Lines::default();
        let two = push(&mut lines, b"a\nb\n", 1);
        assert_eq!(two, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
        assert!(push(&mut lines, b"c", 1).is_empty());
        assert_eq!(push(&mut lines, b"c\nd", 0), [("cc".to_owned(), 1)]);
        assert_eq!(push(&mut lines, b"\n", 1), [("d".to_owned(), 1)]);
        assert!(lines.fds.is_empty() && lines.begun.is_empty());
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let mut lines = Lines::default();
        let chunk = [b'x'; MAX_LINE];
        assert!(lines.push(&chunk, received(&chunk, 0)).is_ok());
        let error = lines.push(b"x", received(b"x", 1)).expect_err("too long");
        assert_eq!(error, LineError::TooLong);
    }

    #[test]
    fn a_line_that_gathers_fds_without_end_is_refused() {
        let mut lines = Lines::default();
        for _ in 0..MAX_FDS {
            assert!(lines.push(b"x", received(b"x", 1)).is_ok());
        }
        let error = lines.push(b"x", received(b"x", 1)).expect_err("too many");
        assert_eq!(error, LineError::TooManyFds);
    }

    #[test]
    fn fds_that_were_lost_are_told_of_the_line_they_came_with() {
        let mut lines = Lines::default();
        let mut cut = received(b"a\nb\n", 0);
        cut.truncated = true;
        let lost: Vec<bool> = lines
            .push(b"a\nb\n", cut)
            .expect("short")
            .iter()
            .map(|line| line.lost)
            .collect();
        assert_eq!(lost, [false, true]);
    }

    proptest! {
        /// However the bytes are cut into reads, the lines are the same, every fd is with exactly
        /// one line or waits for its end, and a read's fds never go to a line before its last.
        #[test]
        fn lines_do_not_depend_on_where_reads_are_cut(
            reads in prop::collection::vec((prop::collection::vec(
                prop_oneof![Just(b'\n'), any::<u8>()], 1..40), 0_usize..2), 0..8)
        ) {
            let mut lines = Lines::default();
            let (mut whole, mut came, mut sent) = (Vec::new(), Vec::new(), 0);
            let mut held = 0;
            for (bytes, fds) in &reads {
                whole.extend_from_slice(bytes);
                sent += fds;
                let complete = lines.push(bytes, received(bytes, *fds)).expect("short");
                for line in complete {
                    held += line.fds.len();
                    came.push(line.bytes);
                }
            }
            let mut wanted: Vec<Vec<u8>> =
                whole.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            let rest = wanted.pop().unwrap_or_default();
            prop_assert_eq!(came, wanted);
            prop_assert_eq!(&lines.begun, &rest);
            prop_assert_eq!(held + lines.fds.len(), sent);
        }
    }
}
