//! `qom.json`: the object tree, and the objects that can be added to it.

use devices::net::{FilterError, FilterSpec};
use qapi_schema::qom::{
    Commands, ObjectDel, ObjectOptions, ObjectPropertyInfo, ObjectTypeInfo, QomGet, QomList,
    QomListProperties, QomListTypes, QomSet,
};
use qapi_schema::{Context, ErrorClass, QmpError};
use serde_json::Value;

use crate::device_tree::Part;
use crate::objects::read_only;
use crate::plug;
use crate::qom::Object;
use crate::resolve;
use crate::resolve::object::ObjectSpec;
use crate::throttling;
use crate::types;
use crate::vm::Vm;

impl Commands for Vm {
    fn qom_list(
        &mut self,
        _cx: &mut dyn Context,
        args: QomList,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let tree = self.object_tree();
        let object = find(&tree, &args.path)?;
        let own = std::iter::once(info("type", "string"));
        let properties = object
            .properties
            .iter()
            .map(|property| info(&property.name, &property.type_name));
        let children = object
            .children
            .iter()
            .map(|(name, child)| info(name, &format!("child<{}>", child.type_name)));
        Ok(own.chain(properties).chain(children).collect())
    }

    fn qom_get(&mut self, _cx: &mut dyn Context, args: QomGet) -> Result<Value, QmpError> {
        let tree = self.object_tree();
        let object = find(&tree, &args.path)?;
        if let Some(property) = object.property(&args.property) {
            return Ok(property.value);
        }
        if object
            .children
            .iter()
            .any(|(name, _)| *name == args.property)
        {
            let path = args.path.trim_end_matches('/');
            return Ok(Value::String(format!("{path}/{}", args.property)));
        }
        Err(QmpError::generic(format!(
            "Property '{}.{}' not found",
            object.type_name, args.property
        )))
    }

    fn qom_set(&mut self, _cx: &mut dyn Context, args: QomSet) -> Result<(), QmpError> {
        let tree = self.object_tree();
        let object = find(&tree, &args.path)?;
        let name = args.path.strip_prefix("/objects/").unwrap_or(&args.path);
        match tree.at(&format!("/objects/{name}")) {
            Some(_) if object.type_name == "throttle-group" => {
                self.set_throttle_group(name, object, &args.property, &args.value)
            }
            Some(_) => self.objects.set(name, &args.property, &args.value),
            None => match self.part_at(&args.path) {
                Some(Part::Balloon(balloon)) => {
                    plug::balloon::set(balloon, object, &args.property, &args.value)
                }
                Some(Part::Memory(memory)) => {
                    plug::mem::set(memory, object, &args.property, &args.value)
                }
                _ => Err(read_only(object, &args.property)),
            },
        }
    }

    fn qom_list_properties(
        &mut self,
        _cx: &mut dyn Context,
        args: QomListProperties,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let Some(properties) = types::properties(&args.typename) else {
            // Not DeviceNotFound: libvirt's daemon does not survive that here.
            let name = args.typename;
            return Err(QmpError::generic(format!("Class '{name}' not found")));
        };
        let own = std::iter::once(info("type", "string"));
        Ok(own.chain(properties).collect())
    }

    fn qom_list_types(
        &mut self,
        _cx: &mut dyn Context,
        args: QomListTypes,
    ) -> Result<Vec<ObjectTypeInfo>, QmpError> {
        let wanted = |entry: &&types::TypeEntry| {
            args.implements
                .as_deref()
                .is_none_or(|of| entry.implements(of))
                && (args.r#abstract != Some(false) || !entry.is_abstract)
        };
        let types = types::all();
        let infos = types.iter().filter(wanted).map(|entry| ObjectTypeInfo {
            name: entry.name.to_owned(),
            r#abstract: entry.is_abstract.then_some(true),
            parent: entry.parent.map(str::to_owned),
        });
        Ok(infos.collect())
    }

    fn object_add(&mut self, cx: &mut dyn Context, args: ObjectOptions) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.add_object(&door, args)
    }

    fn object_del(&mut self, _cx: &mut dyn Context, args: ObjectDel) -> Result<(), QmpError> {
        let removed = self.graph.remove_throttle_group(&args.id);
        removed.map_err(|error| QmpError::from_error(&error))?;
        self.objects.remove(&args.id)
    }
}

