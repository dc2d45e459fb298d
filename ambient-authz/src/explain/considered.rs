//! The policies that apply to a workload, and those that should and cannot be asked.

use std::collections::{BTreeMap, BTreeSet};

use ambient_core::{PolicyKey, Workload};

use super::{Applies, PolicyTrace, Refusal, RefusalReason, trace};
use crate::{
    Action, Conn, Policies, Policy, Scope,
    policies::{Known, converted_from},
    policy::Refuses,
};

/// In the order in which they are asked: DENY, ALLOW, those in dry run, each by key.
pub(super) fn policies(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<PolicyTrace> {
    let listed: BTreeSet<&PolicyKey> = workload.policies.iter().collect();
    let of_policy = |policy: &Policy| {
        Some(PolicyTrace {
            applies: applies(policy.scope, &policy.namespace, listed.contains(&policy.key), workload)?,
            key: policy.key.clone(),
            action: policy.action,
            scope: policy.scope,
            dry_run: policy.dry_run,
            made_from: made_from(&policy.key),
            unreadable: None,
            rules: trace::rules(&policy.rules, conn),
        })
    };
    let mut found: Vec<_> = policies.iter().filter_map(|policy| of_policy(&policy)).collect();
    found.sort_by_key(|p| (p.dry_run, p.action == Action::Allow)); // stable, and by key before
    if found.is_empty() {
        return found;
    }
    for unreadable in policies.unreadable() {
        let concerned = found.iter_mut().filter(|p| p.key == unreadable.key);
        concerned.for_each(|p| p.unreadable = Some(unreadable.error.clone()));
    }
    found
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
            why: RefusalReason::Unreadable {
                error: unreadable.error.clone(),
            },
            refuses: policies.unreadable_refuses(),
        })
    });
    let has_identity = conn.peer.identity().is_some();
    // In the order of their keys, and each once.
    let missing: BTreeMap<_, _> = policies.missing(&workload.policies).collect();
    let missing = missing.into_iter().map(|(key, refuses)| Refusal {
        key: key.clone(),
        applies: Applies::Listed,
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
    (name == "istio_converted_static_strict").then(|| "PeerAuthentication in mode STRICT".into())
}
