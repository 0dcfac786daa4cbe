//! `balloon.json`: how much of its memory the guest has.

use devices::virtio::balloon::{PAGE, VirtioBalloon};
use qapi_schema::balloon::{Balloon, BalloonChange, BalloonInfo, Commands};
use qapi_schema::{Context, ErrorClass, Event, QmpError};

use crate::machine::Q35;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_balloon(&mut self, _cx: &mut dyn Context) -> Result<BalloonInfo, QmpError> {
        let pages = self.balloon_device()?.actual();
        Ok(BalloonInfo {
            actual: self.left_with(pages),
        })
    }

    fn balloon(&mut self, _cx: &mut dyn Context, args: Balloon) -> Result<(), QmpError> {
        let balloon = self.balloon_device()?;
        let wanted = u64::try_from(args.value).ok().filter(|bytes| *bytes > 0);
        let Some(wanted) = wanted else {
            return Err(QmpError::generic(format!(
                "Parameter 'value' expects a size above 0, not {}",
                args.value
            )));
        };
        let pages = self.ram_size().saturating_sub(wanted) / PAGE;
        balloon.set_target(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(())
    }
}

impl Vm {
    fn balloon_device(&self) -> Result<&VirtioBalloon, QmpError> {
        self.devices.balloon().map(AsRef::as_ref).ok_or_else(|| {
            QmpError::new(
                ErrorClass::DeviceNotActive,
                "No balloon device has been activated",
            )
        })
    }

    /// The guest's balloon holds `pages` now.
    pub(crate) fn balloon_changed(&self, pages: u32) {
        let actual = self.left_with(pages);
        self.events
            .emit(Event::BalloonChange(BalloonChange { actual }));
    }

    fn ram_size(&self) -> u64 {
        let board = self.machine.board("balloon");
        board.map_or(0, Q35::ram_size)
    }

    fn left_with(&self, pages: u32) -> i64 {
        let left = self.ram_size().saturating_sub(u64::from(pages) * PAGE);
        i64::try_from(left).unwrap_or(i64::MAX)
    }
}
