//! All resources as they are served: made from changes, each in time that its own size takes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use ambient_authz::policy;
use ambient_core::{Endpoints, Health, Identity, Membership, Mesh, NamespacedHostname, TrustBundles, Workload, WorkloadUid, mesh::Update};

use super::encode;
use crate::{Change, istiod::Kind};

#[cfg(test)]
mod tests;

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// Tells contents apart, and is the same for the same contents whoever serves them: a client that comes to another
    /// process, or to the next one, has not to be told anew what it has.
    pub(super) version: Arc<str>,
    pub(super) aliases: Arc<[String]>,
    pub(super) body: Arc<[u8]>,
}

/// What is served.
#[derive(Debug, Default)]
pub(super) struct Board {
    mesh: Mesh,
    /// The endpoints that a service lists.
    listed: HashMap<NamespacedHostname, Endpoints>,
    /// The services that list a workload as their endpoint.
    listing: HashMap<WorkloadUid, BTreeSet<NamespacedHostname>>,
    kinds: [Resources; 3],
    /// How many workloads of an account are on a node.
    accounts: HashMap<(Arc<str>, Identity), usize>,
    /// Counts what has changed.
    generation: u64,
    /// What has changed last, one generation each.
    log: VecDeque<(Kind, Arc<str>)>,
    synced: bool,
}

/// Whose resources may have become different.
#[derive(Debug, Default)]
struct Touched {
    workloads: BTreeSet<WorkloadUid>,
    services: BTreeSet<NamespacedHostname>,
}

#[derive(Debug, Default)]
struct Resources {
    all: BTreeMap<Arc<str>, Resource>,
    /// Whom an alias means.
    aliases: HashMap<String, Arc<str>>,
}

impl Board {
    /// Takes changes in; `true` where anything that is served became different.
    pub(super) fn apply(&mut self, changes: &[Change], synced: bool) -> bool {
        let before = (self.generation, self.synced);
        self.synced |= synced;
        let (mut touched, mut updates) = (Touched::default(), Vec::new());
        for change in changes {
            match change {
                Change::Mesh(update) => {
                    self.note_update(update, &mut touched);
                    updates.push(update.clone());
                }
                Change::Policy(update) => self.policy_update(update),
                // The authority says whom to trust.
                Change::Trust(_) => {}
            }
        }
        let touched_workloads = || touched.workloads.iter();
        touched_workloads().for_each(|uid| count(&mut self.accounts, self.mesh.workload(uid), false));
        self.mesh = self.mesh.apply(updates);
        touched_workloads().for_each(|uid| count(&mut self.accounts, self.mesh.workload(uid), true));
        self.write(touched);
        before != (self.generation, self.synced)
    }

    /// Takes in whom the authority says to trust; `true` where that became different. A domain without a root is none, and that
    /// nobody is trusted any more is not believed.
    pub(super) fn set_trust(&mut self, trust: &TrustBundles) -> bool {
        if trust.domains().next().is_none() {
            return false;
        }
        let before = self.generation;
        let served: Vec<Arc<str>> = self.all(Kind::Trust).map(|(name, _)| name.clone()).collect();
        for gone in served
            .iter()
            .filter(|name| trust.domains().all(|domain| domain.as_str() != &***name))
        {
            self.take(Kind::Trust, gone);
        }
        for domain in trust.domains() {
            let body = encode::trust(trust.roots(domain), trust.crls(domain));
            self.put(Kind::Trust, domain.as_str(), (Vec::new(), body));
        }
        before != self.generation
    }

    /// The mesh.
    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Whether a pod of an identity is on a node.
    pub(super) fn has_account(&self, node: &str, identity: &Identity) -> bool {
        self.accounts.contains_key(&(Arc::from(node), identity.clone()))
    }

    /// Whether the first whole state is here: until then nothing is served, as it would be taken for everything.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Grows with every change.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What has changed since a generation; `None` where that is not remembered.
    pub(super) fn since(&self, generation: u64) -> Option<impl Iterator<Item = &(Kind, Arc<str>)>> {
        let behind = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let from = self.log.len().checked_sub(behind)?;
        Some(self.log.range(from..))
    }

