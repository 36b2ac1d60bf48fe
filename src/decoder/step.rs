//! One token at a time, whatever the decoder.

use candle_core::Tensor;

use crate::Result;

/// A decoder in the middle of n sequences.
pub trait NextToken {
    /// Feeds the first ids of each sequence, later one new id each; all of one length. Returns the logits (n, vocabulary) of what comes next.
    fn next(&mut self, ids: &[Vec<u32>]) -> Result<Tensor>;

    /// Sequence i goes on from what was sequence `order[i]`; there may be fewer or more than before.
    fn reorder(&mut self, order: &[usize]) -> Result<()>;
}
