//! Every property that takes what is handed in, in every place and every case of its table
//! (`tests/src/handed.rs`). Those that want vhost devices are in `vhost.rs`.
use std::path::Path;

use anyhow::Result;
use tests::Vm;
use tests::handed::{schema, walk};

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn every_string_of_the_schema_has_a_row_or_opens_nothing() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    schema::check(&mut vm)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn every_property_takes_and_gives_back_as_the_table_says() -> Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    walk::walk(|row| !row.wants_vhost(), folder)
}
