//! The backends that devices and the machine name by id: memory, io-threads, entropy.
//!
//! An object is made by `object-add` or `-object`, claimed by whoever uses it, and removed by
//! `object-del` once nobody does.

use std::sync::Arc;

use block::{IoThread, Rings};
use devices::virtio::rng::{Builtin, Entropy, EntropyFile};
use fdset::{Access, Door, Request, Role};
use indexmap::IndexMap;
use monitor::TlsServer;
use qapi_schema::QmpError;
use serde_json::Value;

use crate::memory::{RamBackend, RamBackendSpec};
use crate::qom;
use crate::resolve::memory_device;
use crate::resolve::object::ObjectSpec;
use crate::secret;

/// What can change while an io-thread is at work. It waits in the kernel and never polls, so these
/// only keep what they are given.
const IOTHREAD_NUMBERS: [&str; 4] = ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"];

/// What an object is.
pub enum Backend {
    /// Guest memory, until the machine takes it.
    Memory {
        /// What it is.
        spec: RamBackendSpec,
        /// The memory.
        memory: Option<RamBackend>,
    },
    /// A thread with a ring.
    IoThread(IoThread),
    /// A source of random bytes.
    Entropy(Arc<dyn Entropy>),
    /// A secret, which nobody here asks for: only its name is kept.
    Secret,
    /// What monitors speak TLS with.
    TlsCreds(TlsServer),
    /// Limits that block nodes share; the block graph has them.
    ThrottleGroup,
}

/// One object.
pub struct Entry {
    /// What it is.
    pub backend: Backend,
    /// Who uses it: device ids, `machine`.
    users: Vec<String>,
    shown: qom::Object,
}

/// All objects, by id, in the order they were added.
#[derive(Default)]
pub struct Objects(IndexMap<String, Entry>);

