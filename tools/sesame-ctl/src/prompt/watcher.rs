//! What happens while the operator thinks.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustyline::ExternalPrinter;

use super::{Desk, Shared};
use crate::failure::Failure;
use crate::output;
use crate::session::Address;

/// How long to wait before looking for a VM that is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Starts the thread. It ends with the program, or when the terminal is gone.
pub(super) fn start(
    address: Address,
    desk: Shared,
    mut printer: impl ExternalPrinter + Send + 'static,
) {
    let watch = move || {
        let mut gone = false;
        loop {
            let lines = match socket(&desk) {
                Some(socket) => news(&desk, &socket),
                None => look(&address, &desk, &mut gone),
            };
            // The desk is free while this waits for the editor.
            for line in lines {
                if printer.print(format!("{line}\n")).is_err() {
                    return;
                }
            }
        }
    };
    // Without it events are only not shown.
    let _ = thread::Builder::new()
        .name("watcher".to_owned())
        .spawn(watch);
}

fn socket(desk: &Shared) -> Option<OwnedFd> {
    let mut desk = desk.take();
    let client = desk.session.as_mut()?.client();
    client.as_fd().try_clone_to_owned().ok()
}

/// Waits until something comes, and returns lines to show.
fn news(desk: &Shared, socket: &OwnedFd) -> Vec<String> {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    // The session may be another one by then.
    let _ = poll(&mut ready, PollTimeout::from(500_u16));
    let mut desk = desk.take();
    let Desk {
        session, console, ..
    } = &mut *desk;
    let Some(connected) = session else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    match connected.events() {
        Ok(events) => {
            for event in events {
                if let Err(failure) = console.heard(&event) {
                    lines.push(failure.line());
                }
                lines.push(format!("* {}", output::told(&event)));
            }
        }
        Err(_) => *session = None,
    }
    lines
}

/// Says that the VM is gone, once, and connects when it is back.
fn look(address: &Address, desk: &Shared, gone: &mut bool) -> Vec<String> {
    if !*gone {
        *gone = true;
        let socket = address.socket.display();
        return vec![format!("* the VM is gone; waiting for one at {socket}")];
    }
    thread::sleep(LOOK_AGAIN);
    let connected = address.connect().and_then(|mut session| {
        let schema = session.schema()?;
        Ok::<_, Failure>((session, schema))
    });
    let Ok((session, schema)) = connected else {
        return Vec::new();
    };
    *gone = false;
    let line = format!("* connected again, to {}", session.version());
    let mut desk = desk.take();
    desk.session = Some(session);
    desk.schema = schema;
    vec![line]
}
