//! Policies: which are to be told, and who lists them.

use std::{collections::BTreeMap, sync::Arc};

use ambient_authz::{
    kubernetes::{self, Labels, ReadError, Reading, Selector, peer_authentication},
    policy::Unreadable,
};
use ambient_core::PolicyKey;

use super::{
    Kind, ObjectKey, Objects,
    space::Space,
    versions::{Authorization, Told, Versions},
};
use crate::Change;

/// What is refused that is no policy, such as what is in a file that cannot be read.
pub(super) type Refusals = BTreeMap<PolicyKey, Arc<Unreadable>>;

impl Objects {
    pub(super) fn put_authorization(&mut self, key: ObjectKey, read: Option<Result<Reading, ReadError>>) {
        let read = read.map(|read| {
            read.map(|reading| {
                self.warnings.extend(reading.warnings.into_iter().map(|w| (key.clone(), w)));
                Authorization {
                    policy: reading.policy.map(Arc::new),
                    selector: reading.selector,
                }
            })
        });
        let selector_of = |versions: &Versions<Authorization>| versions.attached().map(|(_, selector)| selector.clone());
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let before = space.authorizations.remove(&key.name);
        if before.is_none() && read.is_none() {
            return self.forget_if_empty(&key.namespace);
        }
        let old = before.as_ref().and_then(selector_of);
        let now = read.map(|read| Versions::after(before, read));
        let new = now.as_ref().and_then(selector_of);
        if old != new {
            if let Some(selector) = &old {
                space.guarding.remove(first_label(selector), &key.name);
            }
            if let Some(selector) = &new {
                space.guarding.insert(first_label(selector), &key.name);
            }
        }
        if let Some(now) = now {
            space.authorizations.insert(key.name.clone(), now);
        }
        self.stale.policies.insert(authorization_key(&key));
        if old != new {
            for selector in old.iter().chain(&new) {
                self.touch_selected(&key.namespace, Some(selector));
            }
        }
        self.forget_if_empty(&key.namespace);
    }

    pub(super) fn put_peer(&mut self, key: &ObjectKey, read: Option<Result<peer_authentication::Object, ReadError>>) {
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let before = space.peers.remove(&key.name);
        let mut selectors: Vec<Option<Selector>> = before.iter().flat_map(selectors).collect();
        if let Some(read) = read {
            let now = Versions::after(before, read);
            selectors.extend(self::selectors(&now));
            space.peers.insert(key.name.clone(), now);
        }
        self.stale.peers = true;
        for selector in selectors {
            self.touch_selected(&key.namespace, selector.as_ref());
        }
        self.forget_if_empty(&key.namespace);
    }

    /// Whoever a selector of a namespace may select, everywhere if that is the root namespace.
    fn touch_selected(&mut self, namespace: &str, selector: Option<&Selector>) {
        let everywhere = *namespace == *self.settings.root_namespace;
        let spaces = self.spaces.iter().filter(|(ns, _)| everywhere || ***ns == *namespace);
        for (namespace, space) in spaces {
            let labels = selector.map(Selector::labels).filter(|labels| !labels.is_empty());
            match labels.filter(|_| !self.settings.istio_exact) {
                Some(labels) => {
                    let selected = space.selected(labels);
                    let keys = selected.map(|(kind, name)| ObjectKey::new(*kind, namespace, name));
                    self.stale.sources.extend(keys);
                }
                None => self.stale.sources.extend(guarded(namespace, space)),
            }
        }
    }