    /// Every resource of a kind.
    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.kinds[kind as usize].all.iter()
    }

    /// A resource by its name or an alias, with its name.
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<(&Arc<str>, &Resource)> {
        let kind = &self.kinds[kind as usize];
        kind.all
            .get_key_value(name)
            .or_else(|| kind.all.get_key_value(&**kind.aliases.get(name)?))
    }

    /// The workload that a resource is.
    pub(super) fn workload(&self, name: &str) -> Option<&Arc<Workload>> {
        self.mesh.workload(&WorkloadUid::from(name))
    }

    /// The names of the services that a workload is an endpoint of.
    pub(super) fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = String> + 'a {
        let named = workload.services.iter().map(|membership| &membership.service);
        let listing = self.listing.get(&workload.uid).into_iter().flatten();
        named.chain(listing).map(ToString::to_string)
    }

    /// The names of the endpoints of a service; none of what is no service.
    pub(super) fn endpoints_of(&self, name: &str) -> impl Iterator<Item = &str> {
        let endpoints = name.parse().ok().and_then(|name| self.mesh.endpoints(&name));
        endpoints.into_iter().flat_map(|all| all.iter()).map(|(uid, _)| uid.as_str())
    }

    /// Takes note of a change of the mesh, and of whom else it concerns.
    fn note_update(&mut self, update: &Update, touched: &mut Touched) {
        match update {
            Update::Workload(workload) => drop(touched.workloads.insert(workload.uid.clone())),
            Update::RemoveWorkload(uid) => drop(touched.workloads.insert(uid.clone())),
            Update::Service(service) => self.relist(&service.name, service.endpoints.clone(), touched),
            Update::RemoveService(name) => self.relist(name, Endpoints::default(), touched),
        }
    }

    fn relist(&mut self, name: &NamespacedHostname, now: Endpoints, touched: &mut Touched) {
        touched.services.insert(name.clone());
        let before = self.listed.remove(name).unwrap_or_default();
        if !now.is_empty() {
            self.listed.insert(name.clone(), now.clone());
        }
        for uid in before.keys().filter(|uid| !now.contains_key(*uid)) {
            self.unlist(uid, name);
        }
        for uid in now.keys().filter(|uid| !before.contains_key(*uid)) {
            self.listing.entry(uid.clone()).or_default().insert(name.clone());
        }
        let all = before.keys().chain(now.keys());
        touched
            .workloads
            .extend(all.filter(|uid| before.get(*uid) != now.get(*uid)).cloned());
    }

    /// Writes anew what may have become different.
    fn write(&mut self, touched: Touched) {
        for name in touched.services {
            match self.mesh.service(&name).cloned() {
                Some(service) => self.put(Kind::Address, &name.to_string(), encode::service(&service)),
                None => self.take(Kind::Address, &name.to_string()),
            }
        }
        for uid in touched.workloads {
            match self.mesh.workload(&uid).cloned() {
                Some(workload) => {
                    let encoded = encode::workload(&self.with_services(&workload));
                    self.put(Kind::Address, uid.as_str(), encoded);
                }
                None => self.take(Kind::Address, uid.as_str()),
            }
        }
    }

    fn unlist(&mut self, uid: &WorkloadUid, service: &NamespacedHostname) {
        if let Some(listing) = self.listing.get_mut(uid) {
            listing.remove(service);
            if listing.is_empty() {
                self.listing.remove(uid);
            }
        }
    }

    /// On the wire a workload names its services; here services list their endpoints as well.
    fn with_services(&self, workload: &Arc<Workload>) -> Workload {
        let mut whole = Workload::clone(workload);
        for service in self.listing.get(&workload.uid).into_iter().flatten() {
            let Some(endpoint) = self.mesh.endpoint(service, &workload.uid) else {
                continue;
            };
            whole.services.retain(|membership| membership.service != *service);
            // The wire knows the health of a workload, not that of an endpoint.
            if endpoint.health == Health::Healthy || workload.health == Health::Unhealthy {
                whole.services.push(Membership {
                    service: service.clone(),
                    ports: endpoint.ports.clone(),
                });
            }
        }
        whole
    }

    fn policy_update(&mut self, update: &policy::Update) {
        match update {
            policy::Update::Set(policy) => self.put(Kind::Authorization, policy.key.as_str(), (Vec::new(), encode::policy(policy))),
            // What was served of it last stays; where that is nothing, everything in its scope is to be refused, unless it is in
            // dry run.
            policy::Update::Unreadable(unreadable)
                if !unreadable.dry_run && self.get(Kind::Authorization, unreadable.key.as_str()).is_none() =>
            {
                let body = encode::refusal(unreadable.key.as_str(), &unreadable.namespace, unreadable.scope);
                self.put(Kind::Authorization, unreadable.key.as_str(), (Vec::new(), body));
            }
            policy::Update::Unreadable(_) | policy::Update::Kept(_) => {}
            policy::Update::Remove(key) => self.take(Kind::Authorization, key.as_str()),
        }
    }

    fn put(&mut self, kind: Kind, name: &str, (aliases, body): (Vec<String>, Vec<u8>)) {
        let mut hasher = DefaultHasher::new();
        (&aliases, &body).hash(&mut hasher);
        let resource = Resource {
            version: format!("{:016x}", hasher.finish()).into(),
            aliases: aliases.into(),
            body: body.into(),
        };
        let resources = &mut self.kinds[kind as usize];
        if resources.all.get(name) == Some(&resource) {
            return;
        }
        resources.forget_aliases(name);
        let name: Arc<str> = name.into();
        for alias in &*resource.aliases {
            resources.aliases.insert(alias.clone(), name.clone());
        }
        resources.all.insert(name.clone(), resource);
        self.note(kind, name);
    }

    fn take(&mut self, kind: Kind, name: &str) {
        let resources = &mut self.kinds[kind as usize];
        resources.forget_aliases(name);
        if let Some((name, _)) = resources.all.remove_entry(name) {
            self.note(kind, name);
        }
    }

    fn note(&mut self, kind: Kind, name: Arc<str>) {
        self.generation += 1;
        self.log.push_back((kind, name));
        if self.log.len() > LOG {
            self.log.pop_front();
        }
    }
}

fn count(accounts: &mut HashMap<(Arc<str>, Identity), usize>, workload: Option<&Arc<Workload>>, more: bool) {
    let Some(workload) = workload else { return };
    // One that cannot be named gets no certificate.
    let Ok(identity) = workload.identity() else { return };
    let key = (workload.node.clone(), identity);
    if more {
        *accounts.entry(key).or_default() += 1;
    } else if let Some(count) = accounts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            accounts.remove(&key);
        }
    }
}

impl Resources {
    fn forget_aliases(&mut self, name: &str) {
        let Some(old) = self.all.get(name) else { return };
        for alias in &*old.aliases {
            // Another may have taken the address over meanwhile.
            if self.aliases.get(alias).is_some_and(|owner| **owner == *name) {
                self.aliases.remove(alias);
            }
        }
    }
}

/// Changes that are remembered one by one: who is further behind is compared whole.
const LOG: usize = if cfg!(test) { 64 } else { 65_536 };
