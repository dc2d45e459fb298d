mod begins;
mod claims;
mod happening;
mod squatter;
mod verified;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use self::{
    happening::{Happening, happening, places},
    squatter::{NONE, SQUATTER, Squatter},
};
use super::*;
use crate::linux::{Way, Ways};

const LISTED: Ways = Ways {
    v4: Some(Way::Listed),
    v6: None,
};
const PROOF: Proof = Proof {
    outbound: LISTED,
    inbound: LISTED,
};

/// What the actions have brought about, as the kernel and other nodes would see it.
#[derive(Default)]
struct World {
    /// What captures.
    rules: BTreeMap<NetnsId, PodUid>,
    /// What refuses.
    closed: BTreeSet<NetnsId>,
    /// Refused once, and never let go since: what is opened there is refused or captured.
    shut: BTreeSet<NetnsId>,
    listening: BTreeMap<NetnsId, PodUid>,
    proven: BTreeSet<NetnsId>,
    announced: BTreeMap<PodUid, NetnsId>,
    /// Where connections may be open: a proxy listens under rules and has not cut them.
    open: BTreeSet<NetnsId>,
    under_way: BTreeMap<NetnsId, Action>,
    /// Where something runs, whatever its pod's status says.
    runs: BTreeSet<NetnsId>,
    /// Rules that were there before this process saw the namespace.
    left_behind: BTreeMap<NetnsId, PodUid>,
}

struct Node {
    pods: Pods,
    world: World,
    now: Instant,
    known: bool,
    seen: BTreeMap<NetnsId, Vec<IpAddr>>,
    told: Vec<Notice>,
    /// What was handed over, and the address of its pod.
    given: BTreeMap<NetnsId, usize>,
    /// Where something was done since it was looked into.
    entered: BTreeSet<NetnsId>,
    squatter: Option<Squatter>,
}

impl Node {
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    fn new(left_behind: &[(u64, usize)]) -> Self {
        let mut world = World {
            runs: BTreeSet::from([id(2)]),
            ..World::default()
        };
        for (n, uid) in left_behind {
            let uid = POOL[*uid].0.into();
            world.announced.insert(PodUid::clone(&uid), id(*n));
            world.rules.insert(id(*n), uid);
        }
        // Of one process's pods no two were one.
        world.rules.retain(|n, uid| world.announced.get(uid) == Some(n));
        world.announced.retain(|uid, n| world.rules.get(n) == Some(uid));
        let now = Instant::now();
        let mut pods = Pods::new(Timing::default());
        pods.handle_announced(now, world.announced.keys().cloned());
        Self {
            pods,
            world,
            now,
            known: false,
            seen: BTreeMap::new(),
            told: Vec::new(),
            given: BTreeMap::new(),
            entered: BTreeSet::new(),
            squatter: None,
        }
    }

    /// With one pod, which is in.
    fn with_one_in() -> Self {
        let mut node = Self::new(&[]);
        node.see(&[(1, 0)]);
        node.want(&[0]);
        node.settle();
        node
    }

    /// An earlier process has announced these, and nothing else of them is left.
    fn announced(&mut self, which: &[usize]) {
        let lost = which.iter().map(|uid| (PodUid::from(POOL[*uid].0), id(NOWHERE)));
        for (uid, nowhere) in lost {
            self.world.announced.entry(uid).or_insert(nowhere);
        }
        self.pods.handle_announced(self.now, self.world.announced.keys().cloned());
    }

    fn want(&mut self, which: &[usize]) {
        self.known = true;
        let specs: Vec<PodSpec> = which.iter().map(|i| spec(*i)).collect();
        let owned = self.owned(&self.pods.seen);
        if let Some(squatter) = &mut self.squatter {
            let before = self.pods.desired.clone().unwrap_or_default();
            let new: Vec<PodSpec> = specs.iter().filter(|spec| !before.contains(spec)).cloned().collect();
            squatter.hears(&new, &owned);
        }
        self.pods.handle_desired(self.now, Some(specs.into()));
        self.look();
    }

