//! Bytes through connections that the guest makes: a pattern, sent or checked.
//!
//! `to` is `tcp:ADDRESS:PORT` or `vsock:CID:PORT`. Who listens sends, or takes, `length` bytes of the
//! pattern of `seed`; who has taken them answers with one byte, so that nothing is under way when a
//! call returns.
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use guest::pattern;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use serde_json::Value;

use super::Arguments;
use super::disk::until;

/// How much is sent or taken at once.
const CHUNK: usize = 64 << 10;
/// A port that nobody listens on.
const NO_PORT: u32 = 1;
/// What says that all has come.
const DONE: u8 = b'.';

/// `to`, `length`, `seed`, `streams`: sends the pattern over so many connections at once.
pub(super) fn send(arguments: &Arguments<'_>) -> io::Result<Value> {
    each_stream(arguments, |stream, length, seed| {
        let mut bytes = vec![0; CHUNK];
        let mut at = 0;
        while at < length {
            let count = (length - at).min(CHUNK as u64);
            let part = &mut bytes[..usize::try_from(count).map_err(io::Error::other)?];
            pattern::fill(part, seed, at);
            stream.write_all(part)?;
            at += count;
        }
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer == [DONE] {
            return Ok(());
        }
        Err(io::Error::other("the other side got something else"))
    })
}

/// The same the other way: takes the pattern and compares.
pub(super) fn receive(arguments: &Arguments<'_>) -> io::Result<Value> {
    each_stream(arguments, |stream, length, seed| {
        let mut bytes = vec![0; CHUNK];
        let mut at = 0;
        while at < length {
            let count = (length - at).min(CHUNK as u64);
            let part = &mut bytes[..usize::try_from(count).map_err(io::Error::other)?];
            stream.read_exact(part)?;
            if let Some(wrong) = pattern::first_difference(part, seed, at) {
                return Err(io::Error::other(format!(
                    "byte {wrong} is not the pattern's"
                )));
            }
            at += count;
        }
        stream.write_all(&[DONE])
    })
}

/// `to`, `length`: sends so many bytes of no meaning; the nanoseconds until all have come.
pub(super) fn pour(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mut stream = reach(arguments.text("to")?)?;
    let mut rest = arguments.number("length")?;
    let bytes = vec![0; CHUNK];
    let start = Instant::now();
    while rest > 0 {
        let count = rest.min(CHUNK as u64);
        stream.write_all(&bytes[..usize::try_from(count).map_err(io::Error::other)?])?;
        rest -= count;
    }
    stream.read_exact(&mut [0])?;
    nanoseconds(start.elapsed())
}

/// `to`, `times`: sends a byte and takes one, again and again; the nanoseconds of all.
pub(super) fn ask_often(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mut stream = reach(arguments.text("to")?)?;
    let times = arguments.number("times")?;
    let start = Instant::now();
    for _ in 0..times {
        stream.write_all(&[DONE])?;
        stream.read_exact(&mut [0])?;
    }
    nanoseconds(start.elapsed())
}

fn nanoseconds(time: Duration) -> io::Result<Value> {
    let number = u64::try_from(time.as_nanos()).map_err(io::Error::other)?;
    Ok(Value::from(number))
}

/// `seconds`: answers once the kernel has a device for its sockets.
pub(super) fn wait_vsock(arguments: &Arguments<'_>) -> io::Result<Value> {
    // The driver's folder names the device before the device is ready.
    until(arguments.number("seconds")?, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None).ok()?;
        let nobody = VsockAddr::new(libc::VMADDR_CID_HOST, NO_PORT);
        (connect(fd.as_raw_fd(), &nobody) != Err(Errno::ENODEV)).then_some(())
    })
    .map(|()| Value::Null)
    .ok_or_else(|| io::Error::other("no socket device came"))
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn each_stream(
    arguments: &Arguments<'_>,
    work: impl Fn(&mut dyn Stream, u64, u64) -> io::Result<()> + Sync,
) -> io::Result<Value> {
    let to = arguments.text("to")?;
    let length = arguments.number("length")?;
    let seed = arguments.number("seed")?;
    let streams = arguments.number("streams")?;
    let work = &work;
    thread::scope(|scope| {
        let one = |_| scope.spawn(move || work(reach(to)?.as_mut(), length, seed));
        let running: Vec<_> = (0..streams).map(one).collect();
        running.into_iter().try_for_each(|thread| {
            let panicked = |_| io::Error::other("a thread panicked");
            thread.join().map_err(panicked)?
        })
    })?;
    Ok(Value::Null)
}

fn reach(to: &str) -> io::Result<Box<dyn Stream>> {
    let unknown = || io::Error::other(format!("'{to}' is neither tcp:.. nor vsock:.."));
    if let Some(place) = to.strip_prefix("tcp:") {
        return Ok(Box::new(TcpStream::connect(place)?));
    }
    let place = to.strip_prefix("vsock:").ok_or_else(unknown)?;
    let (cid, port) = place.split_once(':').ok_or_else(unknown)?;
    let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &VsockAddr::new(number(cid)?, number(port)?))?;
    // Reading and writing are the same for all stream sockets.
    Ok(Box::new(UnixStream::from(fd)))
}
