//! The seam itself, on a lamp with a switch.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::json;

use super::*;

#[derive(Serialize, Deserialize)]
struct SwitchState {
    on: bool,
}

impl SavedState for SwitchState {
    const KIND: &'static str = "switch";
    const VERSION: u32 = 1;
}

#[derive(Default)]
struct Switch(AtomicBool);

impl Stateful for Switch {
    type State = SwitchState;

    fn save(&self) -> SwitchState {
        let on = self.0.load(Ordering::SeqCst);
        SwitchState { on }
    }

    fn load(&self, state: SwitchState) -> Result<(), StateError> {
        self.0.store(state.on, Ordering::SeqCst);
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct LampState {
    volts: u32,
}

impl SavedState for LampState {
    const KIND: &'static str = "lamp";
    const VERSION: u32 = 3;
}

#[derive(Default)]
struct Lamp {
    volts: AtomicU32,
    switch: Switch,
    shines: AtomicBool,
}

impl Stateful for Lamp {
    type State = LampState;

    fn save(&self) -> LampState {
        let volts = self.volts.load(Ordering::SeqCst);
        LampState { volts }
    }

    fn load(&self, state: LampState) -> Result<(), StateError> {
        if state.volts > 240 {
            return Err(LampState::refused(format!("volts: {}", state.volts)));
        }
        self.volts.store(state.volts, Ordering::SeqCst);
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("switch", &self.switch)]
    }

    fn settle(&self) {
        let shines = self.switch.save().on && self.save().volts > 0;
        self.shines.store(shines, Ordering::SeqCst);
    }
}

fn lit() -> Lamp {
    let lamp = Lamp::default();
    lamp.volts.store(230, Ordering::SeqCst);
    lamp.switch.0.store(true, Ordering::SeqCst);
    lamp
}

/// What `change` makes of a lamp's tree is refused with this.
fn refusal(change: impl FnOnce(&mut StateTree)) -> String {
    let mut tree = lit().tree().unwrap();
    change(&mut tree);
    let error = Lamp::default().restore(&tree).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[test]
fn a_tree_is_loaded_with_its_parts_and_settled_behind_the_last() {
    let copy = Lamp::default();
    let tree = trial::carry(&lit(), &copy);
    assert!(copy.shines.load(Ordering::SeqCst));
    assert_eq!(
        serde_json::to_value(&tree).unwrap(),
        json!({
            "kind": "lamp", "version": 3, "state": { "volts": 230 },
            "parts": { "switch": { "kind": "switch", "version": 1, "state": { "on": true } } }
        })
    );
    assert_eq!(tree.at("").unwrap().kind, "lamp");
    assert_eq!(tree.at("switch").unwrap().kind, "switch");
    assert_eq!(tree.at("switch/bulb"), None);
}

#[test]
fn a_tree_that_is_not_the_devices_is_refused_and_says_why() {
    let refusals = [
        refusal(|tree| tree.kind = "door".to_owned()),
        refusal(|tree| tree.version = 4),
        refusal(|tree| tree.state = json!({ "volts": "many" })),
        refusal(|tree| tree.state = json!({ "volts": 400 })),
        refusal(|tree| tree.parts.clear()),
        refusal(|tree| {
            let stray = tree.parts["switch"].clone();
            tree.parts.insert("bulb".to_owned(), stray);
        }),
        refusal(|tree| tree.parts.get_mut("switch").unwrap().version = 2),
    ];
    assert_eq!(
        refusals,
        [
            "a state of kind 'door' for a device of kind 'lamp'",
            "state 'lamp': version 4, and this program knows version 3 only",
            "state 'lamp': not laid out as version 3 is: invalid type: string \"many\", expected u32",
            "state 'lamp': volts: 400",
            "state 'lamp': the part 'switch' is missing",
            "state 'lamp': a part 'bulb', which this device does not have",
            "part 'switch': state 'switch': version 2, and this program knows version 1 only",
        ]
    );
}

#[test]
fn strange_values_are_put_everywhere() {
    let lamp = lit();
    let tree = lamp.tree().unwrap();
    // The whole and the one member; the member takes 0 only, but for what no lamp has.
    assert_eq!(trial::offend(&lamp, &tree, || ()), 15);
}
