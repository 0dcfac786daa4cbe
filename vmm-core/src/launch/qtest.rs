//! `-qtest`: a tester's chardev is served, and gets the machine once that is built.

use anyhow::{Context as _, Result};
use fdset::{Access, Door, Existing, Request, Role};

use crate::cli::Config;
use crate::qtest::{Log, Qtest, Target};
use crate::vm::{Vm, VmMachine};

/// Who may read a log that is made.
const MODE: u32 = 0o600;

/// Serves the tester that `config` names, if it names one.
///
/// # Errors
/// Its log cannot be opened, or a device has its chardev.
pub(super) fn serve(vm: &mut Vm, door: &Door, config: &Config) -> Result<()> {
    let Some(spec) = &config.qtest else {
        return Ok(());
    };
    let log = spec.log.as_deref().map(|name| open_log(door, name));
    let chardev = vm.chardevs.find(&spec.chardev).context("-qtest")?;
    let qtest = Qtest::serve(&chardev, log.transpose()?).context("-qtest")?;
    vm.qtest = Some(qtest);
    Ok(())
}

/// Hands the machine to the tester.
pub(super) fn aim(vm: &Vm) {
    if let (Some(qtest), VmMachine::Q35(q35)) = (&vm.qtest, &vm.machine) {
        qtest.aim(Target {
            ports: q35.buses().pio.clone(),
            mmio: q35.buses().mmio.clone(),
            memory: q35.memory().clone(),
        });
    }
}

fn open_log(door: &Door, name: &str) -> Result<Log> {
    let request = Request::new(name, Access::WriteOnly, Role::Log, "-qtest-log");
    let file = fdset::open(door, &request.create(MODE, Existing::Truncate))?;
    Ok(Log::new(file))
}
