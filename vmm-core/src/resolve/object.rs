//! Objects: `object-add`, `-object`.

use block::{IoThreadSpec, ThrottleLimits};
use devices::net::FilterSpec;
use fdset::HugePageSize;
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::qom::{
    MemoryBackendFileProperties, MemoryBackendMemfdProperties, MemoryBackendRamProperties,
    MemoryBackendShmProperties, ObjectOptions, ObjectOptionsVariant, SecretFormat,
    SecretProperties,
};

use super::{filter, unmet};
use crate::memory::{HostMemory, RamBackendSpec};
use crate::secret::{SecretSource, SecretSpec};
use crate::throttling;
use crate::tls_creds::TlsCredsSpec;

/// Where random bytes come from when an `rng-random` names no file.
const RANDOM_FILE: &str = "/dev/urandom";

/// What an object is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSpec {
    /// Guest memory.
    Memory(RamBackendSpec),
    /// A thread that serves virtio queues.
    IoThread(IoThreadSpec),
    /// Random bytes from the host's kernel.
    RngBuiltin,
    /// Random bytes from a file: any name that `fdset::open` takes.
    RngRandom {
        /// The name.
        filename: String,
    },
    /// A secret.
    Secret(SecretSpec),
    /// Certificates and a key.
    TlsCreds(TlsCredsSpec),
    /// Limits that block nodes share.
    ThrottleGroup(ThrottleLimits),
    /// A filter on a netdev.
    Filter(FilterSpec),
}

/// What an object is to be, with its id.
///
/// # Errors
/// Members contradict each other.
pub fn object(options: ObjectOptions) -> Result<(String, ObjectSpec), QmpError> {
    use ObjectOptionsVariant as Kind;
    let id = options.id;
    check_id(&id)?;
    refuse_unmet(&options.qom_type)?;
    let spec = match options.qom_type {
        Kind::MemoryBackendRam(ram) => ObjectSpec::Memory(anonymous(&id, ram)),
        Kind::MemoryBackendMemfd(memfd) => ObjectSpec::Memory(from_memfd(&id, memfd)?),
        Kind::MemoryBackendShm(shm) => ObjectSpec::Memory(shared(&id, shm)?),
        Kind::MemoryBackendFile(file) => ObjectSpec::Memory(from_file(&id, file)),
        Kind::Iothread(_) => ObjectSpec::IoThread(IoThreadSpec { id: id.clone() }),
        Kind::RngBuiltin => ObjectSpec::RngBuiltin,
        Kind::RngRandom(random) => ObjectSpec::RngRandom {
            filename: random.filename.unwrap_or_else(|| RANDOM_FILE.to_owned()),
        },
        Kind::Secret(properties) => ObjectSpec::Secret(secret(properties)?),
        Kind::TlsCredsX509(properties) => ObjectSpec::TlsCreds(TlsCredsSpec::new(properties)?),
        Kind::ThrottleGroup(properties) => {
            ObjectSpec::ThrottleGroup(throttling::limits(&properties)?)
        }
        Kind::FilterBuffer(options) => ObjectSpec::Filter(filter::buffer(&id, options)?),
        Kind::FilterDump(options) => ObjectSpec::Filter(filter::dump(&id, options)?),
        Kind::FilterMirror(options) => ObjectSpec::Filter(filter::mirror(&id, options)?),
        Kind::FilterRedirector(options) => ObjectSpec::Filter(filter::redirector(&id, options)?),
    };
    Ok((id, spec))
}

fn refuse_unmet(object: &ObjectOptionsVariant) -> Result<(), QmpError> {
    let ObjectOptionsVariant::MemoryBackendFile(file) = object else {
        return Ok(());
    };
    unmet::refuse(&[
        (
            file.align.unwrap_or(0) != 0,
            "align",
            "the kernel aligns the mapping as the file needs it",
        ),
        (
            file.discard_data == Some(true),
            "discard-data=on",
            "the file belongs to whoever passed it",
        ),
        (
            file.rom == Some(OnOffAuto::On) && file.readonly != Some(true),
            "rom=on",
            "guest RAM is written; only what is readonly=on is not",
        ),
        (
            file.rom == Some(OnOffAuto::Off) && file.readonly == Some(true),
            "rom=off",
            "what the guest wrote would reach no file",
        ),
    ])
}

