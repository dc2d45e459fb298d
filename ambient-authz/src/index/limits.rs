//! From how much on decisions are made in another way.

/// Which way is quicker is a matter of numbers; which one is taken changes no decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// So many rows are looked at one by one, more by bitmaps.
    pub(super) candidates: usize,
    /// And so many words of whole rules are read meanwhile.
    pub(super) words: usize,
    /// The rows of a rule's clauses stand in one block where they are so many at most, else in blocks of their own.
    pub(super) in_block: usize,
    /// Of values with fewer rows the rows are read one by one, and not summed.
    pub(super) heavy: usize,
    /// Beside a sum this part of all rows may be read.
    pub(super) share: usize,
    /// A peer keeps what its names let through where there are so many blocks,
    pub(super) kept_blocks: usize,
    /// rows ask about names in so many lanes,
    pub(super) kept_lanes: usize,
    /// and so many are found by its names, or all may be gone over.
    pub(super) kept_found: usize,
}

impl Limits {
    /// None at all, so that few policies are decided on as very many are.
    pub(super) const NONE: Self = Self {
        candidates: 0,
        words: 0,
        in_block: 12,
        heavy: 2,
        share: usize::MAX,
        kept_blocks: 0,
        kept_lanes: 0,
        kept_found: 0,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // One by one these cost some microseconds; more are cheaper in blocks.
            candidates: 256,
            // Some ten microseconds.
            words: 4096,
            in_block: super::BLOCK as usize,
            heavy: super::sums::HEAVY,
            share: super::sums::SHARE,
            // Where there are fewer rows, their bitmaps stay in a near cache.
            kept_blocks: 64,
            // One bitmap more or less is not worth it.
            kept_lanes: 3,
            kept_found: super::CROWD + 1,
        }
    }
}
