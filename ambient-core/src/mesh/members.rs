//! The endpoints of a service, and of a large one those of each place, where it matters to whom they are near.

use std::sync::Arc;

use super::workloads::Workloads;
use crate::{BalancerMode, Endpoint, Scope, Service, Shards, Workload, WorkloadUid};

/// A service of more endpoints than this has them by place too.
const MANY: usize = 64;

/// The endpoints of a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    pub(crate) all: Shards<WorkloadUid, Endpoint>,
    /// How many have another weight than 1.
    weighted: usize,
    /// By what they are told apart, where that is asked for.
    scopes: Option<Arc<[Scope]>>,
    /// There if `scopes` are, and if there are many. Those whose workload is not known are of no place.
    places: Option<Places>,
}

/// Endpoints, by the values of their workloads for each scope that their service prefers by.
pub(crate) type Places = Shards<Spot, Shards<WorkloadUid, Near>>;

/// The values for each scope, in their order.
pub(crate) type Spot = Box<[Arc<str>]>;

/// An endpoint and its workload.
#[derive(Clone, Debug)]
pub(crate) struct Near {
    pub(crate) endpoint: Endpoint,
    pub(crate) workload: Arc<Workload>,
}

/// Where a workload is, as far as some scopes tell.
pub(crate) fn spot(scopes: &[Scope], workload: &Workload) -> Spot {
    let value = |scope: &Scope| match scope {
        Scope::Region => &workload.locality[0],
        Scope::Zone => &workload.locality[1],
        Scope::Subzone => &workload.locality[2],
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster,
        Scope::Network => &workload.network.0,
    };
    scopes.iter().map(|scope| value(scope).clone()).collect()
}

/// By what the endpoints of a service are to be told apart. Only where workloads name the service: of those that it lists it
/// is not known here when their workloads change.
fn scopes_of(service: &Service) -> Option<&[Scope]> {
    let balancer = service.load_balancer.as_ref()?;
    let prefers = matches!(balancer.mode, BalancerMode::Strict | BalancerMode::Failover) && !balancer.preferences.is_empty();
    (prefers && service.endpoints.is_empty()).then_some(&balancer.preferences[..])
}

impl Members {
    /// Those of a service, none yet; known or not.
    pub(super) fn of(service: Option<&Arc<Service>>) -> Self {
        Self {
            scopes: service.and_then(|service| scopes_of(service)).map(Into::into),
            ..Self::default()
        }
    }

    /// The endpoints by place, in the order of the scopes that their service prefers by; `None` where they are few or it does
    /// not matter, or where it lists them itself. Those whose workload is not known are left out.
    pub(crate) fn places(&self) -> Option<&Places> {
        self.places.as_ref()
    }

    /// Whether every one of them has the weight 1.
    pub(crate) fn are_equal(&self) -> bool {
        self.weighted == 0
    }

    /// Takes one in, or what has become of it. `before` is its workload as it was, if it was one of these.
    pub(super) fn put(&mut self, uid: WorkloadUid, endpoint: Endpoint, before: Option<&Workload>, workloads: &Workloads) {
        self.weighted += usize::from(endpoint.capacity != 1);
        if let (Some(scopes), Some(places)) = (&self.scopes, &mut self.places) {
            let workload = workloads.get(&uid);
            let now = workload.map(|workload| spot(scopes, workload));
            if let Some(was) = before.map(|before| spot(scopes, before)).filter(|was| now.as_ref() != Some(was)) {
                move_out(places, &was, &uid);
            }
            if let (Some(now), Some(workload)) = (now, workload) {
                let near = Near {
                    endpoint: endpoint.clone(),
                    workload: workload.clone(),
                };
                move_in(places, now, uid.clone(), near);
            }
        }
        let old = self.all.insert(uid, endpoint);
        self.weighted -= usize::from(old.is_some_and(|old| old.capacity != 1));
        self.tidy(workloads);
    }

    /// Takes one out; `before` is its workload as it was.
    pub(super) fn take(&mut self, uid: &WorkloadUid, before: Option<&Workload>) {
        let old = self.all.remove(uid);
        self.weighted -= usize::from(old.is_some_and(|old| old.capacity != 1));
        if let (Some(scopes), Some(places)) = (&self.scopes, &mut self.places) {
            if let Some(before) = before {
                move_out(places, &spot(scopes, before), uid);
            }
            // Well below where they are made, so that one that comes and goes does not make them each time.
            if self.all.len() <= MANY / 2 {
                self.places = None;
            }
        }
    }

    /// The service is another now.
    pub(super) fn serve(&mut self, service: Option<&Service>, workloads: &Workloads) {
        let scopes = service.and_then(scopes_of);
        if self.scopes.as_deref() != scopes {
            self.scopes = scopes.map(Into::into);
            self.places = None;
        }
        self.tidy(workloads);
    }

    /// Makes the places once they are worth it.
    fn tidy(&mut self, workloads: &Workloads) {
        let Some(scopes) = self.scopes.as_ref().filter(|_| self.places.is_none() && self.all.len() > MANY) else {
            return;
        };
        let mut places = Places::default();
        for (uid, endpoint) in &self.all {
            if let Some(workload) = workloads.get(uid) {
                let near = Near {
                    endpoint: endpoint.clone(),
                    workload: workload.clone(),
                };
                move_in(&mut places, spot(scopes, workload), uid.clone(), near);
            }
        }
        self.places = Some(places);
    }
}

fn move_in(places: &mut Places, to: Spot, uid: WorkloadUid, near: Near) {
    match places.value_mut(&to) {
        Some(there) => drop(there.insert(uid, near)),
        None => {
            let mut there = Shards::default();
            there.insert(uid, near);
            places.insert(to, there);
        }
    }
}

fn move_out(places: &mut Places, from: &Spot, uid: &WorkloadUid) {
    if let Some(there) = places.value_mut(from) {
        there.remove(uid);
        if there.is_empty() {
            places.remove(from);
        }
    }
}
