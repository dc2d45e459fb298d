//! Which texts policies changed under since something was resolved against them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::index::Keys;

/// For each part of all keys and namespaces when something changed there last: a number that no other change in the whole
/// process has. So a part whose number is the same in two snapshots is the same in both.
#[derive(Clone, Debug)]
pub(crate) struct Stamps {
    of_parts: Arc<[u64; PARTS]>,
    last: u64,
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            of_parts: Arc::new([0; PARTS]),
            last: 0,
        }
    }
}

impl Stamps {
    /// Something changes under these.
    pub(super) fn note<'t>(&mut self, texts: impl Iterator<Item = &'t str>) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let mut texts = texts.peekable();
        if texts.peek().is_none() {
            return;
        }
        self.last = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let of_parts = Arc::make_mut(&mut self.of_parts);
        texts.for_each(|text| of_parts[part(text)] = self.last);
    }

    /// What stands under these now.
    pub(crate) fn seen<'t>(&self, texts: impl Iterator<Item = &'t str>) -> Seen {
        let mut parts: Vec<_> = texts.map(part).collect();
        parts.sort_unstable();
        parts.dedup();
        Seen {
            last: self.last,
            parts: parts.into_iter().map(|part| (part as u16, self.of_parts[part])).collect(),
        }
    }

    /// Whether nothing has changed under what was seen.
    pub(crate) fn are_as(&self, seen: &Seen) -> bool {
        seen.last == self.last || seen.parts.iter().all(|(part, stamp)| self.of_parts[usize::from(*part)] == *stamp)
    }
}

/// How some parts stood.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Of the snapshot in which that was.
    last: u64,
    parts: Arc<[(u16, u64)]>,
}

fn part(text: &str) -> usize {
    (Keys::of_this_process().whole(text.as_bytes()) >> (64 - PARTS.ilog2())) as usize
}

/// A change copies 32 KiB, and takes one of so many keys for another.
const PARTS: usize = 4096;
