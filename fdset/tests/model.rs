//! The registry against a model: any sequence of commands, opens and closes leaves the books and
//! the kernel's view of every fd exactly as the model says.

use std::collections::BTreeMap;
use std::io::pipe;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use fdset::{
    Access, Door, FdRegistry, FdsetId, Handover, OpenFile, Origin, Request, Role, Scope, open,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Add {
        set: Option<i64>,
        access: Access,
    },
    Remove {
        set: i64,
        member: Option<usize>,
    },
    Open {
        set: i64,
        access: Access,
    },
    Drop {
        file: usize,
    },
    Name {
        name: usize,
        monitor: u32,
        access: Access,
    },
    Unname {
        name: usize,
        monitor: u32,
    },
    OpenNamed {
        name: usize,
        monitor: u32,
        access: Access,
    },
    Alias {
        path: usize,
        set: i64,
    },
    Unalias {
        path: usize,
    },
    OpenAlias {
        path: usize,
        access: Access,
    },
}

const NAMES: [&str; 2] = ["a", "b"];
const PATHS: [&str; 2] = ["/nowhere/a", "/nowhere/b"];

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::ReadOnly), Just(Access::WriteOnly)]
}

fn step() -> impl Strategy<Value = Step> {
    let set = || 0..4_i64;
    prop_oneof![
        4 => (proptest::option::of(set()), access())
            .prop_map(|(set, access)| Step::Add { set, access }),
        3 => (set(), proptest::option::of(0..3_usize))
            .prop_map(|(set, member)| Step::Remove { set, member }),
        4 => (set(), access()).prop_map(|(set, access)| Step::Open { set, access }),
        3 => (0..6_usize).prop_map(|file| Step::Drop { file }),
        2 => (0..2_usize, 0..2_u32, access())
            .prop_map(|(name, monitor, access)| Step::Name { name, monitor, access }),
        1 => (0..2_usize, 0..2_u32).prop_map(|(name, monitor)| Step::Unname { name, monitor }),
        2 => (0..2_usize, 0..2_u32, access())
            .prop_map(|(name, monitor, access)| Step::OpenNamed { name, monitor, access }),
        2 => (0..2_usize, set()).prop_map(|(path, set)| Step::Alias { path, set }),
        1 => (0..2_usize).prop_map(|path| Step::Unalias { path }),
        3 => (0..2_usize, access()).prop_map(|(path, access)| Step::OpenAlias { path, access }),
    ]
}

/// One fd that was handed in, seen from the other end of its pipe.
struct Passed {
    access: Access,
    other_end: OwnedFd,
    copies: usize,
}

