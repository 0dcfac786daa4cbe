//! `sesame-ctl` as an operator sees it, in a real terminal.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::fs::File;

use anyhow::{Context, Result};
use serde_json::json;
use tests::clients::Listening;
use tests::ctl::Ctl;
use tests::job_server::JobServer;
use tests::terminal::Terminal;
use tests::{Vm, vm::Builder};

/// A VM, and an operator at its prompt.
fn stage(builder: Builder) -> Result<(Listening, Terminal)> {
    let listening = Listening::start(builder)?;
    let terminal = Terminal::start(&Ctl::at(&listening.socket)?.shell_words())?;
    terminal.shows_line("sesame>")?;
    Ok((listening, terminal))
}

fn enter(terminal: &Terminal, line: &str) -> Result<()> {
    terminal.types(line)?;
    terminal.press("Enter")
}

/// Leaves the prompt, and ends the VM.
fn leave(listening: Listening, terminal: &Terminal) -> Result<()> {
    terminal.rests_at("sesame>")?;
    terminal.press("C-d")?;
    terminal.shows("ended with 0")?;
    listening.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn tab_completes_commands_keys_values_and_names_of_the_live_vm() -> Result<()> {
    let (listening, terminal) = stage(Vm::monitor())?;
    terminal.types("blockdev-a")?;
    terminal.press("Tab")?;
    terminal.types("driver=null")?;
    terminal.press("Tab")?;
    terminal.press("Tab")?;
    terminal.shows("null-aio")?;
    terminal.types("co node-n")?;
    terminal.press("Tab")?;
    terminal.types("zero")?;
    terminal.press("Enter")?;
    terminal.shows_line("sesame> blockdev-add driver=null-co node-name=zero")?;
    terminal.shows_line("{}")?;
    terminal.types("blockdev-del z")?;
    terminal.press("Tab")?;
    terminal.shows_line("sesame> blockdev-del zero")?;
    terminal.press("Enter")?;
    enter(&terminal, "query-named-block-nodes")?;
    terminal.shows_line("[]")?;
    leave(listening, &terminal)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn help_and_hints_tell_what_a_command_takes() -> Result<()> {
    let (listening, terminal) = stage(Vm::monitor())?;
    terminal.types("device_del ")?;
    terminal.shows_line("sesame> device_del id=TEXT")?;
    // The hint is not part of the line.
    enter(&terminal, "d9")?;
    terminal.shows("device_del: Device 'd9' not found (DeviceNotFound) [4]")?;
    enter(&terminal, "help device_del")?;
    terminal.shows("Asks the guest to let a device go.")?;
    terminal.shows("its place in the object tree.")?;
    // The history has the line before.
    terminal.rests_at("sesame>")?;
    terminal.press("Up")?;
    terminal.press("Up")?;
    // It was on the screen before: what counts is where the cursor is.
    terminal.rests_at("sesame> device_del d9")?;
    terminal.press("C-c")?;
    leave(listening, &terminal)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_file_is_chosen_by_tab_and_handed_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    File::create(folder.path().join("disk-of-a-guest.raw"))?.set_len(1 << 20)?;
    let (mut listening, terminal) = stage(Vm::monitor())?;
    let before = listening.vm.usage()?;
    let line = "blockdev-add file node-name=disk filename!<>";
    terminal.types(&format!("{line}{}/disk-of", folder.path().display()))?;
    terminal.press("Tab")?;
    terminal.shows("disk-of-a-guest.raw")?;
    terminal.press("Enter")?;
    terminal.shows_line("{}")?;
    let nodes = listening.vm.execute("query-named-block-nodes", json!({}))?;
    let file = nodes[0]["file"].as_str().context("its file")?;
    assert!(file.starts_with("fd:ctl-"), "{file}");
    assert_eq!(nodes[0]["image"]["virtual-size"], 1 << 20);
    enter(&terminal, "blockdev-del disk")?;
    enter(&terminal, "query-name")?;
    terminal.shows_line("sesame> query-name")?;
    let after = listening.vm.settled_usage(before)?;
    assert_eq!(after.fds, before.fds);
    leave(listening, &terminal)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_event_between_prompts_leaves_the_line_whole() -> Result<()> {
    let (mut listening, terminal) = stage(Vm::monitor())?;
    terminal.types("query-st")?;
    terminal.shows_line("sesame> query-st")?;
    listening.vm.execute("stop", json!({}))?;
    terminal.shows("Z STOP")?;
    enter(&terminal, "atus")?;
    terminal.shows_line("sesame> query-status")?;
    terminal.shows(r#""status":"paused""#)?;
    leave(listening, &terminal)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_prompt_tells_that_the_vm_is_gone_and_comes_back_with_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("qmp.sock");
    let option = format!("unix:{},server=on,wait=off", socket.display());
    let vm = || Vm::monitor().args(["-qmp", &option]).start();
    let first = vm()?;
    let terminal = Terminal::start(&Ctl::at(&socket)?.shell_words())?;
    terminal.shows_line("sesame>")?;
    // In other programs `quit` leaves a prompt: it is not done unasked.
    enter(&terminal, "quit")?;
    terminal.shows("End it? [y/N]")?;
    enter(&terminal, "n")?;
    enter(&terminal, "query-status")?;
    terminal.shows(r#""running":true"#)?;
    enter(&terminal, "quit")?;
    terminal.types("y")?;
    terminal.press("Enter")?;
    terminal.shows("the VM is gone; waiting for one at")?;
    first.exit_clean()?;
    enter(&terminal, "query-name")?;
    terminal.shows("nothing was sent")?;
    let second = vm()?;
    terminal.shows("connected again, to sesame-")?;
    enter(&terminal, "query-kvm")?;
    terminal.shows("present")?;
    terminal.rests_at("sesame>")?;
    terminal.press("C-d")?;
    terminal.shows("ended with 0")?;
    second.shutdown_clean()
}

#[test]
#[ignore = "needs sesame-ctl: cargo xtask test"]
fn a_bar_shows_how_far_a_job_is() -> Result<()> {
    let server = JobServer::start()?;
    let ctl = Ctl::at(&server.socket)?.shell_words();
    let terminal = Terminal::start(&format!(
        "{ctl} blockdev-create job0 options:={{}} --wait job0"
    ))?;
    terminal.shows("job0 [..............................]   0% running")?;
    server.set("running", 42);
    terminal.shows("job0 [############..................]  42% running")?;
    server.set("running", 90);
    terminal.shows("job0 [###########################...]  90% running")?;
    server.set("concluded", 100);
    terminal.shows("job0 [##############################] 100% concluded")?;
    terminal.shows("ended with 0")
}

#[test]
#[ignore = "needs sesame-ctl: cargo xtask test"]
fn the_bar_is_at_the_prompt_as_well() -> Result<()> {
    let server = JobServer::start()?;
    let terminal = Terminal::start(&Ctl::at(&server.socket)?.shell_words())?;
    terminal.shows_line("sesame>")?;
    enter(&terminal, "blockdev-create job1 options:={} --wait job1")?;
    terminal.shows("job1 [..............................]   0% running")?;
    server.set("running", 50);
    terminal.shows("job1 [###############...............]  50% running")?;
    server.fail("No space left on device");
    terminal.shows("job 'job1' did not succeed: No space left on device [10]")?;
    terminal.rests_at("sesame>")?;
    terminal.press("C-d")?;
    terminal.shows("ended with 0")
}
