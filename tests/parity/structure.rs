//! Parity of structure.
