//! Many clients at once, none of which waits for an answer before it sends its next request. They
//! are one thread: whatever is readable is read, and whoever has all its answers sends its next
//! batch, ready-made. Answers are told by their number of bytes, which is known beforehand.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use tests::vm::Vmm;

use super::subject::{Subject, Wire};
use super::{QUERY, microseconds};

const CLIENTS: usize = 64;
/// Requests of one client on their way.
const BATCH: usize = 32;
/// How long they go on.
const TIME: Duration = Duration::from_millis(500);
/// Far longer than the answers to one batch of each take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of it.
pub(super) struct Flood {
    /// Answers per second.
    pub(super) per_second: f64,
    /// Microseconds of the program's CPU time for each.
    pub(super) cpu_time: f64,
    /// Microseconds of the clients' CPU time for each: as long as it is less, it is not they who
    /// are measured.
    pub(super) client_cpu_time: f64,
}

/// Floods one new process.
pub(super) fn measure(vmm: &Vmm) -> Result<Flood> {
    let mut subject = Subject::ready(vmm, CLIENTS)?;
    let answer = subject.client()?.ask(QUERY, &[])?;
    let batch = QUERY.repeat(BATCH);

    let before = (Instant::now(), subject.cpu_time()?, own_cpu_time()?);
    let answers = flood(&mut subject.clients, &batch, answer)?;
    let time = before.0.elapsed();
    let cpu_time = subject.cpu_time()?.saturating_sub(before.1);
    let client_cpu_time = own_cpu_time()?.saturating_sub(before.2);
    subject.quit()?;

    let answers = f64::from(u32::try_from(answers)?);
    Ok(Flood {
        per_second: answers / time.as_secs_f64(),
        cpu_time: microseconds(cpu_time) / answers,
        client_cpu_time: microseconds(client_cpu_time) / answers,
    })
}

/// Lets every client send `batch` again and again for [`TIME`], and waits for what is then owed;
/// gives the number of answers, each of which is `answer` bytes long.
fn flood(clients: &mut [Wire], batch: &[u8], answer: usize) -> Result<usize> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut owed = vec![BATCH * answer; clients.len()];
    for (number, client) in clients.iter_mut().enumerate() {
        client.stream.set_nonblocking(true)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number)?);
        epoll.add(&client.stream, event)?;
        client.stream.write_all(batch)?;
    }
    let mut events = [EpollEvent::empty(); CLIENTS];
    let mut buffer = vec![0; 64 << 10];
    let (start, mut received, mut busy) = (Instant::now(), 0, clients.len());
    while busy > 0 {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(PATIENCE)?)?;
        ensure!(
            count > 0,
            "{busy} clients have waited for their answers too long"
        );
        for event in events.iter().take(count) {
            let number = usize::try_from(event.data())?;
            let client = clients.get_mut(number).context("no such client")?;
            let bytes = match client.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                bytes => bytes?,
            };
            let owed = owed.get_mut(number).context("no such client")?;
            ensure!(bytes > 0 && bytes <= *owed, "{bytes} bytes of {owed} owed");
            received += bytes;
            *owed -= bytes;
            if *owed > 0 {
                continue;
            }
            if start.elapsed() < TIME {
                client.stream.write_all(batch)?;
                *owed = BATCH * answer;
            } else {
                busy -= 1;
            }
        }
    }
    for client in clients {
        client.stream.set_nonblocking(false)?;
    }
    Ok(received / answer)
}

fn own_cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
