//! Sets of few rows, all of which are read block after block.

use super::super::{
    posting::{BLOCK, Posting},
    term::{Lane, Word},
};

/// Sets of few rows, and the rows of most of them, those of a block together: to look in each block for the next row of each
/// of hundreds of sets takes longer than all the rest.
pub(super) struct Few<'a, const SETS: usize, const ROWS: usize> {
    sets: [(Set<'a>, Role); SETS],
    len: usize,
    /// The rows of the first sets, each with its role, by their blocks, several of which stand together.
    rows: [u32; ROWS],
    starts: [u16; PARTS + 1],
    /// How many sets those are.
    sorted: usize,
}

/// What the rows of a set have to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Role(u8);

impl Role {
    /// They refuse what it has.
    pub(super) const REFUSING: Self = Self(Lane::ALL.len() as u8);
    /// They are looked for by what it has.
    pub(super) const FOUND: Self = Self(NO_LIST | FOUND);

    /// They ask for what it has.
    pub(super) fn asking(lane: Lane) -> Self {
        Self(lane as u8)
    }

    /// They do, and are looked for by it.
    pub(super) fn found_asking(lane: Lane) -> Self {
        Self(lane as u8 | FOUND)
    }

    pub(super) fn is_found(self) -> bool {
        self.0 & FOUND != 0
    }

    /// The lane in which they ask, or the place behind all lanes where they refuse, or one further behind.
    pub(super) fn list(self) -> usize {
        usize::from(self.0 & NO_LIST)
    }
}

/// The rows, where they are no [`Posting::Many`].
#[derive(Clone, Copy)]
pub(super) enum Set<'a> {
    Filed(&'a Posting<Word>),
    Bare(&'a Posting<()>),
}

impl Set<'_> {
    fn len(self) -> usize {
        match self {
            Self::Filed(rows) => rows.len(),
            Self::Bare(rows) => rows.len(),
        }
    }

    fn each(self, mut call: impl FnMut(u32)) {
        match self {
            Self::Filed(rows) => rows.each(|row, _| call(row)),
            Self::Bare(rows) => rows.each(|row, ()| call(row)),
        }
    }

    fn each_of_block(self, block: u32, call: impl FnMut(u32)) {
        match self {
            Self::Filed(rows) => rows.each_of_few(block, call),
            Self::Bare(rows) => rows.each_of_few(block, call),
        }
    }
}

impl<'a, const SETS: usize, const ROWS: usize> Few<'a, SETS, ROWS> {
    pub(super) fn new() -> Self {
        Self {
            sets: [(Set::Bare(&NO_ROWS), Role::FOUND); SETS],
            len: 0,
            rows: [0; ROWS],
            starts: [0; PARTS + 1],
            sorted: 0,
        }
    }

    /// Says whether there was room.
    pub(super) fn add(&mut self, set: Set<'a>, role: Role) -> bool {
        let Some(place) = self.sets.get_mut(self.len) else {
            return false;
        };
        *place = (set, role);
        self.len += 1;
        true
    }

    /// Must be called after all were added: puts the rows of as many as there is room for in the order of blocks. Says whether
    /// that is all.
    pub(super) fn sort(&mut self) -> bool {
        let (mut total, sets) = (0, &self.sets[..self.len]);
        let fit = sets.iter().take_while(|(set, _)| {
            total += set.len();
            total <= ROWS
        });
        self.sorted = fit.count();
        let sets = &sets[..self.sorted];
        for (set, _) in sets {
            set.each(|row| self.starts[part(row / BLOCK) + 1] += 1);
        }
        for at in 1..=PARTS {
            self.starts[at] += self.starts[at - 1];
        }
        let mut next = self.starts;
        for (set, role) in sets {
            set.each(|row| {
                let place = &mut next[part(row / BLOCK)];
                self.rows[usize::from(*place)] = pack(row, *role);
                *place += 1;
            });
        }
        self.sorted == self.len
    }

    /// Calls for the rows of a block.
    pub(super) fn read(&self, block: u32, mut call: impl FnMut(Role, u32)) {
        let part = part(block);
        let rows = &self.rows[usize::from(self.starts[part])..usize::from(self.starts[part + 1])];
        for packed in rows {
            if packed >> BLOCK_SHIFT == block / PARTS as u32 {
                call(Role((packed >> ROLE_SHIFT) as u8 & (NO_LIST | FOUND)), packed % BLOCK);
            }
        }
        for (set, role) in &self.sets[self.sorted..self.len] {
            set.each_of_block(block, |at| call(*role, at));
        }
    }
}

fn part(block: u32) -> usize {
    block as usize % PARTS
}

/// The place in its block, what it has to do with the connection, and which of the blocks that stand together is its.
fn pack(row: u32, role: Role) -> u32 {
    let block = row / BLOCK / PARTS as u32;
    (block << BLOCK_SHIFT) | (u32::from(role.0) << ROLE_SHIFT) | (row % BLOCK)
}

static NO_ROWS: Posting<()> = Posting::None;
const FOUND: u8 = 1 << 4;
/// Behind all lanes, and those that refuse.
const NO_LIST: u8 = FOUND - 1;
const ROLE_SHIFT: u32 = BLOCK.ilog2();
/// Behind a role; what is left is enough for as many rows as there are numbers.
const BLOCK_SHIFT: u32 = ROLE_SHIFT + 5;
/// Of a million rows each block stands alone.
const PARTS: usize = 256;
/// Some 24 KiB of a stack.
pub(super) const SOME_SETS: usize = 1024;
/// All that an identity of a thousand bytes can have of the names that rules ask for, and all blocks around two addresses: some 96 KiB of
/// a stack.
pub(super) const MOST_SETS: usize = 4608;
/// What there is room for as a rule.
pub(super) const SOME_ROWS: usize = 1 << 10;
/// Some 64 KiB of a stack.
pub(super) const MOST_ROWS: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::index::posting::Edit;

    fn posting<T: Copy + Default>(rows: &[u32]) -> Posting<T> {
        let mut posting = Posting::default();
        let edit = |row: &u32| Edit {
            row: *row,
            comes: Some(T::default()),
        };
        posting.edit(&rows.iter().map(edit).collect::<Vec<_>>());
        posting
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_rows_of_a_block_are_read_in_any_order_of_blocks(
            mut sets in vec(vec(0..700 * BLOCK, 0..300), 1..120),
            blocks in vec(0..701u32, 1..200),
        ) {
            for rows in &mut sets {
                rows.sort_unstable();
                rows.dedup();
            }
            let filed: Vec<Posting<Word>> = sets.iter().map(|rows| posting(rows)).collect();
            let bare: Vec<Posting<()>> = sets.iter().map(|rows| posting(rows)).collect();
            let mut few = Few::<SOME_SETS, SOME_ROWS>::new();
            for (filed, bare) in filed.iter().zip(&bare) {
                prop_assert!(few.add(Set::Filed(filed), Role::found_asking(Lane::Port)) && few.add(Set::Bare(bare), Role::REFUSING));
            }
            few.sort();
            for block in blocks {
                let mut read = [Vec::new(), Vec::new()];
                few.read(block, |role, at| read[usize::from(role == Role::REFUSING)].push(at));
                let of_block = sets.iter().flatten().filter(|row| **row / BLOCK == block);
                let mut wanted: Vec<u32> = of_block.map(|row| row % BLOCK).collect();
                wanted.sort_unstable();
                for mut read in read {
                    read.sort_unstable();
                    prop_assert_eq!(&read, &wanted);
                }
            }
        }
    }
}
