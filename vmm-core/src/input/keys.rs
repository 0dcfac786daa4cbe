//! Keys: what clients call them, and what a guest does.
//!
//! Sources: Linux `include/uapi/linux/input-event-codes.h` for the guest's numbers; scan code set 1,
//! as PC keyboards send it, for those of clients.

use qapi_schema::ui::{KeyValue, KeyValueVariant, QKeyCode as Code};

struct Key {
    name: Code,
    /// What the guest calls it.
    code: u16,
    /// What a PC's keyboard calls it, with bit 7 for what comes behind an 0xe0; 0: nothing.
    number: u16,
}

const fn key(name: Code, code: u16, number: u16) -> Key {
    Key { name, code, number }
}

/// What a guest calls the key; `None` if no keyboard has it.
pub(super) fn code(value: &KeyValue) -> Option<u16> {
    let found = match &value.r#type {
        KeyValueVariant::Qcode(name) => KEYS.iter().find(|key| key.name == name.data),
        KeyValueVariant::Number(number) => {
            let number = u16::try_from(number.data)
                .ok()
                .filter(|number| *number != 0);
            number.and_then(|number| KEYS.iter().find(|key| key.number == number))
        }
    };
    found.map(|key| key.code)
}

#[rustfmt::skip]
const KEYS: &[Key] = &[
    key(Code::Shift, 42, 0x2a),
    key(Code::ShiftR, 54, 0x36),
    key(Code::Alt, 56, 0x38),
    key(Code::AltR, 100, 0xb8),
    key(Code::Ctrl, 29, 0x1d),
    key(Code::CtrlR, 97, 0x9d),
    key(Code::Menu, 139, 0x9e),
    key(Code::Esc, 1, 0x01),
    key(Code::V1, 2, 0x02),
    key(Code::V2, 3, 0x03),
    key(Code::V3, 4, 0x04),
    key(Code::V4, 5, 0x05),
    key(Code::V5, 6, 0x06),
    key(Code::V6, 7, 0x07),
    key(Code::V7, 8, 0x08),
    key(Code::V8, 9, 0x09),
    key(Code::V9, 10, 0x0a),
    key(Code::V0, 11, 0x0b),
    key(Code::Minus, 12, 0x0c),
    key(Code::Equal, 13, 0x0d),
    key(Code::Backspace, 14, 0x0e),
    key(Code::Tab, 15, 0x0f),
    key(Code::Q, 16, 0x10),
    key(Code::W, 17, 0x11),
    key(Code::E, 18, 0x12),
    key(Code::R, 19, 0x13),
    key(Code::T, 20, 0x14),
    key(Code::Y, 21, 0x15),
    key(Code::U, 22, 0x16),
    key(Code::I, 23, 0x17),
    key(Code::O, 24, 0x18),
    key(Code::P, 25, 0x19),
    key(Code::BracketLeft, 26, 0x1a),
    key(Code::BracketRight, 27, 0x1b),
    key(Code::Ret, 28, 0x1c),
    key(Code::A, 30, 0x1e),
    key(Code::S, 31, 0x1f),
    key(Code::D, 32, 0x20),
    key(Code::F, 33, 0x21),
    key(Code::G, 34, 0x22),
    key(Code::H, 35, 0x23),
    key(Code::J, 36, 0x24),
    key(Code::K, 37, 0x25),
    key(Code::L, 38, 0x26),
    key(Code::Semicolon, 39, 0x27),
    key(Code::Apostrophe, 40, 0x28),
    key(Code::GraveAccent, 41, 0x29),
    key(Code::Backslash, 43, 0x2b),
    key(Code::Z, 44, 0x2c),
    key(Code::X, 45, 0x2d),
    key(Code::C, 46, 0x2e),
    key(Code::V, 47, 0x2f),
    key(Code::B, 48, 0x30),
    key(Code::N, 49, 0x31),
    key(Code::M, 50, 0x32),
    key(Code::Comma, 51, 0x33),
    key(Code::Dot, 52, 0x34),
    key(Code::Slash, 53, 0x35),
    key(Code::Asterisk, 55, 0),
    key(Code::Spc, 57, 0x39),
    key(Code::CapsLock, 58, 0x3a),
    key(Code::F1, 59, 0x3b),
    key(Code::F2, 60, 0x3c),
    key(Code::F3, 61, 0x3d),
    key(Code::F4, 62, 0x3e),
    key(Code::F5, 63, 0x3f),
    key(Code::F6, 64, 0x40),
    key(Code::F7, 65, 0x41),
    key(Code::F8, 66, 0x42),
    key(Code::F9, 67, 0x43),
    key(Code::F10, 68, 0x44),
    key(Code::NumLock, 69, 0x45),
    key(Code::ScrollLock, 70, 0x46),
    key(Code::KpDivide, 98, 0xb5),
    key(Code::KpMultiply, 55, 0x37),
    key(Code::KpSubtract, 74, 0x4a),
    key(Code::KpAdd, 78, 0x4e),
    key(Code::KpEnter, 96, 0x9c),
    key(Code::KpDecimal, 83, 0x53),
    key(Code::Sysrq, 99, 0x54),
    key(Code::Kp0, 82, 0x52),
    key(Code::Kp1, 79, 0x4f),
    key(Code::Kp2, 80, 0x50),
    key(Code::Kp3, 81, 0x51),
    key(Code::Kp4, 75, 0x4b),
    key(Code::Kp5, 76, 0x4c),
    key(Code::Kp6, 77, 0x4d),
    key(Code::Kp7, 71, 0x47),
    key(Code::Kp8, 72, 0x48),
    key(Code::Kp9, 73, 0x49),
    key(Code::Less, 86, 0x56),
    key(Code::F11, 87, 0x57),
    key(Code::F12, 88, 0x58),
    key(Code::Print, 99, 0xb7),
    key(Code::Home, 102, 0xc7),
    key(Code::Pgup, 104, 0xc9),
    key(Code::Pgdn, 109, 0xd1),
    key(Code::End, 107, 0xcf),
    key(Code::Left, 105, 0xcb),
    key(Code::Up, 103, 0xc8),
    key(Code::Down, 108, 0xd0),
    key(Code::Right, 106, 0xcd),
    key(Code::Insert, 110, 0xd2),
    key(Code::Delete, 111, 0xd3),
    key(Code::Stop, 128, 0xe8),
    key(Code::Again, 129, 0x85),
    key(Code::Props, 130, 0x86),
    key(Code::Undo, 131, 0x87),
    key(Code::Front, 132, 0x8c),
    key(Code::Copy, 133, 0xf8),
    key(Code::Open, 134, 0x64),
    key(Code::Paste, 135, 0x65),
    key(Code::Find, 136, 0xc1),
    key(Code::Cut, 137, 0xbc),
    key(Code::Lf, 101, 0x5b),
    key(Code::Help, 138, 0xf5),
    key(Code::MetaL, 125, 0xdb),
    key(Code::MetaR, 126, 0xdc),
    key(Code::Compose, 127, 0xdd),
    key(Code::Pause, 119, 0xc6),
    key(Code::Ro, 89, 0x73),
    key(Code::Hiragana, 91, 0x77),
    key(Code::Henkan, 92, 0x79),
    key(Code::Yen, 124, 0x7d),
    key(Code::Muhenkan, 94, 0x7b),
    key(Code::Katakanahiragana, 93, 0x70),
    key(Code::KpComma, 121, 0x7e),
    key(Code::KpEquals, 117, 0x59),
    key(Code::Power, 116, 0xde),
    key(Code::Sleep, 142, 0xdf),
    key(Code::Wake, 143, 0xe3),
    key(Code::Audionext, 163, 0x99),
    key(Code::Audioprev, 165, 0x90),
    key(Code::Audiostop, 166, 0xa4),
    key(Code::Audioplay, 164, 0xa2),
    key(Code::Audiomute, 113, 0xa0),
    key(Code::Volumeup, 115, 0xb0),
    key(Code::Volumedown, 114, 0xae),
    key(Code::Mediaselect, 226, 0xed),
    key(Code::Mail, 155, 0xec),
    key(Code::Calculator, 140, 0xa1),
    key(Code::Computer, 157, 0xeb),
    key(Code::AcHome, 172, 0xb2),
    key(Code::AcBack, 158, 0xea),
    key(Code::AcForward, 159, 0xe9),
    key(Code::AcRefresh, 173, 0xe7),
    key(Code::AcBookmarks, 156, 0xe6),
    key(Code::Lang1, 122, 0x72),
    key(Code::Lang2, 123, 0x71),
    key(Code::F13, 183, 0x5d),
    key(Code::F14, 184, 0x5e),
    key(Code::F15, 185, 0x5f),
    key(Code::F16, 186, 0),
    key(Code::F17, 187, 0),
    key(Code::F18, 188, 0),
    key(Code::F19, 189, 0),
    key(Code::F20, 190, 0),
    key(Code::F21, 191, 0),
    key(Code::F22, 192, 0),
    key(Code::F23, 193, 0),
    key(Code::F24, 194, 0),
];

