//! The change that an explanation names turns the answer, and no smaller change of its kind does: against every smaller change
//! there is, tried on the plain evaluator.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::collections::BTreeSet;

use ambient_authz::{
    Action, Conn, Explanation, Match, Peer, Policies, Policy, Rule, Scope, decide,
    explain::{Closest, Failure, Field, Mismatch, Turn},
    explain_all,
    policy::Update,
};
use ambient_core::{PolicyKey, Workload};

#[path = "support/plain.rs"]
mod plain;
#[path = "support/random.rs"]
mod random;

use plain::Plain;
use random::{Random, Shape};

/// Few policies, so that every set of them can be taken away; and rules that often fail in one field or two.
const FEW: Shape = Shape {
    keys: 6,
    most_rules: 2,
    sparse: 3,
};

/// A set of policies, in both forms, and what is asked of it.
struct Case {
    policies: Policies,
    plain: Plain,
    workload: Workload,
    ends: random::Ends,
    peer: Peer,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed << 24);
        let updates: Vec<_> = (0..1 + random.below(7)).map(|_| random::update(&mut random, FEW)).collect();
        let mut plain = Plain::new(false);
        updates.iter().for_each(|update| plain.take(update));
        let ends = random::ends(&mut random);
        let policies = Policies::default().apply(updates);
        let mut workload = random::workload(&mut random, FEW);
        workload.policies.truncate(4);
        Self {
            peer: policies.resolve(ends.0.as_ref()),
            policies,
            plain,
            workload,
            ends,
        }
    }

    fn conn(&self) -> Conn<'_> {
        Conn {
            peer: &self.peer,
            source: self.ends.1,
            destination: (self.ends.2, self.ends.3).into(),
        }
    }

    /// The answer of the plain evaluator where policies are gone, and others are as they are told.
    fn is_allowed(&self, gone: &[&PolicyKey], set: Option<Policy>) -> bool {
        let (mut plain, mut workload) = (self.plain.clone(), self.workload.clone());
        workload.policies.retain(|key| !gone.contains(&key));
        gone.iter().for_each(|key| plain.take(&Update::Remove((*key).clone())));
        set.into_iter().for_each(|policy| plain.take(&Update::Set(policy.into())));
        let conn = self.conn();
        plain.decide(&workload, &conn, &plain.matching(&conn), false).is_allow()
    }

    /// The same of the engine.
    fn is_allowed_by_the_engine(&self, gone: &[&PolicyKey], set: Option<Policy>) -> bool {
        let mut workload = self.workload.clone();
        workload.policies.retain(|key| !gone.contains(&key));
        let gone = gone.iter().map(|key| Update::Remove((*key).clone()));
        let policies = self.policies.apply(gone.chain(set.map(|policy| Update::Set(policy.into()))));
        decide(&policies, &workload, &self.conn()).is_allow()
    }

    fn both(&self, gone: &[&PolicyKey], set: Option<Policy>) -> bool {
        let allowed = self.is_allowed(gone, set.clone());
        assert_eq!(self.is_allowed_by_the_engine(gone, set), allowed);
        allowed
    }

    /// Everything that applies to the workload, and that could be taken away.
    fn applying(&self) -> Vec<PolicyKey> {
        let applies = |scope, namespace: &str| match scope {
            Scope::Global => true,
            Scope::Namespace => *namespace == *self.workload.namespace,
            Scope::Selector => false,
        };
        let in_force = self.policies.iter().filter(|p| applies(p.scope, &p.namespace)).map(|p| p.key);
        let unreadable = self.policies.unreadable().filter(|u| applies(u.scope, &u.namespace));
        let all = in_force
            .chain(unreadable.map(|u| u.key.clone()))
            .chain(self.workload.policies.iter().cloned());
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether no set of policies smaller than this turns the answer by going.
    fn none_smaller_goes(&self, than: usize, answer: bool) -> bool {
        let applying = self.applying();
        let smaller = (0..1u32 << applying.len()).filter(|chosen| (chosen.count_ones() as usize) < than);
        smaller.into_iter().all(|chosen| {
            let gone = applying.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1);
            self.is_allowed(&gone.map(|(_, key)| key).collect::<Vec<_>>(), None) == answer
        })
    }

    /// Whether no rule of the policies of an action turns the answer where fewer lists than this are taken out of it, while some
    /// policies are gone. `None` where there are too many ways to try.
    fn none_smaller_edits(&self, than: usize, action: Action, gone: &[&PolicyKey], answer: bool) -> Option<bool> {
        let applying = self.applying();
        let policies = self
            .policies
            .iter()
            .filter(|p| p.action == action && !p.dry_run && applying.contains(&p.key));
        let (mut tried, mut none) = (0, true);
        for policy in policies.filter(|policy| !gone.contains(&&policy.key)) {
            for (number, rule) in policy.rules.iter().enumerate() {
                let lists = lists(rule);
                let mut chosen = Vec::new();
                each_smaller(lists.len(), than, 0, &mut chosen, &mut |chosen| {
                    tried += 1;
                    if tried > MOST_TRIED {
                        return;
                    }
                    let mut policy = policy.clone();
                    chosen.iter().for_each(|at| take_out(&mut policy.rules[number], lists[*at]));
                    none &= self.is_allowed(gone, Some(policy)) == answer;
                });
            }
        }
        (tried <= MOST_TRIED).then_some(none)
    }

    /// The policy of the closest rule, with all that failed taken out of it.
    fn mended(&self, closest: &Closest) -> Policy {
        let mut policy = self.policies.policy(&closest.policy).unwrap();
        let rule = &mut policy.rules[closest.rule];
        closest.failures.iter().for_each(|failure| take_out(rule, list_of(failure)));
        policy
    }
}

