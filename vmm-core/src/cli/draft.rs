//! A command line half read: what each option left behind, before options are held against each
//! other.

use std::collections::BTreeMap;

use fdset::Policy;
use qapi_schema::block_core::BlockdevOptions;
use qapi_schema::char::ChardevAdd;
use qapi_schema::cli::TpmdevOptions;
use qapi_schema::describe::Described;
use qapi_schema::devices::DeviceOptions;
use qapi_schema::input::{FromInput, Mode};
use qapi_schema::net::Netdev;
use qapi_schema::numa::NumaOptions;
use qapi_schema::qom::ObjectOptions;
use qapi_schema::run_state::SetAction;
use serde_json::{Map, Value};

use super::config::{
    AccelSpec, AddFdSpec, FwCfgSpec, GlobalSpec, Incoming, MonitorSpec, SerialSpec,
};
use super::drive::Drive;
use super::error::{CliError, Problem};
use super::help;
use super::read::{self, Form};
use crate::hook::HookSpec;
use crate::kvm::cpu_models::CpuSpec;
use crate::sandbox::SandboxSpec;

/// One option of the command line, with its argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    /// As typed, with its dashes.
    pub(super) typed: &'a str,
    /// Its name in the table.
    pub(super) name: &'static str,
    /// Its argument; empty if it takes none.
    pub(super) text: &'a str,
}

/// What comes after an option.
#[derive(Debug)]
pub(super) enum Step {
    /// The next option.
    Next,
    /// Nothing: this is to be shown instead.
    Print(String),
    /// The options in this file.
    ReadConfig(String),
}

/// What the options said so far.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// How each option was typed last, for errors found late.
    typed: BTreeMap<&'static str, String>,
    /// The keys of options that may be given in several pieces; a later piece wins.
    merged: BTreeMap<&'static str, Map<String, Value>>,
    pub(super) accels: Vec<AccelSpec>,
    /// An accelerator that is not ours: only wrong if no other is.
    pub(super) foreign_accel: Option<(String, String)>,
    pub(super) cpu: Option<CpuSpec>,
    /// A CPU that cannot be had: only wrong if the machine has CPUs.
    pub(super) foreign_cpu: Option<CliError>,
    pub(super) uuid: Option<[u8; 16]>,
    pub(super) fw_cfg: Vec<FwCfgSpec>,
    pub(super) add_fds: Vec<AddFdSpec>,
    pub(super) open_hook: Option<HookSpec>,
    pub(super) objects: Vec<ObjectOptions>,
    /// Each with the option that it comes from, as typed.
    pub(super) chardevs: Vec<(String, ChardevAdd)>,
    pub(super) blockdevs: Vec<BlockdevOptions>,
    pub(super) netdevs: Vec<Netdev>,
    /// Cards of `-nic`, each with the option as typed.
    pub(super) nics: Vec<(String, DeviceOptions)>,
    pub(super) tpmdevs: Vec<TpmdevOptions>,
    pub(super) drives: Vec<(String, Drive)>,
    pub(super) devices: Vec<(String, DeviceOptions)>,
    pub(super) numa: Vec<(String, NumaOptions)>,
    pub(super) globals: Vec<GlobalSpec>,
    pub(super) no_reboot: bool,
    pub(super) serials: Vec<(String, SerialSpec)>,
    pub(super) monitors: Vec<(String, MonitorSpec)>,
    /// The option as typed, and the id of its chardev.
    pub(super) qtest: Option<(String, String)>,
    pub(super) qtest_log: Option<String>,
    pub(super) incoming: Option<Incoming>,
    pub(super) open_policy: Policy,
    pub(super) sandbox: Option<SandboxSpec>,
    pub(super) pidfile: Option<String>,
    pub(super) flags: Flags,
}

/// The options without arguments.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub(super) struct Flags {
    pub(super) paused: bool,
    pub(super) preconfig: bool,
    pub(super) nodefaults: bool,
    pub(super) nographic: bool,
    pub(super) daemonize: bool,
}

impl Draft {
    /// Adds a piece of an option whose pieces make one `T`.
    pub(super) fn merge<T: Described + FromInput>(
        &mut self,
        given: &Given<'_>,
        form: Form,
    ) -> Result<Step, Problem> {
        let parsed = read::parse::<T>(given.text, form)?;
        if parsed.help {
            return Ok(Step::Print(help::keys_of::<T>(given.name, None)));
        }
        self.merge_value::<T>(given.name, parsed.value)
    }

    /// Adds a piece that is already taken apart; its leaves are strings.
    pub(super) fn merge_value<T: Described + FromInput>(
        &mut self,
        name: &'static str,
        value: Value,
    ) -> Result<Step, Problem> {
        read::typed::<T>(value.clone(), Mode::Keyval)?;
        if let Value::Object(keys) = value {
            self.merged.entry(name).or_default().extend(keys);
        }
        Ok(Step::Next)
    }

    /// Adds what an option says that is another word for `-action`.
    pub(super) fn merge_actions(&mut self, actions: &SetAction) -> Result<Step, Problem> {
        let actions = serde_json::to_value(actions).unwrap_or_default();
        self.merge_value::<SetAction>("action", actions)
    }

    /// What the pieces make together; an option that was not given has no keys.
    pub(super) fn merged<T: Described + FromInput>(
        &self,
        name: &'static str,
    ) -> Result<T, CliError> {
        let value = Value::Object(self.merged.get(name).cloned().unwrap_or_default());
        read::typed(value, Mode::Keyval).map_err(|problem| problem.of(&self.typed(name)))
    }

    /// What the pieces mean, every default applied.
    pub(super) fn resolved<T: Described + FromInput, S>(
        &self,
        name: &'static str,
        resolve: impl FnOnce(T) -> Result<S, Problem>,
    ) -> Result<S, CliError> {
        resolve(self.merged(name)?).map_err(|problem| problem.of(&self.typed(name)))
    }

    /// Remembers how an option was typed.
    pub(super) fn saw(&mut self, given: &Given<'_>) {
        self.typed.insert(given.name, given.typed.to_owned());
    }

    /// How an option was typed, for errors found late.
    pub(super) fn typed(&self, name: &'static str) -> String {
        let typed = self.typed.get(name).cloned();
        typed.unwrap_or_else(|| format!("-{name}"))
    }

    /// Adds a chardev, whose id must be new.
    pub(super) fn add_chardev(
        &mut self,
        given: &Given<'_>,
        chardev: ChardevAdd,
    ) -> Result<(), Problem> {
        let id = &chardev.id;
        if self.chardevs.iter().any(|(_, other)| other.id == *id) {
            return Err(Problem::new(format!("Duplicate ID '{id}' for chardev")));
        }
        self.chardevs.push((given.typed.to_owned(), chardev));
        Ok(())
    }
}
