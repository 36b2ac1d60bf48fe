//! The whole job on a few tiny phantoms: what each stage writes, what the next one reads, and that an interrupted run ends like an unbroken one.

mod equivalence;
mod frozen;
mod guards;
mod observed;
mod overfit;
mod ranks;
mod recompute;
mod resume;
mod stages;
mod tiny;
mod together;
mod watching;
