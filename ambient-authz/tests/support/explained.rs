//! What must hold of every explanation.

use std::collections::BTreeSet;

use ambient_authz::{
    Action, Conn, Decision, Explanation, Match, Policies, Policy, Rule, decide, explain,
    explain::{Failure, Field, Mismatch, PolicyTrace, RefusalReason, Turn},
    explain_all,
    policy::Update,
};
use ambient_core::{PolicyKey, Workload};

use super::bytes::everything;

/// The explanation of a decision, after everything that can be told of it was checked.
pub(crate) fn check(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Explanation {
    let told = explain_all(policies, workload, conn);
    let decision = decide(policies, workload, conn);
    assert_eq!(told.decision, decision);
    assert_eq!(verdict(&told), (told.allowed, told.policy.clone(), told.rule), "{told}");
    assert_eq!((told.allowed, &told.reason), (decision.is_allow(), &decision.to_string()));
    for trace in &told.policies {
        let policy = policies.policy(&trace.key).expect("it is in force");
        same_rules(&policy, trace, conn);
    }
    turns(policies, workload, conn, &told);
    a_page_of_it(&told, &explain(policies, workload, conn));
    told
}

/// The page tells the same in short.
fn a_page_of_it(whole: &Explanation, page: &Explanation) {
    assert_eq!(
        (&whole.decision, &whole.policy, whole.rule),
        (&page.decision, &page.policy, page.rule)
    );
    assert_eq!(whole.turn.closest(), page.turn.closest());
    assert_eq!(whole.policies.len(), page.policies.len() + page.more_policies);
    assert_eq!(whole.refusals.len(), page.refusals.len() + page.more_refusals);
    assert!(page.policies.len() <= 10 && page.refusals.len() <= 10 && page.dry_run.len() <= 10);
    let [all, few] = [whole, page].map(|told| told.policies.iter().map(|p| &p.key).collect::<Vec<_>>());
    let named = page
        .policy
        .as_ref()
        .into_iter()
        .chain(page.turn.closest().map(|closest| &closest.policy));
    assert!(few.iter().all(|key| all.contains(key)));
    // What decided may be no policy that could be asked.
    assert!(named.filter(|key| all.contains(key)).all(|key| few.contains(&key)), "{page}");
    let first = |told: &Explanation| told.to_string().lines().next().map(str::to_owned);
    assert_eq!(first(whole), first(page));
}

/// The verdict that the trace alone leads to, by the order of a decision.
fn verdict(told: &Explanation) -> (bool, Option<PolicyKey>, Option<usize>) {
    let of = |action| told.policies.iter().filter(move |p| p.action == action && !p.dry_run);
    let first = |action| of(action).find_map(|p| Some((p.key.clone(), p.matching_rule()?)));
    if let Some((key, rule)) = first(Action::Deny) {
        return (false, Some(key), Some(rule));
    }
    let refusing = |unreadable| {
        let refusing = told.refusals.iter().filter(|r| r.refuses);
        refusing
            .filter(move |r| matches!(r.why, RefusalReason::Unreadable { .. }) == unreadable)
            .map(|r| r.key.clone())
            .min()
    };
    if let Some(key) = refusing(true).or_else(|| refusing(false)) {
        return (false, Some(key), None);
    }
    match first(Action::Allow) {
        Some((key, rule)) => (true, Some(key), Some(rule)),
        None => (of(Action::Allow).next().is_none(), None, None),
    }
}

fn same_rules(policy: &Policy, trace: &PolicyTrace, conn: &Conn<'_>) {
    assert_eq!(trace.rules.len(), policy.rules.len());
    assert_eq!(trace.matching_rule(), policy.matching_rule(conn));
    for (rule, traced) in policy.rules.iter().zip(&trace.rules) {
        let alone = |rule: Rule| Policy {
            rules: vec![rule],
            ..policy.clone()
        };
        assert_eq!(traced.matches, alone(rule.clone()).matching_rule(conn).is_some());
        assert_eq!(traced.matches, traced.failures.is_empty());
        // It names all that fails: with every one of them mended the rule matches, and with one fewer it does not.
        let mended = |failures: &[Failure]| {
            let mut rule = rule.clone();
            failures.iter().for_each(|failure| mend(&mut rule, failure));
            alone(rule).matching_rule(conn).is_some()
        };
        assert!(mended(&traced.failures), "{traced:?} of {rule:?}");
        for left_out in 0..traced.failures.len() {
            let mut rest = traced.failures.clone();
            rest.remove(left_out);
            assert!(!mended(&rest), "{left_out} of {traced:?} of {rule:?}");
        }
    }
}

/// Makes what failed hold, and nothing else.
fn mend(rule: &mut Rule, failure: &Failure) {
    let found = &mut rule.clauses[failure.clause].matches[failure.alternative];
    match &failure.mismatch {
        Mismatch::NoneHits { field, .. } => clear(found, *field, true),
        Mismatch::Excluded { field, .. } => clear(found, *field, false),
        Mismatch::Empty => {}
    }
    if found.is_empty() {
        // A match without any value is never true: what is put in excludes an address that nobody comes from.
        found.not_source_ips = std::iter::once("255.255.255.255/32".parse().expect("it is a block")).collect();
    }
}

fn clear(found: &mut Match, field: Field, wanted: bool) {
    macro_rules! either {
        ($yes:ident, $no:ident) => {
            if wanted {
                found.$yes = Default::default();
            } else {
                found.$no = Default::default();
            }
        };
    }
    match field {
        Field::Namespaces => either!(namespaces, not_namespaces),
        Field::Principals => either!(principals, not_principals),
        Field::TrustDomains => either!(trust_domains, not_trust_domains),
        Field::ServiceAccounts => either!(service_accounts, not_service_accounts),
        Field::SourceIps => either!(source_ips, not_source_ips),
        Field::DestinationIps => either!(destination_ips, not_destination_ips),
        Field::DestinationPorts => either!(destination_ports, not_destination_ports),
    }
}

/// What is told to turn the answer turns it, and less does not.
fn turns(policies: &Policies, workload: &Workload, conn: &Conn<'_>, told: &Explanation) {
    match &told.turn {
        Turn::Allow {
            deny,
            unreadable,
            missing,
            not_allowed,
        } => {
            assert_eq!([deny, unreadable, missing].map(|keys| keys.more), [0; 3]);
            let refusing = || deny.keys.iter().chain(&unreadable.keys).chain(&missing.keys);
            let allow = not_allowed.iter().flat_map(|n| &n.policies.keys);
            let all: Vec<&PolicyKey> = refusing().chain(allow).collect();
            assert!(allowed_without(policies, workload, conn, &all), "{told}");
            for left_out in refusing() {
                let rest: Vec<_> = all.iter().copied().filter(|key| *key != left_out).collect();
                assert!(!allowed_without(policies, workload, conn, &rest), "{left_out}: {told}");
            }
            closest_is(told, Action::Allow, not_allowed.is_some());
        }
        Turn::Refuse {
            admitting, others_apply, ..
        } => {
            let admitting = &admitting.keys;
            let without = |keys: &[PolicyKey]| allowed_without(policies, workload, conn, &keys.iter().collect::<Vec<_>>());
            assert_eq!(!without(admitting), *others_apply && !admitting.is_empty(), "{told}");
            if let Some((_, fewer)) = admitting.split_first() {
                assert!(without(fewer), "{told}");
            }
            // With any other ALLOW policy beside them it is refused once they are gone.
            let beside = Policy {
                rules: Vec::new(),
                ..everything("zz/none", Action::Allow)
            };
            let beside = policies.apply([Update::Set(beside.into())]);
            assert!(!allowed_without(&beside, workload, conn, &admitting.iter().collect::<Vec<_>>()));
            closest_is(told, Action::Deny, true);
        }
    }
}

/// No rule has fewer failing fields than the one that is told, and it is the first of those.
fn closest_is(told: &Explanation, action: Action, wanted: bool) {
    let distance = |failures: &[Failure]| (failures.iter().any(|f| f.mismatch == Mismatch::Empty), failures.len());
    let mut least = None;
    for policy in told.policies.iter().filter(|p| wanted && p.action == action && !p.dry_run) {
        for rule in policy.rules.iter().filter(|r| !r.matches) {
            let this = (distance(&rule.failures), &policy.key, rule.rule);
            if least.as_ref().is_none_or(|least| this < *least) {
                least = Some(this);
            }
        }
    }
    let closest = told.turn.closest().map(|c| (distance(&c.failures), &c.policy, c.rule));
    assert_eq!(closest, least, "{told}");
}

/// The answer where some policies are gone, and the workload lists them no more.
fn allowed_without(policies: &Policies, workload: &Workload, conn: &Conn<'_>, keys: &[&PolicyKey]) -> bool {
    let gone: BTreeSet<&PolicyKey> = keys.iter().copied().collect();
    let mut workload = workload.clone();
    workload.policies.retain(|key| !gone.contains(key));
    let policies = policies.apply(gone.into_iter().map(|key| Update::Remove(key.clone())));
    matches!(decide(&policies, &workload, conn), Decision::Allow(_))
}
