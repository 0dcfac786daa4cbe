//! What a unit answers without its medium: who it is and what it can do. Pure.

use super::command::ModeSense;
use super::sense::Sense;
use super::unit::{Kind, ScsiUnitSpec};
use crate::geometry::Geometry;

/// The most blocks of one UNMAP or WRITE SAME, in bytes: 1 GiB.
pub(super) const MAX_CHANGE: u64 = 1 << 30;
/// The most ranges of one UNMAP.
pub(super) const MAX_RANGES: usize = 255;

/// What the medium is, for answers that tell of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Medium {
    /// Bytes.
    pub(super) len: u64,
    pub(super) read_only: bool,
    /// Whether blocks can be given back.
    pub(super) discard: bool,
}

/// The answer to INQUIRY (SPC-4, 6.6).
pub(super) fn inquiry(
    spec: &ScsiUnitSpec,
    medium: Medium,
    page: Option<u8>,
) -> Result<Vec<u8>, Sense> {
    match page {
        None => Ok(standard(spec)),
        Some(page) => product_page(spec, medium, page),
    }
}

fn standard(spec: &ScsiUnitSpec) -> Vec<u8> {
    let removable = if spec.removable { 0x80 } else { 0 };
    // Hierarchical addressing, command queueing.
    let version = spec.scsi_version;
    let mut answer = vec![spec.kind.code(), removable, version, 0x12, 31, 0, 0, 0x02];
    answer.extend(padded::<8>(&spec.vendor));
    answer.extend(padded::<16>(&spec.product));
    answer.extend(padded::<4>(&spec.version));
    answer
}

/// The beginning of a text, filled up with spaces.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}

fn product_page(spec: &ScsiUnitSpec, medium: Medium, page: u8) -> Result<Vec<u8>, Sense> {
    let is_disk = spec.kind == Kind::Disk;
    let body = match page {
        0x00 => {
            let pages = [
                (0x00, true),
                (0x80, !spec.serial.is_empty()),
                (0x83, true),
                (0xb0, is_disk),
                (0xb1, is_disk),
                (0xb2, is_disk),
            ];
            let there = pages.into_iter().filter(|(_, there)| *there);
            there.map(|(page, _)| page).collect()
        }
        0x80 if !spec.serial.is_empty() => spec.serial.bytes().take(36).collect(),
        0x83 => identification(spec),
        0xb0 if is_disk => limits(spec, medium),
        0xb1 if is_disk => characteristics(spec),
        0xb2 if is_disk => provisioning(medium),
        _ => return Err(Sense::INVALID_FIELD),
    };
    let [high, low] = u16::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let mut answer = vec![spec.kind.code(), page, high, low];
    answer.extend(body);
    Ok(answer)
}

/// The designators (SPC-4, 7.8.6): a name of its maker's, the unit's worldwide name, and whose port
/// it is reached by.
fn identification(spec: &ScsiUnitSpec) -> Vec<u8> {
    /// Code sets; the second with SAS as the protocol of a port.
    const ASCII: u8 = 2;
    const BINARY: u8 = 1;
    const SAS: u8 = 6 << 4;
    /// Types of designators, and that it is a port's, whose protocol is said.
    const VENDOR: u8 = 0;
    const NAA: u8 = 3;
    const RELATIVE: u8 = 4;
    const OF_PORT: u8 = 0x80 | 1 << 4;
    let name = spec.device_id.as_ref().unwrap_or(&spec.serial);
    let name: Vec<u8> = name.bytes().take(247).collect();
    let mut body = Vec::new();
    let mut designate = |code_set: u8, kind: u8, name: &[u8]| {
        body.extend([code_set, kind, 0, u8::try_from(name.len()).unwrap_or(0)]);
        body.extend(name);
    };
    if !name.is_empty() {
        designate(ASCII, VENDOR, &name);
    }
    if let Some(wwn) = spec.wwn {
        designate(BINARY, NAA, &wwn.to_be_bytes());
    }
    if let Some(wwn) = spec.port_wwn {
        designate(SAS | BINARY, OF_PORT | NAA, &wwn.to_be_bytes());
    }
    if let Some(index) = spec.port_index {
        let index = u32::from(index).to_be_bytes();
        designate(SAS | BINARY, OF_PORT | RELATIVE, &index);
    }
    body
}

/// SBC-3, 6.5.2.
fn characteristics(spec: &ScsiUnitSpec) -> Vec<u8> {
    let mut body = spec.rotation_rate.to_be_bytes().to_vec();
    body.resize(60, 0);
    body
}

