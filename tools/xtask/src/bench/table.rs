//! Samples, medians, and the table.
/// One line of the table: what, in which unit, by whom, and the ratio wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) unit: String,
    /// Medians: ours, the peer's.
    pub(super) medians: [f64; 2],
    /// At most this share of the peer's.
    pub(super) wanted: f64,
}

impl Row {
    /// From samples of both, ours first.
    pub(super) fn new(what: &str, unit: &str, samples: [Vec<f64>; 2], wanted: f64) -> Self {
        Self {
            what: what.to_owned(),
            unit: unit.to_owned(),
            medians: samples.map(median),
            wanted,
        }
    }

    fn ratio(&self) -> f64 {
        self.medians[0] / self.medians[1]
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the rows under each other.
pub(super) fn print(rows: &[Row]) {
    println!();
    println!(
        "{:<40} {:>12} {:>12} {:>7} {:>7}",
        "", "sesame", "QEMU", "ratio", "wanted"
    );
    for row in rows {
        let cell = |number: f64| format!("{number:.2} {}", row.unit);
        let verdict = if row.ratio() <= row.wanted {
            ""
        } else {
            "  missed"
        };
        println!(
            "{:<40} {:>12} {:>12} {:>7.3} {:>7.3}{verdict}",
            row.what,
            cell(row.medians[0]),
            cell(row.medians[1]),
            row.ratio(),
            row.wanted
        );
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_medians_of_its_samples() {
        let row = Row::new("x", "ms", [vec![3.0, 1.0, 2.0], vec![8.0]], 0.5);
        assert_eq!(row.medians, [2.0, 8.0]);
        assert_eq!(row.ratio(), 0.25);
    }
}
