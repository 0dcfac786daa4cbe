//! Clients that are many, cut off, silent or too loud: memory stays bounded, each is told or let go,
//! and the others do not notice.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play clients: they connect, and make what they hand in"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tests::qmp::Client;
use tests::{Vm, fds, vm::Builder};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
/// What many bad clients may cost, in resident bytes.
const COST: u64 = 48 * MIB;

/// A VM with one more monitor at the socket `crowd` of `folder`, where the bad clients come.
fn with_crowd(folder: &Path) -> Result<Vm> {
    let path = folder.join("crowd");
    let chardev = format!("socket,id=crowd,path={},server=on,wait=off", path.display());
    let mon = "chardev=crowd,mode=control";
    Vm::monitor()
        .args(["-chardev", &chardev, "-mon", mon])
        .start()
}

fn crowd(folder: &Path) -> PathBuf {
    folder.join("crowd")
}

/// The main monitor answers, and nothing is left of the others.
fn unharmed(vm: &mut Vm, before: fds::Usage, memory: u64) -> Result<()> {
    vm.execute("query-status", json!({}))?;
    let after = vm.settled_usage(before)?;
    ensure!(
        after.fds <= before.fds,
        "fds leaked: {before}, then {after}"
    );
    let now = fds::resident_size(vm.pid())?;
    ensure!(now < memory + COST, "memory went from {memory} to {now}");
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn ten_thousand_connections_are_served_or_told_and_the_others_do_not_notice() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let folder = tempfile::tempdir()?;
    let mut vm = with_crowd(folder.path())?;
    let (before, memory) = (vm.usage()?, fds::resident_size(vm.pid())?);
    let at_once = usize::try_from(hard)?
        .min(10_100)
        .saturating_sub(100)
        .min(10_000);
    let mut clients = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..10_000 {
        if clients.len() == at_once {
            clients.clear();
        }
        clients.push(UnixStream::connect(crowd(folder.path()))?);
        if number % 500 == 0 {
            let start = Instant::now();
            vm.execute("query-status", json!({}))?;
            slowest = slowest.max(start.elapsed());
        }
    }
    ensure!(
        slowest < Duration::from_secs(2),
        "the other monitor waited {slowest:?}"
    );
    let held = fds::resident_size(vm.pid())?;
    ensure!(held < memory + COST, "memory went from {memory} to {held}");
    // Each of those that are still there has one line, and all but some are let go with it.
    let mut greeted = 0;
    for client in &mut clients {
        client.set_read_timeout(Some(SOON))?;
        let mut said = [0; 4096];
        let count = client.read(&mut said)?;
        let line = std::str::from_utf8(&said[..count])?;
        if line.starts_with("{\"QMP\"") {
            greeted += 1;
        } else {
            ensure!(line.contains("serves 256 clients at once"), "{line}");
            ensure!(client.read(&mut said)? == 0, "and the end");
        }
    }
    ensure!((1..=256).contains(&greeted), "{greeted}");
    drop(clients);
    unharmed(&mut vm, before, memory)?;
    Client::connect(&crowd(folder.path()))?.execute("query-status", json!({}))?;
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success());
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_connection_that_is_cut_at_any_byte_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = with_crowd(folder.path())?;
    let (before, memory) = (vm.usage()?, fds::resident_size(vm.pid())?);
    let file = fds::memfd(MIB)?;
    let requests = "{\"execute\": \"getfd\", \"arguments\": {\"fdname\": \"9\\u00e9\"}, \"id\": [1.5]}\
                    {\"execute\": \"query-qmp-schema\"}\n";
    for cut in 0..=requests.len() {
        for negotiates in [true, false] {
            let mut client = UnixStream::connect(crowd(folder.path()))?;
            if negotiates {
                client.write_all(b"{\"execute\": \"qmp_capabilities\"}")?;
            }
            let sent = requests.as_bytes().get(..cut).context("a part")?;
            if !sent.is_empty() {
                Client::new(client.try_clone()?)?.send_raw(sent, &[file.as_fd()])?;
            }
            let half = if cut % 2 == 0 {
                Shutdown::Both
            } else {
                Shutdown::Write
            };
            client.shutdown(half)?;
        }
    }
    unharmed(&mut vm, before, memory)?;
    let ledger = vm.execute("query-fds", json!({}))?;
    ensure!(ledger["waiting"] == json!([]), "{ledger}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_hundred_mebibytes_of_text_are_refused_on_the_way_and_the_session_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = with_crowd(folder.path())?;
    let (before, memory) = (vm.usage()?, fds::resident_size(vm.pid())?);
    let stream = UnixStream::connect(crowd(folder.path()))?;
    let mut loud = Client::new(stream.try_clone()?)?;
    loud.negotiate()?;
    loud.send_raw(b"{\"execute\": \"query-status\", \"id\": \"", &[])?;
    let piece = vec![b'x'; 1 << 20];
    let mut most = 0;
    for _ in 0..100 {
        loud.send_raw(&piece, &[])?;
        vm.execute("query-status", json!({}))?;
        most = most.max(fds::resident_size(vm.pid())?);
    }
    ensure!(
        most < memory + 3 * 64 * MIB,
        "{most} bytes for a request of 64 MiB"
    );
    let told = loud.reply(SOON)?;
    ensure!(
        told["error"]["desc"] == "JSON token size limit exceeded",
        "{told}"
    );
    loud.send_raw(
        b"\"}\n\xff{\"execute\": \"query-status\", \"id\": 1000}\n",
        &[],
    )?;
    while loud.reply(SOON)?["id"] != 1000 {}
    stream.shutdown(Shutdown::Both)?;
    unharmed(&mut vm, before, memory)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_client_that_never_reads_is_dropped_with_a_line_in_the_log_and_bounded_memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = with_crowd(folder.path())?;
    let memory = fds::resident_size(vm.pid())?;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Client::connect(&crowd(folder.path()))?);
    }
    // Each stop and each cont is an event for everybody.
    let start = Instant::now();
    while !vm.stderr().contains("does not read") {
        vm.qmp.send_raw(TURNS.repeat(500).as_bytes(), &[])?;
        let mut replies = 0;
        while replies < 1000 {
            replies += usize::from(vm.qmp.receive(SOON)?.get("return").is_some());
        }
        ensure!(
            start.elapsed() < Duration::from_secs(120),
            "nobody is dropped"
        );
        let now = fds::resident_size(vm.pid())?;
        ensure!(
            now < memory + 20 * 16 * MIB + COST,
            "memory went from {memory} to {now}"
        );
    }
    vm.execute("query-status", json!({}))?;
    drop(silent);
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success());
    Ok(())
}

