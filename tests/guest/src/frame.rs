//! The frames between the lab machine's init and the host: one byte of kind, four bytes of
//! length (little endian), the payload. Binary, because a command's output is anything.
use std::io::{self, Read, Write};

/// No frame is longer: output is cut into pieces, and a request is a command line.
pub const LONGEST: usize = 1 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// lab → host: up and waiting for commands; no payload.
    Ready,
    /// host → lab: run this: JSON `{"argv": [..], "cwd": "..", "env": {..}}`.
    Run,
    /// lab → host: bytes that the command printed.
    Output,
    /// lab → host: the command ended; the payload is its exit status as text.
    Exit,
    /// host → lab: power off; no payload.
    Leave,
    /// lab → host: what kept the lab from doing the last thing asked.
    Failed,
}

const KINDS: [(Kind, u8); 6] = [
    (Kind::Ready, b'r'),
    (Kind::Run, b'c'),
    (Kind::Output, b'o'),
    (Kind::Exit, b'x'),
    (Kind::Leave, b'q'),
    (Kind::Failed, b'f'),
];

/// Sends one frame.
pub fn send(port: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let byte = KINDS
        .iter()
        .find(|(k, _)| *k == kind)
        .map_or(b'?', |(_, byte)| *byte);
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(byte);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    port.write_all(&frame)
}

/// Receives one frame; an unknown kind or an over-long one is an error.
pub fn receive(port: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    port.read_exact(&mut head)?;
    let [byte, a, b, c, d] = head;
    let kind = KINDS
        .iter()
        .find(|(_, known)| *known == byte)
        .map(|(kind, _)| *kind)
        .ok_or_else(|| io::Error::other(format!("unknown lab frame {byte:#04x}")))?;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(io::Error::other)?;
    if length > LONGEST {
        return Err(io::Error::other(format!("lab frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    port.read_exact(&mut payload)?;
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_arrives_as_it_was_sent() {
        for (kind, _) in KINDS {
            let mut wire = Vec::new();
            send(&mut wire, kind, b"payload").unwrap();
            assert_eq!(
                receive(&mut wire.as_slice()).unwrap(),
                (kind, b"payload".to_vec())
            );
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let wire = [b'o', 0xff, 0xff, 0xff, 0xff];
        assert!(receive(&mut wire.as_slice()).is_err());
    }
}
