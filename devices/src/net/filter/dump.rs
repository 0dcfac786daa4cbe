//! Packets into a file, as tcpdump and Wireshark read them (pcap 2.4, Ethernet, microseconds).
//!
//! ```text
//!   │ magic, version, snaplen, linktype │ time, kept, length │ packet, cut │ time, .. │ ..
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fdset::{Access, Door, Existing, OpenFile, Request, Role};
use nix::errno::Errno;

use super::FilterError;
use crate::chardev::endpoint::unblock;
use crate::net::packet::Packet;
use crate::net::{HEADER, LONGEST};
use crate::repeats::Repeats;

/// Permission bits of a file that is created: it shows what a guest says.
const MODE: u32 = 0o600;
/// What says in which byte order the numbers are, and that times are in microseconds.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// The zone of times, and how exact they are: nobody writes anything else.
const ZONE_AND_SIGFIGS: [u32; 2] = [0, 0];
const ETHERNET: u32 = 1;
/// Bytes before each packet.
const RECORD: usize = 16;

/// The file of a filter.
pub(super) struct Dump {
    id: String,
    longest: usize,
    output: Mutex<Output>,
    lost: Repeats,
}

struct Output {
    /// Gone once it takes nothing any more.
    file: Option<OpenFile>,
    record: Box<[u8]>,
    /// What of the record is to be written.
    start: usize,
    end: usize,
}

impl Dump {
    /// Opens the file and begins it; of each packet `longest` bytes are kept.
    pub(super) fn open(
        id: &str,
        name: &str,
        longest: usize,
        door: &Door,
    ) -> Result<Self, FilterError> {
        let reason = format!("filter '{id}'");
        let request = Request::new(name, Access::WriteOnly, Role::NetDump, &reason)
            .create(MODE, Existing::Truncate)
            .nonblocking(true);
        let file = fdset::open(door, &request)?;
        let failed = |what| {
            move |source| FilterError::Host {
                id: id.to_owned(),
                what,
                source,
            }
        };
        // A pipe must not stop dev-io when its reader does.
        unblock(&file).map_err(failed("unblocking its file"))?;
        let header = file_header(longest);
        match nix::unistd::write(&file, &header) {
            Ok(count) if count == header.len() => {}
            Ok(_) => {
                return Err(failed("writing the beginning of its file")(
                    Errno::ENOSPC.into(),
                ));
            }
            Err(error) => return Err(failed("writing the beginning of its file")(error.into())),
        }
        Ok(Self {
            id: id.to_owned(),
            longest,
            output: Mutex::new(Output {
                file: Some(file),
                record: vec![0; RECORD + LONGEST].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            lost: Repeats::default(),
        })
    }

    /// Adds a packet. What a full pipe does not take is lost, by whole packets; a full disk ends it.
    pub(super) fn write(&self, packet: &Packet<'_>) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match output.add(packet, self.longest) {
            Ok(true) => {}
            Ok(false) => {
                if let Some(times) = self.lost.note() {
                    tracing::warn!(times, filter = %self.id, "packets are not in the dump");
                }
            }
            Err(error) => {
                tracing::warn!(%error, filter = %self.id, "the dump ends: its file takes no more");
                output.file = None;
            }
        }
    }
}

impl Output {
    /// Writes a packet, or its beginning: the rest goes before the next one. Whether there was room.
    fn add(&mut self, packet: &Packet<'_>, longest: usize) -> Result<bool, Errno> {
        let has_room = self.push()?;
        if has_room {
            self.fill(packet, longest);
            self.push()?;
        }
        Ok(has_room)
    }

    /// Makes the record of a packet, without its virtio header.
    fn fill(&mut self, packet: &Packet<'_>, longest: usize) {
        let length = packet.len().saturating_sub(HEADER);
        let Some((head, body)) = self.record.split_first_chunk_mut::<RECORD>() else {
            return;
        };
        let room = longest.min(body.len());
        let kept = packet.copy(HEADER, body.get_mut(..room).unwrap_or_default());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        // The seconds have 32 bits and no sign: until 2106.
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let fields = [seconds, now.subsec_micros(), number(kept), number(length)];
        for (place, field) in head.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        (self.start, self.end) = (0, RECORD + kept);
    }