/// Two events, two replies.
const TURNS: &str = "{\"execute\": \"cont\"} {\"execute\": \"stop\"}";

/// Two sessions at a time: each negotiates for itself, and has its own answers.
fn two_sessions(first: &mut Client, second: &mut Client) -> Result<()> {
    for (number, client) in [&mut *first, second].into_iter().enumerate() {
        let line = json!({"execute": "query-status", "id": number});
        client.send_raw(format!("{line}\n").as_bytes(), &[])?;
    }
    for (number, client) in [first, second].into_iter().enumerate() {
        ensure!(client.reply(SOON)?["id"] == number);
    }
    Ok(())
}

fn monitor(vm: Builder, id: &str, chardev: &str, more: &str) -> Builder {
    let chardev = format!("{chardev},id={id}");
    let mon = format!("chardev={id},mode=control{more}");
    vm.args(["-chardev", &chardev, "-mon", &mon])
}

/// Where a chardev of the VM leads, as `query-chardev` tells.
fn filename(vm: &mut Vm, id: &str) -> Result<String> {
    let all = vm.execute("query-chardev", json!({}))?;
    let mut found = all.as_array().context("a list")?.iter();
    let one = found.find(|one| one["label"] == id).context("a chardev")?;
    Ok(one["filename"].as_str().context("a name")?.to_owned())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn monitors_of_all_kinds_serve_one_vm_and_all_hear_its_events() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("unix");
    let passed = folder.path().join("passed");
    let mut vm = Vm::monitor();
    let listener = vm.pass(UnixListener::bind(&passed)?);
    let (ours, theirs) = UnixStream::pair()?;
    let connected = vm.pass(theirs);
    let unix = format!("socket,path={},server=on,wait=off", path.display());
    let vm = monitor(vm, "unix", &unix, "");
    let vm = monitor(
        vm,
        "tcp",
        "socket,host=127.0.0.1,port=0,server=on,wait=off",
        "",
    );
    let vm = monitor(
        vm,
        "listener",
        &format!("socket,fd={listener},server=on,wait=off"),
        "",
    );
    let vm = monitor(vm, "connected", &format!("socket,fd={connected}"), "");
    let vm = monitor(
        vm,
        "pretty",
        &format!("socket,path={}-pretty,server=on,wait=off", path.display()),
        ",pretty=on",
    );
    let mut vm = vm.start()?;
    let tcp = filename(&mut vm, "tcp")?;
    let port: u16 = tcp
        .split([',', ' '])
        .next()
        .and_then(|address| address.rsplit(':').next())
        .context("a port")?
        .parse()?;

    let mut clients = vec![Client::connect(&path)?, Client::connect(&passed)?, {
        let mut client = Client::new(ours)?;
        client.negotiate()?;
        client
    }];
    let mut again = Client::connect(&path)?;
    two_sessions(&mut clients[0], &mut again)?;
    clients.push(again);
    let mut over_tcp = TcpStream::connect(("127.0.0.1", port))?;
    over_tcp.write_all(b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-name\"}")?;
    let mut pretty = UnixStream::connect(folder.path().join("unix-pretty"))?;
    pretty.write_all(b"{\"execute\": \"qmp_capabilities\", \"id\": \"ready\"}")?;
    read_until(&mut over_tcp, "{\"return\": {}}\r\n{\"return\": {}}\r\n")?;
    let text = read_until(&mut pretty, "    \"id\": \"ready\"\n}")?;
    ensure!(
        text.starts_with("{\n    \"QMP\": {\n        \"version\""),
        "{text}"
    );
    vm.execute("stop", json!({}))?;
    for client in &mut clients {
        client.event("STOP", SOON)?;
    }
    read_until(&mut over_tcp, "\"event\": \"STOP\"")?;
    read_until(&mut pretty, "    \"event\": \"STOP\"")?;
    drop((clients, over_tcp, pretty));
    vm.shutdown_clean()
}

