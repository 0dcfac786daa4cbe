//! Everything that commands do with passed fds, against a model of the registry that knows only
//! lists: names by scope, sets, aliases, opens by each of them with each access, leases that are
//! copied and outlive their files.
//!
//! What must hold after each step: the same names, sets, aliases and uses in the books as in the
//! model, the same fds open in the kernel; and of each open, that it succeeds where the model says
//! so, gives that very file, and that `look` had said the same.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use fdset::{
    Access, Door, FdRegistry, FdsetId, Handover, Lease, OpenFile, Origin, Policy, Request, Role,
    Scope, Source, look, open,
};

use crate::fds::{Pool, Watch, mark};

/// Comes and goes: what is bound to it goes along.
const SESSION: Scope = Scope::Session {
    monitor: 1,
    session: 7,
};
const SCOPES: [Scope; 4] = [
    Scope::Process,
    Scope::Monitor(0),
    Scope::Monitor(1),
    SESSION,
];
/// The last two are none.
const NAMES: [&str; 5] = ["a", "b", "disk-1", "9a", ""];
/// How paths are written, and what they are; the last two can be no alias.
const PATHS: [(&str, Option<&str>); 7] = [
    ("/nowhere/a", Some("/nowhere/a")),
    ("//nowhere/./a/", Some("/nowhere/a")),
    ("/nowhere/b", Some("/nowhere/b")),
    ("nowhere/a", Some("nowhere/a")),
    ("./nowhere//a", Some("nowhere/a")),
    ("/nowhere/../a", None),
    ("", None),
];
const ACCESSES: [Access; 3] = [Access::ReadOnly, Access::WriteOnly, Access::ReadWrite];
const ROLES: [Role; 3] = [Role::Snapshot, Role::Image, Role::Kvm];
/// How many steps an input is worth.
const STEPS: usize = 100;

pub(super) fn run(input: &[u8]) {
    let watch = Watch::new();
    let mut world = World::default();
    let mut input = Unstructured::new(input);
    for _ in 0..STEPS {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
        world.check();
    }
    watch.assert_more(world.fds());
    drop(world);
    watch.assert_nothing_is_left();
}

/// An fd in the books.
#[derive(Clone, Copy, Debug)]
struct Held {
    number: RawFd,
    mark: u64,
    access: Access,
    /// Whether it is a file, and not the end of a pipe or a socket.
    file: bool,
    opened: bool,
    reported: bool,
    /// Whether it goes with the session.
    bound: bool,
}

impl Held {
    fn suits(&self, role: Role) -> bool {
        match role {
            Role::Snapshot => true,
            Role::Image => self.file,
            _ => false,
        }
    }
}

/// What came of one open: copies of the file, and leases without one.
#[derive(Default)]
struct Opened {
    files: Vec<OpenFile>,
    leases: Vec<Option<Lease>>,
    set: Option<i64>,
}

impl Opened {
    fn is_over(&self) -> bool {
        self.files.is_empty() && self.leases.is_empty()
    }
}

#[derive(Default)]
struct SetModel {
    members: Vec<Held>,
    leases: usize,
}

/// The model and the real thing, side by side.
#[derive(Default)]
struct World {
    registry: Arc<FdRegistry>,
    names: BTreeMap<(Scope, &'static str), Held>,
    sets: BTreeMap<i64, SetModel>,
    aliases: BTreeMap<&'static str, i64>,
    opened: Vec<Opened>,
}

impl World {
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let step = input.int_in_range(0..=15)?;
        let [a, b, c] = input.arbitrary::<[u8; 3]>()?.map(usize::from);
        let set = i64::try_from(b % 5).unwrap_or(0) - 1;
        let scope = SCOPES[a % 4];
        let (access, role) = (ACCESSES[c % 3], ROLES[(c / 3) % 3]);
        match step {
            0 | 1 => self.add(a, set, c.is_multiple_of(4)),
            2 => self.remove(set, c),
            3 => self.open(scope, &format!("/dev/fdset/{set}"), access, role),
            4 | 5 => self.name(scope, NAMES[b % 5], c),
            6 => self.unname(scope, NAMES[b % 5], c),
            7 => self.open(scope, &format!("fd:{}", NAMES[b % 5]), access, role),
            8 => self.alias(PATHS[a % 7], set),
            9 => self.unalias(PATHS[a % 7]),
            10 => self.open(scope, PATHS[b % 7].0, access, role),
            11 | 12 => self.let_go(a, b, c),
            13 => self.report(c),
            14 => self.end_session(),
            _ => {
                if a == 0 {
                    self.registry.raise_policy(Policy::Passed);
                }
            }
        }
        Ok(())
    }

