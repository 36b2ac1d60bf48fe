//! The real binary: what it prints, what it refuses, how it exits.

mod adapters;
mod bad_input;
mod commands;
mod documents;
mod real_scans;
mod text;
mod trained;
mod verify;
