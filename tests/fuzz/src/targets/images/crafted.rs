//! Images that are made well, and then broken where it matters: what an input of plain bytes
//! seldom reaches.
//!
//! ```text
//!   input ─► layout ─► a sound image with something of everything, and a list of its fields
//!        └─► mutations: (field, value) … ─► fields say what no field should ─► cut, or longer
//! ```
//!
//! Values are those at which arithmetic breaks, the places of other tables (so that tables
//! overlap), and lengths that go on behind the end of the file.

use arbitrary::{Result, Unstructured};

/// Guest clusters that the image has an entry for.
const ENTRIES: u64 = 12;
/// The most fields that are broken in one image.
const MUTATIONS: u8 = 6;
const COPIED: u64 = 1 << 63;
/// 16 KiB of zeros, deflated.
const ZEROS: [u8; 33] = [
    237, 193, 49, 1, 0, 0, 0, 194, 160, 245, 79, 109, 12, 31, 160, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 128, 183, 1,
];

/// Where the parts of the image lie, by cluster.
mod cluster {
    pub(super) const REFTABLE: u64 = 1;
    pub(super) const REFCOUNTS: u64 = 2;
    pub(super) const L1: u64 = 3;
    pub(super) const L2: u64 = 4;
    pub(super) const SNAPSHOTS: u64 = 5;
    pub(super) const SNAPSHOT_L1: u64 = 6;
    pub(super) const SNAPSHOT_L2: u64 = 7;
    pub(super) const BITMAPS: u64 = 8;
    pub(super) const BITMAP_TABLE: u64 = 9;
    pub(super) const PACKED: u64 = 10;
    pub(super) const FIRST_DATA: u64 = 11;
    pub(super) const END: u64 = 16;
}

/// An image under construction.
struct Image {
    bytes: Vec<u8>,
    bits: u32,
    /// Where each number is, and how many bytes it has.
    fields: Vec<(usize, usize)>,
}

impl Image {
    fn at(&self, cluster: u64) -> u64 {
        cluster << self.bits
    }

    /// Puts a number where it can be broken.
    fn put(&mut self, offset: u64, width: usize, value: u64) {
        let at = usize::try_from(offset).expect("small");
        self.fields.push((at, width));
        self.set(at, width, value);
    }