/// Calls for each choice of fewer than some of so many things.
fn each_smaller(of: usize, than: usize, from: usize, chosen: &mut Vec<usize>, call: &mut impl FnMut(&[usize])) {
    if chosen.len() >= than {
        return;
    }
    call(chosen);
    for next in from..of {
        chosen.push(next);
        each_smaller(of, than, next + 1, chosen, call);
        chosen.pop();
    }
}

/// A list of a rule: which clause, which match, and which of its lists.
type List = (usize, usize, usize);

/// Calls with a macro for each list of a match, in one order.
macro_rules! for_each_list {
    ($found:expr, $call:ident) => {
        $call!(
            $found,
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            trust_domains,
            not_trust_domains,
            service_accounts,
            not_service_accounts,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports
        )
    };
}

fn lists(rule: &Rule) -> Vec<List> {
    macro_rules! lengths {
        ($found:expr, $($list:ident),*) => { [$($found.$list.len()),*] };
    }
    let mut lists = Vec::new();
    for (clause, of_clause) in rule.clauses.iter().enumerate() {
        for (at, found) in of_clause.matches.iter().enumerate() {
            let lengths = for_each_list!(found, lengths);
            lists.extend(
                lengths
                    .iter()
                    .enumerate()
                    .filter(|(_, len)| **len > 0)
                    .map(|(list, _)| (clause, at, list)),
            );
        }
    }
    lists
}

/// Takes a list out. A match of which nothing is left would never be true, where one that asks for less is meant.
fn take_out(rule: &mut Rule, (clause, at, list): List) {
    macro_rules! clear {
        ($found:expr, $($list:ident),*) => {
            let clear: [fn(&mut Match); 14] = [$(|found| found.$list.clear()),*];
            clear[list]($found);
        };
    }
    let found = &mut rule.clauses[clause].matches[at];
    for_each_list!(found, clear);
    if found.is_empty() {
        found.not_source_ips = vec!["255.255.255.255/32".parse().unwrap()];
    }
}

fn list_of(failure: &Failure) -> List {
    let (field, refused) = match &failure.mismatch {
        Mismatch::NoneHits { field, .. } => (field, 0),
        Mismatch::Excluded { field, .. } => (field, 1),
        Mismatch::Empty => panic!("it is told of no rule that could be mended"),
    };
    let fields = [
        Field::Namespaces,
        Field::Principals,
        Field::TrustDomains,
        Field::ServiceAccounts,
        Field::SourceIps,
        Field::DestinationIps,
        Field::DestinationPorts,
    ];
    let field = fields.iter().position(|of| of == field).unwrap();
    (failure.clause, failure.alternative, 2 * field + refused)
}

