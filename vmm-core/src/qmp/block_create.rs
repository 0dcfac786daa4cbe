//! `block-create.json`: images, made and changed.

use qapi_schema::block_create::{BlockdevCreate, Commands};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn blockdev_create(
        &mut self,
        cx: &mut dyn Context,
        args: BlockdevCreate,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.begin_create(&door, args)
    }
}
