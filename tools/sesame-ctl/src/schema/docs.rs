//! What commands and members are good for, in the words of this version's schema.

use serde_json::Value;

/// The published JSON Schema of this version, which carries the documentation.
const COMPILED_IN: &str = include_str!("../../../../qapi-schema/export/schema.json");

/// The documentation of commands, members and words.
#[derive(Debug)]
pub(crate) struct Docs(Value);

/// A place in the documentation: a type and what its tags are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'d> {
    docs: &'d Docs,
    schema: &'d Value,
}

impl Docs {
    /// Reads what is compiled in.
    pub(crate) fn compiled_in() -> Self {
        Self(serde_json::from_str(COMPILED_IN).unwrap_or_default())
    }

    /// What a command does.
    pub(crate) fn command(&self, name: &str) -> Option<String> {
        text(self.0.get("commands")?.get(name)?)
    }

    /// When an event is sent.
    pub(crate) fn event(&self, name: &str) -> Option<String> {
        text(self.0.get("events")?.get(name)?)
    }

    /// The arguments of a command.
    pub(crate) fn arguments(&self, command: &str) -> Option<Place<'_>> {
        let schema = self.0.get("commands")?.get(command)?.get("arguments")?;
        Some(Place { docs: self, schema })
    }

    fn resolve<'d>(&'d self, schema: &'d Value) -> &'d Value {
        let target = schema["$ref"].as_str().and_then(|reference| {
            let name = reference.strip_prefix("#/$defs/")?;
            self.0.get("$defs")?.get(name)
        });
        target.unwrap_or(schema)
    }
}

impl<'d> Place<'d> {
    /// The member of that name, whichever variant has it.
    pub(crate) fn member(&self, name: &str) -> Option<Self> {
        let resolved = self.docs.resolve(self.schema);
        let here = |schema| Place {
            docs: self.docs,
            schema,
        };
        let own = [self.schema, resolved]
            .into_iter()
            .filter_map(|schema| schema.get("properties")?.get(name))
            .find(|member| member.get("const").is_none());
        let branches = ["oneOf", "anyOf"].into_iter();
        own.map(here).or_else(|| {
            branches
                .filter_map(|list| resolved.get(list)?.as_array())
                .flatten()
                .find_map(|branch| here(branch).member(name))
        })
    }

    /// What it is good for.
    pub(crate) fn text(&self) -> Option<String> {
        text(self.schema).or_else(|| text(self.docs.resolve(self.schema)))
    }
}

/// A description as one line.
fn text(schema: &Value) -> Option<String> {
    let text = schema.get("description")?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    #[test]
    fn every_command_and_each_of_its_first_members_is_documented() {
        let (schema, docs) = (Schema::compiled_in(), Docs::compiled_in());
        let commands: Vec<_> = schema.commands().collect();
        assert!(commands.len() > 50, "{commands:?}");
        for command in commands {
            assert!(docs.command(command).is_some(), "{command}");
            let kind = schema.arguments(command).expect("its arguments");
            let object = schema.object(kind).expect("an object");
            for member in schema.members(object, &|_| None) {
                // The tag is told by its words.
                if object.tag() != Some(&member.name) {
                    let place = docs.arguments(command).and_then(|p| p.member(&member.name));
                    assert!(
                        place.and_then(|p| p.text()).is_some(),
                        "{command} {member:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_member_of_a_variant_is_found_at_any_depth() {
        let docs = Docs::compiled_in();
        let arguments = docs.arguments("blockdev-add").expect("documented");
        let inner = arguments
            .member("file")
            .and_then(|file| file.member("filename"));
        let text = inner.and_then(|name| name.text()).expect("documented");
        assert!(text.contains("fd:NAME"), "{text}");
    }
}
