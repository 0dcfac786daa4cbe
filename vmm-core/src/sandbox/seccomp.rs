//! The deny lists of `-sandbox`, as seccomp filters.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompRule};

use super::{SandboxError, SandboxSpec, filter};

const OBSOLETE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_nfsservctl,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_afs_syscall,
    libc::SYS_tuxcall,
    libc::SYS_security,
    libc::SYS_vserver,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait_old,
];

/// Never of use to a virtual machine monitor, denied by `-sandbox on` alone.
const ALWAYS: &[i64] = &[
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_lookup_dcookie,
    libc::SYS_bpf,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
];

const ELEVATE_PRIVILEGES: &[i64] = &[
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];

const SPAWN: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
];

const RESOURCE_CONTROL: &[i64] = &[
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_ioprio_set,
];

pub(super) fn apply(spec: &SandboxSpec) -> Result<(), SandboxError> {
    if spec.deny_spawn {
        install(&filter::without_clone3().map_err(SandboxError::Filter)?)?;
    }
    let program = filter::program(
        deny_list(spec)?,
        SeccompAction::Allow,
        SeccompAction::KillProcess,
    );
    install(&program.map_err(SandboxError::Filter)?)
}

fn deny_list(spec: &SandboxSpec) -> Result<BTreeMap<i64, Vec<SeccompRule>>, SandboxError> {
    let groups = [
        (true, ALWAYS),
        (spec.deny_obsolete, OBSOLETE),
        (spec.deny_elevate_privileges, ELEVATE_PRIVILEGES),
        (spec.deny_spawn, SPAWN),
        (spec.deny_resource_control, RESOURCE_CONTROL),
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = groups
        .iter()
        .filter(|(denied, _)| *denied)
        .flat_map(|(_, calls)| calls.iter().map(|call| (*call, Vec::new())))
        .collect();
    if spec.deny_spawn {
        rules.insert(
            libc::SYS_clone,
            vec![filter::clone_of_a_process().map_err(SandboxError::Filter)?],
        );
    }
    Ok(rules)
}

fn install(program: &BpfProgram) -> Result<(), SandboxError> {
    seccompiler::apply_filter_all_threads(program).map_err(SandboxError::Refused)
}

#[cfg(test)]
mod tests {
    use seccompiler::{SeccompFilter, TargetArch};

    use super::*;

    #[test]
    fn each_group_is_denied_only_when_asked_for() {
        let nothing = deny_list(&SandboxSpec::default()).unwrap();
        assert!(nothing.contains_key(&libc::SYS_reboot));
        for (call, spec) in [
            (
                libc::SYS_uselib,
                SandboxSpec {
                    deny_obsolete: true,
                    ..Default::default()
                },
            ),
            (
                libc::SYS_setuid,
                SandboxSpec {
                    deny_elevate_privileges: true,
                    ..Default::default()
                },
            ),
            (
                libc::SYS_execve,
                SandboxSpec {
                    deny_spawn: true,
                    ..Default::default()
                },
            ),
            (
                libc::SYS_clone,
                SandboxSpec {
                    deny_spawn: true,
                    ..Default::default()
                },
            ),
            (
                libc::SYS_setpriority,
                SandboxSpec {
                    deny_resource_control: true,
                    ..Default::default()
                },
            ),
        ] {
            assert!(!nothing.contains_key(&call));
            assert!(deny_list(&spec).unwrap().contains_key(&call));
        }
    }

    #[test]
    fn a_thread_that_may_not_spawn_can_still_start_threads() {
        // The filter would bind this whole test process: it is tried in a thread-wide filter.
        std::thread::spawn(|| {
            let spec = SandboxSpec {
                deny_spawn: true,
                ..Default::default()
            };
            let mut rules = deny_list(&spec).unwrap();
            rules.insert(libc::SYS_clone3, Vec::new());
            let filter = SeccompFilter::new(
                rules,
                SeccompAction::Allow,
                SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
                TargetArch::x86_64,
            )
            .unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            assert!(std::process::Command::new("/bin/true").spawn().is_err());
        })
        .join()
        .unwrap();
    }
}
