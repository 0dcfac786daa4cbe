//! The CPU models by name. Facts only; each comes from a manual of its vendor.
//!
//! Sources: Intel SDM volume 2A (CPUID) and volume 4, table 2-1 (families and models); AMD APM
//! volume 3, appendix E, and AMD's processor programming references for families 17h and 19h; the
//! System V psABI for x86-64, section 3.1.1 (the levels). As with QEMU's models of these names, a
//! model has what programs and kernels can use of a generation, and not what belongs to a board or
//! to power management (`ds`, `acpi`, `monitor`, `vmx`).

/// One model.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// What `-cpu` calls it.
    pub name: &'static str,
    /// What it is, in a few words; also what a guest reads as its name.
    pub about: &'static str,
    /// Where its features come from.
    pub origin: Origin,
}

/// Where the features of a model come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// The host has them and KVM supports them.
    Host,
    /// They are written down here, and the same everywhere.
    Table(&'static Generation),
}

/// A processor as its manual has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Generation {
    /// Family, model and stepping, with their extensions.
    pub signature: (u32, u32, u32),
    /// Its caches.
    pub caches: &'static Caches,
    /// Names of features, each list separated by spaces.
    pub features: &'static [&'static str],
}

/// The caches of a core; lines have 64 bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Caches {
    /// For data.
    pub l1_data: Cache,
    /// For instructions.
    pub l1_code: Cache,
    /// For both.
    pub l2: Cache,
    /// What the cores of a socket share.
    pub l3: Cache,
}

/// One cache.
#[derive(Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its size.
    pub kib: u32,
    /// How many places there are for a line.
    pub ways: u32,
}

const fn cache(kib: u32, ways: u32) -> Cache {
    Cache { kib, ways }
}

/// Intel Core up to the fifth generation.
const CORE: Caches = Caches {
    l1_data: cache(32, 8),
    l1_code: cache(32, 8),
    l2: cache(256, 8),
    l3: cache(16384, 16),
};
const SKYLAKE_SERVER: Caches = Caches {
    l2: cache(1024, 16),
    ..CORE
};
const ICELAKE_SERVER: Caches = Caches {
    l1_data: cache(48, 12),
    l2: cache(1280, 20),
    ..CORE
};
const ZEN: Caches = Caches {
    l1_data: cache(32, 8),
    l1_code: cache(64, 4),
    l2: cache(512, 8),
    l3: cache(8192, 16),
};
const ZEN_2: Caches = Caches {
    l1_code: cache(32, 8),
    l3: cache(16384, 16),
    ..ZEN
};
const ZEN_3: Caches = Caches {
    l3: cache(32768, 16),
    ..ZEN_2
};

/// What each CPU of 64 bits has, and what its kernels need.
const X86_64: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush \
    mmx fxsr sse sse2 syscall nx lm";
/// The second level of the psABI.
const LEVEL_2: &str = "pni ssse3 cx16 sse4.1 sse4.2 popcnt lahf-lm";
/// The third, and what saves its registers.
const LEVEL_3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";
/// The fourth.
const LEVEL_4: &str = "avx512f avx512bw avx512cd avx512dq avx512vl";

const WESTMERE: &str = "pclmulqdq aes arat";
const SANDY_BRIDGE: &str = "avx xsave xsaveopt tsc-deadline x2apic rdtscp";
const IVY_BRIDGE: &str = "fsgsbase smep erms f16c rdrand";
const HASWELL: &str = "fma movbe pcid bmi1 avx2 bmi2 invpcid abm";
const TRANSACTIONS: &str = "hle rtm";
const BROADWELL: &str = "rdseed adx smap 3dnowprefetch";
const SKYLAKE: &str = "xsavec xgetbv1";
const SKYLAKE_MORE: &str = "clflushopt clwb pdpe1gb pku";
const CASCADE_LAKE: &str = "avx512vnni spec-ctrl ssbd";
const ICE_LAKE: &str = "avx512vbmi avx512vbmi2 avx512bitalg avx512-vpopcntdq gfni vaes vpclmulqdq \
    umip la57 wbnoinvd";
const ZEN_1_FEATURES: &str = "vme rdrand f16c avx xsave aes popcnt movbe sse4.2 sse4.1 cx16 fma \
    ssse3 pclmulqdq pni fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni rdtscp \
    pdpe1gb fxsr-opt mmxext lahf-lm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext \
    xsaveopt xsavec xgetbv1 arat";
const ZEN_2_FEATURES: &str =
    "clwb umip rdpid perfctr-core clzero xsaveerptr wbnoinvd ibpb amd-stibp";
const ZEN_3_FEATURES: &str = "pcid erms invpcid fsrm pku vaes vpclmulqdq xsaves ibrs amd-ssbd";

const fn model(name: &'static str, about: &'static str, origin: Origin) -> Model {
    Model {
        name,
        about,
        origin,
    }
}

/// A model of a table. The levels and `qemu64` are nobody's processor, so they have a family that
/// no kernel takes for one it knows.
macro_rules! table {
    ($name:literal, $about:literal, $signature:expr, $caches:ident, [$($features:expr),+ $(,)?]) => {
        model(
            $name,
            $about,
            Origin::Table(&Generation {
                signature: $signature,
                caches: &$caches,
                features: &[$($features),+],
            }),
        )
    };
}

