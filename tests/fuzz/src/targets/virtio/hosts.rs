//! The devices that a driver drives, each with a host behind it that gives what it is asked for.

use std::sync::{Arc, OnceLock};

use block::spec::{
    CacheSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec, NullSpec,
};
use block::{BlockGraph, IoThread, IoThreadSpec, NodeRef};
use devices::memory::Reclaim;
use devices::notice::NoticeSink;
use devices::scsi::{Kind as Unit, ScsiUnit, ScsiUnitSpec};
use devices::virtio::balloon::{BalloonHost, BalloonSpec, VirtioBalloon};
use devices::virtio::blk::{VirtioBlk, VirtioBlkSpec};
use devices::virtio::console::{ConsoleSpec, PortKind, PortSpec, VirtioConsole};
use devices::virtio::device::VirtioDevice;
use devices::virtio::pmem::{FileMemory, PmemHost, PmemSpec, VirtioPmem};
use devices::virtio::rng::{Builtin, Rate, VirtioRng};
use devices::virtio::scsi::{VirtioScsi, VirtioScsiSpec};
use devices::vm_clock::VmClock;
use fdset::{Door, FdRegistry, FdsetId, Handover, OpenFile, Origin, Scope};

use super::{Kind, SIZE, mem};
use crate::board::reactor;

pub(super) fn iothread() -> &'static IoThread {
    static IOTHREAD: OnceLock<IoThread> = OnceLock::new();
    IOTHREAD.get_or_init(|| {
        let id = "fuzz".to_owned();
        IoThread::start(IoThreadSpec { id }).expect("a thread and a ring")
    })
}

pub(super) fn notices() -> NoticeSink {
    NoticeSink::new(drop)
}

pub(super) fn device(kind: Kind) -> Arc<dyn VirtioDevice> {
    match kind {
        Kind::Null | Kind::File => Arc::new(disk(kind)),
        Kind::Rng => VirtioRng::new(
            Arc::new(Builtin),
            Rate::UNLIMITED,
            reactor().clone(),
            VmClock::Host,
        ),
        Kind::Console => console(),
        Kind::Balloon => balloon(),
        Kind::Scsi => scsi(),
        Kind::Pmem => pmem(),
        Kind::Mem => mem::device(),
        Kind::Net => unreachable!("it is made with its cable"),
        Kind::Input => unreachable!("it is made with who types"),
    }
}

/// Memory with a file behind it.
fn pmem() -> Arc<VirtioPmem> {
    let spec = PmemSpec {
        address: 4 << 30,
        size: 2 << 20,
    };
    let file = tempfile::tempfile().expect("a file");
    let file = OpenFile::new(file.into(), None);
    let host = PmemHost {
        memory: Arc::new(FileMemory::new(file, iothread().clone())),
        reactor: reactor().clone(),
    };
    VirtioPmem::new(spec, host)
}

/// A controller with a disk and an empty drive.
fn scsi() -> Arc<VirtioScsi> {
    let spec = VirtioScsiSpec {
        id: "scsi".to_owned(),
        queues: 1,
        queue_size: SIZE,
        max_sectors: 65535,
        cmd_per_lun: 128,
        hotplug: true,
        param_change: true,
        iothread: iothread().clone(),
    };
    let controller = VirtioScsi::new(spec, reactor().clone()).expect("a controller");
    for (kind, medium) in [
        (Unit::Disk, Some(node(Kind::File).into())),
        (Unit::Cd, None),
    ] {
        let block = if kind == Unit::Cd { 2048 } else { 512 };
        let spec = ScsiUnitSpec {
            id: "unit".to_owned(),
            kind,
            vendor: "V".to_owned(),
            product: "P".to_owned(),
            version: "1".to_owned(),
            serial: "fuzz".to_owned(),
            device_id: None,
            wwn: None,
            port_wwn: None,
            port_index: None,
            scsi_version: 5,
            rotation_rate: 0,
            geometry: None,
            removable: kind == Unit::Cd,
            logical_block_size: block,
            physical_block_size: block,
            write_cache: true,
            on_error: [block::job::OnError::Report; 2],
            notices: notices(),
        };
        let unit = ScsiUnit::new(spec, medium).expect("a unit");
        let place = controller.place(Some(0), None).expect("room");
        controller.plug(place, Arc::new(unit));
    }
    controller
}

fn disk(kind: Kind) -> VirtioBlk {
    let spec = VirtioBlkSpec {
        id: "vda".to_owned(),
        root: node(kind).into(),
        serial: "fuzz".to_owned(),
        queues: 2,
        queue_size: SIZE,
        logical_block_size: 512,
        physical_block_size: 512,
        geometry: None,
        write_cache: true,
        discard: true,
        write_zeroes: true,
        on_error: [block::job::OnError::Report; 2],
        iothreads: vec![iothread().clone()],
        notices: notices(),
    };
    VirtioBlk::new(spec).expect("a disk")
}

fn node(kind: Kind) -> NodeRef {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let driver = if kind == Kind::Null {
        DriverSpec::NullCo(NullSpec {
            size: 1 << 20,
            read_zeroes: true,
        })
    } else {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(0x1_0000).expect("room on the disk");
        let passed = Handover::new(file.into(), Origin::CommandLine);
        door.registry().add(passed, FdsetId::new(0).ok(), None);
        DriverSpec::File(FileSpec {
            filename: "/dev/fdset/0".to_owned(),
            role: fdset::Role::Image,
            locking: block::spec::Locking::Auto,
        })
    };
    let options = NodeOptions {
        read_only: false,
        auto_read_only: false,
        discard: DiscardMode::Unmap,
        detect_zeroes: DetectZeroes::Unmap,
        cache: CacheSpec {
            direct: false,
            no_flush: false,
        },
    };
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("disk".to_owned()),
        options,
        driver,
    };
    BlockGraph::new().add(&door, spec).expect("a node")
}

/// Takes nothing, as if all pages were large ones.
struct Keep;

impl Reclaim for Keep {
    fn reclaim(&self, _start: u64, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn balloon() -> Arc<VirtioBalloon> {
    let spec = BalloonSpec {
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    let balloon = VirtioBalloon::new(
        spec,
        BalloonHost {
            reclaim: Arc::new(Keep),
            reactor: reactor().clone(),
            clock: VmClock::Host,
            notices: notices(),
        },
    );
    balloon.set_polling_interval(1).expect("a timer");
    balloon
}

fn console() -> Arc<VirtioConsole> {
    let spec = ConsoleSpec {
        id: "console".to_owned(),
        max_ports: 2,
    };
    let console = VirtioConsole::new(spec, reactor().clone(), notices()).expect("a console");
    for kind in [PortKind::Console, PortKind::Serial] {
        let spec = PortSpec {
            id: None,
            kind,
            name: None,
            number: None,
            chardev: None,
        };
        console.plug_port(&spec).expect("a port");
    }
    console
}
