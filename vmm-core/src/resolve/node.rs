//! Block nodes: `blockdev-add`, `-blockdev`.

use std::time::Duration;

use block::format::blkdebug::limits::RequestLimits;
use block::format::blkdebug::rules::{ErrorRule, RequestKind, RuleEvent, Rules, StateRule};
use block::spec::{
    BlkdebugSpec, CacheSpec, CbwFailure, ChildSpec, CompressSpec, CopyBeforeWriteSpec,
    CopyOnReadSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, Locking, NodeOptions,
    NodeSpec, NullSpec, RawSpec, SnapshotAccessSpec, ThrottleSpec,
};
use qapi_schema::QmpError;
use qapi_schema::block_core::{
    BlkdebugEvent, BlkdebugIOType, BlkdebugInjectErrorOptions, BlkdebugSetStateOptions,
    BlockdevAioOptions, BlockdevDetectZeroesOptions, BlockdevDiscardOptions, BlockdevOptions,
    BlockdevOptionsBlkdebug, BlockdevOptionsCbw, BlockdevOptionsFile, BlockdevOptionsNull,
    BlockdevOptionsVariant, BlockdevRef, OnCbwError,
};
use qapi_schema::common::OnOffAuto;

use super::unmet;

/// Bytes that are copied at once before they are overwritten, at least.
const CBW_PIECE: u64 = 64 << 10;
/// The same at most: as much memory is used.
const CBW_PIECE_MOST: u64 = 64 << 20;

/// A null node's length where none is given: 1 GiB, as QEMU has it.
const NULL_SIZE: u64 = 1 << 30;

/// What a node is to be, with the ones it brings inline.
///
/// # Errors
/// Members contradict each other.
pub fn node(options: BlockdevOptions) -> Result<NodeSpec, QmpError> {
    resolve(options, None)
}

/// `parent` is what an inline child takes over where it says nothing itself.
fn resolve(options: BlockdevOptions, parent: Option<&NodeOptions>) -> Result<NodeSpec, QmpError> {
    let own = node_options(&options, parent);
    let keeps_access = options.read_only.is_some();
    refuse_unmet(&options, &own)?;
    if own.detect_zeroes == DetectZeroes::Unmap && own.discard != DiscardMode::Unmap {
        return Err(QmpError::generic(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to \
             unmap",
        ));
    }
    if options.force_share == Some(true) && !own.read_only {
        return Err(QmpError::generic(
            "force-share=on can only be used with read-only images",
        ));
    }
    let driver = match options.driver {
        BlockdevOptionsVariant::File(file) => DriverSpec::File(file_spec(file)),
        BlockdevOptionsVariant::HostDevice(file) => DriverSpec::HostDevice(file_spec(file)),
        BlockdevOptionsVariant::NullCo(null) => DriverSpec::NullCo(null_spec(&null)),
        BlockdevOptionsVariant::NullAio(null) => DriverSpec::NullAio(null_spec(&null)),
        BlockdevOptionsVariant::Raw(raw) => DriverSpec::Raw(RawSpec {
            file: child(raw.file, &own)?,
            offset: raw.offset.unwrap_or(0),
            size: raw.size,
        }),
        BlockdevOptionsVariant::Qcow2(qcow2) => {
            DriverSpec::Qcow2(Box::new(super::qcow2::qcow2(qcow2, &own)?))
        }
        BlockdevOptionsVariant::Blkdebug(blkdebug) => {
            DriverSpec::Blkdebug(blkdebug_spec(blkdebug, &own)?)
        }
        BlockdevOptionsVariant::CopyOnRead(filter) => DriverSpec::CopyOnRead(CopyOnReadSpec {
            file: child(filter.file, &own)?,
            bottom: filter.bottom,
        }),
        BlockdevOptionsVariant::Compress(filter) => DriverSpec::Compress(CompressSpec {
            file: child(filter.file, &own)?,
        }),
        BlockdevOptionsVariant::Throttle(throttle) => DriverSpec::Throttle(ThrottleSpec {
            group: throttle.throttle_group,
            file: child(throttle.file, &own)?,
        }),
        BlockdevOptionsVariant::CopyBeforeWrite(filter) => {
            DriverSpec::CopyBeforeWrite(Box::new(copy_before_write(filter, &own)?))
        }
        BlockdevOptionsVariant::SnapshotAccess(access) => {
            DriverSpec::SnapshotAccess(SnapshotAccessSpec {
                file: child(access.file, &own)?,
            })
        }
    };
    Ok(NodeSpec {
        name: options.node_name,
        options: own,
        keeps_access,
        active: options.active,
        force_share: options.force_share == Some(true),
        driver,
    })
}

