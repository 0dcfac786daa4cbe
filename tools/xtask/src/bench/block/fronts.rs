//! Requests, through the program `devices/benches/disk`.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::tests::vm::Vmm;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::front;
use super::super::table::{Bar, Row};
use super::BlockOptions;
use crate::shell::{output, run, step};

/// Between two looks whether the export is there.
const REST: Duration = Duration::from_millis(20);
/// How long a peer may take to end.
const FAREWELL: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// Who serves the requests.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Sesame,
    StorageDaemon,
    Emulator,
    Ring,
}

const SUBJECTS: [(Subject, &str); 4] = [
    (Subject::Sesame, "sesame"),
    (Subject::StorageDaemon, "qemu-storage-daemon"),
    (Subject::Emulator, "QEMU"),
    (Subject::Ring, "io_uring"),
];

/// An image and how it is cached.
#[derive(Clone, Copy)]
struct Setting {
    format: &'static str,
    direct: bool,
    /// Whether every cluster is there before the first request.
    allocated: bool,
    /// How often it is measured, for each time that others are: what is over in no time is.
    often: usize,
}

const SETTINGS: [Setting; 6] = [
    Setting::new("raw", true, true),
    Setting::new("raw", false, true),
    Setting::new("qcow2", true, true),
    Setting::new("qcow2", false, true),
    Setting::new("qcow2", true, false),
    Setting::new("qcow2", false, false),
];

impl Setting {
    const fn new(format: &'static str, direct: bool, allocated: bool) -> Self {
        Self {
            format,
            direct,
            allocated,
            often: if allocated { 1 } else { 2 },
        }
    }

    fn name(self) -> String {
        let cache = if self.direct { "direct" } else { "cached" };
        format!("{} {cache}", self.format)
    }

    fn work(self) -> Vec<Work> {
        let work = |name, write, random, len, depth| Work {
            name,
            write,
            random,
            len,
            depth,
            once: None,
        };
        let first = |name, len, depth| Work {
            once: Some(64 << 10),
            ..work(name, true, true, len, depth)
        };
        if !self.allocated {
            return vec![
                first("first 4 KiB writes, depth 32", 4096, 32),
                first("first 64 KiB writes, depth 32", 64 << 10, 32),
            ];
        }
        vec![
            work("random 4 KiB read, depth 1", false, true, 4096, 1),
            work("random 4 KiB read, depth 32", false, true, 4096, 32),
            work("random 4 KiB write, depth 1", true, true, 4096, 1),
            work("random 4 KiB write, depth 32", true, true, 4096, 32),
            work("sequential 1 MiB read", false, false, MIB, 4),
            work("sequential 1 MiB write", true, false, MIB, 4),
        ]
    }
}

#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    write: bool,
    random: bool,
    len: u64,
    depth: u16,
    /// One request at each multiple of so many bytes, instead of for a time.
    once: Option<u64>,
}

impl Work {
    fn to_json(self, milliseconds: u64) -> Value {
        json!({
            "write": self.write, "random": self.random, "len": self.len, "depth": self.depth,
            "step": self.once.unwrap_or(self.len),
            "milliseconds": self.once.is_none().then_some(milliseconds),
        })
    }

    /// What is wanted against QEMU, in requests for a second.
    fn bar(self) -> Bar {
        Bar::Times(if self.depth == 32 && self.once.is_none() {
            1.2
        } else {
            1.0
        })
    }

    /// What is wanted against the bare ring.
    fn bar_of_ring(self) -> Bar {
        match self.depth {
            32 => Bar::Times(0.95),
            _ => Bar::Shown,
        }
    }
}

/// Requests for a second in thousands, and microseconds of CPU time for each.
#[derive(Default, Clone)]
struct Samples {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

/// The tables, each under the name of whom it compares with.
pub(super) fn measure(
    emulator: &Vmm,
    folder: &Path,
    options: &BlockOptions,
) -> Result<Vec<(&'static str, Vec<Row>)>> {
    let bench = Bench {
        front: front("disk")?,
        emulator: emulator.program.clone(),
        folder: folder.to_owned(),
        options,
    };
    let mut tables: Vec<_> = SUBJECTS[1..]
        .iter()
        .map(|(_, name)| (*name, Vec::new()))
        .collect();
    for (number, setting) in SETTINGS.into_iter().enumerate() {
        let of = if setting.allocated { "" } else { ", empty" };
        let count = SETTINGS.len();
        step(&format!(
            "disk {} of {count}: {}{of}",
            number + 1,
            setting.name()
        ));
        let samples = bench.take_turns(setting)?;
        for (table, others) in tables.iter_mut().zip(&samples[1..]) {
            let rows = rows(setting, table.0 == "io_uring", &samples[0], others);
            table.1.extend(rows);
        }
    }
    Ok(tables)
}

fn rows(setting: Setting, is_ring: bool, ours: &[Samples], others: &[Samples]) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((work, ours), others) in setting.work().into_iter().zip(ours).zip(others) {
        if others.rate.is_empty() {
            continue;
        }
        let name = format!("{}: {}", setting.name(), work.name);
        let rates = [ours.rate.clone(), others.rate.clone()];
        let bar = if is_ring {
            work.bar_of_ring()
        } else {
            work.bar()
        };
        rows.push(Row::new(name, "1000/s", rates, bar));
        let cpu = [ours.cpu.clone(), others.cpu.clone()];
        let bar = if is_ring { Bar::Shown } else { Bar::Share(0.6) };
        rows.push(Row::new("      CPU time of a request", "us", cpu, bar));
    }
    rows
}

