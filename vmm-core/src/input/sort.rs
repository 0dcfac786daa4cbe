//! Which device each event of a client is for, and what it is there. Pure.

use std::sync::Arc;

use devices::virtio::input::model::AXIS_MAX;
use devices::virtio::input::{InputEvent, InputModel, VirtioInput, codes};
use qapi_schema::QmpError;
use qapi_schema::ui::{
    InputAxis, InputBtnEvent, InputButton, InputEvent as Wish, InputEventKind as Kind,
    InputEventVariant, InputMoveEvent,
};

use super::{Inputs, key_code, keyboard, taker};

/// What happens to one device at the same time.
pub struct Touched {
    /// The device.
    pub device: Arc<VirtioInput>,
    /// What happens to it.
    pub events: Vec<InputEvent>,
}

/// Sorts `wishes` by device.
///
/// # Errors
/// No device takes one of them, or it is none that can happen.
pub fn sort(inputs: &Inputs, wishes: &[Wish]) -> Result<Vec<Touched>, QmpError> {
    let mut touched: Vec<Touched> = Vec::new();
    for wish in wishes {
        let (device, event) = place(inputs, wish)?;
        let Some(event) = event else { continue };
        match touched
            .iter_mut()
            .find(|one| Arc::ptr_eq(&one.device, device))
        {
            Some(one) => one.events.push(event),
            None => touched.push(Touched {
                device: Arc::clone(device),
                events: vec![event],
            }),
        }
    }
    Ok(touched)
}

/// Whose it is and what; nothing where a wheel's step ends.
fn place<'a>(
    inputs: &'a Inputs,
    wish: &Wish,
) -> Result<(&'a Arc<VirtioInput>, Option<InputEvent>), QmpError> {
    match &wish.r#type {
        InputEventVariant::Key(key) => {
            let code = key_code(&key.data.key)?;
            Ok((
                keyboard(inputs)?,
                Some(InputEvent::key(code, key.data.down)),
            ))
        }
        InputEventVariant::Btn(button) => {
            let event = button_event(&button.data);
            let (kind, code) = event.map_or((codes::EV_REL, codes::REL_WHEEL), |event| {
                (event.kind, event.code)
            });
            let has = |model: InputModel| model != InputModel::Keyboard && model.has(kind, code);
            Ok((taker(inputs, Kind::Btn, has)?, event))
        }
        InputEventVariant::Rel(moved) => {
            let code = axis(&moved.data, codes::REL_X, codes::REL_Y);
            let by = i32::try_from(moved.data.value).map_err(|_| {
                let (first, last) = (i64::from(i32::MIN), i64::from(i32::MAX));
                out_of_range(&moved.data, first, last)
            })?;
            let device = taker(inputs, Kind::Rel, |model| model.has(codes::EV_REL, code))?;
            Ok((device, Some(InputEvent::moved(code, by))))
        }
        InputEventVariant::Abs(moved) => {
            let code = axis(&moved.data, codes::ABS_X, codes::ABS_Y);
            let at = u32::try_from(moved.data.value).ok();
            let at = at.filter(|at| *at <= AXIS_MAX);
            let at = at.ok_or_else(|| out_of_range(&moved.data, 0, AXIS_MAX.into()))?;
            let device = taker(inputs, Kind::Abs, |model| model.has(codes::EV_ABS, code))?;
            Ok((device, Some(InputEvent::placed(code, at))))
        }
        InputEventVariant::Mtt(_) => Ok((taker(inputs, Kind::Mtt, |_| false)?, None)),
    }
}

fn axis(moved: &InputMoveEvent, x: u16, y: u16) -> u16 {
    match moved.axis {
        InputAxis::X => x,
        InputAxis::Y => y,
    }
}

fn out_of_range(moved: &InputMoveEvent, first: i64, last: i64) -> QmpError {
    QmpError::generic(format!(
        "Parameter 'value' expects {first} to {last}, not {}",
        moved.value
    ))
}

