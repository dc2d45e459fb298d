//! How much a peer may send on a stream before it is read: little at first, more for streams that are read as fast as they
//! come, and never more for those that are not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What windows may grow by in all, shared by every tunnel that was given a clone.
#[derive(Clone, Debug)]
pub(crate) struct Spare(Arc<AtomicUsize>);

impl Spare {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// An account of one tunnel with it.
    pub(super) fn share(&self) -> Share {
        Share(Arc::new(Account {
            taken: AtomicUsize::new(0),
            of: self.clone(),
        }))
    }

    /// Takes up to `most`: all of it while there is plenty, and less the less is left; at last, nothing.
    fn take_part(&self, most: usize) -> usize {
        let part = |left: usize| most.min(left / PART);
        let less = |left: usize| Some(left - part(left)).filter(|_| part(left) >= LEAST_PART);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).map_or(0, part)
    }

    fn give(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the windows of one tunnel may grow by: no more than they leave to those of others. So one tunnel has half of a budget at most,
/// many that want all have as much each as is left beside them, and whoever comes last finds something as well.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<Account>);

/// What a tunnel has taken of a budget.
#[derive(Debug)]
struct Account {
    /// Changed under the lock of the tunnel's engine alone, or when that is gone.
    taken: AtomicUsize,
    of: Spare,
}

impl Share {
    fn take(&self, bytes: usize) -> bool {
        let Account { taken, of: Spare(left) } = &*self.0;
        let more = taken.load(Ordering::Relaxed) + bytes;
        let less = |left: usize| left.checked_sub(bytes).filter(|rest| more <= *rest);
        let takes = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if takes {
            taken.store(more, Ordering::Relaxed);
        }
        takes
    }

    fn give(&self, bytes: usize) {
        self.0.taken.fetch_sub(bytes, Ordering::Relaxed);
        self.0.of.give(bytes);
    }
}

/// One of so many may have what is left of a budget.
const PART: usize = 64;

/// Less is not worth telling the peer.
const LEAST_PART: usize = 64 << 10;

/// What a window is larger by from the first, until it goes.
#[derive(Debug)]
struct Lent {
    bytes: u32,
    by: Spare,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.by.give(self.bytes as usize);
    }
}

/// Round trips, measured by PINGs while data comes, two in a row: the first begins anywhere between two bursts of a peer that
/// waits for its window; the second goes from burst to burst, and so has one whole window in it.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    number: u32,
    /// When the present one began, and whether it is the second.
    begun: Option<(Duration, bool)>,
    last: Round,
    /// The shortest so far: what the way takes when nothing waits on it.
    shortest: Option<Duration>,
}

/// A round trip that was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    number: u32,
    took: Duration,
    shortest: Duration,
}

impl Rounds {
    /// Gives whether a PING is to go now: none is under way.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        let free = self.begun.is_none();
        if free {
            self.number = self.number.wrapping_add(1);
            self.begun = Some((now, false));
        }
        free
    }

    /// The answer of one has come. Gives whether another is to go.
    pub(super) fn end(&mut self, now: Duration) -> bool {
        let Some((begun, second)) = self.begun.take() else {
            return false;
        };
        let took = now.saturating_sub(begun).max(Duration::from_micros(1));
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
        if second {
            self.last = Round {
                number: self.number,
                took,
                shortest,
            };
            return false;
        }
        self.number = self.number.wrapping_add(1);
        self.begun = Some((now, true));
        true
    }

    pub(super) fn last(&self) -> Round {
        self.last
    }

    /// The number of the one that is under way.
    pub(super) fn present(&self) -> Option<u32> {
        self.begun.map(|_| self.number)
    }
}

/// The window of one stream, as its receiver sees it. At any time `credit + unread ≤ size`.
///
/// What comes in a round trip is what the peer may have under way. Where that is the whole window, the window is what
/// holds the peer up, and it grows, quickly and [generously](GENEROUS): ends that are woken late have more to do when they
/// are. Beyond that it must be the way that needs it. What comes as fast as the way can bring it waits there, and makes the
/// round longer than the shortest; so `came × shortest ÷ took` is what the way itself holds, and twice that is enough.
#[derive(Debug)]
pub(super) struct Window {
    size: u32,
    /// What the peer may still send.
    credit: u32,
    /// What it has sent that was not read.
    unread: u32,
    /// In which round trips how much has come: the one before and the present one, since the one before is judged late.
    came: [(u32, u32); 2],
    /// What is to come until the next round trip is to be measured, and how that grows while it brings nothing new.
    until_measured: u32,
    pause: u32,
    /// What it was at first, which is nothing of the spare's.
    first: u32,
    spare: Share,
    /// Boxed: few have one, and all have room for it.
    lent: Option<Box<Lent>>,
}

