//! The backends that devices and the machine name by id: memory, io-threads, entropy; and filters on
//! netdevs.
//!
//! An object is made by `object-add` or `-object`, claimed by whoever uses it, and removed by
//! `object-del` once nobody does.

use std::sync::Arc;
use std::time::Duration;

use block::{IoThread, PollSpec, Rings};
use devices::net::NetFilter;
use devices::virtio::rng::{Builtin, Entropy, EntropyFile};
use fdset::{Access, Door, Request, Role};
use indexmap::IndexMap;
use monitor::TlsServer;
use qapi_schema::QmpError;
use serde_json::Value;

use crate::memory::{RamBackend, RamBackendSpec};
use crate::qom;
use crate::resolve::object::ObjectSpec;
use crate::resolve::{filter, memory_device};
use crate::secret;

/// What can change while an io-thread is at work. The last only keeps what it is given: what is
/// ready goes to the kernel at once.
const IOTHREAD_NUMBERS: [&str; 4] = [LONGEST_LOOK, "poll-grow", "poll-shrink", "aio-max-batch"];

/// For how long an io-thread looks for work before it sleeps, in nanoseconds.
const LONGEST_LOOK: &str = "poll-max-ns";

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
    /// A filter on a netdev, which goes with it.
    Filter(NetFilter),
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
        mut shown: qom::Object,
    ) -> Result<(), QmpError> {
        self.check_new(&id)?;
        let backend = build(door, rings, &id, spec)?;
        if let Backend::IoThread(iothread) = &backend {
            if shown.property(LONGEST_LOOK).is_none() {
                let default = PollSpec::default().max.as_nanos();
                shown.set(LONGEST_LOOK, "int", i64::try_from(default).unwrap_or(0));
            }
            iothread.poll(poll_spec(&shown)?);
        }
        self.insert(id, backend, shown);
        Ok(())
    }

    /// Looks whether an object of this id can be made.
    ///
    /// # Errors
    /// There is one.
    pub fn check_new(&self, id: &str) -> Result<(), QmpError> {
        if self.0.contains_key(id) {
            return Err(QmpError::generic(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Ok(())
    }

    /// Keeps a filter, whose id is [new](Self::check_new).
    pub fn add_filter(&mut self, id: String, filter: NetFilter, shown: qom::Object) {
        self.insert(id, Backend::Filter(filter), shown);
    }

    /// Takes the filters of a netdev away.
    pub fn remove_filters(&mut self, netdev: &str) {
        self.0.retain(|_, entry| match &entry.backend {
            Backend::Filter(filter) => filter.netdev() != netdev,
            _ => true,
        });
    }

    fn insert(&mut self, id: String, backend: Backend, shown: qom::Object) {
        let users = Vec::new();
        self.0.insert(
            id,
            Entry {
                backend,
                users,
                shown,
            },
        );
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

    /// Changes a property of an object: an io-thread's numbers, whether a filter is on.
    ///
    /// # Errors
    /// There is no such object, or this of it cannot change, or not to this value.
    pub fn set(&mut self, id: &str, property: &str, value: &Value) -> Result<(), QmpError> {
        let Some(entry) = self.0.get_mut(id) else {
            return Err(QmpError::device_not_found(id));
        };
        let iothread = match &entry.backend {
            Backend::IoThread(iothread) => iothread,
            Backend::Filter(filter) if property == "status" => {
                let text = value.as_str().unwrap_or_default();
                filter.switch(filter::status(text)?);
                entry.shown.set(property, "string", text);
                return Ok(());
            }
            _ => return Err(read_only(&entry.shown, property)),
        };
        if !IOTHREAD_NUMBERS.contains(&property) {
            return Err(read_only(&entry.shown, property));
        }
        let number = value.as_i64().filter(|number| *number >= 0);
        let number = number.ok_or_else(|| no_count(property))?;
        entry.shown.set(property, "int", number);
        iothread.poll(poll_spec(&entry.shown)?);
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

fn no_count(property: &str) -> QmpError {
    QmpError::generic(format!("Parameter '{property}' expects a number from 0 on"))
}

/// How an io-thread with these properties looks for work before it sleeps.
fn poll_spec(shown: &qom::Object) -> Result<PollSpec, QmpError> {
    let number = |property| {
        let given = shown.property(property).and_then(|one| one.value.as_i64());
        u64::try_from(given.unwrap_or(0)).map_err(|_| no_count(property))
    };
    for property in IOTHREAD_NUMBERS {
        number(property)?;
    }
    let factor = |property| number(property).map(|by| u32::try_from(by).unwrap_or(u32::MAX));
    Ok(PollSpec {
        max: Duration::from_nanos(number(LONGEST_LOOK)?),
        grow: factor("poll-grow")?,
        shrink: factor("poll-shrink")?,
    })
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
        ObjectSpec::Filter(spec) => {
            return Err(QmpError::generic(format!(
                "filter '{id}' is made on its netdev '{}'",
                spec.netdev
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use block::IoThreadSpec;
    use fdset::{FdRegistry, Scope};
    use serde_json::json;

    use super::*;

    fn add(objects: &mut Objects, id: &str, shown: qom::Object) -> Result<(), QmpError> {
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let spec = ObjectSpec::IoThread(IoThreadSpec { id: id.to_owned() });
        objects.add(&door, &Rings::default(), id.to_owned(), spec, shown)
    }

    #[test]
    fn numbers_of_an_iothread_are_the_threads_own_from_its_start_and_by_each_change() {
        let mut objects = Objects::default();
        let shown = || qom::Object::new("iothread");
        add(&mut objects, "plain", shown()).expect("a thread");
        let mut given = shown();
        given.set("poll-max-ns", "int", 0);
        given.set("poll-grow", "int", 3);
        add(&mut objects, "given", given).expect("a thread");
        assert_eq!(objects.number("plain", "poll-max-ns"), 32_768);
        objects
            .set("plain", "poll-shrink", &json!(5))
            .expect("can change");
        let specs: Vec<_> = objects.iothreads().map(IoThread::poll_spec).collect();
        let of = |nanoseconds, grow, shrink| PollSpec {
            max: Duration::from_nanos(nanoseconds),
            grow,
            shrink,
        };
        assert_eq!(specs, [of(32_768, 0, 5), of(0, 3, 0)]);
    }

    #[test]
    fn negative_number_of_an_iothread_is_refused_at_its_start_and_later() {
        let mut objects = Objects::default();
        let mut shown = qom::Object::new("iothread");
        shown.set("poll-grow", "int", -1);
        assert!(add(&mut objects, "wrong", shown).is_err());
        assert_eq!(objects.iothreads().count(), 0);
        add(&mut objects, "right", qom::Object::new("iothread")).expect("a thread");
        assert!(objects.set("right", "poll-grow", &json!(-1)).is_err());
        assert_eq!(objects.number("right", "poll-grow"), 0);
    }
}
