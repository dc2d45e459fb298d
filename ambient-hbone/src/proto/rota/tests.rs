//! A thread as a runtime has it, on which tasks ask the rota: what each has to wait, and what each gets.

use std::collections::{BTreeMap, VecDeque};

use proptest::{collection::vec, prelude::*};

use super::*;

const QUANTUM: u64 = 100;

/// Wants so many turns, one right after the other, each of so long.
#[derive(Clone, Debug)]
struct Task {
    lane: usize,
    cost: u64,
    wants: u32,
    /// For how long after each; none where it has the next to do at once.
    pause: Option<u64>,
    place: Option<Place>,
    gone: bool,
}

/// What stands in the runtime's queue.
enum Entry {
    Task(usize),
    /// Whatever begins rounds.
    Round,
}

struct Thread {
    rota: Rota<usize>,
    tasks: Vec<Task>,
    queue: VecDeque<Entry>,
    /// Tasks that pause, by when each goes on.
    later: BTreeMap<u64, Vec<usize>>,
    now: u64,
    /// What each lane has had.
    had: Vec<u64>,
    asked: bool,
}

impl Thread {
    /// Lanes of tasks, each with its cost and how many turns it wants.
    fn new(lanes: &[Vec<(u64, u32)>]) -> Self {
        let mut rota = Rota::new(QUANTUM);
        let mut tasks = Vec::new();
        for of in lanes {
            let lane = rota.add();
            tasks.extend(of.iter().map(|&(cost, wants)| Task {
                lane,
                cost,
                wants,
                pause: None,
                place: None,
                gone: false,
            }));
        }
        let queue = (0..tasks.len()).map(Entry::Task).collect();
        Self {
            rota,
            tasks,
            queue,
            later: BTreeMap::new(),
            now: 0,
            had: vec![0; lanes.len()],
            asked: false,
        }
    }

    /// One entry of the queue; or, where there is none, what the runtime's driver and then its deferred tasks bring. False when
    /// nothing more is to be done.
    fn step(&mut self, driver: &mut impl FnMut(u64) -> Option<usize>) -> bool {
        match self.queue.pop_front() {
            Some(Entry::Task(task)) => self.poll(task),
            Some(Entry::Round) => {
                self.asked = false;
                let queue = &mut self.queue;
                self.rota.next_round(|task| queue.push_back(Entry::Task(task)));
                self.asked = self.rota.is_asked_for_a_round();
            }
            None => {
                if !self.asked {
                    self.idle();
                }
                // In no order that anybody could go by: here whoever has waited longest comes last.
                while let Some(due) = self.later.first_entry().filter(|due| *due.key() <= self.now) {
                    due.remove().into_iter().for_each(|task| self.queue.push_front(Entry::Task(task)));
                }
                self.queue.extend(std::iter::from_fn(|| driver(self.now)).map(Entry::Task));
                if self.asked {
                    self.queue.push_back(Entry::Round);
                }
                return !self.queue.is_empty();
            }
        }
        true
    }

    /// Nothing comes before the next of those who pause, who may have come already.
    fn idle(&mut self) {
        if let Some((due, _)) = self.later.first_key_value() {
            self.rota.idle(due.saturating_sub(self.now));
            self.now = self.now.max(*due);
        }
    }

    fn poll(&mut self, number: usize) {
        let task = &mut self.tasks[number];
        if task.gone || task.wants == 0 {
            return;
        }
        match self.rota.ask(task.lane, task.place, || number) {
            Turn::Later { place, asks } => {
                task.place = Some(place);
                self.asked |= asks;
            }
            Turn::Now => {
                self.now += task.cost;
                self.had[task.lane] += task.cost;
                task.wants -= 1;
                let next = self.rota.done(task.lane, task.place.take(), task.cost);
                match task.pause {
                    _ if task.wants == 0 => {}
                    None => self.queue.push_back(Entry::Task(number)),
                    Some(pause) => self.later.entry(self.now + pause).or_default().push(number),
                }
                self.queue.extend(next.map(Entry::Task));
            }
        }
    }

    fn drop_task(&mut self, number: usize) {
        let task = &mut self.tasks[number];
        task.gone = true;
        if let Some(place) = task.place.take() {
            let next = self.rota.leave(task.lane, place);
            self.queue.extend(next.map(Entry::Task));
        }
    }
}

/// Lanes of many tasks that want turns without end.
fn storms() -> impl Strategy<Value = Vec<Vec<(u64, u32)>>> {
    vec(vec((1..(DEBT - 1) * QUANTUM).prop_map(|cost| (cost, u32::MAX)), 1..60), 1..5)
}

fn longest(lanes: &[Vec<(u64, u32)>]) -> u64 {
    lanes.iter().flatten().map(|(cost, _)| *cost).max().unwrap_or(0)
}

