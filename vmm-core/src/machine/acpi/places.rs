//! What places for vCPUs and for memory modules have in common in AML: registers at ports, methods
//! that have them for themselves, and how a guest hears of what comes and goes (ACPI 6.5, 6.3).
//!
//! ```text
//!   \_GPE._Enn ─► SCAN ─ a place with an event? ─► NOTI ─► Notify (its device, 1 or 3)
//!   device._STA ─► STAT    device._EJ0 ─► EJCT    device._OST ─► TELL      one at a time: LOCK
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Arg, Else, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    IO, If, Local, Method, MethodCall, Mutex, Notify, ONE, OpRegion, OpRegionSpace, Path, Release,
    Return, Scope, Store, ZERO,
};

use super::dsdt::{PRESENT, Raw};

/// `Notify`: look whether the device is there.
const DEVICE_CHECK: u8 = 1;
/// `Notify`: the device is to be ejected.
const EJECT_REQUEST: u8 = 3;
/// Wait for a mutex for ever.
const FOR_EVER: u16 = 0xffff;
/// The flags of a place, a byte of its registers.
const FLAG_BITS: usize = 8;

fn to_raw(part: &dyn Aml) -> Raw {
    let mut aml = Vec::new();
    part.to_aml_bytes(&mut aml);
    Raw(aml)
}

fn low(port: u64) -> u16 {
    u16::try_from(port).unwrap_or(u16::MAX)
}

/// What is called when something comes or is to go, inside `\_GPE`: the method `scan`.
pub(super) fn event(gpe: u8, scan: &str) -> Raw {
    let scan = MethodCall::new(Path::new(scan), Vec::new());
    let name = format!("_E{gpe:02X}");
    let method = Method::new(Path::new(&name), 0, false, vec![&scan]);
    to_raw(&Scope::new("\\_GPE".into(), vec![&method]))
}

/// The registers' ports, as a resource that nobody else gets.
pub(super) fn ports(base: u64, len: u64) -> IO {
    IO::new(low(base), low(base), 1, u8::try_from(len).unwrap_or(0))
}

/// The registers, and who has them.
pub(super) fn registers(base: u64, len: u64, aml: &mut Vec<u8>) {
    let (base, len) = (low(base), low(len));
    Mutex::new("LOCK".into(), 0).to_aml_bytes(aml);
    OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &base, &len).to_aml_bytes(aml);
}

/// Registers of four bytes and more.
pub(super) fn words(entries: Vec<FieldEntry>) -> Raw {
    let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
    let update = FieldUpdateRule::Preserve;
    to_raw(&Field::new("REGS".into(), access, lock, update, entries))
}

/// The flags of the selected place, `at` this bit of the registers, and what lies behind them.
pub(super) fn flags(at: usize, behind: Option<FieldEntry>) -> Raw {
    let mut entries = vec![
        FieldEntry::Reserved(at),
        FieldEntry::Named(*b"ENAB", 1),
        FieldEntry::Named(*b"INSE", 1),
        FieldEntry::Named(*b"REMO", 1),
        FieldEntry::Named(*b"EJEC", 1),
    ];
    if let Some(behind) = behind {
        entries.extend([FieldEntry::Reserved(FLAG_BITS - 4), behind]);
    }
    let (access, lock) = (FieldAccessType::Byte, FieldLockRule::NoLock);
    // Writing a bit must not write the others: 1 clears or ejects.
    let update = FieldUpdateRule::WriteAsZeroes;
    to_raw(&Field::new("REGS".into(), access, lock, update, entries))
}

/// A method that has the registers for itself; with arguments it is about the place Arg0.
pub(super) fn locked(name: &str, args: u8, body: &[&dyn Aml], returns: Option<&dyn Aml>) -> Raw {
    let (acquire, release) = (
        Acquire::new("LOCK".into(), FOR_EVER),
        Release::new("LOCK".into()),
    );
    let select = Path::new("SELE");
    let choose = Store::new(&select, &Arg(0));
    let mut steps: Vec<&dyn Aml> = vec![&acquire];
    if args > 0 {
        steps.push(&choose);
    }
    steps.extend_from_slice(body);
    steps.push(&release);
    let value = returns.map(Return::new);
    if let Some(value) = &value {
        steps.push(value);
    }
    to_raw(&Method::new(Path::new(name), args, true, steps))
}

/// `STAT`: whether something is there.
pub(super) fn stat() -> Raw {
    let (enabled, there) = (Path::new("ENAB"), Store::new(&Local(0), &PRESENT));
    locked(
        "STAT",
        1,
        &[
            &Store::new(&Local(0), &ZERO),
            &If::new(&Equal::new(&enabled, &ONE), vec![&there]),
        ],
        Some(&Local(0)),
    )
}

/// `EJCT`: what is there goes.
pub(super) fn ejct() -> Raw {
    let eject = Path::new("EJEC");
    locked("EJCT", 1, &[&Store::new(&eject, &ONE)], None)
}

/// `NOTI`: notifies the device of the place Arg0 of Arg1.
pub(super) fn noti(names: impl Iterator<Item = String>) -> Raw {
    let mut cases = Vec::new();
    for (place, name) in names.enumerate() {
        If::new(
            &Equal::new(&Arg(0), &place),
            vec![&Notify::new(&Path::new(&name), &Arg(1))],
        )
        .to_aml_bytes(&mut cases);
    }
    to_raw(&Method::new("NOTI".into(), 2, true, vec![&Raw(cases)]))
}

/// In `SCAN`: notifies of what is on its way at the selected place, whose number is `place`, and
/// clears that; does `then` where there was something.
pub(super) fn notify_of_event(place: &dyn Aml, then: Option<&dyn Aml>) -> Raw {
    let (inserting, removing) = (Path::new("INSE"), Path::new("REMO"));
    let noti = |what| MethodCall::new(Path::new("NOTI"), vec![place, what]);
    let (comes, goes) = (noti(&DEVICE_CHECK), noti(&EJECT_REQUEST));
    let (came, went) = (Store::new(&inserting, &ONE), Store::new(&removing, &ONE));
    let mut coming: Vec<&dyn Aml> = vec![&comes, &came];
    coming.extend(then);
    let mut going: Vec<&dyn Aml> = vec![&goes, &went];
    going.extend(then);
    let mut aml = Vec::new();
    If::new(&Equal::new(&inserting, &ONE), coming).to_aml_bytes(&mut aml);
    Else::new(vec![&If::new(&Equal::new(&removing, &ONE), going)]).to_aml_bytes(&mut aml);
    Raw(aml)
}

/// A device's method `name`: what `method` says of its place.
pub(super) fn answer(name: &str, method: &str, place: usize) -> Raw {
    let value = MethodCall::new(Path::new(method), vec![&place]);
    to_raw(&Method::new(
        Path::new(name),
        0,
        true,
        vec![&Return::new(&value)],
    ))
}

/// A device's `_EJ0`.
pub(super) fn eject(place: usize) -> Raw {
    let eject = MethodCall::new("EJCT".into(), vec![&place]);
    to_raw(&Method::new("_EJ0".into(), 1, true, vec![&eject]))
}

/// A device's `_OST`: what became of an event.
pub(super) fn outcome(place: usize) -> Raw {
    let (event, status) = (Arg(0), Arg(1));
    let tell = MethodCall::new("TELL".into(), vec![&place, &event, &status]);
    to_raw(&Method::new("_OST".into(), 3, true, vec![&tell]))
}