    /// As whoever drives it looks at once for a pod that it has not looked for yet.
    fn look(&mut self) {
        if self.pods.wants_look() && self.pods.looked {
            self.tell(false, &[]);
        }
        self.poll();
    }

    fn see(&mut self, places: &[(u64, usize)]) {
        self.see_of(places, false);
    }

    fn see_of(&mut self, places: &[(u64, usize)], short: bool) {
        let addresses = |index: usize| if index == NONE { vec![] } else { vec![address_of(index)] };
        let mut fresh: BTreeMap<NetnsId, Vec<IpAddr>> = places.iter().map(|(n, index)| (id(*n), addresses(*index))).collect();
        self.given.retain(|n, _| self.pods.is_paired(*n));
        for (n, address) in &self.given {
            fresh.insert(*n, vec![address_of(*address)]);
        }
        let is_told = |n: &NetnsId| !short || self.pods.seen.contains_key(n);
        let (told, untold): (BTreeMap<_, _>, BTreeMap<_, _>) = fresh.into_iter().partition(|(n, _)| is_told(n));
        self.seen = told;
        // What refuses goes with its namespace: one that is told of again is another.
        self.world.closed.retain(|n| self.seen.contains_key(n));
        self.world.shut.retain(|n| self.seen.contains_key(n));
        let untold: Vec<IpAddr> = untold.into_values().flatten().collect();
        self.tell(short, &untold);
    }

    /// Tells what is there, but for namespaces with these addresses.
    fn tell(&mut self, short: bool, untold: &[IpAddr]) {
        for n in self.seen.keys() {
            let left = !self.pods.is_paired(*n) && self.entered.remove(n);
            if self.pods.seen.contains_key(n) && !left {
                continue;
            }
            match self.world.rules.get(n) {
                Some(uid) => self.world.left_behind.insert(*n, uid.clone()),
                None => self.world.left_behind.remove(n),
            };
        }
        self.pods.look_begins();
        let seen = self.seen.iter().map(|(n, addresses)| {
            let left_behind = self.world.left_behind.get(n).map(|uid| LeftBehind {
                pod: Some(uid.clone()),
                captures: true,
                refuses: false,
            });
            (
                *n,
                Seen {
                    whose: None,
                    addresses: addresses.clone(),
                    left_behind,
                    birth: Birth::Running,
                },
            )
        });
        let mut seen: BTreeMap<NetnsId, Seen> = seen.collect();
        let owned = (self.owned(&self.pods.seen), self.owned(&seen));
        if let Some(squatter) = &mut self.squatter {
            let his = squatter.follows(&owned.0, &owned.1, untold, |n| seen[n].addresses.is_empty());
            seen.insert(id(SQUATTER), his);
        }
        if short {
            self.pods.handle_shortage(self.now);
        }
        self.pods.handle_namespaces(self.now, seen);
        self.poll();
    }

    fn end(&mut self, which: usize, well: bool) {
        let Some(n) = self.world.under_way.keys().nth(which % self.world.under_way.len().max(1)).copied() else {
            return;
        };
        let Some(action) = self.world.under_way.remove(&n) else { return };
        let uid = action.pod.uid.clone();
        let world = &mut self.world;
        let sound = world.rules.get(&n) == Some(&uid) && world.listening.get(&n) == Some(&uid);
        let done = match action.step {
            _ if !well => Done::Failed("no".into()),
            Step::Verify if !sound => Done::Differs {
                what: "broken".into(),
                rules: world.rules.get(&n) != Some(&uid),
                listeners: world.listening.get(&n) != Some(&uid),
            },
            Step::Prove if !sound => Done::Failed("broken".into()),
            Step::Prove => Done::Proven(PROOF),
            Step::Close if action.unless_it_runs && world.runs.contains(&n) => Done::Runs,
            _ => Done::Well(Report::default()),
        };
        if matches!(done, Done::Well(_) | Done::Proven(_)) {
            match action.step {
                Step::Listen => drop(world.listening.insert(n, uid)),
                // One that is told of again after it was gone is another.
                Step::Close if self.seen.contains_key(&n) => {
                    world.closed.insert(n);
                    world.shut.insert(n);
                }
                Step::Close => (),
                Step::Enforce => {
                    world.rules.insert(n, uid);
                    world.open.insert(n);
                    if !action.closed {
                        world.closed.remove(&n);
                    }
                }
                Step::Open => {
                    world.closed.remove(&n);
                    world.proven.remove(&n);
                }
                Step::Release => {
                    world.rules.remove(&n);
                    world.closed.remove(&n);
                }
                Step::Drain => drop(world.open.remove(&n)),
                Step::Prove => drop(world.proven.insert(n)),
                Step::Announce => drop(world.announced.insert(uid, n)),
                Step::Withdraw => drop(world.announced.remove(&uid)),
                Step::Cut => drop(world.open.remove(&n)),
                Step::Clear => {
                    world.rules.remove(&n);
                    world.closed.remove(&n);
                    world.left_behind.remove(&n);
                }
                Step::Remove => drop(world.listening.remove(&n)),
                Step::Verify => (),
            }
        }
        self.pods.handle_done(self.now, SystemTime::UNIX_EPOCH, n, action.step, done);
        self.poll();
    }

