//! What QEMU's tool says of a transfer: sizes and rates as its tests filter and compare them.

use std::time::Duration;

/// A number of bytes in its largest unit, with three digits behind the point unless all are 0.
pub(super) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    rate(bytes as f64)
}

fn rate(bytes: f64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut number, mut unit) = (bytes, 0);
    while number >= 1024.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    let text = format!("{number:.3}");
    format!(
        "{} {}",
        text.strip_suffix(".000").unwrap_or(&text),
        UNITS[unit]
    )
}

/// What was moved, and how quickly.
pub(super) struct Moved<'a> {
    /// `read`, `wrote`, `discard`.
    pub(super) verb: &'a str,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) took: Duration,
    /// For programs.
    pub(super) terse: bool,
}

impl Moved<'_> {
    pub(super) fn text(&self) -> String {
        let Self {
            verb, offset, len, ..
        } = self;
        let seconds = self.took.as_secs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let rest = format!("{:02}.{:02}", seconds % 60, self.took.subsec_millis() / 10);
        let each = self.took.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown")]
        let (per_second, operations) = (*len as f64 / each, 1.0 / each);
        if self.terse {
            return format!(
                "{len},1,{hours}:{minutes:02}:{rest},{per_second:.3},{operations:.3}\n"
            );
        }
        let time = if hours == 0 && minutes == 0 {
            format!("{rest} sec")
        } else {
            format!("{hours}:{minutes:02}:{rest}")
        };
        format!(
            "{verb} {len}/{len} bytes at offset {offset}\n\
             {}, 1 ops; {time} ({}/sec and {operations:.4} ops/sec)\n",
            size(*len),
            rate(per_second)
        )
    }
}

/// Bytes as a table of sixteen in a line.
pub(super) fn dump(offset: u64, bytes: &[u8]) -> String {
    let line = |(at, line): (u64, &[u8])| {
        let hex: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let shown = |byte: &u8| {
            if byte.is_ascii_alphanumeric() {
                char::from(*byte)
            } else {
                '.'
            }
        };
        let text: String = line.iter().map(shown).collect();
        format!("{:08x}:  {hex:<48} {text}\n", offset + at * 16)
    };
    (0..).zip(bytes.chunks(16)).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_their_largest_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (511, "511 bytes"),
            (1024, "1 KiB"),
            (1536, "1.500 KiB"),
            (65536, "64 KiB"),
            (2 << 20, "2 MiB"),
            (3 << 60, "3 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_transfer_is_told_for_people_and_for_programs() {
        let mut moved = Moved {
            verb: "wrote",
            offset: 512,
            len: 65536,
            took: Duration::from_millis(250),
            terse: false,
        };
        assert_eq!(
            moved.text(),
            "wrote 65536/65536 bytes at offset 512\n\
             64 KiB, 1 ops; 00.25 sec (256 KiB/sec and 4.0000 ops/sec)\n"
        );
        moved.terse = true;
        assert_eq!(moved.text(), "65536,1,0:00:00.25,262144.000,4.000\n");
    }

    #[test]
    fn bytes_are_dumped_sixteen_a_line() {
        let bytes: Vec<u8> = (0x30..0x42).collect();
        assert_eq!(
            dump(16, &bytes),
            "00000010:  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789......\n\
             00000020:  40 41                                            .A\n"
        );
    }
}