/// The model that a machine has without `-cpu`.
pub const HOST: &Model = &MODELS[0];

/// Every model.
pub static MODELS: &[Model] = &[
    model("host", "what the host has and KVM supports", Origin::Host),
    model("max", "the same", Origin::Host),
    table!(
        "qemu64",
        "virtual CPU of 64 bits",
        (15, 107, 1),
        CORE,
        [X86_64, "pni cx16 lahf-lm"]
    ),
    table!(
        "kvm64",
        "virtual CPU for KVM",
        (15, 6, 1),
        CORE,
        [X86_64, "vme pni cx16"]
    ),
    table!(
        "x86-64-v1",
        "what each CPU of 64 bits has",
        (15, 107, 1),
        CORE,
        [X86_64]
    ),
    table!(
        "x86-64-v2",
        "level 2 of the x86-64 psABI",
        (15, 107, 1),
        CORE,
        [X86_64, LEVEL_2]
    ),
    table!(
        "x86-64-v3",
        "level 3 of the x86-64 psABI",
        (15, 107, 1),
        CORE,
        [X86_64, LEVEL_2, LEVEL_3]
    ),
    table!(
        "x86-64-v4",
        "level 4 of the x86-64 psABI",
        (15, 107, 1),
        CORE,
        [X86_64, LEVEL_2, LEVEL_3, LEVEL_4]
    ),
    table!(
        "Nehalem",
        "Intel Nehalem, 2008",
        (6, 26, 3),
        CORE,
        [X86_64, "vme", LEVEL_2]
    ),
    table!(
        "Westmere",
        "Intel Westmere, 2010",
        (6, 44, 1),
        CORE,
        [X86_64, "vme", LEVEL_2, WESTMERE]
    ),
    table!(
        "SandyBridge",
        "Intel Sandy Bridge, 2011",
        (6, 42, 1),
        CORE,
        [X86_64, "vme", LEVEL_2, WESTMERE, SANDY_BRIDGE]
    ),
    table!(
        "IvyBridge",
        "Intel Ivy Bridge, 2012",
        (6, 58, 9),
        CORE,
        [X86_64, "vme", LEVEL_2, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE]
    ),
    table!(
        "Haswell",
        "Intel Haswell, 2013",
        (6, 60, 4),
        CORE,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            TRANSACTIONS
        ]
    ),
    table!(
        "Haswell-noTSX",
        "Intel Haswell without transactions",
        (6, 60, 1),
        CORE,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL
        ]
    ),
    table!(
        "Broadwell",
        "Intel Broadwell, 2014",
        (6, 61, 2),
        CORE,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL,
            TRANSACTIONS
        ]
    ),
    table!(
        "Broadwell-noTSX",
        "Intel Broadwell without transactions",
        (6, 61, 2),
        CORE,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL
        ]
    ),
    table!(
        "Skylake-Client",
        "Intel Skylake, 2015",
        (6, 94, 3),
        CORE,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL,
            SKYLAKE,
            TRANSACTIONS
        ]
    ),
    table!(
        "Skylake-Server",
        "Intel Skylake for servers, 2017",
        (6, 85, 4),
        SKYLAKE_SERVER,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL,
            SKYLAKE,
            SKYLAKE_MORE,
            LEVEL_4,
            TRANSACTIONS
        ]
    ),
    table!(
        "Cascadelake-Server",
        "Intel Cascade Lake for servers, 2019",
        (6, 85, 6),
        SKYLAKE_SERVER,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL,
            SKYLAKE,
            SKYLAKE_MORE,
            LEVEL_4,
            CASCADE_LAKE,
            TRANSACTIONS
        ]
    ),
    table!(
        "Icelake-Server",
        "Intel Ice Lake for servers, 2021",
        (6, 106, 0),
        ICELAKE_SERVER,
        [
            X86_64,
            "vme",
            LEVEL_2,
            WESTMERE,
            SANDY_BRIDGE,
            IVY_BRIDGE,
            HASWELL,
            BROADWELL,
            SKYLAKE,
            SKYLAKE_MORE,
            LEVEL_4,
            CASCADE_LAKE,
            ICE_LAKE,
            TRANSACTIONS
        ]
    ),
    table!(
        "EPYC",
        "AMD EPYC, Zen, 2017",
        (23, 1, 2),
        ZEN,
        [X86_64, ZEN_1_FEATURES]
    ),
    table!(
        "EPYC-Rome",
        "AMD EPYC, Zen 2, 2019",
        (23, 49, 0),
        ZEN_2,
        [X86_64, ZEN_1_FEATURES, ZEN_2_FEATURES]
    ),
    table!(
        "EPYC-Milan",
        "AMD EPYC, Zen 3, 2021",
        (25, 1, 1),
        ZEN_3,
        [X86_64, ZEN_1_FEATURES, ZEN_2_FEATURES, ZEN_3_FEATURES]
    ),
];

/// The model of that name.
#[must_use]
pub fn find_model(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}
