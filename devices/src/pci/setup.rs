//! Who gets which address: the part of a firmware's work that a machine without firmware does at
//! each reset.
//!
//! ```text
//!   survey (the tree's registers) ──► plan (pure, deterministic) ──► apply (register writes)
//! ```
//!
//! Bus numbers are given depth first; then each bridge gets a memory and a prefetchable window, a
//! port with room for hot-plug, what is behind inside; then the BARs of the root bus, largest first. The same
//! tree gives the same addresses. A BAR that finds no room stays unassigned, and the guest's own
//! resource code may still place it.

use std::ops::Range;

use super::address::{Bdf, SlotAddress};
use super::bar::{self, BarKind};
use super::host::PciHost;
use super::host_bridge::PCIEXBAR;
use super::inspect::{BridgeView, FunctionView};
use super::regs;

/// The granularity of bridge windows.
const MIB: u64 = 1 << 20;

/// The address ranges that the machine gives to PCI; the same that `_CRS` of the host bridge names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupSpec {
    /// Where the first 256 buses' configuration space lies in memory.
    pub ecam: u64,
    /// Ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub memory32: Range<u64>,
    /// Memory above RAM, for 64-bit BARs; may be empty.
    pub memory64: Range<u64>,
    /// The least size of a port's memory window in bytes (rounded up to 1 MiB).
    pub port_memory: u64,
    /// The least size of a port's prefetchable window in bytes; used only if `memory64` has room.
    pub port_prefetchable: u64,
}

impl SetupSpec {
    /// Room for hot-plug behind a port: two MiB of memory.
    pub const PORT_MEMORY: u64 = 2 * MIB;
    /// Room for hot-plug behind a port: 32 MiB of prefetchable memory.
    pub const PORT_PREFETCHABLE: u64 = 32 * MIB;
}

/// A BAR that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlan {
    /// Which BAR.
    pub index: usize,
    /// Space and width.
    pub kind: BarKind,
    /// Its size.
    pub size: u64,
    /// Its address; `None` where no room was left.
    pub address: Option<u64>,
}

/// A bridge's numbers and windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePlan {
    /// The bus behind.
    pub secondary: u8,
    /// The highest bus behind.
    pub subordinate: u8,
    /// The memory window; `None`: closed.
    pub memory: Option<Range<u64>>,
    /// The prefetchable window; `None`: closed.
    pub prefetchable: Option<Range<u64>>,
}

/// What is to be written to one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPlan {
    /// Where it answers once the bridges in front have their numbers.
    pub bdf: (u8, SlotAddress),
    /// Its BARs.
    pub bars: Vec<BarPlan>,
    /// Its numbers and windows, for a bridge.
    pub bridge: Option<BridgePlan>,
}

/// Hands out everything: the survey, the plan and its application in one step.
pub fn assign(host: &PciHost, spec: &SetupSpec) -> Vec<FunctionPlan> {
    let plan = plan(&host.inspect(), spec);
    open_window(host, spec.ecam);
    apply(host, &plan);
    plan
}

/// Opens the window into configuration space at `base`, a multiple of its 256 MiB.
pub fn open_window(host: &PciHost, base: u64) {
    let bdf = Bdf {
        bus: 0,
        slot: SlotAddress::slot(0),
    };
    host.config_write(bdf, PCIEXBAR, &(base | 1).to_le_bytes());
}

/// The highest bus number that `plans` give away: nothing answers on a bus above it.
#[must_use]
pub fn last_bus(plans: &[FunctionPlan]) -> u8 {
    let bridges = plans.iter().filter_map(|plan| plan.bridge.as_ref());
    bridges.map(|bridge| bridge.subordinate).max().unwrap_or(0)
}

/// Decides who gets what. Pure: the same survey and spec give the same plan.
#[must_use]
pub fn plan(survey: &[FunctionView], spec: &SetupSpec) -> Vec<FunctionPlan> {
    let mut pools = Pools {
        io: Pool::new(&spec.io),
        memory32: Pool::new(&spec.memory32),
        memory64: Pool::new(&spec.memory64),
    };
    let mut next_bus = 1;
    let mut plans = plan_bus(survey, 0, spec, &mut pools, &mut next_bus);
    plans.sort_by_key(|plan| plan.bdf);
    plans
}

