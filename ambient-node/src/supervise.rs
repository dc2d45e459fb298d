//! Tasks that must not end: one that panics is begun anew, told of and counted.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time};

use crate::telemetry::Metrics;

/// Before the next attempt, doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// Whoever has run for so long begins with [`FIRST`] again.
const WELL: Duration = Duration::from_secs(60);

/// Runs a task until it ends by itself, and begins it anew each time that it panics. Dropping the future ends the task.
pub(crate) async fn supervise<F: Future<Output = ()> + Send + 'static>(what: &'static str, metrics: &Metrics, begin: impl Fn() -> F) {
    let mut pause = FIRST;
    loop {
        let mut task = JoinSet::new();
        task.spawn(begin());
        let begun = time::Instant::now();
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                metrics.restarted();
                tracing::error!(what, %error, again_in = ?pause, "a task of the node has panicked, and is begun anew");
            }
            _ => return,
        }
        if begun.elapsed() >= WELL {
            pause = FIRST;
        }
        time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// The same, as what a task of its own can be made of.
pub(crate) fn supervised<F: Future<Output = ()> + Send + 'static>(
    what: &'static str,
    metrics: &Arc<Metrics>,
    begin: impl Fn() -> F + Send + Sync + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let metrics = metrics.clone();
    async move { supervise(what, &metrics, begin).await }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_panics_is_begun_anew_and_counted() {
        let (metrics, begun) = (Metrics::default(), Arc::new(AtomicU32::new(0)));
        let counted = begun.clone();
        let start = time::Instant::now();
        supervise("a test", &metrics, move || {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(nth >= 3, "not yet") }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 4);
        assert_eq!(start.elapsed(), FIRST * 7, "100, 200 and 400 ms");
        assert!(metrics.text().unwrap().contains("ambient_tasks_restarted_total 3"));
    }

    #[tokio::test]
    async fn who_lets_go_of_it_ends_it() {
        let alive = Arc::new(());
        let held = alive.clone();
        let metrics = Metrics::default();
        let supervised = supervise("a test", &metrics, move || {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
            }
        });
        let ended = time::timeout(Duration::from_millis(20), supervised).await;
        assert!(ended.is_err());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
