//! How long it is worth while to look, by what came of it before.

use std::time::Duration;

use ambient_hbone::Work;
use tokio::time::Instant;

/// What one thread has learnt; told the time, it asks nobody for it.
///
/// It looks for as long as would have found what came of late: that is twice as long after each wait that was short and outlasted it, and
/// half as long after each that was longer than it ever looks, so that whoever has something to do now and then does not look at all.
/// All of it together takes at most twice as long as the work between, by the clock, and one offer of the processor more.
#[derive(Debug)]
pub(super) struct Patience {
    most: Duration,
    /// How long it looks next; nothing at first.
    span: Duration,
    /// How long it may look yet for the work that it has done.
    earned: Duration,
    /// What it has looked beyond that.
    owed: Duration,
    /// For how long it leaves it be when the processor is taken next.
    rest: Duration,
    rests_until: Option<Instant>,
    /// Until when it counts as busy.
    busy_until: Option<Instant>,
}

impl Patience {
    /// A processor that was offered is somebody's who had waited for it if it is gone for so long: whoever is woken to answer is done
    /// sooner.
    pub(super) const TAKEN: Duration = Duration::from_micros(500);
    /// The least that it looks.
    const LEAST: Duration = Duration::from_micros(10);
    /// What comes in such amounts does not wait for a thread to wake: the next of it is there before it has dealt with this.
    const MUCH: u64 = 16 * 1024;
    /// Nor is it worth while after work of so long, of which waking is a small part.
    const LONG: Duration = Duration::from_micros(300);
    /// Nor is it for so long after either: who has much to do has better uses for his part of the processor, which in a group (cgroup) of
    /// his own he cannot even offer to others.
    const BUSY: Duration = Duration::from_millis(10);
    /// So many times as long as the work it may look.
    const WORTH: u32 = 2;
    /// What was earned is kept for so many looks and no more.
    const KEPT: u32 = 8;
    const REST: Duration = Duration::from_millis(10);
    const MOST_REST: Duration = Duration::from_secs(1);

    /// That looks for `most` at most; for nothing if that is zero.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            span: Duration::ZERO,
            earned: Duration::ZERO,
            owed: Duration::ZERO,
            rest: Self::REST,
            rests_until: None,
            busy_until: None,
        }
    }

    /// How long it looks now, if it does, having done so much since the last wait.
    pub(super) fn before_wait(&mut self, now: Instant, worked: Work, contended: bool) -> Option<Duration> {
        let earns = worked.used.saturating_mul(Self::WORTH);
        let pays_back = earns.min(self.owed);
        self.owed -= pays_back;
        self.earned = (self.earned + (earns - pays_back)).min(self.most * Self::KEPT);
        if worked.moved > Self::MUCH || worked.used > Self::LONG {
            self.busy_until = Some(now + Self::BUSY);
        }
        let rests = [self.rests_until, self.busy_until].into_iter().flatten().any(|until| now < until);
        let pays = self.owed.is_zero() && self.earned >= self.span;
        (!self.span.is_zero() && !contended && !rests && pays).then_some(self.span)
    }

    /// It has looked for so long.
    pub(super) fn looked(&mut self, looked: Duration) {
        self.owed += looked.saturating_sub(self.earned);
        self.earned = self.earned.saturating_sub(looked);
    }

    /// It has waited for so long, asleep at last.
    pub(super) fn slept(&mut self, waited: Duration) {
        self.span = match self.span {
            span if waited <= span => span,
            span if waited <= self.most => (span * 2).max(Self::LEAST).min(self.most),
            span if span < 2 * Self::LEAST => Duration::ZERO,
            span => span / 2,
        };
    }

    /// The processor was somebody else's for [`Self::TAKEN`]. It leaves it be for a while, for ever longer if that goes on.
    pub(super) fn taken(&mut self, now: Instant) {
        let again = self.rests_until.is_some_and(|until| now < until + self.rest * 4);
        self.rest = match again {
            true => (self.rest * 2).min(Self::MOST_REST),
            false => Self::REST,
        };
        self.rests_until = Some(now + self.rest);
    }
}

#[cfg(test)]
mod tests;
