//! The ACPI fixed hardware of the ICH9 (ACPI 6.5, 4.8; the blocks' places are ICH9's): power
//! button, sleep, timer, general-purpose events, and the port that switches ACPI mode on.
//!
//! ```text
//!   power_button() ─► PM1_STS.PWRBTN ─┬─ & PM1_EN ─► SCI (level) ─► guest
//!   raise_gpe(n) ───► GPE0_STS.n ─────┴─ & GPE0_EN ─┘
//!   guest: PM1_CNT.SLP_EN with SLP_TYP of S5 ─► Notice::PowerOff
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use crate::bus::BusDevice;
use crate::irq::{IrqLine, drive};
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::state::{SavedState, StateError, Stateful};

/// Where the block is mapped (PMBASE).
pub const PM_BASE: u64 = 0x600;
/// Its length in ports.
pub const PM_LEN: u64 = 0x80;
/// PM1a event block, 4 bytes (for the FADT).
pub const PM1_EVENT: u64 = PM_BASE;
/// PM1a control block, 2 bytes.
pub const PM1_CONTROL: u64 = PM_BASE + CONTROL;
/// The timer, 4 bytes, 24 of whose bits count.
pub const PM_TIMER: u64 = PM_BASE + TIMER;
/// General-purpose events, [`GPE0_LEN`] bytes: half status, half enable.
pub const GPE0: u64 = PM_BASE + GPE_STATUS;
/// The length of the general-purpose event block.
pub const GPE0_LEN: u64 = 16;
/// What the `_S5` package has to name as SLP_TYP.
pub const SLEEP_TYPE_S5: u8 = 0;

/// The SMI command port: writing [`ACPI_ENABLE`] or [`ACPI_DISABLE`] switches the mode.
pub const APM_BASE: u64 = 0xb2;
/// The SMI ports' length: command and status.
pub const APM_LEN: u64 = 2;
/// For the FADT: the value that switches ACPI mode on.
pub const ACPI_ENABLE: u8 = 0x02;
/// For the FADT: the value that switches ACPI mode off.
pub const ACPI_DISABLE: u8 = 0x03;

const CONTROL: u64 = 0x04;
const TIMER: u64 = 0x08;
const GPE_STATUS: u64 = 0x20;
const GPE_ENABLE: u64 = GPE_STATUS + GPE0_LEN / 2;

const TIMER_HZ: u128 = 3_579_545;
const TIMER_MASK: u128 = 0x00ff_ffff;

const POWER_BUTTON: u16 = 1 << 8;
/// Status bits that can be set or at least cleared: timer, bus master, global, buttons, RTC, wake.
const STATUS_BITS: u16 = 0x8731;
const ENABLE_BITS: u16 = 0x0721;
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE: u16 = 7 << 10;

/// The registers, and what a snapshot keeps of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u64,
    gpe_enable: u64,
    apm: [u8; 2],
}

impl SavedState for AcpiPmState {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u32 = 1;
}

impl AcpiPmState {
    /// Firmware leaves the machine in ACPI mode.
    const POWER_ON: Self = Self {
        status: 0,
        enable: 0,
        control: SCI_ENABLE,
        gpe_status: 0,
        gpe_enable: 0,
        apm: [0; 2],
    };

    const fn interrupt(&self) -> bool {
        self.control & SCI_ENABLE != 0
            && (self.status & self.enable & ENABLE_BITS != 0
                || self.gpe_status & self.gpe_enable != 0)
    }

    /// The block as bytes, without the timer.
    fn byte(&self, offset: u64) -> u8 {
        let part = |bytes: &[u8], at: u64| {
            usize::try_from(offset - at)
                .ok()
                .and_then(|index| bytes.get(index).copied())
                .unwrap_or(0)
        };
        match offset {
            0x00..=0x01 => part(&self.status.to_le_bytes(), 0),
            0x02..=0x03 => part(&self.enable.to_le_bytes(), 2),
            0x04..=0x05 => part(&self.control.to_le_bytes(), CONTROL),
            0x20..=0x27 => part(&self.gpe_status.to_le_bytes(), GPE_STATUS),
            0x28..=0x2f => part(&self.gpe_enable.to_le_bytes(), GPE_ENABLE),
            _ => 0,
        }
    }

