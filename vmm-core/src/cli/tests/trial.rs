//! What testers and trials of machines write.

use super::*;

#[test]
fn a_tester_has_a_chardev_and_a_machine_without_cpus_takes_any_cpu() {
    let config = config(&[
        "-qtest",
        "unix:/run/q",
        "-qtest-log",
        "/tmp/log",
        "-machine",
        "none",
        "-cpu",
        "qemu64,apic-id=0",
        "-accel",
        "qtest",
    ]);
    let qtest = config.qtest.expect("a tester");
    assert_eq!(
        (qtest.chardev.as_str(), qtest.log.as_deref()),
        ("qtest", Some("/tmp/log"))
    );
    assert_eq!(config.chardevs[0].id, "qtest");
    assert_eq!(config.memory.size, 0);
    assert!(error(&["-cpu", "q64"]).starts_with("-cpu: unable to find CPU model 'q64'"));
    assert_eq!(
        error(&["-qtest", "stdio", "-qtest", "stdio"]),
        "-qtest: there is only one tester: give -qtest once"
    );
}

#[test]
fn later_words_about_the_guests_acts_win() {
    let config = config(&[
        "-no-reboot",
        "-action",
        "reboot=reset,panic=none",
        "--preconfig",
    ]);
    assert_eq!(config.actions.reboot, Some(RebootAction::Reset));
    assert_eq!(config.actions.panic, Some(PanicAction::None));
    assert_eq!(config.actions.shutdown, None);
    assert!(config.preconfig);
}

#[test]
fn a_file_adds_options_where_it_is_named() {
    let config = config(&["-m", "100", "-readconfig", "/etc/vm", "-name", "x"]);
    assert_eq!(config.memory.size, 200 << 20);
    assert_eq!(config.objects[0].id, "r");
    assert_eq!(
        error(&["-readconfig", "/no"]),
        "-readconfig: there is no file '/no'"
    );
}
