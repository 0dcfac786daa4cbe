//! Writes `export/schema.json`, the JSON Schema of every command and event.
//! `cargo xtask codegen` calls it.

use std::error::Error;
use std::path::Path;

#[expect(
    clippy::disallowed_methods,
    reason = "a developer's tool that writes a published document"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("export/schema.json");
    let text = serde_json::to_string_pretty(&qapi_schema::export::json_schema())?;
    std::fs::write(path, text + "\n")?;
    Ok(())
}
