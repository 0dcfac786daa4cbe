//! `-nic`: a netdev and a card on it.
//!
//! ```text
//!   socket,fd=3,model=virtio,mac=M ─┬─ model, mac ─► -device virtio-net-pci,netdev=nic0,mac=M
//!                                   └─ the rest ───► -netdev socket,fd=3,id=nic0
//! ```

use qapi_schema::devices::DeviceOptions;
use qapi_schema::input::Mode;
use qapi_schema::net::Netdev;
use serde_json::json;

use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

/// The only card, and its shorter name.
const MODEL: &str = "virtio-net-pci";
const MODEL_ALIAS: &str = "virtio";

pub(super) fn take(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if matches!(given.text, "help" | "?") {
        return Ok(Step::Print(help::netdevs()));
    }
    if matches!(given.text, "none" | "type=none") {
        return Ok(Step::Next);
    }
    let (mut of_netdev, mut mac, mut has_id) = (Vec::new(), None, false);
    for part in read::split(given.text) {
        match part.split_once('=') {
            Some(("model", MODEL | MODEL_ALIAS)) => {}
            Some(("model", other)) => {
                return Err(Problem::new(format!(
                    "model={other}: the only card is {MODEL}"
                )));
            }
            Some(("mac", address)) => mac = Some(address),
            key => {
                has_id |= matches!(key, Some(("id", _)));
                of_netdev.push(part.to_owned());
            }
        }
    }
    if !has_id {
        let taken = |id: &String| draft.netdevs.iter().any(|other| other.id == *id);
        let mut free = (0..).map(|number| format!("nic{number}"));
        let id = free.find(|id| !taken(id)).unwrap_or_default();
        of_netdev.push(format!("id={id}"));
    }
    let parsed = read::parse::<Netdev>(&of_netdev.join(","), Form::implied("type"))?;
    let netdev: Netdev = read::typed(parsed.value, parsed.mode)?;
    let mut card = json!({"driver": MODEL, "netdev": netdev.id});
    if let Some(mac) = mac {
        card["mac"] = mac.into();
    }
    let card: DeviceOptions = read::typed(card, Mode::Keyval)?;
    draft.nics.push((given.typed.to_owned(), card));
    draft.netdevs.push(netdev);
    Ok(Step::Next)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use qapi_schema::devices::DeviceOptionsVariant;

    use crate::cli::{self, Config, Outcome};

    fn read(words: &[&str]) -> Result<Config, String> {
        let words = words.iter().map(OsString::from);
        match cli::parse(words, |name| Err(format!("no file '{name}'"))) {
            Ok(Outcome::Run(config)) => Ok(*config),
            Ok(Outcome::Print(text)) => panic!("shows {text}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The netdev and the address of each card.
    fn cards(config: &Config) -> Vec<(Option<&str>, Option<&str>)> {
        let cards = config.devices.iter().map(|card| match &card.driver {
            DeviceOptionsVariant::VirtioNetPci(card) => {
                (card.netdev.as_deref(), card.mac.as_deref())
            }
            other => panic!("{other:?}"),
        });
        cards.collect()
    }

    #[test]
    fn it_is_a_netdev_and_a_card_on_it() {
        let config = read(&[
            "-nic",
            "hubport,hubid=0,model=virtio,mac=52:54:00:00:00:01",
            "-nic",
            "hubport,hubid=0,id=mine",
            "-nic",
            "hubport,hubid=0",
        ]);
        let config = config.expect("it can be read");
        let ids: Vec<_> = config.netdevs.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["nic0", "mine", "nic1"]);
        let wanted = [
            (Some("nic0"), Some("52:54:00:00:00:01")),
            (Some("mine"), None),
            (Some("nic1"), None),
        ];
        assert_eq!(cards(&config), wanted);
    }

    #[test]
    fn none_is_none_and_a_machine_without_a_board_has_no_card() {
        let none = read(&["-nic", "none"]).expect("it can be read");
        assert!(none.netdevs.is_empty() && none.devices.is_empty());
        let bare = read(&["-machine", "none", "-nic", "hubport,hubid=0"]).expect("it can be read");
        assert_eq!((bare.netdevs.len(), bare.devices.len()), (1, 0));
    }

    #[test]
    fn what_is_wrong_is_told_of_the_option() {
        for (text, word) in [
            ("hubport,hubid=0,model=e1000", "virtio-net-pci"),
            ("user", "user"),
            ("hubport,hubid=0,port=3", "port"),
        ] {
            let error = read(&["-nic", text]).expect_err(text);
            assert!(error.contains("-nic") && error.contains(word), "{error}");
        }
    }
}