struct Bench<'a> {
    front: PathBuf,
    emulator: PathBuf,
    folder: PathBuf,
    options: &'a BlockOptions,
}

impl Bench<'_> {
    /// Samples by subject and work.
    fn take_turns(&self, setting: Setting) -> Result<Vec<Vec<Samples>>> {
        let mut samples = vec![vec![Samples::default(); setting.work().len()]; SUBJECTS.len()];
        if setting.allocated {
            self.make_image(setting)?;
        }
        for _ in 0..self.options.disk_turns * setting.often {
            for ((subject, _), samples) in SUBJECTS.into_iter().zip(&mut samples) {
                // The ring knows no clusters: it would write over their tables.
                if subject == Subject::Ring && setting.format != "raw" {
                    continue;
                }
                let results = self.results(subject, setting)?;
                for (samples, result) in samples.iter_mut().zip(&results) {
                    let number = |key: &str| result[key].as_f64().with_context(|| key.to_owned());
                    let requests = number("requests")?;
                    samples.rate.push(requests / number("nanoseconds")? * 1e6);
                    samples.cpu.push(number("cpu")? / requests / 1000.0);
                }
            }
        }
        Ok(samples)
    }

    /// What came of each piece of work: all on one image, or each on an empty one.
    fn results(&self, subject: Subject, setting: Setting) -> Result<Vec<Value>> {
        let work = setting.work();
        if setting.allocated {
            return self.sample(subject, setting, &work);
        }
        let mut results = Vec::new();
        for one in work {
            self.make_image(setting)?;
            results.extend(self.sample(subject, setting, &[one])?);
        }
        Ok(results)
    }

    fn image(&self, setting: Setting) -> PathBuf {
        self.folder.join(format!("disk.{}", setting.format))
    }

    fn make_image(&self, setting: Setting) -> Result<()> {
        let fill = if setting.allocated { "full" } else { "off" };
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", setting.format, "-o"])
            .arg(format!("preallocation={fill}"))
            .arg(self.image(setting))
            .arg(format!("{}M", self.options.disk_mib)))
    }

    fn sample(&self, subject: Subject, setting: Setting, work: &[Work]) -> Result<Vec<Value>> {
        // What another left in the page cache is not this one's work.
        run(Command::new("sync").arg("-f").arg(&self.folder))?;
        let milliseconds = self.options.milliseconds;
        let work = work.iter();
        let mut order = json!({
            "file": self.image(setting),
            "size": self.options.disk_mib * MIB,
            "work": work.map(|work| work.to_json(milliseconds)).collect::<Vec<_>>(),
        });
        let mut peer = None;
        match subject {
            Subject::Sesame => {
                order["subject"] = json!("sesame");
                order["format"] = json!(setting.format);
                order["direct"] = json!(setting.direct);
            }
            Subject::Ring => {
                order["subject"] = json!("ring");
                order["direct"] = json!(setting.direct);
            }
            Subject::StorageDaemon | Subject::Emulator => {
                let export = self.export(subject, setting)?;
                order["subject"] = json!("vhost-user");
                order["socket"] = json!(export.socket);
                order["pid"] = json!(export.child.id());
                peer = Some(export);
            }
        }
        let text = output(Command::new(&self.front).arg(order.to_string()))?;
        drop(peer);
        Ok(serde_json::from_str(text.trim())?)
    }

    /// Starts a process of QEMU's that exports the image.
    fn export(&self, subject: Subject, setting: Setting) -> Result<Export> {
        let socket = self.folder.join("export");
        let cache = if setting.direct { "on" } else { "off" };
        let file = format!(
            "driver=file,node-name=file,filename={},cache.direct={cache},aio={}",
            self.image(setting).display(),
            self.options.peer_aio,
        );
        let disk = format!(
            "driver={},node-name=disk,file=file,cache.direct={cache}",
            setting.format
        );
        let mut command = match subject {
            Subject::Emulator => {
                let mut command = Command::new(&self.emulator);
                command.args(["-nodefaults", "-display", "none", "-machine", "none"]);
                command.args(["-object", "iothread,id=thread"]);
                command.args(["-blockdev", &file, "-blockdev", &disk]);
                command.args(["-qmp", "stdio"]).stdin(Stdio::piped());
                command
            }
            _ => {
                let mut command = Command::new("qemu-storage-daemon");
                command.args(["--object", "iothread,id=thread"]);
                command.args(["--blockdev", &file, "--blockdev", &disk]);
                command.arg("--export").arg(format!(
                    "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=thread,\
                     addr.type=unix,addr.path={}",
                    socket.display()
                ));
                command.stdin(Stdio::null());
                command
            }
        };
        let mut child = command.stdout(Stdio::null()).spawn()?;
        if let Some(stdin) = &mut child.stdin {
            let export = json!({"execute": "block-export-add", "arguments": {
                "type": "vhost-user-blk", "id": "export", "node-name": "disk", "writable": true,
                "iothread": "thread", "addr": {"type": "unix", "path": &socket},
            }});
            use std::io::Write;
            writeln!(stdin, "{{\"execute\": \"qmp_capabilities\"}}\n{export}")?;
        }
        let mut export = Export { child, socket };
        while !export.socket.exists() {
            if let Some(status) = export.child.try_wait()? {
                bail!("the peer ended: {status}");
            }
            thread::sleep(REST);
        }
        Ok(export)
    }
}

/// A process with an export, until it is dropped.
struct Export {
    child: Child,
    socket: PathBuf,
}

impl Drop for Export {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default());
        // An orderly end, so that the image is closed; it is over either way. The storage daemon
        // sometimes waits for ever for a client that has hung up.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < FAREWELL && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(REST);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
