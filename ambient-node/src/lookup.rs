//! The addresses of names outside of the mesh, as the node's own resolver knows them: for endpoints that have a name alone.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambient_core::route::Lookup;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task, time,
};

use crate::clock;

/// How long an answer is taken for true. The system's resolver says no more of how long it is.
const KEPT: Duration = Duration::from_secs(5);
/// How long one look-up is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names that are remembered; they come from the mesh's state, so that more are rare.
const MOST: usize = 1024;
/// Look-ups under way at a time: each has a thread, for as long as the system's resolver takes, which nobody can cut short.
const AT_ONCE: usize = 16;

/// Looks names up, and remembers what they mean for a moment. Whoever asks for a name that is being looked up waits for that.
pub(crate) struct Lookups {
    state: Arc<Mutex<State>>,
    room: Arc<Semaphore>,
    ask: Ask,
}

/// Asks the system; may block for as long as its resolver is patient.
type Ask = fn(&str) -> io::Result<Vec<IpAddr>>;

#[derive(Debug, Default)]
struct State {
    /// When a name was asked for, and what it means.
    known: HashMap<Arc<str>, (Instant, Vec<IpAddr>)>,
    /// Names that a thread looks up now, and where it says that it has: at most [`AT_ONCE`].
    under_way: HashMap<Arc<str>, watch::Receiver<()>>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self::asking(|name| {
            let found = (name, 0).to_socket_addrs()?;
            Ok(found.map(|at| at.ip().to_canonical()).collect())
        })
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("room", &self.room).finish_non_exhaustive()
    }
}

impl Lookups {
    fn asking(ask: Ask) -> Self {
        Self {
            state: Arc::default(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            ask,
        }
    }

    /// The addresses of a name; none where it has none, or nobody says so in time. Cancel safe: a look-up that has begun goes on.
    pub(crate) async fn find(&self, lookup: &Lookup) -> Vec<IpAddr> {
        let Lookup(name) = lookup;
        let found = time::timeout(PATIENCE, self.look_up(name)).await;
        found.unwrap_or_else(|_| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            // For a moment nobody waits for it again, unless it was answered just now.
            state.remembered(name).unwrap_or_else(|| {
                state.remember(name, Vec::new());
                Vec::new()
            })
        })
    }

    async fn look_up(&self, name: &Arc<str>) -> Vec<IpAddr> {
        loop {
            let under_way = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                match (state.remembered(name), state.under_way.get(name)) {
                    (Some(found), _) => return found,
                    (None, under_way) => under_way.cloned(),
                }
            };
            match under_way {
                // It is over when who says so is gone, however that was.
                Some(mut under_way) => drop(under_way.changed().await),
                None => self.begin(name).await,
            }
        }
    }

    /// Has a thread look a name up, once there is one, unless another has begun meanwhile.
    async fn begin(&self, name: &Arc<str>) {
        let Ok(place) = self.room.clone().acquire_owned().await else {
            return;
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.under_way.contains_key(name) || state.remembered(name).is_some() {
            return;
        }
        let (over, under_way) = watch::channel(());
        state.under_way.insert(name.clone(), under_way);
        let thread = Thread {
            name: name.clone(),
            found: Vec::new(),
            shared: self.state.clone(),
            _place: place,
            _over: over,
        };
        let ask = self.ask;
        task::spawn_blocking(move || thread.run(ask));
    }
}

/// A thread that looks a name up. However it ends, whoever waits is told, and another may begin.
struct Thread {
    name: Arc<str>,
    found: Vec<IpAddr>,
    shared: Arc<Mutex<State>>,
    _place: OwnedSemaphorePermit,
    _over: watch::Sender<()>,
}

impl Thread {
    fn run(mut self, ask: Ask) {
        match ask(&self.name) {
            Ok(found) => self.found = found,
            Err(error) => tracing::debug!(name = %self.name, %error, "a name of an endpoint cannot be looked up"),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way.remove(&self.name);
        state.remember(&self.name, std::mem::take(&mut self.found));
    }
}

impl State {
    fn remembered(&self, name: &str) -> Option<Vec<IpAddr>> {
        let (asked, found) = self.known.get(name)?;
        (clock::steady().duration_since(*asked) < KEPT).then(|| found.clone())
    }

    fn remember(&mut self, name: &Arc<str>, found: Vec<IpAddr>) {
        let now = clock::steady();
        if self.known.len() >= MOST {
            self.known.retain(|_, (asked, _)| now.duration_since(*asked) < KEPT);
        }
        if self.known.len() < MOST || self.known.contains_key(name) {
            self.known.insert(name.clone(), (now, found));
        }
    }
}

#[cfg(test)]
mod tests;
