//! What is made once, when it is needed for the first time, by work that may block.

use std::sync::{Arc, OnceLock};

use tokio::{sync::watch, task::spawn_blocking};

/// Whoever ceases to wait for it leaves the work going on: the next waits for the same.
#[derive(Debug)]
pub(super) struct Once<T>(OnceLock<watch::Receiver<Option<Made<T>>>>);

/// Nothing where it is not to be had.
type Made<T> = Option<Arc<T>>;

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Send + Sync + 'static> Once<T> {
    /// What is made, or was. Must be called within a runtime. Cancel safe.
    pub(super) async fn get(&self, make: impl FnOnce() -> Option<T> + Send + 'static) -> Made<T> {
        let begin = || {
            let (made, seen) = watch::channel(None);
            spawn_blocking(move || drop(made.send(Some(make().map(Arc::new)))));
            seen
        };
        let mut seen = self.0.get_or_init(begin).clone();
        // Work that panicked has made nothing.
        seen.wait_for(Option::is_some).await.ok()?.clone().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        sync::{
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        task::Poll,
    };

    use super::*;

    #[tokio::test]
    async fn who_ceases_to_wait_leaves_the_work_to_the_next() {
        let (once, begun) = (Once::default(), Arc::new(AtomicU32::new(0)));
        let (go, waits) = mpsc::channel::<()>();
        let waits = Arc::new(std::sync::Mutex::new(waits));
        let make = || {
            let (begun, waits) = (begun.clone(), waits.clone());
            move || {
                begun.fetch_add(1, Ordering::Relaxed);
                // Whoever waits here is let go in any case, if only with the test.
                let _ = waits.lock().unwrap().recv();
                Some(7)
            }
        };
        for _ in 0..3 {
            let mut gives_up = pin!(once.get(make()));
            assert!(poll_fn(|cx| Poll::Ready(gives_up.as_mut().poll(cx))).await.is_pending());
        }
        drop(go);
        let made = once.get(make()).await.unwrap();
        assert_eq!((*made, begun.load(Ordering::Relaxed)), (7, 1));
        assert!(Arc::ptr_eq(&made, &once.get(make()).await.unwrap()));
    }

    #[tokio::test]
    async fn what_is_not_to_be_had_is_not_tried_again() {
        let once = Once::<u32>::default();
        assert_eq!(once.get(|| None).await, None);
        assert_eq!(once.get(|| Some(1)).await, None);
        let once = Once::<u32>::default();
        assert_eq!(once.get(|| panic!("as a test wants it")).await, None);
    }
}
