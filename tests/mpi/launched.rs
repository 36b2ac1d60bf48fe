//! The real binary under `mpirun`.

use std::path::Path;
use std::process::{Command, Output};

/// Whether `mpirun` is at hand; says so where it is not.
pub fn mpirun_is_there() -> bool {
    let there = Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: mpirun is not installed");
    }
    there
}

/// `ctscribe` on `size` processes; 1: without mpirun.
pub fn launch(size: usize) -> Command {
    let program = env!("CARGO_BIN_EXE_ctscribe");
    if size == 1 {
        return Command::new(program);
    }
    let mut command = Command::new("mpirun");
    command.args(["-n", &size.to_string(), "--oversubscribe", "--bind-to", "none", program]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// Runs it to its end: exit code, stdout, stderr.
pub fn run(size: usize, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = launch(size).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[track_caller]
pub fn succeed(size: usize, arguments: &[&str]) -> String {
    let (code, out, err) = run(size, arguments);
    assert_eq!(code, 0, "{size} x {arguments:?}\n{out}\n{err}");
    out
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
