//! Monitors with different rights on one VM: an agent may ask and nothing more, a stranger may not
//! even connect, and neither finds a way around it.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the files that they hand in"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::qmp::{Client, Refusal, outcome};
use tests::{Vm, fds, vm::Builder};

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The same VM with one more monitor, called `agent`, at the socket `agent` of `folder`.
fn with_agent(vm: Builder, folder: &Path, options: &str) -> Builder {
    let chardev = format!(
        "socket,id=a,path={},server=on,wait=off",
        folder.join("agent").display()
    );
    let mon = format!("chardev=a,mode=control,id=agent,{options}");
    vm.args(["-chardev", &chardev, "-mon", &mon])
}

fn agent(folder: &Path) -> Result<Client> {
    Client::connect(&folder.join("agent"))
}

/// A file of rules that is handed in.
fn rules(folder: &Path, text: &str) -> Result<File> {
    let path = folder.join("rules");
    fs::write(&path, text)?;
    fds::open_ro(&path)
}

fn denied(refusal: &Refusal, command: &str) -> Result<()> {
    ensure!(refusal.class == "CommandNotFound", "{refusal}");
    let named = format!("The command {command} is not allowed on monitor 'agent'");
    ensure!(refusal.desc.starts_with(&named), "{refusal}");
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_agent_can_ask_everything_and_change_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = with_agent(Vm::monitor(), folder.path(), "read-only=on").start()?;
    let mut agent = agent(folder.path())?;
    let all = vm.execute("query-commands", json!({}))?;
    let listed = agent.execute("query-commands", json!({}))?;
    for command in all.as_array().context("a list")? {
        let name = command["name"].as_str().context("a name")?;
        let may = listed.as_array().context("a list")?.contains(command);
        let looks = name.starts_with("query-")
            || name.starts_with("x-debug-")
            || name.starts_with("x-query-")
            || name == "x-inspect"
            || name.starts_with("qom-") && name != "qom-set";
        ensure!(may == (looks || name == "device-list-properties"), "{name}");
        if !may && name != "qmp_capabilities" {
            denied(&agent.refusal(name, json!({}))?, name)?;
        }
    }
    let schema = agent.execute("query-qmp-schema", json!({}))?;
    ensure!(schema == vm.execute("query-qmp-schema", json!({}))?);
    let line = json!({"command-line": "quit"});
    denied(
        &agent.refusal("human-monitor-command", line)?,
        "human-monitor-command",
    )?;
    vm.execute("query-status", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn rules_that_are_handed_in_hold_for_people_s_words_too_and_after_the_seal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut builder = Vm::monitor();
    let set = builder.fdset(rules(
        folder.path(),
        "read-only\nallow human-monitor-command stop\n",
    )?);
    let builder = with_agent(builder, folder.path(), &format!("commands={set}"));
    let mut vm = builder.start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let mut agent = agent(folder.path())?;
    let mut say = |line: &str| -> Result<String> {
        let said = agent.execute("human-monitor-command", json!({"command-line": line}))?;
        Ok(said.as_str().context("text")?.to_owned())
    };
    ensure!(say("info status")?.starts_with("VM status"));
    ensure!(say("stop")?.is_empty());
    for (line, command) in [("quit", "quit"), ("c", "cont"), ("nmi", "inject-nmi")] {
        let said = say(line)?;
        let wanted = format!("Error: The command {command} is not allowed on monitor 'agent'");
        ensure!(said.starts_with(&wanted), "{line}: {said}");
    }
    vm.execute("query-status", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_stranger_is_told_so_and_logged_and_a_known_user_is_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = format!("allow-uid={},allow-uid={}", me(), me() + 1);
    let vm = with_agent(Vm::monitor(), folder.path(), &own).start()?;
    agent(folder.path())?.execute("query-status", json!({}))?;
    vm.shutdown_clean()?;
    fs::remove_file(folder.path().join("agent")).ok();
    let others = format!("allow-uid={}", me() + 1);
    let mut vm = with_agent(Vm::monitor(), folder.path(), &others).start()?;
    for _ in 0..3 {
        let mut stream = UnixStream::connect(folder.path().join("agent"))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let refusal = match outcome(&serde_json::from_str::<Value>(&said)?) {
            Err(refusal) => refusal,
            Ok(value) => anyhow::bail!("served: {value}"),
        };
        ensure!(
            refusal
                .desc
                .contains(&format!("does not serve user {}", me())),
            "{refusal}"
        );
    }
    vm.execute("query-status", json!({}))?;
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success());
    let log = vm.stderr();
    let told = log.matches("Monitor 'agent' does not serve user").count();
    ensure!((1..=3).contains(&told), "{log}");
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn rights_that_cannot_be_kept_end_the_launch_with_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, "read-only\ndeny stopp\n")?;
    let wrong = format!("commands={}", wrong.display());
    for (options, named) in [
        (
            wrong.as_str(),
            "line 2: there is no command 'stopp' (did you mean 'stop'?)",
        ),
        ("commands=/nowhere", "-mon commands=/nowhere"),
        ("allow-uid=root", "allow-uid"),
    ] {
        let said = with_agent(Vm::monitor(), folder.path(), options).start_refused()?;
        ensure!(said.contains(named), "{options}: {said}");
        ensure!(said.trim_end().lines().count() == 1, "{options}: {said}");
    }
    let tcp = "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off";
    let mon = "chardev=t,mode=control,allow-uid=0";
    let said = Vm::monitor()
        .args(["-chardev", tcp, "-mon", mon])
        .start_refused()?;
    ensure!(
        said.contains("who calls over TCP cannot be known"),
        "{said}"
    );
    Ok(())
}