    /// A second later the kernel tells of a change in a namespace.
    fn changes(&mut self, n: u64) {
        self.now += Duration::from_secs(1);
        self.pods.handle_changed(id(n));
        self.poll();
    }

    /// A step of the first ends so, whatever the world is like; nothing else is under way.
    fn done(&mut self, step: Step, done: Done) {
        self.world.under_way.clear();
        self.pods.handle_done(self.now, SystemTime::UNIX_EPOCH, id(1), step, done);
        self.poll();
    }

    /// What is captured goes on although it is waited for.
    fn linger(&mut self, which: usize) {
        let draining: Vec<NetnsId> = self
            .world
            .under_way
            .iter()
            .filter(|(_, a)| a.step == Step::Drain)
            .map(|(n, _)| *n)
            .collect();
        let Some(n) = draining.get(which % draining.len().max(1)) else {
            return;
        };
        self.world.under_way.remove(n);
        self.pods
            .handle_done(self.now, SystemTime::UNIX_EPOCH, *n, Step::Drain, Done::Unfinished);
        self.poll();
    }

    fn give(&mut self, n: u64, which: usize) {
        // Nothing has run in it, and nobody has a claim on its address but its pod.
        let others = self.seen.contains_key(&id(n)) || self.pods.is_paired(id(n)) || self.world.rules.contains_key(&id(n));
        if others || self.pods.handle_given(self.now, id(n), &spec(which)).is_err() {
            return;
        }
        self.known = true;
        self.given.insert(id(n), POOL[which].1);
        self.seen.insert(id(n), vec![address_of(POOL[which].1)]);
        self.poll();
    }

    /// Takes all output, and holds every action against what must never be.
    fn poll(&mut self) {
        for _ in 0..1000 {
            match self.pods.poll(self.now) {
                None => return,
                Some(Output::Tell(notice)) => self.told.push(notice),
                Some(Output::Do(action)) => self.check(action),
            }
            for n in &self.world.shut {
                let held = self.world.closed.contains(n) || self.world.rules.contains_key(n);
                assert!(held || !self.seen.contains_key(n), "{n} is neither refused nor captured");
            }
        }
        panic!("it never ends");
    }

