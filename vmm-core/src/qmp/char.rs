//! `char.json`: chardevs.

use devices::chardev::{BackendSpec, SocketRole, SocketSpec};
use qapi_schema::char::{ChardevAdd, ChardevInfo, ChardevRemove, ChardevReturn, Commands};
use qapi_schema::{Context, QmpError};

use crate::resolve;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_chardev(&mut self, _cx: &mut dyn Context) -> Result<Vec<ChardevInfo>, QmpError> {
        let chardevs = self.chardevs.list().into_iter().map(|chardev| ChardevInfo {
            label: chardev.id().to_owned(),
            filename: chardev.filename(),
            frontend_open: chardev.frontend_open(),
        });
        let monitors = self
            .monitor_chardevs
            .iter()
            .map(|(id, filename)| ChardevInfo {
                label: id.clone(),
                filename: filename.clone(),
                frontend_open: true,
            });
        Ok(monitors.chain(chardevs).collect())
    }

    fn chardev_add(
        &mut self,
        cx: &mut dyn Context,
        args: ChardevAdd,
    ) -> Result<ChardevReturn, QmpError> {
        let spec = resolve::chardev::chardev(args.backend)?;
        if let BackendSpec::Socket(SocketSpec {
            role: SocketRole::Server { wait: true },
            ..
        }) = spec.backend
        {
            return Err(QmpError::generic(
                "Parameter 'wait' does not accept value 'true': the VM and all its clients would \
                 wait; leave it out, and the first client may come at any time",
            ));
        }
        let door = self.door_of(cx);
        self.add_chardev(&door, &args.id, &spec)
    }

    fn chardev_remove(
        &mut self,
        _cx: &mut dyn Context,
        args: ChardevRemove,
    ) -> Result<(), QmpError> {
        if self.monitor_chardevs.contains_key(&args.id) {
            return Err(QmpError::generic(format!("Chardev '{}' is busy", args.id)));
        }
        self.chardevs
            .remove(&args.id)
            .map_err(|error| QmpError::from_error(&error))
    }
}
