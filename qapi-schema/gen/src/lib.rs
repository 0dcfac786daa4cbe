//! Reads QAPI schema files and writes the Rust of qapi-schema
