//! What the guest is told about its CPU: that of a model, with a topology of ours.
//!
//! The model says what a CPU is ([`cpu_models`](super::cpu_models)); this file changes only what is
//! about *this* VM:
//!
//! ```text
//!   APIC id:   | socket | die | core | thread |     each field as wide as its count needs
//!   leaves:    1, 4, 0xb, 0x1f  (all)    0x8000_0001/8/1d/1e  (AMD)    0x4000_0010  (clocks)
//! ```
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`. Leaf 0x4000_0010 is the convention shared by VMware
//! and QEMU: with it (and kvmclock) a guest need not calibrate its TSC and APIC timer.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Cap;

use super::cpu_models::{self, CpuIdentity, CpuSpec, Facts, FeatureWord, Leaves};
use super::{KvmError, KvmVm};

/// How the vCPUs are arranged. All counts are at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Sockets (packages) in the machine.
    pub sockets: u32,
    /// Dies in a socket.
    pub dies: u32,
    /// Cores in a die.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl CpuTopology {
    /// `count` sockets of one core each, as QEMU's `-smp N` does without details.
    #[must_use]
    pub fn flat(count: u32) -> Self {
        Self {
            sockets: count,
            dies: 1,
            cores: 1,
            threads: 1,
        }
    }

    /// How many vCPUs there are room for; `None` if a count is zero or the product overflows.
    #[must_use]
    pub fn total(self) -> Option<u32> {
        self.sockets
            .checked_mul(self.dies)?
            .checked_mul(self.cores)?
            .checked_mul(self.threads)
            .filter(|&total| total > 0)
    }

    /// The APIC id of the vCPU with this index, counted thread by thread.
    #[must_use]
    pub fn apic_id(self, index: u32) -> u32 {
        let place = self.place(index);
        let (core, die, package) = self.shifts();
        place.socket << package | place.die << die | place.core << core | place.thread
    }

    /// Where the vCPU with this index sits.
    #[must_use]
    pub fn place(self, index: u32) -> CpuPlace {
        CpuPlace {
            thread: index % self.threads,
            core: index / self.threads % self.cores,
            die: index / self.threads / self.cores % self.dies,
            socket: index / self.threads / self.cores / self.dies,
        }
    }

    /// The index of the vCPU that sits at `place`.
    #[must_use]
    pub fn index(self, place: CpuPlace) -> u32 {
        let die = place.socket * self.dies + place.die;
        (die * self.cores + place.core) * self.threads + place.thread
    }

    /// How far the core, die and socket numbers are shifted in an APIC id.
    fn shifts(self) -> (u32, u32, u32) {
        let core = width(self.threads);
        let die = core + width(self.cores);
        (core, die, die + width(self.dies))
    }

    fn threads_per_socket(self) -> u32 {
        self.dies * self.cores * self.threads
    }
}

/// Where one vCPU sits: `query-cpus-fast` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// The socket in the machine.
    pub socket: u32,
    /// The die in the socket.
    pub die: u32,
    /// The core in the die.
    pub core: u32,
    /// The thread in the core.
    pub thread: u32,
}

/// How many bits number `count` things.
fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF_1_EDX_HTT: u32 = 1 << 28;
const AMD_1_ECX_CMP_LEGACY: u32 = 1 << 1;
#[cfg(test)]
const AMD_1_ECX_TOPOEXT: u32 = 1 << 22;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_CLOCKS: u32 = 0x4000_0010;
/// The bus clock of KVM's in-kernel LAPIC: one nanosecond a tick.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What KVM can show a guest on this host.
#[derive(Clone)]
pub struct HostCpu(Leaves);

impl HostCpu {
    /// Asks KVM.
    ///
    /// # Errors
    /// KVM does not tell what it supports.
    pub fn of(vm: &KvmVm) -> Result<Self, KvmError> {
        let supported = vm
            .system()
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::ioctl("the list of supported CPU features"))?;
        let deadline = vm.has(Cap::TscDeadlineTimer);
        Ok(Self::new(supported.as_slice().to_vec(), deadline))
    }

    fn new(mut leaves: Vec<kvm_cpuid_entry2>, tsc_deadline: bool) -> Self {
        // Whatever the host says about its own topology is wrong here.
        leaves.retain(|leaf| {
            !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026) && leaf.function != LEAF_CLOCKS
        });
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= LEAF_1_ECX_HYPERVISOR | LEAF_1_ECX_X2APIC;
            if tsc_deadline {
                leaf.ecx |= LEAF_1_ECX_TSC_DEADLINE;
            }
        }
        Self(Leaves(leaves))
    }
}

/// The CPUID of all vCPUs, before each gets its own numbers.
pub struct CpuModel {
    leaves: Leaves,
    lacks: Vec<&'static str>,
    filtered: Leaves,
    topology: CpuTopology,
    amd: bool,
}

impl CpuModel {
    /// The CPU that `spec` says as far as `host` can show it, arranged as `topology` says.
    ///
    /// # Errors
    /// The host lacks what is not to be left out.
    pub fn new(host: &HostCpu, spec: &CpuSpec, topology: CpuTopology) -> Result<Self, KvmError> {
        let level = if topology.dies > 1 { 0x1f } else { 0xb };
        let Facts {
            leaves,
            lacks,
            filtered,
        } = cpu_models::build(spec, &host.0, level)?;
        Ok(Self {
            amd: leaves.is_amd(),
            leaves,
            lacks,
            filtered,
            topology,
        })
    }

    /// The features that were wanted and that this host lacks.
    #[must_use]
    pub fn lacks(&self) -> &[&'static str] {
        &self.lacks
    }

    /// The registers of CPUID that features have names in.
    #[must_use]
    pub fn words(&self) -> Vec<FeatureWord> {
        cpu_models::words(&self.leaves)
    }

    /// The same, with the bits of [`lacks`](Self::lacks) alone.
    #[must_use]
    pub fn filtered_words(&self) -> Vec<FeatureWord> {
        cpu_models::words(&self.filtered)
    }

    /// Who it says it is.
    #[must_use]
    pub fn identity(&self) -> CpuIdentity {
        cpu_models::identity(&self.leaves)
    }

    /// How many bits a guest physical address has (leaf 0x8000_0008), or 36 if the host is silent.
    #[must_use]
    pub fn physical_bits(&self) -> u32 {
        let leaf = self.leaves.find(0x8000_0008, 0);
        leaf.map_or(36, |leaf| leaf.eax & 0xff)
    }

    /// Every CPU feature with a name, and whether a guest sees it.
    #[must_use]
    pub fn features(&self) -> Vec<(&'static str, bool)> {
        cpu_models::features(&self.leaves)
    }

    /// CPUID leaf 1's signature and features, as SMBIOS wants them.
    #[must_use]
    pub fn signature(&self) -> (u32, u32) {
        let leaf = self.leaves.find(1, 0);
        leaf.map_or((0, 0), |leaf| (leaf.eax, leaf.edx))
    }

    /// The CPUID of the vCPU with this index, whose TSC ticks with `tsc_khz` (if KVM knows).
    ///
    /// # Errors
    /// The table is longer than KVM takes.
    pub fn cpuid(&self, index: u32, tsc_khz: Option<u32>) -> Result<CpuId, KvmError> {
        CpuId::from_entries(&self.leaves_of(index, tsc_khz)).map_err(|_| KvmError::Ioctl {
            what: "the CPUID table",
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        })
    }

    fn leaves_of(&self, index: u32, tsc_khz: Option<u32>) -> Vec<kvm_cpuid_entry2> {
        let id = self.topology.apic_id(index);
        let mut leaves = self.leaves.0.clone();
        for leaf in &mut leaves {
            self.patch(leaf, id, index);
        }
        leaves.extend(self.extended_topology(0xb, id));
        if self.topology.dies > 1 {
            leaves.extend(self.extended_topology(0x1f, id));
        }
        if let Some(khz) = tsc_khz {
            tell_clocks(&mut leaves, khz);
        }
        leaves
    }

    fn patch(&self, leaf: &mut kvm_cpuid_entry2, id: u32, index: u32) {
        let topology = self.topology;
        let (core_shift, _, package_shift) = topology.shifts();
        let per_socket = topology.threads_per_socket();
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xffff | (per_socket.min(255) << 16) | (id << 24);
                set(&mut leaf.edx, LEAF_1_EDX_HTT, per_socket > 1);
            }
            // Deterministic cache parameters: level 3 is the socket's, the others a core's.
            4 if leaf.eax & 0x1f != 0 => {
                let sharing = self.cache_sharing(leaf.eax);
                let cores = (1 << (package_shift - core_shift)) - 1;
                leaf.eax = leaf.eax & 0x3fff | (sharing << 14) | (u32::min(cores, 63) << 26);
            }
            0x8000_0001 if self.amd => {
                set(&mut leaf.ecx, AMD_1_ECX_CMP_LEGACY, per_socket > 1);
            }
            0x8000_0008 if self.amd => {
                leaf.ecx = leaf.ecx & !0xf0ff | (package_shift << 12) | (per_socket - 1).min(255);
            }
            0x8000_001d if leaf.eax & 0x1f != 0 => {
                leaf.eax = leaf.eax & 0x3fff | (self.cache_sharing(leaf.eax) << 14);
            }
            0x8000_001e => {
                let place = topology.place(index);
                leaf.eax = id;
                leaf.ebx = (place.die * topology.cores + place.core) & 0xff
                    | ((topology.threads - 1) & 0xff) << 8;
                leaf.ecx = (place.socket * topology.dies + place.die) & 0xff
                    | ((topology.dies - 1) & 7) << 8;
                leaf.edx = 0;
            }
            _ => {}
        }
    }

    /// How many APIC ids share a cache, less one, from the leaf's own level field.
    fn cache_sharing(&self, eax: u32) -> u32 {
        let (core, _, package) = self.topology.shifts();
        let shift = if (eax >> 5) & 7 >= 3 { package } else { core };
        ((1 << shift) - 1).min(0xfff)
    }

    /// Leaves 0xb and 0x1f: one sub-leaf per level, closed by an invalid one.
    fn extended_topology(&self, function: u32, id: u32) -> Vec<kvm_cpuid_entry2> {
        const INVALID: u32 = 0;
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        const DIE: u32 = 5;
        let topology = self.topology;
        let (core, die, package) = topology.shifts();
        let mut levels = vec![(THREAD, core, topology.threads)];
        if function == 0x1f {
            levels.push((CORE, die, topology.cores * topology.threads));
            levels.push((DIE, package, topology.threads_per_socket()));
        } else {
            levels.push((CORE, package, topology.threads_per_socket()));
        }
        levels.push((INVALID, 0, 0));
        (0..)
            .zip(levels)
            .map(|(index, (level, shift, count))| kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: count & 0xffff,
                ecx: index | level << 8,
                edx: id,
                ..Default::default()
            })
            .collect()
    }
}

/// With both clocks known, the guest needs not measure them against the PIT.
fn tell_clocks(leaves: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let signature = |leaf: &&mut kvm_cpuid_entry2| leaf.function == LEAF_HYPERVISOR;
    let Some(signature) = leaves.iter_mut().find(signature) else {
        // The guest is not to know what runs it.
        return;
    };
    signature.eax = LEAF_CLOCKS;
    leaves.push(kvm_cpuid_entry2 {
        function: LEAF_CLOCKS,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        leaf(0, [0x7, word(0), word(8), word(4)])
    }

    fn model(host: Vec<kvm_cpuid_entry2>, topology: CpuTopology, deadline: bool) -> CpuModel {
        let spec = CpuSpec::plain(cpu_models::HOST);
        CpuModel::new(&HostCpu::new(host, deadline), &spec, topology).unwrap()
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
            .unwrap()
    }

    const TOPOLOGY: CpuTopology = CpuTopology {
        sockets: 2,
        dies: 2,
        cores: 3,
        threads: 2,
    };

    #[test]
    fn an_apic_id_has_a_field_for_each_level() {
        // thread 1 bit, core 2 bits, die 1 bit
        assert_eq!(TOPOLOGY.apic_id(0), 0);
        assert_eq!(TOPOLOGY.apic_id(1), 0b1);
        assert_eq!(TOPOLOGY.apic_id(5), 0b101);
        assert_eq!(TOPOLOGY.apic_id(6), 0b1000);
        assert_eq!(TOPOLOGY.apic_id(12), 0b1_0000);
        assert_eq!(TOPOLOGY.total(), Some(24));
        assert!((0..24).all(|index| TOPOLOGY.index(TOPOLOGY.place(index)) == index));
        assert_eq!(
            CpuTopology {
                cores: 0,
                ..TOPOLOGY
            }
            .total(),
            None
        );
    }

    #[test]
    fn intel_leaves_describe_the_topology_and_the_clocks() {
        let host = vec![
            vendor(b"GenuineIntel"),
            leaf(1, [0x50654, 0x0f10_0800, 0, 0]),
            kvm_cpuid_entry2 {
                index: 0,
                ..leaf(4, [0x121 | 0x1fff << 14, 0, 0, 0])
            },
            kvm_cpuid_entry2 {
                index: 3,
                ..leaf(4, [0x163, 0, 0, 0])
            },
            kvm_cpuid_entry2 {
                index: 7,
                ..leaf(0xb, [9, 9, 9, 9])
            },
            leaf(LEAF_HYPERVISOR, [LEAF_HYPERVISOR + 1, 0, 0, 0]),
        ];
        let model = model(host, TOPOLOGY, true);
        let leaves = model.leaves_of(13, Some(2_500_000));
        let one = find(&leaves, 1, 0);
        assert_eq!(one.ebx, 17 << 24 | 12 << 16 | 0x800);
        assert_eq!(one.ecx, 1 << 31 | 1 << 24 | 1 << 21);
        assert_eq!(one.edx, LEAF_1_EDX_HTT);
        assert_eq!(find(&leaves, 4, 0).eax, 0x121 | 1 << 14 | 7 << 26);
        assert_eq!(find(&leaves, 4, 3).eax, 0x163 | 15 << 14 | 7 << 26);
        assert!(!leaves.iter().any(|l| l.function == 0xb && l.index == 7));
        let cores = find(&leaves, 0xb, 1);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (4, 12, 0x201, 17)
        );
        let dies = find(&leaves, 0x1f, 2);
        assert_eq!((dies.eax, dies.ebx, dies.ecx), (4, 12, 0x502));
        assert_eq!(find(&leaves, 0x1f, 3).ecx, 3);
        let clocks = find(&leaves, LEAF_CLOCKS, 0);
        assert_eq!((clocks.eax, clocks.ebx), (2_500_000, 1_000_000));
        assert_eq!(find(&leaves, LEAF_HYPERVISOR, 0).eax, LEAF_CLOCKS);
        assert_eq!(find(&leaves, 0, 0).eax, 0x1f);
    }

    #[test]
    fn amd_leaves_describe_the_topology() {
        let host = vec![
            vendor(b"AuthenticAMD"),
            leaf(1, [0, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, AMD_1_ECX_TOPOEXT, 0]),
            leaf(0x8000_0008, [0x3030, 0, 0x703f, 0]),
            kvm_cpuid_entry2 {
                index: 3,
                ..leaf(0x8000_001d, [0x163, 0, 0, 0])
            },
            leaf(0x8000_001e, [99, 99, 99, 99]),
        ];
        let topology = CpuTopology {
            sockets: 1,
            dies: 1,
            cores: 4,
            threads: 2,
        };
        let model = model(host, topology, false);
        assert_eq!(model.physical_bits(), 0x30);
        let leaves = model.leaves_of(5, None);
        assert_eq!(
            find(&leaves, 0x8000_0001, 0).ecx,
            AMD_1_ECX_TOPOEXT | AMD_1_ECX_CMP_LEGACY
        );
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 3 << 12 | 7);
        assert_eq!(find(&leaves, 0x8000_001d, 3).eax, 0x163 | 7 << 14);
        let core = find(&leaves, 0x8000_001e, 0);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (5, 0x102, 0, 0));
        assert_eq!(find(&leaves, 1, 0).ecx & LEAF_1_ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn a_single_cpu_has_no_threads_to_tell_of() {
        let host = vec![vendor(b"GenuineIntel"), leaf(1, [0, 0, 0, LEAF_1_EDX_HTT])];
        let model = model(host, CpuTopology::flat(1), false);
        assert_eq!(
            find(&model.leaves_of(0, None), 1, 0).edx & LEAF_1_EDX_HTT,
            0
        );
    }

    proptest! {
        #[test]
        fn no_two_cpus_share_an_apic_id(
            sockets in 1u32..5, dies in 1u32..4, cores in 1u32..9, threads in 1u32..4,
        ) {
            let topology = CpuTopology { sockets, dies, cores, threads };
            let total = topology.total().unwrap();
            let ids: BTreeSet<u32> = (0..total).map(|index| topology.apic_id(index)).collect();
            prop_assert_eq!(ids.len(), total as usize);
        }
    }
}