    fn check(&mut self, action: Action) {
        let (n, uid, world) = (action.namespace, &action.pod.uid, &mut self.world);
        assert!(self.known, "nothing is touched until it is known what is desired");
        assert!(n != id(SQUATTER), "whoever claims an address is not taken for its pod: {action:?}");
        assert!(!world.under_way.contains_key(&n), "one thing at a time: {action:?}");
        assert!(
            world.under_way.values().all(|a| a.pod.uid != *uid),
            "a pod is in one namespace: {action:?}"
        );
        let announced_here = |world: &World| world.announced.iter().find(|(_, at)| **at == n).map(|(uid, _)| uid.clone());
        // An announcement is of a pod, wherever it is; what is left of an earlier capture may be put in force before all else.
        if matches!(action.step, Step::Listen | Step::Close | Step::Enforce)
            && let Some(at) = world.announced.get_mut(uid)
        {
            *at = n;
        }
        match action.step {
            Step::Listen | Step::Close => {
                let by_its_status = action.step == Step::Close && !action.pod.has_run;
                assert!(!action.unless_it_runs || by_its_status, "{action:?}");
                assert!(
                    announced_here(world).is_none_or(|there| there == *uid),
                    "another pod is announced here: {action:?}"
                );
                assert!(
                    world.rules.get(&n).is_none_or(|there| there == uid),
                    "another pod's rules are here: {action:?}"
                );
            }
            Step::Enforce => {
                assert!(action.enforced || world.listening.get(&n) == Some(uid), "listeners first");
                assert!(action.closed || !world.closed.contains(&n), "refused until it is proven");
                world.proven.remove(&n);
            }
            Step::Open => assert!(world.proven.contains(&n), "refused until it is proven"),
            Step::Announce => {
                assert!(world.proven.contains(&n), "proof first");
                assert!(!world.closed.contains(&n), "what is announced is served");
            }
            Step::Release | Step::Drain | Step::Cut | Step::Clear | Step::Remove => {
                assert!(
                    announced_here(world).is_none_or(|there| there != *uid),
                    "withdrawn first: {action:?}"
                );
                world.shut.remove(&n);
                let still = matches!(action.step, Step::Release | Step::Drain | Step::Cut);
                let cut = still || !world.open.contains(&n);
                assert!(cut || !self.seen.contains_key(&n), "what is open is cut under rules: {action:?}");
                let stands = action.step != Step::Cut || world.listening.get(&n).is_none_or(|there| there == uid);
                assert!(stands, "a proxy of this pod is told: {action:?}");
            }
            _ => (),
        }
        world.under_way.insert(n, action);
        self.entered.insert(n);
    }

    /// Lets everything go well until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..300 {
            self.finish();
            self.now += Duration::from_millis(500);
            self.poll();
        }
        let places: Vec<(u64, usize)> = self
            .seen
            .iter()
            .map(|(n, a)| (n.ino, (0..NONE).find(|i| a.contains(&address_of(*i))).unwrap_or(NONE)))
            .collect();
        self.see(&places);
        self.finish();
    }

    /// Ends well what is under way, and what that has begin: a look too, for a pod whose namespace it has let go.
    fn finish(&mut self) {
        while !self.world.under_way.is_empty() {
            self.end(0, true);
            self.look();
        }
    }

    fn steps(&self) -> Vec<Step> {
        self.world.under_way.values().map(|a| a.step).collect()
    }

    fn state(&self, uid: &str) -> Option<State> {
        self.pods.states().into_iter().find(|s| s.spec.uid.as_str() == uid).map(|s| s.state)
    }
}

#[test]
fn a_pod_joins_is_mended_and_leaves() {
    let mut node = Node::new(&[]);
    node.see(&[(1, 0)]);
    assert!(node.world.under_way.is_empty());
    node.want(&[0]);
    let mut steps = Vec::new();
    while let Some(action) = node.world.under_way.values().next() {
        steps.push(action.step);
        node.end(0, true);
    }
    assert_eq!(steps, [Step::Listen, Step::Enforce, Step::Prove, Step::Announce]);
    assert!(matches!(node.state("a"), Some(State::In { .. })));

    node.world.rules.clear();
    node.changes(1);
    node.settle();
    let repaired = |notice: &Notice| matches!(notice, Notice::Repaired(pod, repair) if **pod == spec(0) && repair.what == "broken");
    assert!(node.told.iter().any(repaired));
    assert_eq!(node.world.announced.len(), 1);

    node.want(&[]);
    let mut steps = Vec::new();
    while let Some(action) = node.world.under_way.values().next() {
        steps.push(action.step);
        node.end(0, true);
    }
    assert_eq!(
        steps,
        [Step::Withdraw, Step::Release, Step::Drain, Step::Cut, Step::Clear, Step::Remove]
    );
    assert!(node.world.rules.is_empty() && node.world.announced.is_empty() && node.world.listening.is_empty());
    assert_eq!(node.told.last(), Some(&Notice::Released("a".into())));
}

