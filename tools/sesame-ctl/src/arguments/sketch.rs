//! A command that is still being typed: what it has, and what may come next.

use indexmap::IndexMap;

use super::tree::{Branch, Leaf, text_at};
use super::typed::with_bare;
use crate::schema::{Kind, Object, Schema};

/// A half-typed command.
#[derive(Debug)]
pub(crate) struct Sketch<'s> {
    schema: &'s Schema,
    object: &'s Object,
    members: IndexMap<String, Leaf>,
}

/// A member that may be given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) kind: String,
    /// Whether it may be left out.
    pub(crate) optional: bool,
    /// Whether it has been given, at least in part.
    pub(crate) given: bool,
    /// Whether it decides which others there are.
    pub(crate) decides: bool,
}

impl<'s> Sketch<'s> {
    /// Reads what was typed behind the command, as far as it can be understood.
    pub(crate) fn of(schema: &'s Schema, command: &str, words: &[String]) -> Option<Self> {
        let object = schema.object(schema.arguments(command)?)?;
        let mut branch = Branch::default();
        for word in words {
            // What is wrong is told when the line is sent.
            let _ = branch.add(word, &mut String::new, &mut Vec::new());
        }
        let members = with_bare(schema, object, branch).unwrap_or_default();
        Some(Self {
            schema,
            object,
            members,
        })
    }

    /// What may stand at a dotted path; the command's own members at the empty one.
    pub(crate) fn slots(&self, path: &[&str]) -> Vec<Slot> {
        let mut object = self.object;
        let mut members = Some(&self.members);
        let mut path = path.iter();
        while let Some(name) = path.next() {
            let Some(mut kind) = self.kind_in(object, members, name) else {
                return Vec::new();
            };
            members = members.and_then(|members| below(members, name));
            if let Kind::List(element) = self.schema.kind(&kind) {
                kind = element.clone();
                let Some(index) = path.next() else {
                    return Vec::new();
                };
                members = members.and_then(|members| below(members, index));
            }
            match self.schema.object(&kind) {
                Some(inner) => object = inner,
                None => return Vec::new(),
            }
        }
        let slots = self.known(object, members).into_iter().map(|member| Slot {
            name: member.name.clone(),
            kind: member.kind.clone(),
            optional: member.optional,
            given: members.is_some_and(|members| members.contains_key(&member.name)),
            decides: object.tag() == Some(&member.name),
        });
        slots.collect()
    }

    /// The type of the value at a dotted key.
    pub(crate) fn kind(&self, key: &str) -> Option<String> {
        let path: Vec<_> = key.split('.').collect();
        let (last, path) = path.split_last()?;
        if let Some(slot) = self.slots(path).into_iter().find(|slot| slot.name == *last) {
            return Some(slot.kind);
        }
        // An element of a list.
        let (list, path) = path.split_last()?;
        let slot = self
            .slots(path)
            .into_iter()
            .find(|slot| slot.name == *list)?;
        match self.schema.kind(&slot.kind) {
            Kind::List(element) if last.parse::<u32>().is_ok() => Some(element.clone()),
            _ => None,
        }
    }

    /// The text that a member was given.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        text_at(&self.members, name)
    }

    fn known(
        &self,
        object: &'s Object,
        members: Option<&IndexMap<String, Leaf>>,
    ) -> Vec<&'s crate::schema::Member> {
        let chosen = |tag: &str| text_at(members?, tag).map(str::to_owned);
        self.schema.members(object, &chosen)
    }

    fn kind_in(
        &self,
        object: &'s Object,
        members: Option<&IndexMap<String, Leaf>>,
        name: &str,
    ) -> Option<String> {
        let known = self.known(object, members);
        let member = known.into_iter().find(|member| member.name == name)?;
        Some(member.kind.clone())
    }
}

fn below<'m>(
    members: &'m IndexMap<String, Leaf>,
    name: &str,
) -> Option<&'m IndexMap<String, Leaf>> {
    match members.get(name)? {
        Leaf::Branch(members) => Some(members),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str], path: &[&str]) -> Vec<String> {
        let schema = Schema::compiled_in();
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let sketch = Sketch::of(&schema, "blockdev-add", &words).expect("a command");
        let slots = sketch.slots(path).into_iter();
        slots.map(|slot| slot.name).collect()
    }

    #[test]
    fn an_inner_driver_decides_what_may_come_below_it() {
        let outer = ["driver=raw"];
        assert!(!names(&outer, &[]).contains(&"filename".to_owned()));
        assert!(names(&outer, &["file"]).contains(&"driver".to_owned()));
        assert!(!names(&outer, &["file"]).contains(&"filename".to_owned()));
        let both = ["driver=raw", "file.driver=file"];
        assert!(names(&both, &["file"]).contains(&"filename".to_owned()));
    }

    #[test]
    fn a_word_without_a_key_decides_as_well() {
        assert!(names(&["file"], &[]).contains(&"filename".to_owned()));
    }
}
