use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

struct Tell<T>(Mutex<mpsc::Sender<T>>, fn(Readiness) -> T);

impl<T: Send> Ready for Tell<T> {
    fn ready(&self, readiness: Readiness) {
        let told = (self.1)(readiness);
        self.0.lock().expect("no panic").send(told).ok();
    }
}

fn tell() -> (Arc<dyn Ready>, mpsc::Receiver<Readiness>) {
    let (send, receive) = mpsc::channel();
    (
        Arc::new(Tell(Mutex::new(send), |readiness| readiness)),
        receive,
    )
}

#[test]
fn the_thread_starts_with_the_first_registration_and_ends_with_the_last_handle() {
    let reactor = Reactor::new();
    assert!(!reactor.is_started());
    let (handler, _told) = tell();
    let timer = reactor.timer(handler).unwrap();
    assert!(reactor.is_started());
    drop(reactor);
    // Without a thread the timer's drop has nobody to wait for.
    timer.arm(Duration::ZERO);
    drop(timer);
}

#[test]
fn a_readable_descriptor_reaches_its_handler_and_a_rearm_repeats_it() {
    let reactor = Reactor::new();
    let (mut here, there) = UnixStream::pair().unwrap();
    let (handler, told) = tell();
    let registration = reactor
        .register(Arc::new(there), Interest::READABLE, handler)
        .unwrap();
    here.write_all(b"x").unwrap();
    assert_eq!(told.recv().unwrap(), Readiness::READ);
    registration.rearm().unwrap();
    assert_eq!(told.recv().unwrap(), Readiness::READ);
    drop(here);
    assert!(told.recv().unwrap().contains(Readiness::CLOSED));
}

#[test]
fn timers_and_jobs_run_on_the_thread() {
    let reactor = Reactor::new();
    let (handler, told) = tell();
    let timer = reactor.timer(handler).unwrap();
    timer.arm(Duration::from_millis(1));
    assert_eq!(told.recv().unwrap(), Readiness::TIMER);
    let (send, name) = mpsc::channel();
    reactor
        .run(move || {
            send.send(thread::current().name().map(str::to_owned))
                .unwrap()
        })
        .unwrap();
    assert_eq!(name.recv().unwrap().as_deref(), Some("dev-io"));
}

#[test]
fn settling_waits_for_what_runs() {
    let reactor = Reactor::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let (entered, has_entered) = mpsc::channel();
    let counted = Arc::clone(&ended);
    reactor
        .run(move || {
            entered.send(()).unwrap();
            thread::sleep(Duration::from_millis(20));
            counted.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    has_entered.recv().unwrap();
    reactor.settle().unwrap();
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[test]
fn a_regular_file_is_refused() {
    let reactor = Reactor::new();
    let (handler, _told) = tell();
    let file = tempfile::tempfile().unwrap();
    let error = reactor
        .register(Arc::new(file), Interest::READABLE, handler)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

/// Stays in its handler until told to leave, and counts what it began and ended.
struct Slow {
    entered: Mutex<mpsc::Sender<()>>,
    leave: Mutex<mpsc::Receiver<()>>,
    ended: AtomicUsize,
}

impl Ready for Slow {
    fn ready(&self, _readiness: Readiness) {
        self.entered.lock().expect("no panic").send(()).ok();
        self.leave.lock().expect("no panic").recv().ok();
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_dropped_registration_waits_for_its_running_handler_and_is_never_called_again() {
    let reactor = Reactor::new();
    let (mut here, there) = UnixStream::pair().unwrap();
    let (entered, has_entered) = mpsc::channel();
    let (let_go, leave) = mpsc::channel();
    let slow = Arc::new(Slow {
        entered: Mutex::new(entered),
        leave: Mutex::new(leave),
        ended: AtomicUsize::new(0),
    });
    let handler: Arc<dyn Ready> = Arc::clone(&slow) as _;
    let registration = reactor
        .register(Arc::new(there), Interest::READABLE, handler)
        .unwrap();
    here.write_all(b"x").unwrap();
    has_entered.recv().unwrap();
    let watcher = Arc::clone(&slow);
    let dropper = thread::spawn(move || {
        drop(registration);
        watcher.ended.load(Ordering::SeqCst)
    });
    let_go.send(()).unwrap();
    assert_eq!(dropper.join().unwrap(), 1, "the drop returned too early");
    here.write_all(b"y").unwrap_err();
    // A round through the thread: an event read before the drop would have been handled.
    let (send, round) = mpsc::channel();
    reactor.run(move || send.send(()).unwrap()).unwrap();
    round.recv().unwrap();
    assert!(has_entered.try_recv().is_err());
}

/// Drops its own registration from inside its handler.
#[derive(Default)]
struct Suicidal(Mutex<Option<Registration>>, Mutex<Option<mpsc::Sender<()>>>);

impl Ready for Suicidal {
    fn ready(&self, _readiness: Readiness) {
        let own = self.0.lock().expect("no panic").take();
        drop(own);
        if let Some(done) = self.1.lock().expect("no panic").take() {
            done.send(()).ok();
        }
    }
}

#[test]
fn a_handler_may_drop_its_own_registration() {
    let reactor = Reactor::new();
    let (mut here, there) = UnixStream::pair().unwrap();
    let (send, done) = mpsc::channel();
    let handler = Arc::new(Suicidal::default());
    *handler.1.lock().unwrap() = Some(send);
    let registration = reactor
        .register(
            Arc::new(there),
            Interest::READABLE,
            Arc::clone(&handler) as _,
        )
        .unwrap();
    *handler.0.lock().unwrap() = Some(registration);
    here.write_all(b"x").unwrap();
    done.recv().unwrap();
}
