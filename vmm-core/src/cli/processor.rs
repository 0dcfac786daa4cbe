//! `-smp` and `-m`: how many vCPUs, on how much RAM.

use qapi_schema::cli::{MemorySizeConfiguration, SmpConfiguration};
use qapi_schema::input::Size;

use super::config::{MemorySpec, SmpSpec};
use super::error::Problem;
use crate::kvm::cpuid::CpuTopology;
use crate::machine::MachineType;

/// RAM where `-m` names no size: 128 MiB.
const DEFAULT_RAM: u64 = 128 << 20;
const MIB: u64 = 1 << 20;
/// RAM is mapped in pages.
const PAGE: u64 = 4096;
/// The most places for memory modules.
const MOST_SLOTS: u32 = 256;

/// The counts of `-smp`, 0 where nothing is said.
struct Counts {
    cpus: u32,
    maxcpus: u32,
    sockets: u32,
    dies: u32,
    cores: u32,
    threads: u32,
}

/// How many vCPUs and how they are grouped, by the rules of QEMU since 6.2.
pub(super) fn resolve_smp(
    options: &SmpConfiguration,
    machine: &MachineType,
) -> Result<SmpSpec, Problem> {
    let mut counts = counts(options)?;
    fill_in(&mut counts);
    let Counts {
        sockets,
        dies,
        cores,
        threads,
        ..
    } = counts;
    let total = product(&[sockets, dies, cores, threads]);
    let maxcpus = if counts.maxcpus == 0 {
        total
    } else {
        counts.maxcpus
    };
    let cpus = if counts.cpus == 0 {
        maxcpus
    } else {
        counts.cpus
    };
    let levels =
        format!("sockets ({sockets}) * dies ({dies}) * cores ({cores}) * threads ({threads})");
    if total != maxcpus {
        return Err(Problem::new(format!(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: \
             {levels} != maxcpus ({maxcpus})"
        )));
    }
    if maxcpus < cpus {
        return Err(Problem::new(format!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: \
             {levels} == maxcpus ({maxcpus}) < smp_cpus ({cpus})"
        )));
    }
    if machine.max_vcpus != 0 && maxcpus > machine.max_vcpus {
        return Err(Problem::new(format!(
            "Invalid SMP CPUs {maxcpus}. The max CPUs supported by machine '{}' is {}",
            machine.name, machine.max_vcpus
        )));
    }
    Ok(SmpSpec {
        cpus,
        maxcpus,
        topology: CpuTopology {
            sockets,
            dies,
            cores,
            threads,
        },
    })
}

/// Gives the levels that nothing was said of the counts that follow from the others; what can be
/// is cores.
fn fill_in(counts: &mut Counts) {
    let of = |total: u32, by: u32| total.checked_div(by).unwrap_or(0);
    if counts.cpus == 0 && counts.maxcpus == 0 {
        for count in [&mut counts.sockets, &mut counts.cores, &mut counts.threads] {
            *count = (*count).max(1);
        }
        return;
    }
    if counts.maxcpus == 0 {
        counts.maxcpus = counts.cpus;
    }
    let total = counts.maxcpus;
    if counts.cores == 0 {
        counts.sockets = counts.sockets.max(1);
        counts.threads = counts.threads.max(1);
        counts.cores = of(
            total,
            product(&[counts.sockets, counts.dies, counts.threads]),
        );
    } else if counts.sockets == 0 {
        counts.threads = counts.threads.max(1);
        counts.sockets = of(total, product(&[counts.dies, counts.cores, counts.threads]));
    }
    if counts.threads == 0 {
        counts.threads = of(total, product(&[counts.sockets, counts.dies, counts.cores]));
    }
}

/// No product of counts that matter comes near the end of the range: it saturates above them.
fn product(counts: &[u32]) -> u32 {
    counts
        .iter()
        .fold(1, |product: u32, count| product.saturating_mul(*count))
}

