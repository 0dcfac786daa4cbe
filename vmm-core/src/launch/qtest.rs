//! `-qtest`: a tester's chardev is served, and gets the machine once that is built.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use devices::vm_clock::{TestedClock, Timed, VmClock};
use fdset::{Access, Door, Existing, Request, Role};

use monitor::EventLimits;
use qapi_schema::cli::AccelType;

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
    let clock = TestedClock::new();
    if config
        .accels
        .iter()
        .any(|accel| accel.accel == AccelType::Qtest)
    {
        live_by(vm, &clock);
    }
    let qtest = Qtest::serve(&chardev, log.transpose()?, clock).context("-qtest")?;
    vm.qtest = Some(qtest);
    Ok(())
}

/// Has devices and the limits of events live by a tester's clock.
fn live_by(vm: &mut Vm, clock: &Arc<TestedClock>) {
    vm.clock = VmClock::Tested(Arc::clone(clock));
    let shown = Arc::clone(clock);
    let limits = Arc::new(HeldEvents(vm.server.limit_by(move || shown.now())));
    clock.add(Arc::downgrade(&limits) as _);
    vm.held_events = Some(limits);
}

/// Events that their limits hold back.
struct HeldEvents(EventLimits);

impl Timed for HeldEvents {
    fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    fn run(&self, now: Instant) {
        self.0.send_due(now);
    }
}

/// Listens to the tester, who drives the machine if there is one.
pub(super) fn admit(vm: &Vm) {
    let Some(qtest) = &vm.qtest else { return };
    let target = match &vm.machine {
        VmMachine::Q35(q35) => Some(Target {
            ports: Arc::clone(&q35.buses().pio),
            mmio: Arc::clone(&q35.buses().mmio),
            memory: q35.memory().clone(),
            irqs: q35.tested_irqs().map(Arc::clone),
        }),
        VmMachine::None => None,
    };
    qtest.admit(target, &vm.reactor);
}

fn open_log(door: &Door, name: &str) -> Result<Log> {
    let request = Request::new(name, Access::WriteOnly, Role::Log, "-qtest-log");
    let file = fdset::open(door, &request.create(MODE, Existing::Truncate))?;
    Ok(Log::new(file))
}
