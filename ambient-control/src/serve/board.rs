//! All resources as they are served: made from changes, each in time that its own size takes.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use ambient_authz::policy;
use ambient_core::{
    Endpoints, Health, Identity, Membership, Mesh, NamespacedHostname, Shards, TrustBundles, Workload, WorkloadUid, mesh::Update,
};

use super::{encode, limits::Limits, response};
use crate::{Change, istiod::Kind};

#[cfg(test)]
mod tests;

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// Tells contents apart, and is the same for the same contents whoever serves them: a client that comes to another
    /// process, or to the next one, has not to be told anew what it has.
    pub(super) version: u64,
    /// The board's generation since which it is as it is.
    pub(super) changed: u64,
    pub(super) aliases: Arc<[Arc<str>]>,
    /// It as a field of a response: written once, whoever is told of it.
    pub(super) field: Arc<[u8]>,
}

/// Every resource of a kind by its name. A clone is one reference count: a response that is on its way holds the version that
/// it says, and shares with the present one all that has not changed since.
pub(super) type All = Shards<Arc<str>, Resource>;

/// What is served.
#[derive(Debug, Default)]
pub(super) struct Board {
    limits: Limits,
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
    /// What was taken away last, and in which generation.
    removals: VecDeque<(u64, Kind, Arc<str>)>,
    /// Up to which generation of removals some are not remembered any more.
    forgotten: u64,
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
    all: All,
    /// Who has an alias, as a rule one alone.
    aliases: HashMap<Arc<str>, Arc<str>>,
    /// Who else has it: addresses may be those of several, as of a pod and of an endpoint that is written elsewhere.
    shared: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Board {
    /// Nothing is known yet.
    pub(super) fn within(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes changes in; `true` where anything that is served became different.
    pub(super) fn apply(&mut self, changes: &[Change], synced: bool) -> bool {
        let before = (self.generation, self.synced);
        self.synced |= synced;
        self.forget();
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
        self.forget();
        let served: Vec<Arc<str>> = self.all(Kind::Trust).keys().cloned().collect();
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

    /// What has changed since a generation, where that is few enough to be told one by one.
    pub(super) fn few_since(&self, generation: u64) -> Option<impl Iterator<Item = &(Kind, Arc<str>)>> {
        let most = self.limits.one_by_one;
        self.since(generation).filter(|recent| recent.len() <= most)
    }

    /// What has changed since a generation; `None` where that is not remembered one by one.
    pub(super) fn since(&self, generation: u64) -> Option<impl ExactSizeIterator<Item = &(Kind, Arc<str>)>> {
        let behind = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let from = self.log.len().checked_sub(behind)?;
        Some(self.log.range(from..))
    }

    /// What of a kind was taken away since a generation, and is not back; `None` where that is not remembered. A name may come
    /// twice.
    pub(super) fn removed_since(&self, kind: Kind, generation: u64) -> Option<impl Iterator<Item = &Arc<str>>> {
        let from = self.removals.partition_point(|(at, ..)| *at <= generation);
        let removals = self.removals.range(from..).filter(move |(_, of, _)| *of == kind);
        let gone = removals
            .map(|(.., name)| name)
            .filter(move |name| !self.all(kind).contains_key(&***name));
        (generation >= self.forgotten).then_some(gone)
    }

    /// Every resource of a kind.
    pub(super) fn all(&self, kind: Kind) -> &All {
        &self.kinds[kind as usize].all
    }

    /// A resource by its name or an alias, with its name; one of several that have the alias.
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<(&Arc<str>, &Resource)> {
        self.meant(kind, name).next()
    }

    /// What a name means: the resource of that name, else all that have it as an alias.
    pub(super) fn meant<'a>(&'a self, kind: Kind, name: &str) -> impl Iterator<Item = (&'a Arc<str>, &'a Resource)> + use<'a> {
        let kind = &self.kinds[kind as usize];
        let own = kind.all.entry(name);
        let others = kind.shared.get(name).into_iter().flatten();
        let is_alias = own.is_none();
        let owners = kind.aliases.get(name).into_iter().chain(others).filter(move |_| is_alias);
        own.into_iter().chain(owners.filter_map(|owner| kind.all.entry(&**owner)))
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
                let body = encode::refusal(unreadable);
                self.put(Kind::Authorization, unreadable.key.as_str(), (Vec::new(), body));
            }
            policy::Update::Unreadable(_) | policy::Update::Kept(_) => {}
            policy::Update::Remove(key) => self.take(Kind::Authorization, key.as_str()),
        }
    }

    fn put(&mut self, kind: Kind, name: &str, (aliases, body): (Vec<String>, Vec<u8>)) {
        let mut hasher = DefaultHasher::new();
        (&aliases, &body).hash(&mut hasher);
        let version = hasher.finish();
        let resources = &mut self.kinds[kind as usize];
        let before = resources.all.entry(name);
        let field = response::field(kind, name, version, &aliases, body);
        if before.is_some_and(|(_, before)| before.field == field) {
            return;
        }
        let name = before.map_or_else(|| name.into(), |(name, _)| name.clone());
        resources.forget_aliases(&name);
        let aliases: Arc<[Arc<str>]> = aliases.into_iter().map(Arc::from).collect();
        for alias in &*aliases {
            resources.call(alias, &name);
        }
        let resource = Resource {
            version,
            changed: self.generation + 1,
            aliases,
            field,
        };
        resources.all.insert(name.clone(), resource);
        self.note(kind, name);
    }

    fn take(&mut self, kind: Kind, name: &str) {
        let resources = &mut self.kinds[kind as usize];
        resources.forget_aliases(name);
        let Some(name) = resources.all.entry(name).map(|(name, _)| name.clone()) else {
            return;
        };
        resources.all.remove(&*name);
        self.note(kind, name.clone());
        self.removals.push_back((self.generation, kind, name));
    }

    fn note(&mut self, kind: Kind, name: Arc<str>) {
        self.generation += 1;
        self.log.push_back((kind, name));
        if self.log.len() > self.limits.remembered {
            self.log.pop_front();
        }
    }

    /// Forgets old removals, but nothing of the last change, however much that took away: whoever keeps up has heard of all
    /// that was before it.
    fn forget(&mut self) {
        while self.removals.len() > self.limits.remembered {
            if let Some((at, ..)) = self.removals.pop_front() {
                self.forgotten = at;
            }
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
    fn call(&mut self, alias: &Arc<str>, name: &Arc<str>) {
        let first = self.aliases.entry(alias.clone()).or_insert_with(|| name.clone());
        if first != name {
            self.shared.entry(alias.clone()).or_default().insert(name.clone());
        }
    }

    fn forget_aliases(&mut self, name: &str) {
        let Some(old) = self.all.get(name) else { return };
        for alias in &*old.aliases {
            let is_first = self.aliases.get(alias).is_some_and(|first| **first == *name);
            let heir = match self.shared.get_mut(alias) {
                Some(others) if is_first => others.pop_first(),
                Some(others) => {
                    others.remove(name);
                    None
                }
                None => None,
            };
            match heir {
                Some(heir) => drop(self.aliases.insert(alias.clone(), heir)),
                None if is_first => drop(self.aliases.remove(alias)),
                None => {}
            }
            if self.shared.get(alias).is_some_and(BTreeSet::is_empty) {
                self.shared.remove(alias);
            }
        }
    }
}
