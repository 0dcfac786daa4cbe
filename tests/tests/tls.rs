//! A TCP monitor behind TLS, with a client that is not ours: by a directory and by fds, sealed or not.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::vm::Builder;
use tests::{Vm, fds, tls};

/// The same VM with a monitor on TCP that speaks TLS with `object`.
fn with_tls(vm: Builder, object: &str) -> Builder {
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,{object}");
    let chardev = "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=tls0";
    vm.args([
        "-object",
        &object,
        "-chardev",
        chardev,
        "-mon",
        "chardev=t,mode=control",
    ])
}

fn port(vm: &mut Vm) -> Result<u16> {
    let all = vm.execute("query-chardev", json!({}))?;
    let mut found = all.as_array().context("a list")?.iter();
    let one = found.find(|one| one["label"] == "t").context("a chardev")?;
    let name = one["filename"].as_str().context("a name")?;
    let address = name.split(',').next().context("an address")?;
    Ok(address.rsplit(':').next().context("a port")?.parse()?)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_client_with_a_certificate_is_served_and_one_without_is_not() -> Result<()> {
    let dir = tls::file("").display().to_string();
    let mut vm = with_tls(Vm::monitor(), &format!("dir={dir},verify-peer=on")).start()?;
    let port = port(&mut vm)?;
    let told = tls::ask(port, Some("client"))?;
    ensure!(told.starts_with("TLSv1.3 {\"return\""), "{told}");
    for stranger in [None, Some("stranger")] {
        ensure!(tls::ask(port, stranger).is_err(), "{stranger:?}");
    }
    ensure!(tls::ask(port, Some("client")).is_ok());
    let refusal = vm.refusal("object-del", json!({"id": "tls0"}))?;
    ensure!(refusal.desc.contains("in use"), "{refusal}");
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success());
    let log = vm.stderr();
    ensure!(
        log.contains("TLS cannot be spoken with the client"),
        "{log}"
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_sealed_process_shakes_hands_with_what_was_handed_in() -> Result<()> {
    let mut vm = Vm::monitor();
    let mut set = |name: &str| -> Result<String> { Ok(vm.fdset(fds::open_ro(&tls::file(name))?)) };
    let (certificate, key) = (set("server-cert.pem")?, set("server-key.pem")?);
    let authority = set("ca-cert.pem")?;
    let object = format!("certificate={certificate},key={key},authority={authority}");
    let mut vm = with_tls(vm, &object).start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let port = port(&mut vm)?;
    for _ in 0..3 {
        ensure!(tls::ask(port, Some("client"))?.contains("\"return\""));
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_cannot_be_had_is_told_at_the_launch() -> Result<()> {
    for (object, named) in [
        ("dir=/nowhere", "/nowhere/server-cert.pem"),
        ("verify-peer=off,dir=/nowhere,priority=NORMAL", "priority"),
        ("endpoint=client", "endpoint"),
        ("verify-peer=off", "'certificate' is missing"),
    ] {
        let said = with_tls(Vm::monitor(), object).start_refused()?;
        ensure!(said.contains(named), "{object}: {said}");
    }
    let plain = "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=gone";
    let said = Vm::monitor()
        .args(["-chardev", plain, "-mon", "chardev=t,mode=control"])
        .start_refused()?;
    ensure!(said.contains("object 'gone' not found"), "{said}");
    let said = Vm::monitor().args(["-chardev", plain]).start_refused()?;
    ensure!(said.contains("'tls-creds' cannot be had"), "{said}");
    Ok(())
}
