//! `ui.json`: what users type and point.

use std::sync::Arc;
use std::time::Duration;

use qapi_schema::ui::{Commands, InputSendEvent, SendKey};
use qapi_schema::{Context, ErrorClass, QmpError};

use crate::input::{Typist, key_code, keyboard, sort};
use crate::vm::Vm;

/// How long a key is held where nothing is said, in ms.
const HOLD: i64 = 100;

impl Commands for Vm {
    fn input_send_event(
        &mut self,
        _cx: &mut dyn Context,
        args: InputSendEvent,
    ) -> Result<(), QmpError> {
        if let Some(device) = args.device {
            let text = format!("Device '{device}' not found: there is no screen");
            return Err(QmpError::new(ErrorClass::DeviceNotFound, text));
        }
        if args.head.is_some() {
            return Err(QmpError::generic(
                "Parameter 'head' is of a screen, and there is none: leave it out",
            ));
        }
        let inputs = self.devices.inputs();
        for touched in sort(&inputs, &args.events)? {
            touched.device.report(&touched.events);
        }
        Ok(())
    }

    fn send_key(&mut self, _cx: &mut dyn Context, args: SendKey) -> Result<(), QmpError> {
        let hold = args.hold_time.unwrap_or(HOLD);
        let hold = u32::try_from(hold).map_err(|_| {
            QmpError::generic(format!(
                "Parameter 'hold-time' expects 0 to {} milliseconds, not {hold}",
                u32::MAX
            ))
        })?;
        let hold = Duration::from_millis(hold.into());
        let codes: Vec<u16> = args.keys.iter().map(key_code).collect::<Result<_, _>>()?;
        let inputs = self.devices.inputs();
        let keyboard = keyboard(&inputs)?;
        let typed = self
            .typist()
            .and_then(|typist| typist.type_keys(keyboard, &codes, hold));
        typed.map_err(|error| QmpError::from_error(&error))
    }
}

impl Vm {
    fn typist(&mut self) -> Result<&Arc<Typist>, crate::input::typist::TypeError> {
        let typist = match self.typist.take() {
            Some(typist) => typist,
            None => Typist::new(&self.clock, &self.reactor)?,
        };
        Ok(self.typist.insert(typist))
    }
}