fn refuse_unmet(options: &BlockdevOptions, own: &NodeOptions) -> Result<(), QmpError> {
    use BlockdevOptionsVariant as Kind;
    match &options.driver {
        Kind::File(file) | Kind::HostDevice(file)
            if file.aio == Some(BlockdevAioOptions::Native) && !own.cache.direct =>
        {
            Err(QmpError::generic(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified.",
            ))
        }
        Kind::NullCo(null) | Kind::NullAio(null) => unmet::refuse(&[(
            null.latency_ns.unwrap_or(0) != 0,
            "latency-ns",
            "a null node answers at once",
        )]),
        Kind::File(_)
        | Kind::HostDevice(_)
        | Kind::Raw(_)
        | Kind::Qcow2(_)
        | Kind::Blkdebug(_)
        | Kind::CopyOnRead(_)
        | Kind::Compress(_)
        | Kind::Throttle(_)
        | Kind::CopyBeforeWrite(_)
        | Kind::SnapshotAccess(_) => Ok(()),
    }
}

fn node_options(options: &BlockdevOptions, parent: Option<&NodeOptions>) -> NodeOptions {
    let cache = options.cache.as_ref();
    NodeOptions {
        read_only: options
            .read_only
            .unwrap_or(parent.is_some_and(|parent| parent.read_only)),
        auto_read_only: options
            .auto_read_only
            .unwrap_or(parent.is_some_and(|parent| parent.auto_read_only)),
        discard: match options.discard {
            Some(BlockdevDiscardOptions::Unmap) => DiscardMode::Unmap,
            Some(BlockdevDiscardOptions::Ignore) => DiscardMode::Ignore,
            // A discard that the parent lets through is for the child to carry out.
            None => parent.map_or(DiscardMode::Ignore, |parent| parent.discard),
        },
        detect_zeroes: match options.detect_zeroes {
            None | Some(BlockdevDetectZeroesOptions::Off) => DetectZeroes::Off,
            Some(BlockdevDetectZeroesOptions::On) => DetectZeroes::On,
            Some(BlockdevDetectZeroesOptions::Unmap) => DetectZeroes::Unmap,
        },
        cache: CacheSpec {
            direct: cache
                .and_then(|cache| cache.direct)
                .unwrap_or(parent.is_some_and(|parent| parent.cache.direct)),
            no_flush: cache
                .and_then(|cache| cache.no_flush)
                .unwrap_or(parent.is_some_and(|parent| parent.cache.no_flush)),
        },
    }
}

fn file_spec(file: BlockdevOptionsFile) -> FileSpec {
    FileSpec {
        filename: file.filename,
        role: fdset::Role::Image,
        locking: match file.locking {
            None | Some(OnOffAuto::Auto) => Locking::Auto,
            Some(OnOffAuto::On) => Locking::On,
            Some(OnOffAuto::Off) => Locking::Off,
        },
    }
}

fn null_spec(null: &BlockdevOptionsNull) -> NullSpec {
    NullSpec {
        size: null.size.unwrap_or(NULL_SIZE),
        read_zeroes: null.read_zeroes.unwrap_or(false),
    }
}

fn copy_before_write(
    options: BlockdevOptionsCbw,
    own: &NodeOptions,
) -> Result<CopyBeforeWriteSpec, QmpError> {
    let piece = options.min_cluster_size.unwrap_or(0).max(CBW_PIECE);
    if !piece.is_power_of_two() || piece > CBW_PIECE_MOST {
        return Err(QmpError::generic(
            "min-cluster-size needs to be a power of 2, at most 64 MiB",
        ));
    }
    let seconds = options.cbw_timeout.unwrap_or(0);
    Ok(CopyBeforeWriteSpec {
        file: child(options.file, own)?,
        target: child(options.target, own)?,
        bitmap: options.bitmap.map(|bitmap| (bitmap.node, bitmap.name)),
        on_failure: match options.on_cbw_error {
            None | Some(OnCbwError::BreakGuestWrite) => CbwFailure::BreakGuestWrite,
            Some(OnCbwError::BreakSnapshot) => CbwFailure::BreakSnapshot,
        },
        timeout: (seconds > 0).then(|| Duration::from_secs(u64::from(seconds))),
        piece,
    })
}

