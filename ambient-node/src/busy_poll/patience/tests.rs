use proptest::prelude::*;

use super::*;

const MOST: Duration = Duration::from_micros(200);

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn work(used: Duration, moved: u64) -> Work {
    Work { used, moved }
}

/// A thread of which waits are as they are told.
struct Thread {
    patience: Patience,
    now: Instant,
    looked: Duration,
    worked: Duration,
    /// How much longer an offer of the processor takes than it was to look.
    overshoot: Duration,
}

impl Thread {
    fn new(most: Duration) -> Self {
        Self {
            patience: Patience::new(most),
            now: Instant::now(),
            looked: Duration::ZERO,
            worked: Duration::ZERO,
            overshoot: Duration::ZERO,
        }
    }

    /// Works, and waits for so long then. How long it would have looked at most.
    fn turn(&mut self, worked: Work, waits: Duration, contended: bool) -> Duration {
        self.now += worked.used;
        self.worked += worked.used;
        let span = self.patience.before_wait(self.now, worked, contended).unwrap_or_default();
        let looked = span.min(waits) + if span.is_zero() { Duration::ZERO } else { self.overshoot };
        self.patience.looked(looked);
        if waits >= span {
            self.patience.slept(waits);
        }
        self.looked += looked;
        self.now += waits;
        span
    }

    /// One that has learnt to look.
    fn that_looks() -> Self {
        let mut thread = Self::new(MOST);
        for _ in 0..100 {
            thread.turn(work(micros(100), 0), MOST, false);
        }
        assert_eq!(thread.turn(work(micros(100), 0), micros(150), false), MOST);
        thread
    }
}

#[test]
fn it_looks_for_as_long_as_finds_what_comes_soon() {
    let mut thread = Thread::new(MOST);
    let spans: Vec<_> = (0..7).map(|_| thread.turn(work(micros(50), 1024), micros(60), false)).collect();
    assert_eq!(spans, [0, 10, 20, 40, 80, 80, 80].map(micros));
}

#[test]
fn who_waits_for_long_does_not_look() {
    let mut thread = Thread::that_looks();
    let mut span = || thread.turn(work(micros(200), 0), micros(1000), false);
    let spans: Vec<_> = (0..7).map(|_| span()).collect();
    assert_eq!(spans, [200_000, 100_000, 50_000, 25_000, 12_500, 0, 0].map(Duration::from_nanos));
}

#[test]
fn what_it_would_have_found_has_it_look_no_longer() {
    let mut thread = Thread::new(MOST);
    for _ in 0..10 {
        // Too much to look after it.
        thread.turn(work(micros(50), 2 * Patience::MUCH), micros(9), false);
    }
    thread.now += Patience::BUSY;
    assert_eq!(thread.turn(work(micros(50), 0), micros(5), false), Patience::LEAST);
}

#[test]
fn what_comes_in_bulk_or_is_long_in_the_making_is_not_looked_for() {
    let mut thread = Thread::that_looks();
    for (worked, contended, looks) in [
        (work(micros(100), Patience::MUCH), false, true),
        (work(micros(100), Patience::MUCH + 1), false, false),
        (work(Patience::LONG, 0), false, true),
        (work(Patience::LONG + micros(1), 0), false, false),
        (work(micros(100), 0), true, false),
    ] {
        let span = thread.turn(worked, micros(20), contended);
        assert_eq!(span == MOST, looks, "{worked:?} {contended}: {span:?}");
        let next = thread.turn(work(micros(100), 0), micros(20), false);
        assert_eq!(next == MOST, looks || contended, "{worked:?} {contended}: {next:?}");
        thread.now += Patience::BUSY;
    }
}

#[test]
fn a_processor_that_somebody_else_keeps_is_not_offered_for_ever_longer() {
    let mut thread = Thread::that_looks();
    let looks = |thread: &mut Thread| !thread.turn(work(micros(100), 0), micros(20), false).is_zero();
    // Until when it rests, to its turn of 120 µs.
    let rests = |thread: &mut Thread| {
        thread.patience.taken(thread.now);
        let since = thread.now;
        assert!((0..100_000).any(|_| looks(thread)));
        thread.now - since
    };
    let mut expected = Patience::REST;
    for _ in 0..10 {
        let rested = rests(&mut thread);
        assert!(rested >= expected && rested < expected + micros(300), "{rested:?} {expected:?}");
        expected = (expected * 2).min(Patience::MOST_REST);
    }
    assert_eq!(expected, Patience::MOST_REST);
    thread.now += Patience::MOST_REST * 4;
    assert!(looks(&mut thread));
    assert!(rests(&mut thread) < Patience::REST * 2, "that was long ago");
}

#[test]
fn who_is_told_not_to_never_looks() {
    let mut thread = Thread::new(Duration::ZERO);
    for waits in [0, 1, 10, 100, 1000] {
        assert_eq!(thread.turn(work(micros(100), 0), micros(waits), false), Duration::ZERO);
    }
}

proptest! {
    #[test]
    fn it_looks_for_twice_as_long_as_it_works_at_most(
        turns in prop::collection::vec((0_u64..150, prop::bool::weighted(0.03), 0_u64..500, prop::bool::weighted(0.1), 0_u64..500), 1..500),
    ) {
        let mut thread = Thread::new(MOST);
        let mut most_overshoot = Duration::ZERO;
        for (worked, bulk, waits, contended, overshoot) in turns {
            thread.overshoot = micros(overshoot);
            most_overshoot = most_overshoot.max(thread.overshoot);
            let moved = if bulk { 2 * Patience::MUCH } else { 1024 };
            let span = thread.turn(work(micros(worked), moved), micros(waits), contended);
            if bulk {
                thread.now += Patience::BUSY;
            }
            prop_assert!(span <= MOST);
            prop_assert!(thread.looked <= thread.worked * Patience::WORTH + most_overshoot);
        }
    }
}