    fn set_byte(&mut self, offset: u64, value: u8) {
        let wide = |at: u64| u64::from(value) << ((offset - at) * 8);
        let narrow = |at: u64| u16::from(value) << ((offset - at) * 8);
        let narrow_mask = |at: u64| 0xff_u16 << ((offset - at) * 8);
        match offset {
            0x00..=0x01 => self.status &= !(narrow(0) & STATUS_BITS),
            0x02..=0x03 => {
                self.enable = (self.enable & !narrow_mask(2)) | (narrow(2) & ENABLE_BITS);
            }
            0x04..=0x05 => {
                // SLP_EN is write-only.
                let kept = self.control & !narrow_mask(CONTROL);
                self.control = kept | (narrow(CONTROL) & !SLEEP_ENABLE);
            }
            0x20..=0x27 => self.gpe_status &= !wide(GPE_STATUS),
            0x28..=0x2f => {
                let mask = 0xff_u64 << ((offset - GPE_ENABLE) * 8);
                self.gpe_enable = (self.gpe_enable & !mask) | wide(GPE_ENABLE);
            }
            _ => {}
        }
    }
}

/// The power-management block.
pub struct AcpiPm {
    state: Mutex<AcpiPmState>,
    clock: Clock,
    sci: Arc<dyn IrqLine>,
    notices: NoticeSink,
}

impl AcpiPm {
    /// The block: `clock` (monotonic) drives the timer, `sci` is the line of the FADT's SCI_INT.
    #[must_use]
    pub fn new(clock: Clock, sci: Arc<dyn IrqLine>, notices: NoticeSink) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(AcpiPmState::POWER_ON),
            clock,
            sci,
            notices,
        })
    }

    /// Somebody presses the power button (`system_powerdown`).
    pub fn power_button(&self) {
        self.change(|state| state.status |= POWER_BUTTON);
    }

    /// Raises general-purpose event `number` (0 to 63).
    pub fn raise_gpe(&self, number: u8) {
        self.change(|state| state.gpe_status |= 1_u64.checked_shl(number.into()).unwrap_or(0));
    }

    fn change(&self, act: impl FnOnce(&mut AcpiPmState)) {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        drive(self.sci.as_ref(), || self.save().interrupt());
    }

    fn ticks(&self) -> [u8; 4] {
        let nanoseconds = self.clock.now().as_nanos();
        let ticks = (nanoseconds * TIMER_HZ / Duration::from_secs(1).as_nanos()) & TIMER_MASK;
        u32::try_from(ticks).unwrap_or(0).to_le_bytes()
    }
}

impl Stateful for AcpiPm {
    type State = AcpiPmState;

    fn save(&self) -> AcpiPmState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, state: AcpiPmState) -> Result<(), StateError> {
        self.change(|own| *own = state);
        Ok(())
    }
}

