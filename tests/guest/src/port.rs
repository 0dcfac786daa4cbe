//! Finding and using a virtio-serial port by its name.
use std::fs::{self, File, OpenOptions};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

const PORTS: &str = "/sys/class/virtio-ports";
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens the port that the host named `name`, waiting for the bus to bring it.
pub fn open(name: &str) -> io::Result<File> {
    let start = Instant::now();
    loop {
        if let Some(node) = find(name) {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(format!("/dev/{node}"));
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "no virtio-serial port named {name} came up in {} s",
                    PATIENCE.as_secs()
                ),
            ));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn find(name: &str) -> Option<String> {
    fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim() == name).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// A reader that outlives the host's end: a port without a host reads as end of file, which here
/// means "wait", because the host may come back.
#[derive(Debug)]
pub struct Patient(pub File);

impl io::Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Ok(0) => thread::sleep(Duration::from_millis(50)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}
