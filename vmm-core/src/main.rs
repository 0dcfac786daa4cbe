//! The binary `sesame`.
fn main() {}
