//! Waypoints that lead back to whom they are for.
//!
//! A route is led to one waypoint and never on from there, so that no circle carries a connection around. But of waypoints
//! that lead to each other none is what it is taken for, and what is meant to be looked at by both would be by one: a waypoint
//! that leads back is not gone to, and not gone around either. One that is its own is: whoever is led to it has come.

use std::{collections::HashSet, fmt, sync::Arc};

use super::{Mesh, Update};
use crate::{GatewayAddress, GatewayTarget, NamespacedHostname, Service, Workload, WorkloadUid};

/// Who names a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaypointUser {
    /// A workload.
    Workload(WorkloadUid),
    /// A service.
    Service(NamespacedHostname),
}

impl fmt::Display for WaypointUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(uid) => uid.fmt(f),
            Self::Service(name) => name.fmt(f),
        }
    }
}

impl Mesh {
    /// Of whom [`Mesh::waypoint_circle`] may say something else after an update than before: who has changed where it names a
    /// waypoint, and who would be led on by a service that has. To be asked of the snapshot that the update is in.
    pub fn concerned(&self, update: &Update) -> Vec<WaypointUser> {
        match update {
            Update::Workload(workload) if workload.waypoint.is_some() => vec![WaypointUser::Workload(workload.uid.clone())],
            Update::Service(service) => {
                let own = service.waypoints().next().map(|_| WaypointUser::Service(service.name.clone()));
                own.into_iter().chain(self.led_on(&service.name)).collect()
            }
            Update::Workload(_) | Update::RemoveWorkload(_) | Update::RemoveService(_) => Vec::new(),
        }
    }

    /// Who stands on the way from somebody to its waypoint, to that one's own, and so on, where that comes back: itself
    /// first. `None` where it does not.
    ///
    /// A service leads to its endpoints too, of which the first few are looked at, and whoever is asked about is always
    /// known among them; so is each way of more than a few dozen names given up. The cost follows the way, not the mesh.
    pub fn waypoint_circle(&self, user: &WaypointUser) -> Option<Vec<WaypointUser>> {
        self.circle_from(user, self.led_to(user, user))
    }

    /// The same, by those whom it leads to first.
    fn circle_from(&self, user: &WaypointUser, first: Vec<WaypointUser>) -> Option<Vec<WaypointUser>> {
        let mut seen = HashSet::new();
        let mut ways = Vec::new();
        let (mut way, mut all) = (vec![user.clone()], first);
        loop {
            for next in all {
                if next == *user {
                    return Some(way);
                }
                if seen.len() < LONGEST && seen.insert(next.clone()) {
                    ways.push(way.iter().cloned().chain([next]).collect());
                }
            }
            way = ways.pop()?;
            all = self.led_to(way.last()?, user);
        }
    }

    /// Who stands between somebody and itself on the way that begins with one of its waypoints, where that comes back by others:
    /// itself first. `None` where the way ends, and for whoever is its own waypoint. The namespace is that of the client that
    /// is to go there: of services that share an address each client has its own. Costs some look-ups where the waypoint uses
    /// none itself.
    pub(crate) fn leads_back(
        &self,
        user: impl FnOnce() -> WaypointUser,
        namespace: &str,
        waypoint: &GatewayAddress,
    ) -> Option<Vec<WaypointUser>> {
        if self.ends_at(namespace, waypoint) {
            return None;
        }
        let user = user();
        let mut first = Vec::new();
        self.behind(namespace, waypoint, &user, &mut first);
        let is_own = first.contains(&user);
        self.circle_from(&user, first).filter(|_| !is_own)
    }

    /// Whether whoever is behind a waypoint uses none.
    fn ends_at(&self, namespace: &str, waypoint: &GatewayAddress) -> bool {
        match self.gateway_service(namespace, waypoint) {
            Some(service) => service.waypoints().next().is_none() && self.led_on(&service.name).next().is_none(),
            None => self.behind_address(waypoint).is_none_or(|workload| workload.waypoint.is_none()),
        }
    }

    /// Who is behind the waypoints of somebody, as far as it names waypoints itself or is whom is asked about.
    fn led_to(&self, from: &WaypointUser, asked: &WaypointUser) -> Vec<WaypointUser> {
        let mut all = Vec::new();
        match from {
            WaypointUser::Workload(uid) => {
                let workload = self.workload(uid);
                if let Some((workload, waypoint)) = workload.and_then(|w| Some((w, w.waypoint.as_ref()?))) {
                    self.behind(&workload.namespace, waypoint, asked, &mut all);
                }
            }
            WaypointUser::Service(name) => {
                if let Some(service) = self.service(name) {
                    for waypoint in service.waypoints() {
                        self.behind(&name.namespace, waypoint, asked, &mut all);
                    }
                }
            }
        }
        all
    }

    fn behind(&self, namespace: &str, waypoint: &GatewayAddress, asked: &WaypointUser, into: &mut Vec<WaypointUser>) {
        let Some(service) = self.gateway_service(namespace, waypoint) else {
            let workload = self.behind_address(waypoint);
            into.extend(workload.map(|workload| WaypointUser::Workload(workload.uid.clone())));
            return;
        };
        let is_asked = match asked {
            WaypointUser::Service(name) => *name == service.name,
            WaypointUser::Workload(uid) => self.endpoint(&service.name, uid).is_some(),
        };
        if is_asked {
            into.push(asked.clone());
        } else if service.waypoints().next().is_some() {
            into.push(WaypointUser::Service(service.name.clone()));
        }
        into.extend(self.led_on(&service.name));
    }

    /// The workload that a gateway is which is no service.
    fn behind_address(&self, gateway: &GatewayAddress) -> Option<&Arc<Workload>> {
        match &gateway.target {
            GatewayTarget::Address(address) => self.workload_by_address(address),
            GatewayTarget::Hostname(name) => self.workload_by_hostname(name),
        }
    }

    /// The first few endpoints of a service that name a waypoint.
    fn led_on(&self, service: &NamespacedHostname) -> impl Iterator<Item = WaypointUser> {
        let endpoints = self.endpoints(service).into_iter().flat_map(|endpoints| endpoints.keys());
        let first = endpoints.take(LOOKED_AT).filter_map(|uid| self.workload(uid));
        first
            .filter(|workload| workload.waypoint.is_some())
            .map(|workload| WaypointUser::Workload(workload.uid.clone()))
    }

    /// The service that a gateway is, if it is one.
    pub(crate) fn gateway_service(&self, namespace: &str, gateway: &GatewayAddress) -> Option<&Arc<Service>> {
        match &gateway.target {
            GatewayTarget::Address(address) => self.service_by_vip(address, namespace),
            GatewayTarget::Hostname(name) => self.service(name),
        }
    }
}

#[cfg(test)]
mod tests;

/// Endpoints of a gateway that are looked at: they are alike, as a rule.
const LOOKED_AT: usize = 4;
/// Names that a way is followed through.
const LONGEST: usize = 64;