/// Whether `id` may name an object or a device: it becomes a part of a path.
///
/// # Errors
/// It is empty, does not begin with a letter, or holds anything but letters, digits and `-._`.
pub fn check_id(id: &str) -> Result<(), QmpError> {
    let well_formed = id.starts_with(|first: char| first.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if well_formed {
        return Ok(());
    }
    Err(QmpError::generic(format!(
        "Parameter 'id' expects an identifier: '{id}' must begin with a letter and hold only \
         letters, digits, '-', '.' and '_'"
    )))
}

fn anonymous(id: &str, ram: MemoryBackendRamProperties) -> RamBackendSpec {
    RamBackendSpec {
        host: ram
            .fd
            .map_or(HostMemory::Anonymous, |name| HostMemory::File {
                name,
                offset: 0,
            }),
        share: ram.share.unwrap_or(false),
        prealloc: ram.prealloc.unwrap_or(false),
        reserve: ram.reserve.unwrap_or(true),
        merge: ram.merge.unwrap_or(true),
        dump: ram.dump.unwrap_or(true),
        ..RamBackendSpec::anonymous(id, ram.size)
    }
}

fn from_memfd(id: &str, memfd: MemoryBackendMemfdProperties) -> Result<RamBackendSpec, QmpError> {
    let huge = match (memfd.hugetlb.unwrap_or(false), memfd.hugetlbsize) {
        (false, None) => None,
        (false, Some(_)) => {
            return Err(QmpError::generic("Parameter 'hugetlbsize' needs 'hugetlb'"));
        }
        (true, None) => Some(HugePageSize::Default),
        (true, Some(0x20_0000)) => Some(HugePageSize::Size2M),
        (true, Some(0x4000_0000)) => Some(HugePageSize::Size1G),
        (true, Some(other)) => {
            return Err(QmpError::generic(format!(
                "Parameter 'hugetlbsize' expects 2 MiB or 1 GiB, not {other} bytes"
            )));
        }
    };
    let host = match memfd.fd {
        Some(name) => HostMemory::File { name, offset: 0 },
        None => HostMemory::Memfd {
            sealed: memfd.seal.unwrap_or(true),
            huge,
        },
    };
    Ok(RamBackendSpec {
        host,
        share: memfd.share.unwrap_or(true),
        prealloc: memfd.prealloc.unwrap_or(false),
        reserve: memfd.reserve.unwrap_or(true),
        merge: memfd.merge.unwrap_or(true),
        dump: memfd.dump.unwrap_or(true),
        ..RamBackendSpec::anonymous(id, memfd.size)
    })
}

/// A memfd, which has no name that others could open, as what it stands for has none after its start.
fn shared(id: &str, shm: MemoryBackendShmProperties) -> Result<RamBackendSpec, QmpError> {
    if shm.share == Some(false) {
        return Err(QmpError::generic(
            "Parameter 'share' does not accept value 'off': memory-backend-shm is shared; use \
             memory-backend-ram for memory that is not",
        ));
    }
    Ok(RamBackendSpec {
        host: HostMemory::Memfd {
            sealed: true,
            huge: None,
        },
        share: true,
        prealloc: shm.prealloc.unwrap_or(false),
        reserve: shm.reserve.unwrap_or(true),
        merge: shm.merge.unwrap_or(true),
        dump: shm.dump.unwrap_or(true),
        ..RamBackendSpec::anonymous(id, shm.size)
    })
}

fn from_file(id: &str, file: MemoryBackendFileProperties) -> RamBackendSpec {
    RamBackendSpec {
        host: HostMemory::File {
            name: file.mem_path,
            offset: file.offset.unwrap_or(0),
        },
        share: file.share.unwrap_or(false),
        prealloc: file.prealloc.unwrap_or(false),
        reserve: file.reserve.unwrap_or(true),
        merge: file.merge.unwrap_or(true),
        dump: file.dump.unwrap_or(true),
        read_only: file.readonly.unwrap_or(false),
        ..RamBackendSpec::anonymous(id, file.size)
    }
}

fn secret(properties: SecretProperties) -> Result<SecretSpec, QmpError> {
    let source = match (properties.data, properties.file) {
        (Some(data), None) => SecretSource::Text(data),
        (None, Some(name)) => SecretSource::File(name),
        (Some(_), Some(_)) => {
            return Err(QmpError::generic(
                "'file' and 'data' are mutually exclusive: give one of them",
            ));
        }
        (None, None) => return Err(QmpError::generic("Must provide 'file' or 'data'")),
    };
    Ok(SecretSpec {
        source,
        base64: properties.format == Some(SecretFormat::Base64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_in_a_memfd_and_cannot_be_private() {
        let of = |share| {
            let shm = MemoryBackendShmProperties {
                dump: None,
                merge: None,
                prealloc: None,
                prealloc_threads: None,
                share,
                reserve: None,
                size: 1 << 20,
                x_use_canonical_path_for_ramblock_id: None,
            };
            shared("ram", shm)
        };
        let memory = of(None).unwrap();
        assert!(memory.share);
        assert!(matches!(
            memory.host,
            HostMemory::Memfd { sealed: true, .. }
        ));
        assert!(of(Some(false)).is_err());
    }
}
