//! `open-hook.json`: the open hook, and what commands would open.

use fdset::{Source, look};
use qapi_schema::open_hook::{
    Commands, FileIdentity, OpenHookInfo, OpenHookSet, OpenPlanEntry, OpenSource, QueryOpenPlan,
};
use qapi_schema::{Context, QmpError};
use serde_json::{Map, Value};

use crate::hook::{wire_access, wire_existing, wire_kind, wire_role};
use crate::plan::{self, Planned};
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
        let arguments = args.arguments.unwrap_or_else(|| Value::Object(Map::new()));
        let plan = plan::command(&args.command, arguments)?;
        let door = self.door_of(cx);
        let entries = plan.into_iter().map(|planned| self.entry(&door, planned));
        Ok(entries.collect())
    }
}

impl Vm {
    fn entry(&self, door: &fdset::Door, planned: Planned) -> OpenPlanEntry {
        let Planned { wish, fallback, .. } = planned;
        let found = look(door, &wish.request());
        let (source, is_passed) = match found.source {
            Source::Named => (OpenSource::Fd, true),
            Source::Set => (OpenSource::Fdset, true),
            Source::Path if self.open_hook.is_set() => (OpenSource::Hook, false),
            Source::Path => (OpenSource::Path, false),
        };
        OpenPlanEntry {
            role: wire_role(wish.role),
            kind: wire_kind(wish.expected),
            access: wire_access(wish.access),
            create: wish.create.map(|create| wire_existing(create.existing)),
            direct: wish.direct,
            name: wish.name,
            reason: wish.reason,
            source,
            fallback,
            present: is_passed.then_some(found.present),
            identity: found.identity.map(|identity| FileIdentity {
                dev: identity.dev,
                ino: identity.ino,
            }),
        }
    }
}
