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
    /// Gives the room back; what is kept with the policies themselves takes none.
    _taken: Option<Taken>,
}

impl Passing {
    /// None where decisions are quick without it, and where there is no room.
    pub(super) fn of(index: &Index, names: &[u32]) -> Option<Arc<Self>> {
        let is_wanted = index.rows.blocks() >= index.limits.kept_blocks && is_dear(index, names);
        if !is_wanted {
            return None;
        }
        let taken = index.room.take(index.rows.blocks() * size_of::<Bits>())?;
        Self::made(index, names, None, Some(taken))
    }

    /// The same for the one peer of whom it is kept with the policies, whoever connects: what that was before is kept where it
    /// still holds. None where there are few rows.
    pub(super) fn kept(index: &Index, names: &[u32], before: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if index.rows.blocks() < index.limits.kept_blocks / SMALLER {
            return None;
        }
        match before {
            Some(before) if before.is_whole(index) => Some(before.clone()),
            _ => Self::made(index, names, before, None),
        }
    }

    /// In blocks that are what they were, names are too: a name is held as long as any row asks for it.
    fn made(index: &Index, names: &[u32], before: Option<&Arc<Self>>, taken: Option<Taken>) -> Option<Arc<Self>> {
        let kept = |block| before.and_then(|before| before.at(index, block));
        let mut rows: Vec<_> = (0..index.rows.blocks() as u32)
            .map(|block| kept(block).copied().unwrap_or(NO_ROWS))
            .collect();
        let anew = (0..).zip(&mut rows).filter(|(block, _)| kept(*block).is_none());
        let asked = Asked::of_names(index, names, Listed::new(&mut []));
        blocks::that_names_pass(&asked, anew).then(|| {
            Arc::new(Self {
                stamps: index.stamps.clone(),
                rows: rows.into_boxed_slice(),
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
    lanes >= index.limits.kept_lanes && (index.crowded > 0 || found() >= index.limits.kept_found)
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

static NO_ROWS: Bits = [0; WORDS];
/// What is kept once, for whoever has no names, is worth it where there are so much fewer rows.
const SMALLER: usize = 4;
/// A list of so many rows may, with a few like it, have all rows gone over.
pub(super) const CROWD: usize = 64;
/// For peers that are not let go: of a million rows, 512 peers.
const MOST_HELD: usize = 64 << 20;
/// Where this part of all blocks has changed.
const STALE: usize = 8;
