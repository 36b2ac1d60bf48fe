//! Parity of bert.