fn read_until(stream: &mut impl Read, wanted: &str) -> Result<String> {
    let mut text = String::new();
    let mut byte = [0];
    while !text.contains(wanted) {
        ensure!(
            stream.read(&mut byte)? == 1,
            "'{wanted}' did not come: {text}"
        );
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_was_sent_before_the_machine_ran_hears_nothing_of_its_start() -> Result<()> {
    // A client that is as quick as can be: its negotiation is there before the VMM looks.
    for _ in 0..20 {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(b"{\"execute\": \"qmp_capabilities\"}")?;
        let mut vm = Vm::monitor();
        let number = vm.pass(theirs);
        let vm = monitor(vm, "quick", &format!("socket,fd={number}"), "").start()?;
        read_until(&mut ours, "{\"return\": {}}\r\n")?;
        ours.write_all(b"{\"execute\": \"query-status\"}")?;
        let said = read_until(&mut ours, "\"running\"")?;
        ensure!(!said.contains("RESUME"), "{said}");
        vm.shutdown_clean()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn text_that_is_none_and_numbers_beyond_all_are_told_and_the_session_goes_on() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let invalid = "JSON parse error, invalid UTF-8 sequence in string";
    for (id, told) in [
        (&b"\"\xc3\""[..], invalid),
        (b"\"\xed\xa0\x80\"", invalid),
        (b"\"\xf4\x90\x80\x80\"", invalid),
        (
            b"\"\\ud800\"",
            "JSON parse error, \\ud800 is not a valid Unicode character",
        ),
        (
            b"\"\\udc00\\ud800\"",
            "JSON parse error, \\udc00 is not a valid Unicode character",
        ),
        (
            b"\"\\uffff\"",
            "JSON parse error, \\uffff is not a valid Unicode character",
        ),
        (b"1e400", "JSON parse error, number out of range"),
    ] {
        let line = [b"{\"execute\": \"query-status\", \"id\": ", id, b"}\n"].concat();
        vm.qmp.send_raw(&line, &[])?;
        let reply = vm.qmp.reply(SOON)?;
        ensure!(
            reply["error"]["desc"] == told,
            "{}: {reply}",
            String::from_utf8_lossy(id)
        );
    }
    for (sent, back) in [
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "18446744073709552000.0"),
        ("-9223372036854775809", "-9223372036854775808.0"),
    ] {
        let line = format!("{{\"execute\": \"query-status\", \"id\": {sent}}}\n");
        vm.qmp.send_raw(line.as_bytes(), &[])?;
        let reply = vm.qmp.reply(SOON)?;
        ensure!(
            reply["id"] == serde_json::from_str::<Value>(back)?,
            "{sent}: {reply}"
        );
    }
    let set = json!({"fdset-id": 1e30});
    let refusal = vm.refusal("remove-fd", set)?;
    ensure!(refusal.desc.contains("fdset-id"), "{refusal}");
    vm.shutdown_clean()
}
