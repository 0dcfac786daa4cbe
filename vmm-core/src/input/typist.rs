//! Keys typed one after the other, on the reactor's thread or by a tester's clock: `send-key`.
//!
//! ```text
//!   type_keys ─► strokes that wait ─► one ─► timer (hold time) ─► the next ─► ..
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use devices::reactor::{Reactor, Readiness, Ready};
use devices::virtio::input::{InputEvent, VirtioInput};
use devices::vm_clock::{VmClock, VmTimer};

/// How many strokes wait at most.
const MOST: usize = 1024;

/// Why keys are not typed.
#[derive(Debug, thiserror::Error)]
pub enum TypeError {
    /// Too many strokes would wait.
    #[error("{waiting} keys wait to be typed already, and there is room for {MOST}")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The thread that types cannot start.
    #[error("keys cannot be typed")]
    Thread(#[source] io::Error),
}

/// One key, pressed or let go.
struct Stroke {
    keyboard: Weak<VirtioInput>,
    code: u16,
    down: bool,
    /// How long nothing follows.
    hold: Duration,
}

/// Types keys.
pub struct Typist {
    waiting: Mutex<Waiting>,
    timer: OnceLock<VmTimer>,
}

#[derive(Default)]
struct Waiting {
    strokes: VecDeque<Stroke>,
    /// Whether the timer runs.
    is_held: bool,
}

impl Typist {
    /// A typist with nothing to do.
    ///
    /// # Errors
    /// The reactor's thread cannot start.
    pub fn new(clock: &VmClock, reactor: &Reactor) -> Result<Arc<Self>, TypeError> {
        let typist = Arc::new(Self {
            waiting: Mutex::default(),
            timer: OnceLock::new(),
        });
        let handler = Arc::new(Again(Arc::downgrade(&typist)));
        let timer = clock.timer(reactor, handler).map_err(TypeError::Thread)?;
        typist.timer.get_or_init(|| timer);
        Ok(typist)
    }

    /// Presses the keys one after the other and lets them go in reverse order, behind all that
    /// waits already.
    ///
    /// # Errors
    /// Too much waits.
    pub fn type_keys(
        &self,
        keyboard: &Arc<VirtioInput>,
        codes: &[u16],
        hold: Duration,
    ) -> Result<(), TypeError> {
        let stroke = |down| {
            move |code: &u16| Stroke {
                keyboard: Arc::downgrade(keyboard),
                code: *code,
                down,
                hold,
            }
        };
        let mut waiting = self.waiting();
        if waiting.strokes.len() + 2 * codes.len() > MOST {
            return Err(TypeError::Busy {
                waiting: waiting.strokes.len(),
            });
        }
        waiting.strokes.extend(codes.iter().map(stroke(true)));
        waiting
            .strokes
            .extend(codes.iter().rev().map(stroke(false)));
        let begin = !std::mem::replace(&mut waiting.is_held, true);
        drop(waiting);
        if begin {
            self.strike();
        }
        Ok(())
    }

    /// Makes the next stroke and waits as long as it says.
    fn strike(&self) {
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.strokes.pop_front();
                waiting.is_held = next.is_some();
                next
            };
            let Some(stroke) = next else { return };
            // A keyboard that is gone holds up nobody.
            let Some(keyboard) = stroke.keyboard.upgrade() else {
                continue;
            };
            keyboard.report(&[InputEvent::key(stroke.code, stroke.down)]);
            if let Some(timer) = self.timer.get() {
                timer.arm(stroke.hold);
            }
            return;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hold time is over.
struct Again(Weak<Typist>);

impl Ready for Again {
    fn ready(&self, _readiness: Readiness) {
        if let Some(typist) = self.0.upgrade() {
            typist.strike();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use devices::virtio::input::InputModel;
    use devices::vm_clock::TestedClock;

    use super::*;

    const HOLD: Duration = Duration::from_millis(100);

    fn typist() -> (Arc<TestedClock>, Arc<Typist>, Arc<VirtioInput>) {
        let (clock, reactor) = (TestedClock::new(), Reactor::new());
        let typist = Typist::new(&VmClock::Tested(Arc::clone(&clock)), &reactor).unwrap();
        let keyboard = VirtioInput::new(InputModel::Keyboard, String::new(), reactor);
        (clock, typist, keyboard)
    }

    fn strokes(typist: &Typist) -> Vec<(u16, bool)> {
        let waiting = typist.waiting();
        let strokes = waiting.strokes.iter();
        strokes.map(|stroke| (stroke.code, stroke.down)).collect()
    }

    #[test]
    fn keys_are_pressed_in_order_and_let_go_in_reverse() {
        let (clock, typist, keyboard) = typist();
        typist.type_keys(&keyboard, &[29, 56], HOLD).unwrap();
        let rest = [(56, true), (56, false), (29, false)];
        assert_eq!(strokes(&typist), rest);
        clock.advance(HOLD);
        assert_eq!(strokes(&typist), rest[1..]);
        // What is typed now comes behind.
        typist.type_keys(&keyboard, &[30], HOLD).unwrap();
        clock.advance(HOLD * 3);
        assert_eq!(strokes(&typist), [(30, true), (30, false)]);
        clock.advance(HOLD * 6);
        assert_eq!(strokes(&typist), []);
        assert!(!typist.waiting().is_held);
    }

    #[test]
    fn a_keyboard_that_is_gone_holds_up_nobody() {
        let (clock, typist, keyboard) = typist();
        typist.type_keys(&keyboard, &[1, 2, 3], HOLD).unwrap();
        drop(keyboard);
        clock.advance(HOLD);
        assert_eq!(strokes(&typist), []);
    }

    #[test]
    fn more_keys_than_there_is_room_for_are_refused() {
        let (_clock, typist, keyboard) = typist();
        let error = typist.type_keys(&keyboard, &[1; 513], HOLD).unwrap_err();
        assert!(matches!(error, TypeError::Busy { waiting: 0 }));
        typist.type_keys(&keyboard, &[1; 512], HOLD).unwrap();
        let error = typist.type_keys(&keyboard, &[1], HOLD).unwrap_err();
        assert!(matches!(error, TypeError::Busy { waiting: 1023 }));
    }
}
