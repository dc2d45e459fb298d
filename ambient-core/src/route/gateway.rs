//! Waypoints, and the gateways of other networks.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Inner, Plan, Refusal, Stop, Tunnel, Way, accepted, balance, balance::Choice, like};
use crate::{Authority, Endpoint, GatewayAddress, GatewayTarget, Identity, Mesh, Network, Service, Workload};

/// The waypoint of a service that a draw falls on, if it has any.
pub(super) fn waypoint(service: &Service, draw: u64) -> Option<&GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let chosen = balance::weighted(weighted.iter().map(|w| (w, w.weight)), balance::mix(draw, balance::WAYPOINT));
    chosen.map(|w| &w.destination).or(service.waypoint.as_ref())
}

/// Whether a pod is a waypoint: its own connections go on to the destination.
pub(super) fn is(mesh: &Mesh, pod: &Workload, waypoint: &GatewayAddress) -> bool {
    match service_of(mesh, &pod.namespace, waypoint) {
        Some(service) => mesh.endpoint(&service.name, &pod.uid).is_some(),
        None => match &waypoint.target {
            GatewayTarget::Address(at) => at.network == pod.network && pod.has_address(at.ip),
            GatewayTarget::Hostname(name) => mesh.workload_by_hostname(name).is_some_and(|w| w.uid == pod.uid),
        },
    }
}

/// Whether a pod is one of the waypoints of a service.
pub(super) fn is_one_of(mesh: &Mesh, pod: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|w| &w.destination);
    weighted.chain(&service.waypoint).any(|waypoint| is(mesh, pod, waypoint))
}

fn service_of<'a>(mesh: &'a Mesh, namespace: &str, gateway: &GatewayAddress) -> Option<&'a Arc<Service>> {
    match &gateway.target {
        GatewayTarget::Address(address) => mesh.service_by_vip(address, namespace),
        GatewayTarget::Hostname(name) => mesh.service(name),
    }
}

/// A gateway as it is reached.
struct Found<'a> {
    workload: &'a Arc<Workload>,
    service: Option<&'a Arc<Service>>,
    at: SocketAddr,
}

impl Found<'_> {
    fn accepted(&self) -> Result<Vec<Identity>, Refusal> {
        accepted(self.workload, self.service.map(|service| &**service))
    }
}

impl Way<'_> {
    /// Through a waypoint, which is to go on to where the connection was meant to.
    pub(super) fn to_waypoint(&self, waypoint: &GatewayAddress, service: Option<&Arc<Service>>) -> Result<Plan, Stop> {
        let found = self.find(waypoint, &self.source.network);
        let found = found.ok_or_else(|| Refusal::NoWaypoint(waypoint.target.clone()))?;
        Ok(Plan::Tunnel(Tunnel {
            peer: found.at,
            authority: self.to.into(),
            accepted: found.accepted()?,
            destination: found.workload.clone(),
            service: service.cloned(),
            waypoint: true,
            inner: None,
        }))
    }

    /// Through the gateway of the network that an endpoint of a service is in: the gateway chooses one itself.
    pub(super) fn through_gateway(&self, service: &Arc<Service>, endpoint: &Workload) -> Result<Plan, Stop> {
        let gateway = endpoint.network_gateway.as_ref();
        let gateway = gateway.ok_or_else(|| Refusal::Unreachable(endpoint.uid.clone()))?;
        let found = self.find(gateway, &endpoint.network);
        let found = found.ok_or_else(|| Refusal::NoGateway(gateway.target.clone()))?;
        if service.subject_alt_names.is_empty() {
            return Err(Refusal::NoServiceIdentity(service.name.clone()).into());
        }
        let mut outer = found.accepted()?;
        outer.extend(service.subject_alt_names.iter().cloned());
        Ok(Plan::Tunnel(Tunnel {
            peer: found.at,
            authority: Authority::Host(service.name.hostname.clone(), self.to.port()),
            accepted: outer,
            destination: found.workload.clone(),
            service: Some(service.clone()),
            waypoint: false,
            inner: Some(Inner {
                accepted: service.subject_alt_names.clone(),
                network: endpoint.network.clone(),
            }),
        }))
    }

    /// A gateway is itself a workload, or a service with endpoints, in a network; it always speaks HBONE on the port it is
    /// named with, which an endpoint may map to one of its own.
    fn find(&self, gateway: &GatewayAddress, network: &Network) -> Option<Found<'_>> {
        let port = gateway.hbone_port;
        if let Some(service) = service_of(self.mesh, &self.source.namespace, gateway) {
            // It need not list the HBONE port: then its endpoints are asked for by address alone.
            let usable = |workload: &Workload, _: &Endpoint| workload.network == *network && !workload.addresses.is_empty();
            let (workload, endpoint) = Choice::of(self, service).pick(usable)?;
            let ip = self.address_of(workload)?;
            let target = service.port(port).map(|p| p.target).filter(|target| *target != 0);
            let port = endpoint.ports.get(port).or(target).unwrap_or(port);
            return Some(Found {
                workload,
                service: Some(service),
                at: SocketAddr::new(ip, port),
            });
        }
        let (workload, ip) = match &gateway.target {
            GatewayTarget::Address(at) => (self.mesh.workload_by_address(at)?, at.ip),
            GatewayTarget::Hostname(name) => {
                let workload = self.mesh.workload_by_hostname(name)?;
                (workload, self.address_of(workload)?)
            }
        };
        Some(Found {
            workload,
            service: None,
            at: SocketAddr::new(ip, port),
        })
    }

    fn address_of(&self, workload: &Workload) -> Option<IpAddr> {
        like(&mut workload.addresses.iter(), self.to.ip())
    }
}
