//! The backends that devices and the machine name by id: memory, io-threads, entropy.
//!
//! An object is made by `object-add` or `-object`, claimed by whoever uses it, and removed by
//! `object-del` once nobody does.

use std::sync::Arc;

use block::{IoThread, Rings};
use devices::virtio::rng::{Builtin, Entropy, EntropyFile};
use fdset::{Access, Door, Request, Role};
use indexmap::IndexMap;
use qapi_schema::QmpError;

use crate::memory::RamBackend;
use crate::qom;
use crate::resolve::object::ObjectSpec;

/// What an object is.
pub enum Backend {
    /// Guest memory, until the machine takes it.
    Memory(Option<RamBackend>),
    /// A thread with a ring.
    IoThread(IoThread),
    /// A source of random bytes.
    Entropy(Arc<dyn Entropy>),
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

    /// Hands the memory backend `id` over to `user`, for good.
    ///
    /// # Errors
    /// There is no memory backend of this id, or it has a user: memory has one.
    pub fn take_memory(&mut self, id: &str, user: &str) -> Result<RamBackend, QmpError> {
        let taken = self
            .0
            .get_mut(id)
            .and_then(|entry| match &mut entry.backend {
                Backend::Memory(memory) => memory.take(),
                _ => None,
            });
        // The claim gives the error of a missing, wrong or used object.
        self.claim(id, user, "memory backend that nobody uses", |_| taken)
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

fn build(door: &Door, rings: &Rings, id: &str, spec: ObjectSpec) -> Result<Backend, QmpError> {
    Ok(match spec {
        ObjectSpec::Memory(spec) => {
            let memory = RamBackend::open(door, spec).map_err(|e| QmpError::from_error(&e))?;
            Backend::Memory(Some(memory))
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
    })
}