    /// A copy of an fd of the pool, to be handed over, and what the model knows of it.
    fn pass(&self, index: usize) -> (Handover, Held) {
        let (fd, mark) = Pool::of_this_process().fd(index);
        let fd: OwnedFd = fd.try_clone().expect("room for an fd");
        let held = Held {
            number: fd.as_raw_fd(),
            mark,
            access: match index % 32 % 5 {
                2 => Access::ReadOnly,
                3 => Access::WriteOnly,
                _ => Access::ReadWrite,
            },
            file: index % 32 % 5 < 2,
            opened: false,
            reported: false,
            bound: false,
        };
        (Handover::new(fd, Origin::CommandLine), held)
    }

    fn add(&mut self, index: usize, set: i64, bound: bool) {
        let (mut passed, mut held) = self.pass(index);
        if bound {
            passed = passed.bound_to(SESSION);
            held.bound = true;
        }
        let free = (0..).find(|id| !self.sets.contains_key(id)).unwrap_or(0);
        let expected = if set < 0 { free } else { set };
        let opaque = (index > 200).then(|| "text".to_owned());
        let (id, number) = self.registry.add(passed, FdsetId::new(set).ok(), opaque);
        assert_eq!((id.value(), number), (expected, held.number));
        self.sets.entry(expected).or_default().members.push(held);
    }

    fn remove(&mut self, set: i64, which: usize) {
        let members = self.sets.get_mut(&set).map(|set| &mut set.members);
        let (number, found) = match (which % 4, members) {
            (0, Some(members)) => {
                members.clear();
                (None, true)
            }
            (0, None) => (None, false),
            (at, Some(members)) if at <= members.len() => {
                (Some(i64::from(members.remove(at - 1).number)), true)
            }
            (at, _) => (Some(-i64::try_from(at).unwrap_or(1)), false),
        };
        assert_eq!(self.registry.remove(set, number).is_ok(), found);
        self.forget_if_idle(set);
    }

    fn name(&mut self, scope: Scope, name: &'static str, index: usize) {
        let (passed, held) = self.pass(index);
        let good = name
            .bytes()
            .next()
            .is_some_and(|first| !first.is_ascii_digit());
        let outcome = self.registry.add_named(scope, name, passed);
        assert_eq!(outcome.is_ok(), good);
        if good {
            self.names.insert((scope, name), held);
        }
    }

    /// `closefd`, or the name is taken by a listener or the like.
    fn unname(&mut self, scope: Scope, name: &'static str, how: usize) {
        if how.is_multiple_of(2) {
            let outcome = self.registry.remove_named(scope, name);
            assert_eq!(outcome.is_ok(), self.names.remove(&(scope, name)).is_some());
            return;
        }
        let taken = self.registry.take(scope, name);
        let owner = self.owner(scope, name);
        let held = owner.and_then(|owner| self.names.remove(&owner));
        assert_eq!(taken.map(mark), held.map(|held| held.mark));
    }

    /// Under which scope a name is found.
    fn owner(&self, scope: Scope, name: &str) -> Option<(Scope, &'static str)> {
        let own = self
            .names
            .keys()
            .find(|key| key.0 == scope && key.1 == name);
        let process = || {
            self.names
                .keys()
                .find(|key| key.0 == Scope::Process && key.1 == name)
        };
        own.or_else(process).copied()
    }

