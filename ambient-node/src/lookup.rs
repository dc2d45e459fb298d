//! The addresses of names outside of the mesh, as the node's own resolver knows them: for endpoints that have a name alone.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambient_core::route::Lookup;
use tokio::{net, sync::Semaphore, time};

use crate::clock;

/// How long an answer is taken for true. The system's resolver says no more of how long it is.
const KEPT: Duration = Duration::from_secs(5);
/// How long one look-up may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names that are remembered; they come from the mesh's state, so that more are rare.
const MOST: usize = 1024;
/// Look-ups under way at a time: each takes a thread.
const AT_ONCE: usize = 16;

/// Looks names up, and remembers what they mean for a moment.
#[derive(Debug)]
pub(crate) struct Lookups {
    known: Mutex<HashMap<Arc<str>, Answer>>,
    room: Semaphore,
}

/// When a name was asked for, and what it means.
type Answer = (Instant, Vec<IpAddr>);

impl Default for Lookups {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            room: Semaphore::new(AT_ONCE),
        }
    }
}

impl Lookups {
    /// The addresses of a name; none where it has none, or nobody says so in time. Cancel safe.
    pub(crate) async fn find(&self, lookup: &Lookup) -> Vec<IpAddr> {
        let Lookup(name) = lookup;
        if let Some(found) = self.remembered(name) {
            return found;
        }
        let found = time::timeout(PATIENCE, async {
            let _place = self.room.acquire().await.ok()?;
            // Another may have asked for the same meanwhile.
            if let Some(found) = self.remembered(name) {
                return Some(found);
            }
            let found = net::lookup_host((&**name, 0)).await;
            let found = found.map(|all| all.map(|at| at.ip().to_canonical()).collect());
            Some(found.unwrap_or_else(|error| {
                tracing::debug!(%name, %error, "a name of an endpoint cannot be looked up");
                Vec::new()
            }))
        });
        let found = found.await.ok().flatten().unwrap_or_default();
        self.remember(name, found.clone());
        found
    }

    fn remembered(&self, name: &str) -> Option<Vec<IpAddr>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, found) = known.get(name)?;
        (clock::steady().duration_since(*asked) < KEPT).then(|| found.clone())
    }

    fn remember(&self, name: &Arc<str>, found: Vec<IpAddr>) {
        let now = clock::steady();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (asked, _)| now.duration_since(*asked) < KEPT);
        }
        if known.len() < MOST {
            known.insert(name.clone(), (now, found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_remembered_and_so_is_that_it_means_nothing() {
        let lookups = Lookups::default();
        let localhost = lookups.find(&Lookup("localhost".into())).await;
        assert!(localhost.iter().all(IpAddr::is_loopback) && !localhost.is_empty());
        assert_eq!(lookups.remembered("localhost"), Some(localhost));
        // No name has an empty label: nobody is asked for it.
        assert_eq!(lookups.find(&Lookup("no..name".into())).await, Vec::<IpAddr>::new());
        assert_eq!(lookups.remembered("no..name"), Some(vec![]));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let lookups = Lookups::default();
        for n in 0..2 * MOST {
            lookups.remember(&n.to_string().into(), vec![]);
        }
        assert_eq!(lookups.known.lock().unwrap().len(), MOST);
    }
}
