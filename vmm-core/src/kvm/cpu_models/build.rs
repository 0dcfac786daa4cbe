//! From what is wanted and what KVM supports to the leaves of CPUID.
//!
//! The guest's number of CPUs is in none of them yet. Sources: Intel SDM volume 2A, CPUID, and
//! volume 1, chapter 13 (XSAVE); AMD APM volume 3, appendix E.

use super::catalog::{Cache, Generation, Origin};
use super::features::{self, WORDS};
use super::leaves::Register::Edx;
use super::leaves::{Leaves, Place};
use super::{CpuSpec, Lacking, Said};
use crate::kvm::KvmError;

/// What a guest of KVM gets with every model of the table, where this host has it.
const WITH_KVM: &str = "x2apic hypervisor kvmclock kvm-nopiodelay kvm-asyncpf kvm-steal-time \
    kvm-pv-eoi kvmclock-stable-bit";
/// What says how many CPUs there are, which is not the model's to say.
const TOPOLOGY: &[&str] = &["ht", "cmp-legacy"];
/// What is no use without another feature, and is off with it.
const HANGS_ON: &[(&str, &str)] = &[
    (
        "xsave",
        "xsaveopt xsavec xgetbv1 xsaves xfd avx mpx avx512f pku amx-tile",
    ),
    (
        "avx",
        "avx2 fma f16c fma4 xop vaes vpclmulqdq avx-vnni avx-ifma avx512f",
    ),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi \
         avx512vbmi2 avx512vnni avx512bitalg avx512-vpopcntdq avx512-4vnniw avx512-4fmaps \
         avx512-vp2intersect avx512-bf16 avx512-fp16",
    ),
    ("amx-tile", "amx-bf16 amx-int8 amx-fp16 amx-complex"),
    (
        "svm",
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists pause-filter \
         pfthreshold avic v-vmsave-vmload vgif vnmi svme-addr-chk",
    ),
];
/// The registers that XSAVE keeps, and the feature without which there are none: bits of XCR0.
const STATES: &[(&str, u64)] = &[
    ("avx", 1 << 2),
    ("mpx", 0b11 << 3),
    ("avx512f", 0b111 << 5),
    ("pku", 1 << 9),
    ("amx-tile", 0b11 << 17),
];
/// The x87 and SSE registers, which XSAVE always keeps, and the room for them with its header.
const LEGACY_STATES: u64 = 0b11;
const LEGACY_SIZE: u32 = 576;

pub(super) const KVM_LEAVES: u32 = 0x4000_0000;
/// AMD repeats these bits of leaf 1 EDX in leaf 0x8000_0001.
const AMD_REPEATS: u32 = 0x0183_f3ff;
/// A processor of a table has as many bits of physical address as QEMU's, if the host has.
const PHYSICAL_BITS: u32 = 40;

/// The leaves of a model, and the features that were wanted and that this host lacks.
pub(in crate::kvm) struct Facts {
    pub(in crate::kvm) leaves: Leaves,
    pub(in crate::kvm) lacks: Vec<&'static str>,
    /// The same as bits; all others are zero.
    pub(in crate::kvm) filtered: Leaves,
}

/// What `spec` shows a guest where KVM supports `supported`; basic leaves go to `level` at least, and
/// as far as what is wanted would have them, so that a host that lacks it makes no difference.
pub(in crate::kvm) fn build(
    spec: &CpuSpec,
    supported: &Leaves,
    level: u32,
) -> Result<Facts, KvmError> {
    let generation = match spec.model.origin {
        Origin::Host => None,
        Origin::Table(generation) => Some(generation),
    };
    let mut leaves = generation.map_or_else(|| supported.clone(), |one| wanted(one, supported));
    for (name, on) in &spec.switches {
        switch(&mut leaves, name, *on);
    }
    drop_dependants(&mut leaves);
    let level = level.max(leaves.last_shown(0));
    let (lacks, filtered) = keep_supported(&mut leaves, supported);
    if spec.lacking == Lacking::Refused && !lacks.is_empty() {
        return Err(KvmError::LacksFeatures {
            model: spec.model.name,
            features: lacks.join(", "),
        });
    }
    if let Some(generation) = generation {
        complete(&mut leaves, spec, generation, supported);
    }
    for said in &spec.said {
        match *said {
            Said::Counters(on) => set_counters(&mut leaves, supported, on),
            Said::HostCaches => leaves.replace(CACHE_LEAVES, supported),
            _ => {}
        }
    }
    fit_states(&mut leaves, supported, generation.is_some());
    set_levels(&mut leaves, level);
    for said in &spec.said {
        apply(&mut leaves, said, supported)?;
    }
    Ok(Facts {
        leaves,
        lacks,
        filtered,
    })
}

