//! `-numa`: the arguments of `set-numa-node`, and vCPUs by ranges.

use qapi_schema::numa::NumaOptions;
use serde_json::Value;

use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

pub(super) fn take(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let (text, cpus) = take_cpus(given.text)?;
    let mut parsed = read::parse::<NumaOptions>(&text, Form::json("type"))?;
    if parsed.help {
        let kind = parsed.value.get("type").and_then(Value::as_str);
        return Ok(Step::Print(help::keys_of::<NumaOptions>("numa", kind)));
    }
    if let (false, Some(keys)) = (cpus.is_empty(), parsed.value.as_object_mut()) {
        keys.insert("cpus".to_owned(), Value::Array(cpus));
    }
    let options: NumaOptions = read::typed(parsed.value, parsed.mode)?;
    draft.numa.push((given.typed.to_owned(), options));
    Ok(Step::Next)
}

/// Takes the keys `cpus=FIRST[-LAST]` out of the text, of which there may be several.
fn take_cpus(text: &str) -> Result<(String, Vec<Value>), Problem> {
    if text.starts_with('{') {
        return Ok((text.to_owned(), Vec::new()));
    }
    let (mut rest, mut cpus) = (Vec::new(), Vec::new());
    for part in read::split(text) {
        let Some(range) = part.strip_prefix("cpus=") else {
            rest.push(part);
            continue;
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let numbers = (first.parse::<u16>(), last.parse::<u16>());
        let (Ok(first), Ok(last)) = numbers else {
            return Err(Problem::new(format!(
                "cpus={range}: wanted the number of a vCPU, or FIRST-LAST"
            )));
        };
        if last < first {
            return Err(Problem::new(format!(
                "cpus={range}: the last comes before the first"
            )));
        }
        cpus.extend((first..=last).map(|cpu| Value::from(cpu.to_string())));
    }
    Ok((rest.join(","), cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_named_one_by_one_or_by_ranges() {
        let (rest, cpus) = take_cpus("node,cpus=0-2,nodeid=1,cpus=7").unwrap();
        assert_eq!(rest, "node,nodeid=1");
        assert_eq!(cpus, ["0", "1", "2", "7"]);
        for wrong in ["cpus=", "cpus=3-1", "cpus=1-", "cpus=a", "cpus=65536"] {
            assert!(take_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
