//! What was told of a file, and what is other now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambient_authz::policy;
use ambient_core::{NamespacedHostname, PolicyKey, Service, Workload, WorkloadUid, mesh::Update};

use super::read::{Broken, Entries, Key};
use crate::Change;

/// What is in force, what was told, and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Told {
    now: State,
    told: State,
    broken: Vec<(Broken, bool)>,
}

#[derive(Clone, Debug, Default)]
struct State {
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    services: BTreeMap<NamespacedHostname, Arc<Service>>,
    policies: BTreeMap<PolicyKey, policy::Update>,
    /// Policies that could be read, now or when they stood there before.
    good: BTreeSet<PolicyKey>,
}

impl Told {
    /// A content that could be read takes the place of the one before.
    pub(super) fn take(&mut self, entries: Entries) {
        let before = std::mem::take(&mut self.now);
        let now = &mut self.now;
        now.workloads = entries.workloads.into_iter().map(|w| (w.uid.clone(), Arc::new(w))).collect();
        now.services = entries.services.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect();
        now.policies = entries.policies.into_iter().map(|update| (update.key().clone(), update)).collect();
        let read = now.policies.iter().filter(|(_, update)| matches!(update, policy::Update::Set(_)));
        now.good = read.map(|(key, _)| key.clone()).collect();
        self.broken.clear();
        for broken in entries.broken {
            let kept = match &broken.key {
                Some(Key::Workload(uid)) => keep(&before.workloads, &mut now.workloads, uid),
                Some(Key::Service(name)) => keep(&before.services, &mut now.services, name),
                Some(Key::Policy(key)) => {
                    let kept = before.good.contains(key);
                    now.good.extend(kept.then(|| key.clone()));
                    kept
                }
                None => false,
            };
            self.broken.push((broken, kept));
        }
    }

    pub(super) fn is_something(&self) -> bool {
        !(self.now.workloads.is_empty() && self.now.services.is_empty() && self.now.policies.is_empty())
    }

    /// What is other than what was told: policies first, and those that are gone last.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        let (before, now) = (&self.told, &self.now);
        let mut changes = Vec::new();
        for (key, update) in &now.policies {
            if before.policies.get(key).is_none_or(|told| !same(told, update)) {
                changes.push(Change::Policy(update.clone()));
            }
        }
        for (uid, workload) in &now.workloads {
            if before.workloads.get(uid) != Some(workload) {
                changes.push(Change::Mesh(Update::Workload(workload.clone())));
            }
        }
        let gone = before.workloads.keys().filter(|uid| !now.workloads.contains_key(*uid));
        changes.extend(gone.map(|uid| Change::Mesh(Update::RemoveWorkload(uid.clone()))));
        for (name, service) in &now.services {
            if before.services.get(name) != Some(service) {
                changes.push(Change::Mesh(Update::Service(service.clone())));
            }
        }
        let gone = before.services.keys().filter(|name| !now.services.contains_key(*name));
        changes.extend(gone.map(|name| Change::Mesh(Update::RemoveService(name.clone()))));
        let gone: BTreeSet<_> = before.policies.keys().filter(|key| !now.policies.contains_key(*key)).collect();
        changes.extend(gone.into_iter().map(|key| Change::Policy(policy::Update::Remove(key.clone()))));
        if !changes.is_empty() {
            self.told = self.now.clone();
        }
        changes
    }

    /// What is wrong with single entries, and the policy that it is.
    pub(super) fn faults(&self) -> impl Iterator<Item = (String, Option<PolicyKey>)> {
        self.broken.iter().map(|(broken, kept)| {
            let policy = match &broken.key {
                Some(Key::Policy(key)) => Some(key.clone()),
                _ => None,
            };
            let then = match (kept, &broken.key) {
                (true, _) => "its last good version stays in force, and nothing else is affected",
                (false, Some(Key::Policy(_))) => "everything in its scope is refused until it is mended",
                (false, Some(_)) => "it does not count until it is mended, and nothing else is affected",
                (false, None) => "nothing else is affected",
            };
            (format!("{}; {then}", broken.error), policy)
        })
    }
}

fn keep<K: Ord + Clone, V: Clone>(before: &BTreeMap<K, V>, now: &mut BTreeMap<K, V>, key: &K) -> bool {
    let kept = before.get(key).filter(|_| !now.contains_key(key)).cloned();
    let is = kept.is_some();
    now.extend(kept.map(|kept| (key.clone(), kept)));
    is
}

fn same(a: &policy::Update, b: &policy::Update) -> bool {
    use policy::Update::{Set, Unreadable};
    match (a, b) {
        (Set(a), Set(b)) => a == b,
        (Unreadable(a), Unreadable(b)) => a == b,
        _ => false,
    }
}
