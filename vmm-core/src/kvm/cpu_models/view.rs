//! What clients are shown of a CPU besides the names of its features.

use super::build::{KVM_LEAVES, Signature, signature};
use super::features::WORDS;
use super::leaves::Leaves;

/// A register of CPUID whose bits are features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureWord {
    /// What is asked for in EAX.
    pub function: u32,
    /// What is asked for in ECX, where that makes a difference.
    pub index: Option<u32>,
    /// Where the answer stands: "EAX" and so on.
    pub register: &'static str,
    /// The answer.
    pub bits: u32,
}

/// Who a CPU says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuIdentity {
    /// The vendor's name.
    pub vendor: String,
    /// What it calls itself; empty if it does not.
    pub brand: String,
    /// The family, with its extension.
    pub family: u32,
    /// The model in the family, with its extension.
    pub model: u32,
    /// The stepping.
    pub stepping: u32,
    /// The last basic leaf.
    pub level: u32,
    /// The last extended leaf.
    pub extended_level: u32,
    /// Whether the guest is told that KVM runs it.
    pub tells_of_kvm: bool,
}

/// Every register in which features have names, as `leaves` show it.
pub(in crate::kvm) fn words(leaves: &Leaves) -> Vec<FeatureWord> {
    let words = WORDS.iter().map(|word| FeatureWord {
        function: word.place.function,
        index: word.place.asked_index(),
        register: word.place.register.name(),
        bits: leaves.register(word.place),
    });
    words.collect()
}

/// Who `leaves` say the CPU is.
pub(in crate::kvm) fn identity(leaves: &Leaves) -> CpuIdentity {
    let Signature {
        family,
        model,
        stepping,
    } = signature(leaves);
    let last = |function| leaves.find(function, 0).map_or(0, |leaf| leaf.eax);
    CpuIdentity {
        vendor: String::from_utf8_lossy(&leaves.vendor()).into_owned(),
        brand: leaves.brand(),
        family,
        model,
        stepping,
        level: last(0),
        extended_level: last(0x8000_0000),
        tells_of_kvm: leaves.find(KVM_LEAVES, 0).is_some(),
    }
}
