//! The hub's protocol against a server on this machine: redirects, ranges, refusals, cut connections, wrong bytes, no network.

mod cache;
mod command;
mod ct_rate;
mod double;
mod faults;
mod refusals;
mod server;