#[test]
fn a_proof_made_anew_changes_nothing_else() {
    let mut node = Node::with_one_in();
    assert!(node.pods.changed() && node.pods.proven(), "it has joined");
    assert!(!node.pods.changed() && !node.pods.proven(), "asked once");
    let before = node.pods.states();
    node.now += Duration::from_secs(10);
    node.poll();
    assert_eq!(node.steps(), [Step::Verify]);
    node.world.under_way.clear();
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    node.pods.handle_done(node.now, wall, id(1), Step::Verify, Done::Proven(PROOF));
    assert!(!node.pods.changed() && node.pods.proven());
    let after = node.pods.states();
    assert_ne!(before, after);
    assert!(before[0].is_but_for_proof(&after[0]));
    // What is more than that is another thing.
    let other = PodState {
        strays: 1,
        ..after[0].clone()
    };
    assert!(!before[0].is_but_for_proof(&other));
}

#[test]
fn what_is_open_is_waited_for_then_cut_and_only_then_is_anything_taken_away() {
    let mut node = Node::with_one_in();
    node.want(&[]);
    node.end(0, true);
    assert_eq!(node.steps(), [Step::Release]);
    node.end(0, true);
    let begun = node.now;
    while node.steps() == [Step::Drain] {
        assert!(node.now - begun < Duration::from_secs(31));
        node.linger(0);
        node.now += Duration::from_secs(1);
        node.poll();
    }
    assert!(node.now - begun >= Duration::from_secs(30), "what was promised to it");
    for _ in 0..20 {
        assert_eq!(node.steps(), [Step::Cut]);
        node.end(0, false);
        node.now += Duration::from_secs(6);
        node.poll();
    }
    node.settle();
    assert!(node.world.listening.is_empty() && node.world.open.is_empty());
}

#[test]
fn a_pod_that_is_wanted_again_while_it_drains_stays() {
    for ends_first in [false, true] {
        let mut node = Node::new(&[]);
        node.see(&[(1, 0)]);
        node.want(&[0]);
        node.settle();
        node.want(&[]);
        node.end(0, true);
        node.end(0, true);
        assert_eq!(node.steps(), [Step::Drain]);
        if ends_first {
            node.linger(0);
        }
        node.want(&[0]);
        node.linger(0);
        assert_eq!(node.steps(), [Step::Listen]);
        node.settle();
        assert!(matches!(node.state("a"), Some(State::In { .. })));
        assert_eq!((node.world.rules.len(), node.world.announced.len()), (1, 1));
        assert!(!node.told.iter().any(|n| matches!(n, Notice::Released(_))));
    }
}

#[test]
fn what_cannot_be_mended_is_refused_and_what_stands_is_held_while_the_proxy_is_away() {
    let mut node = Node::with_one_in();
    node.world.rules.clear();
    node.changes(1);
    node.end(0, true); // it differs
    assert_eq!(node.steps(), [Step::Enforce]);
    node.end(0, false);
    assert_eq!(node.steps(), [Step::Close], "what is not proven is refused, at once");
    node.end(0, true);
    assert!(node.pods.states()[0].closed);
    node.now += Duration::from_secs(1);
    node.poll();
    // The proxy is away, and stays so.
    let mut put_back = 0;
    for _ in 0..6 {
        if node.steps() == [Step::Withdraw] {
            node.end(0, true);
            node.now += Duration::from_secs(6);
            node.poll();
        }
        // Rules that somebody takes away meanwhile are put back without it.
        if node.steps() == [Step::Enforce] {
            assert!(node.world.under_way.values().all(|a| a.closed && a.enforced));
            put_back += 1;
            node.end(0, true);
        }
        assert_eq!(node.steps(), [Step::Listen]);
        node.end(0, false);
        node.pods.handle_changed(id(1));
        node.now += Duration::from_secs(6);
        node.poll();
    }
    assert!(put_back > 2, "{put_back}");
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })));
    assert!(node.world.closed.is_empty() && node.world.rules.len() == 1);
}

