//! The program: parses, runs, prints the error chain once.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ctscribe_ops::reuse_freed_memory();
    ctscribe_ops::keep_elementwise_work_on_its_thread();
    match ctscribe::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", ctscribe::error::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
