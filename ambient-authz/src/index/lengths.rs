//! How long the values of a chain are.

use std::sync::Arc;

/// Lengths in their order, each with how many values have it. What one text or address has of a chain has each length once.
#[derive(Clone, Debug, Default)]
pub(super) struct Lengths(Arc<Vec<(usize, u32)>>);

impl Lengths {
    /// One more value is so long.
    pub(super) fn take(&mut self, length: usize) {
        let lengths = Arc::make_mut(&mut self.0);
        match lengths.binary_search_by_key(&length, |(length, _)| *length) {
            Ok(at) => lengths[at].1 += 1,
            Err(at) => lengths.insert(at, (length, 1)),
        }
    }

    /// One value fewer is.
    pub(super) fn release(&mut self, length: usize) {
        let lengths = Arc::make_mut(&mut self.0);
        if let Ok(at) = lengths.binary_search_by_key(&length, |(length, _)| *length) {
            lengths[at].1 -= 1;
            if lengths[at].1 == 0 {
                lengths.remove(at);
            }
        }
    }

    /// All that there are, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(length, _)| *length)
    }

    /// How many different ones there are: so many values lie one in the other at most.
    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }
}
