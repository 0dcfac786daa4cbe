//! The session that README.md shows, typed by hand: the same shell lines, the same requests, and
//! answers of the same kind. `tests/interop/session.txt` is its text.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::qmp::Client;
use tests::vm::{Vmm, variable};

/// Long enough for a guest to boot in a slow lab.
const SOON: Duration = Duration::from_secs(90);
const SESSION: &str = include_str!("../interop/session.txt");

#[test]
fn the_readme_shows_the_session_that_is_tested() {
    let readme = include_str!("../../README.md");
    assert!(
        !readme.contains("socat") || readme.contains(SESSION.trim()),
        "README.md and tests/interop/session.txt differ"
    );
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_session_runs_as_it_is_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = [
        ("sesame", Vmm::from_env()?.program),
        ("vmlinuz", variable("SESAME_GUEST_KERNEL")?),
        ("initrd.img", variable("SESAME_GUEST_INITRD")?),
    ];
    for (name, path) in files {
        symlink(path, folder.path().join(name))?;
    }
    let shell = SESSION.replace("\\\n", " ");
    let commands: Vec<_> = shell
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    let (socat, before) = commands.split_last().context("the session has commands")?;
    let socket = socat.rsplit(':').next().context("socat names a socket")?;
    let mut vmm = start(folder.path(), &before.join("\n"))?;
    let mut client = Client::new(connect(&folder.path().join(socket))?)?;
    let talked = talk(&mut client, &shell, folder.path());
    let start = Instant::now();
    while talked.is_ok() && vmm.try_wait()?.is_none() && start.elapsed() < SOON {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = vmm.kill();
    let status = vmm.wait()?;
    talked?;
    ensure!(status.success(), "sesame ended with {status}");
    Ok(())
}

/// Runs the shell's lines; the last, which is shown going into the background, stays ours.
fn start(folder: &Path, lines: &str) -> Result<Child> {
    let (before, last) = lines.rsplit_once('\n').unwrap_or(("", lines));
    let script = format!("{before}\nexec {}", last.trim_end_matches(" &"));
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    Ok(Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(folder)
        .env("PATH", path)
        .stdin(Stdio::null())
        .spawn()?)
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > SOON => {
                return Err(error).with_context(|| socket.display().to_string());
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Types each request and expects, line by line, an answer of the kind that is shown.
fn talk(client: &mut Client, session: &str, folder: &Path) -> Result<()> {
    let begin = session.find('{').unwrap_or(0);
    for line in session.get(begin..).unwrap_or_default().lines() {
        if line.starts_with('#') {
            wait_for_console(line, folder)?;
            continue;
        }
        let shown: Value = serde_json::from_str(line)?;
        if shown["execute"].is_string() {
            client.send_raw(format!("{line}\n").as_bytes(), &[])?;
            continue;
        }
        let mut said = client.receive(SOON)?;
        while said["event"].is_string() && shown["event"].is_null() {
            said = client.receive(SOON)?;
        }
        let kind = |message: &Value| {
            let keys = ["QMP", "return", "event", "error"];
            keys.map(|key| (key, message[key].is_null())).to_vec()
        };
        ensure!(kind(&said) == kind(&shown), "shown: {shown}\nsaid: {said}");
        let same_event = said["event"] == shown["event"];
        ensure!(same_event, "shown: {shown}\nsaid: {said}");
        let same_status = said["return"]["status"] == shown["return"]["status"];
        ensure!(same_status, "shown: {shown}\nsaid: {said}");
    }
    Ok(())
}

/// `# ...: wait until FILE says "TEXT"`
fn wait_for_console(line: &str, folder: &Path) -> Result<()> {
    let (_, what) = line
        .split_once("wait until ")
        .context("a line with '#' waits")?;
    let (file, text) = what.split_once(" says ").context("for a file's text")?;
    let text = text.trim_matches('"');
    let start = Instant::now();
    while !fs::read_to_string(folder.join(file))?.contains(text) {
        ensure!(start.elapsed() < SOON, "{file} never said {text:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