    fn alias(&mut self, (path, meant): (&str, Option<&'static str>), set: i64) {
        let outcome = FdsetId::new(set).and_then(|id| self.registry.add_alias(path, id));
        let free = |meant| *self.aliases.get(meant).unwrap_or(&set) == set;
        let good = meant.filter(|meant| free(*meant) && self.sets.contains_key(&set));
        assert_eq!(outcome.is_ok(), good.is_some());
        if let Some(meant) = good {
            self.aliases.insert(meant, set);
        }
    }

    fn unalias(&mut self, (path, meant): (&str, Option<&'static str>)) {
        let known = meant.is_some_and(|meant| self.aliases.remove(meant).is_some());
        assert_eq!(self.registry.remove_alias(path).is_ok(), known);
    }

    fn open(&mut self, scope: Scope, name: &str, access: Access, role: Role) {
        let door = Door::new(Arc::clone(&self.registry), scope);
        let request = Request::new(name, access, role, "fuzz");
        let found = look(&door, &request);
        let opened = open(&door, &request);
        let (source, set, mark) = self.expected(scope, name, access, role);
        let came = opened.as_ref().ok().map(mark_of);
        assert_eq!((found.source, came), (source, mark), "{request:?}");
        assert_eq!(found.present, mark.is_some());
        if let Ok(file) = opened {
            assert_eq!(found.identity.map(|identity| identity.ino), mark);
            self.opened.push(Opened {
                files: vec![file],
                leases: Vec::new(),
                set,
            });
        }
    }

    /// Where an open leads, and what it gives; the model is as after it.
    fn expected(
        &mut self,
        scope: Scope,
        name: &str,
        access: Access,
        role: Role,
    ) -> (Source, Option<i64>, Option<u64>) {
        if let Some(name) = name.strip_prefix("fd:") {
            let good = |held: &Held| {
                (held.access == access || held.access == Access::ReadWrite) && held.suits(role)
            };
            let owner = self.owner(scope, name).filter(|key| good(&self.names[key]));
            let held = owner.and_then(|owner| self.names.remove(&owner));
            return (Source::Named, None, held.map(|held| held.mark));
        }
        let by_number = name.strip_prefix("/dev/fdset/");
        let set = match by_number {
            Some(number) => number.parse().ok(),
            None => {
                let meant = PATHS.iter().find(|(path, _)| *path == name);
                let alias = meant.and_then(|(_, meant)| self.aliases.get((*meant)?));
                let Some(set) = alias else {
                    return (Source::Path, None, None);
                };
                Some(*set)
            }
        };
        let model = set.and_then(|set| self.sets.get_mut(&set));
        let Some(model) = model else {
            return (Source::Set, None, None);
        };
        // What is opened again with another access mode must still be the same file.
        let mut files = model.members.iter().filter(|held| held.suits(role));
        let first = files.next().map(|held| held.mark);
        if role == Role::Image && files.any(|held| Some(held.mark) != first) {
            return (Source::Set, None, None);
        }
        let fits = |held: &&mut Held| held.access == access && held.suits(role);
        let Some(held) = model.members.iter_mut().find(fits) else {
            return (Source::Set, None, None);
        };
        held.opened = true;
        model.leases += 1;
        (Source::Set, set, Some(held.mark))
    }

    /// Copies a file, drops one, takes one apart, or drops a lease that was left.
    fn let_go(&mut self, which: usize, part: usize, how: usize) {
        if self.opened.is_empty() {
            return;
        }
        let at = which % self.opened.len();
        let opened = &mut self.opened[at];
        match (how % 4, opened.files.len(), opened.leases.len()) {
            (0, files @ 1.., _) => {
                let copy = opened.files[part % files]
                    .try_clone()
                    .expect("room for an fd");
                opened.files.push(copy);
            }
            (1, files @ 1.., _) => drop(opened.files.swap_remove(part % files)),
            (2, files @ 1.., _) => {
                let (fd, lease) = opened.files.swap_remove(part % files).into_parts();
                drop(fd);
                opened.leases.push(lease);
            }
            (_, _, leases @ 1..) => drop(opened.leases.swap_remove(part % leases)),
            _ => {}
        }
        if opened.is_over() {
            let set = self.opened.swap_remove(at).set;
            if let Some(set) = set {
                self.sets.get_mut(&set).expect("a leased set lives").leases -= 1;
                self.forget_if_idle(set);
            }
        }
    }

    /// Who waits too long is told once, and not at all once it was opened.
    fn report(&mut self, how: usize) {
        let patience = (!how.is_multiple_of(3)).then_some(Duration::from_secs(60));
        self.registry.set_patience(patience);
        let names = self.names.values_mut();
        let members = self.sets.values_mut().flat_map(|set| &mut set.members);
        let mut due: Vec<RawFd> = Vec::new();
        for held in names.chain(members) {
            if patience.is_some() && !held.opened && !held.reported {
                held.reported = true;
                due.push(held.number);
            }
        }
        assert_eq!(
            self.registry.unclaimed_deadline().is_some(),
            !due.is_empty()
        );
        let soon = Instant::now();
        assert!(self.registry.take_unclaimed(soon).is_empty(), "too soon");
        let late = soon + Duration::from_secs(61);
        let told = self.registry.take_unclaimed(late);
        let mut told: Vec<RawFd> = told.iter().map(|waiting| waiting.fd).collect();
        told.sort_unstable();
        due.sort_unstable();
        assert_eq!(told, due);
    }

    /// Names of the session, and members that it handed over, go.
    fn end_session(&mut self) {
        drop(self.registry.begin_scope(SESSION));
        self.names.retain(|(scope, _), _| *scope != SESSION);
        let sets: Vec<i64> = self.sets.keys().copied().collect();
        for id in sets {
            if let Some(set) = self.sets.get_mut(&id) {
                set.members.retain(|held| !held.bound);
            }
            self.forget_if_idle(id);
        }
    }

    fn forget_if_idle(&mut self, set: i64) {
        self.sets
            .retain(|id, model| *id != set || !model.members.is_empty() || model.leases > 0);
        self.aliases.retain(|_, set| self.sets.contains_key(set));
    }

    /// How many fds the world holds.
    fn fds(&self) -> usize {
        let members = self.sets.values().map(|set| set.members.len());
        let files = self.opened.iter().map(|opened| opened.files.len());
        self.names.len() + members.sum::<usize>() + files.sum::<usize>()
    }

    fn check(&self) {
        let sets: Vec<(i64, Vec<RawFd>)> = self
            .registry
            .query()
            .iter()
            .map(|set| {
                (
                    set.id.value(),
                    set.members.iter().map(|member| member.fd).collect(),
                )
            })
            .collect();
        let numbers = |set: &SetModel| set.members.iter().map(|held| held.number).collect();
        let modelled: Vec<(i64, Vec<RawFd>)> = self
            .sets
            .iter()
            .map(|(id, set)| (*id, numbers(set)))
            .collect();
        assert_eq!(sets, modelled);
        for scope in SCOPES {
            let own = self.names.keys().filter(|key| key.0 == scope);
            let modelled: Vec<&str> = own.map(|key| key.1).collect();
            assert_eq!(self.registry.names(scope), modelled);
        }
        let aliases = self.registry.aliases();
        let aliases = aliases
            .iter()
            .map(|(path, set)| (path.as_str(), set.value()));
        assert!(aliases.eq(self.aliases.iter().map(|(path, set)| (*path, *set))));
        assert_eq!(self.registry.uses().len(), self.opened.len());
        let waiting = self.registry.waiting();
        let members = self.sets.values().flat_map(|set| &set.members);
        let held: Vec<(RawFd, bool)> = self
            .names
            .values()
            .chain(members)
            .map(|held| (held.number, held.opened))
            .collect();
        let waiting: Vec<(RawFd, bool)> = waiting
            .iter()
            .map(|waiting| (waiting.fd, waiting.opened))
            .collect();
        assert_eq!(waiting, held);
    }
}

fn mark_of(file: &OpenFile) -> u64 {
    mark(file)
}
