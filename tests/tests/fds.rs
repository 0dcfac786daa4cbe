//! Named fds and fd sets over the wire, without a guest.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::eventfd::EventFd;
use serde_json::json;
use tests::vm::Vmm;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_set_lives_until_its_last_user_goes() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    let before = vm.usage()?;
    let set = vm.qmp.execute_with(
        "add-fd",
        json!({"fdset-id": 7, "opaque": "disk"}),
        &[file.as_fd()],
    )?;
    assert_eq!(set["fdset-id"], 7);
    let node = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/7"});
    vm.execute("blockdev-add", node)?;
    vm.execute("remove-fd", json!({"fdset-id": 7}))?;
    vm.execute("blockdev-del", json!({"node-name": "n"}))?;
    let sets = vm.execute("query-fdsets", json!({}))?;
    assert_eq!(sets, json!([]));
    assert_eq!(vm.settled_usage(before)?.fds, before.fds);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn sets_are_listed_with_their_members() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    let arguments = json!({"fdset-id": 3, "opaque": "first"});
    let added = vm.qmp.execute_with("add-fd", arguments, &[file.as_fd()])?;
    let sets = vm.execute("query-fdsets", json!({}))?;
    assert_eq!(sets[0]["fdset-id"], 3);
    assert_eq!(sets[0]["fds"][0]["fd"], added["fd"]);
    assert_eq!(sets[0]["fds"][0]["opaque"], "first");
    vm.execute("remove-fd", json!({"fdset-id": 3, "fd": added["fd"]}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_name_is_taken_once_and_replaced_in_silence() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    let before = vm.usage()?;
    for _ in 0..2 {
        vm.qmp
            .execute_with("getfd", json!({"fdname": "disk"}), &[file.as_fd()])?;
    }
    assert_eq!(vm.usage()?.fds, before.fds + 1);
    vm.execute("closefd", json!({"fdname": "disk"}))?;
    assert_eq!(vm.usage()?.fds, before.fds);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_read_only_member_does_not_open_for_writing() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let named = tempfile::NamedTempFile::new()?;
    named.as_file().set_len(MIB)?;
    let file = fds::open_ro(named.path())?;
    vm.qmp
        .execute_with("add-fd", json!({"fdset-id": 1}), &[file.as_fd()])?;
    let node = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/1"});
    vm.refusal("blockdev-add", node)?;
    let read_only = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/1",
        "read-only": true});
    vm.execute("blockdev-add", read_only)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_fd_that_is_not_what_was_announced_is_refused_and_closed() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let (reader, _writer) = std::io::pipe()?;
    for (command, mut arguments) in [
        ("getfd", json!({"fdname": "disk"})),
        ("add-fd", json!({"fdset-id": 3})),
    ] {
        let before = vm.usage()?;
        arguments["kind"] = json!("tap");
        let refusal = vm
            .qmp
            .refusal_with(command, arguments.clone(), &[reader.as_fd()])?;
        assert!(refusal.desc.contains("it is a pipe"), "{}", refusal.desc);
        assert_eq!(vm.usage()?.fds, before.fds);
        arguments["kind"] = json!("fifo");
        vm.qmp.execute_with(command, arguments, &[reader.as_fd()])?;
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_pipe_is_no_disk_and_stays_where_it_was() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let (reader, _writer) = std::io::pipe()?;
    vm.qmp
        .execute_with("getfd", json!({"fdname": "disk"}), &[reader.as_fd()])?;
    let before = vm.usage()?;
    let node = json!({"driver": "file", "node-name": "n", "filename": "fd:disk",
        "read-only": true});
    let refusal = vm.refusal("blockdev-add", node)?;
    assert!(
        refusal
            .desc
            .contains("it is a pipe; needed is a regular file"),
        "{}",
        refusal.desc
    );
    assert_eq!(vm.usage()?.fds, before.fds);
    vm.execute("closefd", json!({"fdname": "disk"}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_path_is_opened_from_the_set_that_answers_for_it() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    let path = "/nowhere/base.img";
    let node = json!({"driver": "file", "node-name": "n", "filename": path});
    vm.refusal("blockdev-add", node.clone())?;
    vm.qmp
        .execute_with("add-fd", json!({"fdset-id": 7}), &[file.as_fd()])?;
    vm.execute("add-fd-alias", json!({"path": path, "fdset-id": 7}))?;
    let aliases = vm.execute("query-fd-aliases", json!({}))?;
    assert_eq!(aliases, json!([{"path": path, "fdset-id": 7}]));
    vm.execute("blockdev-add", node.clone())?;
    vm.execute("blockdev-del", json!({"node-name": "n"}))?;
    vm.execute("remove-fd-alias", json!({"path": path}))?;
    vm.refusal("blockdev-add", node)?;
    vm.refusal("remove-fd-alias", json!({"path": path}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_alias_goes_with_its_set() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    let alias = json!({"path": "/nowhere/a", "fdset-id": 7});
    vm.refusal("add-fd-alias", alias.clone())?;
    vm.qmp
        .execute_with("add-fd", json!({"fdset-id": 7}), &[file.as_fd()])?;
    vm.execute("add-fd-alias", alias)?;
    vm.execute("remove-fd", json!({"fdset-id": 7}))?;
    let aliases = vm.execute("query-fd-aliases", json!({}))?;
    assert_eq!(aliases, json!([]));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_ledger_tells_what_waits_who_gave_it_and_who_uses_it() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let (file, pipe) = (fds::disk(MIB)?, std::io::pipe()?);
    let before = vm.execute("query-fds", json!({}))?;
    assert_eq!(before["waiting"], json!([]));
    let before = before["in-use"].as_array().map_or(0, Vec::len);
    vm.qmp
        .execute_with("add-fd", json!({"fdset-id": 7}), &[file.as_fd()])?;
    vm.qmp
        .execute_with("getfd", json!({"fdname": "p"}), &[pipe.0.as_fd()])?;
    let node = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/7"});
    vm.execute("blockdev-add", node)?;

    let ledger = vm.execute("query-fds", json!({}))?;
    let (named, member) = (&ledger["waiting"][0], &ledger["waiting"][1]);
    assert_eq!(named["name"], "p");
    assert_eq!(
        (&named["monitor"], &named["opened"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(
        (&named["kind"], &named["access"]),
        (&json!("fifo"), &json!("read-only"))
    );
    assert_eq!(named["origin"]["by"], "monitor");
    assert_eq!(named["origin"]["pid"], std::process::id());
    assert_eq!(
        (&member["fdset-id"], &member["opened"]),
        (&json!(7), &json!(true))
    );
    let used = &ledger["in-use"][before];
    assert_eq!(
        (&used["name"], &used["source"]),
        (&json!("/dev/fdset/7"), &json!("fdset"))
    );
    assert_eq!(
        (&used["role"], &used["reason"]),
        (&json!("image"), &json!("node 'n'"))
    );
    assert_eq!(
        (&used["device"], &used["inode"]),
        (&member["device"], &member["inode"])
    );
    assert_eq!(used["origin"]["pid"], std::process::id());

    vm.execute("blockdev-del", json!({"node-name": "n"}))?;
    let after = vm.execute("query-fds", json!({}))?;
    assert_eq!(after["in-use"].as_array().map_or(0, Vec::len), before);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_inherited_fd_that_no_option_names_is_told_of_and_cannot_be_used() -> Result<()> {
    let mut builder = Vm::monitor();
    let number = builder.pass(fds::disk(MIB)?);
    let mut vm = builder.start()?;
    let waiting = vm.execute("query-fds", json!({}))?["waiting"].take();
    assert_eq!(waiting.as_array().map(Vec::len), Some(1), "{waiting}");
    assert_eq!(waiting[0]["fd"], number);
    assert_eq!(waiting[0]["kind"], "file");
    assert_eq!(waiting[0]["origin"], json!({"by": "inheritance"}));
    let address = json!({"type": "fd", "data": {"str": number.to_string()}});
    let backend = json!({"type": "socket", "data": {"addr": address}});
    let refusal = vm.refusal("chardev-add", json!({"id": "c", "backend": backend}))?;
    assert!(
        refusal.desc.contains("on the command line only"),
        "{}",
        refusal.desc
    );
    vm.execute("fd-unclaimed-set", json!({"after": 1}))?;
    let event = vm.qmp.event("FD_UNCLAIMED", SOON)?;
    assert_eq!(event["data"]["fd"]["fd"], number);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_fd_that_nobody_claims_is_told_of_once() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::disk(MIB)?;
    vm.execute("fd-unclaimed-set", json!({"after": 1}))?;
    for name in ["first", "second"] {
        vm.qmp
            .execute_with("getfd", json!({"fdname": name}), &[file.as_fd()])?;
        let event = vm.qmp.event("FD_UNCLAIMED", SOON)?;
        assert_eq!(event["data"]["fd"]["name"], name);
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_sealed_process_still_tells_kinds_apart() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let (pipe, eventfd) = (std::io::pipe()?, EventFd::new()?);
    let (stream, _other_end) = UnixStream::pair()?;
    let (null, kvm) = (fds::open_rw(Path::new("/dev/null"))?, Path::new("/dev/kvm"));
    let mut given = vec![
        ("fifo", pipe.0.as_fd()),
        ("eventfd", eventfd.as_fd()),
        ("char-device", null.as_fd()),
        ("unix-stream", stream.as_fd()),
    ];
    let kvm = fds::open_rw(kvm).ok();
    given.extend(kvm.as_ref().map(|kvm| ("kvm", kvm.as_fd())));
    for (kind, fd) in given {
        vm.qmp
            .execute_with("getfd", json!({"fdname": "x", "kind": kind}), &[fd])?;
    }
    vm.execute("query-status", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_process_id_goes_into_a_passed_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pid");
    let mut builder = Vm::monitor();
    let set = builder.fdset(File::create(&path)?);
    let vm = builder.args(["-pidfile", &set]).start()?;
    let text = fs::read_to_string(&path)?;
    assert_eq!(text, format!("{}\n", vm.pid()));
    vm.shutdown_clean()?;
    assert!(path.exists(), "a passed file is its owner's to remove");
    Ok(())
}

/// As a service manager starts it: the fds from 3 on, their names in the environment.
#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn fds_of_socket_activation_go_by_their_names() -> Result<()> {
    let vmm = Vmm::from_env()?;
    let script =
        r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk exec "$0" -machine none -qmp stdio"#;
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(vmm.program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.fd_mappings(vec![FdMapping {
        parent_fd: fds::disk(MIB)?.into(),
        child_fd: 3,
    }])?;
    let mut child = command.spawn()?;
    let requests = [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": "query-fds"}),
        json!({"execute": "blockdev-add", "arguments": {
            "driver": "file", "node-name": "n", "filename": "fd:disk"}}),
        json!({"execute": "quit"}),
    ];
    let mut input = child.stdin.take().context("a pipe")?;
    for request in requests {
        writeln!(input, "{request}")?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("socket-activation"), "{said}");
    assert!(!said.contains("error"), "{said}");
    Ok(())
}
