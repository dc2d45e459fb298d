//! Decisions against the plain evaluator, and what must hold of any policies.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::sync::Arc;

use ambient_authz::{
    Conn, Decision, Peer, Policies, Policy, Scope, Target, decide, decide_again, dry_run, policy::Unreadable, policy::Update,
};
use ambient_core::{PolicyKey, Workload};
use proptest::{collection::vec, prelude::*, sample::select};

#[path = "support/plain.rs"]
mod plain;
#[path = "support/random.rs"]
mod random;

use plain::Plain;
use random::{Ends, Random, Shape};

const SMALL: Shape = Shape {
    keys: 8,
    most_rules: 3,
    sparse: 4,
};

/// So many rules of so few values that decisions go over bitmaps.
const CROWDED: Shape = Shape {
    keys: 700,
    most_rules: 10,
    sparse: 3,
};

fn conn<'a>(peer: &'a Peer, ends: &Ends) -> Conn<'a> {
    Conn {
        peer,
        source: ends.1,
        destination: (ends.2, ends.3).into(),
    }
}

/// A history of updates in random batches: the engine's snapshot and the plain evaluator after each.
struct History {
    random: Random,
    shape: Shape,
    policies: Policies,
    plain: Plain,
    /// Everyone who ever connected, as resolved by some earlier snapshot.
    connections: Vec<(Ends, Peer)>,
    /// Some workloads, as some earlier snapshot saw them.
    targets: Vec<Target>,
}

impl History {
    fn new(seed: u64, shape: Shape, connections: usize) -> Self {
        let mut random = Random(seed);
        let istio_exact = random.once_in(4);
        let mut plain = Plain::new(istio_exact);
        let mut policies = match istio_exact {
            true => Policies::istio_exact(),
            false => Policies::default(),
        };
        if random.once_in(4) {
            plain.lets_unreadable_go = true;
            policies = policies.letting_unreadable_go();
        }
        if random.once_in(2) {
            policies = policies.by_bitmaps();
        }
        let ends: Vec<_> = (0..connections).map(|_| random::ends(&mut random)).collect();
        let targets = (0..8).map(|_| policies.target(&random::workload(&mut random, shape).into()));
        Self {
            connections: ends.into_iter().map(|ends| (ends.clone(), ends.0.into())).collect(),
            targets: targets.collect(),
            random,
            shape,
            policies,
            plain,
        }
    }

    /// Brings a batch in.
    fn step(&mut self, batch: usize) {
        let batch: Vec<_> = (0..batch).map(|_| random::update(&mut self.random, self.shape)).collect();
        batch.iter().for_each(|update| self.plain.take(update));
        self.policies = self.policies.apply(batch);
        if self.random.once_in(4) {
            self.plain.waited = true;
            self.policies = self.policies.stop_waiting().0;
        }
        // Some peers are resolved anew; the others become stale, once names come or go.
        for (ends, peer) in &mut self.connections {
            if self.random.once_in(3) {
                *peer = self.policies.resolve(ends.0.as_ref());
            }
        }
        for target in &mut self.targets {
            if self.random.once_in(3) {
                *target = self.policies.target(target.workload());
            }
        }
    }

    /// Compares all connections to some workloads; gives how many pairs that were.
    fn compare(&mut self, workloads: usize) -> usize {
        let workloads: Vec<_> = (0..workloads).map(|_| random::workload(&mut self.random, self.shape)).collect();
        for (ends, peer) in &self.connections {
            let conn = conn(peer, ends);
            let matching = self.plain.matching(&conn);
            for workload in &workloads {
                let (again, told) = (self.random.once_in(4), [decide, decide_again]);
                let decision = told[usize::from(again)](&self.policies, workload, &conn);
                let plain = self.plain.decide(workload, &conn, &matching, again);
                assert_eq!(decision, plain, "{ends:?} to {workload:?}, again: {again}");
            }
            for target in &self.targets {
                let (again, workload) = (self.random.once_in(4), target.workload());
                let decision = match again {
                    true => target.decide_again(&self.policies, &conn),
                    false => target.decide(&self.policies, &conn),
                };
                let plain = self.plain.decide(workload, &conn, &matching, again);
                assert_eq!(decision, plain, "{ends:?} to {workload:?}, again: {again}");
                assert_eq!(target.dry_run(&self.policies, &conn), dry_run(&self.policies, workload, &conn));
            }
        }
        self.connections.len() * (workloads.len() + self.targets.len())
    }
}

