//! `vhost-vsock-pci`: what it is to be.

use devices::virtio::vsock::CIDS;
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::vsock::VhostVsockProperties;

/// Where the kernel's server of such a device is opened.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// What the guest is called.
    pub cid: u32,
    /// Whether sockets that keep the borders of messages are offered.
    pub seqpacket: bool,
    /// The name or number of the kernel's device, or its path.
    pub device: String,
}

/// What the device is to be.
///
/// # Errors
/// The guest cannot be called so.
pub fn vsock(options: &VhostVsockProperties) -> Result<VsockSpec, QmpError> {
    let cid = options.guest_cid.unwrap_or(0);
    let wrong = |what| QmpError::generic(format!("guest-cid property must be {what}"));
    let cid = u32::try_from(cid)
        .ok()
        .filter(|cid| cid <= CIDS.end())
        .ok_or_else(|| wrong("a 32-bit number"))?;
    if !CIDS.contains(&cid) {
        return Err(wrong("greater than 2"));
    }
    Ok(VsockSpec {
        cid,
        seqpacket: options.seqpacket != Some(OnOffAuto::Off),
        device: options.vhostfd.clone().unwrap_or(VHOST_VSOCK.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_called_by_a_number_that_nobody_has() {
        let resolved = |guest_cid| {
            vsock(&VhostVsockProperties {
                guest_cid,
                ..VhostVsockProperties::default()
            })
            .map(|spec| (spec.cid, spec.device))
            .map_err(|error| error.desc)
        };
        assert_eq!(resolved(Some(3)), Ok((3, "/dev/vhost-vsock".to_owned())));
        for (cid, error) in [
            (None, "greater than 2"),
            (Some(2), "greater than 2"),
            (Some(u64::from(u32::MAX)), "32-bit"),
            (Some(1 << 32), "32-bit"),
        ] {
            let refused = resolved(cid).expect_err(error);
            assert!(refused.contains(error), "{refused}");
        }
    }
}
