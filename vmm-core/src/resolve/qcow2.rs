//! Images: the options of the driver `qcow2`, and what lists show of them.

use block::format::qcow2::{Compression, Details, Snapshot, Tuning};
use block::spec::{BackingSpec, NodeOptions, Qcow2Spec};
use qapi_schema::QmpError;
use qapi_schema::block_core::{
    BlockdevOptionsQcow2, BlockdevRefOrNull, ImageInfoSpecific, ImageInfoSpecificQCow2,
    ImageInfoSpecificQCow2Wrapper, ImageInfoSpecificVariant, Qcow2CompressionType, SnapshotInfo,
};

use super::node::child;

/// What an image is to be opened with.
///
/// # Errors
/// Members contradict each other.
pub(super) fn qcow2(
    options: BlockdevOptionsQcow2,
    own: &NodeOptions,
) -> Result<Qcow2Spec, QmpError> {
    let usual = Tuning::default();
    if let (Some(tables), Some(all)) = (options.l2_cache_size, options.cache_size)
        && tables > all
    {
        return Err(QmpError::generic("l2-cache-size may not exceed cache-size"));
    }
    let cache = options.l2_cache_size.or(options.cache_size);
    let slice = size(options.l2_cache_entry_size, "l2-cache-entry-size")?;
    if slice.is_some_and(|slice| !slice.is_power_of_two() || !(512..=2 << 20).contains(&slice)) {
        return Err(QmpError::generic(
            "L2 cache entry size must be a power of two between 512 and the cluster size",
        ));
    }
    // What is behind an image is only read.
    let below = NodeOptions {
        read_only: true,
        auto_read_only: false,
        discard: block::spec::DiscardMode::Ignore,
        ..*own
    };
    let data_file = options.data_file.map(|data| child(data, own)).transpose()?;
    Ok(Qcow2Spec {
        file: child(options.file, own)?,
        data_file,
        backing: match options.backing {
            None => BackingSpec::FromHeader(None),
            Some(BlockdevRefOrNull::Null(())) => BackingSpec::Nothing,
            // The command line has no null.
            Some(BlockdevRefOrNull::Reference(name)) if name.is_empty() => BackingSpec::Nothing,
            Some(BlockdevRefOrNull::Reference(name)) => {
                BackingSpec::Child(block::spec::ChildSpec::Named(name))
            }
            Some(BlockdevRefOrNull::Definition(definition)) => {
                let definition = qapi_schema::block_core::BlockdevRef::Definition(definition);
                BackingSpec::Child(child(definition, &below)?)
            }
        },
        pass_discard: options.pass_discard_request,
        tuning: Tuning {
            l2_cache: size(cache, "l2-cache-size")?.unwrap_or(usual.l2_cache),
            l2_slice: slice.unwrap_or(usual.l2_slice),
            lazy_refcounts: options.lazy_refcounts,
            ..usual
        },
    })
}

fn size(value: Option<i64>, name: &str) -> Result<Option<u64>, QmpError> {
    value
        .map(u64::try_from)
        .transpose()
        .map_err(|_| QmpError::generic(format!("Parameter '{name}' expects a number from 0 on")))
}

/// What an image says of itself, as lists show it.
#[must_use]
pub fn specific(details: &Details) -> ImageInfoSpecific {
    let modern = details.version >= 3;
    let data = ImageInfoSpecificQCow2 {
        compat: if modern { "1.1" } else { "0.10" }.to_owned(),
        data_file: details.data_file.clone(),
        data_file_raw: details.data_file.as_ref().map(|_| details.data_file_raw),
        extended_l2: modern.then_some(details.extended_l2),
        lazy_refcounts: modern.then_some(details.lazy_refcounts),
        corrupt: modern.then_some(details.corrupt),
        refcount_bits: i64::from(details.refcount_bits),
        compression_type: match details.compression {
            Compression::Zlib => Qcow2CompressionType::Zlib,
            Compression::Zstd => Qcow2CompressionType::Zstd,
        },
    };
    ImageInfoSpecific {
        r#type: ImageInfoSpecificVariant::Qcow2(ImageInfoSpecificQCow2Wrapper { data }),
    }
}

/// A state that an image keeps, as lists show it.
#[must_use]
pub fn snapshot(snapshot: &Snapshot) -> SnapshotInfo {
    const SECOND: u64 = 1_000_000_000;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    SnapshotInfo {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        vm_state_size: number(snapshot.vm_state),
        date_sec: i64::from(snapshot.seconds),
        date_nsec: i64::from(snapshot.nanoseconds),
        vm_clock_sec: number(snapshot.clock / SECOND),
        vm_clock_nsec: number(snapshot.clock % SECOND),
        icount: snapshot.icount.map(number),
    }
}