proptest! {
    /// Who wants little now and then waits for what is left of a round: of each other one a quantum, and the turn by which it went
    /// beyond it.
    #[test]
    fn nobody_waits_longer_than_the_others_may_use(mut lanes in storms(), cost in 1..QUANTUM / 4, pauses in vec(1_u64..2_000, 1..30)) {
        let bound = lanes.iter().map(|of| QUANTUM + longest(std::slice::from_ref(of))).sum::<u64>();
        lanes.push(vec![(cost, 1)]);
        let mut thread = Thread::new(&lanes);
        let modest = thread.tasks.len() - 1;
        while thread.tasks[modest].wants > 0 {
            prop_assert!(thread.step(&mut |_| None));
        }
        for pause in pauses {
            let came = thread.now + pause;
            let mut due = Some(came);
            thread.tasks[modest].wants = 1;
            while thread.tasks[modest].wants > 0 {
                prop_assert!(thread.step(&mut |now| due.take_if(|due| *due <= now).map(|_| modest)));
            }
            let waited = thread.now - cost - came;
            prop_assert!(waited <= bound, "{waited} of {bound}");
        }
    }

    /// All who want as much as they can get have the same, however many tasks they have and however long their turns are.
    #[test]
    fn all_get_the_same(lanes in storms()) {
        let mut thread = Thread::new(&lanes);
        while thread.now < 200_000 {
            prop_assert!(thread.step(&mut |_| None));
        }
        let (least, most) = (thread.had.iter().min().unwrap(), thread.had.iter().max().unwrap());
        // Each may be a round ahead, and by the turn by which it went beyond its quantum.
        prop_assert!(most - least <= 2 * (QUANTUM + longest(&lanes)), "{:?}", thread.had);
    }

    /// The same where the others' tasks pause after each turn, some for no time: whether the thread has nothing to do in between or is told
    /// of the next at once.
    #[test]
    fn pauses_of_others_are_no_longer_to_wait_for(
        mut lanes in storms(),
        pauses in vec(prop_oneof![Just(0), 0..3 * QUANTUM], 1..60),
        cost in 1..QUANTUM / 4,
        comes in vec(1_u64..2_000, 1..30),
    ) {
        let bound = lanes.iter().map(|of| QUANTUM + longest(std::slice::from_ref(of))).sum::<u64>();
        lanes.push(vec![(cost, 1)]);
        let mut thread = Thread::new(&lanes);
        let modest = thread.tasks.len() - 1;
        for (task, pause) in thread.tasks[..modest].iter_mut().zip(pauses.iter().cycle()) {
            task.pause = Some(*pause);
        }
        for pause in comes {
            while thread.tasks[modest].wants > 0 {
                prop_assert!(thread.step(&mut |_| None));
            }
            let came = thread.now + pause;
            thread.tasks[modest].wants = 1;
            thread.later.entry(came).or_default().push(modest);
            while thread.tasks[modest].wants > 0 {
                prop_assert!(thread.step(&mut |_| None));
            }
            let waited = thread.now - cost - came;
            prop_assert!(waited <= bound, "{waited} of {bound}");
        }
    }

    /// Whoever comes when the thread has had nothing to do for as long as the one before had it waits for nobody.
    #[test]
    fn those_who_take_turns_with_pauses_do_not_wait(turns in vec((0_usize..4, 1..QUANTUM), 1..100)) {
        let mut rota = Rota::new(QUANTUM);
        let lanes: Vec<_> = (0..4).map(|_| rota.add()).collect();
        for (who, cost) in turns {
            prop_assert_eq!(rota.ask(lanes[who], None, || ()), Turn::Now);
            rota.done(lanes[who], None, cost);
            rota.idle(cost);
        }
        prop_assert!(!rota.was_contended());
    }

    /// Every task has all its turns, also where others go away while they wait or after they were called.
    #[test]
    fn nobody_is_forgotten(
        lanes in vec(vec((1_u64..400, 1_u32..20), 1..20), 1..5),
        gone in vec((0_usize..200, any::<prop::sample::Index>()), 0..20),
    ) {
        let mut thread = Thread::new(&lanes);
        let mut steps = 0;
        loop {
            for (_, which) in gone.iter().filter(|(at, _)| *at == steps) {
                thread.drop_task(which.index(thread.tasks.len()));
            }
            steps += 1;
            if !thread.step(&mut |_| None) && steps > 200 {
                break;
            }
        }
        prop_assert!(thread.tasks.iter().all(|task| task.gone || task.wants == 0), "{:?}", thread.tasks);
    }
}

#[test]
fn who_is_alone_waits_for_no_round_in_which_nobody_goes_on() {
    let mut thread = Thread::new(&[vec![(50 * QUANTUM, 10)]]);
    let mut steps = 0;
    while thread.step(&mut |_| None) {
        steps += 1;
    }
    assert_eq!(thread.tasks[0].wants, 0);
    assert!(steps < 10 * 8, "{steps}");
}