#[test]
fn by_choice_what_cannot_be_mended_goes_around() {
    let mut node = Node::new(&[]);
    node.pods = Pods::new(Timing {
        open: true,
        ..Timing::default()
    });
    node.see(&[(1, 0)]);
    node.want(&[0]);
    node.settle();
    node.changes(1);
    for _ in 0..20 {
        let steps = node.steps();
        assert_ne!(steps, [Step::Close]);
        if steps == [Step::Release] {
            node.end(0, true);
            assert!(node.world.rules.is_empty() && node.world.announced.is_empty());
            return;
        }
        node.end(0, steps == [Step::Withdraw]);
        node.now += Duration::from_secs(5);
        node.poll();
    }
    panic!("it was never let go");
}

#[test]
fn a_repair_says_what_was_put_back() {
    let mut node = Node::with_one_in();
    node.changes(1);
    let differs = Done::Differs {
        what: "table x is missing or changed".into(),
        rules: true,
        listeners: false,
    };
    node.done(Step::Verify, differs);
    node.done(Step::Enforce, Done::Well(report(Some("table x"), 2)));
    node.done(Step::Prove, Done::Proven(PROOF));
    let what = "table x is missing or changed; put back: table x; 2 connections that went around the proxy are reset";
    assert_eq!(node.pods.states()[0].strays, 2);
    let Some(Notice::Repaired(pod, repair)) = node.told.last() else {
        panic!("{:?}", node.told)
    };
    assert_eq!((&**pod, repair.what.as_str(), repair.around), (&spec(0), what, 2));
    assert_eq!(node.pods.states()[0].mended.as_deref(), Some(repair));
    assert_eq!(node.pods.states()[0].said.as_deref(), Some("table x"));
}

#[test]
fn a_capture_that_cannot_be_mended_is_taken_back() {
    let mut node = Node::with_one_in();
    node.world.rules.clear();
    node.changes(1);
    node.end(0, true); // it differs
    for _ in 0..20 {
        let step = node.world.under_way.values().next().map(|a| a.step);
        if step == Some(Step::Withdraw) {
            node.end(0, true);
            assert!(matches!(node.state("a"), Some(State::Refused { .. })), "{:?}", node.state("a"));
            assert!(node.world.announced.is_empty());
            return;
        }
        node.end(0, matches!(step, Some(Step::Listen | Step::Close)));
        node.now += Duration::from_secs(5);
        node.poll();
    }
    panic!("it was never taken back");
}

#[test]
fn a_refusal_is_told_once() {
    let mut node = Node::new(&[]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    for _ in 0..50 {
        node.end(0, false);
        node.now += Duration::from_secs(6);
        node.poll();
    }
    assert_eq!(node.told.len(), 1);
}

#[test]
fn what_another_process_left_is_taken_over_or_taken_away() {
    let mut node = Node::new(&[(1, 0), (2, 1)]);
    node.see(&[(1, 0), (2, 1)]);
    assert!(node.world.under_way.is_empty());
    node.want(&[0]);
    node.settle();
    assert_eq!(node.world.rules, BTreeMap::from([(id(1), "a".into())]));
    assert_eq!(node.world.announced, BTreeMap::from([("a".into(), id(1))]));
    let withdrawn = node.told.iter().filter(|n| matches!(n, Notice::Released(_))).count();
    assert_eq!(withdrawn, 1);
}

#[test]
fn a_namespace_that_is_gone_takes_its_announcement_along() {
    let mut node = Node::with_one_in();
    node.see(&[]);
    assert_eq!(node.world.under_way.values().map(|a| a.step).collect::<Vec<_>>(), [Step::Withdraw]);
    node.settle();
    assert!(node.world.announced.is_empty());
    assert!(matches!(node.state("a"), Some(State::Pairing { .. })));
}

#[test]
fn a_pod_that_is_somebody_else_now_is_served_anew_under_standing_rules() {
    let mut node = Node::with_one_in();
    let renamed = PodSpec {
        service_account: "other".into(),
        ..spec(0)
    };
    node.pods.handle_desired(node.now, Some(Arc::from([renamed.clone()])));
    node.now += Duration::from_secs(1);
    node.poll();
    let action = node.world.under_way.values().next().unwrap();
    assert_eq!((action.step, &*action.pod), (Step::Listen, &renamed));
    assert_eq!((node.world.rules.len(), node.world.announced.len()), (1, 1));
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })));
}

