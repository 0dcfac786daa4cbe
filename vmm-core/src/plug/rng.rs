//! `virtio-rng-pci`.

use std::sync::Arc;
use std::time::Duration;

use devices::virtio::rng::{Builtin, Entropy, Rate, VirtioRng};
use qapi_schema::QmpError;
use qapi_schema::devices::VirtioRngProperties;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::{Claim, Part};

/// The period of a rate limit that names none: 65,536 ms, as in QEMU.
const PERIOD_MS: u32 = 1 << 16;

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioRngProperties) -> Result<Part, QmpError> {
    let place = virtio_place!(options);
    let source: Arc<dyn Entropy> = match &options.rng {
        Some(id) => {
            let source = plug.vm.objects.claim_entropy(id, &plug.name)?;
            plug.claim(Claim::Object(id.clone()));
            source
        }
        None => Arc::new(Builtin),
    };
    let period = options.period.unwrap_or(PERIOD_MS);
    let rate = match options.max_bytes {
        None => Rate::UNLIMITED,
        Some(_) if period == 0 => {
            return Err(QmpError::generic(
                "Parameter 'period' expects a positive integer",
            ));
        }
        Some(max_bytes) => Rate {
            max_bytes,
            period: Duration::from_millis(u64::from(period)),
        },
    };
    let rng = VirtioRng::new(source, rate, plug.vm.reactor.clone(), plug.vm.clock.clone());
    plug_virtio(plug, place, rng)?;
    Ok(Part::Function)
}
