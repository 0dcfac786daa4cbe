//! Rejected requests that carry fds, very many of them: the VMM holds no more fds, threads and
//! memory than before, and answers.
//!
//! `SESAME_SOAK` says how many; 20,000 unless it is set. `cargo xtask soak` sends a million.

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::qmp::Client;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const DEFAULT_COUNT: u64 = 20_000;
/// So many come before the first look: buffers and the allocator have their size then.
const WARM_UP: u64 = 2_000;
/// The most that one message carries.
const MAX_FDS: usize = 253;
/// Pages that the allocator may touch later than [`WARM_UP`], in bytes.
const SLACK: u64 = 512 << 10;

/// A client, and what it hands over.
struct Stage<'a> {
    client: Client,
    address: &'a Path,
    disk: File,
    reader: File,
}

impl<'a> Stage<'a> {
    fn new(address: &'a Path) -> Result<Self> {
        let named = tempfile::NamedTempFile::new()?;
        Ok(Self {
            client: Client::connect(address)?,
            address,
            disk: fds::disk(1 << 20)?,
            reader: fds::open_ro(named.path())?,
        })
    }

    /// The rejection with this number: eight kinds take turns.
    fn reject(&mut self, number: u64) -> Result<()> {
        let fd = self.disk.as_fd();
        match number % 8 {
            0 => self
                .client
                .refusal_with("getfd", json!({"fdname": "x", "kind": "tap"}), &[fd]),
            1 => return self.wrong_access(),
            2 => self
                .client
                .refusal_with("no-such-command", json!({}), &[fd]),
            3 => {
                let few = 2 + usize::try_from(number / 8 % 15)?;
                let count = if number % 512 == 3 { MAX_FDS } else { few };
                let name = json!({"fdname": "x"});
                self.client.refusal_with("getfd", name, &vec![fd; count])
            }
            4 => return self.malformed(),
            5 => return self.killed_in_the_middle(),
            6 if number % 512 == 6 => return self.one_message_too_many(),
            6 => self
                .client
                .refusal_with("getfd", json!({"fdname": "1x"}), &[fd]),
            _ => self
                .client
                .refusal_with("add-fd", json!({"fdset-id": -1}), &[fd]),
        }?;
        Ok(())
    }

    fn wrong_access(&mut self) -> Result<()> {
        let name = json!({"fdname": "ro"});
        let reader = [self.reader.as_fd()];
        self.client.execute_with("getfd", name.clone(), &reader)?;
        let node = json!({"driver": "file", "node-name": "n", "filename": "fd:ro"});
        self.client.refusal("blockdev-add", node)?;
        self.client.execute("closefd", name).map(drop)
    }

    fn malformed(&mut self) -> Result<()> {
        self.client.send_raw(b"{]", &[self.disk.as_fd()])?;
        self.refused()
    }

    fn killed_in_the_middle(&self) -> Result<()> {
        let mut client = Client::connect(self.address)?;
        client.send_raw(b"{\"execute\": \"getfd\", ", &[self.disk.as_fd()])
    }

    fn one_message_too_many(&mut self) -> Result<()> {
        let fd: BorrowedFd<'_> = self.disk.as_fd();
        self.client.send_raw(b" ", &[fd; MAX_FDS])?;
        self.client.send_raw(b"{\"execute\": \"add-fd\"}", &[fd])?;
        self.refused()
    }

    fn refused(&mut self) -> Result<()> {
        let reply = self.client.reply(SOON)?;
        ensure!(reply["error"].is_object(), "not refused: {reply}");
        Ok(())
    }
}

/// What the VMM holds once the clients that were killed last have been noticed.
fn quiet_usage(vm: &Vm) -> Result<fds::Usage> {
    let mut least = vm.usage()?;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(20));
        least = vm.settled_usage(least)?;
    }
    Ok(least)
}

fn waiting(vm: &mut Vm) -> Result<usize> {
    let told = vm.execute("query-fds", json!({}))?;
    Ok(told["waiting"].as_array().map_or(0, Vec::len))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn rejected_requests_with_fds_leave_nothing_however_many() -> Result<()> {
    let count = match env::var("SESAME_SOAK") {
        Ok(text) => text.parse().context("SESAME_SOAK")?,
        Err(_) => DEFAULT_COUNT,
    };
    let folder = tempfile::tempdir()?;
    let address = folder.path().join("qmp");
    let chardev = format!(
        "socket,id=mon,path={},server=on,wait=off",
        address.display()
    );
    let mut vm = Vm::paused()
        .args(["-chardev", &chardev, "-mon", "chardev=mon,mode=control"])
        .start()?;
    let handed = waiting(&mut vm)?;
    let mut stage = Stage::new(&address)?;
    for number in 0..WARM_UP {
        stage.reject(number)?;
    }
    let (before, size) = (quiet_usage(&vm)?, fds::own_size(vm.pid())?);
    let start = Instant::now();
    for number in 0..count {
        stage
            .reject(number)
            .with_context(|| format!("rejection {number}"))?;
    }
    let time = start.elapsed();
    let (after, grown) = (quiet_usage(&vm)?, fds::own_size(vm.pid())?);
    println!(
        "{count} rejected requests in {:.1} s; before: {before}, {} KiB; after: {after}, {} KiB",
        time.as_secs_f64(),
        size >> 10,
        grown >> 10
    );
    ensure!(after.fds == before.fds, "fds: {before}, then {after}");
    ensure!(
        after.threads == before.threads,
        "threads: {before}, then {after}"
    );
    ensure!(grown <= size + SLACK, "memory: {size}, then {grown} bytes");
    assert_eq!(waiting(&mut vm)?, handed);
    vm.shutdown_clean()
}
