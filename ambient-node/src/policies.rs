//! Policies that are not in force as they were meant: those that cannot be read, and those that have not come. They are
//! counted, named in the log once, and named in readiness.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use ambient_authz::{
    Policies, Scope,
    policy::{Fallback, Refuses, Unreadable},
};
use ambient_control::Fault;
use ambient_core::PolicyKey;

use crate::{state::Snapshot, telemetry::Metrics};

#[cfg(test)]
mod tests;

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Oversight {
    unreadable: BTreeMap<PolicyKey, (Arc<Unreadable>, Option<Fallback>)>,
    missing: BTreeMap<PolicyKey, Refuses>,
}

impl Oversight {
    /// Counts what is wrong with the policies now, and puts into the log what was not before. Of what has not come it
    /// looks at what this node's own workloads list, and is silent while it may still come.
    pub(crate) fn look(&mut self, node: &str, now: &Snapshot, metrics: &Metrics) {
        let unreadable = now.policies.unreadable();
        let unreadable = unreadable.map(|u| (u.key.clone(), (u.clone(), now.policies.fallback(&u.key))));
        let unreadable: BTreeMap<_, _> = unreadable.collect();
        for (key, told) in unreadable.iter().filter(|(key, told)| self.unreadable.get(*key) != Some(*told)) {
            let (policy, fallback) = told;
            tracing::warn!(policy = %key, error = policy.error, "a policy cannot be read: {}", effect(*fallback));
        }
        metrics.unreadable_policies(unreadable.values().map(|(_, fallback)| *fallback));
        self.unreadable = unreadable;

        let ours = now.mesh.workloads_of_node(node);
        let missing: BTreeMap<_, _> = ours.flat_map(|w| now.policies.missing(&w.policies)).collect();
        metrics.missing_policies(missing.values().copied());
        if now.policies.is_waiting() {
            return;
        }
        let new = missing.iter().filter(|(key, _)| !self.missing.contains_key(*key));
        for (key, refuses) in new {
            let effect = match refuses {
                Refuses::Everybody => "connections to those workloads are refused",
                Refuses::Plaintext => "connections without identity to those workloads are refused",
                Refuses::Nobody => "it is skipped, as Istio skips it",
            };
            tracing::warn!(policy = %key, "a policy that workloads list has not come: {effect}");
        }
        self.missing = missing.into_iter().map(|(key, refuses)| (key.clone(), refuses)).collect();
    }
}

/// What follows from a policy that cannot be read.
fn effect(fallback: Option<Fallback>) -> &'static str {
    match fallback {
        Some(Fallback::LastGood) => "its last good version stays in force",
        Some(Fallback::Refusal) | None => "everything in its scope is refused until it can be read or is withdrawn",
        Some(Fallback::Nothing) => "it is in dry run or let go, and refuses nothing",
    }
}

/// The first line of who is ready: ztunnel's.
pub(crate) const READY: &str = "ready\n";

/// Whether a node is ready, and what is wrong, as text.
///
/// A node is ready once it serves: after the first whole state. What is wrong with a file or a policy is named and takes
/// no node out of service, unless it refuses everything in the mesh.
pub(crate) fn readiness(policies: Option<&Policies>, faults: &[Fault]) -> (bool, String) {
    let Some(policies) = policies else {
        let mut text = "not ready, pending: the mesh's state has not arrived\n".to_owned();
        faults.iter().for_each(|fault| line(&mut text, &fault.what));
        return (false, text);
    };
    let refuses_all = |u: &&Arc<Unreadable>| u.scope == Scope::Global && policies.fallback(&u.key) == Some(Fallback::Refusal);
    let closing = policies.unreadable().find(refuses_all);
    let mut text = match closing {
        None => READY.to_owned(),
        Some(policy) => {
            let mut text = String::new();
            line(&mut text, &format!("not ready, pending: {} refuses every connection", policy.key));
            text
        }
    };
    for fault in faults {
        let fallback = fault.policy.as_ref().and_then(|key| policies.fallback(key));
        match fallback {
            Some(Fallback::Refusal | Fallback::Nothing) => line(&mut text, &format!("{}: {}", fault.what, effect(fallback))),
            Some(Fallback::LastGood) | None => line(&mut text, &fault.what),
        }
    }
    // What no fault has named with its place.
    let named: BTreeSet<&PolicyKey> = faults.iter().filter_map(|fault| fault.policy.as_ref()).collect();
    for policy in policies.unreadable().filter(|policy| !named.contains(&policy.key)) {
        let effect = effect(policies.fallback(&policy.key));
        line(&mut text, &format!("policy {}: {}: {effect}", policy.key, policy.error));
    }
    (closing.is_none(), text)
}

fn line(text: &mut String, what: &str) {
    // Whatever a value holds, what is wrong is one line.
    let what = what.replace(['\n', '\r'], " ");
    let _ = writeln!(text, "{what}");
}