    /// The changes of policies, and the keys of those that are gone: these are to be told after the workloads.
    pub(super) fn policy_changes(&mut self) -> (Vec<Change>, Vec<PolicyKey>) {
        if std::mem::take(&mut self.stale.peers) {
            self.read_peers();
        }
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.stale.policies) {
            self.looked_at += 1;
            let before = self.told_policies.remove(&key);
            match self.wanted(&key) {
                Some(told) => {
                    if before.as_ref() != Some(&told) {
                        changes.extend(told.updates(before.as_ref()));
                    }
                    self.told_policies.insert(key, told);
                }
                None => gone.extend(before.map(|_| key)),
            }
        }
        let changes = changes.into_iter().map(Change::Policy).collect();
        (changes, gone)
    }

    fn read_peers(&mut self) {
        let objects = self.spaces.values().flat_map(|space| space.peers.values());
        self.peers = peer_authentication::Set::new(&self.reading, objects.filter_map(|o| o.good.clone()));
        let mut now: BTreeMap<PolicyKey, Told> = BTreeMap::new();
        for versions in self.spaces.values().flat_map(|space| space.peers.values()) {
            if let Some(error) = &versions.error {
                now.insert(error.key.clone(), versions.told_unreadable(error));
            }
        }
        let converted = peer_authentication::policies(&self.peers).into_iter();
        now.extend(converted.map(|p| (p.key.clone(), Told::Policy(Arc::new(p)))));
        let before = &self.peer_policies;
        let keys = before.keys().chain(now.keys());
        let others = keys.filter(|key| before.get(*key) != now.get(*key)).cloned();
        self.stale.policies.extend(others);
        self.peer_policies = now;
    }

    /// What is to be told of a policy.
    fn wanted(&self, key: &PolicyKey) -> Option<Told> {
        if let Some(refusal) = self.refusals.get(key) {
            return Some(Told::Unreadable(refusal.clone()));
        }
        if let Some(told) = self.peer_policies.get(key) {
            return Some(told.clone());
        }
        let (namespace, name) = key.as_str().split_once('/')?;
        let (own, told) = self.spaces.get(namespace)?.authorizations.get(name)?.told()?;
        (own == *key).then_some(told)
    }

    /// The policies that a workload lists: those of authorization, then those of authentication, each in order.
    pub(super) fn attached(&self, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
        let root = &*self.settings.root_namespace;
        let names = if namespace < root { [namespace, root] } else { [root, namespace] };
        let both = if namespace == root { &names[1..] } else { &names };
        let spaces = || both.iter().filter_map(|ns| self.spaces.get(*ns));
        // Read as istiod reads them, whoever has no labels is selected by all.
        let all = self.settings.istio_exact && labels.is_empty();
        let few = spaces().filter(|_| !all).flat_map(|space| space.guarding(labels));
        let every = spaces().filter(|_| all).flat_map(|space| space.authorizations.values());
        let authorizations = few.chain(every).filter_map(Versions::attached);
        let unread = spaces().flat_map(|space| space.peers.values()).filter_map(Versions::unread);
        kubernetes::attached(authorizations, unread, &self.peers, namespace, labels)
    }
}

/// The selectors of what may be in force of a PeerAuthentication.
fn selectors(versions: &Versions<peer_authentication::Object>) -> Vec<Option<Selector>> {
    let good = versions.good.as_ref().map(|good| good.selector().cloned());
    let bad = versions.error.as_ref().map(|error| error.selector.clone());
    good.into_iter().chain(bad).collect()
}

fn guarded(namespace: &str, space: &Space) -> Vec<ObjectKey> {
    let of = |kind, names: &mut dyn Iterator<Item = &Arc<str>>| -> Vec<ObjectKey> {
        names.map(|name| ObjectKey::new(kind, namespace, name)).collect()
    };
    let mut keys = of(Kind::Pod, &mut space.pods.keys());
    keys.extend(of(Kind::WorkloadEntry, &mut space.workload_entries.keys()));
    keys.extend(of(Kind::ServiceEntry, &mut space.entries.keys()));
    keys
}

/// The label that a selector is found by; one that selects all is found by a label that everybody has.
fn first_label(selector: &Selector) -> (&String, &String) {
    static NONE: String = String::new();
    selector.labels().first_key_value().unwrap_or((&NONE, &NONE))
}

fn authorization_key(key: &ObjectKey) -> PolicyKey {
    format!("{}/{}", key.namespace, key.name).into()
}