struct Pools {
    io: Pool,
    memory32: Pool,
    memory64: Pool,
}

/// A range that is given away from its start.
struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    const fn new(range: &Range<u64>) -> Self {
        Self {
            next: range.start,
            end: range.end,
        }
    }

    /// `size` bytes at a multiple of `align`, a power of two.
    fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        // Zero is "unassigned" to a BAR.
        let base = self.next.max(1).checked_next_multiple_of(align.max(1))?;
        let end = base.checked_add(size)?;
        if size == 0 || end > self.end {
            return None;
        }
        self.next = end;
        Some(base)
    }
}

fn plan_bus(
    functions: &[FunctionView],
    bus: u8,
    spec: &SetupSpec,
    pools: &mut Pools,
    next_bus: &mut u16,
) -> Vec<FunctionPlan> {
    let mut plans = Vec::new();
    let mut own = Vec::new();
    for view in functions {
        let mut plan = FunctionPlan {
            bdf: (bus, view.address),
            bars: Vec::new(),
            bridge: None,
        };
        if let Some(behind) = &view.bridge
            && let Some((bridge, below)) = plan_bridge(behind, spec, pools, next_bus)
        {
            plan.bridge = Some(bridge);
            plans.extend(below);
        }
        own.push((plan, view));
    }
    plans.extend(place_bars(own, pools));
    plans
}

/// A bridge, and what is behind it, inside windows of its own. `None` when the bus numbers are
/// used up: the bridge stays closed.
fn plan_bridge(
    behind: &BridgeView,
    spec: &SetupSpec,
    pools: &mut Pools,
    next_bus: &mut u16,
) -> Option<(BridgePlan, Vec<FunctionPlan>)> {
    let secondary = u8::try_from(*next_bus).ok()?;
    *next_bus += 1;
    let functions = &behind.functions;
    let (need32, need64) = (demand(functions, false), demand(functions, true));
    let least = |reserve| {
        if behind.kind.takes_hot_plug() {
            reserve
        } else {
            0
        }
    };
    let memory = window(&mut pools.memory32, least(spec.port_memory), need32);
    let prefetchable = window(&mut pools.memory64, least(spec.port_prefetchable), need64);
    let mut inner = Pools {
        // Bridges forward no I/O.
        io: Pool { next: 0, end: 0 },
        memory32: Pool::new(memory.as_ref().unwrap_or(&(0..0))),
        memory64: Pool::new(prefetchable.as_ref().unwrap_or(&(0..0))),
    };
    let below = plan_bus(functions, secondary, spec, &mut inner, next_bus);
    let subordinate = u8::try_from(*next_bus - 1).unwrap_or(u8::MAX);
    let bridge = BridgePlan {
        secondary,
        subordinate,
        memory,
        prefetchable,
    };
    Some((bridge, below))
}

/// An upper bound of the memory that `functions` and all behind them need, aligned as they like,
/// and the largest alignment. Bridges count with the hot-plug reserve of a port.
fn demand(functions: &[FunctionView], wide: bool) -> (u64, u64) {
    let mut total: u64 = 0;
    let mut align = MIB;
    for view in functions {
        for region in &view.regions {
            let counts = match region.kind {
                BarKind::Io => false,
                BarKind::Memory32 => !wide,
                BarKind::Memory64 => wide,
            };
            if counts {
                total = total.saturating_add(region.size);
                align = align.max(region.size);
            }
        }
        if let Some(behind) = &view.bridge {
            let (inner, inner_align) = demand(&behind.functions, wide);
            let reserve = if behind.kind.takes_hot_plug() {
                SetupSpec::PORT_MEMORY
            } else {
                0
            };
            let inner = inner.max(reserve).checked_next_multiple_of(MIB);
            total = total.saturating_add(inner.unwrap_or(u64::MAX));
            align = align.max(inner_align);
        }
    }
    (total, align)
}

