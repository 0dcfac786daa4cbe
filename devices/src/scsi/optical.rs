//! What only CD drives answer (MMC-6). Pure.

use serde::{Deserialize, Serialize};

use super::sense::Sense;

/// The track behind the last one.
const LEAD_OUT: u8 = 0xaa;
/// A data track that can be copied.
const DATA: u8 = 0x14;

/// The mode page of capabilities: it reads discs, its tray opens and locks.
pub(super) fn capabilities() -> Vec<u8> {
    let mut page = vec![0x2a, 20, 0x3b, 0, 0x71, 0x60, 0x29, 0];
    page.resize(22, 0);
    page
}

/// READ TOC/PMA/ATIP: one session with one data track.
pub(super) fn toc(blocks: u64, minutes: bool, format: u8, track: u8) -> Result<Vec<u8>, Sense> {
    let address = |block: u64| -> [u8; 4] {
        if minutes {
            let frames = block + 150;
            let part = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
            [
                0,
                part(frames / 75 / 60),
                part(frames / 75 % 60),
                part(frames % 75),
            ]
        } else {
            u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes()
        }
    };
    let mut entries = Vec::new();
    match format {
        0 if track <= 1 || track == LEAD_OUT => {
            if track <= 1 {
                entries.extend([0, DATA, 1, 0]);
                entries.extend(address(0));
            }
            entries.extend([0, DATA, LEAD_OUT, 0]);
            entries.extend(address(blocks));
        }
        1 => {
            entries.extend([0, DATA, 1, 0]);
            entries.extend(address(0));
        }
        _ => return Err(Sense::INVALID_FIELD),
    }
    let [high, low] = u16::try_from(entries.len() + 2).unwrap_or(0).to_be_bytes();
    let mut answer = vec![high, low, 1, 1];
    answer.extend(entries);
    Ok(answer)
}

/// GET CONFIGURATION: the profile in force, a CD's or a DVD's by the length, and the list of both.
pub(super) fn configuration(blocks: Option<u64>) -> Vec<u8> {
    // 80 minutes.
    let profile: u8 = match blocks {
        None => 0,
        Some(blocks) if blocks <= 80 * 60 * 75 => 0x08,
        Some(_) => 0x10,
    };
    let current = |wanted: u8| u8::from(profile == wanted);
    let mut features = vec![0, 0, 3, 8, 0, 0x10, current(0x10), 0, 0, 8, current(8), 0];
    // Core (SCSI), removable medium with a tray.
    features.extend([0, 1, 7, 4, 0, 0, 0, 1]);
    features.extend([0, 3, 3, 4, 0x29, 0, 0, 0]);
    let len = u32::try_from(features.len() + 4).unwrap_or(0);
    let mut answer = len.to_be_bytes().to_vec();
    answer.extend([0, 0, 0, profile]);
    answer.extend(features);
    answer
}

/// What has happened to the tray since the guest last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrayNews {
    /// Somebody outside wants the medium back.
    pub eject_wanted: bool,
    /// A medium came.
    pub arrived: bool,
    /// The medium went.
    pub left: bool,
}

/// GET EVENT STATUS NOTIFICATION, for the class of media only.
pub(super) fn event_status(classes: u8, news: TrayNews, open: bool, present: bool) -> Vec<u8> {
    const MEDIA: u8 = 1 << 4;
    if classes & MEDIA == 0 {
        return vec![0, 2, 0x80, MEDIA];
    }
    let code = match news {
        TrayNews { arrived: true, .. } => 2,
        TrayNews { left: true, .. } => 3,
        TrayNews {
            eject_wanted: true, ..
        } => 1,
        _ => 0,
    };
    let status = u8::from(open) | u8::from(present) << 1;
    vec![0, 6, 4, MEDIA, code, status, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_contents_has_one_track_and_the_end() {
        let toc = toc(1000, false, 0, 0).unwrap();
        assert_eq!(toc[..4], [0, 18, 1, 1]);
        assert_eq!(toc[12..], [0, DATA, LEAD_OUT, 0, 0, 0, 3, 0xe8]);
        let minutes = super::toc(75 * 60, true, 0, LEAD_OUT).unwrap();
        assert_eq!(minutes[8..], [0, 1, 2, 0]);
        assert_eq!(super::toc(1, false, 5, 0), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn the_profile_follows_the_length() {
        assert_eq!(configuration(None)[7], 0);
        assert_eq!(configuration(Some(1000))[7], 8);
        assert_eq!(configuration(Some(2_000_000))[7], 0x10);
    }
}
