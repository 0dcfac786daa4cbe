//! The names of CPU features, as QEMU's clients know them, and which of them a CPUID shows.
//!
//! Pure: a table and a look at it. The bits are those of Intel's and AMD's manuals (leaves 1, 6,
//! 7, 0xd, 0x8000_0001..8) and of Linux' `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::kvm_cpuid_entry2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// One register of a leaf; `-` stands for a bit without a name.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// From bit 0 on, separated by spaces.
    names: &'static str,
}

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word {
        function,
        index,
        register,
        names,
    }
}

const WORDS: &[Word] = &[
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
        0x4000_0001,
        0,
        Eax,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi \
         kvm-pv-unhalt - kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control \
         kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit",
    ),
    word(0x4000_0001, 0, Edx, "kvm-hint-dedicated"),
];

impl Word {
    fn of(&self, leaves: &[kvm_cpuid_entry2]) -> u32 {
        let leaf = leaves
            .iter()
            .find(|leaf| leaf.function == self.function && leaf.index == self.index);
        leaf.map_or(0, |leaf| match self.register {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        })
    }
}

/// Every feature with a name, and whether `leaves` show it.
pub(super) fn features(leaves: &[kvm_cpuid_entry2]) -> Vec<(&'static str, bool)> {
    let mut features: Vec<(&'static str, bool)> = Vec::new();
    for word in WORDS {
        let bits = word.of(leaves);
        let named = word.names.split_whitespace().zip(0_u32..);
        for (name, bit) in named.filter(|(name, _)| *name != "-") {
            let is_shown = bits >> bit & 1 == 1;
            // Two bits say the same where one was misplaced in old kernels.
            match features.iter_mut().find(|(other, _)| *other == name) {
                Some((_, shown)) => *shown |= is_shown,
                None => features.push((name, is_shown)),
            }
        }
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let shown: Vec<_> = features(&leaves)
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