/// However updates are cut into batches, decisions are those of the plain evaluator, to the policy, the rule and the
/// verdicts in dry run, for peers of any age.
fn small_histories(seed: u64) {
    let mut pairs = 0;
    for seed in (0..).map(|i| seed << 32 | i) {
        let mut history = History::new(seed, SMALL, 24);
        for _ in 0..6 {
            let batch = 1 + history.random.below(4);
            history.step(batch);
            pairs += history.compare(16);
        }
        // Of a fresh build all policies are those that were put in.
        let rebuilt = Policies::default().apply(history.policies.iter().map(|policy| Update::Set(policy.into())));
        assert!(rebuilt.iter().eq(history.policies.iter()), "seed {seed}");
        if pairs >= 260_000 {
            break;
        }
    }
}

#[test]
fn a_million_pairs_are_decided_as_by_the_plain_evaluator_1() {
    small_histories(1);
}

#[test]
fn a_million_pairs_are_decided_as_by_the_plain_evaluator_2() {
    small_histories(2);
}

#[test]
fn a_million_pairs_are_decided_as_by_the_plain_evaluator_3() {
    small_histories(3);
}

#[test]
fn a_million_pairs_are_decided_as_by_the_plain_evaluator_4() {
    small_histories(4);
}

#[test]
fn crowded_sets_are_decided_as_by_the_plain_evaluator() {
    for seed in 0..3 {
        let mut history = History::new(seed, CROWDED, 12);
        history.step(900);
        history.compare(8);
        for _ in 0..4 {
            history.step(40);
            history.compare(8);
        }
    }
}

fn set(seed: u64) -> Update {
    let mut random = Random(seed);
    random::update(&mut random, SMALL)
}

fn updates(most: usize) -> impl Strategy<Value = Vec<Update>> {
    vec(any::<u64>().prop_map(set), 0..most)
}

fn workload() -> impl Strategy<Value = Workload> {
    any::<u64>().prop_map(|seed| random::workload(&mut Random(seed), SMALL))
}

fn ends() -> impl Strategy<Value = Ends> {
    any::<u64>().prop_map(|seed| random::ends(&mut Random(seed)))
}

fn key() -> impl Strategy<Value = PolicyKey> {
    select(vec!["a/p", "a/q", "prod/p", "prod/q", "root/p", "root/q"]).prop_map(PolicyKey::from)
}

fn scope() -> impl Strategy<Value = Scope> {
    select(vec![Scope::Global, Scope::Namespace, Scope::Selector])
}

fn namespace_of(key: &PolicyKey) -> Arc<str> {
    key.as_str().split('/').next().unwrap().into()
}

fn unreadable(key: PolicyKey, scope: Scope) -> Update {
    Update::Unreadable(Arc::new(Unreadable {
        only_new: false,
        dry_run: false,
        namespace: namespace_of(&key),
        key,
        scope,
        error: "no".into(),
    }))
}

