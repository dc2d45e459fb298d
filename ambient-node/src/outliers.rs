//! Endpoints that could not be reached a moment ago: others are chosen before them, for a while.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambient_core::WorkloadUid;

/// How long an endpoint is passed over after the last time that it could not be reached.
const AVOIDED: Duration = Duration::from_secs(10);
/// Endpoints that are remembered; of more the ones that failed the longest ago are tried again.
const MOST: usize = 64;

/// Whom one pod's connections pass over.
#[derive(Debug, Default)]
pub(crate) struct Outliers {
    failed: Mutex<HashMap<WorkloadUid, Instant>>,
    /// How many there are, so that nobody waits for the lock while there are none.
    count: AtomicUsize,
}

impl Outliers {
    /// Those that are passed over now.
    pub(crate) fn now(&self, now: Instant) -> Vec<WorkloadUid> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.change(|failed| {
            failed.retain(|_, at| now.saturating_duration_since(*at) < AVOIDED);
            failed.keys().cloned().collect()
        })
    }

    /// One could not be reached. Whether it was not known for that.
    pub(crate) fn add(&self, uid: &WorkloadUid, now: Instant) -> bool {
        self.change(|failed| {
            failed.retain(|_, at| now.saturating_duration_since(*at) < AVOIDED);
            if failed.len() >= MOST
                && !failed.contains_key(uid)
                && let Some(oldest) = failed.iter().min_by_key(|(_, at)| **at).map(|(uid, _)| uid.clone())
            {
                failed.remove(&oldest);
            }
            failed.insert(uid.clone(), now).is_none()
        })
    }

    /// One was reached.
    pub(crate) fn remove(&self, uid: &WorkloadUid) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|failed| failed.remove(uid));
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<WorkloadUid, Instant>) -> T) -> T {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut failed);
        self.count.store(failed.len(), Ordering::Relaxed);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn an_endpoint_is_passed_over_for_a_while_and_until_it_is_reached() {
        let (outliers, now) = (Outliers::default(), clock::steady());
        let (a, b) = ("a".into(), "b".into());
        assert!(outliers.now(now).is_empty());
        assert!(outliers.add(&a, now) && !outliers.add(&a, now));
        outliers.add(&b, now + AVOIDED / 2);
        assert_eq!(outliers.now(now + AVOIDED / 2).len(), 2);
        assert_eq!(outliers.now(now + AVOIDED), std::slice::from_ref(&b));
        outliers.remove(&b);
        assert!(outliers.now(now).is_empty());
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_the_latest() {
        let (outliers, now) = (Outliers::default(), clock::steady());
        for n in 0..3 * MOST as u32 {
            outliers.add(&n.to_string().into(), now + Duration::from_millis(n.into()));
        }
        let kept = outliers.now(now + Duration::from_secs(1));
        assert_eq!(kept.len(), MOST);
        assert!(kept.iter().all(|uid| uid.as_str().parse::<usize>().unwrap() >= 2 * MOST));
    }
}