#[test]
fn a_stranger_with_a_pods_address_changes_nothing_for_it() {
    let mut node = Node::with_one_in();
    node.see(&[(1, 0), (2, 0)]);
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })));
    assert_eq!(node.world.rules.len(), 1);
}

#[test]
fn a_pod_that_is_let_go_of_where_it_was_left_behind_joins_where_it_is() {
    let mut node = Node::new(&[(1, 2)]);
    node.announced(&[0]);
    node.see(&[]);
    node.want(&[]);
    node.want(&[2, 0]);
    node.see(&[(2, 2), (1, 0)]);
    node.settle();
    let is_in = |uid| matches!(node.state(uid), Some(State::In { .. }));
    assert!(is_in("a") && is_in("c"), "{:?}", node.pods.states());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_rule_of_the_house_is_broken(
        left_behind in prop::collection::vec((1u64..4, 0usize..5), 0..3),
        announced in prop::collection::vec(0usize..5, 0..3),
        happenings in prop::collection::vec(happening(), 1..80),
        last in (prop::collection::vec(0usize..5, 0..4), places()),
    ) {
        let mut node = Node::new(&left_behind);
        node.announced(&announced);
        node.squatter = Some(Squatter::default());
        for happening in happenings {
            match happening {
                Happening::Want(which) => node.want(&which),
                Happening::See(places) => node.see(&places),
                Happening::SeeInPart(places) => node.see_of(&places, true),
                Happening::Squat(which) => {
                    node.squatter.iter_mut().for_each(|squatter| squatter.would = which.iter().map(|i| address_of(*i)).collect());
                }
                Happening::End { which, well } => node.end(which, well),
                Happening::Linger(which) => node.linger(which),
                Happening::Give(n, which) => node.give(n, which),
                // What breaks before a process has to do with it, that process cannot know of.
                Happening::Break(n) if !node.pods.is_paired(id(n)) => (),
                Happening::Break(n) => {
                    node.world.rules.remove(&id(n));
                    node.world.closed.remove(&id(n));
                    node.world.shut.remove(&id(n));
                    node.world.proven.remove(&id(n));
                    node.pods.handle_changed(id(n));
                    node.poll();
                }
                Happening::Pass(ms) => {
                    node.now += Duration::from_millis(ms);
                    node.poll();
                }
            }
        }
        node.want(&last.0);
        node.see(&last.1);
        node.settle();
        for state in node.pods.states() {
            prop_assert!(matches!(state.state, State::In { .. } | State::Pairing { .. }), "{state:?}");
        }
        for uid in node.world.announced.keys() {
            prop_assert!(matches!(node.state(uid.as_str()), Some(State::In { .. })), "{uid} {:?}", node.state(uid.as_str()));
        }
        for (n, uid) in node.world.rules.iter().filter(|(n, _)| node.seen.contains_key(n)) {
            prop_assert!(node.state(uid.as_str()).is_some(), "rules of {uid} in {n}, which is not desired");
        }
    }
}

fn report(said: Option<&str>, strays: u64) -> Report {
    Report {
        said: said.map(str::to_owned),
        strays,
        ..Report::default()
    }
}

const NOWHERE: u64 = 99;
const UNSTARTED: usize = 2;
/// Pods and the address of each: some share one.
const POOL: [(&str, usize); 5] = [("a", 0), ("b", 1), ("c", 2), ("d", 0), ("e", 1)];

fn spec(index: usize) -> PodSpec {
    let (uid, address) = POOL[index];
    PodSpec {
        uid: uid.into(),
        namespace: "shop".into(),
        name: uid.into(),
        service_account: "default".into(),
        addresses: vec![address_of(address)],
        capture: ambient_core::Capture::default(),
        // Its kubelet has not started it yet.
        has_run: index != UNSTARTED,
    }
}

fn address_of(index: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + index as u8])
}

fn id(n: u64) -> NetnsId {
    NetnsId { dev: 4, ino: n }
}