    /// Writes what is left of the record; whether nothing is.
    fn push(&mut self) -> Result<bool, Errno> {
        let Some(file) = &self.file else {
            self.start = self.end;
            return Ok(true);
        };
        while self.start < self.end {
            let rest = self.record.get(self.start..self.end).unwrap_or_default();
            match nix::unistd::write(file, rest) {
                Ok(count) => self.start += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// What the file begins with.
fn file_header(longest: usize) -> Vec<u8> {
    let [major, minor] = VERSION;
    let [zone, sigfigs] = ZONE_AND_SIGFIGS;
    let longest = u32::try_from(longest).unwrap_or(u32::MAX);
    [
        MAGIC.to_ne_bytes().as_slice(),
        &major.to_ne_bytes(),
        &minor.to_ne_bytes(),
        &zone.to_ne_bytes(),
        &sigfigs.to_ne_bytes(),
        &longest.to_ne_bytes(),
        &ETHERNET.to_ne_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use fdset::{FdRegistry, Handover, Origin, Scope};

    use super::*;
    use crate::net::packet::Whole;

    fn dump(longest: usize) -> (Dump, PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let handed = Handover::new(OwnedFd::from(writer), Origin::CommandLine);
        door.registry()
            .add_named(Scope::Process, "dump", handed)
            .unwrap();
        (Dump::open("f0", "fd:dump", longest, &door).unwrap(), reader)
    }

    fn put(dump: &Dump, packet: &[u8]) {
        let whole = [&[7; HEADER], packet].concat();
        dump.write(&Whole::new(&whole).packet());
    }

    /// What was kept of the next packet, and how long it was.
    fn next(reader: &mut PipeReader) -> (Vec<u8>, u32) {
        let mut head = [0; RECORD];
        reader.read_exact(&mut head).unwrap();
        let field = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        assert!(field(0) > 1_700_000_000 && field(4) < 1_000_000);
        let mut kept = vec![0; field(8) as usize];
        reader.read_exact(&mut kept).unwrap();
        (kept, field(12))
    }

    #[test]
    fn a_file_begins_with_what_it_is_and_has_packets_without_their_header() {
        let (dump, mut reader) = dump(4);
        put(&dump, b"abc");
        put(&dump, b"longer");
        let mut header = [0; 24];
        reader.read_exact(&mut header).unwrap();
        let begin = [0xa1b2_c3d4_u32.to_ne_bytes(), [2, 0, 4, 0]].concat();
        assert_eq!(header[..8], begin);
        assert_eq!(
            header[16..],
            [4_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat()
        );
        assert_eq!(next(&mut reader), (b"abc".to_vec(), 3));
        assert_eq!(next(&mut reader), (b"long".to_vec(), 6));
    }

    #[test]
    fn a_full_pipe_loses_whole_packets_and_the_next_ones_can_be_read() {
        let (dump, mut reader) = dump(1 << 16);
        let packet = vec![5; 10_000];
        for _ in 0..20 {
            put(&dump, &packet);
        }
        let mut header = [0; 24];
        reader.read_exact(&mut header).unwrap();
        // There is room for six in a pipe of 64 KiB; the seventh is cut, and goes on with the next one.
        for _ in 0..6 {
            assert_eq!(next(&mut reader), (packet.clone(), 10_000));
        }
        put(&dump, b"last");
        assert_eq!(next(&mut reader), (packet.clone(), 10_000));
        assert_eq!(next(&mut reader), (b"last".to_vec(), 4));
    }

    #[test]
    fn a_dump_that_nobody_reads_ends() {
        let (dump, reader) = dump(1 << 16);
        drop(reader);
        put(&dump, b"abc");
        assert!(dump.output.lock().unwrap().file.is_none());
        put(&dump, b"abc");
    }
}
