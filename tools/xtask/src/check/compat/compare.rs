//! What a client of the old document would stumble over in the new one.
use std::collections::BTreeSet;

use serde_json::Value;

use super::shape::{Document, Object, Shape};
use crate::check::Complaints;

/// Which way a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client: what was accepted must be accepted.
    In,
    /// To the client: what was promised must be kept.
    Out,
}

impl Way {
    /// What members are called.
    fn member(self) -> &'static str {
        match self {
            Self::In => "argument",
            Self::Out => "member",
        }
    }
}

/// Everything that breaks, one line each.
pub(super) fn documents(old: &Value, new: &Value) -> Complaints {
    let mut compare = Compare {
        old: Document(old),
        new: Document(new),
        seen: BTreeSet::new(),
        complaints: Vec::new(),
    };
    for (kind, parts) in [
        (
            "commands",
            [("arguments", Way::In), ("return", Way::Out)].as_slice(),
        ),
        ("events", &[("data", Way::Out)]),
    ] {
        for (name, was) in old[kind].as_object().into_iter().flatten() {
            let is = &new[kind][name];
            if is.is_null() {
                let what = kind.trim_end_matches('s');
                compare.complaints.push(format!("{what} {name} is gone"));
                continue;
            }
            for (part, way) in parts {
                let at = At {
                    name,
                    path: String::new(),
                    way: *way,
                };
                compare.schemas(&was[*part], &is[*part], &at);
            }
        }
    }
    compare.complaints
}

/// Where in a command or event.
struct At<'d> {
    name: &'d str,
    path: String,
    way: Way,
}

impl At<'_> {
    fn below(&self, member: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self {
            path: format!("{}{dot}{member}", self.path),
            ..*self
        }
    }

    /// The place in words.
    fn say(&self) -> String {
        match (self.path.as_str(), self.way) {
            ("", Way::In) => format!("{}: the arguments", self.name),
            ("", Way::Out) => format!("{}: what is returned", self.name),
            (path, way) => format!("{}: {} {path}", self.name, way.member()),
        }
    }
}

struct Compare<'d> {
    old: Document<'d>,
    new: Document<'d>,
    /// References under way or done, so that a type that holds itself ends.
    seen: BTreeSet<(String, bool)>,
    complaints: Complaints,
}

impl<'d> Compare<'d> {
    fn complain(&mut self, at: &At<'_>, what: impl AsRef<str>) {
        let line = format!("{} {}", at.say(), what.as_ref());
        if !self.complaints.contains(&line) {
            self.complaints.push(line);
        }
    }

    fn schemas(&mut self, old: &'d Value, new: &'d Value, at: &At<'_>) {
        if let (Some(was), Some(is)) = (old["$ref"].as_str(), new["$ref"].as_str()) {
            let pair = format!("{} {was} {is}", at.name);
            if old["properties"].is_null() && !self.seen.insert((pair, at.way == Way::In)) {
                return;
            }
        }
        match (self.old.shape(old), self.new.shape(new)) {
            (Shape::Any, Shape::Any) => {}
            (Shape::Plain(was), Shape::Plain(is)) if was == is => {}
            (Shape::Any, _) if at.way == Way::Out => {}
            (_, Shape::Any) if at.way == Way::In => {}
            (Shape::Words(_), Shape::Plain("string")) if at.way == Way::In => {}
            (
                Shape::Integer { least, most },
                Shape::Integer {
                    least: low,
                    most: high,
                },
            ) => {
                self.ranges((least, most), (low, high), at);
            }
            (Shape::Words(was), Shape::Words(is)) => {
                for word in was.difference(&is) {
                    self.complain(at, format!("is no longer '{word}'"));
                }
            }
            (Shape::List(was), Shape::List(is)) => self.schemas(was, is, &at.below("[]")),
            (Shape::Object(was), Shape::Object(is)) => self.objects(&was, &is, at),
            (Shape::Choice(was), Shape::Choice(is)) => {
                for (kind, old) in &was {
                    match is.get(kind) {
                        Some(new) => self.schemas(old, new, at),
                        None => self.complain(at, format!("is no longer {kind}")),
                    }
                }
                for kind in is.keys().filter(|kind| !was.contains_key(*kind)) {
                    if at.way == Way::Out {
                        self.complain(at, format!("may now be {kind}"));
                    }
                }
            }
            (was, Shape::Choice(is)) if at.way == Way::In => match is.get(was.kind()) {
                Some(new) => self.schemas(old, new, at),
                None => self.complain(at, format!("is no longer {}", was.kind())),
            },
            (was, is) => self.complain(at, format!("was {} and is {}", was.kind(), is.kind())),
        }
    }

    fn ranges(&mut self, was: (i128, i128), is: (i128, i128), at: &At<'_>) {
        let (inner, outer) = match at.way {
            Way::In => (was, is),
            Way::Out => (is, was),
        };
        if inner.0 < outer.0 || inner.1 > outer.1 {
            let text = format!("was {} to {} and is {} to {}", was.0, was.1, is.0, is.1);
            self.complain(at, text);
        }
    }