impl Vm {
    /// Adds an object, from a command or from the command line.
    ///
    /// # Errors
    /// The id is taken or the object cannot be had.
    pub fn add_object(
        &mut self,
        door: &fdset::Door,
        options: ObjectOptions,
    ) -> Result<(), QmpError> {
        let shown = picture(&options);
        let (id, spec) = resolve::object::object(options)?;
        let limits = match spec {
            ObjectSpec::ThrottleGroup(limits) => limits,
            ObjectSpec::Filter(filter) => return self.add_filter(door, &filter, shown),
            _ => return self.objects.add(door, &self.rings, id, spec, shown),
        };
        let shown = throttling::shown(limits);
        self.objects
            .add(door, &self.rings, id.clone(), spec, shown)?;
        let added = self.graph.add_throttle_group(id.clone(), limits);
        added.map_err(|error| match self.objects.remove(&id) {
            Ok(()) => QmpError::from_error(&error),
            Err(error) => error,
        })
    }

    fn add_filter(
        &mut self,
        door: &fdset::Door,
        spec: &FilterSpec,
        mut shown: Object,
    ) -> Result<(), QmpError> {
        self.objects.check_new(&spec.id)?;
        let filter = self.netdevs.add_filter(spec, door, &self.chardevs);
        let filter = filter.map_err(|error| match &error {
            FilterError::NoDevice { .. } => {
                QmpError::new(ErrorClass::DeviceNotFound, error.to_string())
            }
            _ => QmpError::from_error(&error),
        })?;
        for (name, usual) in [
            ("queue", "all"),
            ("status", "on"),
            ("position", "tail"),
            ("insert", "behind"),
        ] {
            if shown.property(name).is_none() {
                shown.set(name, "string", usual);
            }
        }
        self.objects.add_filter(spec.id.clone(), filter, shown);
        Ok(())
    }

    fn set_throttle_group(
        &mut self,
        id: &str,
        object: &Object,
        property: &str,
        value: &Value,
    ) -> Result<(), QmpError> {
        if property != "limits" {
            return Err(read_only(object, property));
        }
        let group = self.graph.throttle_group(id);
        let group = group.map_err(|error| QmpError::from_error(&error))?;
        let limits = throttling::set(group.limits(), value)?;
        group.set_limits(limits);
        self.objects.show(id, throttling::shown(limits));
        Ok(())
    }

    fn part_at(&self, path: &str) -> Option<&Part> {
        let name = self.devices.resolve(path)?;
        Some(&self.devices.find(name)?.part)
    }

    pub(crate) fn object_tree(&self) -> Object {
        let (peripheral, nameless) = self.devices.trees();
        let chardevs =
            self.chardevs
                .list()
                .into_iter()
                .fold(Object::new("container"), |tree, chardev| {
                    tree.with_child(
                        chardev.id(),
                        Object::new(format!("chardev-{}", chardev.kind())),
                    )
                });
        Object::new("container")
            .with_child(
                "machine",
                self.machine
                    .shown(&self.soldered_cpus(), &self.devices.fixtures())
                    .with_child("peripheral", peripheral)
                    .with_child("peripheral-anon", nameless),
            )
            .with_child("objects", self.objects.tree())
            .with_child("chardevs", chardevs)
    }
}

fn find<'a>(tree: &'a Object, path: &str) -> Result<&'a Object, QmpError> {
    tree.at(path).ok_or_else(|| {
        QmpError::new(
            ErrorClass::DeviceNotFound,
            format!("Device '{path}' not found"),
        )
    })
}

fn info(name: &str, type_name: &str) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name: name.to_owned(),
        r#type: type_name.to_owned(),
        description: None,
        default_value: None,
    }
}

/// How the object tree shows an object: its properties as they were given, but for a secret.
fn picture(options: &ObjectOptions) -> Object {
    let object = Object::new(options.qom_type.tag().as_str());
    let Ok(Value::Object(members)) = serde_json::to_value(options) else {
        return object;
    };
    members
        .into_iter()
        .filter(|(name, _)| !matches!(name.as_str(), "qom-type" | "id" | "data"))
        .fold(object, |object, (name, value)| {
            object.with_json(&name, value)
        })
}
