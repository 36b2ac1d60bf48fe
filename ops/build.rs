//! With the feature `cuda`: compiles the kernels in `cuda/` to PTX for compute capability 8.0, which a driver turns into code for its device.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 11] = [
    "activation",
    "adamw",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "conv3d",
    "cross_entropy",
    "dropout",
    "norm",
    "product",
    "rope",
];

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let children: Vec<_> = KERNELS.iter().map(|kernel| (kernel, start(kernel, &out))).collect();
    for (kernel, mut child) in children {
        let status = child.wait().unwrap_or_else(|e| panic!("nvcc of cuda/{kernel}.cu: {e}"));
        assert!(status.success(), "nvcc of cuda/{kernel}.cu ended with {status}");
    }
}

/// The compiler: `NVCC`, else that of `CUDA_HOME`, else the one on the path.
fn nvcc() -> PathBuf {
    let given = std::env::var_os("NVCC").map(PathBuf::from);
    let home = || Some(Path::new(&std::env::var_os("CUDA_HOME")?).join("bin/nvcc"));
    given.or_else(home).unwrap_or_else(|| PathBuf::from("nvcc"))
}

fn start(kernel: &str, out: &Path) -> std::process::Child {
    let mut command = Command::new(nvcc());
    command.args(["-std=c++17", "-O3", "-ptx", "-arch=compute_80", "-o"]);
    command.arg(out.join(kernel).with_extension("ptx")).arg(Path::new("cuda").join(kernel).with_extension("cu"));
    command.spawn().unwrap_or_else(|e| panic!("{:?} could not be started: {e}; the feature `cuda` needs CUDA 12 or 13", nvcc()))
}
