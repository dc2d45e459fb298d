//! Who is served at a listener of pages: so many at once, and nobody is kept out by who says nothing, asks for all, or does not read.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::AbortHandle;

/// Clients of one listener at once.
pub(super) const MOST: usize = 8;

/// For how long a client may let what it is answered wait, where somebody else waits for its place; and from the moment on that it
/// takes so many bytes of it, once more as long.
const INDULGENCE: Duration = Duration::from_secs(2);
const REAL_AMOUNT: usize = 64 << 10;
/// And for how long in all, however steadily it takes it.
const LONGEST: Duration = Duration::from_secs(10);

/// Those of one listener, the oldest first; and those who wait for a place, each with what it came with.
#[derive(Debug)]
pub(super) struct Clients<T> {
    present: Vec<Client>,
    waiting: Vec<(IpAddr, T)>,
}

#[derive(Debug)]
struct Client {
    from: IpAddr,
    course: Course,
    serving: AbortHandle,
}

/// How far a client is.
#[derive(Clone, Debug, Default)]
pub(super) struct Course(Arc<Mutex<Reached>>);

#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    asked: bool,
    /// How long it has let what it is answered wait in all, and since when it does so now.
    in_all: Duration,
    waits: Option<Instant>,
    /// How long of that since it has last taken a real amount, and what it has taken since.
    stalled: Duration,
    taken: usize,
}

impl Course {
    /// Its request is there.
    pub(super) fn has_asked(&self) {
        self.reached().asked = true;
    }

    /// It takes so many bytes of what it is answered.
    pub(super) fn takes(&self, bytes: usize, now: Instant) {
        let mut reached = self.reached();
        if let Some(since) = reached.waits.take() {
            let waited = now.saturating_duration_since(since);
            reached.in_all += waited;
            reached.stalled += waited;
        }
        reached.taken = reached.taken.saturating_add(bytes);
        if reached.taken >= REAL_AMOUNT {
            (reached.stalled, reached.taken) = (Duration::ZERO, 0);
        }
    }

    /// It takes nothing now.
    pub(super) fn stalls(&self, now: Instant) {
        self.reached().waits.get_or_insert(now);
    }

    fn reached(&self) -> MutexGuard<'_, Reached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Clients<T> {
    fn default() -> Self {
        Self {
            present: Vec::new(),
            waiting: Vec::new(),
        }
    }
}

impl<T> Clients<T> {
    /// Takes note of one more, who waits for a place: at most one of an address does, once those were let in for whom there is one,
    /// the one that came last, as who has ceased to wait may come again; and no more than there are places.
    pub(super) fn come(&mut self, from: IpAddr, with: T) {
        self.waiting.push((from, with));
    }

    /// The first of those who wait for whom there is a place, after somebody had to go for it where that is just.
    pub(super) fn admit(&mut self, now: Instant) -> Option<(IpAddr, T)> {
        let found = (0..self.waiting.len()).find(|at| self.make_room(self.waiting[*at].0, now));
        if let Some(at) = found {
            return Some(self.waiting.remove(at));
        }
        // Of whoever came last: all before it were few enough, and of an address each.
        if let Some(((last, _), before)) = self.waiting.split_last() {
            if let Some(older) = before.iter().position(|(from, _)| from == last) {
                // Has its turn.
                self.waiting.swap_remove(older);
            } else if before.len() >= MOST {
                self.waiting.pop();
            }
        }
        None
    }

    /// Whether somebody waits for a place.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One more is served.
    pub(super) fn enter(&mut self, from: IpAddr, course: Course, serving: AbortHandle) {
        self.present.push(Client { from, course, serving });
    }

    fn make_room(&mut self, from: IpAddr, now: Instant) -> bool {
        self.present.retain(|client| !client.serving.is_finished());
        if self.present.len() < MOST {
            return true;
        }
        let present: Vec<_> = self.present.iter().map(|client| client.at(now)).collect();
        let Some(at) = who_goes(&present, from) else { return false };
        self.present.remove(at).serving.abort();
        true
    }
}

impl Client {
    fn at(&self, now: Instant) -> Present {
        let reached = *self.course.reached();
        let since = reached.waits.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        Present {
            from: self.from,
            asked: reached.asked,
            stalled: reached.stalled + since,
            in_all: reached.in_all + since,
        }
    }
}

