//! Who of those that share a thread goes on: in rounds, each for about a quantum.

use std::collections::VecDeque;

/// Those who share a thread, each with all its tasks.
///
/// A task [asks](Self::ask) before each of its turns, and tells with [`done`](Self::done) how long that took. Where somebody has used
/// a quantum, his further tasks wait, in order, for the [next round](Self::next_round), which is to begin when all that were awake
/// have had a turn. So whoever wants little waits for what is left of a round: of each of the others a quantum, and the turn by which
/// he went beyond it. That is taken off his next quanta, [`DEBT`] of them at most; those that go by while nobody wants the thread count.
///
/// `W` is what wakes a task.
#[derive(Debug)]
pub(crate) struct Rota<W> {
    /// In nanoseconds, as all times here.
    quantum: u64,
    lanes: Vec<Lane<W>>,
    free: Vec<usize>,
    round: u64,
    /// Lanes with tasks that wait, in the order in which that began.
    held: Vec<usize>,
    /// How many had a turn in this round.
    active: usize,
    /// How many had one in the last round in which anybody had.
    before: usize,
    /// For how long the thread has had nothing to do, beyond whole quanta.
    idle: u64,
    /// The next round was asked for.
    ending: bool,
    /// Somebody had to wait, and not only for himself.
    contended: bool,
}

/// One who shares the thread.
#[derive(Debug)]
struct Lane<W> {
    /// What it has used, and the round in which that was reckoned last.
    used: u64,
    round: u64,
    /// The round in which it had its last turn.
    had: Option<u64>,
    /// Tasks that wait; none for one that has gone.
    waiting: VecDeque<Option<W>>,
    /// The number of the first of them: those before it were called.
    first: u64,
    /// One was called, and has not had its turn yet.
    called: bool,
    /// It is one of the lanes that wait for the next round.
    held: bool,
}

/// A task's place among those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// What a task that asks is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Go on, and say how long it took.
    Now,
    /// Wait until it is woken; `asks` for a next round, where none was asked for yet.
    Later { place: Place, asks: bool },
}

impl<W> Rota<W> {
    /// `quantum` in nanoseconds.
    pub(crate) fn new(quantum: u64) -> Self {
        Self {
            quantum,
            lanes: Vec::new(),
            free: Vec::new(),
            round: 0,
            held: Vec::new(),
            active: 0,
            before: 0,
            idle: 0,
            ending: false,
            contended: false,
        }
    }

    /// Whether somebody had used his quantum where others had turns too, since this was asked last.
    pub(crate) fn was_contended(&mut self) -> bool {
        std::mem::take(&mut self.contended)
    }

    /// The thread had nothing to do for so long: rounds, in which all could have had what they wanted, have gone by.
    pub(crate) fn idle(&mut self, time: u64) {
        if self.ending {
            // Somebody wants it.
            return;
        }
        self.idle = self.idle.saturating_add(time);
        let rounds = self.idle / self.quantum;
        if rounds == 0 {
            return;
        }
        self.idle %= self.quantum;
        self.round += rounds;
        let active = std::mem::take(&mut self.active);
        if active > 0 {
            self.before = active;
        }
    }

    /// Whether somebody waits for the next round.
    pub(crate) fn is_asked_for_a_round(&self) -> bool {
        self.ending
    }

    /// Whether there is more than one who has turns.
    pub(crate) fn is_shared(&self) -> bool {
        self.active.max(self.before) > 1
    }

    /// One more to share the thread, until [`remove`](Self::remove).
    pub(crate) fn add(&mut self) -> usize {
        let lane = Lane {
            used: 0,
            round: self.round,
            had: None,
            waiting: VecDeque::new(),
            first: 0,
            called: false,
            held: false,
        };
        match self.free.pop() {
            Some(index) => {
                self.lanes[index] = lane;
                index
            }
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        }
    }

    /// One less; it has no tasks any more.
    pub(crate) fn remove(&mut self, lane: usize) {
        self.lanes[lane].waiting = VecDeque::new();
        self.held.retain(|held| *held != lane);
        self.free.push(lane);
    }