fn button_event(button: &InputBtnEvent) -> Option<InputEvent> {
    let step = |code, by| button.down.then(|| InputEvent::moved(code, by));
    let press = |code| Some(InputEvent::key(code, button.down));
    match button.button {
        InputButton::Left => press(codes::BTN_LEFT),
        InputButton::Middle => press(codes::BTN_MIDDLE),
        InputButton::Right => press(codes::BTN_RIGHT),
        InputButton::Side => press(codes::BTN_SIDE),
        InputButton::Extra => press(codes::BTN_EXTRA),
        InputButton::Touch => press(codes::BTN_TOUCH),
        InputButton::WheelUp => step(codes::REL_WHEEL, 1),
        InputButton::WheelDown => step(codes::REL_WHEEL, -1),
        InputButton::WheelLeft => step(codes::REL_HWHEEL, -1),
        InputButton::WheelRight => step(codes::REL_HWHEEL, 1),
    }
}

#[cfg(test)]
mod tests {
    use devices::reactor::Reactor;
    use qapi_schema::input::{FromInput, Mode, Path};
    use serde_json::{Value, json};

    use super::*;

    fn device(model: InputModel) -> Arc<VirtioInput> {
        VirtioInput::new(model, String::new(), Reactor::new())
    }

    fn sorted(
        inputs: &Inputs,
        wishes: Value,
    ) -> Result<Vec<(InputModel, Vec<InputEvent>)>, String> {
        let wishes = Vec::<Wish>::from_input(wishes, &Path::Root, Mode::Json).unwrap();
        let touched = sort(inputs, &wishes).map_err(|error| error.desc)?;
        let plain = touched.into_iter();
        Ok(plain.map(|one| (one.device.model(), one.events)).collect())
    }

    #[test]
    fn each_event_goes_to_a_device_that_takes_it() {
        let inputs = [InputModel::Keyboard, InputModel::Mouse, InputModel::Tablet].map(device);
        let button =
            |button, down| json!({"type": "btn", "data": {"button": button, "down": down}});
        let moved =
            |kind, axis, value| json!({"type": kind, "data": {"axis": axis, "value": value}});
        let key = json!({"type": "qcode", "data": "a"});
        let wishes = json!([
            {"type": "key", "data": {"key": key, "down": true}},
            moved("rel", "x", -5),
            moved("abs", "y", 32767),
            button("left", true),
            button("wheel-down", true),
            button("wheel-down", false),
        ]);
        let wanted = [
            (InputModel::Keyboard, vec![InputEvent::key(30, true)]),
            (InputModel::Mouse, vec![InputEvent::moved(0, -5)]),
            (
                InputModel::Tablet,
                vec![
                    InputEvent::placed(1, 0x7fff),
                    InputEvent::key(codes::BTN_LEFT, true),
                    InputEvent::moved(codes::REL_WHEEL, -1),
                ],
            ),
        ];
        assert_eq!(sorted(&inputs, wishes).unwrap(), wanted);
    }

    #[test]
    fn what_no_device_takes_is_refused() {
        let inputs = [device(InputModel::Mouse)];
        for (kind, data, text) in [
            (
                "abs",
                json!({"axis": "x", "value": 1}),
                "Input handler not found for event type abs",
            ),
            (
                "btn",
                json!({"button": "touch", "down": true}),
                "Input handler not found for event type btn",
            ),
            (
                "key",
                json!({"key": {"type": "number", "data": 0}, "down": true}),
                "no keyboard has the key {\"type\":\"number\",\"data\":0}",
            ),
            (
                "rel",
                json!({"axis": "x", "value": 1_i64 << 40}),
                "Parameter 'value' expects -2147483648 to 2147483647, not 1099511627776",
            ),
        ] {
            let wishes = json!([{"type": kind, "data": data}]);
            assert_eq!(sorted(&inputs, wishes), Err(text.to_owned()));
        }
    }
}
