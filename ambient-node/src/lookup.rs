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
/// Names that are remembered; they come from the mesh's state, so that more are rare. The oldest makes room for the next.
const MOST: usize = 1024;
/// Look-ups under way at a time: each has a thread, for as long as the system's resolver takes, which nobody can cut short.
const AT_ONCE: usize = 16;
/// Those of them that names may have of which nobody was told in time before: they leave room for others.
const AGAIN: usize = AT_ONCE / 2;

/// Looks names up, and remembers what they mean for a moment. Whoever asks for a name that is being looked up waits for that.
pub(crate) struct Lookups {
    state: Arc<Mutex<State>>,
    room: Arc<Semaphore>,
    again: Arc<Semaphore>,
    ask: Ask,
}

/// Asks the system; may block for as long as its resolver is patient.
type Ask = fn(&str) -> io::Result<Vec<IpAddr>>;

#[derive(Debug, Default)]
struct State {
    /// What is known of names; at most [`MOST`].
    known: HashMap<Arc<str>, Known>,
    /// Names that a thread looks up now, and where it says that it has: at most [`AT_ONCE`].
    under_way: HashMap<Arc<str>, watch::Receiver<()>>,
}

/// What is known of a name.
#[derive(Debug)]
struct Known {
    asked: Instant,
    found: Vec<IpAddr>,
    /// The last look-up took longer than anybody waits.
    was_late: bool,
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
            again: Arc::new(Semaphore::new(AGAIN)),
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
                let was_late = state.was_late(name);
                state.remember(name, Vec::new(), was_late);
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
        let was_late = self.state.lock().unwrap_or_else(PoisonError::into_inner).was_late(name);
        let again = match was_late {
            true => self.again.clone().acquire_owned().await.ok(),
            false => None,
        };
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
            begun: time::Instant::now(),
            shared: self.state.clone(),
            _places: (place, again),
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
    begun: time::Instant,
    shared: Arc<Mutex<State>>,
    _places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
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
        let was_late = self.begun.elapsed() >= PATIENCE;
        state.remember(&self.name, std::mem::take(&mut self.found), was_late);
    }
}

impl State {
    fn remembered(&self, name: &str) -> Option<Vec<IpAddr>> {
        let known = self.known.get(name)?;
        (clock::steady().duration_since(known.asked) < KEPT).then(|| known.found.clone())
    }

    fn was_late(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.was_late)
    }

    fn remember(&mut self, name: &Arc<str>, found: Vec<IpAddr>, was_late: bool) {
        let asked = clock::steady();
        if self.known.len() >= MOST && !self.known.contains_key(name) {
            self.known.retain(|_, known| asked.duration_since(known.asked) < KEPT);
            // Whoever waits for this name finds it here, and nowhere else.
            if self.known.len() >= MOST
                && let Some(oldest) = self.known.iter().min_by_key(|(_, known)| known.asked)
            {
                let oldest = oldest.0.clone();
                self.known.remove(&oldest);
            }
        }
        self.known.insert(name.clone(), Known { asked, found, was_late });
    }
}

#[cfg(test)]
mod tests;
