//! The policies that apply to a workload, and those that should and cannot be asked.

use std::collections::{BTreeMap, BTreeSet};

use ambient_core::{PolicyKey, Workload};

use super::{Applies, Closest, PolicyTrace, Refusal, RefusalReason, trace};
use crate::{
    Action, Conn, Policies, Scope,
    index::Entry,
    policies::{Known, converted_from},
    policy::Refuses,
};

/// A policy that applies, and how its rules fare: all that is kept of each while all are walked.
#[derive(Debug)]
pub(super) struct Weighed<'a> {
    pub(super) entry: &'a Entry,
    applies: Applies,
    /// The number of the first rule that matches.
    pub(super) matching: Option<usize>,
    /// Of those that do not, the first of the closest, and how close it is.
    pub(super) closest: Option<(trace::Distance, usize)>,
}

impl Weighed<'_> {
    /// Whether it is enforced, and does this.
    pub(super) fn enforces(&self, wanted: Action) -> bool {
        self.entry.kind.parts() == (wanted, false)
    }
}

/// In the order in which they are asked: DENY, ALLOW, those in dry run, each by key.
pub(super) fn policies<'a>(policies: &'a Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<Weighed<'a>> {
    let listed: BTreeSet<&PolicyKey> = workload.policies.iter().collect();
    let weigh = |entry: &'a Entry| {
        let applies = applies(entry.scope, &entry.namespace, listed.contains(&entry.key), workload)?;
        let mut weighed = Weighed {
            entry,
            applies,
            matching: None,
            closest: None,
        };
        for (number, rule) in policies.index().policy(entry).rules.iter().enumerate() {
            match trace::distance(rule, conn) {
                None => weighed.matching = weighed.matching.or(Some(number)),
                Some(distance) if weighed.closest.is_none_or(|(least, _)| distance < least) => {
                    weighed.closest = Some((distance, number));
                }
                Some(_) => {}
            }
        }
        Some(weighed)
    };
    let mut found: Vec<_> = policies.entries().filter_map(weigh).collect();
    found.sort_by_key(|of| {
        let (action, dry_run) = of.entry.kind.parts();
        (dry_run, action == Action::Allow) // stable, and by key before
    });
    found
}

/// Those that are told: the named ones, then those that match, then the first of the others, in their order.
pub(super) fn chosen<'w, 'a>(weighed: &'w [Weighed<'a>], named: [Option<&PolicyKey>; 2], most: usize) -> Vec<&'w Weighed<'a>> {
    if weighed.len() <= most {
        return weighed.iter().collect();
    }
    let is_named = |of: &Weighed<'_>| named.into_iter().flatten().any(|key| *key == of.entry.key);
    let numbered = || weighed.iter().enumerate();
    let of_first = numbered().filter(|(_, of)| is_named(of));
    let matching = numbered().filter(|(_, of)| of.matching.is_some());
    let mut chosen = BTreeSet::new();
    for (number, _) in of_first.chain(matching).chain(numbered()) {
        if chosen.len() == most {
            break;
        }
        chosen.insert(number);
    }
    chosen.into_iter().filter_map(|number| weighed.get(number)).collect()
}

/// What is told of one: of its rules the one that matches, the closest, and the first of the others, in their order.
pub(super) fn trace(policies: &Policies, of: &Weighed<'_>, conn: &Conn<'_>, most: usize) -> PolicyTrace {
    let policy = policies.index().policy(of.entry);
    let named = of.matching.into_iter().chain(of.closest.map(|(_, rule)| rule));
    let mut told: BTreeSet<usize> = named.collect();
    for number in 0..policy.rules.len() {
        if told.len() >= most {
            break;
        }
        told.insert(number);
    }
    let (action, dry_run) = of.entry.kind.parts();
    let unreadable = match policies.known(&policy.key) {
        Some(Known::LastGood(_)) => policies.unreadable().find(|unreadable| unreadable.key == policy.key),
        _ => None,
    };
    PolicyTrace {
        applies: of.applies,
        action,
        scope: of.entry.scope,
        dry_run,
        made_from: made_from(&policy.key),
        place: None,
        unreadable: unreadable.map(|unreadable| unreadable.error.clone()),
        more_rules: policy.rules.len() - told.len(),
        rules: told
            .into_iter()
            .map(|number| trace::of_rule(number, &policy.rules[number], conn))
            .collect(),
        key: policy.key,
    }
}

/// What is told of the rule that came closest.
pub(super) fn closest(policies: &Policies, of: &Weighed<'_>, rule: usize, conn: &Conn<'_>) -> Closest {
    let policy = policies.index().policy(of.entry);
    Closest {
        rule,
        place: None,
        failures: trace::of_rule(rule, &policy.rules[rule], conn).failures,
        policy: policy.key,
    }
}

/// What applies and cannot be asked: no version of it could be read, or it has not come.
pub(super) fn refusals(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<Refusal> {
    let listed: BTreeSet<&PolicyKey> = workload.policies.iter().collect();
    let unreadable = policies.unreadable().filter_map(|unreadable| {
        let Some(Known::Unreadable(_)) = policies.known(&unreadable.key) else {
            return None;
        };
        Some(Refusal {
            applies: applies(unreadable.scope, &unreadable.namespace, listed.contains(&unreadable.key), workload)?,
            key: unreadable.key.clone(),
            place: None,
            why: RefusalReason::Unreadable {
                error: unreadable.error.clone(),
            },
            refuses: policies.unreadable_refuses() && !unreadable.dry_run,
        })
    });
    let has_identity = conn.peer.identity().is_some();
    // In the order of their keys, and each once.
    let missing: BTreeMap<_, _> = policies.missing(&workload.policies).collect();
    let missing = missing.into_iter().map(|(key, refuses)| Refusal {
        key: key.clone(),
        applies: Applies::Listed,
        place: None,
        why: RefusalReason::NotArrived {
            plaintext_only: refuses == Refuses::Plaintext,
        },
        refuses: refuses.concerns(has_identity),
    });
    unreadable.chain(missing).collect()
}

fn applies(scope: Scope, namespace: &str, listed: bool, workload: &Workload) -> Option<Applies> {
    match scope {
        Scope::Global => Some(Applies::Mesh),
        Scope::Namespace if *namespace == *workload.namespace => Some(Applies::Namespace),
        Scope::Namespace | Scope::Selector => listed.then_some(Applies::Listed),
    }
}

/// The names that istiod gives to what it makes of PeerAuthentications, here and on the wire.
fn made_from(key: &PolicyKey) -> Option<String> {
    if let Some((namespace, name)) = converted_from(key) {
        return Some(format!("PeerAuthentication {namespace}/{name}"));
    }
    let (_, name) = key.as_str().split_once('/')?;
    (name == "istio_converted_static_strict").then(|| "a PeerAuthentication in mode STRICT".into())
}