impl Lifecycle for AcpiPm {
    fn reset(&self) {
        self.change(|state| *state = AcpiPmState::POWER_ON);
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.save();
        let ticks = self.ticks();
        for (at, byte) in (offset..).zip(data) {
            *byte = at
                .checked_sub(TIMER)
                .and_then(|index| ticks.get(usize::try_from(index).ok()?).copied())
                .unwrap_or_else(|| state.byte(at));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.change(|state| {
            for (at, &value) in (offset..).zip(data) {
                state.set_byte(at, value);
            }
        });
        // SLP_EN is in the control register's second byte.
        let high = (CONTROL + 1).checked_sub(offset);
        let written = high.and_then(|index| data.get(usize::try_from(index).ok()?).copied());
        let Some(written) = written else { return };
        let control = u16::from(written) << 8;
        let kind = (control & SLEEP_TYPE) >> 10;
        if control & SLEEP_ENABLE != 0 && kind == u16::from(SLEEP_TYPE_S5) {
            self.notices.send(Notice::PowerOff);
        }
    }
}

/// The SMI command and status ports. There is no SMI: ACPI mode is switched right here.
pub struct ApmPorts(pub Arc<AcpiPm>);

impl BusDevice for ApmPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [command, status] = self.0.save().apm;
        for (at, byte) in (offset..).zip(data) {
            *byte = match at {
                0 => command,
                1 => status,
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.change(|state| {
            for (at, &value) in (offset..).zip(data) {
                match at {
                    0 => {
                        state.apm[0] = value;
                        match value {
                            ACPI_ENABLE => state.control |= SCI_ENABLE,
                            ACPI_DISABLE => state.control &= !SCI_ENABLE,
                            _ => {}
                        }
                    }
                    1 => state.apm[1] = value,
                    _ => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::pci::mock::{Level, notices};

    struct Bench {
        pm: Arc<AcpiPm>,
        sci: Arc<Level>,
        heard: Arc<Mutex<Vec<Notice>>>,
        micros: Arc<AtomicU64>,
    }

    fn bench() -> Bench {
        let sci = Arc::new(Level::default());
        let (sink, heard) = notices();
        let micros = Arc::new(AtomicU64::new(0));
        let now = Arc::clone(&micros);
        let clock = Clock::new(move || Duration::from_micros(now.load(Ordering::Relaxed)));
        let pm = AcpiPm::new(clock, Arc::clone(&sci) as Arc<dyn IrqLine>, sink);
        Bench {
            pm,
            sci,
            heard,
            micros,
        }
    }

    fn read16(pm: &AcpiPm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let Bench { pm, sci, .. } = bench();
        pm.power_button();
        assert!(!sci.high(), "nobody has enabled it");
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(sci.high());
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!sci.high());
        assert_eq!(read16(&pm, 0), 0);
    }

    #[test]
    fn sleep_type_5_powers_off_and_others_do_not() {
        let Bench { pm, heard, .. } = bench();
        pm.write(
            CONTROL,
            &(SLEEP_ENABLE | 1 << 10 | SCI_ENABLE).to_le_bytes(),
        );
        assert!(heard.lock().unwrap().is_empty());
        let off = SLEEP_ENABLE | u16::from(SLEEP_TYPE_S5) << 10 | SCI_ENABLE;
        pm.write(CONTROL, &off.to_le_bytes());
        assert_eq!(*heard.lock().unwrap(), [Notice::PowerOff]);
        assert_eq!(read16(&pm, CONTROL) & SLEEP_ENABLE, 0);
    }

    #[test]
    fn the_timer_counts_24_bits_at_its_frequency() {
        let Bench { pm, micros, .. } = bench();
        let ticks = || {
            let mut data = [0; 4];
            pm.read(TIMER, &mut data);
            u32::from_le_bytes(data)
        };
        micros.store(1_000_000, Ordering::Relaxed);
        assert_eq!(ticks(), 3_579_545);
        micros.store(5_000_000, Ordering::Relaxed);
        assert_eq!(ticks(), 5 * 3_579_545 - (1 << 24));
    }

    #[test]
    fn general_purpose_events_need_their_enable_bit() {
        let Bench { pm, sci, .. } = bench();
        pm.raise_gpe(9);
        assert!(!sci.high());
        pm.write(GPE_ENABLE + 1, &[2]);
        assert!(sci.high());
        pm.write(GPE_STATUS + 1, &[2]);
        assert!(!sci.high());
    }

    #[test]
    fn acpi_mode_is_switched_by_the_smi_port_and_state_survives_a_snapshot() {
        let Bench { pm, sci, .. } = bench();
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        let port = ApmPorts(Arc::clone(&pm));
        port.write(0, &[ACPI_DISABLE]);
        pm.power_button();
        assert!(!sci.high());
        let text = serde_json::to_string(&pm.save()).unwrap();
        pm.reset();
        pm.load(serde_json::from_str(&text).unwrap()).unwrap();
        port.write(0, &[ACPI_ENABLE]);
        assert!(sci.high());
    }

    proptest! {
        #[test]
        fn no_access_breaks_it(
            accesses in prop::collection::vec(
                (0u64..PM_LEN, prop::collection::vec(any::<u8>(), 1..9)), 0..40),
        ) {
            let Bench { pm, .. } = bench();
            for (offset, data) in accesses {
                pm.write(offset, &data);
                let mut back = data;
                pm.read(offset, &mut back);
            }
        }
    }
}
