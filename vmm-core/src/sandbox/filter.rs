//! From lists of calls to programs for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use super::floor;
use super::thread::{AllowList, Test, Tests};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Lets through what is in the list, and traps everything else.
pub(super) fn allow_list(list: AllowList) -> Result<BpfProgram, BackendError> {
    let mut rules = Rules::new();
    for (call, tests) in list {
        let alternatives = rules.entry(call).or_default();
        if !tests.is_empty() {
            alternatives.push(rule(&tests)?);
        }
    }
    program(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// Traps what no thread may do, and lets everything else through.
pub(super) fn floor() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = floor::FORBIDDEN
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect();
    rules.insert(libc::SYS_clone, vec![clone_of_a_process()?]);
    let mut floor = program(rules, SeccompAction::Allow, SeccompAction::Trap)?;
    // Entering a guest is an ioctl, and the only frequent call whose arguments some list looks at,
    // so that the kernel cannot remember the outcome: it does not walk the whole floor.
    floor.splice(AFTER_ARCHITECTURE..AFTER_ARCHITECTURE, ioctl_first());
    Ok(floor)
}

/// The length of the check of the architecture, with which seccompiler begins every program.
const AFTER_ARCHITECTURE: usize = 3;

/// Lets an ioctl through; goes on after these three with anything else.
fn ioctl_first() -> [sock_filter; 3] {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, from `struct seccomp_data`: the number
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const IOCTL: u32 = 16;
    let instruction = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    [
        instruction(LOAD, 0, 0),
        instruction(JUMP_IF_EQUAL, 1, IOCTL),
        instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Says that there is no `clone3`: it passes its flags in memory, where a filter cannot look. The
/// C library falls back to `clone`, whose flags tell a thread from a process.
pub(super) fn without_clone3() -> Result<BpfProgram, BackendError> {
    program(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
    )
}

/// Matches a `clone` without `CLONE_THREAD`.
pub(super) fn clone_of_a_process() -> Result<SeccompRule, BackendError> {
    let no_thread = Test::Masked {
        mask: libc::CLONE_THREAD.unsigned_abs(),
        value: 0,
    };
    rule(&vec![(0, no_thread)])
}

fn rule(tests: &Tests) -> Result<SeccompRule, BackendError> {
    let conditions = tests
        .iter()
        .map(|(position, test)| {
            let (operator, value) = match *test {
                Test::Is(value) => (SeccompCmpOp::Eq, value),
                Test::Masked { mask, value } => (SeccompCmpOp::MaskedEq(u64::from(mask)), value),
            };
            SeccompCondition::new(
                *position,
                SeccompCmpArgLen::Dword,
                operator,
                u64::from(value),
            )
        })
        .collect::<Result<_, _>>()?;
    SeccompRule::new(conditions)
}

pub(super) fn program(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)?.try_into()
}
