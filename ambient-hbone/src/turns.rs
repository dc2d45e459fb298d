//! Turns on a thread: shares of it for those whose connections it serves.
//!
//! A runtime lets its tasks have turns one after the other, so that whoever has a thousand of them has a thousand turns where others
//! have one. Here each [`Share`] has about as much time as any other that wants some, however many tasks it has.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    task::{self, JoinHandle},
    time::Instant,
};

use crate::proto::rota::{Place, Rota, Turn};

/// The turns on one thread: that of a current-thread runtime, on which [`rounds`](Self::rounds) runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    rota: Rota<Waker>,
    /// Begins rounds when it is woken.
    rounds: Option<Waker>,
    work: Work,
    /// Tasks that are awake, and wait for the next round.
    waiting: usize,
}

/// What has been done in turns on one thread, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// How long turns have lasted.
    pub used: Duration,
    /// Bytes that relays have passed on.
    pub moved: u64,
}

impl Work {
    /// What of it was done since it was `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            used: self.used.saturating_sub(earlier.used),
            moved: self.moved.saturating_sub(earlier.moved),
        }
    }
}

/// One's share of a thread's time: clones of it are one share.
///
/// What it [runs](Self::run), and the tunnels that a [`Pool`](crate::Pool) makes for that, wait for the next round once they have had
/// the thread for [a quantum](Turns::QUANTUM) together. A single turn is as long as its task makes it; tunnels and relays end theirs
/// after a quantum where others have turns too.
#[derive(Clone, Debug)]
pub struct Share {
    lane: Arc<Lane>,
}

#[derive(Debug)]
struct Lane {
    turns: Turns,
    index: usize,
}

thread_local! {
    /// Whose turn it is.
    static CURRENT: Cell<Option<Share>> = const { Cell::new(None) };
    /// Until when it is to last, where others have turns too.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Bytes that relays have passed on since a turn last ended.
    static MOVED: Cell<u64> = const { Cell::new(0) };
}

impl Turns {
    /// What each may use of a round: little for whoever waits for others to use it, and much beside what it costs to begin a round,
    /// which is to ask the kernel for news and to wake a task of each that waits.
    pub const QUANTUM: Duration = Duration::from_micros(100);

    /// Turns in which nobody has a share yet.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            rota: Rota::new(nanos(Self::QUANTUM)),
            rounds: None,
            work: Work::default(),
            waiting: 0,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// Another share; it ends with its last clone.
    #[must_use]
    pub fn share(&self) -> Share {
        let index = self.lock().rota.add();
        Share {
            lane: Arc::new(Lane {
                turns: self.clone(),
                index,
            }),
        }
    }

    /// Whether somebody has used his quantum while others had turns too, since this was asked last: then there is more to do than the
    /// thread gets done at once.
    pub fn were_contended(&self) -> bool {
        self.lock().rota.was_contended()
    }

    /// The thread has had nothing to do for so long: to be called as it goes on (`on_thread_unpark` of the runtime). That was time for all,
    /// and is taken off what each has used; without it shares that take turns, with pauses between, wait for each other now and then.
    ///
    /// To be left out where the thread may have had work and not its processor: whoever has used too much would be let off then.
    pub fn idle(&self, time: Duration) {
        self.lock().rota.idle(nanos(time));
    }

    /// What has been done so far in turns that are over.
    #[must_use]
    pub fn work(&self) -> Work {
        self.lock().work
    }

    /// Whether somebody who is awake waits for the next round: the thread has something to do, even where no task of its runtime is
    /// woken at the moment.
    #[must_use]
    pub fn are_waited_for(&self) -> bool {
        self.lock().waiting > 0
    }

    /// Begins one round after the other; never ends. To be spawned on the runtime whose thread is shared: whoever waits for the next
    /// round waits for this.
    pub async fn rounds(self) {
        let mut called = Vec::new();
        let turns = Forgets(&self);
        loop {
            poll_fn(|cx| {
                let mut shared = turns.0.lock();
                if shared.rota.is_asked_for_a_round() {
                    return Poll::Ready(());
                }
                shared.rounds = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            // Not before all who are awake have had a turn, and those whom the driver of the runtime wakes then are too.
            task::yield_now().await;
            turns.0.lock().rota.next_round(|waker| called.push(waker));
            called.drain(..).for_each(Waker::wake);
        }
    }

    /// Held for moments, by this thread as a rule: by others only when a task is dropped or a share begins.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets who begins rounds when that ends: a runtime that holds turns would be held by them for ever, as their waker holds it.
struct Forgets<'t>(&'t Turns);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.lock().rounds = None;
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.turns.lock().rota.remove(self.index);
    }
}