fn counts(options: &SmpConfiguration) -> Result<Counts, Problem> {
    for (level, count) in [("clusters", options.clusters), ("modules", options.modules)] {
        if count.is_some_and(|count| count > 1) {
            return Err(Problem::new(format!(
                "{level} > 1 not supported by this machine's CPU topology"
            )));
        }
    }
    let count = |name: &str, count: Option<i64>| match count {
        None => Ok(0),
        Some(count) => match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) => Err(Problem::new(format!(
                "Invalid CPU topology: CPU topology parameters must be greater than zero, \
                 and '{name}' is not"
            ))),
            Err(_) => Err(Problem::new(format!(
                "'{name}' is {count}: no number of CPUs"
            ))),
        },
    };
    count("clusters", options.clusters)?;
    count("modules", options.modules)?;
    Ok(Counts {
        cpus: count("cpus", options.cpus)?,
        maxcpus: count("maxcpus", options.maxcpus)?,
        sockets: count("sockets", options.sockets)?,
        dies: count("dies", options.dies)?.max(1),
        cores: count("cores", options.cores)?,
        threads: count("threads", options.threads)?,
    })
}

/// How much RAM; `backend` is the size of the object that is the RAM, if one is.
pub(super) fn resolve_memory(
    options: &MemorySizeConfiguration,
    backend: Option<u64>,
    machine: &MachineType,
) -> Result<MemorySpec, Problem> {
    let given = match options.size.as_deref() {
        Some(text) => Some(mebibytes("size", text)?),
        None => None,
    };
    let size = given
        .filter(|size| *size > 0)
        .or(backend)
        .unwrap_or(if machine.has_board() { DEFAULT_RAM } else { 0 });
    if let Some(backend) = backend.filter(|backend| *backend != size) {
        return Err(Problem::new(format!(
            "Machine memory size does not match the size of the memory backend: \
             {size} and {backend} bytes"
        )));
    }
    if !size.is_multiple_of(PAGE) {
        return Err(Problem::new(format!(
            "size is {size} bytes: wanted a multiple of {PAGE}"
        )));
    }
    let slots = options.slots.unwrap_or(0);
    let slots = u32::try_from(slots)
        .ok()
        .filter(|slots| *slots <= MOST_SLOTS);
    let slots = slots.ok_or_else(|| {
        Problem::new(format!(
            "unsupported amount of memory slots: {}, maximum amount: {MOST_SLOTS}",
            options.slots.unwrap_or(0)
        ))
    })?;
    let maxmem = match options.maxmem.as_deref() {
        Some(text) => mebibytes("maxmem", text)?,
        None if slots > 0 => return Err(Problem::new("slots specified but no maxmem")),
        None => size,
    };
    if maxmem < size {
        return Err(Problem::new(format!(
            "invalid value of maxmem: maximum memory size (0x{maxmem:x}) must be at least the \
             initial memory size (0x{size:x})"
        )));
    }
    if !maxmem.is_multiple_of(PAGE) {
        return Err(Problem::new(format!(
            "maximum memory size must by aligned to multiple of {PAGE} bytes"
        )));
    }
    if slots > 0 && maxmem == size {
        return Err(Problem::new(format!(
            "invalid value of maxmem: memory slots were specified but maximum memory size \
             (0x{maxmem:x}) is equal to the initial memory size (0x{size:x})"
        )));
    }
    Ok(MemorySpec {
        size,
        slots,
        maxmem,
    })
}

/// A size whose unit is MiB where it has none.
fn mebibytes(key: &str, text: &str) -> Result<u64, Problem> {
    let bare = text.bytes().all(|byte| byte.is_ascii_digit());
    let scaled = || {
        let Size(size) = Size::parse(text)?;
        size.checked_mul(if bare { MIB } else { 1 })
    };
    scaled().ok_or_else(|| {
        Problem::new(format!(
            "Parameter '{key}' is '{text}': wanted a size below 2^64 bytes: a number, perhaps \
             with k, M, G, T, P or E"
        ))
    })
}
