//! Breakpoints of a tester: the node that holds requests is the first debugging one on the way down.

use block::format::blkdebug::rules::RuleEvent;
use block::{BlockGraph, NodeRef};
use qapi_schema::QmpError;

use crate::vm::Vm;

/// What a tester does with a breakpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Break {
    pub(super) verb: Verb,
    /// The name of the breakpoint, and of the requests it holds.
    pub(super) tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// The next request at this event is held.
    Set(String),
    /// It is forgotten, and what it holds goes on.
    Remove,
    /// One request that it holds goes on.
    Resume,
    /// Until it holds a request.
    Wait,
}

/// The first node that can hold requests, from this one down to where its bytes are.
fn holder(graph: &BlockGraph, node: &NodeRef) -> Option<NodeRef> {
    let mut at = graph.node(node.name()).ok()?;
    while at.node().breakpoints().is_none() {
        let mut below = at.below().filter(|(role, _)| *role != "backing");
        at = below.next()?.1;
    }
    Some(at.node().clone())
}

impl Break {
    /// Does it; gives what there is to say.
    pub(super) fn obey(self, vm: &mut Vm, node: &NodeRef) -> Result<String, QmpError> {
        let Self { verb, tag } = self;
        let failed = |why: &str| match &verb {
            Verb::Set(_) => format!("Could not set breakpoint: {why}\n"),
            Verb::Remove => format!("Could not remove breakpoint {tag}: {why}\n"),
            Verb::Resume => format!("Could not resume request: {why}\n"),
            Verb::Wait => format!("No request was stopped: {why}\n"),
        };
        let holder = holder(&vm.graph, node);
        let Some((holder, points)) = holder
            .as_ref()
            .and_then(|holder| Some((holder, holder.breakpoints()?)))
        else {
            return Ok(failed("Operation not supported"));
        };
        let found = match &verb {
            Verb::Set(event) => {
                let known = RuleEvent::ALL.into_iter();
                let mut known = known.filter(|event| *event != RuleEvent::None);
                let known = known.find(|known| known.as_str() == event);
                known.map(|event| points.set(event, &tag)).is_some()
            }
            Verb::Remove => points.remove(&tag),
            Verb::Resume => points.resume(&tag),
            Verb::Wait => {
                let (holder, tag) = (holder.clone(), tag.clone());
                let waited = vm.default_iothread()?.run(move |io| async move {
                    let points = holder.breakpoints();
                    match points {
                        Some(points) => points.wait(&io, &tag).await,
                        None => false,
                    }
                });
                waited.map_err(|error| QmpError::from_error(&error))?
            }
        };
        Ok(match found {
            true => String::new(),
            false => failed("No such file or directory"),
        })
    }
}
