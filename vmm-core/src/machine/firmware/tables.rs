//! ACPI and SMBIOS for firmware, as files of fw_cfg. ACPI's depend on what firmware has done before
//! (the numbers of PCI buses), so they are made when it begins to read the first of them, and stay
//! the same until the machine's next reset.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::legacy::{FwCfg, FwCfgError, FwCfgFile, FwCfgLive};
use devices::pci::PciHost;
use devices::pci::inspect::FunctionView;

use crate::machine::acpi::{self, AcpiSpec, LinkedTables};
use crate::machine::smbios::{self, SmbiosSpec};
use crate::uuid::Uuid;

/// How long the files are, as their directory tells before they are made: zeroes follow.
const TABLES_LEN: u32 = 128 << 10;
const RSDP_LEN: u32 = 36;
const SCRIPT_LEN: u32 = 8 << 10;
const PAGE: usize = 4096;

/// The sleep states that firmware may tell of: S5 alone. Bit 7: it is there (QEMU's fw_cfg
/// specification).
const SYSTEM_STATES: [u8; 6] = [0x80, 0, 0, 1, 2, 0x80];

#[derive(Default)]
struct Tables {
    spec: Option<AcpiSpec>,
    made: Option<LinkedTables>,
}

/// The tables of one machine.
pub struct AcpiFiles {
    pci: Weak<PciHost>,
    /// Leaf lock, but for a look at the PCI tree.
    tables: Mutex<Tables>,
}

/// Which of its files.
#[derive(Clone, Copy)]
enum Part {
    Tables,
    Rsdp,
    Script,
}

struct AcpiFile {
    files: Arc<AcpiFiles>,
    part: Part,
}

impl AcpiFiles {
    /// Tables of a machine with these PCI buses; there are none before the first
    /// [`describe`](Self::describe).
    #[must_use]
    pub fn new(pci: &Arc<PciHost>) -> Arc<Self> {
        Arc::new(Self {
            pci: Arc::downgrade(pci),
            tables: Mutex::default(),
        })
    }

    /// Puts the files into `fw_cfg`.
    ///
    /// # Errors
    /// Their names are taken.
    pub fn list(self: &Arc<Self>, fw_cfg: &FwCfg) -> Result<(), FwCfgError> {
        for (name, part) in [
            (acpi::TABLES_FILE, Part::Tables),
            (acpi::RSDP_FILE, Part::Rsdp),
            (acpi::SCRIPT_FILE, Part::Script),
        ] {
            let files = Arc::clone(self);
            fw_cfg.add_file(name, Arc::new(AcpiFile { files, part }))?;
        }
        Ok(())
    }

    /// What the next tables say, but for what firmware decides.
    pub fn describe(&self, spec: AcpiSpec) {
        *self.lock() = Tables {
            spec: Some(spec),
            made: None,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) {
        let pci = self.pci.upgrade();
        let last_bus = pci.map_or(0, |pci| last_bus(&pci.inspect()));
        let mut tables = self.lock();
        let Tables { spec, made } = &mut *tables;
        if let (Some(spec), None) = (spec, &made) {
            spec.last_bus = last_bus;
            *made = Some(acpi::build_linked(spec));
        }
    }
}

impl FwCfgLive for AcpiFile {
    fn len(&self) -> u32 {
        match self.part {
            Part::Tables => TABLES_LEN,
            Part::Rsdp => RSDP_LEN,
            Part::Script => SCRIPT_LEN,
        }
    }

    fn select(&self) {
        self.files.make();
    }

    fn read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let tables = self.files.lock();
        let Some(made) = &tables.made else { return };
        let file = match self.part {
            Part::Tables => &made.tables,
            Part::Rsdp => &made.rsdp,
            Part::Script => &made.script,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = file.get(start..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

/// The highest bus number that bridges have been given.
fn last_bus(functions: &[FunctionView]) -> u8 {
    let behind = functions.iter().filter_map(|view| view.bridge.as_ref());
    behind
        .map(|bridge| bridge.subordinate.max(last_bus(&bridge.functions)))
        .max()
        .unwrap_or(0)
}

/// The page with a VM generation id, as firmware copies it.
#[must_use]
pub fn generation(uuid: Uuid) -> Vec<u8> {
    let mut page = vec![0; usize::from(acpi::vmgenid::OFFSET)];
    page.extend(acpi::vmgenid::guest_order(uuid));
    page.resize(PAGE, 0);
    page
}

/// What firmware reads of SMBIOS, and of sleep.
#[must_use]
pub fn fixed_files(spec: &SmbiosSpec) -> Vec<FwCfgFile> {
    let structures = smbios::structures(spec);
    let file = |name: &str, bytes: Vec<u8>| FwCfgFile {
        name: name.to_owned(),
        bytes,
    };
    vec![
        file("etc/smbios/smbios-anchor", smbios::anchor(0, &structures)),
        file("etc/smbios/smbios-tables", structures),
        file("etc/system-states", SYSTEM_STATES.to_vec()),
    ]
}
