//! Waypoints, and the gateways of other networks.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Inner, Plan, Refusal, Stop, Tunnel, Way, accepted, balance, balance::Choice, may_be_dialled};
use crate::{Authority, Endpoint, GatewayAddress, GatewayTarget, Identity, IpFamilies, Mesh, Service, Workload, mesh::WaypointUser};

/// The waypoint of a service that a draw falls on, if it has any.
pub(super) fn waypoint(service: &Service, draw: u64) -> Option<&GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let chosen = balance::weighted(weighted.iter().map(|w| (w, w.weight)), balance::mix(draw, balance::WAYPOINT));
    chosen.map(|w| &w.destination).or(service.waypoint.as_ref())
}

/// Whether a pod is a waypoint: its own connections go on to the destination.
pub(super) fn is(mesh: &Mesh, pod: &Workload, waypoint: &GatewayAddress) -> bool {
    match mesh.gateway_service(&pod.namespace, waypoint) {
        Some(service) => mesh.endpoint(&service.name, &pod.uid).is_some(),
        None => match &waypoint.target {
            GatewayTarget::Address(at) => at.network == pod.network && pod.has_address(at.ip),
            GatewayTarget::Hostname(name) => mesh.workload_by_hostname(name).is_some_and(|w| w.uid == pod.uid),
        },
    }
}

/// Whether a pod is one of the waypoints of a service.
pub(super) fn is_one_of(mesh: &Mesh, pod: &Workload, service: &Service) -> bool {
    service.waypoints().any(|waypoint| is(mesh, pod, waypoint))
}

/// A gateway that was chosen.
struct Found<'a> {
    workload: &'a Arc<Workload>,
    service: Option<&'a Arc<Service>>,
    /// The address that it is named by, where it is not one of a service's.
    named: Option<IpAddr>,
    port: u16,
}

impl Found<'_> {
    fn accepted(&self) -> Result<Vec<Identity>, Refusal> {
        accepted(self.workload, self.service.map(|service| &**service))
    }
}

impl Way<'_> {
    /// Through the waypoint of a service.
    pub(super) fn to_waypoint_of_service(&self, waypoint: &GatewayAddress, service: &Arc<Service>) -> Result<Plan, Stop> {
        let user = || WaypointUser::Service(service.name.clone());
        self.refuse_circles(user, waypoint)?;
        self.to_waypoint(waypoint, Some(service))
    }

    /// Through the waypoint of a workload.
    pub(super) fn to_waypoint_of_workload(&self, waypoint: &GatewayAddress, workload: &Workload) -> Result<Plan, Stop> {
        let user = || WaypointUser::Workload(workload.uid.clone());
        self.refuse_circles(user, waypoint)?;
        self.to_waypoint(waypoint, None)
    }

    fn refuse_circles(&self, user: impl FnOnce() -> WaypointUser, waypoint: &GatewayAddress) -> Result<(), Refusal> {
        let Some(way) = self.mesh.leads_back(user, &self.source.namespace, waypoint) else {
            return Ok(());
        };
        match <[_; 2]>::try_from(way.into_iter().take(2).collect::<Vec<_>>()) {
            Ok([user, by]) => Err(Refusal::WaypointCircle { user, by }),
            Err(_) => Ok(()),
        }
    }

    /// Through a waypoint, which is to go on to where the connection was meant to. A waypoint of a service may be in another
    /// network, behind the gateway of that.
    fn to_waypoint(&self, waypoint: &GatewayAddress, service: Option<&Arc<Service>>) -> Result<Plan, Stop> {
        let is_here = |workload: &Workload| workload.network == self.source.network;
        let found = self.find(waypoint, |workload, families| match is_here(workload) {
            true => may_be_dialled(workload, families),
            false => service.is_some() && workload.network_gateway.is_some(),
        });
        let found = found.ok_or_else(|| Refusal::NoWaypoint(waypoint.target.clone()))?;
        if let (Some(service), false) = (service, is_here(found.workload)) {
            let inner = found.service.map(|waypoints| &waypoints.subject_alt_names[..]);
            return self.through_gateway(service, found.workload, inner.unwrap_or_default());
        }
        Ok(Plan::Tunnel(Tunnel {
            peer: self.at(&found)?,
            authority: self.to.into(),
            accepted: found.accepted()?,
            destination: found.workload.clone(),
            service: service.cloned(),
            waypoint: true,
            inner: None,
        }))
    }

    /// Through the gateway of the network that an endpoint of a service, or its waypoint, is in: the gateway chooses one itself.
    /// `inner` is who that one may prove to be.
    pub(super) fn through_gateway(&self, service: &Arc<Service>, endpoint: &Workload, inner: &[Identity]) -> Result<Plan, Stop> {
        let gateway = endpoint.network_gateway.as_ref();
        let gateway = gateway.ok_or_else(|| Refusal::Unreachable(endpoint.uid.clone()))?;
        let found = self.find(gateway, |workload, families| {
            workload.network == endpoint.network && may_be_dialled(workload, families)
        });
        let found = found.ok_or_else(|| Refusal::NoGateway(gateway.target.clone()))?;
        if inner.is_empty() {
            return Err(Refusal::NoServiceIdentity(service.name.clone()).into());
        }
        Ok(Plan::Tunnel(Tunnel {
            peer: self.at(&found)?,
            authority: Authority::Host {
                name: service.name.hostname.clone(),
                port: self.to.port(),
            },
            accepted: found.accepted()?,
            destination: found.workload.clone(),
            service: Some(service.clone()),
            waypoint: false,
            inner: Some(Inner {
                accepted: inner.to_vec(),
                network: endpoint.network.clone(),
            }),
        }))
    }

    /// A gateway is itself a workload, or a service with endpoints, in a network; it always speaks HBONE on the port it is
    /// named with, which an endpoint may map to one of its own.
    fn find(&self, gateway: &GatewayAddress, usable: impl Fn(&Workload, IpFamilies) -> bool) -> Option<Found<'_>> {
        let port = gateway.hbone_port;
        if let Some(service) = self.mesh.gateway_service(&self.source.namespace, gateway) {
            // It need not list the HBONE port: then its endpoints are asked for by address alone.
            let usable = |workload: &Workload, _: &Endpoint| usable(workload, service.ip_families);
            let (workload, endpoint) = Choice::of(self, service).pick(usable)?;
            let target = service.port(port).map(|p| p.target).filter(|target| *target != 0);
            return Some(Found {
                workload,
                service: Some(service),
                named: None,
                port: endpoint.ports.get(port).or(target).unwrap_or(port),
            });
        }
        let (workload, named) = match &gateway.target {
            GatewayTarget::Address(at) => (self.mesh.workload_by_address(at)?, Some(at.ip)),
            GatewayTarget::Hostname(name) => (self.mesh.workload_by_hostname(name)?, None),
        };
        usable(workload, IpFamilies::default()).then_some(Found {
            workload,
            service: None,
            named,
            port,
        })
    }

    /// Where it is reached: in the family that the client asked in, where it has the choice; one that has a name alone, as a cloud's
    /// load balancer has, where that leads.
    fn at(&self, found: &Found<'_>) -> Result<SocketAddr, Stop> {
        let families = found.service.map_or_else(IpFamilies::default, |service| service.ip_families);
        let own = || self.address(found.workload, families);
        Ok(SocketAddr::new(found.named.map_or_else(own, Ok)?, found.port))
    }
}
