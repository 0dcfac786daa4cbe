//! A table of CPUID, by register.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// One of the four registers that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// Its name, as clients know it.
    pub(in crate::kvm) const fn name(self) -> &'static str {
        match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        }
    }
}

/// One register of one leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) struct Place {
    /// What is asked for in EAX.
    pub(in crate::kvm) function: u32,
    /// What is asked for in ECX.
    pub(in crate::kvm) index: u32,
    /// Where the answer stands.
    pub(in crate::kvm) register: Register,
}

/// The functions whose answer depends on ECX.
const INDEXED: &[u32] = &[4, 7, 0xb, 0xd, 0x1f, 0x8000_001d];

impl Place {
    /// What has to stand in ECX, where that makes a difference.
    pub(in crate::kvm) fn asked_index(self) -> Option<u32> {
        INDEXED.contains(&self.function).then_some(self.index)
    }
}

/// A table of CPUID. What is not in it is zero.
#[derive(Clone, Debug, Default)]
pub(in crate::kvm) struct Leaves(pub(in crate::kvm) Vec<kvm_cpuid_entry2>);

impl Leaves {
    pub(in crate::kvm) fn find(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        let mut all = self.0.iter();
        all.find(|leaf| leaf.function == function && leaf.index == index)
    }

    /// The leaf, which is made if it is not there.
    pub(in crate::kvm) fn leaf(&mut self, function: u32, index: u32) -> &mut kvm_cpuid_entry2 {
        let is_it = |leaf: &kvm_cpuid_entry2| leaf.function == function && leaf.index == index;
        let at = self.0.iter().position(is_it).unwrap_or_else(|| {
            let is_indexed = INDEXED.contains(&function);
            self.0.push(kvm_cpuid_entry2 {
                function,
                index,
                flags: u32::from(is_indexed) * KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                ..Default::default()
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Puts a whole leaf: EAX, EBX, ECX, EDX.
    pub(in crate::kvm) fn put(&mut self, function: u32, index: u32, registers: [u32; 4]) {
        let leaf = self.leaf(function, index);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] = registers;
    }

    /// Puts the leaves of these functions as `source` has them; those that it has not are gone.
    pub(in crate::kvm) fn replace(&mut self, functions: &[u32], source: &Self) {
        let is_one = |leaf: &kvm_cpuid_entry2| functions.contains(&leaf.function);
        self.0.retain(|leaf| !is_one(leaf));
        self.0.extend(source.0.iter().filter(|leaf| is_one(leaf)));
    }

    pub(in crate::kvm) fn register(&self, place: Place) -> u32 {
        let leaf = self.find(place.function, place.index);
        leaf.map_or(0, |leaf| match place.register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }

    /// The register, whose leaf is made if it is not there.
    pub(in crate::kvm) fn register_mut(&mut self, place: Place) -> &mut u32 {
        let leaf = self.leaf(place.function, place.index);
        match place.register {
            Register::Eax => &mut leaf.eax,
            Register::Ebx => &mut leaf.ebx,
            Register::Ecx => &mut leaf.ecx,
            Register::Edx => &mut leaf.edx,
        }
    }

    /// The last function of those from `first` on that belong together.
    pub(in crate::kvm) fn last(&self, first: u32) -> u32 {
        let functions = self.0.iter().map(|leaf| leaf.function);
        let of_range = functions.filter(|function| function >> 16 == first >> 16);
        of_range.max().unwrap_or(first)
    }

    /// The same, of those that say anything.
    pub(in crate::kvm) fn last_shown(&self, first: u32) -> u32 {
        let says = |leaf: &&kvm_cpuid_entry2| leaf.eax | leaf.ebx | leaf.ecx | leaf.edx != 0;
        let functions = self.0.iter().filter(says).map(|leaf| leaf.function);
        let of_range = functions.filter(|function| function >> 16 == first >> 16);
        of_range.max().unwrap_or(first)
    }

    pub(in crate::kvm) fn vendor(&self) -> [u8; 12] {
        let mut name = [0; 12];
        if let Some(leaf) = self.find(0, 0) {
            name[..4].copy_from_slice(&leaf.ebx.to_le_bytes());
            name[4..8].copy_from_slice(&leaf.edx.to_le_bytes());
            name[8..].copy_from_slice(&leaf.ecx.to_le_bytes());
        }
        name
    }

    /// What it calls itself.
    pub(in crate::kvm) fn brand(&self) -> String {
        let parts = (0x8000_0002..0x8000_0005).filter_map(|function| self.find(function, 0));
        let words = parts.flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// AMD and Hygon share the AMD leaves.
    pub(in crate::kvm) fn is_amd(&self) -> bool {
        matches!(&self.vendor(), b"AuthenticAMD" | b"HygonGenuine")
    }
}
