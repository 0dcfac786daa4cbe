//! The graph against a model of it: names, children, owners, devices.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A graph command over a handful of names.
#[derive(Clone, Debug)]
enum Command {
    AddNull(u8),
    AddOn(u8, u8),
    AddWithInline(u8, u8),
    Remove(u8),
    Attach(u8, u8),
    Detach(u8, u8),
}

/// What the graph should know: for each node its child, its owner and its devices.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, ModelNode>,
}

#[derive(Default)]
struct ModelNode {
    child: Option<String>,
    inline: bool,
    devices: Vec<String>,
}

impl Model {
    fn used(&self, name: &str) -> bool {
        let parent = |node: &ModelNode| node.child.as_deref() == Some(name);
        !self.nodes[name].devices.is_empty() || self.nodes.values().any(parent)
    }

    fn devices_on_storage_of<'a>(&'a self, name: &'a str) -> usize {
        let mut bottom = name;
        while let Some(child) = &self.nodes[bottom].child {
            bottom = child;
        }
        let stands_on = |mut name: &'a str| loop {
            if name == bottom {
                return true;
            }
            match &self.nodes[name].child {
                Some(child) => name = child,
                None => return false,
            }
        };
        self.nodes
            .iter()
            .filter(|(name, _)| stands_on(name))
            .map(|(_, n)| n.devices.len())
            .sum()
    }

    fn add(&mut self, name: &str, child: Option<&str>, inline: bool) -> bool {
        let node = ModelNode {
            child: child.map(str::to_owned),
            inline,
            devices: Vec::new(),
        };
        self.nodes.insert(name.to_owned(), node);
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let fits = self.nodes.get(name).is_some_and(|node| !node.inline) && !self.used(name);
        let mut gone = fits.then(|| name.to_owned());
        while let Some(name) = gone {
            let node = self.nodes.remove(&name).expect("there");
            gone = node
                .child
                .filter(|child| self.nodes[child].inline && !self.used(child));
        }
        fits
    }

    /// Whether the command succeeds; and its effect.
    fn apply(&mut self, command: &Command) -> bool {
        match *command {
            Command::AddNull(a) => {
                let a = node(a);
                !self.nodes.contains_key(&a) && self.add(&a, None, false)
            }
            Command::AddOn(a, b) => {
                let (a, b) = (node(a), node(b));
                let fits = !self.nodes.contains_key(&a) && self.nodes.contains_key(&b);
                fits && self.add(&a, Some(&b), false)
            }
            Command::AddWithInline(a, b) => {
                let (a, b) = (node(a), node(b));
                let taken = |name| self.nodes.contains_key(name);
                if a == b || taken(&a) || taken(&b) {
                    return false;
                }
                self.add(&b, None, true) && self.add(&a, Some(&b), false)
            }
            Command::Remove(a) => self.remove(&node(a)),
            Command::Attach(a, device) => {
                let name = node(a);
                // All are exclusive writers: one device for everything over one storage.
                let fits = self.nodes.contains_key(&name) && self.devices_on_storage_of(&name) == 0;
                if fits {
                    let node = self.nodes.get_mut(&name).expect("there");
                    node.devices.push(format!("vd{device}"));
                }
                fits
            }
            Command::Detach(a, device) => {
                let name = node(a);
                let Some(node) = self.nodes.get_mut(&name) else {
                    return false;
                };
                let before = node.devices.len();
                node.devices.retain(|id| *id != format!("vd{device}"));
                let had = node.devices.len() != before;
                if node.inline && !self.used(&name) {
                    self.nodes.remove(&name);
                }
                had
            }
        }
    }
}

fn node(number: u8) -> String {
    format!("n{number}")
}

fn apply(graph: &mut BlockGraph, command: &Command) -> bool {
    match *command {
        Command::AddNull(a) => graph.add(&door(), null(Some(&node(a)))).is_ok(),
        Command::AddOn(a, b) => graph.add(&door(), raw(&node(a), on(&node(b)))).is_ok(),
        Command::AddWithInline(a, b) => graph
            .add(&door(), raw(&node(a), inline(null(Some(&node(b))))))
            .is_ok(),
        Command::Remove(a) => graph.remove(&node(a)).is_ok(),
        Command::Attach(a, device) => {
            let usage = Usage::disk(false, false);
            graph
                .attach(&node(a), &format!("vd{device}"), usage)
                .is_ok()
        }
        Command::Detach(a, device) => graph.detach(&node(a), &format!("vd{device}")),
    }
}

fn command() -> impl Strategy<Value = Command> {
    let name = 0..5u8;
    prop_oneof![
        name.clone().prop_map(Command::AddNull),
        (name.clone(), name.clone()).prop_map(|(a, b)| Command::AddOn(a, b)),
        (name.clone(), name.clone()).prop_map(|(a, b)| Command::AddWithInline(a, b)),
        name.clone().prop_map(Command::Remove),
        (name.clone(), 0..3u8).prop_map(|(a, device)| Command::Attach(a, device)),
        (name, 0..3u8).prop_map(|(a, device)| Command::Detach(a, device)),
    ]
}

proptest! {
    #[test]
    fn graph_agrees_with_its_model(commands in prop::collection::vec(command(), 1..40)) {
        let (mut graph, mut model) = (BlockGraph::new(), Model::default());
        for command in &commands {
            let expected = model.apply(command);
            prop_assert_eq!(apply(&mut graph, command), expected, "{:?}", command);
            let mut seen: Vec<_> = names(&graph).iter().map(|name| (*name).to_owned()).collect();
            seen.sort();
            prop_assert_eq!(&seen, &model.nodes.keys().cloned().collect::<Vec<_>>());
            for (name, node) in &model.nodes {
                let view = graph.node(name).expect("there");
                prop_assert_eq!(view.children().next().map(|(_, child)| child), node.child.as_deref());
                prop_assert_eq!(view.devices().collect::<Vec<_>>(), node.devices.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
    }
}
