//! Which rows the names of a peer let through, kept with the peer.
//!
//! Of the fourteen lists of a match eight ask about the peer's names. What they say of a row changes with neither the
//! address nor the workload of a connection, so where there are very many rows it is asked once a peer, and a decision
//! reads one bitmap in the place of all that names cost.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{
    Index, blocks,
    listed::Listed,
    posting::{Bits, WORDS},
    scan::Asked,
    term::Lane,
};

#[cfg(test)]
mod tests;

/// When the rows of each block last changed: numbers that no other change in the whole process has. So a block whose number
/// is the same in two snapshots is the same in both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamps {
    of_blocks: Arc<Vec<u64>>,
    /// How many times a block has changed.
    changes: u64,
}

impl Stamps {
    /// The rows of these blocks have changed.
    pub(super) fn note(&mut self, blocks: &[u32]) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let Some(most) = blocks.iter().max() else { return };
        let stamp = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let of_blocks = Arc::make_mut(&mut self.of_blocks);
        if of_blocks.len() <= *most as usize {
            of_blocks.resize(*most as usize + 1, 0);
        }
        blocks.iter().for_each(|block| of_blocks[*block as usize] = stamp);
        self.changes += blocks.len() as u64;
    }
}

/// The rows of each block that a peer's names let through.
#[derive(Debug)]
pub(crate) struct Passing {
    /// As what the blocks were when that was.
    stamps: Stamps,
    rows: Box<[Bits]>,
    /// Gives the room back.
    _taken: Taken,
}

impl Passing {
    /// None where decisions are quick without it, and where there is no room.
    pub(super) fn of(index: &Index, names: &[u32]) -> Option<Arc<Self>> {
        let is_wanted = index.rows.blocks() >= LEAST_BLOCKS && is_dear(index, names);
        is_wanted.then(|| Self::made(index, names)).flatten()
    }

    fn made(index: &Index, names: &[u32]) -> Option<Arc<Self>> {
        let blocks = index.rows.blocks();
        let taken = index.room.take(blocks * size_of::<Bits>())?;
        let mut rows = vec![[0; WORDS]; blocks].into_boxed_slice();
        let asked = Asked::of_names(index, names, Listed::new(&mut []));
        blocks::that_names_pass(&asked, &mut rows).then(|| {
            Arc::new(Self {
                stamps: index.stamps.clone(),
                rows,
                _taken: taken,
            })
        })
    }

    /// The rows of a block, where it is what it was.
    pub(super) fn at(&self, index: &Index, block: u32) -> Option<&Bits> {
        let at = block as usize;
        let is_as_it_was = self.stamps.of_blocks.get(at)? == index.stamps.of_blocks.get(at)?;
        self.rows.get(at).filter(|_| is_as_it_was)
    }

    /// Whether no block has changed.
    pub(super) fn is_whole(&self, index: &Index) -> bool {
        Arc::ptr_eq(&self.stamps.of_blocks, &index.stamps.of_blocks)
    }

    /// Whether so many have changed that it should be made anew.
    pub(crate) fn is_stale(&self, index: &Index) -> bool {
        let changes = index.stamps.changes.abs_diff(self.stamps.changes);
        changes > (index.rows.blocks() / STALE) as u64
    }
}

/// Whether a decision on such a peer may read much for its names: where rows ask about them in several lanes, and may be found
/// by so much that all are gone over.
fn is_dear(index: &Index, names: &[u32]) -> bool {
    let lanes = Lane::OF_NAMES.iter().filter(|lane| !index.used[**lane as usize].is_empty()).count();
    let lanes = lanes + index.mixed.iter().filter(|of_text| !of_text.is_empty()).count();
    let found = || -> usize {
        let filed = names.iter().filter_map(|name| index.terms.names.dictionary.filed(*name));
        filed.map(|filed| filed.len()).sum()
    };
    lanes >= SEVERAL_LANES && (index.crowded > 0 || found() > CROWD)
}

/// How much all peers of some snapshots keep.
#[derive(Debug, Default)]
pub(crate) struct Room(AtomicUsize);

impl Room {
    fn take(self: &Arc<Self>, bytes: usize) -> Option<Taken> {
        let with = |held: usize| held.checked_add(bytes).filter(|held| *held <= MOST_HELD);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).ok()?;
        Some(Taken { room: self.clone(), bytes })
    }
}

#[derive(Debug)]
struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where there are fewer rows, their bitmaps stay in a near cache.
const LEAST_BLOCKS: usize = 64;
/// One bitmap more or less is not worth it.
const SEVERAL_LANES: usize = 3;
/// A list of so many rows may, with a few like it, have all rows gone over.
pub(super) const CROWD: usize = 64;
/// For peers that are not let go: of a million rows, 512 peers.
const MOST_HELD: usize = 64 << 20;
/// Where this part of all blocks has changed.
const STALE: usize = 8;
