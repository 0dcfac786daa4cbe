//! `-compat`: what a client still uses that is deprecated or unstable is told, hidden, or the end.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::Vm;

fn compat(policy: &str) -> Result<Vm> {
    Vm::monitor()
        .args(["--preconfig", "-compat", policy])
        .start()
}

/// The entries of an introspection that have the old list of names.
fn with_values(schema: &Value) -> Result<usize> {
    let all = schema.as_array().context("a list")?.iter();
    Ok(all.filter(|entry| !entry["values"].is_null()).count())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_unstable_command_is_rejected_and_still_listed() -> Result<()> {
    let mut vm = compat("unstable-input=reject")?;
    let refusal = vm.refusal("x-exit-preconfig", json!({}))?;
    ensure!(refusal.class == "CommandNotFound", "{refusal}");
    ensure!(
        refusal.desc == "Unstable command x-exit-preconfig disabled by policy",
        "{refusal}"
    );
    let commands = vm.execute("query-commands", json!({}))?;
    let unstable = json!({"name": "x-exit-preconfig"});
    ensure!(commands.as_array().context("a list")?.contains(&unstable));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_is_deprecated_is_hidden_and_the_rest_is_as_it_was() -> Result<()> {
    let mut plain = compat("deprecated-output=accept,deprecated-input=reject")?;
    let mut whole = plain.execute("query-qmp-schema", json!({}))?;
    ensure!(with_values(&whole)? > 10);
    plain.shutdown_clean()?;
    let mut vm = compat(r#"{"deprecated-output": "hide"}"#)?;
    let hidden = vm.execute("query-qmp-schema", json!({}))?;
    ensure!(with_values(&hidden)? == 0);
    for entry in whole.as_array_mut().context("a list")? {
        entry.as_object_mut().context("an object")?.remove("values");
    }
    ensure!(hidden == whole);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_crash_is_one_if_it_is_asked_for() -> Result<()> {
    let mut vm = compat("unstable-input=crash")?;
    vm.qmp
        .send_raw(b"{\"execute\": \"x-exit-preconfig\"}\n", &[])?;
    let status = vm.wait_exit()?;
    ensure!(status.signal() == Some(nix::libc::SIGABRT), "{status}");
    let said = vm.stderr();
    ensure!(
        said.contains("Unstable command x-exit-preconfig came from a client"),
        "{said}"
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_policy_that_is_none_is_named() -> Result<()> {
    for (policy, named) in [
        (
            "deprecated-input=hide",
            "Parameter 'deprecated-input' does not accept value 'hide'",
        ),
        ("deprecated-inputs=accept", "deprecated-input"),
    ] {
        let said = Vm::monitor().args(["-compat", policy]).start_refused()?;
        ensure!(said.contains(named), "{said}");
    }
    Ok(())
}
