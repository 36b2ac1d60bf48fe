//! Parity of metrics.
