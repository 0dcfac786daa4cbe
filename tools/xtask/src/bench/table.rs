//! Samples, what is told of them, and the table.

/// What is wanted of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// The median is at most this share of the other's.
    Share(f64),
    /// So are the median and the 99th percentile.
    ShareOfBoth(f64),
    /// The median is at least so many times the other's.
    Times(f64),
    /// The median is at most so much more than the other's, in the row's unit.
    Above(f64),
    /// The median is at least so much, whatever the other's.
    AtLeast(f64),
    /// The median is at most so much, whatever the other's.
    AtMost(f64),
    /// Nothing: it is there to be seen.
    Shown,
}

/// What is told of many samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    /// The 99th percentile.
    pub(super) tail: f64,
    pub(super) most: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        let count = samples.len();
        Self {
            median: at(count / 2),
            tail: at(count * 99 / 100),
            most: at(count.saturating_sub(1)),
        }
    }
}

/// One line of the table: what, in which unit, ours beside another's, and what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    what: String,
    unit: &'static str,
    /// Ours, the other's.
    spreads: [Spread; 2],
    bar: Bar,
}

impl Row {
    /// From samples of both, ours first.
    pub(super) fn new(
        what: impl Into<String>,
        unit: &'static str,
        samples: [Vec<f64>; 2],
        bar: Bar,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            spreads: samples.map(Spread::of),
            bar,
        }
    }

    /// What is compared with the bar, the bar in words, and whether it is met.
    fn verdict(&self) -> Verdict {
        let [ours, other] = self.spreads;
        let median = ours.median / other.median;
        let verdict = |is, wanted, met| Verdict { is, wanted, met };
        match self.bar {
            Bar::Share(most) => verdict(
                format!("{median:.3}"),
                format!("≤ {most:.3}"),
                median <= most,
            ),
            Bar::ShareOfBoth(most) => {
                let tail = ours.tail / other.tail;
                let met = median <= most && tail <= most;
                verdict(
                    format!("{median:.3} {tail:.3}"),
                    format!("≤ {most:.3}"),
                    met,
                )
            }
            Bar::Times(least) => verdict(
                format!("{median:.2}"),
                format!("≥ {least:.2}"),
                median >= least,
            ),
            Bar::Above(most) => {
                let above = ours.median - other.median;
                verdict(
                    format!("+{above:.2}"),
                    format!("≤ {most:.0}"),
                    above <= most,
                )
            }
            Bar::AtLeast(least) => verdict(
                format!("{:.0}", ours.median),
                format!("≥ {least:.0}"),
                ours.median >= least,
            ),
            Bar::AtMost(most) => verdict(
                format!("{:.1}", ours.median),
                format!("≤ {most:.0}"),
                ours.median <= most,
            ),
            Bar::Shown => verdict(format!("{median:.3}"), String::new(), true),
        }
    }
}

struct Verdict {
    is: String,
    wanted: String,
    met: bool,
}

/// Prints the rows under each other; `other` is whom they compare with.
pub(super) fn print(other: &str, rows: &[Row]) {
    println!();
    println!("{:48} {:^31}   {other:^31}", "", "sesame");
    let heads = |names: [&str; 3]| names.map(|name| format!("{name:>10}")).concat();
    let quantiles = heads(["p50", "p99", "max"]);
    println!(
        "{:48} {quantiles}   {quantiles} {:>12} {:>8}",
        "", "ratio", "wanted"
    );
    for row in rows {
        let [ours, others] = row
            .spreads
            .map(|spread| [spread.median, spread.tail, spread.most])
            .map(|numbers| {
                numbers
                    .map(|number| format!("{:>10}", brief(number)))
                    .concat()
            });
        let Verdict { is, wanted, met } = row.verdict();
        let missed = if met { "" } else { "  missed" };
        let what = format!("{}, {}", row.what, row.unit);
        println!("{what:48} {ours}   {others} {is:>12} {wanted:>8}{missed}");
    }
}

/// Four digits where there are so many, and no fraction that nobody reads.
fn brief(number: f64) -> String {
    let digits = match number.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: Vec<f64>, others: Vec<f64>, bar: Bar) -> Row {
        Row::new("x", "ms", [ours, others], bar)
    }

    fn is_met(bar: Bar) -> bool {
        let mut ours = vec![1.0; 98];
        ours.extend([3.0, 5.0]);
        row(ours, vec![4.0; 100], bar).verdict().met
    }

    #[test]
    fn a_row_tells_median_tail_and_most_of_its_samples() {
        let samples = (0..200).rev().map(f64::from).collect();
        let spread = Spread {
            median: 100.0,
            tail: 198.0,
            most: 199.0,
        };
        assert_eq!(Spread::of(samples), spread);
    }

    #[test]
    fn each_bar_is_met_from_its_own_side_only() {
        for (met, missed) in [
            (Bar::Share(0.25), Bar::Share(0.24)),
            (Bar::ShareOfBoth(1.25), Bar::ShareOfBoth(1.2)),
            (Bar::Times(0.25), Bar::Times(0.26)),
            (Bar::Above(-3.0), Bar::Above(-3.1)),
            (Bar::AtLeast(1.0), Bar::AtLeast(1.1)),
            (Bar::AtMost(1.0), Bar::AtMost(0.9)),
        ] {
            assert!(is_met(met), "{met:?}");
            assert!(!is_met(missed), "{missed:?}");
        }
        assert!(is_met(Bar::Shown));
    }

    #[test]
    fn a_row_without_samples_meets_no_bar() {
        let empty = row(Vec::new(), vec![1.0], Bar::Share(1.0));
        assert!(!empty.verdict().met);
    }
}