/// The features of a generation, in leaves that have nothing else.
fn wanted(generation: &Generation, supported: &Leaves) -> Leaves {
    let mut leaves = Leaves::default();
    for name in generation.features.names() {
        switch(&mut leaves, name, true);
    }
    for name in WITH_KVM.split_whitespace() {
        if features::shows(supported, name) {
            switch(&mut leaves, name, true);
        }
    }
    leaves
}

fn switch(leaves: &mut Leaves, name: &str, on: bool) {
    for (place, bit) in features::bits(name) {
        let register = leaves.register_mut(place);
        *register = if on {
            *register | bit
        } else {
            *register & !bit
        };
    }
}

fn drop_dependants(leaves: &mut Leaves) {
    for (parent, children) in HANGS_ON {
        if !features::shows(leaves, parent) {
            for child in children.split_whitespace() {
                switch(leaves, child, false);
            }
        }
    }
}

/// Leaves only what is supported, and says what went: names, and the bits that have one.
fn keep_supported(leaves: &mut Leaves, supported: &Leaves) -> (Vec<&'static str>, Leaves) {
    let (mut lacks, mut filtered) = (Vec::new(), Leaves::default());
    for word in WORDS {
        let had = leaves.register(word.place);
        let lacking = had & !supported.register(word.place);
        if lacking == 0 {
            continue;
        }
        *leaves.register_mut(word.place) = had & !lacking;
        for (name, bit) in word.named() {
            if lacking >> bit & 1 == 1 && !TOPOLOGY.contains(&name) {
                lacks.push(name);
                *filtered.register_mut(word.place) |= 1 << bit;
            }
        }
    }
    // What hung on it went as well, without being lacking itself.
    drop_dependants(leaves);
    (lacks, filtered)
}

/// Everything but features: who it is, and its caches.
fn complete(leaves: &mut Leaves, spec: &CpuSpec, generation: &Generation, supported: &Leaves) {
    let vendor = spec.said.iter().rev().find_map(|said| match said {
        Said::Vendor(name) => Some(*name),
        _ => None,
    });
    // System calls work as the host's vendor has them, so that is what the guest has to know.
    set_vendor(leaves, vendor.unwrap_or_else(|| supported.vendor()));
    let (family, model, stepping) = generation.signature;
    leaves.leaf(1, 0).ebx = 8 << 8;
    set_signature(
        leaves,
        Signature {
            family,
            model,
            stepping,
        },
    );
    set_brand(leaves, spec.model.about);
    add_caches(leaves, generation, !spec.said.contains(&Said::NoL3Cache));
    for leaf in &supported.0 {
        if leaf.function == KVM_LEAVES {
            leaves.0.push(*leaf);
        }
    }
    let bits = physical_bits(supported).min(PHYSICAL_BITS);
    let linear = if features::shows(leaves, "la57") {
        57
    } else {
        48
    };
    leaves.leaf(0x8000_0008, 0).eax = bits | linear << 8;
    if features::shows(leaves, "svm") {
        let address_spaces = 16;
        let leaf = leaves.leaf(0x8000_000a, 0);
        (leaf.eax, leaf.ebx) = (1, address_spaces);
    }
}

