//! What sums are of each block.
//!
//! What all of a chain are of some blocks stands side by side: a change touches few blocks, and nearly all sums in them. So it
//! copies that, and nothing of other blocks.

use std::sync::Arc;

use super::super::posting::{BLOCK, Bits, Block, WORDS};

/// A sum: the rows of a value and of all that it lies in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum<'a> {
    table: &'a Table,
    at: usize,
}

impl<'a> Sum<'a> {
    pub(super) fn new(table: &'a Table, at: usize) -> Self {
        Self { table, at }
    }

    /// The rows of a block that fail by it: that refuse one of the values, or ask in this lane alone, and for none of them. So a
    /// decision reads one bitmap in the place of three.
    pub(crate) fn fails(self, block: u32) -> Option<&'a Bits> {
        self.table.at(self.at, block).fails.as_deref()
    }

    /// Of a text, those that ask about it from both sides, and in this lane for none of the values: which fail if they do in the
    /// other lane as well.
    pub(crate) fn lacks(self, block: u32) -> Option<&'a Bits> {
        self.table.at(self.at, block).rest()?.lacks.as_deref()
    }

    /// Those that refuse one of the values.
    pub(crate) fn refused(self, block: u32) -> Option<&'a Block> {
        self.table.at(self.at, block).rest()?.refused.as_ref()
    }
}

/// What a sum is of a block.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Apart from the rest, as decisions read this alone, of one block after the other.
    fails: Option<Arc<Bits>>,
    rest: Option<Arc<Rest>>,
}

#[derive(Clone, Debug)]
struct Rest {
    /// The rows that ask for one of its values.
    asked: Bits,
    /// Those that refuse one of them.
    refused: Option<Block>,
    lacks: Option<Arc<Bits>>,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            asked: NO_BITS,
            refused: None,
            lacks: None,
        }
    }
}

impl Part {
    const NONE: Self = Self { fails: None, rest: None };

    fn rest(&self) -> Option<&Rest> {
        self.rest.as_deref()
    }

    /// Brings a row in that asks or refuses, or takes it out.
    pub(super) fn edit(&mut self, row: u32, refused: bool, comes: bool) {
        let (rest, at) = (Arc::make_mut(self.rest.get_or_insert_default()), row % BLOCK);
        if refused {
            return Block::edit_in(&mut rest.refused, at as u16, comes);
        }
        let (word, bit) = (&mut rest.asked[at as usize / 64], 1 << (at % 64));
        *word = if comes { *word | bit } else { *word & !bit };
    }

    /// Gives back what holds nothing.
    fn tidy(&mut self) {
        let holds = |rest: &Rest| rest.refused.is_some() || rest.lacks.is_some() || rest.asked != NO_BITS;
        if !self.rest().is_some_and(holds) {
            self.rest = None;
        }
    }

    fn is_none(&self) -> bool {
        self.fails.is_none() && self.rest.is_none()
    }

    /// Calls for each row, by its place, and whether it refuses.
    #[cfg(test)]
    pub(super) fn each_row(&self, mut call: impl FnMut(u32, bool)) {
        let Some(rest) = self.rest() else { return };
        let asked = (0..BLOCK).filter(|at| super::super::posting::is_set(&rest.asked, *at));
        asked.for_each(|at| call(at, false));
        let refused = rest.refused.iter();
        refused.for_each(|rows| rows.each(|at| call(u32::from(at), true)));
    }
}

/// What fails by a sum in a block, and what lacks.
pub(super) struct Derived {
    fails: Bits,
    lacks: Option<Bits>,
}

impl Derived {
    /// Given the rows that ask in this lane alone, and from both sides.
    pub(super) fn of(part: &Part, used: Option<&Bits>, mixed: Option<&Bits>) -> Self {
        let asked = part.rest().map_or(&NO_BITS, |rest| &rest.asked);
        let without = |rows: &Bits| -> Bits { std::array::from_fn(|word| rows[word] & !asked[word]) };
        let mut fails = used.map_or(NO_BITS, without);
        if let Some(rows) = part.rest().and_then(|rest| rest.refused.as_ref()) {
            rows.add_to(&mut fails);
        }
        let lacks = mixed.map(without).filter(|lacks| *lacks != NO_BITS);
        Self { fails, lacks }
    }

