//! One idea per file: `good/*.json` must give the introspection in `good/*.out`, `bad/*.json` must
//! fail with the line in `bad/*.err`. `SESAME_BLESS=1` rewrites the goldens.
#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write the repository's own files"
)]

use std::fs;
use std::path::{Path, PathBuf};

use qapi_gen::SchemaError;

fn tests(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder)
}

fn cases(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(tests(folder)).expect("the folder is in the repository");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".json"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no cases in {folder}");
    names
}

/// What `generate` gives for one file as the main file of a schema.
fn introspection(folder: &str, name: &str) -> Result<String, SchemaError> {
    let files = qapi_gen::generate_from(&tests(folder), name)?;
    let published = files
        .into_iter()
        .find(|file| file.path.ends_with("export/introspection.json"))
        .expect("every schema has an introspection");
    Ok(published.text)
}

fn compare(golden: &Path, came: &str) -> Option<String> {
    if std::env::var_os("SESAME_BLESS").is_some() {
        fs::write(golden, came).expect("goldens are writable");
        return None;
    }
    let wanted = fs::read_to_string(golden).unwrap_or_default();
    (wanted != came).then(|| format!("{}: wanted\n{wanted}came\n{came}", golden.display()))
}

#[test]
fn good_schemas_give_their_introspection() {
    let mut wrong = Vec::new();
    for name in cases("good") {
        let came = introspection("good", &name).unwrap_or_else(|error| format!("{error}\n"));
        wrong.extend(compare(
            &tests("good").join(&name).with_extension("out"),
            &came,
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_schemas_say_what_is_wrong_and_where() {
    let mut wrong = Vec::new();
    for name in cases("bad") {
        let came = match introspection("bad", &name) {
            Ok(_) => "accepted\n".to_owned(),
            Err(error) => format!("{error}\n"),
        };
        assert_ne!(came, "accepted\n", "{name}");
        wrong.extend(compare(
            &tests("bad").join(&name).with_extension("err"),
            &came,
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn good_schemas_become_rust_that_parses() {
    for name in cases("good") {
        let files = qapi_gen::generate_from(&tests("good"), &name).expect("the case is good");
        for file in files {
            if file
                .path
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                let text = &file.text;
                assert!(!text.contains("compile_error!"), "{name}: {text}");
                assert!(syn::parse_file(text).is_ok(), "{name}: {text}");
            }
        }
    }
}

#[test]
fn checked_in_files_are_what_the_schema_says() {
    let product = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = qapi_gen::generate(&product.join("qapi-schema/schema"))
        .expect("the product's schema is good");
    let marked = qapi_gen::generate_marked(&tests("")).expect("the tests' schema is good");
    assert_eq!(marked.len(), 2);
    for file in files.into_iter().chain(marked) {
        let found = fs::read_to_string(product.join(&file.path)).unwrap_or_default();
        let fresh = found == file.text;
        assert!(
            fresh,
            "{} is stale: run `cargo xtask codegen`",
            file.path.display()
        );
    }
}
