//! Datasets as they are published, whole and broken, and the cache that is made of them.

mod chest;
mod ct_rate;
mod ctrg;
mod listing;
mod workers;
