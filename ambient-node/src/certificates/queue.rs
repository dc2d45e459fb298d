//! Which certificate is asked for next: pure, time and chance as arguments.
//!
//! ```text
//!             next              issued
//!  (wanted) ---------> (asked) ---------> (held) -- half of its life is over, next --> (asked)
//!      ^                  |                  |
//!      +------ failed ----+                  +-- its end, or withdrawn --> (wanted)
//! ```
//!
//! One may also come unasked; then it is held, and what is under way counts no more, as it may be older. One that a process
//! before this has left is held too, and asked for soon: that authority may have said something else since.
//!
//! A failure says something of its name alone, or of the authority: that nobody answers. Then what is lacking is not left to
//! waits that grow: one of those names is asked for every now and then, whatever its own wait, and with the first answer to
//! anybody all are that nobody has answered; what is held meanwhile not in the same moment.
//!
//! A name is asked for once at a time, and all who want it share that. What is held is held until its end, whatever becomes of
//! the requests for the next one. Call [`Queue::next`] until it gives nothing, whenever something has changed and after
//! [`Queue::timeout`].

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant, SystemTime},
};

#[cfg(test)]
mod tests;

/// Requests under way at a time.
pub(super) const AT_ONCE: usize = 8;
/// Of these, at most so many for which nobody waits: an authority that is slow must not keep those who do behind the rest.
pub(super) const UNHURRIED: usize = 6;
/// The first wait after a failure, doubled up to [`LONGEST_WAIT`], and each a fifth less or more.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(1);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(150);
/// The same between two looks whether an authority is there again that does not answer, while something is lacking.
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// However often an authority answers others, one that it does not answer is not asked for sooner after a failure.
const LEAST_REST: Duration = Duration::from_secs(5);
/// What is there and good until its end is asked for within this time, at a moment of its own, where all nodes of a mesh may
/// have a reason to ask in the same one: they have started, or the authority is there again.
pub(super) const SPREAD: Duration = Duration::from_secs(60);
/// No certificate is asked for again sooner, however short it lives.
const LEAST_LIFE: Duration = Duration::from_millis(100);

/// A moment, by both clocks: waits are measured by the steady one, and certificates' dates are dates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) steady: Instant,
    pub(super) wall: SystemTime,
}

/// How long what was issued holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// Before it by this clock, where that is behind the authority's or was set back.
    pub(super) begin: SystemTime,
    /// When the next one is asked for.
    pub(super) renew: SystemTime,
    pub(super) end: SystemTime,
}

impl Life {
    /// Of what came just now: the next one is asked for at half its life, or up to a tenth of that sooner, so that pods
    /// that began together do not all ask together. Where a clock is wrong and that is over, at half of what is left.
    pub(super) fn issued(begin: SystemTime, end: SystemTime, now: SystemTime, draw: u64) -> Self {
        let half_of = |from: SystemTime| from + end.duration_since(from).unwrap_or_default() / 2;
        let middle = match half_of(begin) {
            middle if middle > now => middle,
            _ => half_of(now),
        };
        let until = middle.duration_since(now).unwrap_or_default();
        let until = until - until / 10_000 * u32::try_from(draw % 1000).unwrap_or(0);
        let renew = now + until.max(LEAST_LIFE);
        Self { begin, renew, end }
    }

    /// Of what a process before this has left. Nobody knows whether the authority still stands by it: the next one is asked for
    /// now, or in the time in which all nodes are [spread](SPREAD).
    pub(super) fn left([begin, end]: [SystemTime; 2], now: SystemTime, spread: Option<u64>) -> Self {
        let left = end.duration_since(now).unwrap_or_default();
        let wait = spread.map_or(Duration::ZERO, |draw| part(SPREAD.min(left / 2), draw));
        Self {
            begin,
            renew: now + wait,
            end,
        }
    }

    pub(super) fn holds(self, at: SystemTime) -> bool {
        self.begin <= at && at < self.end
    }
}

