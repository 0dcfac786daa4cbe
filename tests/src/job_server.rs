//! A QMP server that has a job, for clients that wait for one.
//!
//! It moves the job only when the test says so, so that a test sees each state for as long as it
//! looks. It knows the protocol, and of the schema what a client needs to start the job.
//!
//! ```text
//!   client ─► blockdev-create ─► job: running 0 of 100 ◄── test: set("running", 42)
//!      ▲                              │
//!      └── JOB_STATUS_CHANGE ─────────┤
//!      └── query-jobs ◄───────────────┘
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The server. Its thread ends with the test.
#[derive(Debug)]
pub struct JobServer {
    /// Where it listens.
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    _folder: TempDir,
}

#[derive(Debug, Default)]
struct State {
    job: Option<Value>,
    clients: Vec<UnixStream>,
}

impl JobServer {
    /// A server without a job yet.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("jobs.sock");
        let listener = UnixListener::bind(&socket)?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                // A client that goes has nothing to be told.
                thread::spawn(move || serve(&state, client).ok());
            }
        });
        Ok(Self {
            socket,
            state,
            _folder: folder,
        })
    }

    /// Moves the job. A change of its status is an event.
    pub fn set(&self, status: &str, progress: i64) {
        let mut state = lock(&self.state);
        let mut event = None;
        if let Some(job) = &mut state.job {
            job["current-progress"] = progress.into();
            if job["status"] != status {
                job["status"] = status.into();
                event = Some(json!({"id": job["id"], "status": status}));
            }
        }
        if let Some(data) = event {
            state.tell("JOB_STATUS_CHANGE", &data);
        }
    }

    /// Ends the job without success.
    pub fn fail(&self, why: &str) {
        if let Some(job) = &mut lock(&self.state).job {
            job["error"] = why.into();
        }
        self.set("aborting", 50);
        self.set("concluded", 50);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Tells everybody who is still there.
    fn tell(&mut self, name: &str, data: &Value) {
        let timestamp = json!({"seconds": 1, "microseconds": 0});
        let event = json!({"timestamp": timestamp, "event": name, "data": data});
        self.clients
            .retain_mut(|client| writeln!(client, "{event}").is_ok());
    }

    fn answer(&mut self, request: &Value) -> Value {
        let reply = match request["execute"].as_str() {
            Some("qmp_capabilities") => json!({}),
            Some("query-qmp-schema") => schema(),
            Some("query-jobs") => Value::Array(self.job.clone().into_iter().collect()),
            Some("blockdev-create") => {
                let id = &request["arguments"]["job-id"];
                self.job = Some(json!({"id": id, "type": "create", "status": "running",
                                       "current-progress": 0, "total-progress": 100}));
                self.tell("JOB_STATUS_CHANGE", &json!({"id": id, "status": "running"}));
                json!({})
            }
            _ => {
                let error = json!({"class": "CommandNotFound", "desc": "no such command"});
                return json!({"error": error, "id": request["id"]});
            }
        };
        json!({"return": reply, "id": request["id"]})
    }
}

fn serve(state: &Mutex<State>, mut client: UnixStream) -> Result<()> {
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "jobs"});
    writeln!(
        client,
        "{}",
        json!({"QMP": {"version": version, "capabilities": []}})
    )?;
    let lines = BufReader::new(client.try_clone()?).lines();
    let mut is_known = false;
    for line in lines {
        let request: Value = serde_json::from_str(&line?)?;
        let mut state = lock(state);
        let answer = state.answer(&request);
        writeln!(client, "{answer}")?;
        if !is_known {
            // Events begin behind the negotiation.
            state.clients.push(client.try_clone()?);
            is_known = true;
        }
    }
    Ok(())
}

/// The introspection of what it has.
fn schema() -> Value {
    let command = |name, arguments, reply| json!({"name": name, "meta-type": "command", "arg-type": arguments, "ret-type": reply});
    let member = |name, kind| json!({"name": name, "type": kind});
    json!([
        command("query-jobs", "none", "jobs"),
        command("blockdev-create", "create", "none"),
        {"name": "create", "meta-type": "object",
         "members": [member("job-id", "str"), member("options", "any")]},
        {"name": "none", "meta-type": "object", "members": []},
        {"name": "jobs", "meta-type": "array", "element-type": "any"},
        {"name": "str", "meta-type": "builtin", "json-type": "string"},
        {"name": "any", "meta-type": "builtin", "json-type": "value"},
    ])
}
