//! What is known of one namespace, and how it is found by labels, hosts and names.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use ambient_authz::kubernetes::{Labels, peer_authentication};

use super::{
    kinds::{EndpointSlice, Kind, Pod, Service, ServiceEntry, WorkloadEntry, selects},
    versions::{Authorization, Versions},
};

/// An object of a namespace.
pub(super) type Member = (Kind, Arc<str>);

/// A namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    pub(super) pods: BTreeMap<Arc<str>, Box<Pod>>,
    pub(super) services: BTreeMap<Arc<str>, Box<Service>>,
    pub(super) entries: BTreeMap<Arc<str>, Box<ServiceEntry>>,
    pub(super) workload_entries: BTreeMap<Arc<str>, Box<WorkloadEntry>>,
    pub(super) slices: BTreeMap<Arc<str>, Box<EndpointSlice>>,
    pub(super) authorizations: BTreeMap<Arc<str>, Versions<Authorization>>,
    pub(super) peers: BTreeMap<Arc<str>, Versions<peer_authentication::Object>>,
    /// Pods, WorkloadEntries and ServiceEntries by each of their labels.
    pub(super) labelled: LabelIndex<Member>,
    /// Services and ServiceEntries by the first label that they select by.
    pub(super) selecting: LabelIndex<Member>,
    /// Policies of authorization by the first label that they select by.
    pub(super) guarding: LabelIndex<Arc<str>>,
    /// The slices of a service.
    pub(super) slices_of: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The ServiceEntries that claim a host.
    pub(super) hosts: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Space {
    /// The labels of what workloads come from, as policies go by them.
    pub(super) fn labels_of(&self, (kind, name): &Member) -> Option<Cow<'_, Labels>> {
        match kind {
            Kind::Pod => Some(Cow::Borrowed(&self.pods.get(name)?.metadata.labels)),
            Kind::WorkloadEntry => Some(self.workload_entries.get(name)?.labels()),
            Kind::ServiceEntry => Some(Cow::Borrowed(&self.entries.get(name)?.metadata.labels)),
            _ => None,
        }
    }

    /// What workloads come from that have all of some labels; none without labels. Of these a service selects pods and
    /// WorkloadEntries alone.
    pub(super) fn selected<'a>(&'a self, selector: &'a Labels) -> impl Iterator<Item = &'a Member> {
        let candidates = self.labelled.fewest(selector).into_iter().flatten();
        candidates.filter(|member| self.labels_of(member).is_some_and(|labels| selects(selector, &labels)))
    }

    /// The labels that a Service or ServiceEntry selects by; none where it selects nothing.
    pub(super) fn selector_of(&self, (kind, name): &Member) -> Option<&Labels> {
        let selector = match kind {
            Kind::Service => Some(&self.services.get(name)?.spec.selector),
            Kind::ServiceEntry => self.entries.get(name)?.selector(),
            _ => None,
        };
        selector.filter(|labels| !labels.is_empty())
    }

    /// The Services and ServiceEntries that select somebody with these labels.
    pub(super) fn selecting<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Member> {
        let candidates = labels.iter().flat_map(|label| self.selecting.get(label));
        candidates.filter(|member| self.selector_of(member).is_some_and(|selector| selects(selector, labels)))
    }

    /// The pods that are endpoints of a Service by its slices, each by its namespace and name.
    pub(super) fn sliced<'a>(&'a self, service: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let slices = self.slices_of.get(service).into_iter().flatten();
        slices.filter_map(|slice| self.slices.get(slice)).flat_map(|slice| slice.pods())
    }

    /// The policies of authorization that may select somebody with these labels.
    pub(super) fn guarding<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Versions<Authorization>> {
        static NONE: String = String::new();
        let names = labels.iter().chain([(&NONE, &NONE)]).flat_map(|label| self.guarding.get(label));
        names.filter_map(|name| self.authorizations.get(name))
    }

    /// Whether nothing is known of it.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
            && self.annotations.is_empty()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.entries.is_empty()
            && self.workload_entries.is_empty()
            && self.slices.is_empty()
            && self.authorizations.is_empty()
            && self.peers.is_empty()
    }
}

/// Who has a label, or asks for it. Two labels may share an entry: who looks here looks at the labels too.
#[derive(Debug)]
pub(super) struct LabelIndex<T>(HashMap<u64, BTreeSet<T>>);

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Ord + Clone> LabelIndex<T> {
    pub(super) fn insert(&mut self, label: (&String, &String), who: &T) {
        self.0.entry(hash(label)).or_default().insert(who.clone());
    }

    pub(super) fn remove(&mut self, label: (&String, &String), who: &T) {
        let hash = hash(label);
        if let Some(all) = self.0.get_mut(&hash) {
            all.remove(who);
            if all.is_empty() {
                self.0.remove(&hash);
            }
        }
    }

    fn get(&self, label: (&String, &String)) -> impl Iterator<Item = &T> {
        self.0.get(&hash(label)).into_iter().flatten()
    }

    /// Those who may have all of some labels: who has the rarest of them.
    fn fewest(&self, labels: &Labels) -> Option<&BTreeSet<T>> {
        let mut fewest: Option<&BTreeSet<T>> = None;
        for label in labels {
            let all = self.0.get(&hash(label))?;
            if fewest.is_none_or(|fewest| all.len() < fewest.len()) {
                fewest = Some(all);
            }
        }
        fewest
    }
}

fn hash(label: (&String, &String)) -> u64 {
    let mut hasher = DefaultHasher::new();
    label.hash(&mut hasher);
    hasher.finish()
}
