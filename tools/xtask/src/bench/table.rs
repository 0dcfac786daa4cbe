//! Samples, medians, and the table.

/// What is wanted of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// At most this share of the other's.
    Share(f64),
    /// At most so much more than the other's, in the row's unit.
    Above(f64),
}

/// One line of the table: what, in which unit, ours beside another's, and what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) unit: String,
    /// Medians: ours, the other's.
    pub(super) medians: [f64; 2],
    pub(super) bar: Bar,
}

impl Row {
    /// From samples of both, ours first.
    pub(super) fn new(what: &str, unit: &str, samples: [Vec<f64>; 2], bar: Bar) -> Self {
        Self {
            what: what.to_owned(),
            unit: unit.to_owned(),
            medians: samples.map(median),
            bar,
        }
    }

    /// What is compared with the bar, and the bar.
    fn verdict(&self) -> (f64, f64) {
        let [ours, other] = self.medians;
        match self.bar {
            Bar::Share(most) => (ours / other, most),
            Bar::Above(most) => (ours - other, most),
        }
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the rows under each other; `other` is whom they compare with.
pub(super) fn print(other: &str, rows: &[Row]) {
    let (is, name) = match rows.first().map(|row| row.bar) {
        Some(Bar::Above(_)) => ("more", "at most"),
        _ => ("ratio", "at most"),
    };
    println!();
    println!("{:<40} {:>12} {other:>12} {is:>7} {name:>7}", "", "sesame");
    for row in rows {
        let cell = |number: f64| format!("{number:.2} {}", row.unit);
        let (is, most) = row.verdict();
        let missed = if is <= most { "" } else { "  missed" };
        println!(
            "{:<40} {:>12} {:>12} {is:>7.3} {most:>7.3}{missed}",
            row.what,
            cell(row.medians[0]),
            cell(row.medians[1]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_medians_of_its_samples() {
        let row = Row::new("x", "ms", [vec![3.0, 1.0, 2.0], vec![8.0]], Bar::Share(0.5));
        assert_eq!(row.medians, [2.0, 8.0]);
        assert_eq!(row.verdict(), (0.25, 0.5));
        let more = Row {
            bar: Bar::Above(1.0),
            ..row
        };
        assert_eq!(more.verdict(), (-6.0, 1.0));
    }
}
