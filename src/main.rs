//! The `ctscribe` program: parse, run, print the error chain once, exit code.

fn main() {}
