//! Data sets: drawn phantoms in CT-RATE's layout.

pub mod phantom;