fn window(pool: &mut Pool, least: u64, (need, align): (u64, u64)) -> Option<Range<u64>> {
    let size = least.max(need).checked_next_multiple_of(MIB)?;
    let base = pool.take(size, align)?;
    Some(base..base + size)
}

/// Places the BARs of one bus: largest first, so that alignment wastes nothing.
fn place_bars(
    functions: Vec<(FunctionPlan, &FunctionView)>,
    pools: &mut Pools,
) -> Vec<FunctionPlan> {
    let mut wanted = Vec::new();
    for (position, (_, view)) in functions.iter().enumerate() {
        for region in &view.regions {
            wanted.push((position, region.index, region.kind, region.size));
        }
    }
    wanted.sort_by_key(|&(position, index, _, size)| (std::cmp::Reverse(size), position, index));
    let mut plans: Vec<FunctionPlan> = functions.into_iter().map(|(plan, _)| plan).collect();
    for (position, index, kind, size) in wanted {
        let address = match kind {
            BarKind::Io => pools.io.take(size, size),
            BarKind::Memory32 => pools.memory32.take(size, size),
            // Where there is no room above, a 64-bit BAR does with an address below 4 GiB.
            BarKind::Memory64 => pools
                .memory64
                .take(size, size)
                .or_else(|| pools.memory32.take(size, size)),
        };
        if let Some(plan) = plans.get_mut(position) {
            plan.bars.push(BarPlan {
                index,
                kind,
                size,
                address,
            });
        }
    }
    plans
}

/// Writes the plan into the registers, bridges before what is behind them.
pub fn apply(host: &PciHost, plans: &[FunctionPlan]) {
    // The plan is sorted by bus, and a bus has a higher number than the one in front of it.
    for plan in plans {
        let (bus, slot) = plan.bdf;
        let bdf = Bdf { bus, slot };
        let write = |offset, data: &[u8]| host.config_write(bdf, offset, data);
        for bar in &plan.bars {
            if let Some(address) = bar.address {
                let [a, b, c, d, high @ ..] = address.to_le_bytes();
                write(bar::register(bar.index), &[a, b, c, d]);
                if bar.kind == BarKind::Memory64 {
                    write(bar::register(bar.index) + 4, &high);
                }
            }
        }
        if let Some(bridge) = &plan.bridge {
            write_bridge(&write, bus, bridge);
        }
        let mut command = 0;
        for bar in plan.bars.iter().filter(|bar| bar.address.is_some()) {
            command |= match bar.kind {
                BarKind::Io => regs::COMMAND_IO,
                BarKind::Memory32 | BarKind::Memory64 => regs::COMMAND_MEMORY,
            };
        }
        if plan.bridge.is_some() {
            command |= regs::COMMAND_MEMORY | regs::COMMAND_MASTER;
        }
        // A function with an unplaced BAR is left to the guest: enabling it would map address 0.
        if plan.bars.iter().all(|bar| bar.address.is_some()) {
            write(regs::COMMAND, &command.to_le_bytes());
        }
    }
}

fn write_bridge(write: &impl Fn(u16, &[u8]), primary: u8, bridge: &BridgePlan) {
    write(
        regs::PRIMARY_BUS,
        &[primary, bridge.secondary, bridge.subordinate],
    );
    if let Some(memory) = &bridge.memory {
        write(regs::MEMORY_BASE, &window_register(memory.start));
        write(regs::MEMORY_LIMIT, &window_register(memory.end - 1));
    }
    if let Some(range) = &bridge.prefetchable {
        let high = |address: u64| {
            let [_, _, _, _, high @ ..] = address.to_le_bytes();
            high
        };
        write(regs::PREFETCH_BASE, &window_register(range.start));
        write(regs::PREFETCH_LIMIT, &window_register(range.end - 1));
        write(regs::PREFETCH_BASE_HIGH, &high(range.start));
        write(regs::PREFETCH_LIMIT_HIGH, &high(range.end - 1));
    }
}

/// Address bits 31..20 in bits 15..4.
fn window_register(address: u64) -> [u8; 2] {
    let [_, _, low, high, ..] = address.to_le_bytes();
    [low & 0xf0, high]
}

#[cfg(test)]
mod tests;
