//! The registry: every fd that was passed and not yet used, behind one lock.
//!
//! The lock is a leaf: it is held for a few lines of bookkeeping and at most one `dup`. Whatever
//! a call takes out of the books is closed after the lock is free, because a close can take long
//! (it may flush) or run into another room.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::alias::Aliases;
use crate::error::{OpenError, RegistryError, Wanted};
use crate::escrow::Escrow;
use crate::handover::{Handover, Origin};
use crate::hook::{Answers, Asker, Given, HookError, Told, Wish};
use crate::inherited::{Claims, Inherited, NoClaim, take_unclaimed};
use crate::kind::Nature;
use crate::lease::Lease;
use crate::ledger::{Ledger, Patience, Place, Use, UseId, Via, Waiting};
use crate::named::NamedFds;
use crate::open::is_passed;
use crate::policy::{Level, Policy};
use crate::request::{Access, Request};
use crate::sets::{Dup, Fdset, FdsetId, Fdsets, NoDup};

/// To whom a named fd belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The command line: seen by all.
    Process,
    /// One monitor, by its number; its names outlive a reconnect.
    Monitor(u32),
    /// One session of a monitor: what it left ends with it.
    Session {
        /// The monitor's number.
        monitor: u32,
        /// The session's, which no other ever has.
        session: u64,
    },
}

/// All passed fds of the process: the sets and the names.
#[derive(Debug, Default)]
pub struct FdRegistry {
    books: Mutex<Books>,
    level: Level,
}

#[derive(Debug, Default)]
struct Books {
    sets: Fdsets,
    names: NamedFds,
    aliases: Aliases,
    ledger: Ledger,
    patience: Patience,
    /// Raw numbers of the command line.
    claims: Claims,
    /// What was inherited and nobody has claimed.
    adopted: Vec<Handover>,
}

impl Books {
    /// Every fd that was handed over and is still there, with where it waits: names come first.
    fn held(&mut self) -> impl Iterator<Item = (Place, &mut Handover)> {
        let names = self.names.all().map(|(scope, name, passed)| {
            let name = name.to_owned();
            (Place::Name { scope, name }, passed)
        });
        let members = self.sets.members().map(|(set, opaque, passed)| {
            let opaque = opaque.map(str::to_owned);
            (Place::Set { set, opaque }, passed)
        });
        let adopted = self.adopted.iter_mut();
        names
            .chain(members)
            .chain(adopted.map(|passed| (Place::Number, passed)))
    }

    /// Takes back the aliases of a set, if it has gone.
    fn forget_aliases(&mut self, set: FdsetId) {
        if !self.sets.contains(set) {
            self.aliases.forget(set);
        }
    }
}

