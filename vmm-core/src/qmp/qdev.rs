//! `qdev.json`: devices.

use qapi_schema::devices::DeviceOptions;
use qapi_schema::drivers::find_driver;
use qapi_schema::qdev::{Commands, DeviceDel, DeviceListProperties};
use qapi_schema::qom::ObjectPropertyInfo;
use qapi_schema::{Context, QmpError};

use crate::cli::apply_globals;
use crate::plug;
use crate::types;
use crate::vm::Vm;

impl Commands for Vm {
    fn device_list_properties(
        &mut self,
        _cx: &mut dyn Context,
        args: DeviceListProperties,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let name = &args.typename;
        let model = find_driver(name).map_or(name.as_str(), |driver| driver.name);
        types::device_properties(model).ok_or_else(|| QmpError::device_not_found(name))
    }

    fn device_add(&mut self, cx: &mut dyn Context, args: DeviceOptions) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        plug::plug(self, &door, apply_globals(&self.globals, args)?)
    }

    fn device_del(&mut self, _cx: &mut dyn Context, args: DeviceDel) -> Result<(), QmpError> {
        plug::request_unplug(self, &args.id)
    }
}
