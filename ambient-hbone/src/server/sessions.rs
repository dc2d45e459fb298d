//! The sessions that live, for those who look at all of them.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ambient_core::Identity;
use ambient_tls::Peer;
use tokio::sync::Notify;

use crate::tunnel::Line;

/// As many as there are [`Entry`]s.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Held for moments, never across an await.
    live: Mutex<Live>,
    /// Tells that the last has gone, once no more come.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Live {
    last: u64,
    sessions: HashMap<u64, Lives>,
    closed: bool,
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
    /// Enters a session, until what this gives is dropped; nothing if no more are to come.
    pub(super) fn enter(this: &Arc<Self>, lives: Lives) -> Option<Entry> {
        let mut live = this.live();
        if live.closed {
            return None;
        }
        live.last += 1;
        let number = live.last;
        live.sessions.insert(number, lives);
        Some(Entry {
            of: Arc::clone(this),
            number,
        })
    }

    /// Lets no more in.
    pub(super) fn close(&self) {
        self.live().closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.live().closed
    }

    /// Waits until none lives any more, once no more come.
    pub(super) async fn gone(&self) {
        let mut emptied = pin!(self.emptied.notified());
        // Told of what happens from here on, before it is looked.
        emptied.as_mut().enable();
        if self.count() > 0 {
            emptied.await;
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
        let mut live = self.of.live();
        let left = live.sessions.remove(&self.number);
        let emptied = live.closed && live.sessions.is_empty();
        drop(live);
        // Not under the lock.
        drop(left);
        if emptied {
            self.of.emptied.notify_waiters();
        }
    }
}