impl Window {
    pub(super) fn new(size: u32, spare: &Share) -> Self {
        Self {
            size,
            credit: size,
            unread: 0,
            came: [(0, 0); 2],
            until_measured: size / 2,
            pause: size / 2,
            first: size,
            spare: spare.clone(),
            lent: None,
        }
    }

    /// Makes one of which nothing has come yet as large as `size`, as far as `ample` has something for it. Gives what the peer is to be
    /// told.
    pub(super) fn begin_ample(&mut self, size: u32, ample: &Spare) -> u32 {
        // No more than is wanted, and that is 31 bits.
        let more = ample.take_part(size.saturating_sub(self.size) as usize) as u32;
        if more > 0 {
            let (size, by) = (self.size + more, ample.clone());
            (self.size, self.credit, self.first) = (size, size, size);
            (self.until_measured, self.pause) = (size / 2, size / 2);
            self.lent = Some(Box::new(Lent { bytes: more, by }));
        }
        more
    }

    /// Whether the peer may send `n` bytes.
    pub(super) fn has(&self, n: u32) -> bool {
        n <= self.credit
    }

    /// The peer sends `n` bytes, no more than it [may](Self::has), while this round trip is measured. Gives whether one is
    /// to be.
    pub(super) fn arrive(&mut self, n: u32, round: Option<u32>) -> bool {
        self.credit = self.credit.saturating_sub(n);
        self.unread += n;
        if let Some(round) = round {
            if self.came[1].0 != round {
                self.came = [self.came[1], (round, 0)];
            }
            self.came[1].1 = self.came[1].1.saturating_add(n);
            return false;
        }
        self.until_measured = self.until_measured.saturating_sub(n);
        let is_time = self.until_measured == 0;
        if is_time {
            self.until_measured = self.pause;
        }
        is_time
    }

    /// `n` bytes were read. Gives what the peer is to be told that it may send beyond what it knows, or nothing yet.
    pub(super) fn read(&mut self, n: u32, largest: u32, last: Round) -> u32 {
        self.unread = self.unread.saturating_sub(n);
        // What comes in bursts is judged when the reader has caught up with it; whoever does not keeps the window it has.
        if self.unread <= self.size / 2
            && let Some((_, came)) = self.came.iter_mut().find(|(round, came)| *round == last.number && *came > 0)
        {
            let came = std::mem::take(came);
            self.grow(came, largest, last);
        }
        let owed = self.size - self.credit - self.unread;
        if owed < self.size / 4 {
            return 0;
        }
        self.credit += owed;
        owed
    }

    fn grow(&mut self, came: u32, largest: u32, last: Round) {
        // What was read is owed in quarters: who sends as it is read has hardly less than three of them in a round.
        let used_up = came >= self.size / 16 * 11;
        let held_by_the_way = f64::from(came) * last.shortest.as_secs_f64() / last.took.as_secs_f64();
        let wanted = if used_up && self.size < GENEROUS {
            self.size.saturating_mul(4).min(GENEROUS)
        } else if 2.0 * held_by_the_way > f64::from(self.size) {
            self.size.saturating_mul(2)
        } else {
            self.size
        };
        let larger = wanted.min(largest);
        if larger > self.size && self.spare.take((larger - self.size) as usize) {
            self.size = larger;
            self.pause = larger / 2;
        } else {
            self.pause = self.pause.saturating_mul(2).min(self.size.saturating_mul(16));
        }
        self.until_measured = self.pause;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.spare.give((self.size - self.first) as usize);
    }
}

