//! The object tree that `qom-list` and `qom-get` show.
//!
//! ```text
//!   /
//!   ├── machine                 type, ...
//!   │   ├── peripheral          one child for each device with an id
//!   │   ├── peripheral-anon     one child `device[N]` for each device without
//!   │   └── unattached          the vCPUs and what the board brings along
//!   ├── objects                 one child for each object-add
//!   └── chardevs                one child for each chardev
//! ```
//!
//! The tree is a picture, made anew for each question from what the VM holds; nothing lives in it.
//! This room knows no VM: whoever owns a thing describes it as an [`Object`].

use serde_json::Value;

/// One object of the tree: its type, its properties, its children.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The QOM type name, such as `virtio-blk-pci`.
    pub type_name: String,
    /// The properties, in the order in which they are listed.
    pub properties: Vec<Property>,
    /// The children with their names.
    pub children: Vec<(String, Object)>,
}

/// One property of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its type in QOM's words: `string`, `bool`, `uint32`, `link<...>`.
    pub type_name: String,
    /// Its present value.
    pub value: Value,
}

impl Object {
    /// An object without properties and children.
    pub fn new(type_name: impl Into<String>) -> Self {
        Self {
            type_name: type_name.into(),
            properties: Vec::new(),
            children: Vec::new(),
        }
    }

    /// With one more property.
    #[must_use]
    pub fn with(mut self, name: &str, type_name: &str, value: impl Into<Value>) -> Self {
        self.properties.push(Property {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            value: value.into(),
        });
        self
    }

    /// Gives a property another value, or the object one more property.
    pub fn set(&mut self, name: &str, type_name: &str, value: impl Into<Value>) {
        match self.properties.iter_mut().find(|one| one.name == name) {
            Some(property) => property.value = value.into(),
            None => self.properties.push(Property {
                name: name.to_owned(),
                type_name: type_name.to_owned(),
                value: value.into(),
            }),
        }
    }

    /// With one more property, whose type follows from its value.
    #[must_use]
    pub fn with_json(self, name: &str, value: Value) -> Self {
        let type_name = match &value {
            Value::Bool(_) => "bool",
            Value::Number(_) => "int",
            _ => "string",
        };
        self.with(name, type_name, value)
    }

    /// With one more child.
    #[must_use]
    pub fn with_child(mut self, name: impl Into<String>, child: Object) -> Self {
        self.children.push((name.into(), child));
        self
    }

    /// What its children are called.
    pub fn child_names(&self) -> impl Iterator<Item = &str> {
        self.children.iter().map(|(name, _)| name.as_str())
    }

    /// The object at `path`: absolute (`/machine/peripheral/disk0`), or partial (`disk0`), which
    /// must fit exactly one object's end.
    pub fn at(&self, path: &str) -> Option<&Object> {
        if let Some(absolute) = path.strip_prefix('/') {
            return self.descend(&parts(absolute));
        }
        let parts = parts(path);
        let mut found = Vec::new();
        self.find_partial(&parts, &mut found);
        match found[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The property called `name`. Every object has `type`; a child is a property too, whose
    /// value is its path, which the caller knows.
    pub fn property(&self, name: &str) -> Option<Property> {
        if name == "type" {
            return Some(Property {
                name: "type".to_owned(),
                type_name: "string".to_owned(),
                value: Value::String(self.type_name.clone()),
            });
        }
        self.properties
            .iter()
            .find(|property| property.name == name)
            .cloned()
    }

    fn descend(&self, parts: &[&str]) -> Option<&Object> {
        let [first, rest @ ..] = parts else {
            return Some(self);
        };
        let (_, child) = self.children.iter().find(|(name, _)| name == first)?;
        child.descend(rest)
    }

    fn find_partial<'a>(&'a self, parts: &[&str], found: &mut Vec<&'a Object>) {
        if parts.is_empty() {
            return;
        }
        found.extend(self.descend(parts));
        for (_, child) in &self.children {
            child.find_partial(parts, found);
        }
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Object {
        let disk = Object::new("virtio-blk-pci").with("serial", "string", "abc");
        Object::new("container").with_child(
            "machine",
            Object::new("pc-q35-sesame1-machine")
                .with_child(
                    "peripheral",
                    Object::new("container").with_child("disk0", disk),
                )
                .with_child("unattached", Object::new("container")),
        )
    }

    #[test]
    fn an_absolute_path_leads_from_the_root() {
        let tree = tree();
        assert_eq!(tree.at("/").unwrap().type_name, "container");
        assert_eq!(
            tree.at("/machine/peripheral/disk0").unwrap().type_name,
            "virtio-blk-pci"
        );
        assert_eq!(tree.at("/machine/disk0"), None);
    }

    #[test]
    fn a_partial_path_must_fit_once() {
        let tree = tree();
        assert_eq!(tree.at("disk0").unwrap().type_name, "virtio-blk-pci");
        assert_eq!(
            tree.at("peripheral/disk0").unwrap().type_name,
            "virtio-blk-pci"
        );
        assert_eq!(tree.at("nothing"), None);
        assert_eq!(tree.at(""), None);
        let twice = Object::new("a")
            .with_child("x", Object::new("b"))
            .with_child("y", Object::new("c").with_child("x", Object::new("d")));
        assert_eq!(twice.at("x"), None);
    }

    #[test]
    fn every_object_tells_its_type() {
        let tree = tree();
        let disk = tree.at("disk0").unwrap();
        assert_eq!(disk.property("type").unwrap().value, "virtio-blk-pci");
        assert_eq!(disk.property("serial").unwrap().value, "abc");
        assert_eq!(disk.property("other"), None);
    }
}
