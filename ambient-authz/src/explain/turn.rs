//! What would turn an answer.

use ambient_core::PolicyKey;

use super::{Closest, Failure, Mismatch, NotAllowed, PolicyTrace, Refusal, RefusalReason, Turn};
use crate::{Action, Decision};

pub(super) fn of(decision: &Decision, considered: &[PolicyTrace], refusals: &[Refusal]) -> Turn {
    let enforced = |action| considered.iter().filter(move |p| p.action == action && !p.dry_run);
    let matching = |action| keys(enforced(action).filter(|p| p.matching_rule().is_some()));
    let admitting = matching(Action::Allow);
    if decision.is_allow() {
        return Turn::Refuse {
            others_apply: admitting.len() < enforced(Action::Allow).count(),
            admitting,
            closest: closest(enforced(Action::Deny)),
        };
    }
    let refusing = |wanted: fn(&RefusalReason) -> bool| {
        let refusing = refusals.iter().filter(|r| r.refuses && wanted(&r.why));
        refusing.map(|r| r.key.clone()).collect()
    };
    let applying = keys(enforced(Action::Allow));
    Turn::Allow {
        deny: matching(Action::Deny),
        unreadable: refusing(|why| matches!(why, RefusalReason::Unreadable { .. })),
        missing: refusing(|why| matches!(why, RefusalReason::NotArrived { .. })),
        not_allowed: (admitting.is_empty() && !applying.is_empty()).then(|| NotAllowed {
            policies: applying,
            closest: closest(enforced(Action::Allow)),
        }),
    }
}

fn keys<'a>(policies: impl Iterator<Item = &'a PolicyTrace>) -> Vec<PolicyKey> {
    policies.map(|p| p.key.clone()).collect()
}

fn closest<'a>(policies: impl Iterator<Item = &'a PolicyTrace>) -> Option<Closest> {
    let rules = policies.flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    let failing = rules.filter(|(_, rule)| !rule.matches);
    // The first of several: they come in the order of their keys.
    let (policy, rule) = failing.min_by_key(|(_, rule)| distance(&rule.failures))?;
    Some(Closest {
        policy: policy.key.clone(),
        rule: rule.rule,
        failures: rule.failures.clone(),
    })
}

/// A rule with a match that holds nothing is further away than any other: no connection could make it match.
fn distance(failures: &[Failure]) -> (bool, usize) {
    let never = failures.iter().any(|f| f.mismatch == Mismatch::Empty);
    (never, failures.len())
}