/// A client as it is at a moment.
#[derive(Clone, Copy, Debug)]
struct Present {
    from: IpAddr,
    asked: bool,
    stalled: Duration,
    in_all: Duration,
}

impl Present {
    /// Whether it has let its answer wait for too long.
    fn is_slow(&self) -> bool {
        self.stalled >= INDULGENCE || self.in_all >= LONGEST
    }
}

/// Who has to go for one more, of clients of whom the oldest comes first. Where an address has two more than the new one's: of the one
/// that has most the oldest that has not asked, else the oldest. Where none has: of those of addresses that have more than the new
/// one's, and of its own, whoever has let its answer wait for longest, if that is long; else the oldest that has not asked.
fn who_goes(present: &[Present], new: IpAddr) -> Option<usize> {
    let of = |address: IpAddr| present.iter().filter(|client| client.from == address).count();
    let silent = |address: IpAddr| present.iter().position(|client| client.from == address && !client.asked);
    // Of several that have as many, the one that has one who is silent, and was there first.
    let most = present.iter().rev().map(|client| client.from);
    let most = most.max_by_key(|from| (of(*from), silent(*from).is_some()))?;
    if of(new) + 1 < of(most) {
        return silent(most).or_else(|| present.iter().position(|client| client.from == most));
    }
    let has_to = |client: &Present| client.is_slow() && (client.from == new || of(client.from) > of(new));
    let slow = present.iter().enumerate().filter(|(_, client)| has_to(client));
    let slowest = slow
        .rev()
        .max_by_key(|(_, client)| (client.stalled, client.in_all))
        .map(|(at, _)| at);
    let of_whom = if of(new) < of(most) { most } else { new };
    slowest.or_else(|| silent(of_whom))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(c: char) -> IpAddr {
        IpAddr::from([10, 0, 0, c.to_ascii_lowercase() as u8])
    }

    /// Each client by its address, in capitals if it has asked.
    fn goes(present: &str, new: char) -> Option<usize> {
        slow_goes(present, &[], new)
    }

    /// The same, of whom some have let their answers wait for so many seconds.
    fn slow_goes(present: &str, waited: &[(usize, u64)], new: char) -> Option<usize> {
        let client = |(at, c): (usize, char)| {
            let waited = Duration::from_secs(waited.iter().filter(|(of, _)| *of == at).map(|(_, seconds)| seconds).sum());
            Present {
                from: address(c),
                asked: c.is_ascii_uppercase(),
                stalled: waited,
                in_all: waited,
            }
        };
        let present: Vec<_> = present.chars().enumerate().map(client).collect();
        who_goes(&present, address(new))
    }

    #[test]
    fn nobody_is_kept_out_by_who_is_silent_or_greedy() {
        for (present, new, gone) in [
            ("", 'a', None),
            // One address, as on a loopback: who says nothing goes, and who is being answered stays.
            ("aaaaaaaa", 'a', Some(0)),
            ("AAaaaaaa", 'a', Some(2)),
            ("AAAAAAAA", 'a', None),
            // Somebody else is never kept out by it.
            ("aaaaaaaa", 'b', Some(0)),
            ("AAAaAAAA", 'b', Some(3)),
            ("AAAAAAAA", 'b', Some(0)),
            // Until both have as many.
            ("AAAAABBB", 'b', Some(0)),
            ("AAAABBBB", 'b', None),
            ("BAAAABBB", 'a', None),
            ("AAAAbBBB", 'b', Some(4)),
            ("AAAAbBBB", 'a', None),
            // As many addresses as there is room for: those that say nothing.
            ("abcdefgh", 'i', Some(0)),
            ("ABCDEfGH", 'i', Some(5)),
            ("ABCDEFGH", 'i', None),
        ] {
            assert_eq!(goes(present, new), gone, "{present} and {new}");
        }
    }

    #[test]
    fn who_does_not_read_goes_for_somebody_else() {
        for (present, waited, new, gone) in [
            // Nobody for long: who has come waits.
            ("ABCDEFGH", &[(3, 1)][..], 'i', None),
            ("ABCDEFGH", &[(1, 2), (3, 9), (4, 9)], 'i', Some(3)),
            // Before one who may be about to ask.
            ("ABCDEFgH", &[(3, 9)], 'i', Some(3)),
            // One's own, and nobody else's who has as many.
            ("ABCDEFGH", &[(3, 9)], 'd', Some(3)),
            ("ABCDEFGH", &[(3, 9)], 'e', None),
            ("AAAAAAAA", &[(3, 9)], 'a', Some(3)),
            ("AAAABBBH", &[(3, 9)], 'b', Some(3)),
            ("AABBCCDH", &[(2, 8), (6, 9)], 'h', Some(2)),
            // Who has many goes first, as it did.
            ("AAABCDEF", &[(5, 9)], 'i', Some(0)),
        ] {
            assert_eq!(slow_goes(present, waited, new), gone, "{present} and {new}");
        }
    }

    /// A client's course, and how it stands with it.
    fn followed() -> (Course, impl Fn(Instant) -> Present) {
        let course = Course::default();
        let client = Client {
            from: address('a'),
            course: course.clone(),
            serving: tokio::task::JoinSet::<()>::new().spawn_on(async {}, tokio::runtime::Runtime::new().unwrap().handle()),
        };
        (course, move |now| client.at(now))
    }

    #[test]
    fn how_long_an_answer_has_waited_is_added_up() {
        let start = crate::clock::steady();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (course, client) = followed();
        let waited = |now| {
            let Present { stalled, in_all, .. } = client(at(now));
            (stalled.as_secs(), in_all.as_secs())
        };
        course.takes(1, at(1));
        assert_eq!(waited(9), (0, 0));
        course.stalls(at(10));
        course.stalls(at(12));
        assert_eq!(waited(13), (3, 3));
        // A few bytes at a time do not count.
        course.takes(1, at(14));
        course.takes(1, at(15));
        assert_eq!(waited(20), (4, 4));
        course.stalls(at(30));
        assert_eq!(waited(31), (5, 5));
        course.takes(REAL_AMOUNT, at(32));
        assert_eq!(waited(33), (0, 6));
        course.stalls(at(40));
        assert_eq!(waited(41), (1, 7));
    }

    #[test]
    fn who_reads_a_long_answer_steadily_stays() {
        let start = crate::clock::steady();
        let (course, client) = followed();
        // A quarter of it at a time, and a second for it: as steady, and too little.
        for (amount, stays_for) in [(REAL_AMOUNT, LONGEST), (REAL_AMOUNT / 4, INDULGENCE)] {
            *course.reached() = Reached::default();
            let (mut now, mut waited) = (start, Duration::ZERO);
            while !client(now).is_slow() {
                course.stalls(now);
                let wait = Duration::from_millis(500);
                (now, waited) = (now + wait, waited + wait);
                if client(now).is_slow() {
                    break;
                }
                course.takes(amount / 2, now);
                // As fast as it is written.
                now += wait;
                course.takes(amount / 2, now);
            }
            assert_eq!(waited, stays_for, "{amount}");
        }
    }

    #[tokio::test]
    async fn who_comes_to_full_places_waits_for_one_of_each_address() {
        let start = crate::clock::steady();
        let (mut clients, mut serving) = (Clients::<u32>::default(), tokio::task::JoinSet::new());
        let mut courses = Vec::new();
        for c in 'A'..='H' {
            clients.come(address(c), 0);
            let (from, _) = clients.admit(start).unwrap();
            let course = Course::default();
            course.has_asked();
            courses.push(course.clone());
            clients.enter(from, course, serving.spawn(std::future::pending::<()>()));
        }
        for (n, c) in ('i'..='z').enumerate() {
            for again in [0, 100] {
                clients.come(address(c), n as u32 + again);
                assert_eq!(clients.admit(start), None);
            }
        }
        // In the turn of the first: that one may have ceased to wait.
        let waiting: Vec<_> = ('i'..='p').zip(100..).map(|(c, n)| (address(c), n)).collect();
        assert_eq!(clients.waiting, waiting, "of each address the last");
        // One is done, and another reads no more.
        courses[5].stalls(start);
        clients.present[2].serving.abort();
        assert!(serving.join_next().await.unwrap().unwrap_err().is_cancelled());
        let mut let_in = |now| {
            clients.admit(now).map(|(from, n)| {
                clients.enter(from, Course::default(), serving.spawn(std::future::pending::<()>()));
                (from, n)
            })
        };
        assert_eq!(let_in(start), Some((address('i'), 100)));
        assert_eq!(let_in(start + INDULGENCE), Some((address('j'), 101)));
    }
}
