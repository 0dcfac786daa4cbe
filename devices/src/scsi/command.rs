//! Commands: bytes of the guest into what is asked. Pure.

use super::sense::Sense;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The first block.
    pub(super) lba: u64,
    /// How many.
    pub(super) blocks: u32,
}

/// How MODE SENSE asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModeSense {
    pub(super) page: u8,
    /// 0 as it is, 1 what could change, 2 as it is by default, 3 as it is saved.
    pub(super) control: u8,
    /// Whether the block descriptor is to be left out.
    pub(super) no_blocks: bool,
    /// The form with a header of eight bytes.
    pub(super) long: bool,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense,
    /// INQUIRY, for a page of vital product data or for the standard answer.
    Inquiry(Option<u8>),
    ModeSense(ModeSense),
    ReportLuns,
    ReadCapacity10,
    ReadCapacity16,
    Read(Range),
    Write(Range, Durable),
    Verify(Range),
    Flush,
    Unmap,
    WriteSame {
        range: Range,
        /// Whether the blocks may be given back to the host.
        unmap: bool,
        /// Whether no data comes with it: zeroes are meant.
        no_data: bool,
    },
    /// START STOP UNIT with LOEJ: out (`false`) or in (`true`) with the medium.
    Tray(bool),
    /// START STOP UNIT without: nothing turns.
    Spin,
    Prevent(bool),
    ReadToc {
        minutes: bool,
        format: u8,
        track: u8,
    },
    GetConfiguration,
    GetEventStatus {
        polled: bool,
        classes: u8,
    },
}

/// Whether a write must be on storage when it ends.
pub(super) type Durable = bool;

/// What comes before the bytes that the guest left out.
fn byte(cdb: &[u8], at: usize) -> u8 {
    cdb.get(at).copied().unwrap_or(0)
}

fn number(cdb: &[u8], from: usize, len: usize) -> u64 {
    (from..from + len).fold(0, |number, at| number << 8 | u64::from(byte(cdb, at)))
}

fn length(cdb: &[u8], from: usize, len: usize) -> u32 {
    u32::try_from(number(cdb, from, len)).unwrap_or(u32::MAX)
}

/// The range of the 10, 12 and 16 byte forms, by the group of the operation code.
fn range(cdb: &[u8]) -> Range {
    let (lba, blocks) = match byte(cdb, 0) >> 5 {
        0 => {
            let blocks = match byte(cdb, 4) {
                0 => 256,
                blocks => blocks.into(),
            };
            (number(cdb, 1, 3) & 0x1f_ffff, blocks)
        }
        4 => (number(cdb, 2, 8), length(cdb, 10, 4)),
        5 => (number(cdb, 2, 4), length(cdb, 6, 4)),
        _ => (number(cdb, 2, 4), length(cdb, 7, 2)),
    };
    Range { lba, blocks }
}