#[test]
fn tasks_of_one_share_go_on_in_the_order_in_which_they_asked() {
    let mut rota = Rota::new(QUANTUM);
    let lane = rota.add();
    assert_eq!(rota.ask(lane, None, || 0), Turn::Now);
    assert_eq!(rota.done(lane, None, QUANTUM), None);
    let places: Vec<_> = (1..4)
        .map(|number| match rota.ask(lane, None, || number) {
            Turn::Later { place, asks } => (place, asks),
            Turn::Now => panic!("the quantum is used"),
        })
        .collect();
    assert_eq!(places.iter().map(|(_, asks)| *asks).collect::<Vec<_>>(), [true, false, false]);
    let mut called = Vec::new();
    rota.next_round(|number| called.push(number));
    assert_eq!(called, [1]);
    // Who comes late comes last, and who is woken by something else keeps its place.
    assert!(matches!(rota.ask(lane, None, || 4), Turn::Later { .. }));
    assert!(matches!(rota.ask(lane, Some(places[1].0), || 2), Turn::Later { asks: false, .. }));
    assert_eq!(rota.ask(lane, Some(places[0].0), || 1), Turn::Now);
    assert_eq!(rota.done(lane, Some(places[0].0), 1), Some(2));
    // It goes away instead.
    assert_eq!(rota.leave(lane, places[1].0), Some(3));
}

#[test]
fn a_thread_is_shared_while_more_than_one_has_turns() {
    let mut rota = Rota::new(QUANTUM);
    let (one, other) = (rota.add(), rota.add());
    let turn = |rota: &mut Rota<()>, lane| {
        assert_eq!(rota.ask(lane, None, || ()), Turn::Now);
        rota.done(lane, None, QUANTUM / 4);
    };
    turn(&mut rota, one);
    turn(&mut rota, one);
    assert!(!rota.is_shared());
    turn(&mut rota, other);
    assert!(rota.is_shared());
    // That the other has nothing to do at the moment is not that it is gone.
    rota.next_round(drop);
    turn(&mut rota, one);
    assert!(rota.is_shared());
    rota.next_round(drop);
    turn(&mut rota, one);
    assert!(!rota.is_shared());
}

#[test]
fn a_thread_on_which_somebody_waits_is_not_idle() {
    let mut rota = Rota::new(QUANTUM);
    let (one, other) = (rota.add(), rota.add());
    for lane in [one, other] {
        assert_eq!(rota.ask(lane, None, || ()), Turn::Now);
        rota.done(lane, None, 3 * QUANTUM);
    }
    assert!(matches!(rota.ask(one, None, || ()), Turn::Later { asks: true, .. }));
    rota.idle(10 * QUANTUM);
    assert!(rota.is_shared() && rota.is_asked_for_a_round());
    assert!(
        matches!(rota.ask(other, None, || ()), Turn::Later { asks: false, .. }),
        "what it used counts"
    );
}

#[test]
fn what_somebody_has_used_is_forgotten_as_time_goes_by_in_which_nobody_wants_it() {
    for (time, goes_on) in [(QUANTUM, false), (2 * QUANTUM - 1, false), (2 * QUANTUM, true)] {
        let mut rota = Rota::new(QUANTUM);
        let lane = rota.add();
        assert_eq!(rota.ask(lane, None, || ()), Turn::Now);
        rota.done(lane, None, 2 * QUANTUM);
        // In pieces that are no round each.
        (0..time).for_each(|_| rota.idle(1));
        assert_eq!(rota.ask(lane, None, || ()) == Turn::Now, goes_on, "{time}");
    }
}

#[test]
fn a_thread_is_contended_where_somebody_who_waits_is_not_alone() {
    let mut rota = Rota::new(QUANTUM);
    let (one, other) = (rota.add(), rota.add());
    let uses_up = |rota: &mut Rota<()>, lane| {
        assert_eq!(rota.ask(lane, None, || ()), Turn::Now);
        rota.done(lane, None, QUANTUM);
        let Turn::Later { place, .. } = rota.ask(lane, None, || ()) else {
            panic!("the quantum is used")
        };
        rota.next_round(drop);
        // It has been called meanwhile, and goes.
        rota.leave(lane, place);
    };
    uses_up(&mut rota, one);
    uses_up(&mut rota, one);
    assert!(!rota.was_contended(), "it waits for itself alone");
    assert_eq!(rota.ask(other, None, || ()), Turn::Now);
    rota.done(other, None, 1);
    assert!(!rota.was_contended(), "nobody waits");
    uses_up(&mut rota, one);
    assert!(rota.was_contended());
    assert!(!rota.was_contended(), "not since");
}
