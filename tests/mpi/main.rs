//! Processes under `mpirun`: they give what one process gives, byte for byte, and end together when one dies.

mod deaths;
#[expect(dead_code, reason = "volumes need more of DICOM than a damaged slice")]
#[path = "../volumes/dicom_file.rs"]
mod dicom_file;
mod launched;
mod preparing;
#[path = "../pipeline/tiny.rs"]
mod tiny;
mod work;
