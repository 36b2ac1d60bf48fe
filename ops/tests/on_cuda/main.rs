//! Every fused operation on the first CUDA device against the same operation on the CPU, values and gradients. Built with the feature
//! `cuda` only; says so and passes where there is no device. `scripts/gpu-check` runs it.
#![cfg(feature = "cuda")]

mod check;
mod layers;
mod matrices;
mod operations;
