//! Rows by number, in blocks: each block of one kind of policy, and the blocks in the order of the policies' keys as far
//! as that goes without moving what stands.
//!
//! Of each block, and of each word of its bitmaps, it is known where the first of its rows may stand in the order of keys
//! and rules: so whoever looks for the first row that matches stops at the first block that holds only later ones.

use std::sync::Arc;

use ambient_core::PolicyKey;

use super::posting::{BLOCK, Bits, WORDS, is_set};
use crate::policies::Kind;

#[cfg(test)]
mod tests;

/// Where a row stands in the order in which policies are named: by the key, then by where the rule begins in its words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Begin {
    pub(crate) key: PolicyKey,
    pub(crate) rule: u32,
}

/// Values by number, shared with other snapshots until they change.
#[derive(Clone, Debug)]
pub(crate) struct Shelves<T> {
    values: Vec<Branch<T>>,
    occupied: Vec<Arc<Bits>>,
    /// For each word of the blocks what none of its rows stands before.
    begins: Vec<Arc<Begins>>,
    /// For each kind its blocks, in the order of what none of their rows stands before.
    orders: [Arc<Vec<Shelf>>; 4],
    /// Blocks where nothing stands.
    unused: Arc<Vec<u32>>,
    /// Where the last value of each kind came in or went out: the next is likely to stand there as well.
    last: [usize; 4],
}

type Branch<T> = Arc<[Leaf<T>; BRANCH]>;
type Leaf<T> = Arc<[Option<T>; LEAF]>;
type Begins = [Option<Begin>; BEGINS];

/// A block where something stands.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub(crate) block: u32,
    /// None of its rows stands before this.
    pub(crate) from: Begin,
    /// How many places are free.
    free: u32,
    /// No place is free before this word.
    open: u32,
    /// Where the block is a piece of one rule alone, how many of its rows stand here; no place is free then.
    own: u32,
}

impl<T> Default for Shelves<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            occupied: Vec::new(),
            begins: Vec::new(),
            orders: Default::default(),
            unused: Arc::default(),
            last: [0; 4],
        }
    }
}

impl<T> Shelves<T> {
    pub(crate) fn at(&self, number: u32) -> Option<&T> {
        let (branch, leaf, place) = split(number);
        self.values.get(branch)?[leaf][place].as_ref()
    }

    /// How many blocks there are, unused ones too.
    pub(crate) fn blocks(&self) -> usize {
        self.occupied.len()
    }

    /// The rows of a block.
    pub(crate) fn occupied(&self, block: u32) -> Option<&Bits> {
        self.occupied.get(block as usize).map(|bits| &**bits)
    }

    /// The blocks of a kind, in the order of what none of their rows stands before.
    pub(crate) fn order(&self, kind: Kind) -> &[Shelf] {
        &self.orders[kind as usize]
    }

    /// What no row of a word of a block stands before.
    pub(crate) fn from(&self, block: u32, word: usize) -> Option<&Begin> {
        let word = block as usize * WORDS + word;
        self.begins.get(word / BEGINS)?[word % BEGINS].as_ref()
    }
}

impl<T: Clone> Shelves<T> {
    /// Takes values in under numbers that follow each other, all in one block, which has room for them; gives the first.
    pub(crate) fn insert(&mut self, kind: Kind, begin: &Begin, values: impl ExactSizeIterator<Item = T>) -> u32 {
        let len = values.len() as u32;
        let (shelf, place) = self.room(kind, begin, len);
        let of_kind = &mut Arc::make_mut(&mut self.orders[kind as usize])[shelf];
        of_kind.free -= len;
        let block = of_kind.block;
        for (place, value) in (place..).zip(values) {
            self.put(block, place, Some(value));
            let begin_of_word = self.begin_mut(block * BLOCK + place);
            if begin_of_word.as_ref().is_none_or(|present| begin < present) {
                *begin_of_word = Some(begin.clone());
            }
        }
        block * BLOCK + place
    }

    /// Takes values in that have a block to themselves; gives the first number. Blocks that are taken so one after the other for the
    /// same place in the order stand there one after the other.
    pub(crate) fn insert_alone(&mut self, kind: Kind, begin: &Begin, values: impl ExactSizeIterator<Item = T>) -> u32 {
        let shelf = Shelf {
            block: self.unused_block(),
            from: begin.clone(),
            free: 0,
            open: WORDS as u32,
            own: values.len() as u32,
        };
        let block = shelf.block;
        let order = Arc::make_mut(&mut self.orders[kind as usize]);
        let behind = order.partition_point(|shelf| shelf.from <= *begin);
        order.insert(behind, shelf);
        for (place, value) in (0..).zip(values) {
            self.put(block, place, Some(value));
            *self.begin_mut(block * BLOCK + place) = Some(begin.clone());
        }
        block * BLOCK
    }

    /// Takes the value of a kind out.
    pub(crate) fn remove(&mut self, kind: Kind, number: u32) -> Option<T> {
        self.at(number)?; // a miss must copy nothing
        let (block, place) = (number / BLOCK, number % BLOCK);
        let value = self.put(block, place, None);
        if self.occupied[block as usize][place as usize / 64] == 0 {
            *self.begin_mut(number) = None;
        }
        let at = self.position_of(kind, block)?;
        let order = Arc::make_mut(&mut self.orders[kind as usize]);
        let shelf = &mut order[at];
        if shelf.own > 0 {
            shelf.own -= 1;
        } else {
            shelf.free += 1;
            shelf.open = shelf.open.min(place / 64);
        }
        // Where rows stood alone, none is left once the last has gone.
        if shelf.free == BLOCK || (shelf.free == 0 && shelf.own == 0 && self.occupied[block as usize][..] == [0; WORDS]) {
            order.remove(at);
            Arc::make_mut(&mut self.unused).push(block);
        }
        value
    }

