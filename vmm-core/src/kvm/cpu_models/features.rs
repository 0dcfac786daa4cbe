//! The names of CPU features, as QEMU's clients know them, and which bits of CPUID they are.
//!
//! Pure: a table and a look at it. The bits are those of Intel's and AMD's manuals (leaves 1, 6,
//! 7, 0xd, 0x8000_0001 and what follows) and of Linux' `Documentation/virt/kvm/x86/cpuid.rst`.

use super::leaves::Register::{self, Eax, Ebx, Ecx, Edx};
use super::leaves::{Leaves, Place};

/// One register of a leaf; `-` stands for a bit without a name.
pub(super) struct Word {
    pub(super) place: Place,
    /// From bit 0 on, separated by spaces.
    names: &'static str,
}

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word {
        place: Place {
            function,
            index,
            register,
        },
        names,
    }
}

pub(super) const WORDS: &[Word] = &[
    word(
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds \
         acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        1,
        0,
        Ecx,
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid \
         dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    ),
    word(6, 0, Eax, "- - arat"),
    word(
        7,
        0,
        Ebx,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f \
         avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er \
         avx512cd sha-ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Ecx,
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni \
         avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri \
         movdir64b - sgxlc pks",
    ),
    word(
        7,
        0,
        Edx,
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - \
         tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d \
         arch-capabilities core-capability ssbd",
    ),
    word(
        7,
        1,
        Eax,
        "- - - - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - \
         amx-fp16 - avx-ifma - - lam",
    ),
    word(
        7,
        1,
        Edx,
        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti",
    ),
    word(
        7,
        2,
        Edx,
        "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
    ),
    word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm \
         3dnowext 3dnow",
    ),
    word(
        0x8000_0001,
        0,
        Ecx,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop \
         skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    word(0x8000_0007, 0, Edx, "- - - - - - - - invtsc"),
    word(
        0x8000_0008,
        0,
        Ebx,
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - \
         - - - amd-ssbd virt-ssbd amd-no-ssb - amd-psfd",
    ),
    word(
        0x8000_000a,
        0,
        Edx,
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - \
         pause-filter - pfthreshold avic - v-vmsave-vmload vgif - - - - - - - - vnmi - - \
         svme-addr-chk",
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        "no-nested-data-bp fs-gs-base-ns lfence-always-serializing - - - null-sel-clr-base - \
         auto-ibrs",
    ),
    word(
        0x4000_0001,
        0,
        Eax,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi \
         kvm-pv-unhalt - kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control \
         kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit",
    ),
    word(0x4000_0001, 0, Edx, "kvm-hint-dedicated"),
];

/// Other names that clients know a feature by.
const ALIASES: &[(&str, &str)] = &[
    ("sse3", "pni"),
    ("pclmuldq", "pclmulqdq"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("xd", "nx"),
    ("ffxsr", "fxsr-opt"),
    ("i64", "lm"),
];

impl Word {
    /// Its bits with names.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let names = self.names.split_whitespace().zip(0_u32..);
        names.filter(|(name, _)| *name != "-")
    }
}

/// The bits that `name` stands for: two where one was misplaced in old kernels.
pub(super) fn bits(name: &str) -> impl Iterator<Item = (Place, u32)> {
    WORDS.iter().flat_map(move |word| {
        let named = word.named().filter(move |(other, _)| *other == name);
        named.map(|(_, bit)| (word.place, 1 << bit))
    })
}

/// Whether `leaves` show the feature.
pub(super) fn shows(leaves: &Leaves, name: &str) -> bool {
    bits(name).any(|(place, bit)| leaves.register(place) & bit != 0)
}

/// Every feature's name, once.
#[must_use]
pub fn feature_names() -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, _) in WORDS.iter().flat_map(Word::named) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The feature that a client calls `name`: with underscores for hyphens, or by another name.
#[must_use]
pub fn find_feature(name: &str) -> Option<&'static str> {
    let hyphens = name.replace('_', "-");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == hyphens);
    let wanted = alias.map_or(hyphens.as_str(), |(_, name)| name);
    let mut names = WORDS.iter().flat_map(Word::named);
    names.find_map(|(name, _)| (name == wanted).then_some(name))
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn a_feature_has_the_names_that_clients_know() {
        for (name, wanted) in [
            ("sse4_1", Some("sse4.1")),
            ("lahf_lm", Some("lahf-lm")),
            ("pclmuldq", Some("pclmulqdq")),
            ("avx", Some("avx")),
            ("-", None),
            ("avx3", None),
        ] {
            assert_eq!(find_feature(name), wanted);
        }
    }

    #[test]
    fn no_register_has_more_than_32_names() {
        for word in WORDS {
            assert!(
                word.names.split_whitespace().count() <= 32,
                "{}",
                word.names
            );
        }
    }

    #[test]
    fn a_feature_is_shown_if_its_bit_is_set() {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        };
        let leaves = [
            kvm_cpuid_entry2 {
                edx: 1 << 25 | 1,
                ecx: 1 << 31,
                ..leaf(1, 0)
            },
            kvm_cpuid_entry2 {
                ebx: 1 << 5,
                edx: 1 << 31 | 1 << 22,
                ..leaf(7, 0)
            },
            kvm_cpuid_entry2 {
                edx: 1 << 29,
                ..leaf(0x8000_0001, 0)
            },
            kvm_cpuid_entry2 {
                eax: 1 << 3,
                ..leaf(0x4000_0001, 0)
            },
        ];
        let shown: Vec<_> = super::super::features(&Leaves(leaves.to_vec()))
            .into_iter()
            .filter_map(|(name, shown)| shown.then_some(name))
            .collect();
        assert_eq!(
            shown,
            [
                "fpu",
                "sse",
                "hypervisor",
                "avx2",
                "amx-bf16",
                "ssbd",
                "lm",
                "kvmclock"
            ]
        );
    }
}
