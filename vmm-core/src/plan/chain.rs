//! The part of a plan that only the headers of images tell.
//!
//! ```text
//!   [Open top] [Image top] [Open kernel]
//!                  │ its file can be read: a passed fd, an answer of the open hook, a node
//!                  ▼
//!   [Open top] [Open mid] [Image mid] [Open kernel]          and so on, at most 64 levels down
//! ```
//!
//! Reading a header uses nothing up and changes nothing. What cannot be read yet stays, with the
//! reason, and is tried again when more is known.

use block::BlockGraph;
use block::format::qcow2::{ImageError, Outside, look_into};
use block::graph::{Absent, HeaderPlace, circle, named_in_header};
use block::spec::NodeOptions;
use fdset::{Access, Door, OpenFile, Source, Wish, look, peek};
use qapi_schema::QmpError;

use super::{Step, walk};

/// The most images above each other.
const MAX_DEPTH: usize = 64;

/// An image whose header names what is opened next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where its header is.
    pub file: File,
    /// Which nodes below it were not given.
    pub absent: Absent,
    /// What its node will have.
    pub options: NodeOptions,
    /// For whom it is opened.
    pub reason: String,
    /// The images that it is behind.
    pub above: Vec<HeaderPlace>,
    /// Why its header is not read, once that was tried.
    pub ends: Option<String>,
}

/// The file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    /// It is opened in one of these ways.
    Opened(Vec<Wish>),
    /// It is that of a node: one that is there, or of an earlier step.
    Node(String),
    /// It is made of something else, which only its driver can read.
    Hidden,
}

/// What a plan may look into.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The nodes that are there.
    pub graph: &'a BlockGraph,
    /// Where passed fds and answers are.
    pub door: &'a Door,
    /// Whether paths are opened to be read.
    pub paths: bool,
}

/// Replaces each image in `steps` whose header can be read by what that names. `earlier` are the
/// steps before these.
pub fn expand(steps: &mut Vec<Step>, earlier: &[Step], reader: &Reader<'_>) {
    let mut at = 0;
    while let Some(step) = steps.get(at) {
        let Step::Image(image) = step else {
            at += 1;
            continue;
        };
        let before = steps.get(..at).unwrap_or_default();
        match reader.below(image, earlier.iter().chain(before)) {
            Ok(below) => drop(steps.splice(at..=at, below)),
            Err(why) => {
                if let Some(Step::Image(image)) = steps.get_mut(at) {
                    image.ends = Some(why);
                }
                at += 1;
            }
        }
    }
}

impl Reader<'_> {
    /// What the header of `image` adds to the plan.
    fn below<'a>(
        &self,
        image: &Image,
        before: impl Iterator<Item = &'a Step>,
    ) -> Result<Vec<Step>, String> {
        let (place, outside, name) = match &image.file {
            File::Opened(wishes) => self.read(wishes)?,
            File::Node(node) => self.read_node(node, before)?,
            File::Hidden => return Err("its file is not read before it is opened".to_owned()),
        };
        let outside = outside.map_err(|error| told(&error))?;
        if image.above.contains(&place) {
            return Err(told(&circle(&name)));
        }
        if image.above.len() >= MAX_DEPTH {
            return Err(format!("it is behind {MAX_DEPTH} images already"));
        }
        let specs = named_in_header(outside, image.absent, &name, &image.options);
        let specs = specs.map_err(|error| told(&error))?;
        let above = [image.above.as_slice(), &[place]].concat();
        let steps = specs.iter();
        Ok(steps
            .flat_map(|spec| walk(spec, &image.reason, &above))
            .collect())
    }

    fn read_node<'a>(&self, node: &str, before: impl Iterator<Item = &'a Step>) -> Read {
        if let Ok(view) = self.graph.node(node) {
            let seen = view.look_into();
            let (place, outside) =
                seen.ok_or("its file is not read before it is opened".to_owned())?;
            return Ok((place, outside, view.filename().to_owned()));
        }
        let wishes = before.filter_map(|step| match step {
            Step::Open(planned) | Step::Settled(planned) => {
                (planned.node.as_deref() == Some(node)).then(|| planned.wish.clone())
            }
            Step::Image(_) => None,
        });
        self.read(&wishes.collect::<Vec<_>>())
    }

    fn read(&self, wishes: &[Wish]) -> Read {
        let Some(first) = wishes.first() else {
            return Err("its file is not known".to_owned());
        };
        let passed = wishes
            .iter()
            .find_map(|wish| peek(self.door, &wish.request()));
        let file = match passed {
            Some(fd) => OpenFile::new(fd, None),
            None => self.open(first)?,
        };
        let place = HeaderPlace::of(&file, 0).ok_or("its file has no identity".to_owned())?;
        let outside = look_into(std::os::fd::AsFd::as_fd(&file), 0);
        Ok((place, outside, first.name.clone()))
    }

    /// Opens a path to be read.
    fn open(&self, wish: &Wish) -> Result<OpenFile, String> {
        let mut request = wish.request().nonblocking(true);
        request.access = Access::ReadOnly;
        match look(self.door, &request).source {
            Source::Named | Source::Set => Err("no passed fd serves it yet".to_owned()),
            Source::Path if !self.paths => Err("the open hook was not asked for it".to_owned()),
            Source::Path => {
                let file = fdset::open(self.door, &request);
                file.map_err(|error| QmpError::from_error(&error).desc)
            }
        }
    }
}

