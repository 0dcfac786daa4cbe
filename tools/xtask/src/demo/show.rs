//! How the demo looks: one line per thing said, with what it was and which way it went.
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use serde_json::Value;
use tests::qmp::{Client, Direction};

/// The stage.
#[derive(Clone)]
pub(crate) struct Show {
    colour: bool,
    start: Instant,
    /// What the next message carries as an fd.
    hands: Rc<RefCell<Option<String>>>,
}

impl Show {
    pub(crate) fn new(colour: bool) -> Self {
        Self {
            colour,
            start: Instant::now(),
            hands: Rc::default(),
        }
    }

    /// A heading: what happens next.
    pub(crate) fn chapter(&self, text: &str) {
        println!();
        self.line(
            "1",
            &format!("{:6.2} s  {text}", self.start.elapsed().as_secs_f64()),
        );
    }

    /// A fact.
    pub(crate) fn note(&self, text: &str) {
        self.line("0", &format!("          {text}"));
    }

    /// Names the file that goes along with the next message.
    pub(crate) fn hand(&self, what: &str) {
        *self.hands.borrow_mut() = Some(what.to_owned());
    }

    /// Shows everything that goes over a monitor.
    pub(crate) fn follow(&self, client: &mut Client) {
        let show = self.clone();
        client.watch(move |direction, message, _| show.message(direction, message));
    }

    fn message(&self, direction: Direction, message: &Value) {
        match direction {
            Direction::Sent => {
                self.line("36", &format!("   → {message}"));
                if let Some(what) = self.hands.borrow_mut().take() {
                    self.line("35", &format!("     ⇢ with an fd: {what}"));
                }
            }
            Direction::Received if message["event"].is_string() => {
                self.line("33", &format!("   ← {message}"));
            }
            Direction::Received => self.line("32", &format!("   ← {message}")),
        }
    }

    fn line(&self, code: &str, text: &str) {
        if self.colour {
            println!("\x1b[{code}m{text}\x1b[0m");
        } else {
            println!("{text}");
        }
    }
}
