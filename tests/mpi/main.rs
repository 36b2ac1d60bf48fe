//! Processes under `mpirun`: they give what one process gives, byte for byte, and end together when one dies.

mod deaths;
mod launched;
#[path = "../pipeline/tiny.rs"]
mod tiny;
mod work;