/// How urgent a request is; the first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Somebody waits for it: a connection, or a pod that is to be served.
    Waiting,
    /// There is none, and it will be needed.
    WarmUp,
    /// There is one, and its life is half over.
    Renewal,
}

/// What becomes of somebody who wants to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// There is a valid one.
    Held,
    /// It is being asked for, or will be: tell [`Queue::leave`] when the wait is over.
    Joined,
    /// It has failed, and is not asked for again for so long.
    Failed(Duration),
    /// Nobody wants it.
    Unknown,
}

/// What a failure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The authority has answered: it is there, and gives no such certificate now.
    Answered,
    /// Nobody has answered.
    Silence,
}

/// All that is wanted.
#[derive(Debug)]
pub(super) struct Queue<K> {
    entries: HashMap<K, Entry>,
    /// Nobody answers: since the last answer to anybody there was none to the last request.
    silence: Option<Silence>,
    under_way: usize,
    unhurried: usize,
    /// Counts what comes, so that equals go in the order in which they came.
    arrivals: u64,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    wait: Duration,
    /// When it is looked again whether somebody is there.
    again: Instant,
}

#[derive(Debug)]
struct Entry {
    wanted: bool,
    waiting: usize,
    held: Option<Life>,
    asked: Option<Urgency>,
    /// The authority has spoken of it unasked since it was asked.
    overtaken: bool,
    failures: u32,
    again: Option<Instant>,
    /// When nobody has answered, where that is the last that is known of it.
    unanswered: Option<Instant>,
    arrival: u64,
}

impl Entry {
    fn is_held(&self, now: SystemTime) -> bool {
        self.held.is_some_and(|life| life.holds(now))
    }

