//! `block-stream`: an overlay takes in what is between it and a base.

use block::job::JobKind;
use block::job::chain::Chain;
use block::job::stream::{StreamSpec, stream};
use block::{Gate, Grip, JobFilter, NodeRef};
use fdset::{Door, Wish};
use qapi_schema::QmpError;
use qapi_schema::block_core::BlockStream;

use super::{End, Manners, Rights, recorded_name, refused};
use crate::vm::Vm;

/// What a stream changes at its end.
#[derive(Debug)]
pub(crate) struct StreamEnd {
    top: String,
    base: Option<String>,
    /// What the header is to say, if not the base's name.
    backing_file: Option<String>,
    /// The lowest node that was streamed, or the filter under it.
    last: String,
    pub(super) filter: Option<String>,
    pub(super) rights: Rights,
}

impl Vm {
    /// What [`begin_stream`](Self::begin_stream) will open.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn stream_opens(&self, args: &BlockStream) -> Result<Vec<Wish>, QmpError> {
        let top = self.streamed(args)?;
        Rights::opens(&self.graph, &[&top]).map_err(|error| refused(&error))
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// A node is missing or busy, or the overlay cannot be written.
    pub(crate) fn begin_stream(&mut self, door: &Door, args: BlockStream) -> Result<(), QmpError> {
        let manners = Manners {
            id: args.job_id.clone(),
            speed: args.speed,
            on_error: args.on_error,
            auto_finalize: args.auto_finalize,
            auto_dismiss: args.auto_dismiss,
        };
        let top = self.streamed(&args)?;
        let id = self.job_id(&manners, &args.device)?;
        super::speed(manners.speed.unwrap_or(0))?;
        let chain = self.graph.chain(&top);
        let base = self.stream_base(&args, &top, &chain)?;
        if args.backing_file.is_some() && base.is_none() {
            return Err(QmpError::generic(
                "backing file specified, but streaming the entire chain",
            ));
        }
        let names: Vec<String> = chain
            .iter()
            .take_while(|name| Some(*name) != base.as_ref())
            .cloned()
            .collect();
        self.check_streamed(&names, base.as_deref())?;
        let filter = args.filter_node_name;
        let named = filter
            .iter()
            .try_for_each(|name| self.graph.check_new_name(name));
        named.map_err(|error| refused(&error))?;
        let mut rights =
            Rights::take(&self.graph, door, &[&top]).map_err(|error| refused(&error))?;
        let images = names.iter().filter(|name| !self.graph.is_filter(name));
        let node = |name: &String| Some(self.graph.node(name).ok()?.node().clone());
        let mut nodes: Vec<NodeRef> = images.filter_map(node).collect();
        if let Some(filter) = &filter {
            let filter = (filter.as_str(), JobFilter::Stream);
            self.insert_filter(filter, &top, nodes.clone(), &mut rights)?;
        }
        let gate = Gate::new();
        let held = filter.iter().chain(&names);
        let held: Vec<_> = held.map(|name| (name.clone(), Grip::Work)).collect();
        self.graph.hold(&held, &id, "stream", &gate);
        let spec = StreamSpec {
            top: nodes.remove(0),
            between: Chain::new(nodes),
            on_error: manners.on_error(),
        };
        let end = StreamEnd {
            last: names.last().cloned().unwrap_or_else(|| top.clone()),
            top,
            base,
            backing_file: args.backing_file,
            filter,
            rights,
        };
        let end = (JobKind::Stream, End::Stream(end));
        self.begin_job(&id, end, &manners, &gate, move |cx| stream(cx, spec))
    }

    /// Whether no job is in the way of a stream over these nodes. A commit may be at work on the base:
    /// what is there when the stream ends is what it stands on.
    fn check_streamed(&self, names: &[String], base: Option<&str>) -> Result<(), QmpError> {
        if let Some(filter) = names.iter().find(|name| self.graph.is_of_a_commit(name)) {
            return Err(QmpError::generic(format!(
                "Cannot freeze 'backing' link to '{filter}'"
            )));
        }
        let commit = base.filter(|base| self.graph.is_of_a_commit(base));
        let commit = commit.and_then(|filter| self.graph.node(filter).ok());
        let commit = commit.and_then(|filter| filter.jobs().next());
        self.check_free(names, commit)
    }

    /// The node that takes in what is behind it: filters have nothing behind them.
    fn streamed(&self, args: &BlockStream) -> Result<String, QmpError> {
        let named = self.find_node(Some(&args.device), Some(&args.device))?;
        Ok(self.graph.below_filters(&named).to_owned())
    }

    fn stream_base(
        &self,
        args: &BlockStream,
        top: &str,
        chain: &[String],
    ) -> Result<Option<String>, QmpError> {
        let ways = [
            ("base", args.base.is_some()),
            ("base-node", args.base_node.is_some()),
            ("bottom", args.bottom.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given);
        if let (Some((one, _)), Some((other, _))) = (given.next(), given.next()) {
            return Err(QmpError::generic(format!(
                "'{one}' and '{other}' cannot be specified at the same time"
            )));
        }
        if let Some(file) = &args.base {
            let found = self.graph.find_behind(chain, file).ok_or_else(|| {
                QmpError::generic(format!("Can't find '{file}' in the backing chain"))
            })?;
            return Ok(chain.get(found).cloned());
        }
        if let Some(name) = &args.base_node {
            self.find_node(None, Some(name))?;
            if name == top || !chain.contains(name) {
                return Err(QmpError::generic(format!(
                    "Node '{name}' is not a backing image of '{}'",
                    args.device
                )));
            }
            return Ok(Some(name.clone()));
        }
        if let Some(name) = &args.bottom {
            self.find_node(None, Some(name))?;
            let at = chain.iter().position(|node| node == name);
            let at = at.ok_or_else(|| {
                QmpError::generic(format!(
                    "Node '{name}' is not in a chain starting from '{}'",
                    args.device
                ))
            })?;
            return Ok(chain.get(at + 1).cloned());
        }
        Ok(None)
    }

    pub(super) fn finish_stream(&mut self, job: &str, end: &mut StreamEnd) -> Result<(), String> {
        let top = self
            .graph
            .node(&end.top)
            .map_err(|error| error.to_string())?;
        let top = top.node().clone();
        let is_backed = self.graph.backing_of(&end.top).ok().flatten().is_some();
        if is_backed {
            // Not the node that it was: a commit may have put another there.
            let base = end.base.as_ref();
            let base = base.and_then(|_| self.graph.next_in_chain(&end.last));
            let base = base.map(str::to_owned);
            let name = base.as_ref().map(|base| {
                let last = self.graph.node(&end.last).map(|view| view.node().clone());
                let (name, format) = recorded_name(&self.graph, base, &last.unwrap_or(top.clone()));
                (end.backing_file.clone().unwrap_or(name), format)
            });
            let drain = self.graph.drain(&[&end.top]);
            let node = top.clone();
            let changed = self.run_on_nodes(move |io| async move {
                let (file, format) = match &name {
                    Some((file, format)) => (Some(file.as_str()), Some(format.as_str())),
                    None => (None, None),
                };
                node.change_backing(&io, file, format).await
            });
            let set = changed.and_then(|()| {
                let set = self.graph.set_backing(&end.top, base.as_deref());
                set.map_err(|error| error.to_string())
            });
            drop(drain);
            set?;
        }
        self.leave(job, &mut end.filter, &mut end.rights);
        Ok(())
    }
}
