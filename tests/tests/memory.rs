//! Guest RAM from each kind of backend, made here or handed in.
use anyhow::Result;
use serde_json::json;
use tests::vm::Builder;
use tests::{Vm, fds};

const SIZE: u64 = 256 << 20;

/// The guest boots on that backend, uses its memory, and has all of it.
fn boots_with(builder: Builder, backend: &str) -> Result<()> {
    let mut vm = builder
        .machine("q35,memory-backend=ram")
        .args(["-object", backend])
        .start()?;
    let memory = vm.guest()?.call("memory", json!({}))?;
    let total = memory["total"].as_u64().unwrap_or_default();
    assert!((SIZE / 4 * 3..SIZE).contains(&total), "{memory}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn memory_of_our_own() -> Result<()> {
    boots_with(Vm::builder(), "memory-backend-ram,id=ram,size=256M")
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_memfd_of_our_own() -> Result<()> {
    boots_with(
        Vm::builder(),
        "memory-backend-memfd,id=ram,size=256M,share=on",
    )
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_memfd_that_was_handed_in_holds_the_guests_memory() -> Result<()> {
    use std::io::Read;
    let memory = fds::memfd(SIZE)?;
    let ours = memory.try_clone()?;
    let mut builder = Vm::builder();
    let path = builder.fdset(memory);
    let backend = format!("memory-backend-file,id=ram,size=256M,share=on,mem-path={path}");
    boots_with(builder, &backend)?;
    // The real-mode interrupt table, the kernel: a guest's memory is never all zero.
    let mut first = vec![0; 32 << 20];
    std::fs::File::from(ours).read_exact(&mut first)?;
    assert!(first.iter().any(|&byte| byte != 0));
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_file_that_was_handed_in() -> Result<()> {
    let mut builder = Vm::builder();
    let path = builder.fdset(fds::disk(SIZE)?);
    boots_with(
        builder,
        &format!("memory-backend-file,id=ram,size=256M,share=on,mem-path={path}"),
    )
}
