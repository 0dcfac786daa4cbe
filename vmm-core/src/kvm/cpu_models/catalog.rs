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
    /// What it can do.
    pub features: &'static Features,
}

/// The features of a generation: those of an older one, and more.
#[derive(Debug, PartialEq, Eq)]
pub struct Features {
    /// All of its features are here as well.
    pub older: Option<&'static Self>,
    /// Names of more, separated by spaces.
    pub more: &'static str,
}

impl Features {
    const fn and(&'static self, more: &'static str) -> Self {
        let older = Some(self);
        Self { older, more }
    }

    /// The name of each.
    pub fn names(&'static self) -> impl Iterator<Item = &'static str> {
        let ages = std::iter::successors(Some(self), |features| features.older);
        ages.flat_map(|features| features.more.split_whitespace())
    }
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
const CORE_CACHES: Caches = Caches {
    l1_data: cache(32, 8),
    l1_code: cache(32, 8),
    l2: cache(256, 8),
    l3: cache(16384, 16),
};
const SKYLAKE_SERVER_CACHES: Caches = Caches {
    l2: cache(1024, 16),
    ..CORE_CACHES
};
const ICE_LAKE_CACHES: Caches = Caches {
    l1_data: cache(48, 12),
    l2: cache(1280, 20),
    ..CORE_CACHES
};
const ZEN_CACHES: Caches = Caches {
    l1_data: cache(32, 8),
    l1_code: cache(64, 4),
    l2: cache(512, 8),
    l3: cache(8192, 16),
};
const ZEN_2_CACHES: Caches = Caches {
    l1_code: cache(32, 8),
    l3: cache(16384, 16),
    ..ZEN_CACHES
};
const ZEN_3_CACHES: Caches = Caches {
    l3: cache(32768, 16),
    ..ZEN_2_CACHES
};

/// What each CPU of 64 bits has, and what its kernels need.
static X86_64: Features = Features {
    older: None,
    more: "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
        sse2 syscall nx lm",
};
static QEMU64: Features = X86_64.and("pni cx16 lahf-lm");
static KVM64: Features = X86_64.and("vme pni cx16");
/// The second level of the psABI.
static LEVEL_2: Features = X86_64.and("pni ssse3 cx16 sse4.1 sse4.2 popcnt lahf-lm");
/// The third, and what saves its registers.
static LEVEL_3: Features = LEVEL_2.and("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave");
static LEVEL_4: Features = LEVEL_3.and(AVX_512);

const AVX_512: &str = "avx512f avx512bw avx512cd avx512dq avx512vl";
/// What some models have and others of their generation do not.
const TRANSACTIONS: &str = "hle rtm";

static NEHALEM: Features = LEVEL_2.and("vme");
static WESTMERE: Features = NEHALEM.and("pclmulqdq aes arat");
static SANDY_BRIDGE: Features = WESTMERE.and("avx xsave xsaveopt tsc-deadline x2apic rdtscp");
static IVY_BRIDGE: Features = SANDY_BRIDGE.and("fsgsbase smep erms f16c rdrand");
static HASWELL_NO_TSX: Features = IVY_BRIDGE.and("fma movbe pcid bmi1 avx2 bmi2 invpcid abm");
static HASWELL: Features = HASWELL_NO_TSX.and(TRANSACTIONS);
static BROADWELL_NO_TSX: Features = HASWELL_NO_TSX.and("rdseed adx smap 3dnowprefetch");
static BROADWELL: Features = BROADWELL_NO_TSX.and(TRANSACTIONS);
static SKYLAKE: Features = BROADWELL.and("xsavec xgetbv1");
static SKYLAKE_FOR_SERVERS: Features = SKYLAKE.and("clflushopt clwb pdpe1gb pku");
static SKYLAKE_SERVER: Features = SKYLAKE_FOR_SERVERS.and(AVX_512);
static CASCADE_LAKE: Features = SKYLAKE_SERVER.and("avx512vnni spec-ctrl ssbd");
static ICE_LAKE: Features = CASCADE_LAKE.and(
    "avx512vbmi avx512vbmi2 avx512bitalg avx512-vpopcntdq gfni vaes vpclmulqdq umip la57 wbnoinvd",
);

static ZEN: Features = X86_64.and(
    "vme rdrand f16c avx xsave aes popcnt movbe sse4.2 sse4.1 cx16 fma ssse3 pclmulqdq pni fsgsbase \
    bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni rdtscp pdpe1gb fxsr-opt mmxext lahf-lm \
    cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext xsaveopt xsavec xgetbv1 arat",
);
static ZEN_2: Features =
    ZEN.and("clwb umip rdpid perfctr-core clzero xsaveerptr wbnoinvd ibpb amd-stibp");
static ZEN_3: Features =
    ZEN_2.and("pcid erms invpcid fsrm pku vaes vpclmulqdq xsaves ibrs amd-ssbd");

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
    ($name:literal, $about:literal, $signature:expr, $caches:ident, $features:ident) => {
        model(
            $name,
            $about,
            Origin::Table(&Generation {
                signature: $signature,
                caches: &$caches,
                features: &$features,
            }),
        )
    };
}

/// The model that a machine has without `-cpu`.
pub const HOST: &Model = &MODELS[0];

/// Every model.
#[rustfmt::skip] // One line each: a table.
pub static MODELS: &[Model] = &[
    model("host", "what the host has and KVM supports", Origin::Host),
    model("max", "the same", Origin::Host),
    table!("qemu64", "virtual CPU of 64 bits", (15, 107, 1), CORE_CACHES, QEMU64),
    table!("kvm64", "virtual CPU for KVM", (15, 6, 1), CORE_CACHES, KVM64),
    table!("x86-64-v1", "what each CPU of 64 bits has", (15, 107, 1), CORE_CACHES, X86_64),
    table!("x86-64-v2", "level 2 of the x86-64 psABI", (15, 107, 1), CORE_CACHES, LEVEL_2),
    table!("x86-64-v3", "level 3 of the x86-64 psABI", (15, 107, 1), CORE_CACHES, LEVEL_3),
    table!("x86-64-v4", "level 4 of the x86-64 psABI", (15, 107, 1), CORE_CACHES, LEVEL_4),
    table!("Nehalem", "Intel Nehalem, 2008", (6, 26, 3), CORE_CACHES, NEHALEM),
    table!("Westmere", "Intel Westmere, 2010", (6, 44, 1), CORE_CACHES, WESTMERE),
    table!("SandyBridge", "Intel Sandy Bridge, 2011", (6, 42, 1), CORE_CACHES, SANDY_BRIDGE),
    table!("IvyBridge", "Intel Ivy Bridge, 2012", (6, 58, 9), CORE_CACHES, IVY_BRIDGE),
    table!("Haswell", "Intel Haswell, 2013", (6, 60, 4), CORE_CACHES, HASWELL),
    table!("Haswell-noTSX", "Intel Haswell without transactions", (6, 60, 1), CORE_CACHES, HASWELL_NO_TSX),
    table!("Broadwell", "Intel Broadwell, 2014", (6, 61, 2), CORE_CACHES, BROADWELL),
    table!("Broadwell-noTSX", "Intel Broadwell without transactions", (6, 61, 2), CORE_CACHES, BROADWELL_NO_TSX),
    table!("Skylake-Client", "Intel Skylake, 2015", (6, 94, 3), CORE_CACHES, SKYLAKE),
    table!("Skylake-Server", "Intel Skylake for servers, 2017", (6, 85, 4), SKYLAKE_SERVER_CACHES, SKYLAKE_SERVER),
    table!("Cascadelake-Server", "Intel Cascade Lake for servers, 2019", (6, 85, 6), SKYLAKE_SERVER_CACHES, CASCADE_LAKE),
    table!("Icelake-Server", "Intel Ice Lake for servers, 2021", (6, 106, 0), ICE_LAKE_CACHES, ICE_LAKE),
    table!("EPYC", "AMD EPYC, Zen, 2017", (23, 1, 2), ZEN_CACHES, ZEN),
    table!("EPYC-Rome", "AMD EPYC, Zen 2, 2019", (23, 49, 0), ZEN_2_CACHES, ZEN_2),
    table!("EPYC-Milan", "AMD EPYC, Zen 3, 2021", (25, 1, 1), ZEN_3_CACHES, ZEN_3),
];

/// The model of that name.
#[must_use]
pub fn find_model(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}