#[cfg(test)]
mod tests {
    use devices::virtio::input::{InputModel, codes};
    use qapi_schema::ui::{IntWrapper, QKeyCodeWrapper};

    use super::*;

    #[test]
    fn each_key_has_a_code_and_a_number_of_its_own() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(
                InputModel::Keyboard.has(codes::EV_KEY, key.code),
                "{:?}",
                key.name
            );
            let same = |other: &&Key| key.number != 0 && other.number == key.number;
            assert!(
                !KEYS[..at].iter().any(|other| same(&other)),
                "{:?}",
                key.name
            );
        }
        let unknown = |code: &Code| !KEYS.iter().any(|key| key.name == *code);
        let without: Vec<_> = Code::ALL.iter().filter(|code| unknown(code)).collect();
        assert_eq!(without, [&Code::Unmapped]);
    }

    #[test]
    fn a_key_is_found_by_its_name_and_by_its_number() {
        let named = |data| KeyValue {
            r#type: KeyValueVariant::Qcode(QKeyCodeWrapper { data }),
        };
        let numbered = |data| KeyValue {
            r#type: KeyValueVariant::Number(IntWrapper { data }),
        };
        assert_eq!(code(&named(Code::A)), Some(30));
        assert_eq!(code(&numbered(30)), Some(30));
        assert_eq!(code(&numbered(0xd3)), code(&named(Code::Delete)));
        for none in [0, -1, 0xff, 1 << 40] {
            assert_eq!(code(&numbered(none)), None);
        }
        assert_eq!(code(&named(Code::Unmapped)), None);
    }
}
