//! Block nodes: `blockdev-add`, `-blockdev`.

use block::spec::{
    CacheSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
    NullSpec, RawSpec,
};
use qapi_schema::QmpError;
use qapi_schema::block_core::{
    BlockdevDetectZeroesOptions, BlockdevDiscardOptions, BlockdevOptions, BlockdevOptionsFile,
    BlockdevOptionsNull, BlockdevOptionsVariant, BlockdevRef,
};
use qapi_schema::common::OnOffAuto;

use super::unmet;

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
    refuse_unmet(&options)?;
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
    };
    Ok(NodeSpec {
        name: options.node_name,
        options: own,
        driver,
    })
}

fn refuse_unmet(options: &BlockdevOptions) -> Result<(), QmpError> {
    use BlockdevOptionsVariant as Kind;
    match &options.driver {
        Kind::File(file) | Kind::HostDevice(file) => unmet::refuse(&[(
            file.locking == Some(OnOffAuto::On),
            "locking=on",
            "images are not locked",
        )]),
        Kind::NullCo(null) | Kind::NullAio(null) => unmet::refuse(&[(
            null.latency_ns.unwrap_or(0) != 0,
            "latency-ns",
            "a null node answers at once",
        )]),
        Kind::Raw(_) => Ok(()),
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
    }
}

fn null_spec(null: &BlockdevOptionsNull) -> NullSpec {
    NullSpec {
        size: null.size.unwrap_or(NULL_SIZE),
        read_zeroes: null.read_zeroes.unwrap_or(false),
    }
}

fn child(reference: BlockdevRef, parent: &NodeOptions) -> Result<ChildSpec, QmpError> {
    Ok(match reference {
        BlockdevRef::Reference(name) => ChildSpec::Named(name),
        BlockdevRef::Definition(options) => {
            ChildSpec::Inline(Box::new(resolve(*options, Some(parent))?))
        }
    })
}