impl Passed {
    /// Whether the kernel says that nobody holds our end any more.
    fn is_closed(&self) -> bool {
        let mut watch = [PollFd::new(self.other_end.as_fd(), PollFlags::empty())];
        poll(&mut watch, PollTimeout::ZERO).expect("poll");
        watch[0]
            .revents()
            .is_some_and(|seen| seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}

fn passed(fd: OwnedFd) -> Handover {
    Handover::new(fd, Origin::CommandLine)
}

#[derive(Default)]
struct SetModel {
    members: Vec<(RawFd, usize)>,
    leases: usize,
}

/// The model and the real thing, side by side.
struct World {
    registry: Arc<FdRegistry>,
    passed: Vec<Passed>,
    sets: BTreeMap<i64, SetModel>,
    names: BTreeMap<(u32, usize), usize>,
    aliases: BTreeMap<usize, i64>,
    files: Vec<(OpenFile, usize, Option<i64>)>,
}

impl World {
    fn new() -> Self {
        Self {
            registry: Arc::new(FdRegistry::new()),
            passed: Vec::new(),
            sets: BTreeMap::new(),
            names: BTreeMap::new(),
            aliases: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    fn pass(&mut self, access: Access) -> (OwnedFd, usize) {
        let (reader, writer) = pipe().expect("a pipe");
        let (fd, other_end) = if access == Access::ReadOnly {
            (OwnedFd::from(reader), OwnedFd::from(writer))
        } else {
            (OwnedFd::from(writer), OwnedFd::from(reader))
        };
        self.passed.push(Passed {
            access,
            other_end,
            copies: 1,
        });
        (fd, self.passed.len() - 1)
    }

    fn forget_if_idle(&mut self, set: i64) {
        self.sets
            .retain(|id, model| *id != set || !model.members.is_empty() || model.leases > 0);
        self.aliases.retain(|_, set| self.sets.contains_key(set));
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Add { set, access } => self.add(set, access),
            Step::Remove { set, member } => self.remove(set, member),
            Step::Open { set, access } => self.open(&format!("/dev/fdset/{set}"), set, access),
            Step::Drop { file } => self.drop_file(file),
            Step::Name {
                name,
                monitor,
                access,
            } => self.name(name, monitor, access),
            Step::Unname { name, monitor } => self.unname(name, monitor),
            Step::OpenNamed {
                name,
                monitor,
                access,
            } => self.open_named(name, monitor, access),
            Step::Alias { path, set } => self.alias(path, set),
            Step::Unalias { path } => self.unalias(path),
            Step::OpenAlias { path, access } => self.open_alias(path, access),
        }
    }

    fn add(&mut self, set: Option<i64>, access: Access) {
        let (fd, index) = self.pass(access);
        let number = fd.as_raw_fd();
        let expected = set.unwrap_or_else(|| {
            (0..)
                .find(|id| !self.sets.contains_key(id))
                .expect("there is a free id")
        });
        let wanted = set.map(|id| FdsetId::new(id).expect("not negative"));
        let (id, reported) = self.registry.add(passed(fd), wanted, None);
        assert_eq!((id.value(), reported), (expected, number));
        let model = self.sets.entry(expected).or_default();
        model.members.push((number, index));
    }

    fn remove(&mut self, set: i64, member: Option<usize>) {
        let model = self.sets.get_mut(&set);
        let (number, gone) = match (model, member) {
            (None, member) => (member.map(|_| 0), None),
            (Some(model), None) => (None, Some(std::mem::take(&mut model.members))),
            (Some(model), Some(at)) if at < model.members.len() => {
                let taken = model.members.remove(at);
                (Some(i64::from(taken.0)), Some(vec![taken]))
            }
            (Some(_), Some(_)) => (Some(-1), None),
        };
        let outcome = self.registry.remove(set, number);
        assert_eq!(outcome.is_ok(), gone.is_some());
        for (_, index) in gone.into_iter().flatten() {
            self.passed[index].copies -= 1;
        }
        self.forget_if_idle(set);
    }

    fn alias(&mut self, path: usize, set: i64) {
        let id = FdsetId::new(set).expect("not negative");
        let outcome = self.registry.add_alias(PATHS[path], id);
        let free = *self.aliases.get(&path).unwrap_or(&set) == set;
        assert_eq!(outcome.is_ok(), free && self.sets.contains_key(&set));
        if outcome.is_ok() {
            self.aliases.insert(path, set);
        }
    }

    fn unalias(&mut self, path: usize) {
        let outcome = self.registry.remove_alias(PATHS[path]);
        assert_eq!(outcome.is_ok(), self.aliases.remove(&path).is_some());
    }

    fn open_alias(&mut self, path: usize, access: Access) {
        // A path that is no alias is asked of the file system, which has nothing there.
        let set = self.aliases.get(&path).copied().unwrap_or(-1);
        self.open(PATHS[path], set, access);
    }

    fn open(&mut self, name: &str, set: i64, access: Access) {
        let door = Door::new(Arc::clone(&self.registry), Scope::Monitor(0));
        let opened = open(&door, &Request::new(name, access, Role::Snapshot, "test"));
        let expected = self.sets.get_mut(&set).and_then(|model| {
            let fits = |(_, index): &&(RawFd, usize)| self.passed[*index].access == access;
            let index = model.members.iter().find(fits)?.1;
            model.leases += 1;
            Some(index)
        });
        assert_eq!(opened.is_ok(), expected.is_some());
        if let (Ok(file), Some(index)) = (opened, expected) {
            self.passed[index].copies += 1;
            self.files.push((file, index, Some(set)));
        }
    }

    fn drop_file(&mut self, at: usize) {
        if at >= self.files.len() {
            return;
        }
        let (file, index, set) = self.files.swap_remove(at);
        drop(file);
        self.passed[index].copies -= 1;
        if let Some(set) = set {
            let model = self.sets.get_mut(&set).expect("a leased set lives");
            model.leases -= 1;
            self.forget_if_idle(set);
        }
    }

    fn name(&mut self, name: usize, monitor: u32, access: Access) {
        let (fd, index) = self.pass(access);
        self.registry
            .add_named(Scope::Monitor(monitor), NAMES[name], passed(fd))
            .expect("a good name");
        if let Some(replaced) = self.names.insert((monitor, name), index) {
            self.passed[replaced].copies -= 1;
        }
    }

    fn unname(&mut self, name: usize, monitor: u32) {
        let outcome = self
            .registry
            .remove_named(Scope::Monitor(monitor), NAMES[name]);
        let gone = self.names.remove(&(monitor, name));
        assert_eq!(outcome.is_ok(), gone.is_some());
        if let Some(index) = gone {
            self.passed[index].copies -= 1;
        }
    }

    fn open_named(&mut self, name: usize, monitor: u32, access: Access) {
        let door = Door::new(Arc::clone(&self.registry), Scope::Monitor(monitor));
        let text = format!("fd:{}", NAMES[name]);
        let opened = open(&door, &Request::new(&text, access, Role::Snapshot, "test"));
        let fits = |index: &usize| self.passed[*index].access == access;
        let expected = self.names.get(&(monitor, name)).copied().filter(fits);
        assert_eq!(opened.is_ok(), expected.is_some());
        if let (Ok(file), Some(index)) = (opened, expected) {
            self.names.remove(&(monitor, name));
            self.files.push((file, index, None));
        }
    }

    fn check(&self) {
        let listed: Vec<(i64, Vec<RawFd>)> = self
            .registry
            .query()
            .into_iter()
            .map(|set| {
                let members = set.members.iter().map(|member| member.fd).collect();
                (set.id.value(), members)
            })
            .collect();
        let modelled: Vec<(i64, Vec<RawFd>)> = self
            .sets
            .iter()
            .map(|(id, set)| (*id, set.members.iter().map(|(fd, _)| *fd).collect()))
            .collect();
        assert_eq!(listed, modelled);
        let aliases: Vec<(String, i64)> = self
            .registry
            .aliases()
            .into_iter()
            .map(|(path, set)| (path, set.value()))
            .collect();
        let modelled: Vec<(String, i64)> = self
            .aliases
            .iter()
            .map(|(path, set)| (PATHS[*path].to_owned(), *set))
            .collect();
        assert_eq!(aliases, modelled);
        for (index, passed) in self.passed.iter().enumerate() {
            assert_eq!(passed.is_closed(), passed.copies == 0, "fd {index}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn registry_and_model_agree_after_every_step(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            world.check();
        }
        let World { registry, passed, files, .. } = world;
        drop(files);
        drop(registry);
        for (index, passed) in passed.iter().enumerate() {
            prop_assert!(passed.is_closed(), "fd {index} outlived everything");
        }
    }
}
