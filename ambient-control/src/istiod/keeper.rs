//! What is to be remembered is written beside the stream: a disk may take its time, or for ever, and nobody waits for it who is
//! to be told what the control plane says.
//!
//! One write is under way at a time, on a thread of its own. What comes meanwhile waits, in its order, and is written with the next
//! one, behind one mark: the file holds at any time all that was said up to some moment, and says how old that is.

use std::{
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::memory::{Entry, Memory};

#[cfg(test)]
mod tests;

/// Remembers, and says whether it does. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Keeper(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    desk: Mutex<Desk>,
    /// Something else is wrong, or nothing any more.
    news: Notify,
}

#[derive(Debug, Default)]
struct Desk {
    place: PathBuf,
    /// The file, while nothing is written.
    memory: Option<Memory>,
    /// Since when something is written.
    since: Option<Instant>,
    waiting: Waiting,
    /// Why something is not remembered.
    failed: Option<String>,
    /// Nothing will be remembered any more.
    is_lost: bool,
}

/// What is to be written next.
#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    bytes: usize,
    heard: Option<SystemTime>,
    /// Whether there is a mark to be written, be it for nothing else.
    is_any: bool,
}

impl Waiting {
    fn add(&mut self, entries: Vec<Entry>, heard: Option<SystemTime>) {
        self.bytes += entries.iter().map(Entry::size).sum::<usize>();
        match self.entries.is_empty() {
            true => self.entries = entries,
            false => self.entries.extend(entries),
        }
        self.heard = heard.or(self.heard);
        self.is_any = true;
    }
}

impl Keeper {
    /// Remembers in a file; `failed` says what is wrong with what was there.
    pub(super) fn new(memory: Memory, failed: Option<String>) -> Self {
        let keeper = Self::default();
        let mut desk = keeper.desk();
        desk.place = memory.place().into();
        (desk.memory, desk.failed) = (Some(memory), failed);
        drop(desk);
        keeper
    }

    /// Remembers what has come, and when the whole was known to be so, where that is news. It waits for nothing.
    pub(super) fn note(&self, entries: Vec<Entry>, heard: Option<SystemTime>) {
        let mut desk = self.desk();
        if desk.is_lost || (desk.memory.is_none() && desk.since.is_none()) {
            return;
        }
        desk.waiting.add(entries, heard);
        if let Some(since) = desk.since {
            if since.elapsed() >= SLOW && desk.waiting.bytes > MOST_WAITING {
                desk.waiting = Waiting::default();
                desk.lose("more has come than is kept for a disk that takes nothing");
                self.0.news.notify_one();
            }
            return;
        }
        let Some(memory) = desk.memory.take() else { return };
        desk.since = Some(Instant::now());
        drop(desk);
        let keeper = self.clone();
        tokio::task::spawn_blocking(move || keeper.write(memory));
    }

    /// Writes all that waits.
    fn write(&self, mut memory: Memory) {
        loop {
            let waiting = {
                let mut desk = self.desk();
                if desk.is_lost {
                    desk.since = None;
                    drop(desk);
                    return memory.discard();
                }
                if !desk.waiting.is_any {
                    (desk.memory, desk.since) = (Some(memory), None);
                    return;
                }
                desk.since = Some(Instant::now());
                mem::take(&mut desk.waiting)
            };
            let noted = memory.note(&waiting.entries, waiting.heard);
            let mut desk = self.desk();
            let was_slow = desk.is_slow();
            let before = desk.failed.clone();
            match noted {
                Ok(()) if !desk.is_lost => {
                    if desk.failed.take().is_some() {
                        tracing::info!("what the control plane says is remembered again");
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    let why = format!("what the control plane says is not remembered: a restart without it begins with nothing: {error}");
                    if before.as_ref() != Some(&why) {
                        tracing::error!("{why}");
                    }
                    desk.failed = Some(why);
                    desk.is_lost |= memory.is_lost();
                }
            }
            desk.since = Some(Instant::now());
            if was_slow || before != desk.failed {
                self.0.news.notify_one();
            }
        }
    }

    /// Whether there is something to be tried again.
    pub(super) fn owes(&self) -> bool {
        let desk = self.desk();
        desk.failed.is_some() && desk.memory.is_some()
    }

    /// What is wrong.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> + use<> {
        let desk = self.desk();
        let slow = desk.is_slow().then(|| {
            let place = desk.place.display();
            format!(
                "what the control plane says is not remembered: {place} has taken nothing for {SLOW:?} and longer: a restart without it \
                 begins with what was said before that"
            )
        });
        slow.into_iter().chain(desk.failed.clone())
    }

    /// Waits until something else is wrong, or nothing any more. Cancel safe.
    pub(super) async fn news(&self) {
        let slow_at = self.desk().since.map(|since| since + SLOW).filter(|at| *at > Instant::now());
        let slow = async {
            match slow_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.0.news.notified() => {}
            () = slow => {}
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn is_slow(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= SLOW)
    }

    fn lose(&mut self, why: &str) {
        let why = format!("what the control plane says is not remembered any more: {why}");
        tracing::error!("{why}");
        (self.failed, self.is_lost) = (Some(why), true);
    }
}

/// How long a disk may take for one write before that is told.
const SLOW: Duration = Duration::from_secs(10);
/// Names, versions and bodies that wait for a disk that is slower than that.
const MOST_WAITING: usize = 64 << 20;
