//! The host's end of a guest's network: an address on a tap, a peer to exchange bytes with.
//!
//! ```text
//!   Peer::tcp / Peer::vsock ◄── connections ── guest: agent calls `send` and `receive`
//!   tap::queues ── configure ──► address ── ping ──► the guest's kernel answers
//! ```
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ::guest::pattern;
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, VsockAddr,
    accept4, bind, listen, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

use crate::guest::Guest;

/// What is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(90);
/// How much is sent or taken at once.
const CHUNK: usize = 64 << 10;
/// What says that all has come; see `transfer.rs` of the guest.
const DONE: u8 = b'.';

/// Gives an interface of this machine an address, `ADDRESS/PREFIX`, and brings it up.
pub fn configure(interface: &str, address: &str) -> Result<()> {
    ip(&["address", "add", address, "dev", interface])?;
    ip(&["link", "set", interface, "up"])
}

/// `ip` of iproute2.
pub fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(words)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .context("run ip (Debian: apt-get install iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Asks the machine at `address` for an echo until it answers.
pub fn ping(address: Ipv4Addr) -> Result<()> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    // Type 8, code 0, and the checksum of just that.
    let request = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let [a, b, c, d] = address.octets();
    let to = SockaddrIn::new(a, b, c, d, 0);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        sendto(fd.as_raw_fd(), &request, &to, MsgFlags::empty())?;
        let mut packet = [0; 1500];
        while let Ok(count) = recv(fd.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            // An IP header of 20 bytes with its source at 12; type 0 is the answer.
            let is_answer = packet.get(20) == Some(&0) && count >= 28;
            if is_answer && packet.get(12..16) == Some(&address.octets()) {
                return Ok(());
            }
        }
    }
    bail!("{address} does not answer");
}

/// A listener on this machine that guests reach.
#[derive(Debug)]
pub struct Peer {
    listener: OwnedFd,
    /// How the guest's agent calls it.
    pub to: String,
}

impl Peer {
    /// On a free port of `address`.
    pub fn tcp(address: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let to = format!("tcp:{}", listener.local_addr()?);
        Ok(Self {
            listener: listener.into(),
            to,
        })
    }

    /// On `port` of this machine as guests see it over vsock.
    pub fn vsock(port: u32) -> Result<Self> {
        let fd = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        bind(
            fd.as_raw_fd(),
            &VsockAddr::new(nix::libc::VMADDR_CID_ANY, port),
        )?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self {
            listener: fd,
            to: format!("vsock:{}:{port}", nix::libc::VMADDR_CID_HOST),
        })
    }

    /// As [`tcp`](Self::tcp), called `to` by the guest: behind an address translation.
    pub fn called(mut self, address: Ipv4Addr) -> Result<Self> {
        let port = self.to.rsplit(':').next().context("a port")?;
        self.to = format!("tcp:{address}:{port}");
        Ok(self)
    }

    /// Has the guest send `length` bytes over each of `streams` connections, and then take as many.
    pub fn exchange(&self, guest: &mut Guest, length: u64, streams: u64) -> Result<()> {
        let arguments =
            |seed: u64| json!({"to": self.to, "length": length, "seed": seed, "streams": streams});
        self.serve(
            streams,
            |stream, each| take(stream, length, 1).with_context(|| format!("stream {each}")),
            || guest.call("send", arguments(1)).map(drop),
        )?;
        self.serve(
            streams,
            |stream, each| give(stream, length, 2).with_context(|| format!("stream {each}")),
            || guest.call("receive", arguments(2)).map(drop),
        )
    }

    /// How long the guest takes to send `length` bytes that mean nothing.
    pub fn pour(&self, guest: &mut Guest, length: u64) -> Result<Duration> {
        let swallow = |stream: &mut UnixStream, _| {
            let mut bytes = vec![0; CHUNK];
            let mut rest = length;
            while rest > 0 {
                let count = stream.read(&mut bytes)?;
                ensure!(count > 0, "the guest hangs up");
                rest = rest.saturating_sub(u64::try_from(count)?);
            }
            Ok(stream.write_all(&[DONE])?)
        };
        let arguments = json!({"to": self.to, "length": length});
        self.timed(guest, "pour", arguments, swallow)
    }

    /// How long the guest takes for so many questions of one byte, each with its answer.
    pub fn ask_often(&self, guest: &mut Guest, times: u64) -> Result<Duration> {
        let answer = |stream: &mut UnixStream, _| {
            let mut byte = [0];
            for _ in 0..times {
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)?;
            }
            Ok(())
        };
        let arguments = json!({"to": self.to, "times": times});
        self.timed(guest, "ask-often", arguments, answer)
    }

    /// What the guest's clock says of a call while `work` is done here.
    fn timed(
        &self,
        guest: &mut Guest,
        call: &str,
        arguments: Value,
        work: impl Fn(&mut UnixStream, u64) -> Result<()> + Sync,
    ) -> Result<Duration> {
        let mut time = Value::Null;
        self.serve(1, work, || {
            time = guest.call(call, arguments)?;
            Ok(())
        })?;
        let nanoseconds = time.as_u64().context("a number")?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    fn serve(
        &self,
        streams: u64,
        work: impl Fn(&mut UnixStream, u64) -> Result<()> + Sync,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let work = &work;
        thread::scope(|scope| {
            let one = |each| scope.spawn(move || work(&mut self.accept()?, each));
            let serving: Vec<_> = (0..streams).map(one).collect();
            // What the guest says of a failure tells more than that nobody came.
            meanwhile()?;
            serving.into_iter().try_for_each(|thread| {
                let panicked = |_| anyhow::anyhow!("a thread panicked");
                thread.join().map_err(panicked)?
            })
        })
    }

    fn accept(&self) -> Result<UnixStream> {
        let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE)?;
        ensure!(
            poll(&mut listener, patience)? == 1,
            "nobody calls {}",
            self.to
        );
        let number = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // Reading and writing are the same for all stream sockets.
        let stream = UnixStream::from(owned(number));
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn take(stream: &mut UnixStream, length: u64, seed: u64) -> Result<()> {
    chunks(length, |at, part| {
        stream.read_exact(part)?;
        let wrong = pattern::first_difference(part, seed, at);
        ensure!(wrong.is_none(), "byte {wrong:?} is not the pattern's");
        Ok(())
    })?;
    Ok(stream.write_all(&[DONE])?)
}

fn give(stream: &mut UnixStream, length: u64, seed: u64) -> Result<()> {
    chunks(length, |at, part| {
        pattern::fill(part, seed, at);
        Ok(stream.write_all(part)?)
    })?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [DONE], "the guest answers {answer:?}");
    Ok(())
}

fn chunks(length: u64, mut work: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let count = (length - at).min(CHUNK as u64);
        work(at, &mut bytes[..usize::try_from(count)?])?;
        at += count;
    }
    Ok(())
}

// UNSAFETY: the number that the kernel gives must become an owned fd.
#[expect(unsafe_code, reason = "nix's accept gives a number")]
fn owned(number: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just made this fd, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
