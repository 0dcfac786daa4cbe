//! `machine.json`: what the machine is and which machines there are.

use qapi_schema::machine::{
    Commands, CpuDefinitionInfo, CpuInfoFast, CpuInstanceProperties, CpuModelExpansionInfo,
    CurrentMachineParams, HostMemPolicy, HotpluggableCPU, IOThreadInfo, KvmInfo, MachineInfo,
    Memdev, MemoryInfo, NameInfo, QueryCpuModelExpansion, SysEmuTarget, TargetInfo, UuidInfo,
};
use qapi_schema::{Context, QmpError};

use super::cpu_models;
use crate::kvm::cpuid::CpuPlace;
use crate::machine;
use crate::memory::{RAM_ID, RamBackend, RamBackendSpec};
use crate::types;
use crate::vm::{Vm, VmMachine};

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
                hotpluggable_cpus: has_board,
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
            qom_path: self.cpu_path(cpu.index),
            thread_id: i64::from(cpu.thread_id),
            props: Some(properties(cpu.place, cpu.node)),
            target: SysEmuTarget::X86_64,
        });
        Ok(cpus.collect())
    }

    fn query_current_machine(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<CurrentMachineParams, QmpError> {
        Ok(CurrentMachineParams {
            wakeup_suspend_support: false,
        })
    }

    fn query_hotpluggable_cpus(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<Vec<HotpluggableCPU>, QmpError> {
        let VmMachine::Q35(q35) = &self.machine else {
            return Err(QmpError::generic(
                "machine 'none' does not support hot-plugging CPUs: it has no place for any",
            ));
        };
        let places = (0..q35.cpu_places()).rev().map(|index| HotpluggableCPU {
            r#type: q35.cpu_type().to_owned(),
            vcpus_count: 1,
            props: properties(
                q35.topology().place(index),
                q35.numa().and_then(|numa| numa.node_of_cpu(index)),
            ),
            qom_path: q35
                .vcpus()
                .find(index as usize)
                .map(|_| self.cpu_path(index)),
        });
        Ok(places.collect())
    }

    fn query_memory_size_summary(&mut self, _cx: &mut dyn Context) -> Result<MemoryInfo, QmpError> {
        Ok(MemoryInfo {
            base_memory: match &self.machine {
                VmMachine::Q35(q35) => q35.ram_size(),
                VmMachine::None => self.own_memory().map_or(0, |spec| spec.size),
            },
            plugged_memory: Some(self.plugged_memory()),
        })
    }

    fn query_memdev(&mut self, _cx: &mut dyn Context) -> Result<Vec<Memdev>, QmpError> {
        let objects = self.objects.memories();
        // The machine's own RAM is no object.
        let own = self
            .own_memory()
            .filter(|own| !self.objects.memories().any(|spec| spec.id == own.id));
        Ok(own.into_iter().chain(objects).map(memdev).collect())
    }

    fn query_cpu_definitions(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<Vec<CpuDefinitionInfo>, QmpError> {
        cpu_models::definitions(self)
    }

    fn query_cpu_model_expansion(
        &mut self,
        _cx: &mut dyn Context,
        args: QueryCpuModelExpansion,
    ) -> Result<CpuModelExpansionInfo, QmpError> {
        let model = cpu_models::expand(self, args.r#type, args.model)?;
        Ok(CpuModelExpansionInfo { model })
    }

    fn query_iothreads(&mut self, _cx: &mut dyn Context) -> Result<Vec<IOThreadInfo>, QmpError> {
        let iothreads = self.objects.iothreads().map(|iothread| IOThreadInfo {
            id: iothread.id().to_owned(),
            thread_id: i64::from(iothread.thread_id()),
            poll_max_ns: self.objects.number(iothread.id(), "poll-max-ns"),
            poll_grow: self.objects.number(iothread.id(), "poll-grow"),
            poll_shrink: self.objects.number(iothread.id(), "poll-shrink"),
            aio_max_batch: self.objects.number(iothread.id(), "aio-max-batch"),
        });
        Ok(iothreads.collect())
    }
}

impl Vm {
    /// The memory that the machine began with.
    fn own_memory(&self) -> Option<&RamBackendSpec> {
        match &self.machine {
            VmMachine::Q35(q35) => q35.backends().first().map(RamBackend::spec),
            VmMachine::None => self.spare_memory.as_ref().map(|memory| memory.spec()),
        }
    }
}

fn properties(place: CpuPlace, node: Option<u32>) -> CpuInstanceProperties {
    CpuInstanceProperties {
        node_id: node.map(i64::from),
        socket_id: Some(i64::from(place.socket)),
        die_id: Some(i64::from(place.die)),
        core_id: Some(i64::from(place.core)),
        thread_id: Some(i64::from(place.thread)),
        ..Default::default()
    }
}

fn memdev(spec: &RamBackendSpec) -> Memdev {
    Memdev {
        id: Some(spec.id.clone()),
        size: spec.size,
        merge: spec.merge,
        dump: spec.dump,
        prealloc: spec.prealloc,
        share: spec.share,
        reserve: Some(spec.reserve),
        host_nodes: Vec::new(),
        policy: HostMemPolicy::Default,
    }
}
