use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::*;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::reactor::Reactor;
use crate::state::Stateful;

/// Commands of the control channel, as they came.
type Heard = Vec<u32>;

/// An emulator that answers each command of the data socket with `answer` and its own length.
fn emulator(answer: &'static [u8]) -> (OwnedFd, JoinHandle<Heard>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = thread::spawn(move || {
        let mut first = [0; 4];
        let received = fdset::scm::recv_with_fds(&theirs, &mut first).unwrap();
        assert_eq!((received.bytes, u32::from_be_bytes(first)), (4, 16));
        let data = UnixStream::from(received.fds.into_iter().next().unwrap());
        let mut control = theirs;
        control.write_all(&[0; 4]).unwrap();
        let tpm = thread::spawn(move || serve_data(data, answer));
        let mut heard = Heard::new();
        let mut number = [0; 4];
        while control.read_exact(&mut number).is_ok() {
            let number = u32::from_be_bytes(number);
            heard.push(number);
            let mut argument = [0; 4];
            let answer: &[u8] = match number {
                1 => &[0, 0, 0, 0, 0, 0, 0x3f, 0xff],
                2 | 17 => {
                    control.read_exact(&mut argument).unwrap();
                    if number == 2 { &[0; 4] } else { &[0; 16] }
                }
                4 => &[0, 0, 0, 0, 1, 0, 0, 0],
                _ => &[0; 4],
            };
            control.write_all(answer).unwrap();
        }
        drop(control);
        tpm.join().unwrap();
        heard
    });
    (OwnedFd::from(ours), program)
}

fn serve_data(mut data: UnixStream, answer: &[u8]) {
    let mut header = [0; 10];
    while data.read_exact(&mut header).is_ok() {
        let len = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
        let mut rest = vec![0; len - 10];
        data.read_exact(&mut rest).unwrap();
        // In two parts: a stream has no messages.
        data.write_all(&answer[..4]).unwrap();
        data.write_all(&answer[4..]).unwrap();
    }
}

fn dword(chip: &TpmCrb, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    chip.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

const ANSWER: &[u8] = &[0x80, 0x01, 0, 0, 0, 12, 0, 0, 0, 0, 0xab, 0xcd];
const TPM12: &[u8] = &[0x00, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e];

/// What Linux does with a command.
fn carry_out(chip: &TpmCrb, command: &[u8]) {
    chip.write(0x08, &[1, 0, 0, 0]);
    assert_eq!(dword(chip, 0x00), 0b1000_0010, "locality 0, established");
    chip.write(0x40, &[1, 0, 0, 0]);
    assert_eq!(dword(chip, 0x44), 0);
    start(chip, command);
}

fn start(chip: &TpmCrb, command: &[u8]) {
    chip.write(0x80, command);
    chip.write(0x4c, &[1, 0, 0, 0]);
    while dword(chip, 0x4c) != 0 {
        thread::yield_now();
    }
}

#[test]
fn a_command_goes_to_the_emulator_and_its_response_comes_back() {
    let (control, program) = emulator(ANSWER);
    let reactor = Reactor::new();
    let chip = TpmCrb::new(TpmEmulator::over(control, None).unwrap(), &reactor).unwrap();
    chip.reset();
    assert_eq!(dword(&chip, 0x44), 0b10, "idle");
    let command = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
    carry_out(&chip, &command);
    let mut response = [0; 12];
    chip.read(0x80, &mut response);
    assert_eq!(response, ANSWER);
    chip.write(0x40, &[2, 0, 0, 0]);
    chip.write(0x08, &[2, 0, 0, 0]);
    assert_eq!((dword(&chip, 0x44), dword(&chip, 0x0c)), (0b10, 0));
    chip.reset();
    drop(chip);
    assert_eq!(program.join().unwrap(), [1, 14, 17, 2, 4, 14, 17, 2, 4, 3]);
}

#[test]
fn a_command_is_carried_out_for_who_never_asked_for_the_chip_to_be_ready() {
    let (control, program) = emulator(ANSWER);
    let reactor = Reactor::new();
    let chip = TpmCrb::new(TpmEmulator::over(control, None).unwrap(), &reactor).unwrap();
    chip.reset();
    chip.write(0x08, &[1]);
    start(&chip, &[0x80, 0x01, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]);
    let mut response = [0; 12];
    chip.read(0x80, &mut response);
    assert_eq!(response, ANSWER);
    drop(chip);
    program.join().unwrap();
}

#[test]
fn an_emulator_that_dies_leaves_a_tpm_that_fails() {
    let (control, program) = emulator(&[0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0]);
    let reactor = Reactor::new();
    let emulator = TpmEmulator::over(control, None).unwrap();
    let chip = TpmCrb::new(Arc::clone(&emulator), &reactor).unwrap();
    chip.reset();
    emulator.data().shutdown(std::net::Shutdown::Both).unwrap();
    carry_out(&chip, &[0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0x81]);
    let mut code = [0; 4];
    chip.read(0x86, &mut code);
    assert_eq!(u32::from_be_bytes(code), 0x101);
    assert_eq!(dword(&chip, 0x44), 1);
    drop((chip, emulator));
    program.join().unwrap();
}

#[test]
fn a_guest_that_keeps_no_order_starts_nothing() {
    let (control, program) = emulator(ANSWER);
    let reactor = Reactor::new();
    let chip = TpmCrb::new(TpmEmulator::over(control, None).unwrap(), &reactor).unwrap();
    chip.reset();
    chip.write(0x4c, &[1, 0, 0, 0]);
    chip.write(0x40, &[1, 0, 0, 0]);
    chip.write(0x4c, &[1, 0, 0, 0]);
    assert_eq!((dword(&chip, 0x4c), dword(&chip, 0x44)), (0, 0b10));
    // A length beyond the buffer, and one shorter than a header.
    for len in [[0xff; 4], [0; 4]] {
        chip.write(0x08, &[1]);
        chip.write(0x40, &[1, 0, 0, 0]);
        chip.write(0x82, &len);
        let state = chip.save();
        assert!((10..=0xf80).contains(&crb::length_of(&state)));
    }
    chip.write(0xffc, &[1; 8]);
    let mut beyond = [0xff; 8];
    chip.read(0xffc, &mut beyond);
    assert_eq!(beyond, [1, 1, 1, 1, 0, 0, 0, 0]);
    drop(chip);
    program.join().unwrap();
}

#[test]
fn a_tpm_1_2_is_refused() {
    let (control, program) = emulator(TPM12);
    let refused = TpmEmulator::over(control, None).err().unwrap();
    assert!(matches!(refused, TpmError::Version));
    program.join().unwrap();
}

/// Others on the reactor's thread have their turns, and a reset comes to its end.
#[test]
fn an_emulator_that_never_stops_talking_holds_nobody_up() {
    let (control, program) = emulator(ANSWER);
    let reactor = Reactor::new();
    let emulator = TpmEmulator::over(control, None).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let chip = TpmCrb::new(emulator.talking(ours), &reactor).unwrap();
    let flood = thread::spawn(move || {
        let mut theirs = theirs;
        while theirs.write_all(&[0x5a; 4096]).is_ok() {}
    });
    for _ in 0..20 {
        reactor.settle().unwrap();
        chip.reset();
    }
    drop(chip);
    flood.join().unwrap();
    program.join().unwrap();
}
