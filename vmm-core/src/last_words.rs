//! What a signal handler says before the process ends: one line, put together without an allocation
//! or a lock, by calls that are safe in a handler.
#![expect(unsafe_code, reason = "calls for signal handlers")]
// UNSAFETY: in a handler there is nothing but raw calls.

/// The longest line.
const ROOM: usize = 400;
/// The longest name of a thread, with the zero after it.
const NAME: usize = 16;

/// Text without an allocation; what is too long is cut.
pub(crate) struct Line {
    bytes: [u8; ROOM],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 0,
        }
    }
}

impl Line {
    /// Adds text.
    pub(crate) fn add(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    /// Adds a number.
    pub(crate) fn add_number(&mut self, number: u64) {
        if number >= 10 {
            self.add_number(number / 10);
        }
        let digit = u8::try_from(number % 10).unwrap_or(0);
        self.add(&[b'0' + digit]);
    }

    /// All of it.
    pub(crate) fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Adds the name of the calling thread.
    pub(crate) fn add_thread(&mut self) {
        let mut name = [0_u8; NAME];
        // SAFETY: the call writes at most 16 bytes, zero included.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        self.add(name.split(|byte| *byte == 0).next().unwrap_or_default());
    }

    /// Writes it to standard error.
    pub(crate) fn write(&self) {
        let text = self.text();
        // SAFETY: the bytes are our own, and live until the call has read them.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}
