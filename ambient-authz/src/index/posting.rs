//! Sets of rows, shared with other snapshots until they change.

use std::sync::Arc;

/// The rows of a block: as many as fit a page of a bitmap that a decision can hold on its stack.
pub(crate) const BLOCK: u32 = 64 * WORDS as u32;
pub(crate) const WORDS: usize = 64;

/// A bit for each row of a block.
pub(crate) type Bits = [u64; WORDS];

/// A set of rows, each with what else is known of it as long as they are few.
#[derive(Clone, Debug, Default)]
pub(crate) enum Posting<T> {
    #[default]
    None,
    One(u32, T),
    /// In order.
    Few(Arc<[(u32, T)]>),
    Many(Arc<Many>),
}

/// Rows in blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Many {
    len: u32,
    groups: Vec<Group>,
}

/// A change copies one group, and the list of groups.
type Group = Arc<[Option<Block>; GROUP]>;

const GROUP: usize = 16;

/// Of a set of many the rows in one block; never none.
#[derive(Clone, Debug)]
pub(crate) enum Block {
    /// Places in the block, in order.
    Sparse(Arc<Vec<u16>>),
    Dense(Arc<Bits>, u16),
}

/// Whether a row comes to a set or leaves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edit<T> {
    pub(crate) row: u32,
    pub(crate) comes: Option<T>,
}

impl<T: Copy + Default> Posting<T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(..) => 1,
            Self::Few(rows) => rows.len(),
            Self::Many(many) => many.len as usize,
        }
    }

    /// Whether nothing else is known of the rows.
    pub(crate) fn is_many(&self) -> bool {
        matches!(self, Self::Many(_))
    }

    /// Calls for each row, in order; where they are many with nothing else.
    pub(crate) fn each(&self, mut call: impl FnMut(u32, T)) {
        match self {
            Self::None => {}
            Self::One(row, with) => call(*row, *with),
            Self::Few(rows) => rows.iter().for_each(|(row, with)| call(*row, *with)),
            Self::Many(many) => {
                let blocks = many.groups.iter().flat_map(|group| group.iter());
                for (block, first) in blocks.zip((0u32..).step_by(BLOCK as usize)) {
                    if let Some(block) = block {
                        block.each(|at| call(first + u32::from(at), T::default()));
                    }
                }
            }
        }
    }

    /// Calls for the rows in a block, by their places in it, where they are few.
    pub(crate) fn each_of_few(&self, block: u32, mut call: impl FnMut(u32)) {
        match self {
            Self::One(row, _) if row / BLOCK == block => call(row % BLOCK),
            Self::Few(rows) => {
                let from = rows.partition_point(|(row, _)| row / BLOCK < block);
                let of_block = rows[from..].iter().take_while(|(row, _)| row / BLOCK == block);
                of_block.for_each(|(row, _)| call(row % BLOCK));
            }
            _ => {}
        }
    }

    /// Brings edits in, which are in order of rows; of one row the leaving comes first.
    pub(crate) fn edit(&mut self, edits: &[Edit<T>]) {
        let next = match self {
            Self::Many(many) => {
                let many = Arc::make_mut(many);
                many.edit(edits.iter().map(|edit| (edit.row, edit.comes.is_some())));
                // Far enough below the other bound that a set does not go back and forth.
                if many.len as usize > MOST_FEW / 2 {
                    return;
                }
                let mut rows = Vec::with_capacity(many.len as usize);
                self.each(|row, with| rows.push((row, with)));
                rows
            }
            Self::None => merge(&[], edits),
            Self::One(row, with) => merge(&[(*row, *with)], edits),
            Self::Few(rows) => merge(rows, edits),
        };
        *self = match next[..] {
            [] => Self::None,
            [(row, with)] => Self::One(row, with),
            _ if next.len() <= MOST_FEW => Self::Few(next.into()),
            _ => {
                let mut many = Many::default();
                many.edit(next.into_iter().map(|(row, _)| (row, true)));
                Self::Many(Arc::new(many))
            }
        };
    }
}

fn merge<T: Copy>(rows: &[(u32, T)], edits: &[Edit<T>]) -> Vec<(u32, T)> {
    let mut next = Vec::with_capacity(rows.len() + edits.len());
    let mut rest = rows;
    for edit in edits {
        let (before, from) = rest.split_at(rest.partition_point(|(row, _)| *row < edit.row));
        next.extend_from_slice(before);
        rest = match from {
            [(row, _), after @ ..] if *row == edit.row => after,
            _ => from,
        };
        if let Some(with) = edit.comes {
            next.pop_if(|(row, _)| *row == edit.row);
            next.push((edit.row, with));
        }
    }
    next.extend_from_slice(rest);
    next
}

impl Many {
    pub(crate) const NONE: Self = Self {
        len: 0,
        groups: Vec::new(),
    };

    pub(crate) fn block(&self, block: u32) -> Option<&Block> {
        self.groups.get(block as usize / GROUP)?[block as usize % GROUP].as_ref()
    }

    /// Brings in rows, and whether each comes or leaves.
    fn edit(&mut self, edits: impl Iterator<Item = (u32, bool)>) {
        for (row, comes) in edits {
            let (group, block) = ((row / BLOCK) as usize / GROUP, (row / BLOCK) as usize % GROUP);
            if self.groups.len() <= group {
                self.groups.resize(group + 1, Group::default());
            }
            let slot = &mut Arc::make_mut(&mut self.groups[group])[block];
            let before = slot.as_ref().map_or(0, Block::len);
            Block::edit_in(slot, (row % BLOCK) as u16, comes);
            self.len = self.len + slot.as_ref().map_or(0, Block::len) - before;
        }
    }
}

