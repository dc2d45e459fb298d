//! The sessions that live, for those who look at all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ambient_core::Identity;
use ambient_tls::Peer;

use crate::tunnel::Line;

/// As many as there are [`Entry`]s.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Held for moments, never across an await.
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    last: u64,
    sessions: HashMap<u64, Lives>,
}

/// A session that lives.
#[derive(Clone, Debug)]
pub(super) struct Lives {
    /// Who this end is.
    pub(super) own: Identity,
    pub(super) peer: Peer,
    pub(super) line: Arc<Line>,
}

impl Sessions {
    /// Enters a session, until what this gives is dropped.
    pub(super) fn enter(this: &Arc<Self>, lives: Lives) -> Entry {
        let mut live = this.live();
        live.last += 1;
        let number = live.last;
        live.sessions.insert(number, lives);
        Entry {
            of: Arc::clone(this),
            number,
        }
    }

    /// All that live now.
    pub(super) fn all(&self) -> Vec<Lives> {
        self.live().sessions.values().cloned().collect()
    }

    /// How many live now.
    pub(super) fn count(&self) -> usize {
        self.live().sessions.len()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place among those that live.
pub(super) struct Entry {
    of: Arc<Sessions>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let left = self.of.live().sessions.remove(&self.number);
        // Not under the lock.
        drop(left);
    }
}