impl FdRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty registry of a process that began with `inherited`.
    #[must_use]
    pub fn with_inherited(inherited: Inherited) -> Self {
        let books = Books {
            claims: Claims::new(inherited),
            ..Books::default()
        };
        Self {
            books: Mutex::new(books),
            level: Level::default(),
        }
    }

    /// What names can be opened now.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.level.now()
    }

    /// Raises what is refused to `policy`. Lowering it changes nothing.
    pub fn raise_policy(&self, policy: Policy) {
        self.level.raise(policy);
    }

    /// Whether something that was not handed in can be had.
    pub(crate) fn admit(&self, wanted: impl FnOnce() -> Wanted) -> Result<(), OpenError> {
        self.level.admit(wanted)
    }

    /// `add-fd`: puts an fd into set `id`, or into a new one with the lowest free id. Gives the
    /// set's id and the fd's number, which `remove-fd` takes.
    pub fn add(
        &self,
        passed: Handover,
        id: Option<FdsetId>,
        opaque: Option<String>,
    ) -> (FdsetId, RawFd) {
        self.books().sets.add(passed, id, opaque)
    }

    /// As [`add`](Self::add), for a client: within the [limits](crate::limits).
    ///
    /// # Errors
    /// When there are as many as there may be, or the text is too long; the fd is closed.
    pub fn add_for_client(
        &self,
        passed: Handover,
        id: Option<FdsetId>,
        opaque: Option<String>,
    ) -> Result<(FdsetId, RawFd), RegistryError> {
        let mut books = self.books();
        if let Err(error) = books.sets.admit(opaque.as_deref()) {
            drop(books);
            return Err(error);
        }
        Ok(books.sets.add(passed, id, opaque))
    }

    /// `remove-fd`: closes one member of set `id`, or all. The set vanishes when nothing is left
    /// in it and its last lease is back. Takes plain numbers so that the error can repeat them.
    ///
    /// # Errors
    /// When there is no such set or no such member.
    pub fn remove(&self, id: i64, fd: Option<i64>) -> Result<(), RegistryError> {
        let closed_without_lock = {
            let mut books = self.books();
            let out = books.sets.remove(id, fd)?;
            books.forget_aliases(FdsetId::new(id)?);
            out
        };
        drop(closed_without_lock);
        Ok(())
    }

    /// `query-fdsets`: all sets, by rising id.
    #[must_use]
    pub fn query(&self) -> Vec<Fdset> {
        self.books().sets.list()
    }

    /// `add-fd-alias`: lets set `id` answer for `path`, until the alias is removed or the set
    /// goes away.
    ///
    /// # Errors
    /// There is no such set, another one answers for the path, or it is no path.
    pub fn add_alias(&self, path: &str, id: FdsetId) -> Result<(), RegistryError> {
        let mut books = self.books();
        if !books.sets.contains(id) {
            return Err(RegistryError::NoSuchSet(id.value()));
        }
        books.aliases.add(path, id)
    }

    /// `remove-fd-alias`: takes an alias back. What was opened through it stays open.
    ///
    /// # Errors
    /// When the path is no alias.
    pub fn remove_alias(&self, path: &str) -> Result<(), RegistryError> {
        self.books().aliases.remove(path)
    }

    /// `query-fd-aliases`: the paths for which sets answer, sorted.
    #[must_use]
    pub fn aliases(&self) -> Vec<(String, FdsetId)> {
        self.books().aliases.list()
    }

    /// The set that answers for `path`.
    pub(crate) fn alias(&self, path: &str) -> Option<FdsetId> {
        self.books().aliases.find(path)
    }

    /// `getfd`: gives an fd a name within `scope`. One that had the name before is closed.
    ///
    /// # Errors
    /// When the name is empty, too long or starts with a digit, or the scope has as many as it may;
    /// the fd is closed.
    pub fn add_named(
        &self,
        scope: Scope,
        name: &str,
        passed: Handover,
    ) -> Result<(), RegistryError> {
        NamedFds::check(name)?;
        let mut books = self.books();
        if let Err(error) = books.names.admit(scope, name) {
            drop(books);
            return Err(error);
        }
        let replaced = books.names.add(scope, name, passed);
        drop(books);
        drop(replaced);
        Ok(())
    }

    /// `closefd`: closes a named fd of exactly this scope.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_named(&self, scope: Scope, name: &str) -> Result<(), RegistryError> {
        let closed_without_lock = self.books().names.remove(scope, name);
        match closed_without_lock {
            Some(_) => Ok(()),
            None => Err(RegistryError::NoSuchName(name.to_owned())),
        }
    }

    /// Begins a scope that ends when the result is dropped.
    #[must_use]
    pub fn begin_scope(self: &Arc<Self>, scope: Scope) -> ScopeLease {
        ScopeLease {
            registry: Arc::clone(self),
            scope,
        }
    }

    /// Closes what is bound to `scope`: its names, and the members of sets that it handed over. A
    /// set that is still leased stays, empty, as after `remove-fd`.
    fn end_scope(&self, scope: Scope) {
        let closed_without_lock = {
            let mut books = self.books();
            let names = books.names.end(scope);
            let (members, gone) = books.sets.end(scope);
            for set in gone {
                books.aliases.forget(set);
            }
            (names, members)
        };
        drop(closed_without_lock);
    }

    /// `query-fds`: every fd that was handed over and is still there.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut books = self.books();
        books
            .held()
            .map(|(place, passed)| passed.waiting(place))
            .collect()
    }

    /// `query-fds`: every file in use, the oldest first.
    #[must_use]
    pub fn uses(&self) -> Vec<Use> {
        self.books().ledger.list()
    }

    /// How long an fd may wait to be opened before [`Self::take_unclaimed`] tells of it; `None`
    /// for ever, as at first.
    pub fn set_patience(&self, patience: Option<Duration>) {
        self.books().patience.set(patience);
    }

    /// When [`Self::take_unclaimed`] will next have something to tell.
    #[must_use]
    pub fn unclaimed_deadline(&self) -> Option<Instant> {
        let mut books = self.books();
        let Books {
            names,
            sets,
            patience,
            adopted,
            ..
        } = &mut *books;
        let names = names.all().map(|(_, _, passed)| &*passed);
        let members = sets.members().map(|(_, _, passed)| &*passed);
        patience.deadline(names.chain(members).chain(adopted.iter()))
    }

    /// The fds that wait too long to be opened, each once in its life.
    #[must_use]
    pub fn take_unclaimed(&self, now: Instant) -> Vec<Waiting> {
        let mut books = self.books();
        let patience = books.patience;
        books
            .held()
            .filter_map(|(place, passed)| {
                let over = patience.is_over(passed, now);
                over.then(|| passed.waiting(place))
            })
            .collect()
    }

    /// Takes a named fd out of the registry: the scope's own names first, then the process's.
    #[must_use]
    pub fn take(&self, scope: Scope, name: &str) -> Option<OwnedFd> {
        let mut books = self.books();
        let (owner, _) = books.names.find(scope, name)?;
        books.names.remove(owner, name).map(Handover::into_fd)
    }

    /// The names of one scope, sorted.
    #[must_use]
    pub fn names(&self, scope: Scope) -> Vec<String> {
        self.books().names.list(scope)
    }

    /// Takes a named fd if `check`, which runs under the lock and may only look at the fd, finds
    /// nothing wrong with it; otherwise it stays. `None`: no such name.
    pub(crate) fn take_if<E>(
        &self,
        scope: Scope,
        name: &str,
        check: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Option<Result<(Scope, Handover), E>> {
        let mut books = self.books();
        let (owner, fd) = books.names.find(scope, name)?;
        if let Err(fault) = check(fd.as_fd()) {
            return Some(Err(fault));
        }
        let passed = books.names.remove(owner, name)?;
        Some(Ok((owner, passed)))
    }

    /// Gives a named fd back that was taken, unless the name has been given anew; then it is
    /// closed.
    pub(crate) fn restore_named(&self, scope: Scope, name: &str, passed: Handover) {
        let mut books = self.books();
        let taken = books.names.find(scope, name);
        let replaced = if taken.is_some_and(|(owner, _)| owner == scope) {
            Some(passed)
        } else {
            books.names.add(scope, name, passed)
        };
        drop(books);
        drop(replaced);
    }

    /// Duplicates a member of a set and counts a lease, which [`Self::end`] takes back.
    pub(crate) fn dup(&self, id: FdsetId, request: &Request<'_>) -> Result<Dup, NoDup> {
        self.books().sets.dup(id, request)
    }

    /// What the member of a set is that would serve `request`.
    pub(crate) fn look(&self, id: FdsetId, request: &Request<'_>) -> Option<Nature> {
        self.books().sets.look(id, request)
    }

    /// A duplicate of the member of a set that would serve `request`; nothing is counted.
    pub(crate) fn peek(&self, id: FdsetId, request: &Request<'_>) -> Option<OwnedFd> {
        self.books().sets.peek(id, request)
    }

    /// Writes a line into the ledger, which [`Self::end`] strikes.
    pub(crate) fn begin(&self, entry: Use) -> UseId {
        self.books().ledger.begin(entry)
    }

    /// Notes what the file of a line is now.
    pub(crate) fn change(&self, id: UseId, nature: Nature) {
        self.books().ledger.change(id, nature);
    }

    /// A line of the ledger.
    pub(crate) fn entry(&self, id: UseId) -> Option<Use> {
        self.books().ledger.entry(id)
    }

    /// Strikes a line of the ledger, and takes back the lease of the set it came from.
    pub(crate) fn end(&self, entry: UseId, set: Option<FdsetId>) {
        let mut books = self.books();
        let freed_without_lock = books.ledger.end(entry);
        if let Some(set) = set {
            books.sets.release(set);
            books.forget_aliases(set);
        }
        drop(books);
        drop(freed_without_lock);
    }

    /// Claims a raw number of the command line.
    pub(crate) fn claim(&self, number: RawFd) -> Result<(), NoClaim> {
        self.books().claims.claim(number)
    }

    /// Gives back a claim on a number behind which there was nothing to take.
    pub(crate) fn unclaim(&self, number: RawFd) {
        self.books().claims.unclaim(number);
    }

    /// Takes over what was inherited and nobody has claimed, so that it is told of. To be called
    /// when the command line has had its say.
    pub fn adopt_unclaimed(&self) {
        let rest = self.books().claims.claim_rest();
        let taken = rest.into_iter().filter_map(take_unclaimed);
        let adopted: Vec<_> = taken
            .map(|fd| Handover::new(fd, Origin::Inheritance))
            .collect();
        self.books().adopted.extend(adopted);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A scope that has begun; it ends when this is dropped.
#[derive(Debug)]
pub struct ScopeLease {
    registry: Arc<FdRegistry>,
    scope: Scope,
}

impl Drop for ScopeLease {
    fn drop(&mut self) {
        self.registry.end_scope(self.scope);
    }
}

/// The right to open: the registry, and whose names count. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    registry: Arc<FdRegistry>,
    scope: Scope,
    /// What the open hook answered to the one who holds this door.
    answers: Option<Arc<Answers>>,
    /// Who can ask the hook later.
    asker: Option<Arc<dyn Asker>>,
    /// Where named fds wait until they are used up.
    escrow: Option<Arc<Escrow>>,
}

impl Door {
    /// A door into `registry` for somebody who acts within `scope`.
    #[must_use]
    pub fn new(registry: Arc<FdRegistry>, scope: Scope) -> Self {
        Self {
            registry,
            scope,
            answers: None,
            asker: None,
            escrow: None,
        }
    }

    /// The same door with somebody who asks the open hook when something is opened again.
    #[must_use]
    pub fn with_asker(self, asker: Arc<dyn Asker>) -> Self {
        Self {
            asker: Some(asker),
            ..self
        }
    }

    /// Has the open hook asked for `wish`, for what is opened without a command; `told` is called
    /// once, perhaps at once, with answers to open with. There are none where a passed fd answers
    /// for the name, or where there is no hook.
    pub fn ask_again(&self, wish: Wish, told: Told) {
        match &self.asker {
            Some(asker) if !is_passed(self, &wish.name) => asker.ask(wish, told),
            _ => told(Arc::default()),
        }
    }

    /// The same door with the open hook's answers: what is among them is opened from there.
    #[must_use]
    pub fn with_answers(self, answers: Arc<Answers>) -> Self {
        Self {
            answers: Some(answers),
            ..self
        }
    }

    /// The same door, through which named fds are opened and not used up before `escrow` says so.
    #[must_use]
    pub fn with_escrow(self, escrow: Arc<Escrow>) -> Self {
        Self {
            escrow: Some(escrow),
            ..self
        }
    }

    pub(crate) fn escrow(&self) -> Option<&Escrow> {
        self.escrow.as_deref()
    }

    /// A duplicate of the fd that the open hook answered for this name; the answer stays.
    pub(crate) fn peek_answer(&self, name: &str, access: Access) -> Option<OwnedFd> {
        self.answers.as_ref()?.peek(name, access)
    }

    /// Takes the open hook's answer for this name; `None`: it was not asked.
    pub(crate) fn answer(&self, name: &str, access: Access) -> Option<Result<Given, HookError>> {
        self.answers.as_ref()?.take(name, access)
    }

    /// Writes into the ledger that something was opened; the line stays until the lease is dropped.
    pub(crate) fn lease(
        &self,
        wanted: Wanted,
        via: Via,
        nature: Nature,
        origin: Option<Origin>,
    ) -> Lease {
        let entry = self.registry.begin(Use::new(wanted, via, nature, origin));
        Lease::new(Arc::clone(&self.registry), entry, via)
    }

    /// The registry behind the door.
    #[must_use]
    pub fn registry(&self) -> &Arc<FdRegistry> {
        &self.registry
    }

    /// Whose names count first.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The same registry seen from another scope: a request's monitor.
    #[must_use]
    pub fn within(&self, scope: Scope) -> Self {
        Self {
            scope,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests;
