//! What is logged on the thread of a test, while others run beside it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
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

/// What was logged, of one part of the program, where this [is heard](heard_by); clones share it.
#[derive(Clone, Debug)]
pub struct Lines {
    of: &'static str,
    lines: Arc<Mutex<Vec<Line>>>,
}

/// One event, as `MESSAGE NAME=VALUE …` where it is displayed, the names in order.
#[derive(Clone, Debug)]
pub struct Line {
    /// How grave it is.
    pub level: Level,
    /// What it says.
    pub message: String,
    fields: BTreeMap<&'static str, String>,
}

impl Lines {
    /// Of whatever has this in its target, such as `serve::admission`.
    #[must_use]
    pub fn of(target: &'static str) -> Self {
        Self {
            of: target,
            lines: Arc::default(),
        }
    }

    /// What was logged since this was last asked, in order.
    pub fn take(&self) -> Vec<Line> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was logged since it was last taken, in order; it stays.
    pub fn all(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Line {
    /// The value of a field, text as it is and everything else as it is for debugging; empty where there is none.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => {
                self.fields.insert(name, format!("{value:?}"));
            }
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().contains(self.of)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line {
            level: *event.metadata().level(),
            message: String::new(),
            fields: BTreeMap::new(),
        };
        event.record(&mut line);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn an_event_is_heard_that_a_thread_without_a_subscriber_has_come_by_first() {
        let say = || tracing::warn!(number = 7, name = "a", "said");
        let lines = Lines::of("testkit::log");
        let _heard = heard_by(lines.clone());
        thread::spawn(say).join().unwrap();
        assert!(lines.all().is_empty(), "by another thread");
        say();
        tracing::warn!(target: "elsewhere", "said");
        let all = lines.take();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].to_string(), "said name=a number=7");
        assert_eq!((all[0].level, all[0].field("name"), all[0].field("none")), (Level::WARN, "a", ""));
        assert!(lines.all().is_empty(), "it was taken");
    }
}
