//! Writes the generated files: `cargo run -p qapi-gen --example write -- qapi-schema`.
//! `cargo xtask codegen` does the same and can check instead.

use std::error::Error;
use std::path::PathBuf;

#[expect(
    clippy::disallowed_methods,
    reason = "a developer's tool that writes source files"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args_os().nth(1).unwrap_or("qapi-schema".into()));
    for file in qapi_gen::generate(&root.join("schema"))? {
        let path = root.join(&file.path);
        std::fs::create_dir_all(path.parent().unwrap_or(&root))?;
        std::fs::write(path, file.text)?;
    }
    Ok(())
}