fn set_vendor(leaves: &mut Leaves, name: [u8; 12]) {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    let leaf = leaves.leaf(0, 0);
    (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
    let (ebx, edx, ecx) = if leaves.is_amd() {
        (word(0), word(4), word(8))
    } else {
        (0, 0, 0)
    };
    let leaf = leaves.leaf(0x8000_0000, 0);
    (leaf.ebx, leaf.edx, leaf.ecx) = (ebx, edx, ecx);
    let one = |register| Place {
        function: 1,
        index: 0,
        register,
    };
    let repeated = leaves.register(one(Edx)) & AMD_REPEATS;
    let repeats = leaves.is_amd();
    let leaf = leaves.leaf(0x8000_0001, 0);
    leaf.edx = leaf.edx & !AMD_REPEATS | if repeats { repeated } else { 0 };
}

/// Family, model and stepping, with their extensions.
pub(super) struct Signature {
    pub(super) family: u32,
    pub(super) model: u32,
    pub(super) stepping: u32,
}

pub(super) fn signature(leaves: &Leaves) -> Signature {
    let eax = leaves.find(1, 0).map_or(0, |leaf| leaf.eax);
    let family = eax >> 8 & 0xf;
    Signature {
        family: if family == 0xf {
            0xf + (eax >> 20 & 0xff)
        } else {
            family
        },
        model: eax >> 4 & 0xf | (eax >> 16 & 0xf) << 4,
        stepping: eax & 0xf,
    }
}

fn set_signature(leaves: &mut Leaves, signature: Signature) {
    let Signature {
        family,
        model,
        stepping,
    } = signature;
    let extended = family.saturating_sub(0xf);
    let eax = stepping & 0xf
        | (model & 0xf) << 4
        | family.min(0xf) << 8
        | (model >> 4 & 0xf) << 16
        | (extended & 0xff) << 20;
    leaves.leaf(1, 0).eax = eax;
    let repeats = leaves.is_amd();
    leaves.leaf(0x8000_0001, 0).eax = if repeats { eax } else { 0 };
}

fn set_brand(leaves: &mut Leaves, name: &str) {
    let mut text = [0_u8; 48];
    for (to, from) in text.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    for (function, part) in (0x8000_0002..).zip(text.chunks_exact(16)) {
        let word =
            |at: usize| u32::from_le_bytes([part[at], part[at + 1], part[at + 2], part[at + 3]]);
        leaves.put(function, 0, [word(0), word(4), word(8), word(12)]);
    }
}

/// What a leaf of "deterministic cache parameters" calls a cache's kind.
const DATA: u32 = 1;
const CODE: u32 = 2;
const UNIFIED: u32 = 3;
const LINE: u32 = 64;

/// The leaves that speak of caches, of all vendors.
const CACHE_LEAVES: &[u32] = &[2, 4, 0x8000_0005, 0x8000_0006, 0x8000_001d];

fn add_caches(leaves: &mut Leaves, generation: &Generation, has_l3: bool) {
    let caches = generation.caches;
    let all = [
        (DATA, 1, &caches.l1_data),
        (CODE, 1, &caches.l1_code),
        (UNIFIED, 2, &caches.l2),
        (UNIFIED, 3, &caches.l3),
    ];
    let function = if !leaves.is_amd() {
        // "See leaf 4" is the only descriptor of a cache.
        leaves.put(2, 0, [0xff01, 0, 0, 0]);
        Some(4)
    } else if features::shows(leaves, "topoext") {
        // Which core it is follows with the topology.
        leaves.put(0x8000_001e, 0, [0; 4]);
        Some(0x8000_001d)
    } else {
        None
    };
    if let Some(function) = function {
        let count = if has_l3 { 4 } else { 3 };
        for (index, (kind, level, cache)) in (0..count).zip(all) {
            let self_initializing = 1 << 8;
            let sets = (cache.kib << 10) / LINE / cache.ways;
            let ebx = (LINE - 1) | (cache.ways - 1) << 22;
            let registers = [kind | level << 5 | self_initializing, ebx, sets - 1, 0];
            leaves.put(function, index, registers);
        }
        leaves.put(function, count, [0; 4]);
    }
    let l1 = |cache: &Cache| LINE | 1 << 8 | cache.ways << 16 | cache.kib << 24;
    if leaves.is_amd() {
        leaves.put(
            0x8000_0005,
            0,
            [0, 0, l1(&caches.l1_data), l1(&caches.l1_code)],
        );
    }
    let l2 = LINE | 1 << 8 | associativity(caches.l2.ways) << 12 | caches.l2.kib << 16;
    let l3 = LINE | 1 << 8 | associativity(caches.l3.ways) << 12 | (caches.l3.kib / 512) << 18;
    let l3 = if leaves.is_amd() && has_l3 { l3 } else { 0 };
    leaves.put(0x8000_0006, 0, [0, 0, l2, l3]);
}

/// How leaf 0x8000_0006 writes a number of ways.
fn associativity(ways: u32) -> u32 {
    match ways {
        8 => 6,
        16 => 8,
        20 => 9,
        _ => 0,
    }
}

/// Fits what XSAVE keeps to the features that are left.
fn fit_states(leaves: &mut Leaves, supported: &Leaves, is_table: bool) {
    leaves
        .0
        .retain(|leaf| leaf.function != 0xd || leaf.index == 1);
    if !features::shows(leaves, "xsave") {
        leaves.0.retain(|leaf| leaf.function != 0xd);
        return;
    }
    let Some(top) = supported.find(0xd, 0) else {
        return;
    };
    let host = u64::from(top.eax) | u64::from(top.edx) << 32;
    let known = STATES
        .iter()
        .fold(LEGACY_STATES, |all, (_, bits)| all | bits);
    let mut states = if is_table { host & known } else { host };
    for (name, bits) in STATES {
        if !features::shows(leaves, name) {
            states &= !bits;
        }
    }
    let saves_more = !is_table && features::shows(leaves, "xsaves");
    let more = supported.find(0xd, 1).filter(|_| saves_more);
    let supervisor = more.map_or(0, |leaf| u64::from(leaf.ecx) | u64::from(leaf.edx) << 32);
    let mut size = LEGACY_SIZE;
    for index in 2..63 {
        let kept = (states | supervisor) >> index & 1 == 1;
        let Some(leaf) = supported.find(0xd, index).filter(|_| kept) else {
            continue;
        };
        if states >> index & 1 == 1 {
            size = size.max(leaf.ebx.saturating_add(leaf.eax));
        }
        leaves.0.push(*leaf);
    }
    let halves =
        |bits: u64| [bits & 0xffff_ffff, bits >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let [low, high] = halves(states);
    // KVM itself keeps EBX to what the guest has switched on.
    leaves.put(0xd, 0, [low, size, size, high]);
    let [low, high] = halves(supervisor);
    let leaf = leaves.leaf(0xd, 1);
    (leaf.ecx, leaf.edx) = (low, high);
}

/// What speaks of performance counters: leaves, and features of others.
const COUNTER_LEAVES: &[u32] = &[0xa, 0x8000_0022];
const COUNTER_FEATURES: &[&str] = &["pdcm", "perfctr-core", "perfctr-nb"];

fn set_counters(leaves: &mut Leaves, supported: &Leaves, on: bool) {
    let source = if on {
        supported.clone()
    } else {
        Leaves::default()
    };
    leaves.replace(COUNTER_LEAVES, &source);
    for name in COUNTER_FEATURES {
        switch(leaves, name, features::shows(&source, name));
    }
}

/// How far the leaves go.
fn set_levels(leaves: &mut Leaves, level: u32) {
    for (first, least) in [(0, level), (0x8000_0000, 0x8000_0000)] {
        let last = leaves.last(first).max(least);
        let leaf = leaves.leaf(first, 0);
        leaf.eax = leaf.eax.max(last);
    }
    let of_seven = leaves.0.iter().filter(|leaf| leaf.function == 7);
    let last = of_seven.map(|leaf| leaf.index).max();
    if let Some(last) = last {
        let leaf = leaves.leaf(7, 0);
        leaf.eax = leaf.eax.max(last);
    }
}

fn physical_bits(leaves: &Leaves) -> u32 {
    leaves
        .find(0x8000_0008, 0)
        .map_or(36, |leaf| leaf.eax & 0xff)
}

fn apply(leaves: &mut Leaves, said: &Said, supported: &Leaves) -> Result<(), KvmError> {
    let now = signature(leaves);
    match *said {
        Said::Vendor(name) => set_vendor(leaves, name),
        Said::Family(family) => set_signature(leaves, Signature { family, ..now }),
        Said::Model(model) => set_signature(leaves, Signature { model, ..now }),
        Said::Stepping(stepping) => set_signature(leaves, Signature { stepping, ..now }),
        Said::Brand(ref name) => set_brand(leaves, name),
        Said::Level(level) => leaves.leaf(0, 0).eax = level,
        Said::ExtendedLevel(level) => leaves.leaf(0x8000_0000, 0).eax = level,
        Said::PhysicalBits(bits) => {
            let max = physical_bits(supported);
            if bits > max {
                return Err(KvmError::PhysicalBits { bits, max });
            }
            set_physical_bits(leaves, bits);
        }
        Said::HostPhysicalBits => set_physical_bits(leaves, physical_bits(supported)),
        Said::HidesKvm => leaves
            .0
            .retain(|leaf| leaf.function >> 8 != KVM_LEAVES >> 8),
        // These have made leaves, long before.
        Said::Counters(_) | Said::HostCaches | Said::NoL3Cache => {}
    }
    Ok(())
}

fn set_physical_bits(leaves: &mut Leaves, bits: u32) {
    let leaf = leaves.leaf(0x8000_0008, 0);
    leaf.eax = leaf.eax & !0xff | bits;
}
