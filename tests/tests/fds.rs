//! Named fds and fd sets over the wire, without a guest.
use std::os::fd::AsFd;

use anyhow::Result;
use serde_json::json;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

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
