//! The open hook of a launch: everything is asked for before the first thing is built: all at
//! once, and then what the headers of images name, level by level.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use fdset::{Answers, Door};

use crate::cli::Config;
use crate::event_loop::EventLoop;
use crate::hook::round::Round;
use crate::plan;
use crate::plan::chain::{self, Reader};
use crate::vm::Vm;

/// Sets the hook that `config` names and waits for its answers to what `config` will open. An
/// answer may be a refusal: whoever opens it will say so. Without a hook there are no answers.
///
/// # Errors
/// There is no connection to the manager, or a signal ends the wait.
pub(super) fn ask(
    vm: &mut Vm,
    event_loop: &mut EventLoop,
    door: &Door,
    config: &Config,
) -> Result<Arc<Answers>> {
    let Some(spec) = &config.open_hook else {
        return Ok(Arc::new(Answers::new()));
    };
    vm.open_hook.set(door, spec, "-open-hook")?;
    if let Some(fd) = vm.open_hook.take_unwatched() {
        event_loop.watch_hook(fd).context("-open-hook")?;
    }
    let mut steps = plan::config(config);
    let mut round = Round::new(None);
    let door = door.clone().with_answers(Arc::clone(round.answers()));
    loop {
        let reader = Reader {
            graph: &vm.graph,
            door: &door,
            paths: false,
        };
        chain::expand(&mut steps, &[], &reader);
        let questions = vm.open_hook.questions(&door, &mut steps);
        if questions.is_empty() || round.has_failed() {
            return Ok(Arc::clone(round.answers()));
        }
        vm.open_hook.ask(&mut round, questions);
        wait(vm, event_loop, &mut round)?;
    }
}

/// Waits until everything is answered that `round` asks for.
fn wait(vm: &mut Vm, event_loop: &mut EventLoop, round: &mut Round) -> Result<()> {
    loop {
        let now = Instant::now();
        vm.open_hook.tend(now, Some(&mut *round));
        if round.is_done() {
            return Ok(());
        }
        if let Some(request) = event_loop.next_end_request() {
            bail!(
                "ended by signal {} before the open hook answered",
                request.signal
            );
        }
        event_loop.wait(vm.open_hook.deadline(now))?;
    }
}
