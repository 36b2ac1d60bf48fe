//! Every fused operation against its composed form and against finite differences.

mod attention;
mod blocks;
mod check;
mod checkpoint;
mod conv3d;
mod cross_entropy;
mod elementwise;

mod kept_products;
mod linear;
mod reading;
mod rows;
mod threads;
