//! The connections that are open now, for whoever asks.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ambient_core::WorkloadUid;
use ambient_hbone::relay::Progress;

use super::{
    ends::{Direction, Ends},
    series::Series,
};
use crate::entropy;

/// Parts, so that connections of different threads seldom wait for each other.
const PARTS: usize = 16;

/// The name of a connection in the log: the same in all its lines, and in those of no other process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnId {
    process: u32,
    count: u64,
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.process, self.count)
    }
}

/// All of them. There are no more than the node lets in.
#[derive(Debug)]
pub(crate) struct Live {
    process: u32,
    next: AtomicU64,
    /// Each apart: a table has places for more than are open.
    parts: [Mutex<HashMap<u64, Arc<Open>>>; PARTS],
}

/// A connection that is open, as its account and those who list what is open share it.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) ends: Ends,
    pub(super) opened: Instant,
    /// What it has carried: client to server as from `a` to `b`.
    pub(super) progress: Progress,
    /// Where that is counted, once it carries.
    series: OnceLock<Arc<Series>>,
    /// What of it is counted: client to server, and back. Written under the lock of its part.
    counted: [AtomicU64; 2],
}

impl Open {
    fn new(ends: Ends, opened: Instant) -> Arc<Self> {
        Arc::new(Self {
            ends,
            opened,
            progress: Progress::default(),
            series: OnceLock::new(),
            counted: Default::default(),
        })
    }

    /// Where it is counted as open, once it is.
    pub(super) fn series(&self) -> Option<&Arc<Series>> {
        self.series.get()
    }

    fn count(&self) {
        let Some(series) = self.series.get() else { return };
        let now = [self.progress.a_to_b(), self.progress.b_to_a()];
        let [requested, answered] = [0, 1].map(|n| now[n] - self.counted[n].swap(now[n], Ordering::Relaxed));
        if requested > 0 || answered > 0 {
            series.carried(requested, answered);
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self {
            // The upper half is as random as the whole.
            process: (entropy::word() >> 32) as u32,
            next: AtomicU64::new(1),
            parts: Default::default(),
        }
    }
}

impl Live {
    /// Takes a connection in, and names it.
    pub(super) fn open(&self, ends: Ends, opened: Instant) -> (ConnId, Arc<Open>) {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let id = ConnId {
            process: self.process,
            count,
        };
        (id, self.renew(id, ends, opened))
    }

    /// More is known of it, or something else than was thought; before it carries anything.
    pub(super) fn renew(&self, id: ConnId, ends: Ends, opened: Instant) -> Arc<Open> {
        let open = Open::new(ends, opened);
        let mut part = self.part(id.count).lock().unwrap_or_else(PoisonError::into_inner);
        part.insert(id.count, open.clone());
        open
    }

    /// From now on it carries bytes, which are counted there.
    pub(super) fn carries(open: &Open, series: Arc<Series>) {
        // Once: whoever has it already counts there.
        let _ = open.series.set(series);
    }

    /// It has ended; all that it has carried is counted.
    pub(super) fn close(&self, id: ConnId) {
        let mut part = self.part(id.count).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = part.remove(&id.count) {
            open.count();
        }
    }

    /// Counts what was carried since the last time: connections that stand for days are told of while they do.
    pub(super) fn count_bytes(&self) {
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.values().for_each(|open| open.count());
        }
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|part| part.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Those of a workload, oldest first.
    pub(crate) fn of(&self, workload: &WorkloadUid) -> Vec<Arc<Open>> {
        let mut found = Vec::new();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(part.values().filter(|open| open.is_of(workload)).cloned());
        }
        found.sort_by_key(|open| open.opened);
        found
    }

    fn part(&self, count: u64) -> &Mutex<HashMap<u64, Arc<Open>>> {
        // Less than the number of parts, whatever the width of a word.
        &self.parts[(count % PARTS as u64) as usize]
    }
}

impl Open {
    /// Whether the pod of this node is that workload; not while it is not known.
    fn is_of(&self, workload: &WorkloadUid) -> bool {
        let local = match self.ends.direction {
            Direction::Outbound => &self.ends.source_workload,
            Direction::Inbound => &self.ends.destination_workload,
        };
        local.as_ref().is_some_and(|local| local.uid == *workload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each connection is in memory as long as that stands.
    #[test]
    fn what_is_known_of_a_connection_is_small() {
        assert!(size_of::<Open>() <= 312, "{}", size_of::<Open>());
    }
}