/// SBC-3, 6.5.3.
fn limits(spec: &ScsiUnitSpec, medium: Medium) -> Vec<u8> {
    let blocks = MAX_CHANGE / u64::from(spec.logical_block_size);
    let mut body = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in body.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    // A WRITE SAME of no blocks is refused.
    put(0, &[1]);
    if medium.discard {
        put(16, &u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
        put(20, &u32::try_from(MAX_RANGES).unwrap_or(1).to_be_bytes());
        put(24, &1_u32.to_be_bytes());
    }
    put(32, &blocks.to_be_bytes());
    body
}

/// SBC-3, 6.5.4: by UNMAP and both WRITE SAME, thin.
fn provisioning(medium: Medium) -> Vec<u8> {
    if medium.discard {
        vec![0, 0xe0, 2, 0]
    } else {
        vec![0; 4]
    }
}

/// The answer to MODE SENSE (SPC-4, 6.11; SBC-3, 6.4).
pub(super) fn mode_sense(
    spec: &ScsiUnitSpec,
    medium: Medium,
    write_cache: bool,
    asked: ModeSense,
) -> Result<Vec<u8>, Sense> {
    if asked.control == 3 {
        return Err(Sense::NOTHING_SAVED);
    }
    let pages = mode_pages(spec, write_cache, asked)?;
    let mut blocks = Vec::new();
    if spec.kind == Kind::Disk && !asked.no_blocks {
        let count = medium.len / u64::from(spec.logical_block_size);
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(0xff_ffff);
        blocks.extend(count.to_be_bytes());
        blocks.extend(spec.logical_block_size.to_be_bytes());
    }
    let protected = if medium.read_only && spec.kind == Kind::Disk {
        0x80
    } else {
        0
    };
    // DPO and FUA are understood.
    let specific = protected | if spec.kind == Kind::Disk { 0x10 } else { 0 };
    let rest = blocks.len() + pages.len();
    let descriptor = u8::try_from(blocks.len()).unwrap_or(0);
    let mut answer = if asked.long {
        let [high, low] = u16::try_from(rest + 6).unwrap_or(0).to_be_bytes();
        vec![high, low, 0, specific, 0, 0, 0, descriptor]
    } else {
        vec![u8::try_from(rest + 3).unwrap_or(0), 0, specific, descriptor]
    };
    answer.extend(blocks);
    answer.extend(pages);
    Ok(answer)
}

fn mode_pages(spec: &ScsiUnitSpec, write_cache: bool, asked: ModeSense) -> Result<Vec<u8>, Sense> {
    let mut recovery = vec![0x01, 10];
    recovery.extend([0; 10]);
    let mut caching = vec![0x08, 18, if write_cache { 4 } else { 0 }];
    caching.extend([0; 17]);
    let mut all = vec![recovery];
    if let Some(geometry) = spec.geometry {
        all.extend(geometry_pages(spec, geometry));
    }
    all.push(caching);
    if spec.kind == Kind::Cd {
        all.push(super::optical::capabilities());
    }
    let mut pages = Vec::new();
    for mut page in all {
        if matches!(asked.page, 0x3f) || page.first() == Some(&asked.page) {
            if asked.control == 1 {
                // Nothing can be changed.
                page.iter_mut().skip(2).for_each(|byte| *byte = 0);
            }
            pages.extend(page);
        }
    }
    if pages.is_empty() {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(pages)
}

/// The pages of rigid and of flexible disks (SBC, NCITS 306-1998; obsolete since SBC-2).
fn geometry_pages(spec: &ScsiUnitSpec, geometry: Geometry) -> [Vec<u8>; 2] {
    let Geometry {
        cylinders,
        heads,
        sectors,
    } = geometry;
    let [high, low] = cylinders.to_be_bytes();
    // 1 means that nothing rotates.
    let rotation = if spec.rotation_rate > 1 {
        spec.rotation_rate
    } else {
        0
    };
    let rotation = rotation.to_be_bytes();
    let mut rigid = vec![0x04, 22, 0, high, low, heads];
    rigid.resize(24, 0);
    rigid[20..22].copy_from_slice(&rotation);
    let block = u16::try_from(spec.logical_block_size).unwrap_or(u16::MAX);
    let [block_high, block_low] = block.to_be_bytes();
    let mut flexible = vec![
        0x05, 30, 0, 0, heads, sectors, block_high, block_low, high, low,
    ];
    flexible.resize(32, 0);
    flexible[28..30].copy_from_slice(&rotation);
    [rigid, flexible]
}

/// The answer to READ CAPACITY (10): the last block, at most the highest that it can tell.
pub(super) fn capacity10(block: u32, medium: Medium) -> Vec<u8> {
    let last = (medium.len / u64::from(block)).saturating_sub(1);
    let last = u32::try_from(last).unwrap_or(u32::MAX);
    [last.to_be_bytes(), block.to_be_bytes()].concat()
}

/// The answer to READ CAPACITY (16).
pub(super) fn capacity16(spec: &ScsiUnitSpec, medium: Medium) -> Vec<u8> {
    let block = spec.logical_block_size;
    let last = (medium.len / u64::from(block)).saturating_sub(1);
    let mut answer = [&last.to_be_bytes()[..], &block.to_be_bytes()].concat();
    answer.resize(32, 0);
    let exponent = (spec.physical_block_size / block).trailing_zeros();
    answer[13] = u8::try_from(exponent).unwrap_or(0);
    answer[14] = if medium.discard { 0x80 } else { 0 };
    answer
}
