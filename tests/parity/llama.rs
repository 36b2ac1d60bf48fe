//! Parity of llama.