impl Share {
    /// A task of this share: to be spawned on the runtime whose thread is shared.
    ///
    /// # Cancel safety
    /// Dropping it drops the future, and gives its place to the next task of the share.
    pub fn run<F: Future + Unpin>(&self, future: F) -> InTurn<F> {
        InTurn {
            share: Some(self.clone()),
            place: None,
            future,
        }
    }

    /// Whether there are clones of it, or tasks in it.
    #[must_use]
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.lane) > 1
    }

    fn current() -> Option<Self> {
        CURRENT.with(|current| {
            let share = current.take();
            current.set(share.clone());
            share
        })
    }

    /// Whether the task may go on, and then whether others wait for it to be done; else it has a place from now on, and is woken.
    fn ask(&self, place: &mut Option<Place>, cx: &Context<'_>) -> Poll<bool> {
        let rounds = {
            let mut shared = self.lane.turns.lock();
            match shared.rota.ask(self.lane.index, *place, || cx.waker().clone()) {
                Turn::Now => return Poll::Ready(shared.rota.is_shared()),
                Turn::Later { place: given, asks } => {
                    if place.replace(given).is_none() {
                        shared.waiting += 1;
                    }
                    shared.rounds.take_if(|_| asks)
                }
            }
        };
        if let Some(rounds) = rounds {
            rounds.wake();
        }
        Poll::Pending
    }

    fn done(&self, place: Option<Place>, took: Duration) {
        let next = {
            let mut shared = self.lane.turns.lock();
            shared.work.used += took;
            shared.work.moved += MOVED.take();
            shared.waiting -= usize::from(place.is_some());
            shared.rota.done(self.lane.index, place, nanos(took))
        };
        if let Some(next) = next {
            next.wake();
        }
    }

    fn leave(&self, place: Place) {
        let next = {
            let mut shared = self.lane.turns.lock();
            shared.waiting -= 1;
            shared.rota.leave(self.lane.index, place)
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// Spawns a task in the share of the one that spawns it, if that has one: else as any other.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    match Share::current() {
        Some(share) => tokio::spawn(share.run(Box::pin(future))),
        None => tokio::spawn(future),
    }
}

/// A task that goes on only when it is its share's turn: of [`Share::run`].
#[derive(Debug)]
#[must_use = "futures do nothing unless they are polled"]
pub struct InTurn<F> {
    /// None only while it has its turn: then it is in [`CURRENT`].
    share: Option<Share>,
    place: Option<Place>,
    future: F,
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let shared = match &this.share {
            Some(share) => ready!(share.ask(&mut this.place, cx)),
            None => false,
        };
        let begun = Instant::now();
        let polled = {
            let _current = Current::enter(&mut this.share, shared.then(|| begun + Turns::QUANTUM));
            Pin::new(&mut this.future).poll(cx)
        };
        if let Some(share) = &this.share {
            share.done(this.place.take(), begun.elapsed());
        }
        polled
    }
}

impl<F> Drop for InTurn<F> {
    fn drop(&mut self) {
        if let (Some(share), Some(place)) = (&self.share, self.place) {
            share.leave(place);
        }
    }
}

/// A relay has passed on so many bytes.
pub(crate) fn moved(bytes: usize) {
    MOVED.set(MOVED.get() + bytes as u64);
}

/// Whether others wait for the turn to end: then there is little in one piece.
pub(crate) fn is_shared() -> bool {
    UNTIL.get().is_some()
}

/// Whether the turn has lasted for as long as it is to.
pub(crate) fn is_over() -> bool {
    UNTIL.get().is_some_and(|until| Instant::now() >= until)
}

/// Says whose turn it is, until it is dropped.
struct Current<'s> {
    place: &'s mut Option<Share>,
    outer: (Option<Share>, Option<Instant>),
}

impl<'s> Current<'s> {
    fn enter(place: &'s mut Option<Share>, until: Option<Instant>) -> Self {
        let outer = (CURRENT.replace(place.take()), UNTIL.replace(until));
        Self { place, outer }
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let (share, until) = std::mem::take(&mut self.outer);
        *self.place = CURRENT.replace(share);
        UNTIL.set(until);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