/// What was seen, so that nothing is left out.
#[derive(Debug, Default)]
struct Seen {
    removals: usize,
    removals_of_several: usize,
    edits: usize,
    edits_of_several: usize,
    not_by_removal: usize,
    too_many: usize,
}

fn check_allowing(case: &Case, told: &Explanation, seen: &mut Seen) {
    let Turn::Allow {
        deny,
        unreadable,
        missing,
        not_allowed,
    } = &told.turn
    else {
        unreachable!()
    };
    let refusing: Vec<_> = [deny, unreadable, missing].into_iter().flat_map(|keys| &keys.keys).collect();
    // All that refuses, and where nothing admits it all that would have to.
    let allowing = not_allowed.iter().flat_map(|not_allowed| &not_allowed.policies.keys);
    let gone: Vec<_> = refusing.iter().copied().chain(allowing).collect();
    assert!(case.both(&gone, None), "{told}");
    assert!(case.none_smaller_goes(gone.len(), false), "{told}");
    seen.removals += 1;
    seen.removals_of_several += usize::from(gone.len() > 1);
    let closest = not_allowed.as_ref().and_then(|not_allowed| not_allowed.closest.as_ref());
    if let Some(closest) = closest {
        check_edit(case, told, (closest, Action::Allow, &refusing), seen);
    }
}

fn check_refusing(case: &Case, told: &Explanation, seen: &mut Seen) {
    let Turn::Refuse {
        admitting,
        others_apply,
        closest,
    } = &told.turn
    else {
        unreachable!()
    };
    let gone: Vec<_> = admitting.keys.iter().collect();
    if *others_apply && !gone.is_empty() {
        assert!(!case.both(&gone, None), "{told}");
        assert!(case.none_smaller_goes(gone.len(), true), "{told}");
        seen.removals += 1;
        seen.removals_of_several += usize::from(gone.len() > 1);
    } else {
        // Whatever goes, what is left lets it through: without ALLOW policies everything passes.
        assert!(case.none_smaller_goes(usize::MAX, true), "{told}");
        seen.not_by_removal += 1;
    }
    if let Some(closest) = closest {
        check_edit(case, told, (closest, Action::Deny, &[]), seen);
    }
}

/// The closest rule, mended, turns the answer, once what refuses is gone; and no rule does of which less is taken out.
fn check_edit(case: &Case, told: &Explanation, (closest, action, gone): (&Closest, Action, &[&PolicyKey]), seen: &mut Seen) {
    let allowed_before = action == Action::Deny;
    assert_eq!(case.both(gone, None), allowed_before, "{told}");
    let fewest = match closest.failures.iter().any(|failure| failure.mismatch == Mismatch::Empty) {
        // What asks for nothing is never true, whatever is taken out of it; then no rule can be mended so.
        true => usize::MAX,
        false => {
            assert_eq!(case.both(gone, Some(case.mended(closest))), !allowed_before, "{told}");
            closest.failures.len()
        }
    };
    match case.none_smaller_edits(fewest, action, gone, allowed_before) {
        Some(none) => assert!(none, "{told}"),
        None => seen.too_many += 1,
    }
    seen.edits += 1;
    seen.edits_of_several += usize::from(closest.failures.len() > 1);
}

#[test]
fn what_is_told_to_turn_the_answer_does_and_nothing_smaller() {
    let mut seen = Seen::default();
    for seed in 0..CASES {
        let case = Case::new(seed);
        let told = explain_all(&case.policies, &case.workload, &case.conn());
        assert_eq!(told.allowed, case.both(&[], None));
        match told.turn {
            Turn::Allow { .. } => check_allowing(&case, &told, &mut seen),
            Turn::Refuse { .. } => check_refusing(&case, &told, &mut seen),
        }
    }
    let often = [
        seen.removals,
        seen.removals_of_several,
        seen.edits,
        seen.edits_of_several,
        seen.not_by_removal,
    ];
    assert!(often.iter().all(|times| *times > CASES as usize / 50), "{seen:?}");
    assert!(seen.too_many < seen.edits / 3, "{seen:?}");
}

const CASES: u64 = 500;
/// Of changes to rules so many are tried of a set.
const MOST_TRIED: usize = 1500;