    pub(super) fn is_in(&self, part: &Part) -> bool {
        let lacks = part.rest().and_then(|rest| rest.lacks.as_deref());
        part.fails.as_deref().unwrap_or(&NO_BITS) == &self.fails && lacks == self.lacks.as_ref()
    }

    pub(super) fn put_in(self, part: &mut Part) {
        part.fails = (self.fails != NO_BITS).then(|| Arc::new(self.fails));
        if self.lacks.is_some() || part.rest().is_some_and(|rest| rest.lacks.is_some()) {
            Arc::make_mut(part.rest.get_or_insert_default()).lacks = self.lacks.map(Arc::new);
        }
    }
}

/// The parts of all sums of a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Arc<Vec<Group>>);

/// For each sum some blocks that follow each other; nothing at all where no sum has any row of them.
type Group = Arc<[[Part; TOGETHER]]>;

/// What a sum is of each block.
pub(super) type Column = Vec<Part>;

impl Table {
    pub(super) fn at(&self, sum: usize, block: u32) -> &Part {
        let (group, at) = place(block);
        let parts = self.0.get(group).and_then(|group| group.get(sum));
        parts.map_or(&Part::NONE, |parts| &parts[at])
    }

    /// Changes what a sum, of so many, is of a block.
    pub(super) fn change(&mut self, (sum, of): (usize, usize), block: u32, change: impl FnOnce(&mut Part)) {
        let (group, at) = place(block);
        let groups = Arc::make_mut(&mut self.0);
        if groups.len() <= group {
            groups.resize_with(group + 1, || Group::from([]));
        }
        let group = &mut groups[group];
        if group.is_empty() {
            *group = std::iter::repeat_n(NO_PARTS, of).collect();
        }
        let part = &mut Arc::make_mut(group)[sum][at];
        change(part);
        part.tidy();
    }

    /// What a sum is of all blocks.
    pub(super) fn column(&self, sum: usize) -> Column {
        let parts = self.0.iter().flat_map(|group| group.get(sum).unwrap_or(&NO_PARTS));
        parts.cloned().collect()
    }

    /// The table of other sums: those that are here already by where they stand, of others what they are.
    pub(super) fn of_others(&self, sums: &[Result<usize, Column>]) -> Self {
        let new = sums.iter().filter_map(|sum| sum.as_ref().err());
        let blocks = new.map(Vec::len).max().unwrap_or_default();
        let groups = self.0.len().max(blocks.div_ceil(TOGETHER));
        let parts = |sum: &Result<usize, Column>, group: usize| match sum {
            Ok(sum) => self.0.get(group).and_then(|group| group.get(*sum)).cloned().unwrap_or(NO_PARTS),
            Err(column) => std::array::from_fn(|at| column.get(group * TOGETHER + at).cloned().unwrap_or_default()),
        };
        let group = |group: usize| -> Group {
            let all: Vec<_> = sums.iter().map(|sum| parts(sum, group)).collect();
            match all.iter().flatten().all(Part::is_none) {
                true => Group::from([]),
                false => all.into(),
            }
        };
        Self(Arc::new((0..groups).map(group).collect()))
    }
}

/// Brings a row into a column that asks or refuses.
pub(super) fn add(column: &mut Column, row: u32, refused: bool) {
    let block = (row / BLOCK) as usize;
    if column.len() <= block {
        column.resize(block + 1, Part::NONE);
    }
    column[block].edit(row, refused, true);
}

fn place(block: u32) -> (usize, usize) {
    (block as usize / TOGETHER, block as usize % TOGETHER)
}

const NO_PARTS: [Part; TOGETHER] = [Part::NONE; TOGETHER];
static NO_BITS: Bits = [0; WORDS];
/// A decision goes from block to block: of each sum it reads what stands in a line for so many.
const TOGETHER: usize = 4;