/// The window up to which it is enough that the peer uses all of it: what TCP itself keeps for one connection.
const GENEROUS: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, iter::repeat_n};

    use proptest::prelude::*;

    use super::*;

    const FIRST: u32 = 1 << 16;
    const LARGEST: u32 = 1 << 24;

    /// A sender of `rate` bytes a turn as far as it may, a round trip of twice `delay` turns with a queue in it that lets
    /// `pass` bytes through a turn, and a reader of `speed` bytes a turn.
    fn settle(rate: u32, pass: u32, delay: usize, speed: u32) -> (u32, u64) {
        settle_after(Rounds::default(), rate, pass, delay, speed)
    }

    /// The same in a tunnel that has measured before.
    fn settle_after(mut rounds: Rounds, rate: u32, pass: u32, delay: usize, speed: u32) -> (u32, u64) {
        let mut window = Window::new(FIRST, &Spare::new(1 << 30).share());
        let (mut may, mut read, mut waiting, mut queue) = (FIRST, 0_u64, 0_u32, 0_u32);
        let mut there: VecDeque<(u32, bool)> = repeat_n((0, false), delay).collect();
        let mut back = there.clone();
        let (mut answer, mut ping) = (None, false);
        for turn in 0..4000 {
            let now = Duration::from_millis(turn);
            let (more, asked) = back.pop_front().unwrap_or_default();
            may += more;
            if asked {
                // The answer goes before what the same turn brings, and behind what is in the queue.
                answer = Some(queue);
            }
            let sent = may.min(rate);
            may -= sent;
            queue += sent;
            let passed = queue.min(pass);
            queue -= passed;
            let answered = answer.is_some_and(|ahead| ahead <= passed);
            answer = answer.map(|ahead| ahead.saturating_sub(passed)).filter(|_| !answered);
            there.push_back((passed, answered));
            let (came, answered) = there.pop_front().unwrap();
            if answered {
                ping |= rounds.end(now);
            }
            assert!(window.has(came));
            if window.arrive(came, rounds.present()) {
                ping |= rounds.begin(now);
            }
            waiting += came;
            let taken = waiting.min(speed);
            waiting -= taken;
            read += u64::from(taken);
            back.push_back((window.read(taken, LARGEST, rounds.last()), std::mem::take(&mut ping)));
        }
        (window.size, read)
    }

    #[test]
    fn a_window_grows_with_the_round_trip_and_not_beyond_what_helps() {
        assert_eq!(settle(8 << 10, u32::MAX, 1, u32::MAX).0, FIRST, "a short way needs no more");
        let (size, read) = settle(64 << 10, u32::MAX, 20, u32::MAX);
        assert!((1 << 21..=1 << 23).contains(&size), "{size}");
        let (size, _) = settle(256 << 10, u32::MAX, 20, u32::MAX);
        assert_eq!(size, LARGEST, "ten MiB are under way");
        assert!(read > 3600 * (64 << 10), "the sender is held up at first only: {read}");
    }

    /// What the shortest round was says nothing of the way any more; that all of the window is used does, also where the sender lets
    /// little go at a time.
    #[test]
    fn a_way_that_has_become_longer_holds_up_nobody_whose_pace_a_window_allows() {
        for rate in [900, 1200, 1800, 2048, 3000, 4096, 8192, 32 << 10] {
            let rounds = Rounds {
                shortest: Some(Duration::from_millis(4)),
                ..Rounds::default()
            };
            let (size, read) = settle_after(rounds, rate, u32::MAX, 40, u32::MAX);
            assert!(read > 3400 * u64::from(rate) && size <= GENEROUS, "{rate}: {read}, {size}");
        }
    }

    #[test]
    fn what_waits_on_the_way_makes_no_window_wider() {
        // The sender could fill any window; the way lets through what one of 512 KiB would.
        let (size, read) = settle(1 << 20, 16 << 10, 10, u32::MAX);
        assert!((1 << 20..=GENEROUS).contains(&size), "{size}");
        assert!(read > 3700 * (16 << 10), "and the way is never idle: {read}");
    }

    #[test]
    fn a_reader_that_is_slow_or_has_stopped_gets_no_more() {
        assert_eq!(settle(64 << 10, u32::MAX, 20, 100).0, FIRST);
        assert_eq!(settle(64 << 10, u32::MAX, 20, 0).0, FIRST);
    }

    /// All of a window comes at once, and is read in small pieces after that.
    #[test]
    fn bursts_that_are_read_in_time_make_it_grow() {
        let (mut window, mut rounds) = (Window::new(FIRST, &Spare::new(1 << 30).share()), Rounds::default());
        let (mut may, mut asked) = (FIRST, false);
        for turn in 0..200 {
            // The peer hears of all that was read, and of the PING, once a turn.
            let now = Duration::from_millis(turn);
            asked = std::mem::take(&mut asked) && rounds.end(now);
            let burst = std::mem::take(&mut may);
            for n in (0..burst).step_by(16 << 10).map(|from| (16 << 10).min(burst - from)) {
                asked |= window.arrive(n, rounds.present()) && rounds.begin(now);
            }
            for n in (0..burst).step_by(8 << 10).map(|from| (8 << 10).min(burst - from)) {
                may += window.read(n, LARGEST, rounds.last());
            }
        }
        assert_eq!(window.size, LARGEST);
    }

    #[test]
    fn what_is_spare_is_shared_and_given_back() {
        let spare = Spare::new(6 * FIRST as usize);
        let share = spare.share();
        let mut window = Window::new(FIRST, &share);
        let mut other = Window::new(FIRST, &share);
        let mut rounds = Rounds::default();
        assert!(rounds.begin(Duration::ZERO) && !rounds.begin(Duration::ZERO) && rounds.end(Duration::from_millis(1)));
        for window in [&mut window, &mut other] {
            assert!(!window.arrive(FIRST, rounds.present()));
        }
        assert!(!rounds.end(Duration::from_millis(2)));
        for window in [&mut window, &mut other] {
            window.read(FIRST, LARGEST, rounds.last());
        }
        assert_eq!((window.size, other.size, spare.left()), (4 * FIRST, FIRST, 3 * FIRST as usize));
        drop(window);
        assert_eq!(spare.left(), 6 * FIRST as usize);
    }

    #[test]
    fn ample_windows_are_smaller_the_less_is_left_and_all_is_given_back() {
        const ALL: usize = 64 << 20;
        let (spare, ample) = (Spare::new(0), Spare::new(ALL));
        let mut windows = Vec::new();
        let mut last = LARGEST;
        while last > 0 {
            let mut window = Window::new(FIRST, &spare.share());
            let more = window.begin_ample(16 * FIRST, &ample);
            assert!(more <= last && more <= 15 * FIRST, "{more} after {last}");
            assert!(window.has(FIRST + more) && !window.has(FIRST + more + 1));
            last = more;
            windows.push(window);
        }
        // The first has all that it asked for, and many have something.
        assert_eq!(windows[0].size, 16 * FIRST);
        assert!(windows.len() > 100, "{}", windows.len());
        assert!(ample.left() < PART * LEAST_PART);
        drop(windows);
        assert_eq!((spare.left(), ample.left()), (0, ALL));
    }

    #[test]
    fn a_tunnel_that_takes_all_it_can_leaves_as_much_to_those_that_come_after_it() {
        const ALL: usize = 256 << 20;
        const STEP: usize = 64 << 10;
        // One after the other, each takes half of what there is.
        let spare = Spare::new(ALL);
        let shares: Vec<_> = (0..10).map(|_| spare.share()).collect();
        for (n, share) in shares.iter().enumerate() {
            while share.take(STEP) {}
            assert_eq!(spare.left(), ALL >> (n + 1));
        }
        // At once, each has as much as is left beside all.
        let spare = Spare::new(ALL);
        let shares: Vec<_> = (0..15).map(|_| spare.share()).collect();
        while shares.iter().filter(|share| share.take(STEP)).count() > 0 {}
        assert!(spare.left() <= ALL / 16 + STEP * 15 && spare.left() >= ALL / 16, "{}", spare.left());
    }

    proptest! {
        /// Some take, and some give back.
        #[test]
        fn no_tunnel_takes_more_than_it_leaves_and_all_is_given_back(
            steps in proptest::collection::vec((0_usize..6, 1_usize..5000, prop::bool::weighted(0.8)), 1..500),
        ) {
            const ALL: usize = 100_000;
            let spare = Spare::new(ALL);
            let mut tunnels: Vec<_> = (0..6).map(|_| (spare.share(), Vec::new())).collect();
            for (of, bytes, takes) in steps {
                let (share, taken) = &mut tunnels[of];
                let (had, left) = (taken.iter().sum::<usize>(), spare.left());
                if !takes {
                    taken.pop().into_iter().for_each(|bytes| share.give(bytes));
                } else if share.take(bytes) {
                    taken.push(bytes);
                    prop_assert!(had + bytes <= spare.left());
                } else {
                    prop_assert!(had + bytes > left.saturating_sub(bytes), "{} of {} had {}", bytes, left, had);
                }
                let all: usize = tunnels.iter().flat_map(|(_, taken)| taken).sum();
                prop_assert_eq!(all + spare.left(), ALL);
                // However they come and go, there is something for one that has nothing.
                prop_assert!(tunnels.iter().all(|(_, taken)| taken.iter().sum::<usize>() <= ALL / 2));
                prop_assert!(spare.left() >= ALL >> 6, "{}", spare.left());
            }
            for (share, taken) in tunnels {
                taken.into_iter().for_each(|bytes| share.give(bytes));
            }
            prop_assert_eq!(spare.left(), ALL);
        }

        #[test]
        fn a_peer_never_has_more_than_its_window(steps in proptest::collection::vec((any::<bool>(), 0_u32..200_000), 1..200)) {
            let spare = Spare::new(1 << 20);
            let mut window = Window::new(FIRST, &spare.share());
            let (mut may, mut unread) = (FIRST, 0_u32);
            let mut rounds = Rounds::default();
            for (time, (send, n)) in steps.into_iter().enumerate() {
                if send {
                    prop_assert_eq!(window.has(n), n <= may);
                    if n <= may {
                        may -= n;
                        unread += n;
                        if window.arrive(n, rounds.present()) {
                            rounds.begin(Duration::from_millis(time as u64));
                        }
                    }
                } else {
                    rounds.end(Duration::from_millis(time as u64));
                    let n = n.min(unread);
                    unread -= n;
                    may += window.read(n, LARGEST, rounds.last());
                }
                prop_assert_eq!((may, unread), (window.credit, window.unread));
                prop_assert!(may + unread <= window.size && window.size - FIRST <= 1 << 20);
                prop_assert_eq!(spare.left() as u32 + (window.size - FIRST), 1 << 20);
            }
        }
    }
}
