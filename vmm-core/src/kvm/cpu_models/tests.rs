//! Models on hosts that have everything, and on some that do not.

use super::build::build;
use super::features::{bits, shows};
use super::*;
use crate::kvm::KvmError;

const VENDOR: [u8; 12] = *b"GenuineIntel";
const LEVEL: u32 = 0xb;

/// A host that has every feature but those of `without`.
fn host(vendor: [u8; 12], without: &[&str]) -> Leaves {
    let mut leaves = Leaves::default();
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    leaves.put(0, 0, [0x20, word(0), word(8), word(4)]);
    for name in feature_names() {
        for (place, bit) in bits(name).filter(|_| !without.contains(&name)) {
            *leaves.register_mut(place) |= bit;
        }
    }
    leaves.put(0xd, 0, [0x2e7, 0x340, 0xa88, 0]);
    for (index, size, offset) in [
        (2, 0x100, 0x240),
        (5, 0x40, 0x440),
        (6, 0x200, 0x480),
        (7, 0x400, 0x680),
        (9, 8, 0xa80),
    ] {
        leaves.put(0xd, index, [size, offset, 0, 0]);
    }
    leaves.put(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]);
    leaves.leaf(0x8000_0008, 0).eax = 46 | 57 << 8;
    leaves
}

fn spec(model: &str, switches: &[(&'static str, bool)]) -> CpuSpec {
    CpuSpec {
        switches: switches.to_vec(),
        ..CpuSpec::plain(find_model(model).unwrap())
    }
}

fn leaves(spec: &CpuSpec, host: &Leaves) -> Leaves {
    build(spec, host, LEVEL).unwrap().leaves
}

fn shown(leaves: &Leaves) -> Vec<&'static str> {
    let features = features(leaves).into_iter();
    features
        .filter_map(|(name, shown)| shown.then_some(name))
        .collect()
}

#[test]
fn a_model_of_the_table_shows_its_own_features_and_those_of_kvm_everywhere() {
    let of_kvm = [
        "x2apic",
        "hypervisor",
        "kvmclock",
        "kvm-nopiodelay",
        "kvm-asyncpf",
        "kvm-steal-time",
        "kvm-pv-eoi",
        "kvmclock-stable-bit",
    ];
    let host = host(VENDOR, &[]);
    for model in MODELS {
        let facts = build(&CpuSpec::plain(model), &host, LEVEL).unwrap();
        assert!(facts.lacks.is_empty(), "{}: {:?}", model.name, facts.lacks);
        let catalog::Origin::Table(generation) = model.origin else {
            assert_eq!(shown(&facts.leaves), feature_names(), "{}", model.name);
            continue;
        };
        let own: Vec<_> = generation.features.names().collect();
        for name in &own {
            assert_eq!(find_feature(name), Some(*name), "{}", model.name);
        }
        for name in feature_names() {
            let wanted = own.contains(&name) || of_kvm.contains(&name);
            assert_eq!(shows(&facts.leaves, name), wanted, "{}: {name}", model.name);
        }
    }
}

#[test]
fn what_the_host_lacks_is_told_and_never_shown() {
    let host = host(VENDOR, &["rtm", "avx"]);
    let mut spec = spec("Haswell", &[]);
    let facts = build(&spec, &host, LEVEL).unwrap();
    assert_eq!(facts.lacks, ["avx", "rtm"]);
    let filtered = words(&facts.filtered).into_iter();
    let filtered: Vec<_> = filtered.filter(|word| word.bits != 0).collect();
    let word = |function, index, register, bits| FeatureWord {
        function,
        index,
        register,
        bits,
    };
    let wanted = [
        word(1, None, "ECX", 1 << 28),
        word(7, Some(0), "EBX", 1 << 11),
    ];
    assert_eq!(filtered, wanted);
    // AVX2 is there, and is of no use without AVX.
    for name in ["avx", "rtm", "avx2", "fma"] {
        assert!(!shows(&facts.leaves, name), "{name}");
    }
    spec.lacking = Lacking::Refused;
    let error = build(&spec, &host, LEVEL).err().unwrap();
    assert!(
        matches!(&error, KvmError::LacksFeatures { model: "Haswell", features } if features == "avx, rtm")
    );
    spec.switches = vec![("rtm", false), ("avx", false)];
    assert!(build(&spec, &host, LEVEL).is_ok());
}

#[test]
fn what_is_saved_follows_the_features() {
    let host = host(VENDOR, &[]);
    let states = |spec: &CpuSpec| {
        let leaves = leaves(spec, &host);
        leaves.find(0xd, 0).map(|leaf| (leaf.eax, leaf.ecx))
    };
    assert_eq!(states(&spec("host", &[])), Some((0x2e7, 0xa88)));
    assert_eq!(
        states(&spec("host", &[("pku", false)])),
        Some((0xe7, 0xa80))
    );
    assert_eq!(
        states(&spec("host", &[("avx", false)])),
        Some((0x203, 0xa88))
    );
    assert_eq!(states(&spec("Haswell", &[])), Some((0x7, 0x340)));
    assert_eq!(states(&spec("Haswell", &[("xsave", false)])), None);
    assert_eq!(states(&spec("Nehalem", &[])), None);
}

#[test]
fn how_far_the_leaves_go_does_not_hang_on_what_the_host_lacks() {
    let last = |model: &str, without: &[&str]| {
        let host = host(VENDOR, without);
        leaves(&spec(model, &[]), &host).find(0, 0).unwrap().eax
    };
    assert_eq!(last("SandyBridge", &[]), 0xd);
    assert_eq!(last("SandyBridge", &["xsave", "avx", "xsaveopt"]), 0xd);
    assert_eq!(last("Nehalem", &[]), LEVEL);
}

#[test]
fn a_model_says_who_it_is_in_the_words_of_the_hosts_vendor() {
    let intel = leaves(&spec("EPYC-Milan", &[]), &host(VENDOR, &[]));
    assert_eq!(intel.vendor(), VENDOR);
    assert_eq!(intel.find(1, 0).unwrap().eax, 0x00a0_0f11);
    assert_eq!(intel.find(0x8000_0001, 0).unwrap().eax, 0);
    assert_eq!(intel.find(4, 2).unwrap().ecx, 1023);
    let amd = leaves(&spec("EPYC-Milan", &[]), &host(*b"AuthenticAMD", &[]));
    assert!(amd.is_amd());
    assert_eq!(amd.find(0x8000_0001, 0).unwrap().eax, 0x00a0_0f11);
    assert_eq!(amd.find(0x8000_001d, 3).unwrap().ebx, 63 | 15 << 22);
    assert!(amd.find(0x8000_001e, 0).is_some() && amd.find(4, 0).is_none());
    assert_eq!(amd.find(0x8000_0000, 0).unwrap().eax, 0x8000_001e);
    assert_eq!(amd.find(0x8000_0008, 0).unwrap().eax, 40 | 48 << 8);
}

#[test]
fn what_is_said_counts_more_than_the_model() {
    let mut spec = spec("kvm64", &[]);
    spec.said = vec![
        Said::Family(6),
        Said::Model(0x55),
        Said::Stepping(7),
        Said::Brand("mine".to_owned()),
        Said::HostPhysicalBits,
        Said::Level(7),
        Said::HidesKvm,
    ];
    let host = host(VENDOR, &[]);
    let leaves = leaves(&spec, &host);
    assert_eq!(leaves.find(1, 0).unwrap().eax, 0x0005_0657);
    assert_eq!(
        leaves.find(0x8000_0002, 0).unwrap().eax,
        u32::from_le_bytes(*b"mine")
    );
    assert_eq!(leaves.find(0x8000_0008, 0).unwrap().eax, 46 | 48 << 8);
    assert_eq!(leaves.find(0, 0).unwrap().eax, 7);
    assert!(leaves.find(0x4000_0000, 0).is_none());
    let shown = CpuIdentity {
        vendor: "GenuineIntel".to_owned(),
        brand: "mine".to_owned(),
        family: 6,
        model: 0x55,
        stepping: 7,
        level: 7,
        extended_level: 0x8000_000a,
        tells_of_kvm: false,
    };
    assert_eq!(identity(&leaves), shown);
    spec.said = vec![Said::PhysicalBits(47)];
    let error = build(&spec, &host, LEVEL).err().unwrap();
    assert!(matches!(
        error,
        KvmError::PhysicalBits { bits: 47, max: 46 }
    ));
}

#[test]
fn counters_and_caches_are_the_hosts_or_not_there() {
    let mut host = host(VENDOR, &[]);
    host.put(0xa, 0, [0x0730_0402, 0, 0, 0x603]);
    host.put(4, 0, [0x121, 0x02c0_003f, 63, 0]);
    let with = |model: &str, said: Said| {
        let mut spec = spec(model, &[]);
        spec.said = vec![said];
        leaves(&spec, &host)
    };
    let counts = |leaves: &Leaves| {
        let leaf = leaves.find(0xa, 0).map_or(0, |leaf| leaf.eax);
        (leaf, shows(leaves, "pdcm"))
    };
    assert_eq!(counts(&with("host", Said::Counters(false))), (0, false));
    assert_eq!(counts(&with("host", Said::Level(7))), (0x0730_0402, true));
    assert_eq!(counts(&with("Haswell", Said::Level(7))), (0, false));
    let counting = with("Haswell", Said::Counters(true));
    assert_eq!(counts(&counting), (0x0730_0402, true));
    assert!(counting.find(0, 0).unwrap().eax >= 0xa);
    assert_eq!(
        with("Haswell", Said::HostCaches).find(4, 0),
        host.find(4, 0)
    );
    let levels = |leaves: &Leaves| {
        let levels = (0..5).map_while(|index| leaves.find(4, index));
        levels.map(|leaf| leaf.eax >> 5 & 7).collect::<Vec<_>>()
    };
    assert_eq!(levels(&with("Haswell", Said::Level(7))), [1, 1, 2, 3, 0]);
    assert_eq!(levels(&with("Haswell", Said::NoL3Cache)), [1, 1, 2, 0]);
}
