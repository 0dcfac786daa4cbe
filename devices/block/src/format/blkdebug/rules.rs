//! Which request fails: pure bookkeeping.

/// Bytes of a sector, in which rules name places.
const SECTOR: u64 = 512;
/// The state before any rule has changed it.
const FIRST_STATE: u32 = 1;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It writes zeros.
    WriteZeroes,
    /// It discards.
    Discard,
    /// It makes writes durable.
    Flush,
}

/// What happens at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleEvent {
    /// Any request.
    None,
    /// A read.
    ReadAio,
    /// A write, also of zeros.
    WriteAio,
    /// A write of bytes.
    Pwritev,
    /// A write of zeros.
    PwritevZero,
    /// A flush.
    FlushToDisk,
}

impl RuleEvent {
    /// Every event.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::ReadAio,
        Self::WriteAio,
        Self::Pwritev,
        Self::PwritevZero,
        Self::FlushToDisk,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ReadAio => "read_aio",
            Self::WriteAio => "write_aio",
            Self::Pwritev => "pwritev",
            Self::PwritevZero => "pwritev_zero",
            Self::FlushToDisk => "flush_to_disk",
        }
    }

    pub(super) fn is_of(self, kind: RequestKind) -> bool {
        match self {
            Self::None => true,
            Self::ReadAio => kind == RequestKind::Read,
            Self::WriteAio => matches!(kind, RequestKind::Write | RequestKind::WriteZeroes),
            Self::Pwritev => kind == RequestKind::Write,
            Self::PwritevZero => kind == RequestKind::WriteZeroes,
            Self::FlushToDisk => kind == RequestKind::Flush,
        }
    }
}

/// A request that fails. A rule for an event is armed by it, in its state; it then holds for this
/// request and those that follow, until another event arms other rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRule {
    /// When.
    pub event: RuleEvent,
    /// Only in this state; `None` for any.
    pub state: Option<u32>,
    /// Only requests of this kind; `None` for any.
    pub kind: Option<RequestKind>,
    /// With this error.
    pub errno: i32,
    /// Only requests that touch this sector; `None` for any.
    pub sector: Option<u64>,
    /// Whether the rule goes once a request has failed.
    pub once: bool,
}

/// An event that changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRule {
    /// When.
    pub event: RuleEvent,
    /// Only in this state; `None` for any.
    pub state: Option<u32>,
    /// The state after it.
    pub new_state: u32,
}

/// All rules of a node, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    errors: Vec<ErrorRule>,
    /// Which of the rules for events are armed, by the same numbers.
    armed: Vec<bool>,
    states: Vec<StateRule>,
    state: u32,
}

impl Rules {
    /// Rules in the order in which they are asked.
    #[must_use]
    pub fn new(errors: Vec<ErrorRule>, states: Vec<StateRule>) -> Self {
        Self {
            armed: vec![false; errors.len()],
            errors,
            states,
            state: FIRST_STATE,
        }
    }

    /// Adds the rules of another list behind these.
    pub fn extend(&mut self, others: Self) {
        self.errors.extend(others.errors);
        self.armed.extend(others.armed);
        self.states.extend(others.states);
    }

    /// Notes a request; the error it is to fail with, if it is.
    pub fn judge(&mut self, kind: RequestKind, offset: u64, len: u64) -> Option<i32> {
        let before = self.state;
        let holds = |state: Option<u32>| state.is_none_or(|state| state == before);
        let arms = |rule: &ErrorRule| {
            rule.event != RuleEvent::None && rule.event.is_of(kind) && holds(rule.state)
        };
        if self.errors.iter().any(arms) {
            self.armed = self.errors.iter().map(arms).collect();
        }
        let failing = self
            .errors
            .iter()
            .zip(&self.armed)
            .position(|(rule, armed)| {
                let applies = match rule.event {
                    RuleEvent::None => holds(rule.state),
                    event => *armed && event.is_of(kind),
                };
                applies
                    && rule.kind.is_none_or(|wanted| wanted == kind)
                    && rule.sector.is_none_or(|at| touches(at, offset, len))
            });
        let mut changes = self.states.iter();
        if let Some(change) = changes.find(|rule| rule.event.is_of(kind) && holds(rule.state)) {
            self.state = change.new_state;
        }
        let at = failing?;
        let rule = *self.errors.get(at)?;
        if rule.once {
            self.errors.remove(at);
            self.armed.remove(at);
        }
        Some(rule.errno)
    }
}

