//! A TPM's chip between a guest that keeps no order and an emulator that answers what it likes, in
//! pieces or too much, or goes.
//!
//! What must hold: no panic on any thread; a guest never sees more than the chip has; who waits for
//! an emulator that has gone does not; after a reset, an honest emulator's answer to a command is
//! what the guest reads; no fd is left.
//!
//! ```text
//!   input ─► guest: any register ─► chip ─► commands ─► emulator: honest, or by the input's script
//! ```

mod emulator;

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use devices::bus::BusDevice;
use devices::chardev::{BackendSpec, Chardev, ChardevSpec, SocketRole, SocketSpec};
use devices::lifecycle::Lifecycle;
use devices::state::Stateful;
use devices::tpm::{TpmCrb, TpmEmulator};
use fdset::{Door, FdRegistry, Handover, Origin, Scope, SocketAddress};
use nix::sys::signal::{SigSet, Signal};

use self::emulator::{Emulator, Script, answer_to};
use crate::board::reactor;
use crate::fds::Watch;

/// Registers (TCG PC Client Platform TPM Profile 1.05, table 26).
const LOCALITY_CONTROL: u64 = 0x08;
const REQUEST: u64 = 0x40;
const STATUS: u64 = 0x44;
const START: u64 = 0x4c;
const BUFFER: u64 = 0x80;
/// All registers that are worth an access.
const REGISTERS: [u64; 10] = [0x00, 0x08, 0x0c, 0x30, 0x40, 0x44, 0x48, 0x4c, 0x58, 0x80];
/// How many steps an input is worth.
const STEPS: usize = 60;
/// How long what must come may take.
const SOON: Duration = Duration::from_secs(8);

pub(super) fn run(input: &[u8]) {
    // An emulator that has gone is an error of a write here, as it is in the product.
    let mut pipes = SigSet::empty();
    pipes.add(Signal::SIGPIPE);
    pipes.thread_block().expect("a signal");
    reactor().settle().expect("it runs");
    let watch = Watch::new();
    let mut input = Unstructured::new(input);
    converse(&mut input);
    reactor().settle().expect("it runs");
    watch.assert_nothing_is_left();
}

fn converse(input: &mut Unstructured<'_>) {
    let honest = input.arbitrary().unwrap_or(true);
    let script = if honest {
        Script::honest()
    } else {
        Script::arbitrary(input).unwrap_or_else(|_| Script::honest())
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let end = theirs.try_clone().expect("another fd");
    let emulator = thread::spawn(move || Emulator::serve(theirs, script));
    let chardev = chardev(ours);
    let met = TpmEmulator::behind(&chardev);
    assert!(
        met.is_ok() || !honest,
        "an honest one is refused: {:?}",
        met.err()
    );
    if let Ok(met) = met {
        let guest = Guest(TpmCrb::new(met, reactor()).expect("a chip"));
        guest.0.reset();
        for _ in 0..STEPS {
            if input.is_empty() || guest.step(input).is_err() {
                break;
            }
        }
        if honest {
            guest.0.reset();
            guest.assert_it_answers();
        }
        // It may have gone by itself.
        let _ = end.shutdown(Shutdown::Both);
        guest.assert_it_waits_for_nobody();
    }
    drop(end);
    drop(chardev);
    emulator.join().expect("it does not panic");
}

/// The chardev over that socket, as the command line makes it.
fn chardev(socket: UnixStream) -> Arc<Chardev> {
    let registry = Arc::new(FdRegistry::new());
    let passed = Handover::new(socket.into(), Origin::CommandLine);
    let name = "tpm".to_owned();
    let named = registry.add_named(Scope::Process, &name, passed);
    named.expect("a good name");
    let spec = ChardevSpec {
        backend: BackendSpec::Socket(SocketSpec {
            address: SocketAddress::Fd { name },
            role: SocketRole::Client,
            nodelay: false,
        }),
        log: None,
    };
    let door = Door::new(registry, Scope::Process);
    Chardev::open("tpm", &spec, &door, reactor()).expect("a connected socket")
}

/// The guest's side of the chip.
struct Guest(Arc<TpmCrb>);

impl Guest {
    fn dword(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, register: u64, value: u32) {
        self.0.write(register, &value.to_le_bytes());
    }

    fn step(&self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=9)? {
            0 | 1 => self.access(input)?,
            2..=4 => self.command(input)?,
            5 => self.wait(),
            6 => self.0.reset(),
            // A snapshot is not taken up again beside the emulator that works on its command.
            7 if self.dword(START) == 0 => {
                let saved = self.0.save();
                self.0.load(saved).expect("what was saved");
            }
            _ => {
                let register = *input.choose(&REGISTERS)?;
                self.put(register, input.int_in_range(0..=3)?);
            }
        }
        assert!(self.dword(START) <= 1, "more than busy");
        assert_eq!(self.dword(STATUS) & !3, 0, "more than failed and idle");
        assert_eq!(self.dword(0x34), 0x1014, "another vendor");
        Ok(())
    }

    /// Any access, also across the end.
    fn access(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let (offset, len) = (
            input.arbitrary::<u16>()? & 0xfff,
            input.int_in_range(1..=8)?,
        );
        let mut data = [0x5a; 8];
        self.0.read(offset.into(), &mut data[..len]);
        self.0.write(offset.into(), input.bytes(len)?);
        Ok(())
    }

    /// A command of any length that it says it has, with or without what must come before.
    fn command(&self, input: &mut Unstructured<'_>) -> Result<()> {
        if input.ratio(7_u8, 8)? {
            self.put(LOCALITY_CONTROL, 1);
            self.put(REQUEST, 1);
        }
        let len = u32::from(input.arbitrary::<u16>()?);
        self.0.write(BUFFER, &[0x80, 0x01]);
        self.0.write(BUFFER + 2, &len.to_be_bytes());
        self.0.write(BUFFER + 10, &input.arbitrary::<[u8; 4]>()?);
        self.put(START, 1);
        Ok(())
    }

    /// Lets `dev-io` come to an end with what it has begun.
    fn wait(&self) {
        reactor().settle().expect("it runs");
    }

    /// Waits until no command is under way.
    fn until_done(&self) {
        let start = Instant::now();
        while self.dword(START) != 0 {
            assert!(start.elapsed() < SOON, "a command does not end");
            self.wait();
            thread::yield_now();
        }
    }

    /// What a driver by the rules asks is answered, by the answer to that.
    fn assert_it_answers(&self) {
        let command = *b"\x80\x01\0\0\0\x10\0\0\x01\x7bnonce!";
        assert_eq!(self.dword(STATUS), 2, "idle, and no failure");
        self.put(LOCALITY_CONTROL, 1);
        self.put(REQUEST, 1);
        self.0.write(BUFFER, &command);
        self.put(START, 1);
        self.until_done();
        let wanted = answer_to(&command);
        let mut response = vec![0; wanted.len()];
        self.0.read(BUFFER, &mut response);
        assert_eq!(response, wanted);
        assert_eq!(self.dword(STATUS), 0);
    }

    /// The emulator has gone: what is under way ends, and a reset finds out.
    fn assert_it_waits_for_nobody(&self) {
        self.until_done();
        self.0.reset();
        assert_eq!(self.dword(STATUS), 3, "idle, and failed");
        self.put(LOCALITY_CONTROL, 1);
        self.put(REQUEST, 1);
        self.put(START, 1);
        self.until_done();
    }
}