    /// What it is to be asked for with, if now; with `looks`, it is looked for whoever might answer.
    fn urgency(&self, now: Now, looks: bool) -> Option<Urgency> {
        let held = self.held.filter(|life| life.holds(now.wall));
        let looked_for = looks && self.unanswered.is_some() && held.is_none();
        let rests = !looked_for && self.again.is_some_and(|again| now.steady < again);
        if self.asked.is_some() || !self.wanted || rests {
            return None;
        }
        match held {
            None if self.waiting > 0 => Some(Urgency::Waiting),
            None => Some(Urgency::WarmUp),
            Some(life) => (life.renew <= now.wall).then_some(Urgency::Renewal),
        }
    }
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            silence: None,
            under_way: 0,
            unhurried: 0,
            arrivals: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// It is wanted from now on, until [`Queue::forget`].
    pub(super) fn want(&mut self, key: &K) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.wanted = true;
            return;
        }
        let entry = Entry {
            wanted: true,
            waiting: 0,
            held: None,
            asked: None,
            overtaken: false,
            failures: 0,
            again: None,
            unanswered: None,
            arrival: arrive(&mut self.arrivals),
        };
        self.entries.insert(key.clone(), entry);
    }

    /// Nobody wants it any more. What is being asked for is let come, and counts if it is wanted again by then.
    pub(super) fn forget(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.wanted = false;
        entry.held = None;
        if entry.asked.is_none() {
            self.entries.remove(key);
        }
    }

    /// Somebody would wait for it.
    pub(super) fn wait(&mut self, key: &K, now: Now) -> Wait {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.wanted) else {
            return Wait::Unknown;
        };
        if entry.is_held(now.wall) {
            return Wait::Held;
        }
        if let Some(again) = entry.again.filter(|again| entry.asked.is_none() && now.steady < *again) {
            return Wait::Failed(again.duration_since(now.steady));
        }
        if entry.waiting == 0 {
            // It comes among those who wait now, behind those who did before.
            entry.arrival = arrive(&mut self.arrivals);
        }
        entry.waiting += 1;
        Wait::Joined
    }

    /// Somebody who has [joined](Wait::Joined) waits no longer.
    pub(super) fn leave(&mut self, key: &K) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
    }

    /// What to ask for now, if there is room for it: the most urgent; of equals, renewals by when they were due, others by
    /// when they came.
    pub(super) fn next(&mut self, now: Now) -> Option<K> {
        if self.under_way >= AT_ONCE {
            return None;
        }
        let hurried_only = self.unhurried >= UNHURRIED;
        let looks = self.under_way == 0 && self.silence.is_some_and(|silence| silence.again <= now.steady);
        let due = self.entries.iter().filter_map(|(key, entry)| {
            let urgency = entry.urgency(now, looks)?;
            let due = entry.held.filter(|_| urgency == Urgency::Renewal).map(|life| life.renew);
            (urgency == Urgency::Waiting || !hurried_only).then_some(((urgency, due, entry.arrival), key))
        });
        let ((urgency, ..), key) = due.min_by_key(|(order, _)| *order)?;
        let key = key.clone();
        let entry = self.entries.get_mut(&key)?;
        (entry.asked, entry.overtaken) = (Some(urgency), false);
        self.under_way += 1;
        self.unhurried += usize::from(urgency != Urgency::Waiting);
        Some(key)
    }

    /// It has come; `false` where nobody wants it any more, or something was said of it that may be newer. One that does not hold
    /// now is kept, as it may in a moment; but it is no success, and another is asked for as after a failure.
    pub(super) fn issued(&mut self, key: &K, life: Life, now: Now, draw: u64) -> bool {
        let Some(entry) = self.answered(key).filter(|entry| !entry.overtaken) else {
            return false;
        };
        entry.held = Some(life);
        if life.holds(now.wall) {
            entry.failures = 0;
            (entry.again, entry.unanswered) = (None, None);
            self.heard(now, draw);
        } else {
            self.rest(key, Failure::Answered, now, draw);
        }
        true
    }

    /// There is one that a process before this has left. It is held until its end.
    pub(super) fn found(&mut self, key: &K, left: Life) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.wanted) {
            entry.held = Some(left);
        }
    }

    /// What is there is no good any more, whatever its dates: the next one is asked for now.
    pub(super) fn spoilt(&mut self, key: &K, now: SystemTime) {
        if let Some(life) = self.entries.get_mut(key).and_then(|entry| entry.held.as_mut()) {
            life.renew = life.renew.min(now);
        }
    }

    /// It has not come; gives how long it is not asked for now at most, where somebody still wants it.
    pub(super) fn failed(&mut self, key: &K, failure: Failure, now: Now, draw: u64) -> Option<Duration> {
        self.answered(key)?;
        self.rest(key, failure, now, draw)
    }

    fn rest(&mut self, key: &K, failure: Failure, now: Now, draw: u64) -> Option<Duration> {
        let entry = self.entries.get_mut(key)?;
        let wait = spread(FIRST_WAIT.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_WAIT), draw);
        entry.failures = entry.failures.saturating_add(1);
        entry.again = Some(now.steady + wait);
        entry.unanswered = (failure == Failure::Silence).then_some(now.steady);
        entry.arrival = arrive(&mut self.arrivals);
        match failure {
            Failure::Answered => self.heard(now, draw),
            Failure::Silence => self.silent(now, draw),
        }
        Some(wait)
    }

    /// Nobody has answered. What was under way beside the last look says nothing more than that.
    fn silent(&mut self, now: Now, draw: u64) {
        let silence = self.silence.get_or_insert(Silence {
            wait: Duration::ZERO,
            again: now.steady,
        });
        if silence.again <= now.steady {
            silence.wait = (silence.wait * 2).clamp(FIRST_WAIT, LONGEST_SILENCE);
            silence.again = now.steady + spread(silence.wait, draw);
        }
    }

    /// The authority has answered somebody: who was not answered need not wait on. What is held is asked for with less hurry, as
    /// all nodes hear of it now.
    fn heard(&mut self, now: Now, draw: u64) {
        if self.silence.take().is_none() {
            return;
        }
        for (n, entry) in (0..).zip(self.entries.values_mut()) {
            let (Some(unanswered), Some(again)) = (entry.unanswered.take(), entry.again) else {
                continue;
            };
            let soon = match entry.held.filter(|life| life.holds(now.wall)) {
                None => now.steady.max(unanswered + LEAST_REST),
                Some(life) => {
                    let left = life.end.duration_since(now.wall).unwrap_or_default();
                    now.steady + part(SPREAD.min(left / 2), scattered(draw, n))
                }
            };
            entry.again = Some(again.min(soon));
        }
    }

    /// A newer one has come unasked; `false` where nobody wants it. What is being asked for is let come, and not taken.
    pub(super) fn renewed(&mut self, key: &K, life: Life) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.wanted) else {
            return false;
        };
        entry.failures = 0;
        (entry.again, entry.unanswered) = (None, None);
        entry.held = Some(life);
        entry.overtaken = true;
        true
    }

    /// What is held does not count any more, nor what is being asked for: it may have been given before this was said.
    pub(super) fn withdrawn(&mut self, key: &K) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.held = None;
            entry.overtaken = true;
        }
    }

    /// Whether there is one that counts.
    pub(super) fn is_held(&self, key: &K, now: SystemTime) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.is_held(now))
    }

    /// How long [`Queue::next`] gives nothing, unless something else happens; `None` where that alone could help.
    pub(super) fn timeout(&self, now: Now) -> Option<Duration> {
        if self.under_way >= AT_ONCE {
            return None;
        }
        let due = |entry: &Entry| -> Option<Duration> {
            if entry.asked.is_some() || !entry.wanted {
                return None;
            }
            let held = entry.held.filter(|life| life.holds(now.wall));
            if self.unhurried >= UNHURRIED && (entry.waiting == 0 || held.is_some()) {
                return None;
            }
            let by_date = held.map_or(Duration::ZERO, |life| life.renew.duration_since(now.wall).unwrap_or_default());
            let until = |moment: Instant| moment.saturating_duration_since(now.steady);
            let by_wait = entry.again.map_or(Duration::ZERO, until);
            let by_look = self
                .silence
                .filter(|_| self.under_way == 0 && entry.unanswered.is_some() && held.is_none())
                .map_or(by_wait, |silence| until(silence.again));
            Some(by_date.max(by_wait.min(by_look)))
        };
        self.entries.values().filter_map(due).min()
    }

    /// Nothing is under way any more, and nobody will say how it went.
    pub(super) fn restart(&mut self) {
        (self.under_way, self.unhurried) = (0, 0);
        self.entries.retain(|_, entry| {
            entry.asked = None;
            entry.wanted
        });
    }

    /// What is wanted and not held.
    pub(super) fn lacking(&self, now: SystemTime) -> impl Iterator<Item = &K> {
        let lacking = self.entries.iter().filter(move |(_, entry)| entry.wanted && !entry.is_held(now));
        lacking.map(|(key, _)| key)
    }

    /// A request has ended; gives the entry if it is still wanted.
    fn answered(&mut self, key: &K) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?;
        let urgency = entry.asked.take()?;
        self.under_way -= 1;
        self.unhurried -= usize::from(urgency != Urgency::Waiting);
        if !entry.wanted {
            self.entries.remove(key);
            return None;
        }
        self.entries.get_mut(key)
    }
}

/// A wait, a fifth less or more.
fn spread(wait: Duration, draw: u64) -> Duration {
    wait / 1000 * u32::try_from(800 + draw % 401).unwrap_or(1000)
}

/// Some part of a time.
fn part(of: Duration, draw: u64) -> Duration {
    of / 1000 * u32::try_from(draw % 1000).unwrap_or(0)
}

/// Of one draw many, for those that come one after the other: the multiples of the golden ratio lie everywhere.
fn scattered(draw: u64, n: u64) -> u64 {
    draw.wrapping_add(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn arrive(arrivals: &mut u64) -> u64 {
    *arrivals += 1;
    *arrivals
}