impl Command {
    /// Reads a command, and how many bytes its answer may have at most.
    ///
    /// # Errors
    /// What the guest is told.
    pub(super) fn parse(cdb: &[u8]) -> Result<(Self, u32), Sense> {
        let options = byte(cdb, 1);
        let unlimited = u32::MAX;
        let fua = options & 0x08 != 0;
        Ok(match byte(cdb, 0) {
            0x00 => (Self::TestUnitReady, 0),
            0x03 => (Self::RequestSense, length(cdb, 4, 1)),
            0x08 | 0x28 | 0x88 | 0xa8 => (Self::Read(range(cdb)), unlimited),
            0x0a => (Self::Write(range(cdb), false), unlimited),
            0x2a | 0x8a | 0xaa => (Self::Write(range(cdb), fua), unlimited),
            // WRITE AND VERIFY
            0x2e | 0x8e | 0xae => (Self::Write(range(cdb), true), unlimited),
            0x2f | 0x8f | 0xaf => {
                if options & 0x06 != 0 {
                    return Err(Sense::INVALID_FIELD);
                }
                (Self::Verify(range(cdb)), unlimited)
            }
            0x12 => {
                let page = (options & 1 != 0).then(|| byte(cdb, 2));
                if page.is_none() && byte(cdb, 2) != 0 {
                    return Err(Sense::INVALID_FIELD);
                }
                (Self::Inquiry(page), length(cdb, 3, 2))
            }
            // Reservations of one guest by itself: nobody is in its way.
            0x16 | 0x17 | 0x56 | 0x57 => (Self::Spin, 0),
            0x1a => (Self::ModeSense(mode_sense(cdb, false)), length(cdb, 4, 1)),
            0x5a => (Self::ModeSense(mode_sense(cdb, true)), length(cdb, 7, 2)),
            0x1b if byte(cdb, 4) & 2 != 0 => (Self::Tray(byte(cdb, 4) & 1 != 0), 0),
            0x1b => (Self::Spin, 0),
            0x1e => (Self::Prevent(byte(cdb, 4) & 1 != 0), 0),
            0x25 => (Self::ReadCapacity10, unlimited),
            0x9e if options & 0x1f == 0x10 => (Self::ReadCapacity16, length(cdb, 10, 4)),
            0x35 | 0x91 => (Self::Flush, 0),
            0x41 | 0x93 => (write_same(cdb)?, unlimited),
            0x42 => (Self::Unmap, unlimited),
            0x43 => (
                Self::ReadToc {
                    minutes: options & 2 != 0,
                    format: byte(cdb, 2) & 0xf,
                    track: byte(cdb, 6),
                },
                length(cdb, 7, 2),
            ),
            0x46 => (Self::GetConfiguration, length(cdb, 7, 2)),
            0x4a => (
                Self::GetEventStatus {
                    polled: options & 1 != 0,
                    classes: byte(cdb, 4),
                },
                length(cdb, 7, 2),
            ),
            0xa0 => (Self::ReportLuns, length(cdb, 6, 4)),
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    /// Whether it is done although the unit has something to tell first (SPC-4, 5.14).
    pub(super) fn passes_attention(self) -> bool {
        matches!(
            self,
            Self::RequestSense
                | Self::Inquiry(_)
                | Self::ReportLuns
                | Self::GetConfiguration
                | Self::GetEventStatus { .. }
        )
    }
}

fn mode_sense(cdb: &[u8], long: bool) -> ModeSense {
    ModeSense {
        page: byte(cdb, 2) & 0x3f,
        control: byte(cdb, 2) >> 6,
        no_blocks: byte(cdb, 1) & 8 != 0,
        long,
    }
}

fn write_same(cdb: &[u8]) -> Result<Command, Sense> {
    let options = byte(cdb, 1);
    let range = range(cdb);
    // Anchored blocks, obsolete bits, and "all blocks", which the limits say is none of ours.
    if options & 0x16 != 0 || range.blocks == 0 {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::WriteSame {
        range,
        unmap: options & 8 != 0,
        no_data: options & 1 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(cdb: &[u8]) -> Result<Command, Sense> {
        Command::parse(cdb).map(|(command, _)| command)
    }

    #[test]
    fn each_form_of_read_names_its_blocks() {
        let range = |lba, blocks| Ok(Command::Read(Range { lba, blocks }));
        assert_eq!(parsed(&[8, 0xff, 2, 3, 0]), range(0x1f_0203, 256));
        let ten = [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0];
        assert_eq!(parsed(&ten), range(0x0102_0304, 0x0506));
        let twelve = [0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
        assert_eq!(parsed(&twelve), range(0x0102_0304, 0x0506_0708));
        let sixteen = [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0];
        assert_eq!(parsed(&sixteen), range(0x0102_0304_0506_0708, 0x090a_0b0c));
    }

    #[test]
    fn what_is_cut_short_reads_as_zeroes_and_strangers_are_refused() {
        assert_eq!(parsed(&[]), Ok(Command::TestUnitReady));
        assert_eq!(
            parsed(&[0x28]),
            Ok(Command::Read(Range { lba: 0, blocks: 0 }))
        );
        assert_eq!(parsed(&[0xff]), Err(Sense::INVALID_OPCODE));
        assert_eq!(parsed(&[0x12, 0, 0x83]), Err(Sense::INVALID_FIELD));
        assert_eq!(
            parsed(&[0x41, 0x10, 0, 0, 0, 0, 0, 0, 1]),
            Err(Sense::INVALID_FIELD)
        );
        assert_eq!(parsed(&[0x41, 1]), Err(Sense::INVALID_FIELD));
    }
}
