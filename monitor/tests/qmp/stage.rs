//! A server with a tiny main loop, and clients that talk to it over real sockets.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdset::FdRegistry;
use monitor::{Call, Endpoint, FdScope, MonitorSpec, Phase, Server, ServerSpec, Style, Version};
use qapi_schema::{Event, MonitorId, Reply};
use serde_json::Value;

/// The first line of every session.
pub(crate) const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 0, \"major\": 10}, \
     \"package\": \"sesame-0.1.0\"}, \"capabilities\": [\"oob\"]}}";

/// A server without a main loop: the test itself takes the requests.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) registry: Arc<FdRegistry>,
    woken: Receiver<()>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let registry = Arc::new(FdRegistry::new());
        let (wake, woken) = channel();
        let wake = Mutex::new(wake);
        let server = Server::new(ServerSpec {
            registry: Arc::clone(&registry),
            version: Version {
                major: 10,
                minor: 0,
                micro: 0,
                package: "sesame-0.1.0".into(),
            },
            phase: Phase::Ready,
            wake_main: Box::new(move || {
                let wake = wake.lock().expect("nobody panics");
                let _ = wake.send(());
            }),
            serve_now: Box::new(Some),
            out_of_band: Box::new(drop),
            quit: Box::new(|_| ()),
        });
        Self {
            server,
            registry,
            woken,
        }
    }

    /// The next request for somebody other than the server; serves the builtin ones.
    pub(crate) fn next(&self) -> Call {
        loop {
            while let Some(call) = self.server.next_request() {
                if let Some(call) = self.server.serve_builtin(call) {
                    return call;
                }
            }
            self.woken
                .recv_timeout(Duration::from_secs(20))
                .expect("a request");
        }
    }

    /// Waits until the server wants the main loop to look around.
    pub(crate) fn wait_for_a_wake(&self) {
        self.woken
            .recv_timeout(Duration::from_secs(20))
            .expect("a wake");
    }

    /// A client of a new monitor.
    pub(crate) fn client(&self, id: u32, style: Style) -> Client {
        self.client_with(id, style, FdScope::Monitor)
    }

    /// A client of a new monitor, whose fds stay as long as `fd_scope` says.
    pub(crate) fn client_with(&self, id: u32, style: Style, fd_scope: FdScope) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let spec = MonitorSpec {
            style,
            fd_scope,
            ..MonitorSpec::new(MonitorId(id), Endpoint::Stream(ours.into()))
        };
        self.server.add_monitor(spec).expect("a monitor");
        Client::new(theirs)
    }

    /// A client of a new monitor that is as `change` makes it.
    pub(crate) fn client_of(&self, id: u32, change: impl FnOnce(&mut MonitorSpec)) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut spec = MonitorSpec::new(MonitorId(id), Endpoint::Stream(ours.into()));
        change(&mut spec);
        self.server.add_monitor(spec).expect("a monitor");
        Client::new(theirs)
    }

    /// Runs a main loop on a thread of its own, for as long as the process lives. `query-status`
    /// answers, `stop` sends an event first.
    pub(crate) fn run(self) -> Server {
        let server = self.server.clone();
        std::thread::spawn(move || {
            let server = self.server.clone();
            loop {
                while let Some(call) = server.next_request() {
                    if let Some(call) = server.serve_builtin(call) {
                        play(&server, call);
                    }
                }
                if self.woken.recv().is_err() {
                    return;
                }
            }
        });
        server
    }
}

fn play(server: &Server, call: Call) {
    if call.command.name == "stop" {
        server.events().emit(Event::Stop);
    }
    call.finish(Ok(Reply::constant("{\"played\": true}")));
}

/// One end of a session.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let timeout = Some(Duration::from_secs(20));
        socket.set_read_timeout(timeout).expect("a timeout");
        Self {
            socket,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).expect("sent");
    }

    pub(crate) fn send_with(&mut self, bytes: &str, fds: &[BorrowedFd<'_>]) {
        let sent = fdset::scm::send_with_fds(&self.socket, bytes.as_bytes(), fds).expect("sent");
        assert_eq!(sent, bytes.len());
    }

    /// The next line without its CR LF; `None` at the end of the session.
    pub(crate) fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let rest = self.buffer.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(end);
                assert!(line.is_ascii());
                return Some(String::from_utf8(line).expect("ASCII"));
            }
            let mut chunk = [0; 65536];
            match self.socket.read(&mut chunk).expect("bytes in time") {
                0 => {
                    assert!(self.buffer.is_empty(), "half a line at the end");
                    return None;
                }
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Sends, and reads one line.
    pub(crate) fn ask(&mut self, bytes: impl AsRef<[u8]>) -> String {
        self.send(bytes);
        self.line().expect("an answer")
    }

    /// Sends, and reads one error: its class and text.
    pub(crate) fn ask_in_vain(&mut self, bytes: impl AsRef<[u8]>) -> (String, String) {
        error(&self.ask(bytes))
    }

    /// Reads the greeting and negotiates.
    pub(crate) fn ready(mut self) -> Self {
        assert_eq!(self.line().as_deref(), Some(GREETING));
        assert_eq!(
            self.ask("{'execute': 'qmp_capabilities'}"),
            "{\"return\": {}}"
        );
        self
    }

    /// Reads the greeting and negotiates with `oob`.
    pub(crate) fn ready_with_oob(mut self) -> Self {
        assert_eq!(self.line().as_deref(), Some(GREETING));
        let request = "{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}";
        assert_eq!(self.ask(request), "{\"return\": {}}");
        self
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The class and text of an error line.
pub(crate) fn error(line: &str) -> (String, String) {
    let value: Value = serde_json::from_str(line).expect("JSON");
    let text = |name: &str| value["error"][name].as_str().unwrap_or(line).to_owned();
    (text("class"), text("desc"))
}
