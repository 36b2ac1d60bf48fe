//! Every fused operation against its composed form and against finite differences.

mod attention;
mod check;
mod elementwise;
mod linear;
mod rows;
