//! `machine.json`: what the machine is and which machines there are.

use qapi_schema::machine::{
    Commands, CpuInfoFast, CpuInstanceProperties, IOThreadInfo, KvmInfo, MachineInfo, NameInfo,
    SysEmuTarget, TargetInfo, UuidInfo,
};
use qapi_schema::{Context, QmpError};

use crate::machine;
use crate::memory::RAM_ID;
use crate::types;
use crate::vm::{Vm, cpu_path};

impl Commands for Vm {
    fn query_name(&mut self, _cx: &mut dyn Context) -> Result<NameInfo, QmpError> {
        Ok(NameInfo {
            name: self.identity.name.clone(),
        })
    }

    fn query_uuid(&mut self, _cx: &mut dyn Context) -> Result<UuidInfo, QmpError> {
        Ok(UuidInfo {
            uuid: self.identity.uuid.clone(),
        })
    }

    fn query_kvm(&mut self, _cx: &mut dyn Context) -> Result<KvmInfo, QmpError> {
        Ok(KvmInfo {
            enabled: self.kvm_enabled,
            present: true,
        })
    }

    fn query_target(&mut self, _cx: &mut dyn Context) -> Result<TargetInfo, QmpError> {
        Ok(TargetInfo {
            arch: SysEmuTarget::X86_64,
        })
    }

    fn query_machines(&mut self, _cx: &mut dyn Context) -> Result<Vec<MachineInfo>, QmpError> {
        let machines = machine::TYPES.iter().map(|&machine| {
            let has_board = machine.has_board();
            MachineInfo {
                name: machine.name.to_owned(),
                alias: machine.alias.map(str::to_owned),
                is_default: (machine == machine::DEFAULT).then_some(true),
                cpu_max: i64::from(machine.max_vcpus),
                hotpluggable_cpus: false,
                numa_mem_supported: false,
                deprecated: false,
                default_cpu_type: has_board.then(|| types::HOST_CPU.to_owned()),
                default_ram_id: has_board.then(|| RAM_ID.to_owned()),
                acpi: has_board,
            }
        });
        Ok(machines.collect())
    }

    fn query_cpus_fast(&mut self, _cx: &mut dyn Context) -> Result<Vec<CpuInfoFast>, QmpError> {
        let cpus = self.machine.cpus().into_iter().map(|cpu| CpuInfoFast {
            cpu_index: i64::from(cpu.index),
            qom_path: cpu_path(cpu.index),
            thread_id: i64::from(cpu.thread_id),
            props: Some(CpuInstanceProperties {
                socket_id: Some(i64::from(cpu.place.socket)),
                die_id: Some(i64::from(cpu.place.die)),
                core_id: Some(i64::from(cpu.place.core)),
                thread_id: Some(i64::from(cpu.place.thread)),
                ..Default::default()
            }),
            target: SysEmuTarget::X86_64,
        });
        Ok(cpus.collect())
    }

    fn query_iothreads(&mut self, _cx: &mut dyn Context) -> Result<Vec<IOThreadInfo>, QmpError> {
        let iothreads = self.objects.iothreads().map(|iothread| IOThreadInfo {
            id: iothread.id().to_owned(),
            thread_id: i64::from(iothread.thread_id()),
            // Our threads wait in the ring and never poll.
            poll_max_ns: 0,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
        });
        Ok(iothreads.collect())
    }
}