fn blkdebug_spec(
    options: BlockdevOptionsBlkdebug,
    parent: &NodeOptions,
) -> Result<BlkdebugSpec, QmpError> {
    let errors = options.inject_error.unwrap_or_default();
    let errors: Result<_, _> = errors.iter().map(error_rule).collect();
    let states = options.set_state.unwrap_or_default();
    let states: Result<_, _> = states.iter().map(state_rule).collect();
    Ok(BlkdebugSpec {
        image: child(options.image, parent)?,
        config: options.config,
        rules: Rules::new(errors?, states?),
        limits: RequestLimits {
            align: options.align.unwrap_or(0),
            max_transfer: options.max_transfer.unwrap_or(0),
            opt_write_zero: options.opt_write_zero.unwrap_or(0),
            max_write_zero: options.max_write_zero.unwrap_or(0),
            opt_discard: options.opt_discard.unwrap_or(0),
            max_discard: options.max_discard.unwrap_or(0),
        },
    })
}

fn error_rule(options: &BlkdebugInjectErrorOptions) -> Result<ErrorRule, QmpError> {
    let errno = match options.errno {
        None => libc::EIO,
        Some(errno) => i32::try_from(errno)
            .ok()
            .filter(|errno| *errno > 0)
            .ok_or_else(|| out_of_range("errno", "the number of an error"))?,
    };
    let sector = match options.sector {
        // As QEMU has it: -1 is any.
        None | Some(-1) => None,
        Some(sector) => {
            Some(u64::try_from(sector).map_err(|_| out_of_range("sector", "a number from 0 on"))?)
        }
    };
    Ok(ErrorRule {
        event: event(options.event),
        state: state(options.state)?,
        kind: options.iotype.map(|kind| match kind {
            BlkdebugIOType::Read => RequestKind::Read,
            BlkdebugIOType::Write => RequestKind::Write,
            BlkdebugIOType::WriteZeroes => RequestKind::WriteZeroes,
            BlkdebugIOType::Discard => RequestKind::Discard,
            BlkdebugIOType::Flush => RequestKind::Flush,
        }),
        errno,
        sector,
        once: options.once.unwrap_or(false),
    })
}

fn state_rule(options: &BlkdebugSetStateOptions) -> Result<StateRule, QmpError> {
    Ok(StateRule {
        event: event(options.event),
        state: state(options.state)?,
        new_state: u32::try_from(options.new_state)
            .map_err(|_| out_of_range("new_state", "a number from 0 on"))?,
    })
}

fn event(event: BlkdebugEvent) -> RuleEvent {
    match event {
        BlkdebugEvent::None => RuleEvent::None,
        BlkdebugEvent::ReadAio => RuleEvent::ReadAio,
        BlkdebugEvent::WriteAio => RuleEvent::WriteAio,
        BlkdebugEvent::Pwritev => RuleEvent::Pwritev,
        BlkdebugEvent::PwritevZero => RuleEvent::PwritevZero,
        BlkdebugEvent::FlushToDisk => RuleEvent::FlushToDisk,
    }
}

/// A state; absence and 0 stand for any.
fn state(state: Option<i64>) -> Result<Option<u32>, QmpError> {
    let number = u32::try_from(state.unwrap_or(0));
    let number = number.map_err(|_| out_of_range("state", "a number from 0 on"))?;
    Ok((number != 0).then_some(number))
}

fn out_of_range(parameter: &str, wanted: &str) -> QmpError {
    QmpError::generic(format!("Parameter '{parameter}' expects {wanted}"))
}

pub(super) fn child(reference: BlockdevRef, parent: &NodeOptions) -> Result<ChildSpec, QmpError> {
    Ok(match reference {
        BlockdevRef::Reference(name) => ChildSpec::Named(name),
        BlockdevRef::Definition(options) => {
            ChildSpec::Inline(Box::new(resolve(*options, Some(parent))?))
        }
    })
}