    /// A task wants a turn. `place` is the one that it was given and has not had its turn for.
    pub(crate) fn ask(&mut self, lane: usize, place: Option<Place>, waker: impl FnOnce() -> W) -> Turn {
        let (index, round, quantum) = (lane, self.round, self.quantum);
        let lane = &mut self.lanes[index];
        if let Some(Place(number)) = place {
            let Some(ahead) = number.checked_sub(lane.first) else {
                return Turn::Now;
            };
            // Woken by something else. It keeps its place.
            lane.waiting[ahead as usize] = Some(waker());
            return Turn::Later {
                place: Place(number),
                asks: false,
            };
        }
        lane.reckon(round, quantum);
        if lane.waiting.is_empty() && !lane.called && lane.used < quantum {
            return Turn::Now;
        }
        if !std::mem::replace(&mut lane.held, true) {
            self.held.push(index);
            self.contended |= self.active.max(self.before) > 1;
        }
        lane.waiting.push_back(Some(waker()));
        Turn::Later {
            place: Place(lane.first + lane.waiting.len() as u64 - 1),
            asks: !std::mem::replace(&mut self.ending, true),
        }
    }

    /// A task has had its turn, for which it held `place` or none. Gives who goes on instead, still in this round.
    pub(crate) fn done(&mut self, lane: usize, place: Option<Place>, took: u64) -> Option<W> {
        let (round, quantum) = (self.round, self.quantum);
        let lane = &mut self.lanes[lane];
        if lane.had.replace(round) != Some(round) {
            self.active += 1;
        }
        lane.reckon(round, quantum);
        lane.used = lane.used.saturating_add(took).min(DEBT * quantum);
        if place.is_some() {
            lane.called = false;
        }
        lane.call(quantum)
    }

    /// A task has gone with its place. Gives who goes on instead.
    pub(crate) fn leave(&mut self, lane: usize, Place(number): Place) -> Option<W> {
        let quantum = self.quantum;
        let lane = &mut self.lanes[lane];
        match number.checked_sub(lane.first) {
            Some(ahead) => {
                lane.waiting[ahead as usize] = None;
                None
            }
            None => {
                lane.called = false;
                lane.call(quantum)
            }
        }
    }

    /// The next round begins: `wake` is told who goes on first, of each.
    pub(crate) fn next_round(&mut self, mut wake: impl FnMut(W)) {
        let (quantum, lanes) = (self.quantum, &mut self.lanes);
        let active = std::mem::take(&mut self.active);
        if active > 0 {
            self.before = active;
        } else {
            // All who want the thread have used too much of it: no round is waited for in which nobody would go on.
            let least = self.held.iter().map(|index| lanes[*index].used).min();
            self.round += least.map_or(0, |used| (used / quantum).saturating_sub(1));
        }
        self.round += 1;
        let round = self.round;
        self.held.retain(|index| {
            let lane = &mut lanes[*index];
            lane.reckon(round, quantum);
            if let Some(waker) = lane.call(quantum) {
                wake(waker);
            }
            lane.held = !lane.waiting.is_empty();
            if !lane.held && lane.waiting.capacity() > KEPT {
                lane.waiting = VecDeque::new();
            }
            lane.held
        });
        self.ending = !self.held.is_empty();
    }
}

impl<W> Lane<W> {
    fn reckon(&mut self, round: u64, quantum: u64) {
        let since = round - std::mem::replace(&mut self.round, round);
        self.used = self.used.saturating_sub(since.saturating_mul(quantum));
    }

    /// Calls the next of those that wait, if there is something left of the quantum.
    fn call(&mut self, quantum: u64) -> Option<W> {
        if self.called || self.used >= quantum {
            return None;
        }
        while let Some(next) = self.waiting.pop_front() {
            self.first += 1;
            if next.is_some() {
                self.called = true;
                return next;
            }
        }
        None
    }
}

/// Quanta that somebody may have used at the most. A turn may have been long because the system gave its processor to somebody else
/// meanwhile.
const DEBT: u64 = 4;

/// Places for tasks that wait, where none does.
const KEPT: usize = 64;

#[cfg(test)]
mod tests;
