//! `-set GROUP.ID.KEY=VALUE`: one more key for an option that was given before it.
//!
//! The words of a command line are changed before any of them is read, so a key that comes late is
//! checked like every other.

use super::error::{CliError, Problem};
use super::read::split;
use super::{group_of, option_of};

/// Takes each `-set` out of `words`, and adds its key to the option that it names. Words that are
/// no option are left, with all behind them, to who reads them.
pub(super) fn apply(words: Vec<String>) -> Result<Vec<String>, CliError> {
    let mut done: Vec<String> = Vec::with_capacity(words.len());
    // Where in `done` the argument of each option is, with the option's group.
    let mut arguments: Vec<(usize, &'static str)> = Vec::new();
    let mut words = words.into_iter();
    while let Some(typed) = words.next() {
        let option = option_of(&typed).ok();
        let argument = match option {
            Some(option) if option.argument.is_none() => None,
            Some(_) => words.next(),
            None => {
                done.push(typed);
                done.extend(words);
                break;
            }
        };
        let Some((option, text)) = option.zip(argument) else {
            done.push(typed);
            continue;
        };
        if option.name == "set" {
            let addition = Addition::read(&text).map_err(|problem| problem.of(&typed))?;
            let named = arguments.iter().rev().find_map(|(at, group)| {
                let is_named = *group == addition.group
                    && done.get(*at).is_some_and(|text| has_id(text, addition.id));
                is_named.then_some(*at)
            });
            let place = named.and_then(|at| done.get_mut(at));
            let place = place.ok_or_else(|| addition.nothing_there().of(&typed))?;
            place.push_str(&addition.text());
            continue;
        }
        done.push(typed);
        arguments.push((done.len(), group_of(option.name)));
        done.push(text);
    }
    Ok(done)
}

/// What a `-set` says.
struct Addition<'a> {
    group: &'a str,
    id: &'a str,
    key: &'a str,
    value: &'a str,
}

impl<'a> Addition<'a> {
    fn read(text: &'a str) -> Result<Self, Problem> {
        let parts = || {
            let (name, value) = text.split_once('=')?;
            let (group, rest) = name.split_once('.')?;
            let (id, key) = rest.split_once('.')?;
            let is_whole = [group, id, key].iter().all(|part| !part.is_empty());
            is_whole.then_some(Self {
                group,
                id,
                key,
                value,
            })
        };
        parts().ok_or_else(|| {
            Problem::new(format!("can't parse: \"{text}\": want GROUP.ID.KEY=VALUE"))
        })
    }

    fn nothing_there(&self) -> Problem {
        let Self { group, id, .. } = self;
        Problem::new(format!(
            "there is no {group} \"{id}\" defined by key=value before it"
        ))
    }

    fn text(&self) -> String {
        format!(",{}={}", self.key, self.value.replace(',', ",,"))
    }
}

fn has_id(text: &str, id: &str) -> bool {
    !text.starts_with('{')
        && split(text)
            .iter()
            .any(|part| part.strip_prefix("id=") == Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(words: &[&str]) -> Result<Vec<String>, String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        apply(words).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_added_to_the_last_option_of_its_group_with_that_id() {
        let words = [
            "-netdev",
            "tap,id=n,fd=3",
            "-S",
            "-device",
            "x,id=n",
            "-set",
            "netdev.n.queues=2",
        ];
        let wanted = [
            "-netdev",
            "tap,id=n,fd=3,queues=2",
            "-S",
            "-device",
            "x,id=n",
        ];
        assert_eq!(applied(&words), Ok(wanted.map(str::to_owned).to_vec()));
        let value = ["-chardev", "file,id=c", "-set", "chardev.c.path=a,b=c"];
        let wanted = ["-chardev", "file,id=c,path=a,,b=c"];
        assert_eq!(applied(&value), Ok(wanted.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_key_for_what_was_not_given_is_an_error() {
        for (words, error) in [
            (
                ["-netdev", "tap,id=n", "-set", "netdev.m.fd=3"],
                "no netdev \"m\"",
            ),
            (
                ["-netdev", "{\"id\":\"n\"}", "-set", "netdev.n.fd=3"],
                "no netdev \"n\"",
            ),
            (["-netdev", "tap,id=n", "-set", "netdev.n"], "can't parse"),
            (["-netdev", "tap,id=n", "-set", "n.queues=1"], "can't parse"),
        ] {
            let refused = applied(&words).expect_err(error);
            assert!(refused.contains(error), "{refused}");
        }
    }
}