fn touches(sector: u64, offset: u64, len: u64) -> bool {
    let start = sector.saturating_mul(SECTOR);
    let end = start.saturating_add(SECTOR);
    offset < end && start < offset.saturating_add(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ErrorRule = ErrorRule {
        event: RuleEvent::None,
        state: None,
        kind: None,
        errno: 5,
        sector: None,
        once: false,
    };

    #[test]
    fn a_rule_fails_what_it_names_and_lets_the_rest_through() {
        let write = ErrorRule {
            event: RuleEvent::WriteAio,
            sector: Some(2),
            errno: 28,
            ..RULE
        };
        let mut rules = Rules::new(vec![write], Vec::new());
        assert_eq!(rules.judge(RequestKind::Read, 1024, 512), None);
        assert_eq!(rules.judge(RequestKind::Write, 0, 1024), None);
        assert_eq!(rules.judge(RequestKind::Write, 0, 1025), Some(28));
        assert_eq!(rules.judge(RequestKind::WriteZeroes, 1535, 1), Some(28));
        assert_eq!(rules.judge(RequestKind::Write, 1536, 512), None);
    }

    #[test]
    fn writes_of_bytes_and_of_zeros_are_told_from_each_other() {
        for (event, kind, other) in [
            (
                RuleEvent::Pwritev,
                RequestKind::Write,
                RequestKind::WriteZeroes,
            ),
            (
                RuleEvent::PwritevZero,
                RequestKind::WriteZeroes,
                RequestKind::Write,
            ),
        ] {
            let rule = ErrorRule {
                event,
                once: true,
                ..RULE
            };
            let mut rules = Rules::new(vec![rule], Vec::new());
            assert_eq!(rules.judge(other, 0, 512), None);
            assert_eq!(rules.judge(kind, 0, 512), Some(5));
        }
    }

    #[test]
    fn a_rule_for_once_is_gone_after_its_request() {
        let once = ErrorRule { once: true, ..RULE };
        let mut rules = Rules::new(vec![once], Vec::new());
        assert_eq!(rules.judge(RequestKind::Flush, 0, 0), Some(5));
        assert_eq!(rules.judge(RequestKind::Flush, 0, 0), None);
    }

    #[test]
    fn a_rule_that_an_event_has_armed_holds_for_later_requests() {
        let far = ErrorRule {
            event: RuleEvent::ReadAio,
            state: Some(1),
            sector: Some(1024),
            once: true,
            ..RULE
        };
        let change = |state, new_state| StateRule {
            event: RuleEvent::ReadAio,
            state: Some(state),
            new_state,
        };
        let mut rules = Rules::new(vec![far], vec![change(1, 2), change(2, 1)]);
        let read = |rules: &mut Rules, at| rules.judge(RequestKind::Read, at, 512 << 10);
        assert_eq!(read(&mut rules, 0), None);
        assert_eq!(rules.judge(RequestKind::Write, 512 << 10, 512), None);
        assert_eq!(read(&mut rules, 512 << 10), Some(5), "armed in state 1");
        assert_eq!(read(&mut rules, 512 << 10), None, "once");
    }

    #[test]
    fn an_event_changes_the_state_for_the_requests_after_it() {
        let second = ErrorRule {
            state: Some(2),
            kind: Some(RequestKind::Read),
            ..RULE
        };
        let change = StateRule {
            event: RuleEvent::ReadAio,
            state: Some(1),
            new_state: 2,
        };
        let mut rules = Rules::new(vec![second], vec![change]);
        assert_eq!(rules.judge(RequestKind::Discard, 0, 512), None);
        assert_eq!(rules.judge(RequestKind::Read, 0, 512), None);
        assert_eq!(rules.judge(RequestKind::Discard, 0, 512), None);
        assert_eq!(rules.judge(RequestKind::Read, 0, 512), Some(5));
    }
}
