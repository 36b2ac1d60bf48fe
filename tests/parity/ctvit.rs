//! Parity of ctvit.
