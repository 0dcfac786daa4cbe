//! `misc.json`: the command line, and commands for people.

use qapi_schema::describe::MemberSpec;
use qapi_schema::misc::{
    CommandLineOptionInfo, CommandLineParameterInfo, CommandLineParameterType, Commands,
    HumanMonitorCommand, QueryCommandLineOptions,
};
use qapi_schema::{Context, QmpError};

use crate::cli;
use crate::hmp;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_command_line_options(
        &mut self,
        _cx: &mut dyn Context,
        args: QueryCommandLineOptions,
    ) -> Result<Vec<CommandLineOptionInfo>, QmpError> {
        let wanted = |name: &str| args.option.as_deref().is_none_or(|only| only == name);
        let options: Vec<_> = cli::described_options()
            .filter(|(name, _)| wanted(name))
            .map(|(name, keys)| CommandLineOptionInfo {
                option: name.to_owned(),
                parameters: keys.iter().map(parameter).collect(),
            })
            .collect();
        match args.option {
            Some(name) if options.is_empty() => {
                Err(QmpError::generic(format!("invalid option name: {name}")))
            }
            _ => Ok(options),
        }
    }

    fn human_monitor_command(
        &mut self,
        cx: &mut dyn Context,
        args: HumanMonitorCommand,
    ) -> Result<String, QmpError> {
        Ok(hmp::run(self, cx, &args.command_line))
    }
}

fn parameter(key: &MemberSpec) -> CommandLineParameterInfo {
    let kind = match key.type_name {
        "bool" => CommandLineParameterType::Boolean,
        "size" => CommandLineParameterType::Size,
        "number" => CommandLineParameterType::Number,
        other if other.starts_with("int") || other.starts_with("uint") => {
            CommandLineParameterType::Number
        }
        _ => CommandLineParameterType::String,
    };
    CommandLineParameterInfo {
        name: key.name.to_owned(),
        r#type: kind,
        help: Some(key.description.to_owned()),
        default: key.default.map(str::to_owned),
    }
}
