//! The connections that are open now, for whoever asks.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
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
    parts: [Mutex<HashMap<u64, Open>>; PARTS],
}

/// A connection that is open: what its account knows of it, since a table has places for more than are open.
#[derive(Debug)]
struct Open {
    ends: Arc<Ends>,
    opened: Instant,
    flow: Option<Box<Flow>>,
}

/// What a connection has carried, and where that is counted.
#[derive(Debug)]
struct Flow {
    progress: Arc<Progress>,
    series: Arc<Series>,
    /// What of it is counted: client to server, and back.
    counted: [u64; 2],
}

impl Flow {
    fn count(&mut self) {
        let now = [self.progress.a_to_b(), self.progress.b_to_a()];
        let [requested, answered] = [0, 1].map(|n| now[n] - self.counted[n]);
        if requested > 0 || answered > 0 {
            self.series.carried(requested, answered);
            self.counted = now;
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
    pub(crate) fn open(&self, ends: &Arc<Ends>, opened: Instant) -> ConnId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        self.put(count, ends, opened);
        ConnId {
            process: self.process,
            count,
        }
    }

    /// More is known of it, or something else than was thought.
    pub(crate) fn renew(&self, id: ConnId, ends: &Arc<Ends>, opened: Instant) {
        self.put(id.count, ends, opened);
    }

    /// From now on it carries bytes, client to server as `progress` has `a` to `b`, which are counted there.
    pub(super) fn carries(&self, id: ConnId, progress: Arc<Progress>, series: Arc<Series>) {
        let mut part = self.part(id.count).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = part.get_mut(&id.count) {
            let counted = [0; 2];
            open.flow = Some(Box::new(Flow { progress, series, counted }));
        }
    }

    /// It has ended; all that it has carried is counted.
    pub(crate) fn close(&self, id: ConnId) {
        let closed = self.part(id.count).lock().unwrap_or_else(PoisonError::into_inner).remove(&id.count);
        if let Some(mut flow) = closed.and_then(|open| open.flow) {
            flow.count();
        }
    }

    /// Counts what was carried since the last time: connections that stand for days are told of while they do.
    pub(super) fn count_bytes(&self) {
        for part in &self.parts {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.values_mut()
                .filter_map(|open| open.flow.as_mut())
                .for_each(|flow| flow.count());
        }
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|part| part.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Those of a workload, oldest first.
    pub(crate) fn of(&self, workload: &WorkloadUid) -> Vec<Arc<Ends>> {
        let mut found = Vec::new();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let of_it = part.values().filter(|open| open.is_of(workload));
            found.extend(of_it.map(|open| (open.opened, open.ends.clone())));
        }
        found.sort_by_key(|(opened, _)| *opened);
        found.into_iter().map(|(_, ends)| ends).collect()
    }

    fn put(&self, count: u64, ends: &Arc<Ends>, opened: Instant) {
        let mut part = self.part(count).lock().unwrap_or_else(PoisonError::into_inner);
        let flow = part.remove(&count).and_then(|before| before.flow);
        let open = Open {
            ends: ends.clone(),
            opened,
            flow,
        };
        part.insert(count, open);
    }

    fn part(&self, count: u64) -> &Mutex<HashMap<u64, Open>> {
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