/// Where a header is, what it says, and the name of its file; or why it is not read.
type Read = Result<(HeaderPlace, Result<Outside, ImageError>, String), String>;

fn told(error: &ImageError) -> String {
    QmpError::from_error(error).desc
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use fdset::{Answers, FdRegistry, Scope};
    use serde_json::json;

    use super::*;

    /// The first cluster of an image that names the backing file `name`, a qcow2.
    fn image_over(name: &str) -> OwnedFd {
        let mut bytes = vec![0; 512];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(8, &256_u64.to_be_bytes());
        put(16, &u32::try_from(name.len()).expect("short").to_be_bytes());
        put(20, &9_u32.to_be_bytes());
        put(48, &512_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        put(104, b"\xe2\x79\x2a\xca\0\0\0\x05qcow2");
        put(256, name.as_bytes());
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        file.into()
    }

    fn plan_of(name: &str) -> Vec<Step> {
        let arguments = json!({"driver": "qcow2", "node-name": "n",
            "file": {"driver": "file", "filename": name}});
        super::super::command("blockdev-add", arguments).expect("good arguments")
    }

    /// The names that are opened, and why the plan ends.
    fn short(steps: &[Step]) -> (Vec<&str>, Option<&str>) {
        let names = steps.iter().filter_map(|step| match step {
            Step::Open(planned) => Some(planned.wish.name.as_str()),
            Step::Settled(_) | Step::Image(_) => None,
        });
        let ends = steps.iter().find_map(|step| match step {
            Step::Image(image) => image.ends.as_deref(),
            Step::Open(_) | Step::Settled(_) => None,
        });
        (names.collect(), ends)
    }

    #[test]
    fn each_answer_adds_what_its_header_names_until_the_chain_bites_its_tail() {
        let answers = Arc::new(Answers::new());
        let registry = Arc::new(FdRegistry::new());
        let door = Door::new(registry, Scope::Process).with_answers(Arc::clone(&answers));
        let graph = BlockGraph::new();
        let reader = Reader {
            graph: &graph,
            door: &door,
            paths: false,
        };
        let mut steps = plan_of("/i/a");
        expand(&mut steps, &[], &reader);
        let unasked = Some("the open hook was not asked for it");
        assert_eq!(short(&steps), (vec!["/i/a"], unasked));
        let first = image_over("b");
        let again = first.try_clone().expect("an fd");
        answers.put("/i/a", Access::ReadWrite, Ok(first), None);
        expand(&mut steps, &[], &reader);
        assert_eq!(short(&steps), (vec!["/i/a", "/i/b"], unasked));
        answers.put("/i/b", Access::ReadOnly, Ok(image_over("./a")), None);
        expand(&mut steps, &[], &reader);
        assert_eq!(short(&steps).0, ["/i/a", "/i/b", "/i/./a"]);
        answers.put("/i/./a", Access::ReadOnly, Ok(again), None);
        expand(&mut steps, &[], &reader);
        let (names, ends) = short(&steps);
        assert_eq!(names.len(), 3);
        assert!(ends.is_some_and(|ends| ends.contains("go in a circle")));
        // All answers are still there for whoever opens.
        for (name, access) in [("/i/a", Access::ReadWrite), ("/i/b", Access::ReadOnly)] {
            let request = fdset::Request::new(name, access, fdset::Role::Image, "");
            assert!(fdset::open(&door, &request).is_ok());
        }
    }

    #[test]
    fn what_is_given_is_not_looked_up_and_nothing_passed_ends_the_plan() {
        let arguments = json!({"driver": "qcow2", "node-name": "n", "backing": null,
            "data-file": "d", "file": {"driver": "file", "filename": "/f"}});
        let steps = super::super::command("blockdev-add", arguments).expect("good arguments");
        assert!(steps.iter().all(|step| matches!(step, Step::Open(_))));
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let reader = Reader {
            graph: &BlockGraph::new(),
            door: &door,
            paths: true,
        };
        let mut steps = plan_of("fd:nobody");
        expand(&mut steps, &[], &reader);
        assert_eq!(short(&steps).1, Some("no passed fd serves it yet"));
    }
}
