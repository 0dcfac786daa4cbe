//! What every device's state is put through: there and back, and what no device ever saved.

use serde_json::{Value, json};

use super::{AnyStateful, StateTree};

/// Has `to`, a device as `from` was when it was new, go on from `from`'s state: it is in the same
/// state then. Returns that state.
pub(crate) fn carry(from: &dyn AnyStateful, to: &dyn AnyStateful) -> StateTree {
    let tree = from.tree().unwrap();
    let text = serde_json::to_string(&tree).unwrap();
    to.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(to.tree().unwrap(), tree);
    tree
}

/// Gives `to` every state that differs from `tree` in one value that does not belong there. It may
/// refuse each of them or live with it; `alive` uses it after each. Returns how many it refused.
pub(crate) fn offend(to: &dyn AnyStateful, tree: &StateTree, alive: impl Fn()) -> usize {
    let mut refused = 0;
    for at in places(&tree.state) {
        for value in strange() {
            let mut other = tree.clone();
            *other.state.pointer_mut(&at).unwrap() = value;
            refused += usize::from(to.restore(&other).is_err());
            let _ = to.tree().unwrap();
            alive();
        }
    }
    refused
}

fn strange() -> [Value; 8] {
    [
        Value::Null,
        json!(0),
        json!(-1),
        json!(255),
        json!(u32::MAX),
        json!(u64::MAX),
        json!("strange"),
        json!([]),
    ]
}

/// Where all values of `value` are, itself first, as JSON pointers.
fn places(value: &Value) -> Vec<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
        // Enough of a long list to meet its first, its next and its last.
        Value::Array(list) if list.len() > 8 => [0, 1, list.len() - 1]
            .iter()
            .map(|&index| (index.to_string(), &list[index]))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    let below = below.into_iter().flat_map(|(name, value)| {
        let name = name.replace('~', "~0").replace('/', "~1");
        places(value)
            .into_iter()
            .map(move |at| format!("/{name}{at}"))
    });
    std::iter::once(String::new()).chain(below).collect()
}
