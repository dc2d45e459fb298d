//! The addresses of names outside of the mesh, as the node's own resolver knows them: for endpoints that have a name alone.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
const AT_ONCE: usize = 32;
/// Those of them that one pod may have begun: whatever it asks for, others have theirs.
const OF_A_POD: usize = AT_ONCE / 4;

/// Looks names up, and remembers what they mean for a moment. Whoever asks for a name that is being looked up waits for that.
pub(crate) struct Lookups {
    state: Arc<Mutex<State>>,
    places: Places,
    ask: Ask,
}

/// Places for look-ups that are under way, the node's or a pod's. Names that were not answered in time when they were last asked
/// for, or never were, have half of them: those that are answered do not wait behind them.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    unproven: Arc<Semaphore>,
}

/// A place, until it is dropped.
#[derive(Debug)]
struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_unproven: Option<OwnedSemaphorePermit>,
}

/// Asks the system; may block for as long as its resolver is patient.
type Ask = fn(&str) -> io::Result<Vec<IpAddr>>;

#[derive(Debug, Default)]
struct State {
    /// What is known of names; at most [`MOST`].
    known: HashMap<Arc<str>, Known>,
    /// Names that a thread looks up now: at most [`AT_ONCE`].
    under_way: HashMap<Arc<str>, UnderWay>,
}

/// A look-up that a thread is at.
#[derive(Clone, Debug)]
struct UnderWay {
    begun: time::Instant,
    /// Where it says that it has ended, by being gone.
    over: watch::Receiver<()>,
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
        f.debug_struct("Lookups").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Places {
    fn new(most: usize) -> Self {
        let [all, unproven] = [most, most / 2].map(|most| Arc::new(Semaphore::new(most)));
        Self { all, unproven }
    }

    /// Those of one pod.
    pub(crate) fn of_a_pod() -> Self {
        Self::new(OF_A_POD)
    }

    /// A place for a name, once there is one. Cancel safe.
    async fn take(&self, is_proven: bool) -> Option<Place> {
        let unproven = match is_proven {
            true => None,
            false => Some(self.unproven.clone().acquire_owned().await.ok()?),
        };
        Some(Place {
            _of_all: self.all.clone().acquire_owned().await.ok()?,
            _of_unproven: unproven,
        })
    }
}

impl Lookups {
    fn asking(ask: Ask) -> Self {
        Self {
            state: Arc::default(),
            places: Places::new(AT_ONCE),
            ask,
        }
    }

    /// The addresses of a name for a pod that has these places; none where it has none, or nobody says so in time. Cancel safe: a
    /// look-up that has begun goes on.
    pub(crate) async fn find(&self, lookup: &Lookup, own: &Places) -> Vec<IpAddr> {
        let Lookup(name) = lookup;
        let found = time::timeout(PATIENCE, self.look_up(name, own)).await;
        // Another pod may have had it looked up while this one waited for a place.
        found.unwrap_or_else(|_| self.locked().remembered(name).unwrap_or_default())
    }

    async fn look_up(&self, name: &Arc<str>, own: &Places) -> Vec<IpAddr> {
        loop {
            let under_way = {
                let state = self.locked();
                match (state.remembered(name), state.under_way.get(name)) {
                    (Some(found), _) => return found,
                    // Whoever has waited for it has ceased to.
                    (None, Some(under_way)) if under_way.begun.elapsed() >= PATIENCE => return Vec::new(),
                    (None, under_way) => under_way.cloned(),
                }
            };
            match under_way {
                // It is over when who says so is gone, however that was.
                Some(UnderWay { begun, mut over }) => drop(time::timeout_at(begun + PATIENCE, over.changed()).await),
                None => self.begin(name, own).await,
            }
        }
    }

    /// Has a thread look a name up, once there is a place for it, unless another has begun meanwhile.
    async fn begin(&self, name: &Arc<str>, own: &Places) {
        let is_proven = self.locked().is_proven(name);
        // The pod's first: who waits for its own keeps none from others.
        let Some(of_pod) = own.take(is_proven).await else { return };
        let Some(of_node) = self.places.take(is_proven).await else { return };
        let mut state = self.locked();
        if state.under_way.contains_key(name) || state.remembered(name).is_some() {
            return;
        }
        let (begun, (ends, over)) = (time::Instant::now(), watch::channel(()));
        state.under_way.insert(name.clone(), UnderWay { begun, over });
        let thread = Thread {
            name: name.clone(),
            found: Vec::new(),
            begun,
            shared: self.state.clone(),
            _places: [of_pod, of_node],
            _ends: ends,
        };
        let ask = self.ask;
        task::spawn_blocking(move || thread.run(ask));
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that looks a name up. However it ends, whoever waits is told, and another may begin.
struct Thread {
    name: Arc<str>,
    found: Vec<IpAddr>,
    begun: time::Instant,
    shared: Arc<Mutex<State>>,
    _places: [Place; 2],
    _ends: watch::Sender<()>,
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

    /// Whether somebody answers for it in time, as far as is known; that it means nothing is an answer too.
    fn is_proven(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| !known.was_late)
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
