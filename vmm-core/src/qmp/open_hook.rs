//! `open-hook.json`: the open hook, and what would be opened.

use std::collections::BTreeSet;
use std::ffi::OsString;

use fdset::{Door, Source, look};
use qapi_schema::fds::FdKind;
use qapi_schema::open_hook::{
    Commands, FileIdentity, OpenHookInfo, OpenHookSet, OpenPlanCommand, OpenPlanEntry, OpenSource,
    QueryOpenPlan,
};
use qapi_schema::{Context, QmpError, input};
use serde_json::{Map, Value};

use crate::cli::{self, Outcome};
use crate::hook::{wire_access, wire_existing, wire_kind, wire_role};
use crate::plan::chain::{self, Reader};
use crate::plan::{self, Planned, Step};
use crate::resolve;
use crate::vm::Vm;

impl Commands for Vm {
    fn open_hook_set(&mut self, cx: &mut dyn Context, args: OpenHookSet) -> Result<(), QmpError> {
        let spec = resolve::open_hook::open_hook(args.fd, args.path, args.timeout_ms)?;
        let door = self.door_of(cx);
        self.open_hook
            .set(&door, &spec, "open-hook-set")
            .map_err(|error| QmpError::from_error(&error))
    }

    fn open_hook_clear(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        self.open_hook.clear("it was cleared");
        Ok(())
    }

    fn query_open_hook(&mut self, _cx: &mut dyn Context) -> Result<OpenHookInfo, QmpError> {
        Ok(self.open_hook.query())
    }

    fn query_open_plan(
        &mut self,
        cx: &mut dyn Context,
        args: QueryOpenPlan,
    ) -> Result<Vec<OpenPlanEntry>, QmpError> {
        let door = self.door_of(cx);
        let mut used_up = BTreeSet::new();
        let reader = Reader {
            graph: &self.graph,
            door: &door,
            paths: !self.open_hook.is_set(),
        };
        let mut earlier = Vec::new();
        let mut entries: Vec<OpenPlanEntry> = Vec::new();
        for (step, mut steps) in self.plans(args)? {
            chain::expand(&mut steps, &earlier, &reader);
            let first = entries.len();
            for planned in &steps {
                match planned {
                    Step::Open(planned) | Step::Settled(planned) => entries.push(OpenPlanEntry {
                        step,
                        ..self.entry(&door, planned.clone(), &mut used_up)
                    }),
                    Step::Image(image) => {
                        if let Some(entry) = entries.get_mut(first..).and_then(<[_]>::last_mut) {
                            entry.ends.clone_from(&image.ends);
                        }
                    }
                }
            }
            earlier.append(&mut steps);
        }
        Ok(entries)
    }
}

fn launch_plan(options: Vec<String>) -> Result<Vec<Step>, QmpError> {
    let config = match cli::parse(options.into_iter().map(OsString::from), no_file) {
        Ok(Outcome::Run(config)) => config,
        Ok(Outcome::Print(_)) => {
            return Err(QmpError::generic(
                "This command line prints help and opens nothing",
            ));
        }
        Err(error) => return Err(QmpError::generic(error.to_string())),
    };
    let hook = config.open_hook.as_ref();
    let hook = hook.and_then(|spec| plan::hook(spec, "-open-hook"));
    let hook = hook.map(Step::Open).into_iter();
    Ok(hook.chain(plan::config(&config)).collect())
}

/// The plan of a command, with its place among several.
type Numbered = (Option<u32>, Vec<Step>);

impl Vm {
    /// Everything that is asked about.
    fn plans(&self, args: QueryOpenPlan) -> Result<Vec<Numbered>, QmpError> {
        match (args.command, args.commands, args.command_line) {
            (Some(command), None, None) => {
                Ok(vec![(None, self.command_plan(&command, args.arguments)?)])
            }
            (None, Some(commands), None) if args.arguments.is_none() => {
                let plans = (0..).zip(commands).map(|(step, one)| {
                    let OpenPlanCommand { command, arguments } = one;
                    Ok((Some(step), self.command_plan(&command, arguments)?))
                });
                plans.collect()
            }
            (None, None, Some(options)) if args.arguments.is_none() => {
                Ok(vec![(None, launch_plan(options)?)])
            }
            // Nothing asked, nothing opened.
            (None, None, None) if args.arguments.is_none() => Ok(Vec::new()),
            _ => Err(QmpError::generic(
                "query-open-plan wants at most one of 'command' (with its 'arguments'), \
                 'commands' and 'command-line'",
            )),
        }
    }

    fn command_plan(&self, command: &str, arguments: Option<Value>) -> Result<Vec<Step>, QmpError> {
        let arguments = arguments.unwrap_or_else(|| Value::Object(Map::new()));
        if command != "open-hook-set" {
            return self.plan_of(command, arguments);
        }
        let args: OpenHookSet = input::arguments(arguments)?;
        let spec = resolve::open_hook::open_hook(args.fd, args.path, args.timeout_ms)?;
        let hook = plan::hook(&spec, command);
        Ok(hook.map(Step::Open).into_iter().collect())
    }

    /// How an open would go; `used_up` are the fd names that opens before it take.
    fn entry(
        &self,
        door: &Door,
        planned: Planned,
        used_up: &mut BTreeSet<String>,
    ) -> OpenPlanEntry {
        let Planned {
            wish,
            fallback,
            required,
            node: _,
        } = planned;
        let request = wish.request();
        let found = look(door, &request);
        let (source, is_passed) = match found.source {
            Source::Named => (OpenSource::Fd, true),
            Source::Set => (OpenSource::Fdset, true),
            Source::Path if self.open_hook.is_set() => (OpenSource::Hook, false),
            Source::Path => (OpenSource::Path, false),
        };
        let is_gone = source == OpenSource::Fd && !fallback && !used_up.insert(wish.name.clone());
        let identity = found.identity.filter(|_| !is_gone);
        let kinds = FdKind::ALL.iter().copied();
        OpenPlanEntry {
            role: wire_role(wish.role),
            kind: wire_kind(wish.expected),
            fd_kinds: kinds
                .filter(|kind| {
                    fdset::Kind::from_name(kind.as_str()).is_some_and(|kind| request.takes(kind))
                })
                .collect(),
            access: wire_access(wish.access),
            create: wish.create.map(|create| wire_existing(create.existing)),
            direct: wish.direct,
            step: None,
            ends: None,
            source,
            fallback,
            required,
            present: is_passed.then_some(found.present && !is_gone),
            identity: identity.map(|identity| FileIdentity {
                dev: identity.dev,
                ino: identity.ino,
            }),
            name: wish.name,
            reason: wish.reason,
        }
    }
}

/// Asking what would be opened opens nothing.
fn no_file(name: &str) -> Result<String, String> {
    Err(format!(
        "a plan does not read '{name}': give the options that are in it"
    ))
}
