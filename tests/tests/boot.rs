//! A stock kernel boots, has what it was given, restarts, and goes when asked.
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tests::Vm;

const SOON: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_stock_kernel_boots_from_passed_fds() -> Result<()> {
    let mut vm = Vm::builder().start()?;
    let kernel = vm.guest()?.text("kernel")?;
    assert!(kernel.contains("cloud"), "{kernel}");
    assert_eq!(vm.execute("query-status", json!({}))?["status"], "running");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_guest_has_its_cpus_memory_and_command_line() -> Result<()> {
    let mut vm = Vm::builder()
        .cpus(2)
        .memory("384")
        .append("sesame.word=7")
        .start()?;
    let guest = vm.guest()?;
    assert_eq!(guest.call("cpus", json!({}))?, 2);
    let total = guest.call("memory", json!({}))?["total"].as_u64();
    assert!(
        total.is_some_and(|bytes| (300 << 20..384 << 20).contains(&bytes)),
        "{total:?}"
    );
    assert!(guest.text("cmdline")?.contains("sesame.word=7"));
    assert_eq!(
        vm.execute("query-cpus-fast", json!({}))?
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_paused_guest_starts_with_cont_and_halts_with_stop() -> Result<()> {
    let mut vm = Vm::builder().stopped().start()?;
    assert_eq!(vm.execute("query-status", json!({}))?["running"], false);
    vm.execute("cont", json!({}))?;
    vm.qmp.event("RESUME", SOON)?;
    let before = vm.guest()?.call("time", json!({}))?;
    vm.execute("stop", json!({}))?;
    vm.qmp.event("STOP", SOON)?;
    assert_eq!(vm.execute("query-status", json!({}))?["status"], "paused");
    vm.execute("cont", json!({}))?;
    let after = vm.guest()?.call("time", json!({}))?;
    assert!(after["uptime-ns"].as_u64() > before["uptime-ns"].as_u64());
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_that_reboots_comes_up_again() -> Result<()> {
    let mut vm = Vm::builder().cpus(2).start()?;
    vm.guest()?.call("reboot", json!({}))?;
    let event = vm.qmp.event("RESET", SOON)?;
    assert_eq!(event["data"]["guest"], true);
    vm.guest()?.wait_ready()?;
    assert_eq!(vm.guest()?.call("cpus", json!({}))?, 2);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn system_reset_restarts_the_guest_from_the_start() -> Result<()> {
    let mut vm = Vm::builder().start()?;
    vm.guest()?;
    vm.execute("system_reset", json!({}))?;
    assert_eq!(vm.qmp.event("RESET", SOON)?["data"]["guest"], false);
    let ready = vm.guest()?.wait_ready()?;
    assert_eq!(ready["cpus"], 1);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn system_powerdown_presses_the_button_and_the_guest_goes() -> Result<()> {
    let mut vm = Vm::builder().start()?;
    vm.guest()?;
    vm.execute("system_powerdown", json!({}))?;
    vm.qmp.event("POWERDOWN", SOON)?;
    let event = vm.qmp.event("SHUTDOWN", SOON)?;
    assert_eq!(event["data"]["guest"], true);
    assert_eq!(event["data"]["reason"], "guest-shutdown");
    vm.exit_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn no_shutdown_keeps_the_monitor_after_the_guest_has_gone() -> Result<()> {
    let mut vm = Vm::builder().args(["-no-shutdown"]).start()?;
    vm.guest()?.call("poweroff", json!({}))?;
    vm.qmp.event("SHUTDOWN", SOON)?;
    assert_eq!(vm.execute("query-status", json!({}))?["status"], "shutdown");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn no_reboot_turns_a_reboot_into_the_end() -> Result<()> {
    let mut vm = Vm::builder().args(["-no-reboot"]).start()?;
    vm.guest()?.call("reboot", json!({}))?;
    assert_eq!(
        vm.qmp.event("SHUTDOWN", SOON)?["data"]["reason"],
        "guest-reset"
    );
    vm.exit_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_that_panics_is_reported_and_kept() -> Result<()> {
    let mut vm = Vm::builder()
        .args(["-device", "pvpanic", "-no-shutdown"])
        .start()?;
    vm.guest()?.call("crash", json!({}))?;
    assert_eq!(
        vm.qmp.event("GUEST_PANICKED", SOON)?["data"]["action"],
        "pause"
    );
    assert_eq!(
        vm.execute("query-status", json!({}))?["status"],
        "guest-panicked"
    );
    vm.shutdown_clean()
}
