//! The queue beside an oracle that remembers everything that happened, and works the rest out anew each time.

use proptest::prelude::*;

use super::*;

#[expect(clippy::disallowed_methods, reason = "some moment to begin with")]
fn start() -> Now {
    Now {
        steady: Instant::now(),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
    }
}

fn after(start: Now, passed: Duration) -> Now {
    Now {
        steady: start.steady + passed,
        wall: start.wall + passed,
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn day(now: Now) -> Life {
    Life::issued(now.wall, now.wall + DAY, now.wall, 0)
}

#[test]
fn who_waits_goes_before_a_warm_up_and_that_before_a_renewal() {
    let (mut queue, now) = (Queue::default(), start());
    queue.want(&"old");
    assert_eq!(queue.next(now), Some("old"));
    assert!(queue.issued(&"old", day(now), now, 0));
    queue.want(&"warm");
    queue.want(&"urgent");
    assert_eq!(queue.wait(&"urgent", now), Wait::Joined);
    let half = after(now, DAY / 2);
    let order: Vec<_> = std::iter::from_fn(|| queue.next(half)).collect();
    assert_eq!(order, ["urgent", "warm", "old"]);
}

#[test]
fn a_warm_up_for_which_somebody_comes_to_wait_moves_up() {
    let (mut queue, now) = (Queue::default(), start());
    for key in 0..10 {
        queue.want(&key);
    }
    assert_eq!(queue.wait(&9, now), Wait::Joined);
    assert_eq!(queue.wait(&9, now), Wait::Joined, "both share one request");
    assert_eq!(queue.next(now), Some(9));
    assert_eq!(queue.next(now), Some(0));
    // Whoever has left again goes as it came.
    assert_eq!(queue.wait(&8, now), Wait::Joined);
    queue.leave(&8);
    assert_eq!(queue.next(now), Some(1));
}

#[test]
fn room_is_kept_for_those_who_wait() {
    let (mut queue, now) = (Queue::default(), start());
    for key in 0..20 {
        queue.want(&key);
    }
    let unhurried: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
    assert_eq!(unhurried.len(), UNHURRIED);
    assert_eq!(queue.timeout(now), None);
    for key in 10..20 {
        assert_eq!(queue.wait(&key, now), Wait::Joined);
    }
    assert_eq!(queue.timeout(now), Some(Duration::ZERO));
    let waiting: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
    assert_eq!(waiting, [10, 11]);
    assert!(queue.issued(&10, day(now), now, 0));
    assert_eq!(queue.next(now), Some(12));
}

#[test]
fn a_failure_is_waited_out_longer_each_time_and_told_to_who_comes_meanwhile() {
    let (mut queue, mut now) = (Queue::default(), start());
    queue.want(&1);
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert_eq!(queue.next(now), Some(1));
        let wait = queue.failed(&1, Failure::Answered, now, 200).unwrap();
        waits.push(wait.as_secs());
        assert_eq!(queue.wait(&1, now), Wait::Failed(wait));
        assert_eq!((queue.next(now), queue.timeout(now)), (None, Some(wait)));
        now = after(now, wait);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
    assert_eq!(queue.next(now), Some(1));
    assert!(queue.issued(&1, day(now), now, 0));
    // All is well again: the next failure begins with the shortest wait.
    let half = after(now, DAY / 2);
    assert_eq!(queue.next(half), Some(1));
    assert_eq!(queue.failed(&1, Failure::Answered, half, 0), Some(FIRST_WAIT * 4 / 5));
    assert_eq!(queue.wait(&1, half), Wait::Held, "it is held until its end");
    let end = after(now, DAY);
    assert_eq!(queue.lacking(end.wall).collect::<Vec<_>>(), [&1]);
    assert_eq!(queue.wait(&1, end), Wait::Joined);
}

#[test]
fn who_is_wanted_again_while_it_is_asked_for_has_what_comes() {
    let (mut queue, now) = (Queue::default(), start());
    queue.want(&1);
    assert_eq!(queue.next(now), Some(1));
    queue.forget(&1);
    assert_eq!(queue.wait(&1, now), Wait::Unknown);
    queue.want(&1);
    assert_eq!(queue.next(now), None);
    assert!(queue.issued(&1, day(now), now, 0));
    queue.forget(&1);
    queue.want(&1);
    assert_eq!(queue.next(now), Some(1));
    queue.forget(&1);
    assert!(!queue.issued(&1, day(now), now, 0), "nobody wants it");
    assert!(queue.entries.is_empty());
}

#[test]
fn what_was_under_way_when_the_asking_ended_is_asked_for_again() {
    let (mut queue, now) = (Queue::default(), start());
    queue.want(&1);
    queue.want(&2);
    assert!(queue.next(now).is_some() && queue.next(now).is_some());
    queue.forget(&2);
    queue.restart();
    assert_eq!((queue.next(now), queue.next(now)), (Some(1), None));
}

#[test]
fn what_is_left_of_before_is_held_and_asked_for_at_once_after_all_that_is_more_urgent() {
    let (mut queue, now) = (Queue::default(), start());
    for key in ["left", "warm", "urgent"] {
        queue.want(&key);
    }
    let left = Life::left([now.wall, now.wall + DAY], now.wall, None);
    queue.found(&"left", left);
    assert_eq!(queue.wait(&"left", now), Wait::Held);
    assert_eq!(queue.wait(&"urgent", now), Wait::Joined);
    let order: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
    assert_eq!(order, ["urgent", "warm", "left"]);
    // An authority that is away takes nothing, and is asked again.
    let wait = queue.failed(&"left", Failure::Answered, now, 0).unwrap();
    let later = after(now, wait);
    assert_eq!((queue.wait(&"left", later), queue.next(later)), (Wait::Held, Some("left")));
    queue.found(&"nobody wants it", left);
    assert_eq!(queue.wait(&"nobody wants it", now), Wait::Unknown);
}

/// A node by a virtual clock: an authority that answers nobody from the start on, for a time, and then everybody in a tenth of a
/// second. Gives when each request was begun, and when each name was given something.
fn lives_through(queue: &mut Queue<u32>, away: Duration, until: Duration) -> (Vec<Duration>, Vec<(u32, Duration)>) {
    let begin = start();
    let (mut now, mut asked, mut given) = (begin, Vec::new(), Vec::new());
    let mut under_way: Vec<(Duration, u32)> = Vec::new();
    let mut draw = 7u64;
    while now.steady - begin.steady < until {
        let passed = now.steady - begin.steady;
        while let Some(key) = queue.next(now) {
            asked.push(passed);
            under_way.push((passed + Duration::from_millis(100), key));
        }
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let done = under_way.iter().map(|(at, _)| *at).min();
        let due = queue.timeout(now).map(|wait| passed + wait.max(Duration::from_millis(1)));
        let Some(next) = done.into_iter().chain(due).min() else { break };
        now = after(begin, next);
        let ended: Vec<u32> = under_way.extract_if(.., |(at, _)| *at <= next).map(|(_, key)| key).collect();
        for key in ended {
            if next < away {
                queue.failed(&key, Failure::Silence, now, draw >> 33);
            } else {
                assert!(queue.issued(&key, day(now), now, draw >> 33));
                given.push((key, next));
            }
        }
    }
    (asked, given)
}

#[test]
fn once_an_authority_answers_again_whoever_lacks_something_has_it_in_moments() {
    for (count, away) in [(1, 600), (1, 3600), (40, 600), (40, 7)] {
        let (mut queue, away) = (Queue::default(), Duration::from_secs(away));
        for key in 0..count {
            queue.want(&key);
        }
        let (asked, given) = lives_through(&mut queue, away, away + Duration::from_secs(200));
        assert_eq!(given.len(), count as usize);
        let last = given.iter().map(|(_, at)| *at).max().unwrap();
        // A look is a request of a tenth of a second, and then all that six at a time take.
        assert!(
            last <= away + LONGEST_SILENCE * 12 / 10 + LEAST_REST,
            "{count} after {away:?}: {last:?}"
        );
        // And nobody was stormed meanwhile: the looks, and what each name does by itself.
        let asked = asked.iter().filter(|at| **at < away).count() as u64;
        let most = away.as_secs() / 8 + 6 + u64::from(count) * (8 + away.as_secs() / 120);
        assert!(asked <= most, "{count} in {away:?}: {asked} requests");
    }
}

/// What a process before has left, of nodes that start together, or whose authority is there again: it is not asked of all in
/// the same moment, nor later than what is left of it allows.
#[test]
fn what_is_good_is_asked_for_within_a_minute_and_not_in_one_moment() {
    for away in [0, 900] {
        let (mut queue, now, away) = (Queue::default(), start(), Duration::from_secs(away));
        for key in 0..60 {
            queue.want(&key);
            // Draws as chance has them.
            let draw = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            queue.found(&key, Life::left([now.wall - DAY / 4, now.wall + DAY / 4], now.wall, Some(draw)));
        }
        let (asked, given) = lives_through(&mut queue, away, away + Duration::from_secs(400));
        assert_eq!(given.len(), 60, "each once: nothing is asked for twice");
        let first = given.iter().map(|(_, at)| *at).min().unwrap();
        let last = given.iter().map(|(_, at)| *at).max().unwrap();
        assert!(last <= first + SPREAD + Duration::from_secs(1), "{first:?} to {last:?}");
        // Of a name that is held nobody needs to know within seconds whether the authority is there.
        assert!(first <= away + Duration::from_secs(20), "{first:?}");
        for second in 0..60 {
            let from = first + Duration::from_secs(second);
            let in_one = asked
                .iter()
                .filter(|at| (from..from + Duration::from_secs(1)).contains(*at))
                .count();
            assert!(in_one <= 6, "{in_one} in the second {second} of {away:?}");
        }
    }
    // One that ends soon is asked for before that.
    let now = start();
    let minute = Duration::from_secs(60);
    for draw in 0..1000 {
        let left = Life::left([now.wall - minute, now.wall + minute / 2], now.wall, Some(draw));
        assert!(left.renew <= now.wall + minute / 4, "{left:?}");
    }
}

/// An authority that answers others and not one: that one is not asked for whenever others are answered.
#[test]
fn answers_to_others_hasten_nobody_for_ever() {
    let (mut queue, begin) = (Queue::default(), start());
    queue.want(&0);
    let mut asked = 0;
    for n in 1..=600u32 {
        let now = after(begin, Duration::from_millis(100) * n);
        queue.want(&n);
        while let Some(key) = queue.next(now) {
            if key == 0 {
                asked += 1;
                queue.failed(&0, Failure::Silence, now, 200);
            } else {
                assert!(queue.issued(&key, day(now), now, 0));
            }
        }
    }
    assert!((6..=16).contains(&asked), "{asked} times in a minute");
}

#[test]
fn what_was_asked_for_before_something_was_said_does_not_undo_that() {
    let (mut queue, now) = (Queue::default(), start());
    queue.want(&1);
    assert_eq!(queue.next(now), Some(1));
    let newer = day(after(now, DAY));
    assert!(queue.renewed(&1, newer));
    assert!(!queue.issued(&1, day(now), now, 0), "the newer one stays");
    assert_eq!(queue.entries[&1].held, Some(newer));
    queue.spoilt(&1, now.wall);
    assert_eq!(queue.next(now), Some(1));
    queue.withdrawn(&1);
    assert!(!queue.issued(&1, day(now), now, 0), "it was withdrawn");
    assert!(!queue.is_held(&1, now.wall));
    // Asked for after that, it counts.
    assert_eq!(queue.next(now), Some(1));
    assert!(queue.issued(&1, day(now), now, 0));
}

#[test]
fn a_wrong_clock_makes_no_storm_of_renewals() {
    let now = start().wall;
    let hour = Duration::from_secs(3600);
    // This clock is 13 hours ahead of the authority's: 11 of 24 hours seem to be left.
    let life = Life::issued(now - 13 * hour, now + 11 * hour, now, 0);
    assert_eq!(life.renew, now + 11 * hour / 2);
    // It is an hour behind.
    let life = Life::issued(now + hour, now + 25 * hour, now, 0);
    assert_eq!(life.renew, now + 13 * hour);
    let life = Life::issued(now, now, now, 999);
    assert_eq!(life.renew, now + LEAST_LIFE);
}

/// An authority whose clock is another gives what holds later, or held before: it is asked again, and not without end.
#[test]
fn what_does_not_hold_now_is_asked_for_again_without_a_storm() {
    let hour = Duration::from_secs(3600);
    for (begin, end) in [(hour, DAY), (hour / 2, hour)] {
        let (mut queue, start) = (Queue::default(), start());
        queue.want(&1);
        // Of the first pair it begins in an hour, of the second it ended half an hour ago.
        let (begin, end) = match end == DAY {
            true => (start.wall + begin, start.wall + end),
            false => (start.wall - end, start.wall - begin),
        };
        let (mut now, mut asked) = (start, 0);
        while now.wall < start.wall + hour / 2 {
            if let Some(key) = queue.next(now) {
                asked += 1;
                assert!(queue.issued(&key, Life::issued(begin, end, now.wall, 0), now, 500));
                assert_eq!((queue.next(now), queue.lacking(now.wall).count()), (None, 1));
                assert!(matches!(queue.wait(&1, now), Wait::Failed(_)));
            }
            now = after(now, queue.timeout(now).unwrap().max(Duration::from_millis(1)));
        }
        assert!((15..25).contains(&asked), "{asked} requests in half an hour");
        // What begins later holds then, whatever was asked for since.
        let then = after(start, hour);
        assert_eq!(queue.wait(&1, then) == Wait::Held, begin <= then.wall && then.wall < end);
    }
}

/// A clock that is set back past the beginning of what is held.
#[test]
fn what_a_clock_that_is_set_back_leaves_without_is_asked_for_at_once() {
    let (mut queue, now) = (Queue::default(), start());
    queue.want(&1);
    assert_eq!(queue.next(now), Some(1));
    assert!(queue.issued(&1, day(now), now, 0));
    assert_eq!((queue.next(now), queue.wait(&1, now)), (None, Wait::Held));
    let back = Now {
        wall: now.wall - DAY,
        ..now
    };
    assert_eq!((queue.lacking(back.wall).count(), queue.timeout(back)), (1, Some(Duration::ZERO)));
    assert_eq!((queue.wait(&1, back), queue.next(back)), (Wait::Joined, Some(1)));
    assert!(queue.issued(&1, day(back), back, 0));
    assert_eq!(queue.wait(&1, back), Wait::Held);
}

proptest! {
    /// The next one is asked for between 45 and 50 % of a life, and never before.
    #[test]
    fn renewals_are_spread_below_the_half(seconds in 1..10_000_000u64, draw: u64) {
        let now = start().wall;
        let life = Duration::from_secs(seconds);
        let renew = Life::issued(now, now + life, now, draw).renew.duration_since(now).unwrap();
        prop_assert!(renew <= life / 2 && renew >= life * 449 / 1000, "{renew:?} of {life:?}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Want(u8),
    Forget(u8),
    Wait(u8),
    Leave(u8),
    /// Asks for all there is room for.
    Ask,
    Issued(u8, u64),
    Failed(u8, bool, u64),
    Found(u8, u64),
    Renewed(u8, u64),
    Withdrawn(u8),
    Pass(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..14u8;
    prop_oneof![
        5 => key.clone().prop_map(Step::Want),
        1 => key.clone().prop_map(Step::Forget),
        4 => key.clone().prop_map(Step::Wait),
        2 => key.clone().prop_map(Step::Leave),
        6 => Just(Step::Ask),
        4 => (key.clone(), 1..300u64).prop_map(|(key, life)| Step::Issued(key, life)),
        3 => (key.clone(), any::<bool>(), any::<u64>()).prop_map(|(key, silence, draw)| Step::Failed(key, silence, draw)),
        1 => (key.clone(), 1..300u64).prop_map(|(key, life)| Step::Found(key, life)),
        2 => (key.clone(), 1..300u64).prop_map(|(key, life)| Step::Renewed(key, life)),
        2 => key.prop_map(Step::Withdrawn),
        3 => (0..120u64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

/// What is known of one name, by what has happened to it.
#[derive(Clone, Debug, Default)]
struct Told {
    wanted: bool,
    /// Who waits, by when each came.
    waiting: Vec<u64>,
    came: u64,
    life: Option<Life>,
    under_way: Option<Urgency>,
    /// What came or was taken since it was asked for.
    spoken: bool,
    failed: u32,
    again: Option<Instant>,
    /// When nobody has answered, where that was the last of it.
    unanswered: Option<Instant>,
}

impl Told {
    fn held(&self, now: Now) -> bool {
        self.life.is_some_and(|life| life.begin <= now.wall && now.wall < life.end)
    }

    fn order(&self, now: Now, looks: bool) -> Option<(Urgency, u64, u64)> {
        let looked_for = looks && self.unanswered.is_some() && !self.held(now);
        let rests = self.again.is_some_and(|again| now.steady < again) && !looked_for;
        if !self.wanted || self.under_way.is_some() || rests {
            return None;
        }
        if self.held(now) {
            let renew = self.life?.renew.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            return (self.life?.renew <= now.wall).then_some((Urgency::Renewal, renew.as_nanos() as u64, self.came));
        }
        let urgency = if self.waiting.is_empty() {
            Urgency::WarmUp
        } else {
            Urgency::Waiting
        };
        Some((urgency, 0, self.came))
    }
}

/// After a silence somebody was answered: none of those who were not waits for longer than it takes to spread what is held.
fn answered(told: &mut [Told], queue: &Queue<u8>, now: Now) -> Result<(), TestCaseError> {
    for (key, one) in (0..).zip(told) {
        let held = one.held(now);
        let (Some(unanswered), Some(again)) = (one.unanswered.take(), one.again) else {
            continue;
        };
        let present = queue.entries[&key].again.unwrap();
        if held {
            prop_assert!(present <= again && present <= now.steady + SPREAD);
            one.again = Some(present);
        } else {
            one.again = Some(again.min(now.steady.max(unanswered + Duration::from_secs(5))));
            prop_assert_eq!(Some(present), one.again);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_queue_does_as_the_oracle_says(steps in prop::collection::vec(step(), 0..120)) {
        let mut now = start();
        let (mut queue, mut told) = (Queue::default(), vec![Told::default(); 14]);
        // Since when nobody answers, by how often it was looked, and when it is again.
        let mut silence: Option<(u32, Instant)> = None;
        let mut clock = 0;
        for step in steps {
            clock += 1;
            match step {
                Step::Want(key) => {
                    queue.want(&key);
                    let one = &mut told[usize::from(key)];
                    if !one.wanted && one.under_way.is_none() {
                        *one = Told { came: clock, ..Told::default() };
                    }
                    one.wanted = true;
                }
                Step::Forget(key) => {
                    queue.forget(&key);
                    let one = &mut told[usize::from(key)];
                    (one.wanted, one.life) = (false, None);
                    if one.under_way.is_none() {
                        *one = Told::default();
                    }
                }
                Step::Wait(key) => {
                    let one = &mut told[usize::from(key)];
                    let rests = one.again.filter(|again| one.under_way.is_none() && now.steady < *again);
                    let wanted = match (one.wanted, one.held(now), rests) {
                        (false, ..) => Wait::Unknown,
                        (_, true, _) => Wait::Held,
                        (_, _, Some(again)) => Wait::Failed(again - now.steady),
                        _ => Wait::Joined,
                    };
                    prop_assert_eq!(queue.wait(&key, now), wanted);
                    if wanted == Wait::Joined {
                        if one.waiting.is_empty() {
                            one.came = clock;
                        }
                        one.waiting.push(clock);
                    }
                }
                Step::Leave(key) => {
                    queue.leave(&key);
                    told[usize::from(key)].waiting.pop();
                }
                Step::Ask => loop {
                    let under_way: Vec<_> = told.iter().filter_map(|one| one.under_way).collect();
                    let unhurried = under_way.iter().filter(|urgency| **urgency != Urgency::Waiting).count();
                    let looks = under_way.is_empty() && silence.is_some_and(|(_, again)| again <= now.steady);
                    let eligible = told.iter().enumerate().filter_map(|(key, one)| Some((one.order(now, looks)?, key)));
                    let first = eligible
                        .filter(|((urgency, ..), _)| *urgency == Urgency::Waiting || unhurried < UNHURRIED)
                        .min()
                        .filter(|_| under_way.len() < AT_ONCE);
                    let asked = queue.next(now);
                    prop_assert_eq!(asked.map(usize::from), first.map(|(_, key)| key));
                    let Some(((urgency, ..), key)) = first else { break };
                    (told[key].under_way, told[key].spoken) = (Some(urgency), false);
                },
                Step::Issued(key, seconds) => {
                    let one = &mut told[usize::from(key)];
                    if one.under_way.take().is_none() {
                        continue;
                    }
                    let life = Life::issued(now.wall, now.wall + Duration::from_secs(seconds), now.wall, 0);
                    prop_assert_eq!(queue.issued(&key, life, now, 0), one.wanted && !one.spoken);
                    match (one.wanted, one.spoken) {
                        // They begin when they come, and none is set back here.
                        (true, false) => {
                            (one.life, one.failed, one.again, one.unanswered) = (Some(life), 0, None, None);
                            silence.take().is_some().then(|| answered(&mut told, &queue, now)).transpose()?;
                        }
                        (true, true) => {}
                        (false, _) => *one = Told::default(),
                    }
                }
                Step::Found(key, seconds) => {
                    let end = now.wall + Duration::from_secs(seconds);
                    queue.found(&key, Life::left([now.wall, end], now.wall, None));
                    let one = &mut told[usize::from(key)];
                    if one.wanted {
                        one.life = Some(Life {
                            begin: now.wall,
                            renew: now.wall,
                            end,
                        });
                    }
                }
                Step::Renewed(key, seconds) => {
                    let life = Life::issued(now.wall, now.wall + Duration::from_secs(seconds), now.wall, 0);
                    let one = &mut told[usize::from(key)];
                    prop_assert_eq!(queue.renewed(&key, life), one.wanted);
                    if one.wanted {
                        (one.life, one.failed, one.again, one.spoken) = (Some(life), 0, None, true);
                        one.unanswered = None;
                    }
                }
                Step::Withdrawn(key) => {
                    queue.withdrawn(&key);
                    let one = &mut told[usize::from(key)];
                    (one.life, one.spoken) = (None, true);
                }
                Step::Failed(key, silent, draw) => {
                    let one = &mut told[usize::from(key)];
                    if one.under_way.take().is_none() {
                        continue;
                    }
                    let failure = if silent { Failure::Silence } else { Failure::Answered };
                    let wait = queue.failed(&key, failure, now, draw);
                    prop_assert_eq!(wait.is_some(), one.wanted);
                    let Some(wait) = wait else {
                        *one = Told::default();
                        continue;
                    };
                    let wanted = FIRST_WAIT.as_secs_f64() * 2f64.powi(one.failed.try_into().unwrap());
                    let wanted = wanted.min(LONGEST_WAIT.as_secs_f64());
                    prop_assert!((0.79..=1.21).contains(&(wait.as_secs_f64() / wanted)), "{wait:?}, and not about {wanted} s");
                    one.failed += 1;
                    (one.again, one.came) = (Some(now.steady + wait), clock);
                    one.unanswered = silent.then_some(now.steady);
                    match (silent, silence) {
                        (false, None) => {}
                        (false, Some(_)) => {
                            silence = None;
                            answered(&mut told, &queue, now)?;
                        }
                        (true, Some((_, again))) if now.steady < again => {}
                        (true, _) => {
                            let looks = silence.map_or(0, |(looks, _)| looks + 1);
                            let wanted = FIRST_WAIT.as_secs_f64() * 2f64.powi(looks.try_into().unwrap());
                            let wanted = wanted.min(LONGEST_SILENCE.as_secs_f64());
                            let again = queue.silence.unwrap().again;
                            let wait = (again - now.steady).as_secs_f64();
                            prop_assert!((0.79..=1.21).contains(&(wait / wanted)), "{wait} s, and not about {wanted} s");
                            silence = Some((looks, again));
                        }
                    }
                }
                Step::Pass(seconds) => now = after(now, Duration::from_secs(seconds)),
                Step::Restart => {
                    queue.restart();
                    for one in &mut told {
                        one.under_way = None;
                        if !one.wanted {
                            *one = Told::default();
                        }
                    }
                }
            }
            let lacking = queue.lacking(now.wall).count();
            prop_assert_eq!(lacking, told.iter().filter(|one| one.wanted && !one.held(now)).count());
            // Whoever sleeps as long as it is told to misses nothing, and is not woken for nothing.
            let mut then = queue.timeout(now).map(|wait| after(now, wait));
            if let Some(then) = then.take() {
                let idle = told.iter().all(|one| one.under_way.is_none());
                let looks = idle && silence.is_some_and(|(_, again)| again <= then.steady);
                let due = told.iter().any(|one| one.order(then, looks).is_some());
                prop_assert!(due, "nothing is due at {then:?}");
            }
        }
    }
}
