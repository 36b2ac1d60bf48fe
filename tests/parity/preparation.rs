//! Parity of preparation.