fn decide_plain(history: &[Update], workload: &Workload, conn: &Conn<'_>) -> Decision {
    let mut plain = Plain::default();
    history.iter().for_each(|update| plain.take(update));
    plain.decide(workload, conn, &plain.matching(conn), false)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same as the many pairs above, where a failure shrinks to the updates that it needs.
    #[test]
    fn decisions_are_those_of_the_plain_evaluator(
        history in updates(8),
        cut in 0..8usize,
        workloads in vec(workload(), 1..4),
        connections in vec(ends(), 1..8),
        by_bitmaps in any::<bool>(),
    ) {
        let (first, second) = history.split_at(cut.min(history.len()));
        let empty = if by_bitmaps { Policies::default().by_bitmaps() } else { Policies::default() };
        let before = empty.apply(first.to_vec());
        let policies = before.apply(second.to_vec());
        for workload in &workloads {
            for ends in &connections {
                let wanted = decide_plain(&history, workload, &conn(&ends.0.clone().into(), ends));
                for peer in [&before, &policies].map(|resolved| resolved.resolve(ends.0.as_ref())) {
                    prop_assert_eq!(decide(&policies, workload, &conn(&peer, ends)), wanted.clone());
                    for target in [&before, &policies].map(|resolved| resolved.target(&workload.clone().into())) {
                        prop_assert_eq!(target.decide(&policies, &conn(&peer, ends)), wanted.clone());
                    }
                }
            }
        }
    }

    /// Whom a change does not concern is decided on as before.
    #[test]
    fn whom_a_change_does_not_concern_is_decided_as_before(
        before in updates(8),
        after in updates(3),
        workloads in vec(workload(), 1..6),
        connections in vec(ends(), 1..6),
    ) {
        let before = Policies::default().apply(before);
        let (policies, affected) = before.advance(after);
        for workload in workloads.iter().filter(|workload| !affected.concerns(workload)) {
            for ends in &connections {
                let peer = before.resolve(ends.0.as_ref());
                let conn = conn(&peer, ends);
                prop_assert_eq!(decide(&policies, workload, &conn), decide(&before, workload, &conn));
            }
        }
        // What comes again as it was concerns nobody.
        let again = policies.iter().map(|policy| Update::Set(policy.into()));
        let unreadable: Vec<_> = policies.unreadable().map(|u| u.key.clone()).collect();
        let again: Vec<_> = again.filter(|update| !unreadable.contains(update.key())).collect();
        let (same, affected) = policies.advance(again);
        prop_assert!(affected.is_empty() && same.knows(&policies.resolve(None)));
    }

    /// To wait no longer refuses nobody who was let in, and turns the decisions of those whom it names only.
    #[test]
    fn to_wait_no_longer_lets_in_peers_with_an_identity_alone(
        history in updates(8),
        workloads in vec(workload(), 1..6),
        connections in vec(ends(), 1..6),
    ) {
        let waiting = Policies::default().apply(history);
        let (waited, affected) = waiting.stop_waiting();
        prop_assert!(waiting.is_waiting() && !waited.is_waiting() && !waited.apply([]).is_waiting());
        for workload in &workloads {
            for ends in &connections {
                let peer = waited.resolve(ends.0.as_ref());
                let conn = conn(&peer, ends);
                let [before, after] = [&waiting, &waited].map(|policies| decide(policies, workload, &conn));
                prop_assert!(after.is_allow() || !before.is_allow());
                prop_assert!(ends.0.is_some() || before == after);
                prop_assert!(affected.concerns(workload) || before == after);
            }
        }
        prop_assert!(waited.stop_waiting().1.is_empty());
    }

    /// A policy that no version of could be read refuses everything in its scope, whatever else there is.
    #[test]
    fn unreadable_never_opens(
        before in updates(8),
        after in updates(4),
        key in key(),
        scope in scope(),
        mut workload in workload(),
        ends in ends(),
    ) {
        let policies = Policies::default().apply(before).apply([Update::Remove(key.clone()), unreadable(key.clone(), scope)]);
        let policies = policies.apply(after.into_iter().filter(|u| *u.key() != key));
        match scope {
            Scope::Global => {}
            Scope::Namespace => workload.namespace = namespace_of(&key),
            Scope::Selector => workload.policies.push(key.clone()),
        }
        let peer = policies.resolve(ends.0.as_ref());
        prop_assert!(!decide(&policies, &workload, &conn(&peer, &ends)).is_allow());
        prop_assert!(policies.unreadable().any(|u| u.key == key));
    }

    /// A key that is listed and not known refuses everything.
    #[test]
    fn missing_never_opens(history in updates(8), mut workload in workload(), ends in ends()) {
        workload.policies.push("never/sent".into());
        let policies = Policies::default().apply(history).stop_waiting().0;
        let peer = policies.resolve(ends.0.as_ref());
        prop_assert!(!decide(&policies, &workload, &conn(&peer, &ends)).is_allow());
    }

    /// What is kept in another form is read back as it was.
    #[test]
    fn a_policy_is_read_back_as_it_was(updates in updates(8)) {
        let policies = Policies::default().apply(updates.clone());
        let mut wanted: std::collections::BTreeMap<PolicyKey, Arc<Policy>> = Default::default();
        for update in updates {
            match update {
                Update::Set(policy) => drop(wanted.insert(policy.key.clone(), policy)),
                Update::Remove(key) => drop(wanted.remove(&key)),
                Update::Unreadable(_) | Update::Kept(_) => {}
            }
        }
        prop_assert_eq!(policies.len(), wanted.len());
        prop_assert!(policies.iter().eq(wanted.values().map(|policy| Policy::clone(policy))));
        for (key, policy) in &wanted {
            prop_assert!(policies.policy(key).is_some_and(|found| found == **policy));
        }
    }
}