    fn objects(&mut self, old: &Object<'d>, new: &Object<'d>, at: &At<'_>) {
        for (name, (must, was)) in &old.members {
            let below = at.below(name);
            let Some((must_now, is)) = new.members.get(name) else {
                self.complain(&below, "is gone");
                continue;
            };
            if at.way == Way::In && *must_now && !must {
                self.complain(&below, "must now be given");
            }
            if at.way == Way::Out && *must && !must_now {
                self.complain(&below, "may now be absent");
            }
            self.schemas(was, is, &below);
        }
        for (name, (must, _)) in &new.members {
            if at.way == Way::In && *must && !old.members.contains_key(name) {
                self.complain(&at.below(name), "is new and must be given");
            }
        }
        for (tag, was) in &old.variants {
            let is = new.variants.iter().find(|(name, _)| name == tag);
            let Some((_, is)) = is else {
                self.complain(&at.below(tag), "is gone");
                continue;
            };
            for (value, members) in was {
                match is.get(value) {
                    Some(now) => self.objects(members, now, at),
                    None => self.complain(&at.below(tag), format!("is no longer '{value}'")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn command(arguments: &Value, reply: &Value) -> Value {
        json!({
            "commands": {"do": {"arguments": arguments, "return": reply}},
            "$defs": {
                "Colour": {"oneOf": [
                    {"type": "string", "enum": ["red", "green"]},
                    {"type": "string", "const": "blue", "description": "like the sky"},
                ]},
                "Fewer": {"oneOf": [{"type": "string", "enum": ["red", "blue"]}]},
                "Tree": {"type": "object", "properties": {"child": {"$ref": "#/$defs/Tree"}}},
                "Deep": {"type": "object", "properties": {"depth": {"type": "integer"}},
                         "required": ["depth"]},
            },
        })
    }

    fn object(members: &Value, required: &Value) -> Value {
        json!({"type": "object", "properties": members, "required": required})
    }

    /// The same change in arguments and in a reply.
    fn change(old: &Value, new: &Value) -> (Complaints, Complaints) {
        let none = object(&json!({}), &json!([]));
        (
            documents(&command(old, &none), &command(new, &none)),
            documents(&command(&none, old), &command(&none, new)),
        )
    }

    fn member(old: &Value, new: &Value) -> (Complaints, Complaints) {
        change(
            &object(&json!({"m": old}), &json!([])),
            &object(&json!({"m": new}), &json!([])),
        )
    }

    fn one(text: &str) -> Complaints {
        vec![text.to_owned()]
    }

    #[test]
    fn a_removed_command_is_caught() {
        let none = object(&json!({}), &json!([]));
        let complaints = documents(&command(&none, &none), &json!({"commands": {}}));
        assert_eq!(complaints, one("command do is gone"));
    }

    #[test]
    fn a_removed_member_is_caught_either_way() {
        let text = json!({"type": "string"});
        let (arguments, reply) = change(
            &object(&json!({"m": text}), &json!([])),
            &object(&json!({}), &json!([])),
        );
        assert_eq!(arguments, one("do: argument m is gone"));
        assert_eq!(reply, one("do: member m is gone"));
    }

    #[test]
    fn an_argument_must_not_become_mandatory_nor_a_reply_optional() {
        let text = json!({"m": {"type": "string"}});
        let may = object(&text, &json!([]));
        let must = object(&text, &json!(["m"]));
        let (arguments, reply) = change(&may, &must);
        assert_eq!(arguments, one("do: argument m must now be given"));
        assert!(reply.is_empty());
        let (arguments, reply) = change(&must, &may);
        assert!(arguments.is_empty());
        assert_eq!(reply, one("do: member m may now be absent"));
    }

    #[test]
    fn a_new_argument_must_be_optional() {
        let none = object(&json!({}), &json!([]));
        let new = object(&json!({"m": {"type": "string"}}), &json!(["m"]));
        let (arguments, reply) = change(&none, &new);
        assert_eq!(arguments, one("do: argument m is new and must be given"));
        assert!(reply.is_empty());
    }

    #[test]
    fn a_dropped_word_is_caught_either_way_and_a_new_one_is_free() {
        let more = json!({"$ref": "#/$defs/Colour"});
        let fewer = json!({"$ref": "#/$defs/Fewer"});
        let (arguments, reply) = member(&more, &fewer);
        assert_eq!(arguments, one("do: argument m is no longer 'green'"));
        assert_eq!(reply, one("do: member m is no longer 'green'"));
        assert_eq!(member(&fewer, &more), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_number_may_grow_in_arguments_and_shrink_in_replies() {
        let wide = json!({"type": "integer", "format": "uint64", "minimum": 0});
        let narrow = json!({"type": "integer", "format": "uint32", "minimum": 0});
        let (arguments, reply) = member(&wide, &narrow);
        assert_eq!(arguments.len(), 1);
        assert!(reply.is_empty());
        let (arguments, reply) = member(&narrow, &wide);
        assert!(arguments.is_empty());
        assert_eq!(reply.len(), 1);
    }

    #[test]
    fn another_type_is_caught_and_a_wider_argument_is_free() {
        let text = json!({"type": "string"});
        let (arguments, reply) = member(&text, &json!({"type": "boolean"}));
        assert_eq!(arguments, one("do: argument m was text and is a boolean"));
        assert_eq!(reply, one("do: member m was text and is a boolean"));
        let either = json!({"anyOf": [text, {"type": "null"}]});
        let (arguments, reply) = member(&text, &either);
        assert!(arguments.is_empty());
        assert_eq!(reply.len(), 1);
    }

    #[test]
    fn a_variant_that_goes_is_caught() {
        let variant = |value: &str| {
            json!({"type": "object", "properties": {"kind": {"type": "string", "const": value}},
                   "required": ["kind"], "$ref": "#/$defs/Deep"})
        };
        let both = json!({"type": "object", "oneOf": [variant("a"), variant("b")]});
        let (arguments, _) = change(&both, &json!({"type": "object", "oneOf": [variant("a")]}));
        assert_eq!(arguments, one("do: argument kind is no longer 'b'"));
    }

    #[test]
    fn a_type_that_holds_itself_ends() {
        let tree = json!({"$ref": "#/$defs/Tree"});
        assert_eq!(change(&tree, &tree), (Vec::new(), Vec::new()));
    }
}
