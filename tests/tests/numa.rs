//! NUMA as the guest finds it.
use anyhow::{Context, Result};
use serde_json::json;
use tests::Vm;

const NODES: [&str; 12] = [
    "-smp",
    "2,sockets=2",
    "-object",
    "memory-backend-ram,id=near,size=128M",
    "-object",
    "memory-backend-memfd,id=far,size=128M",
    "-numa",
    "node,memdev=near,cpus=0",
    "-numa",
    "node,memdev=far,cpus=1",
    "-numa",
    "dist,src=0,dst=1,val=30",
];

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_finds_each_node_with_its_vcpu_its_memory_and_its_distance() -> Result<()> {
    let mut vm = Vm::builder().args(NODES).start()?;
    for (node, cpu, distances) in [(0, "0", "10 30"), (1, "1", "30 10")] {
        let guest = vm.guest()?;
        let mut read = |file: &str| -> Result<String> {
            let path = format!("/sys/devices/system/node/node{node}/{file}");
            let text = guest.call("read-file", json!({"path": path}))?;
            Ok(text.as_str().context("a text")?.trim().to_owned())
        };
        assert_eq!(read("cpulist")?, cpu);
        assert_eq!(read("distance")?, distances);
        assert!(read("meminfo")?.contains("MemTotal"));
    }
    let told = vm.execute(
        "human-monitor-command",
        json!({"command-line": "info numa"}),
    )?;
    assert!(told.as_str().context("a text")?.contains("node 1 cpus: 1"));
    vm.shutdown_clean()
}
