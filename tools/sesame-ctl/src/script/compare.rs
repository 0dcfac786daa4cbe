//! Whether a reply is like the recorded one, though the VM is another.
//!
//! Words, truth and null must be the same. A number must be a number: thread ids, sizes and
//! addresses differ from run to run. Members that are new do no harm, one that is missing does.
//! Lists are compared element by element. `"*"` in a script stands for anything.

use serde_json::Value;

/// Says where `came` is unlike `recorded`, if it is.
pub(crate) fn difference(recorded: &Value, came: &Value) -> Option<String> {
    at("", recorded, came)
}

fn at(path: &str, recorded: &Value, came: &Value) -> Option<String> {
    let here = if path.is_empty() { "the reply" } else { path };
    match (recorded, came) {
        (Value::String(any), _) if any == "*" => None,
        (Value::Number(_), Value::Number(_)) => None,
        (Value::Object(recorded), Value::Object(came)) => {
            recorded.iter().find_map(|(name, recorded)| {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match came.get(name) {
                    Some(came) => at(&path, recorded, came),
                    None => Some(format!("{path} is missing")),
                }
            })
        }
        (Value::Array(recorded), Value::Array(came)) if recorded.len() != came.len() => {
            let (had, has) = (recorded.len(), came.len());
            Some(format!("{here} has {has} elements and not {had}"))
        }
        (Value::Array(recorded), Value::Array(came)) => (0..)
            .zip(recorded.iter().zip(came))
            .find_map(|(index, (recorded, came))| at(&format!("{path}[{index}]"), recorded, came)),
        _ if recorded == came => None,
        _ => Some(format!("{here} is {came} and not {recorded}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_means_the_same_in_another_run_is_compared() {
        let recorded =
            json!({"status": "running", "thread": 7, "list": [{"a": true}], "path": "*"});
        let like = json!({"status": "running", "thread": 99, "list": [{"a": true, "b": 1}],
                          "path": "pty:3", "new": null});
        assert_eq!(difference(&recorded, &like), None);
        let unlike = [
            (
                json!({"status": "paused", "thread": 7, "list": [{"a": true}], "path": 1}),
                "status is \"paused\"",
            ),
            (
                json!({"status": "running", "thread": "7", "list": [], "path": 1}),
                "thread is \"7\"",
            ),
            (
                json!({"status": "running", "thread": 7, "list": [], "path": 1}),
                "list has 0 elements and not 1",
            ),
            (
                json!({"status": "running", "thread": 7, "list": [{"a": false}], "path": 1}),
                "list[0].a is false",
            ),
            (json!({"status": "running"}), "thread is missing"),
            (json!([]), "the reply is []"),
        ];
        for (came, wanted) in unlike {
            let why = difference(&recorded, &came).expect("a difference");
            assert!(why.contains(wanted), "{why}");
        }
    }
}
