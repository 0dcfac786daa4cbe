//! How fast memory is: numbers that must fit 16 bits each in a unit that they share.

use qapi_schema::QmpError;
use qapi_schema::numa::{HmatLBDataType, NumaHmatLBOptions};

use super::refuse;
use crate::machine::numa::MemorySpeed;

const MIB: u64 = 1 << 20;
/// The largest number of units: 65535 means that there is no way.
const LARGEST: u64 = 0xfffe;
/// Picoseconds of a nanosecond.
const PICOSECONDS: u64 = 1000;

/// One table: of a hierarchy and a kind.
#[derive(Clone, Debug)]
struct Table {
    hierarchy: u8,
    kind: u8,
    /// Initiator, target; nanoseconds or MiB/s.
    entries: Vec<(u16, u16, u64)>,
}

/// All that has been said of speeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Speeds(Vec<Table>);

fn is_latency(kind: u8) -> bool {
    kind < HmatLBDataType::AccessBandwidth as u8
}

impl Speeds {
    /// Takes one piece, whose nodes are there.
    pub(super) fn take(&mut self, options: &NumaHmatLBOptions) -> Result<(), QmpError> {
        let (hierarchy, kind) = (options.hierarchy as u8, options.data_type as u8);
        let (from, to) = (options.initiator, options.target);
        let value = value_of(options)?;
        let what = if is_latency(kind) {
            "latency"
        } else {
            "bandwidth"
        };
        let mut tables = self.0.iter();
        let found = tables.position(|table| (table.hierarchy, table.kind) == (hierarchy, kind));
        let old = found.and_then(|at| self.0.get(at));
        let mut entries = old.map(|table| table.entries.clone()).unwrap_or_default();
        if entries.iter().any(|entry| (entry.0, entry.1) == (from, to)) {
            return refuse(format!(
                "Duplicate configuration of the {what} for initiator={from} and target={to}."
            ));
        }
        entries.push((from, to, value));
        if unit(kind, &entries).is_none() {
            return refuse(format!(
                "The {what} {value} between initiator={from} and target={to} should not differ \
                 from previously entered values on more than {LARGEST}."
            ));
        }
        let table = Table {
            hierarchy,
            kind,
            entries,
        };
        match found.and_then(|at| self.0.get_mut(at)) {
            Some(old) => *old = table,
            None => self.0.push(table),
        }
        Ok(())
    }

    /// Whether both a latency and a bandwidth of the node's memory are known.
    pub(super) fn is_told_of(&self, node: u32) -> bool {
        let tells = |latency: bool| {
            let tables = self
                .0
                .iter()
                .filter(|table| is_latency(table.kind) == latency);
            let mut entries = tables.flat_map(|table| &table.entries);
            entries.any(|entry| u32::from(entry.1) == node && entry.2 > 0)
        };
        tells(true) && tells(false)
    }

    /// The tables with their units.
    pub(super) fn finish(&self) -> Vec<MemorySpeed> {
        let tables = self.0.iter().filter_map(|table| {
            let unit = unit(table.kind, &table.entries)?;
            let narrow = |value: u64| u16::try_from(value / unit).unwrap_or(u16::MAX);
            let entries = table.entries.iter();
            Some(MemorySpeed {
                hierarchy: table.hierarchy,
                kind: table.kind,
                base: if is_latency(table.kind) {
                    unit.saturating_mul(PICOSECONDS)
                } else {
                    unit
                },
                entries: entries
                    .map(|(from, to, value)| (u32::from(*from), u32::from(*to), narrow(*value)))
                    .collect(),
            })
        });
        tables.collect()
    }
}

fn value_of(options: &NumaHmatLBOptions) -> Result<u64, QmpError> {
    let latency = is_latency(options.data_type as u8);
    match (latency, options.latency, options.bandwidth) {
        (true, None, _) => refuse("Missing 'latency' option."),
        (true, _, Some(_)) => refuse("Invalid option 'bandwidth' since the data type is latency."),
        (false, _, None) => refuse("Missing 'bandwidth' option."),
        (false, Some(_), _) => refuse("Invalid option 'latency' since the data type is bandwidth."),
        (true, Some(latency), None) => Ok(latency),
        (false, None, Some(bandwidth)) if bandwidth.is_multiple_of(MIB) => Ok(bandwidth / MIB),
        (false, None, Some(bandwidth)) => refuse(format!(
            "Bandwidth {bandwidth} between initiator={} and target={} should be 1MB aligned.",
            options.initiator, options.target
        )),
    }
}

/// The largest unit of which every value is a multiple: a power of ten for times, of two for
/// amounts. `None` if a value is too many of them.
fn unit(kind: u8, entries: &[(u16, u16, u64)]) -> Option<u64> {
    let factor = if is_latency(kind) { 10 } else { 2 };
    let values = || {
        entries
            .iter()
            .map(|entry| entry.2)
            .filter(|value| *value > 0)
    };
    let largest = values().max().unwrap_or(0);
    let mut unit: u64 = 1;
    while let Some(next) = unit.checked_mul(factor).filter(|next| *next <= largest)
        && values().all(|value| value.is_multiple_of(next))
    {
        unit = next;
    }
    (largest / unit <= LARGEST).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_the_largest_unit_that_divides_them() {
        let latencies = [(0, 0, 500), (0, 1, 70_000)];
        assert_eq!(unit(0, &latencies), Some(100));
        assert_eq!(unit(0, &[(0, 0, 1), (0, 1, 65_534)]), Some(1));
        assert_eq!(unit(0, &[(0, 0, 1), (0, 1, 65_535)]), None);
        assert_eq!(unit(3, &[(0, 0, 65_535)]), None);
        assert_eq!(unit(3, &[(0, 0, 0), (0, 1, 131_072)]), Some(131_072));
    }
}