impl Objects {
    /// Makes an object.
    ///
    /// # Errors
    /// The id is taken, or what it stands for cannot be had.
    pub fn add(
        &mut self,
        door: &Door,
        rings: &Rings,
        id: String,
        spec: ObjectSpec,
        shown: qom::Object,
    ) -> Result<(), QmpError> {
        if self.0.contains_key(&id) {
            return Err(QmpError::generic(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        let backend = build(door, rings, &id, spec)?;
        self.0.insert(
            id,
            Entry {
                backend,
                users: Vec::new(),
                shown,
            },
        );
        Ok(())
    }

    /// Removes an object that nobody uses.
    ///
    /// # Errors
    /// There is none of this id, or it is in use.
    pub fn remove(&mut self, id: &str) -> Result<(), QmpError> {
        let Some(entry) = self.0.get(id) else {
            return Err(QmpError::generic(format!("object '{id}' not found")));
        };
        if let Some(user) = entry.users.first() {
            return Err(QmpError::generic(format!(
                "object '{id}' is in use by '{user}', can not be deleted"
            )));
        }
        self.0.shift_remove(id);
        Ok(())
    }

    /// Notes that `user` uses the io-thread `id`, and hands it over.
    ///
    /// # Errors
    /// There is no io-thread of this id.
    pub fn claim_iothread(&mut self, id: &str, user: &str) -> Result<IoThread, QmpError> {
        self.claim(id, user, "iothread", |backend| match backend {
            Backend::IoThread(iothread) => Some(iothread.clone()),
            _ => None,
        })
    }

    /// Notes that `user` uses the source of random bytes `id`, and hands it over.
    ///
    /// # Errors
    /// There is no such source of this id.
    pub fn claim_entropy(&mut self, id: &str, user: &str) -> Result<Arc<dyn Entropy>, QmpError> {
        self.claim(
            id,
            user,
            "rng-random or rng-builtin",
            |backend| match backend {
                Backend::Entropy(entropy) => Some(Arc::clone(entropy)),
                _ => None,
            },
        )
    }

    /// Notes that `user` speaks TLS with the credentials `id`, and hands them over.
    ///
    /// # Errors
    /// There are none of this id.
    pub fn claim_tls(&mut self, id: &str, user: &str) -> Result<TlsServer, QmpError> {
        self.claim(id, user, "tls-creds-x509", |backend| match backend {
            Backend::TlsCreds(server) => Some(server.clone()),
            _ => None,
        })
    }

    /// Hands the memory backend `id` over to `user`, for good.
    ///
    /// # Errors
    /// There is no memory backend of this id, or it has a user: memory has one.
    pub fn take_memory(&mut self, id: &str, user: &str) -> Result<RamBackend, QmpError> {
        if let Some(Backend::Memory { spec, .. }) = self.0.get(id).map(|entry| &entry.backend) {
            memory_device::writable(spec)?;
        }
        let taken = self
            .0
            .get_mut(id)
            .and_then(|entry| match &mut entry.backend {
                Backend::Memory { memory, .. } => memory.take(),
                _ => None,
            });
        // The claim gives the error of a missing, wrong or used object.
        self.claim(id, user, "memory backend that nobody uses", |_| taken)
    }

    /// Notes that `user` uses the memory backend `id`, and lends it: it is the object's, for the
    /// next user.
    ///
    /// # Errors
    /// There is no memory backend of this id, or it has a user: memory has one.
    pub fn claim_memory(&mut self, id: &str, user: &str) -> Result<&RamBackend, QmpError> {
        let is_busy = self.0.get(id).is_some_and(|entry| {
            matches!(entry.backend, Backend::Memory { .. }) && !entry.users.is_empty()
        });
        if is_busy {
            return Err(QmpError::generic(format!(
                "can't use already busy memdev: {id}"
            )));
        }
        self.claim(id, user, "memory backend that nobody uses", |backend| {
            matches!(
                backend,
                Backend::Memory {
                    memory: Some(_),
                    ..
                }
            )
            .then_some(())
        })?;
        let entry = self.0.get(id).map(|entry| &entry.backend);
        match entry {
            Some(Backend::Memory {
                memory: Some(memory),
                ..
            }) => Ok(memory),
            _ => Err(QmpError::generic(format!("object '{id}' not found"))),
        }
    }

    /// Gives back what `user` claimed of the object `id`.
    pub fn release(&mut self, id: &str, user: &str) {
        if let Some(entry) = self.0.get_mut(id) {
            entry.users.retain(|other| other != user);
        }
    }

    /// The io-threads, in the order they were added.
    pub fn iothreads(&self) -> impl Iterator<Item = &IoThread> {
        self.0.values().filter_map(|entry| match &entry.backend {
            Backend::IoThread(iothread) => Some(iothread),
            _ => None,
        })
    }

    /// What each memory backend is, in the order they were added.
    pub fn memories(&self) -> impl Iterator<Item = &RamBackendSpec> {
        self.0.values().filter_map(|entry| match &entry.backend {
            Backend::Memory { spec, .. } => Some(spec),
            _ => None,
        })
    }

    /// A number that an object shows, or 0 if it was given none.
    pub fn number(&self, id: &str, property: &str) -> i64 {
        let shown = self
            .0
            .get(id)
            .and_then(|entry| entry.shown.property(property));
        shown
            .and_then(|property| property.value.as_i64())
            .unwrap_or(0)
    }

    /// Changes a property of an object; only an io-thread's numbers can be.
    ///
    /// # Errors
    /// There is no such object, or this of it cannot change, or not to this value.
    pub fn set(&mut self, id: &str, property: &str, value: &Value) -> Result<(), QmpError> {
        let Some(entry) = self.0.get_mut(id) else {
            return Err(QmpError::device_not_found(id));
        };
        let is_thread = matches!(entry.backend, Backend::IoThread(_));
        if !is_thread || !IOTHREAD_NUMBERS.contains(&property) {
            return Err(read_only(&entry.shown, property));
        }
        let Some(number) = value.as_i64().filter(|number| *number >= 0) else {
            return Err(QmpError::generic(format!(
                "Parameter '{property}' expects a number from 0 on"
            )));
        };
        entry.shown.set(property, "int", number);
        Ok(())
    }

    /// Has an object show itself otherwise.
    pub fn show(&mut self, id: &str, shown: qom::Object) {
        if let Some(entry) = self.0.get_mut(id) {
            entry.shown = shown;
        }
    }

    /// All objects as `/objects` shows them.
    pub fn tree(&self) -> qom::Object {
        self.0
            .iter()
            .fold(qom::Object::new("container"), |tree, (id, entry)| {
                tree.with_child(id.clone(), entry.shown.clone())
            })
    }

    fn claim<T>(
        &mut self,
        id: &str,
        user: &str,
        wanted: &str,
        pick: impl FnOnce(&Backend) -> Option<T>,
    ) -> Result<T, QmpError> {
        let Some(entry) = self.0.get_mut(id) else {
            return Err(QmpError::generic(format!(
                "object '{id}' not found: '{user}' wants a {wanted}; make it with object-add first"
            )));
        };
        let Some(picked) = pick(&entry.backend) else {
            return Err(QmpError::generic(format!(
                "object '{id}' is a {}: '{user}' wants a {wanted}",
                entry.shown.type_name
            )));
        };
        entry.users.push(user.to_owned());
        Ok(picked)
    }
}

/// Why a property cannot be set.
pub fn read_only(object: &qom::Object, property: &str) -> QmpError {
    let of = &object.type_name;
    QmpError::generic(match object.property(property) {
        Some(_) => format!("Property '{of}.{property}' cannot change once the object is there"),
        None => format!("Property '{of}.{property}' not found"),
    })
}

fn build(door: &Door, rings: &Rings, id: &str, spec: ObjectSpec) -> Result<Backend, QmpError> {
    Ok(match spec {
        ObjectSpec::Memory(spec) => {
            let memory =
                RamBackend::open(door, spec.clone()).map_err(|e| QmpError::from_error(&e))?;
            Backend::Memory {
                spec,
                memory: Some(memory),
            }
        }
        ObjectSpec::IoThread(spec) => {
            let iothread =
                IoThread::start_from(rings, spec).map_err(|e| QmpError::from_error(&e))?;
            Backend::IoThread(iothread)
        }
        ObjectSpec::RngBuiltin => Backend::Entropy(Arc::new(Builtin)),
        ObjectSpec::RngRandom { filename } => {
            let reason = format!("object '{id}'");
            let request =
                Request::new(&filename, Access::ReadOnly, Role::Entropy, &reason).nonblocking(true);
            let file = fdset::open(door, &request).map_err(|e| QmpError::from_error(&e))?;
            let source = EntropyFile::new(file).map_err(|e| QmpError::from_error(&e))?;
            Backend::Entropy(Arc::new(source))
        }
        ObjectSpec::Secret(spec) => {
            secret::check(door, id, &spec)?;
            Backend::Secret
        }
        ObjectSpec::TlsCreds(spec) => Backend::TlsCreds(spec.open(door, id)?),
        ObjectSpec::ThrottleGroup(_) => Backend::ThrottleGroup,
    })
}
