//! A socket read line by line, each line with a deadline.
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The reading half of a line protocol.
#[derive(Debug)]
pub struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads from `stream`, which stays usable for writing.
    pub fn new(stream: &UnixStream) -> Result<Self> {
        Ok(Self {
            stream: stream.try_clone()?,
            buffer: Vec::new(),
        })
    }

    /// The next line without its end, or `None` at the end of the stream.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?.trim_end().to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    bail!(
                        "no line in time; so far: {:?}",
                        String::from_utf8_lossy(&self.buffer)
                    )
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
