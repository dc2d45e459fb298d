//! What is logged on the thread of a test, while others run beside it.

use std::sync::LazyLock;

use tracing::{
    Dispatch, Subscriber,
    subscriber::{DefaultGuard, NoSubscriber, set_default},
};

/// Two that hear nothing, and are always there: whether anybody wants an event is settled once, by the thread that first gets to it. As
/// long as the process has had one subscriber at most, only that thread's own is asked, and a test beside, which has none, settles
/// that nobody wants it; with more of them each is asked.
static DEAF: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::default())));

/// Has a subscriber hear what this thread logs until what is given is dropped, whatever other threads have come by before.
#[must_use]
pub fn heard_by(subscriber: impl Subscriber + Send + Sync) -> DefaultGuard {
    LazyLock::force(&DEAF);
    set_default(subscriber)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use tracing::{Event, Metadata, span};

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Count(Arc<AtomicUsize>);

    impl Subscriber for Count {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn an_event_is_heard_that_a_thread_without_a_subscriber_has_come_by_first() {
        let say = || tracing::warn!("said");
        let count = Count::default();
        let _heard = heard_by(count.clone());
        thread::spawn(say).join().unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "by another thread");
        say();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
