//! One call of a stage's training: where it begins, how far it goes, who shares it.

use crate::ranks::{Alone, Communicator};

/// How a stage is called.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Goes on after the newest checkpoint.
    pub resume: bool,
    /// Stops after this many steps of this call, with a checkpoint; `None`: runs to the end.
    pub stop_after: Option<u64>,
    /// Who shares each batch; all call alike, on the same files.
    pub ranks: &'a dyn Communicator,
}

impl Call<'static> {
    /// Of a single process, to the end.
    pub fn alone(resume: bool) -> Self {
        Call { resume, stop_after: None, ranks: &Alone }
    }
}
