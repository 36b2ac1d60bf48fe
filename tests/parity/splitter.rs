//! Parity of splitter.
