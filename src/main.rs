//! The program: parses, runs, prints the error chain once.

use std::process::ExitCode;

use clap::Parser;
use ctscribe::cli::Cli;

fn main() -> ExitCode {
    ctscribe_ops::reuse_freed_memory();
    ctscribe_ops::keep_elementwise_work_on_its_thread();
    let cli = Cli::parse();
    if !cli.is_of_texts() {
        ctscribe_ops::keep_one_heap();
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", ctscribe::error::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
