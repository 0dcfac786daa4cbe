//! vCPUs that come and go while the guest runs.
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::Vm;

const GONE: Duration = Duration::from_secs(60);
const ROUNDS: u32 = 10;

fn plug(vm: &mut Vm, model: &str, socket: u64) -> Result<Value> {
    let place = json!({"driver": format!("{model}-x86_64-cpu"), "id": format!("cpu{socket}"),
        "socket-id": socket, "core-id": 0, "thread-id": 0});
    vm.execute("device_add", place)?;
    vm.guest()?.call("cpu-online", json!({"cpu": socket}))
}

fn unplug(vm: &mut Vm, socket: u64) -> Result<Value> {
    let id = format!("cpu{socket}");
    vm.execute("device_del", json!({"id": id}))?;
    let is_ours = |event: &Value| event["data"]["device"] == id.as_str();
    vm.qmp.event_where("DEVICE_DELETED", GONE, is_ours)?;
    vm.guest()?.call("cpu-gone", json!({"cpu": socket}))
}

/// How many CPUs the guest has that are the model's: what was taken away is on none of them.
fn cpus_without_sse4_2(vm: &mut Vm) -> Result<usize> {
    let path = json!({"path": "/proc/cpuinfo"});
    let told = vm.guest()?.call("read-file", path)?;
    let told = told.as_str().unwrap_or_default();
    assert!(!told.contains("sse4_2"), "{told}");
    assert!(told.contains("model\t\t: 26\n"), "{told}");
    assert_eq!(
        told.matches("sse4_1").count(),
        told.matches(": less\n").count()
    );
    Ok(told.matches("sse4_1").count())
}

/// Two vCPUs come, are used, and go.
fn round(vm: &mut Vm) -> Result<()> {
    assert_eq!(plug(vm, "host", 1)?, 2);
    assert_eq!(plug(vm, "host", 2)?, 3);
    let cpus = vm.execute("query-cpus-fast", json!({}))?;
    assert_eq!(cpus[2]["qom-path"], "/machine/peripheral/cpu2");
    assert_eq!(unplug(vm, 2)?, 2);
    assert_eq!(unplug(vm, 1)?, 1);
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn vcpus_come_and_go_in_a_sealed_process_and_leave_nothing_behind() -> Result<()> {
    let mut vm = Vm::builder()
        .args(["-smp", "1,sockets=3,maxcpus=3"])
        .start()?;
    vm.guest()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    // KVM keeps a vCPU for as long as the VM lives: what the first round makes waits for the next.
    round(&mut vm)?;
    let before = vm.usage()?;
    for _ in 0..ROUNDS {
        round(&mut vm)?;
    }
    let after = vm.settled_usage(before)?;
    println!("before {ROUNDS} rounds: {before}\nafter  {ROUNDS} rounds: {after}");
    assert!(after.fds <= before.fds);
    assert!(after.threads <= before.threads);
    assert!(after.mappings <= before.mappings);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_vcpu_that_was_there_from_the_start_goes_and_one_more_is_there_after_a_reset() -> Result<()> {
    let mut vm = Vm::builder()
        .args(["-smp", "2,sockets=3,maxcpus=3"])
        // The lab's processor has no `vme`.
        .args(["-cpu", "Nehalem,-vme,-sse4.2,model-id=less"])
        .start()?;
    assert_eq!(vm.guest()?.call("cpus", json!({}))?, 2);
    assert_eq!(cpus_without_sse4_2(&mut vm)?, 2);
    vm.execute("device_del", json!({"id": "/machine/unattached/device[1]"}))?;
    vm.qmp.event("DEVICE_DELETED", GONE)?;
    assert_eq!(vm.guest()?.call("cpu-gone", json!({"cpu": 1}))?, 1);
    plug(&mut vm, "Nehalem", 1)?;
    plug(&mut vm, "Nehalem", 2)?;
    let told = vm.execute("query-acpi-ospm-status", json!({}))?;
    assert_eq!(
        (&told[2]["slot"], &told[2]["device"]),
        (&json!("2"), &json!("cpu2"))
    );
    vm.execute("system_reset", json!({}))?;
    vm.qmp.event("RESET", GONE)?;
    assert_eq!(vm.guest()?.wait_ready()?["cpus"], 3);
    assert_eq!(cpus_without_sse4_2(&mut vm)?, 3);
    vm.shutdown_clean()
}