impl Block {
    /// Brings a row into a block, or takes it out; where there was none, or is none left, there is no block.
    pub(crate) fn edit_in(slot: &mut Option<Self>, at: u16, comes: bool) {
        let block = slot.get_or_insert_with(|| Self::Sparse(Arc::default()));
        block.edit(at, comes);
        if block.len() == 0 {
            *slot = None;
        }
    }

    fn len(&self) -> u32 {
        match self {
            Self::Sparse(rows) => rows.len() as u32,
            Self::Dense(_, len) => u32::from(*len),
        }
    }

    /// Sets the bits of the rows.
    pub(crate) fn add_to(&self, bits: &mut Bits) {
        match self {
            Self::Sparse(rows) => rows.iter().for_each(|at| set(bits, u32::from(*at))),
            Self::Dense(rows, _) => bits.iter_mut().zip(rows.iter()).for_each(|(word, of)| *word |= of),
        }
    }

    pub(crate) fn each(&self, mut call: impl FnMut(u16)) {
        match self {
            Self::Sparse(rows) => rows.iter().copied().for_each(call),
            Self::Dense(bits, _) => each_bit_of(bits, |at| call(at as u16)),
        }
    }

    fn edit(&mut self, at: u16, comes: bool) {
        match self {
            Self::Sparse(rows) => {
                match (rows.binary_search(&at), comes) {
                    (Err(place), true) => Arc::make_mut(rows).insert(place, at),
                    (Ok(place), false) => drop(Arc::make_mut(rows).remove(place)),
                    _ => {}
                }
                if rows.len() > MOST_SPARSE {
                    let mut bits = [0; WORDS];
                    rows.iter().for_each(|at| set(&mut bits, u32::from(*at)));
                    *self = Self::Dense(Arc::new(bits), rows.len() as u16);
                }
            }
            Self::Dense(bits, len) => {
                let (word, bit) = (usize::from(at) / 64, 1 << (at % 64));
                if (bits[word] & bit == 0) == comes {
                    Arc::make_mut(bits)[word] ^= bit;
                    *len = if comes { *len + 1 } else { *len - 1 };
                }
                if usize::from(*len) <= MOST_SPARSE / 2 {
                    let mut rows = Vec::with_capacity(usize::from(*len));
                    each_bit_of(bits, |at| rows.push(at as u16));
                    *self = Self::Sparse(Arc::new(rows));
                }
            }
        }
    }
}

pub(crate) fn set(bits: &mut Bits, at: u32) {
    bits[at as usize / 64] |= 1 << (at % 64);
}

pub(crate) fn is_set(bits: &Bits, at: u32) -> bool {
    bits[at as usize / 64] >> (at % 64) & 1 == 1
}

pub(crate) fn each_bit(word: u64, mut call: impl FnMut(u32)) {
    let mut rest = word;
    while rest != 0 {
        call(rest.trailing_zeros());
        rest &= rest - 1;
    }
}

fn each_bit_of(bits: &Bits, mut call: impl FnMut(u32)) {
    for (word, first) in bits.iter().zip((0u32..).step_by(64)) {
        each_bit(*word, |at| call(first + at));
    }
}

/// A list of so many rows is 2 or 4 KiB to copy, and a pass over it some hundred nanoseconds.
const MOST_FEW: usize = 512;
/// Where a bitmap is gone over faster, and does not take too much more.
const MOST_SPARSE: usize = WORDS;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn rows(posting: &Posting<()>) -> Vec<u32> {
        let mut rows = Vec::new();
        posting.each(|row, ()| rows.push(row));
        rows
    }

    fn by_block(posting: &Posting<()>) -> Vec<u32> {
        let mut rows = Vec::new();
        for block in 0..4 {
            let mut bits = [0; WORDS];
            match posting {
                Posting::Many(many) => many.block(block).into_iter().for_each(|rows| rows.add_to(&mut bits)),
                _ => posting.each_of_few(block, |at| set(&mut bits, at)),
            }
            each_bit_of(&bits, |at| rows.push(block * BLOCK + at));
        }
        rows
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Also where sets grow into the next form and shrink back.
        #[test]
        fn edits_are_those_of_a_plain_set(batches in vec((vec(0..4 * BLOCK, 0..900), 0..5u32), 1..12)) {
            let (mut posting, mut plain) = (Posting::default(), BTreeSet::new());
            for (rows_of_batch, leaves) in batches {
                let coming = rows_of_batch.iter().map(|row| (row % (BLOCK * (1 + row % 4)), row % 5 >= leaves));
                let leaving = plain.iter().filter(|row| *row % 7 < leaves).map(|row| (*row, false));
                let mut edits: Vec<_> = coming.chain(leaving).collect();
                edits.sort_unstable();
                for (row, comes) in &edits {
                    if *comes { plain.insert(*row); } else { plain.remove(row); }
                }
                let edits: Vec<_> = edits.iter().map(|(row, comes)| Edit { row: *row, comes: comes.then_some(()) }).collect();
                posting.edit(&edits);
                prop_assert_eq!(rows(&posting), plain.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(by_block(&posting), rows(&posting));
                prop_assert_eq!(posting.len(), plain.len());
            }
        }
    }
}
