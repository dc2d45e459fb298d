//! The connections that are open now, for whoever asks.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ambient_core::{Authority, NamespacedHostname, WorkloadUid};

use super::ends::{Direction, Ends};
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

/// A connection that is open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) direction: Direction,
    /// The pod of this node; none while it is not known.
    pub(crate) local: Option<WorkloadUid>,
    pub(crate) source: SocketAddr,
    /// What the client dialled.
    pub(crate) asked: SocketAddr,
    /// Where it is carried to.
    pub(crate) destination: SocketAddr,
    pub(crate) hbone: Option<Authority>,
    pub(crate) service: Option<NamespacedHostname>,
    pub(crate) opened: Instant,
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
    pub(crate) fn open(&self, ends: &Ends, opened: Instant) -> ConnId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        self.put(count, Open::new(ends, opened));
        ConnId {
            process: self.process,
            count,
        }
    }

    /// It goes another way than was thought.
    pub(crate) fn reroute(&self, id: ConnId, ends: &Ends, opened: Instant) {
        self.put(id.count, Open::new(ends, opened));
    }

    /// It has ended.
    pub(crate) fn close(&self, id: ConnId) {
        self.part(id.count).lock().unwrap_or_else(PoisonError::into_inner).remove(&id.count);
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|part| part.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Those of a workload, oldest first.
    pub(crate) fn of(&self, workload: &WorkloadUid) -> Vec<Open> {
        let mut found = Vec::new();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(part.values().filter(|open| open.local.as_ref() == Some(workload)).cloned());
        }
        found.sort_by_key(|open| open.opened);
        found
    }

    fn put(&self, count: u64, open: Open) {
        self.part(count).lock().unwrap_or_else(PoisonError::into_inner).insert(count, open);
    }

    fn part(&self, count: u64) -> &Mutex<HashMap<u64, Open>> {
        // Less than the number of parts, whatever the width of a word.
        &self.parts[(count % PARTS as u64) as usize]
    }
}

impl Open {
    fn new(ends: &Ends, opened: Instant) -> Self {
        let local = match ends.direction {
            Direction::Outbound => &ends.source_workload,
            Direction::Inbound => &ends.destination_workload,
        };
        Self {
            direction: ends.direction,
            local: local.as_ref().map(|workload| workload.uid.clone()),
            source: ends.source,
            asked: ends.asked,
            destination: ends.destination,
            hbone: ends.hbone.clone(),
            service: ends.service.as_ref().map(|service| service.name.clone()),
            opened,
        }
    }
}