    fn position_of(&mut self, kind: Kind, block: u32) -> Option<usize> {
        let order = &self.orders[kind as usize];
        let last = self.last[kind as usize];
        if order.get(last).is_none_or(|shelf| shelf.block != block) {
            self.last[kind as usize] = order.iter().position(|shelf| shelf.block == block)?;
        }
        Some(self.last[kind as usize])
    }

    /// The shelf where so many places in a row are free for what stands there in the order, and the first of them.
    fn room(&mut self, kind: Kind, begin: &Begin, len: u32) -> (usize, u32) {
        let order = &self.orders[kind as usize];
        let mut last = self.last[kind as usize];
        let is_behind = |at: usize| order.get(at).is_some_and(|shelf| shelf.from <= *begin);
        if !is_behind(last) || is_behind(last + 1) {
            last = order.partition_point(|shelf| shelf.from <= *begin).saturating_sub(1);
        }
        // Of the shelves before the right one any will do, and one after it that is told to begin earlier.
        let fits = |at: &usize| Some((*at, self.find(order.get(*at)?, len)?));
        let near = [last, last + 1].iter().find_map(fits);
        let found = near.or_else(|| {
            let free: usize = order.iter().map(|shelf| shelf.free as usize).sum();
            if free < order.len() * BLOCK as usize / SPARE {
                return None;
            }
            let mut others: Vec<usize> = (0..order.len()).filter(|at| order[*at].free >= len).collect();
            others.sort_unstable_by_key(|at| at.abs_diff(last));
            others.iter().take(MOST_TRIED).find_map(fits)
        });
        let behind = order.partition_point(|shelf| shelf.from <= *begin);
        let (at, place) = match found {
            Some((at, place)) if at < behind => (at, place),
            Some((at, place)) => {
                let order = Arc::make_mut(&mut self.orders[kind as usize]);
                let mut shelf = order.remove(at);
                shelf.from = begin.clone();
                order.insert(behind, shelf);
                (behind, place)
            }
            None => {
                let shelf = Shelf {
                    block: self.unused_block(),
                    from: begin.clone(),
                    free: BLOCK,
                    open: 0,
                    own: 0,
                };
                Arc::make_mut(&mut self.orders[kind as usize]).insert(behind, shelf);
                (behind, 0)
            }
        };
        self.last[kind as usize] = at;
        let open = self.orders[kind as usize][at].open;
        if len == 1 && open != place / 64 {
            Arc::make_mut(&mut self.orders[kind as usize])[at].open = place / 64;
        }
        (at, place)
    }

    /// The first of so many places in a row that are free on a shelf.
    fn find(&self, shelf: &Shelf, len: u32) -> Option<u32> {
        if shelf.free < len {
            return None;
        }
        let occupied = &self.occupied[shelf.block as usize];
        let (mut first, mut at) = (shelf.open * 64, shelf.open * 64);
        while at < BLOCK {
            if at.is_multiple_of(64) && occupied[at as usize / 64] == u64::MAX {
                at += 64;
                first = at;
                continue;
            }
            at += 1;
            if is_set(occupied, at - 1) {
                first = at;
            } else if at - first == len {
                return Some(first);
            }
        }
        None
    }

    fn unused_block(&mut self) -> u32 {
        if let Some(block) = Arc::make_mut(&mut self.unused).pop() {
            return block;
        }
        let none: Leaf<T> = Arc::new([const { None }; LEAF]);
        let branch: Branch<T> = Arc::new(std::array::from_fn(|_| none.clone()));
        self.values.extend(std::iter::repeat_n(branch, BLOCK as usize / (LEAF * BRANCH)));
        self.occupied.push(Arc::new([0; WORDS]));
        self.begins
            .extend(std::iter::repeat_n(Arc::new([const { None }; BEGINS]), WORDS / BEGINS));
        self.occupied.len() as u32 - 1
    }

    fn begin_mut(&mut self, number: u32) -> &mut Option<Begin> {
        let word = number as usize / 64;
        &mut Arc::make_mut(&mut self.begins[word / BEGINS])[word % BEGINS]
    }

    /// Puts a value in a place, or nothing; gives what stood there.
    fn put(&mut self, block: u32, place: u32, value: Option<T>) -> Option<T> {
        let word = &mut Arc::make_mut(&mut self.occupied[block as usize])[place as usize / 64];
        let bit = 1 << (place % 64);
        *word = if value.is_some() { *word | bit } else { *word & !bit };
        let (branch, leaf, place) = split(block * BLOCK + place);
        let leaf = &mut Arc::make_mut(&mut self.values[branch])[leaf];
        std::mem::replace(&mut Arc::make_mut(leaf)[place], value)
    }
}

fn split(number: u32) -> (usize, usize, usize) {
    let number = number as usize;
    (number / (LEAF * BRANCH), number / LEAF % BRANCH, number % LEAF)
}

/// A change copies one leaf of so many values, one branch of so many leaves, and so many words' beginnings.
const LEAF: usize = 16;
const BRANCH: usize = 128;
const BEGINS: usize = 64;
/// A block is begun where fewer than this part of all places of its kind are free.
const SPARE: usize = 4;
/// Where values want several places in a row, so many shelves are looked at that have as many free.
const MOST_TRIED: usize = 8;