    fn set(&mut self, at: usize, width: usize, value: u64) {
        let place = self.bytes.get_mut(at..at + width);
        if let Some(place) = place {
            place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
}

/// What is chosen of a layout.
struct Layout {
    bits: u32,
    version: u64,
    order: u64,
    extended: bool,
    dirty: bool,
    zstd: bool,
}

impl Layout {
    fn choose(input: &mut Unstructured<'_>) -> Result<Self> {
        let version = if input.ratio(1, 8)? { 2 } else { 3 };
        let new = version == 3;
        let extended = new && input.ratio(1, 4)?;
        let bits = if extended {
            14
        } else {
            *input.choose(&[9, 9, 10, 12])?
        };
        Ok(Self {
            bits,
            version,
            order: if new { input.int_in_range(0..=6)? } else { 4 },
            extended,
            dirty: new && input.arbitrary()?,
            zstd: new && input.ratio(1, 4)?,
        })
    }

    fn size(&self) -> u64 {
        ENTRIES << self.bits
    }

    fn incompatible(&self) -> u64 {
        u64::from(self.dirty) | u64::from(self.zstd) << 3 | u64::from(self.extended) << 4
    }

    /// The image, all of it sound.
    fn build(&self) -> Image {
        let len = usize::try_from(cluster::END << self.bits).expect("small");
        let mut image = Image {
            bytes: vec![0; len],
            bits: self.bits,
            fields: Vec::new(),
        };
        self.header(&mut image);
        self.tables(&mut image);
        self.snapshot(&mut image);
        self.bitmap(&mut image);
        image
    }

    fn header(&self, image: &mut Image) {
        let at = |cluster: u64| cluster << self.bits;
        let fields = [
            (0, 4, 0x5146_49fb),
            (4, 4, self.version),
            (8, 8, 0),
            (16, 4, 0),
            (20, 4, u64::from(self.bits)),
            (24, 8, self.size()),
            (32, 4, 0),
            (36, 4, 1),
            (40, 8, at(cluster::L1)),
            (48, 8, at(cluster::REFTABLE)),
            (56, 4, 1),
            (60, 4, 1),
            (64, 8, at(cluster::SNAPSHOTS)),
        ];
        for (offset, width, value) in fields {
            image.put(offset, width, value);
        }
        let mut extensions = 72;
        if self.version == 3 {
            let lazy = u64::from(self.dirty);
            let further = [
                (72, 8, self.incompatible()),
                (80, 8, lazy),
                (88, 8, 1),
                (96, 4, self.order),
                (100, 4, 112),
                (104, 1, u64::from(self.zstd)),
            ];
            for (offset, width, value) in further {
                image.put(offset, width, value);
            }
            extensions = 112;
        }
        let bitmaps = [
            (0, 4, 0x2385_2875),
            (4, 4, 24),
            (8, 4, 1),
            (16, 8, 32),
            (24, 8, at(cluster::BITMAPS)),
        ];
        for (offset, width, value) in bitmaps {
            image.put(extensions + offset, width, value);
        }
    }

    fn tables(&self, image: &mut Image) {
        let at = |cluster: u64| cluster << self.bits;
        image.put(at(cluster::REFTABLE), 8, at(cluster::REFCOUNTS));
        // What is used once; more than that is left to mutations.
        for used in 0..cluster::END {
            if self.order >= 3 {
                let width = 1 << (self.order - 3);
                let place = at(cluster::REFCOUNTS) + used * width;
                image.put(place, usize::try_from(width).expect("small"), 1);
            } else {
                let place = at(cluster::REFCOUNTS) + ((used << self.order) / 8);
                image.put(
                    place,
                    1,
                    [0xff, 0x55, 0x11][usize::try_from(self.order).expect("small")],
                );
            }
        }
        image.put(at(cluster::L1), 8, at(cluster::L2) | COPIED);
        let data = |number: u64| at(cluster::FIRST_DATA + number) | COPIED;
        let packed = 1 << 62 | at(cluster::PACKED);
        let entries = [
            data(0),
            data(1),
            0,
            packed,
            data(2),
            at(cluster::FIRST_DATA + 3),
        ];
        self.l2(image, cluster::L2, &entries);
        let place = usize::try_from(at(cluster::PACKED)).expect("small");
        image.bytes[place..place + ZEROS.len()].copy_from_slice(&ZEROS);
    }

    fn l2(&self, image: &mut Image, table: u64, entries: &[u64]) {
        let step = if self.extended { 16 } else { 8 };
        for (number, entry) in entries.iter().enumerate() {
            let place = image.at(table) + number as u64 * step;
            image.put(place, 8, *entry);
            if self.extended {
                let standard = entry & (1 << 62) == 0 && *entry != 0;
                image.put(place + 8, 8, if standard { 0xffff } else { 0xffff << 32 });
            }
        }
    }

    fn snapshot(&self, image: &mut Image) {
        let at = |cluster: u64| cluster << self.bits;
        let entry = at(cluster::SNAPSHOTS);
        let fields = [
            (0, 8, at(cluster::SNAPSHOT_L1)),
            (8, 4, 1),
            (12, 2, 1),
            (14, 2, 1),
            (16, 4, 1),
            (20, 4, 2),
            (24, 8, 3),
            (32, 4, 0),
            (36, 4, 24),
            (40, 8, 0),
            (48, 8, self.size()),
            (56, 8, u64::MAX),
            (64, 1, u64::from(b'1')),
            (65, 1, u64::from(b's')),
        ];
        for (offset, width, value) in fields {
            image.put(entry + offset, width, value);
        }
        image.put(at(cluster::SNAPSHOT_L1), 8, at(cluster::SNAPSHOT_L2));
        let data = at(cluster::FIRST_DATA + 4);
        self.l2(image, cluster::SNAPSHOT_L2, &[data]);
    }

    fn bitmap(&self, image: &mut Image) {
        let at = |cluster: u64| cluster << self.bits;
        let fields = [
            (0, 8, at(cluster::BITMAP_TABLE)),
            (8, 4, 1),
            (12, 4, 2),
            (16, 1, 1),
            (17, 1, 16),
            (18, 2, 1),
            (20, 4, 0),
            (24, 1, u64::from(b'b')),
        ];
        for (offset, width, value) in fields {
            image.put(at(cluster::BITMAPS) + offset, width, value);
        }
        image.put(at(cluster::BITMAP_TABLE), 8, 1);
    }
}

/// A value at which something may break.
fn value(input: &mut Unstructured<'_>, image: &Image) -> Result<u64> {
    let (size, len) = (1_u64 << image.bits, image.bytes.len() as u64);
    let edges = [
        0,
        1,
        2,
        511,
        size - 1,
        size,
        size / 8,
        len - 1,
        len,
        len + size,
        (1 << 31) - 1,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 56) - size,
        1 << 56,
        i64::MAX.unsigned_abs() - (size - 1),
        i64::MAX.unsigned_abs(),
        1 << 63,
        u64::MAX - (size - 1),
        u64::MAX,
    ];
    Ok(match input.int_in_range(0..=5_u8)? {
        0 | 1 => *input.choose(&edges)?,
        // Another part of the image: tables overlap.
        2 => input.int_in_range(0..=cluster::END)? << image.bits,
        3 => COPIED | input.int_in_range(0..=cluster::END)? << image.bits,
        4 => 1 << input.int_in_range(0..=63_u32)?,
        _ => input.arbitrary()?,
    })
}

/// An image, made from an input.
pub(super) fn image(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut image = Layout::choose(input)?.build();
    for _ in 0..input.int_in_range(0..=MUTATIONS)? {
        let (at, width) = *input.choose(&image.fields)?;
        let value = value(input, &image)?;
        let old = image.bytes.get(at..at + width).unwrap_or_default();
        let old = old.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let new = match input.int_in_range(0..=3_u8)? {
            0 => old ^ value,
            1 => old.wrapping_add(value),
            _ => value,
        };
        image.set(at, width, new);
    }
    if input.ratio(1, 4)? {
        let len = input.int_in_range(0..=image.bytes.len() * 2)?;
        image.bytes.resize(len, 0);
    }
    Ok(image.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_without_mutations_is_opened_and_written() {
        let _alone = crate::fds::alone();
        for (bits, version, order, extended) in [
            (9, 3, 4, false),
            (12, 2, 4, false),
            (14, 3, 6, true),
            (9, 3, 0, false),
        ] {
            let layout = Layout {
                bits,
                version,
                order,
                extended,
                dirty: version == 3,
                zstd: false,
            };
            let image = layout.build().bytes;
            let file = super::super::file_of(&image);
            let mut graph = block::BlockGraph::new();
            let node = super::super::open(&mut graph, &file, false).expect("sound");
            super::super::on_thread(&node, |io, node| async move {
                let sector = block::Segments::owned(512, 4096).expect("memory");
                let flags = block::WriteFlags::default();
                let written = node.write(&io, 0, sector.all(), flags).await;
                written.expect("a sound image is written");
            });
        }
    }
}
