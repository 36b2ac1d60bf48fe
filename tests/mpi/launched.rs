//! The real binary under `mpirun`, or under what `MPI_LAUNCHER` says (`srun --mpi=pmix --overcommit --kill-on-bad-exit=1`).

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

/// The launcher and what it needs before `-n`.
fn launcher() -> Vec<String> {
    let words = std::env::var("MPI_LAUNCHER").unwrap_or_else(|_| "mpirun --oversubscribe --bind-to none".to_string());
    words.split_whitespace().map(String::from).collect()
}

/// Whether the launcher is at hand; says so where it is not.
pub fn mpirun_is_there() -> bool {
    let there = Command::new(&launcher()[0]).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: {} is not installed", launcher()[0]);
    }
    there
}

/// What the launcher says of a rank that SIGKILL has ended.
pub fn told_of_a_kill() -> &'static str {
    if launcher()[0] == "srun" { ": Killed" } else { "signal 9 (Killed)" }
}

/// In the environment of a launcher and of all that it starts: which one it is.
const LAUNCH: &str = "CTSCRIBE_TEST_LAUNCH";

/// `ctscribe` on `size` processes; 1: without a launcher.
pub fn launch(size: usize) -> Command {
    let program = env!("CARGO_BIN_EXE_ctscribe");
    if size == 1 {
        return Command::new(program);
    }
    static LAUNCHES: AtomicU64 = AtomicU64::new(0);
    let launcher = launcher();
    let mut command = Command::new(&launcher[0]);
    command.args(&launcher[1..]).args(["-n", &size.to_string(), program]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env(LAUNCH, format!("{}-{}", std::process::id(), LAUNCHES.fetch_add(1, Ordering::Relaxed)));
    command
}

/// The process of rank `rank` that [`launch`]'s `command` has started, wherever it hangs in the tree of processes.
pub fn process_of(command: &Command, rank: usize) -> Option<u32> {
    let own = command
        .get_envs()
        .find_map(|(name, value)| (name == LAUNCH).then(|| value?.to_str().map(|value| format!("{LAUNCH}={value}"))))??;
    let told = ["OMPI_COMM_WORLD_RANK", "SLURM_PROCID"].map(|name| format!("{name}={rank}"));
    let is_rank = |process: &u32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let has = |wanted: &String| environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        program == Path::new(env!("CARGO_BIN_EXE_ctscribe")) && has(&own) && told.iter().any(has)
    };
    fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_rank)
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
