//! Where a connection goes: from a snapshot and a connection to a plan, and nothing else.
//!
//! [`outbound`] is asked at the node of the client, [`inbound`] at the node of the server. Both are pure: the random
//! draw and what was learned of endpoints come in as [`Hints`].

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    Authority, GatewayAddress, GatewayTarget, Health, Identity, Mesh, NetworkAddress, NetworkMode, Origin, Service, TunnelProtocol,
    Workload, WorkloadUid, ports,
};

#[cfg(test)]
mod tests;

/// A captured connection, at the client's node.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The pod that opened it.
    pub source: &'a Workload,
    /// Where the pod's application wanted it to go.
    pub destination: SocketAddr,
}

/// What the plan may depend on besides the snapshot and the connection.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// A random number, for choices between equals.
    pub draw: u64,
    /// Endpoints that could not be reached a moment ago: chosen only where no other is left.
    pub avoid: Vec<WorkloadUid>,
}

/// The answer to [`outbound`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Go this way.
    Go(Plan),
    /// Refuse it.
    Refuse(Refusal),
}

/// A way for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nobody of the mesh is there: connect to the address itself, in plaintext.
    Passthrough(SocketAddr),
    /// A workload of the mesh that is not captured: connect to it in plaintext.
    Direct(Direct),
    /// A captured workload or a waypoint: through a tunnel.
    Tunnel(Tunnel),
}

/// A plaintext way to a workload of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// The address to connect to.
    pub to: SocketAddr,
    /// Who is there.
    pub destination: Arc<Workload>,
    /// The service that was asked for, if one was.
    pub service: Option<Arc<Service>>,
}

/// A way through a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The proxy to dial.
    pub peer: SocketAddr,
    /// What the CONNECT names.
    pub authority: Authority,
    /// The identities that the peer may prove; never empty.
    pub accepted: Vec<Identity>,
    /// Who is at the end of the tunnel: the destination, or its waypoint.
    pub destination: Arc<Workload>,
    /// The service that was asked for, if one was.
    pub service: Option<Arc<Service>>,
    /// Whether the tunnel ends at a waypoint.
    pub waypoint: bool,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The service has no endpoint that may be chosen.
    #[error("no healthy upstream: {0}")]
    NoEndpoint(crate::NamespacedHostname),
    /// The service does not offer the port.
    #[error("service {0} has no port {1}")]
    NoPort(crate::NamespacedHostname, u16),
    /// The connection would come back to this proxy.
    #[error("attempted recursive call to ourselves at {0}")]
    Loop(SocketAddr),
    /// A waypoint is named and not found: going around it would go around its policies.
    #[error("unknown waypoint: {0:?}")]
    NoWaypoint(GatewayTarget),
    /// The destination has no valid identity, so that nobody could prove to be it.
    #[error("workload {0} has no valid identity")]
    NoIdentity(WorkloadUid),
    /// A CONNECT names an address that is not the pod's.
    #[error("ip mismatch: {authority} is not an address of {pod}")]
    NotHere {
        /// What was named.
        authority: IpAddr,
        /// The pod that was reached.
        pod: WorkloadUid,
    },
    /// A CONNECT names a service that the pod is not an endpoint of.
    #[error("no service or workload for hostname: {0}")]
    UnknownHost(Arc<str>),
    /// A CONNECT names one of the proxy's own ports.
    #[error("port {0} is the proxy's own")]
    OwnPort(u16),
}

impl Refusal {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::NoEndpoint(_) | Self::NoWaypoint(_) | Self::NoIdentity(_) => Origin::Control,
            Self::NoPort(..) | Self::Loop(_) => Origin::App,
            Self::NotHere { .. } | Self::UnknownHost(_) | Self::OwnPort(_) => Origin::Peer,
        }
    }

    /// The HTTP status that answers a CONNECT refused for this reason; ztunnel's.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotHere { .. } => 400,
            _ => 503,
        }
    }
}

/// Where a captured connection of a pod goes.
///
/// A service's virtual address is looked for first, then a workload's; what is neither is not the mesh's and passes
/// through. The order is Istio's.
pub fn outbound(mesh: &Mesh, conn: &Outbound<'_>, hints: &Hints) -> Route {
    let to = SocketAddr::new(conn.destination.ip().to_canonical(), conn.destination.port());
    if to.ip().is_loopback() && ports::is_proxys_own(to.port()) {
        return Route::Refuse(Refusal::Loop(to));
    }
    let address = NetworkAddress::new(conn.source.network.clone(), to.ip());
    let planned = if let Some(service) = mesh.service_by_vip(&address, &conn.source.namespace) {
        to_service(mesh, conn.source, service, to, hints)
    } else if let Some(workload) = mesh.workload_by_address(&address) {
        match &workload.waypoint {
            Some(waypoint) if !is_behind(mesh, conn.source, waypoint) => to_waypoint(mesh, conn.source, waypoint, to, None, hints),
            _ => to_workload(workload, to, None),
        }
    } else {
        Ok(Plan::Passthrough(to))
    };
    planned.map_or_else(Route::Refuse, Route::Go)
}

fn to_service(mesh: &Mesh, source: &Workload, service: &Arc<Service>, to: SocketAddr, hints: &Hints) -> Result<Plan, Refusal> {
    if let Some(waypoint) = &service.waypoint
        && !is_behind(mesh, source, waypoint)
    {
        return to_waypoint(mesh, source, waypoint, to, Some(service), hints);
    }
    let (workload, at) = choose(mesh, source, service, to, hints)?;
    to_workload(workload, at, Some(service))
}

fn to_workload(workload: &Arc<Workload>, at: SocketAddr, service: Option<&Arc<Service>>) -> Result<Plan, Refusal> {
    let (destination, service) = (workload.clone(), service.cloned());
    if workload.tunnel == TunnelProtocol::None {
        return Ok(Plan::Direct(Direct {
            to: at,
            destination,
            service,
        }));
    }
    let accepted = vec![workload.identity().map_err(|_| Refusal::NoIdentity(workload.uid.clone()))?];
    let peer = SocketAddr::new(at.ip(), ports::HBONE);
    Ok(Plan::Tunnel(Tunnel {
        peer,
        authority: at.into(),
        accepted,
        destination,
        service,
        waypoint: false,
    }))
}

/// A waypoint is itself a workload, or a service with endpoints; it always speaks HBONE on the port it is named with.
fn to_waypoint(
    mesh: &Mesh,
    source: &Workload,
    waypoint: &GatewayAddress,
    to: SocketAddr,
    service: Option<&Arc<Service>>,
    hints: &Hints,
) -> Result<Plan, Refusal> {
    let unknown = || Refusal::NoWaypoint(waypoint.target.clone());
    let (workload, ip) = match waypoint_service(mesh, source, waypoint) {
        Some(gateway) => {
            // A waypoint's service need not list the HBONE port: its endpoints are asked for by address alone.
            let (workload, _) = pick(mesh, source, gateway, to.ip(), hints, |_, _| Some(waypoint.hbone_port)).ok_or_else(unknown)?;
            let ip = address_like(workload, to.ip()).ok_or_else(unknown)?;
            (workload, ip)
        }
        None => match &waypoint.target {
            GatewayTarget::Address(address) => (mesh.workload_by_address(address).ok_or_else(unknown)?, address.ip),
            GatewayTarget::Hostname(_) => return Err(unknown()),
        },
    };
    let accepted = vec![workload.identity().map_err(|_| Refusal::NoIdentity(workload.uid.clone()))?];
    Ok(Plan::Tunnel(Tunnel {
        peer: SocketAddr::new(ip, waypoint.hbone_port),
        authority: to.into(),
        accepted,
        destination: workload.clone(),
        service: service.cloned(),
        waypoint: true,
    }))
}

fn waypoint_service<'a>(mesh: &'a Mesh, source: &Workload, waypoint: &GatewayAddress) -> Option<&'a Arc<Service>> {
    match &waypoint.target {
        GatewayTarget::Address(address) => mesh.service_by_vip(address, &source.namespace),
        GatewayTarget::Hostname(name) => mesh.service(name),
    }
}

/// Whether a pod is the waypoint: its own connections go on to the destination.
fn is_behind(mesh: &Mesh, pod: &Workload, waypoint: &GatewayAddress) -> bool {
    match waypoint_service(mesh, pod, waypoint) {
        Some(service) => mesh.endpoint(&service.name, &pod.uid).is_some(),
        None => matches!(&waypoint.target, GatewayTarget::Address(a) if a.network == pod.network && pod.has_address(a.ip)),
    }
}

fn choose<'a>(
    mesh: &'a Mesh,
    source: &Workload,
    service: &'a Service,
    to: SocketAddr,
    hints: &Hints,
) -> Result<(&'a Arc<Workload>, SocketAddr), Refusal> {
    let port = service
        .port(to.port())
        .ok_or_else(|| Refusal::NoPort(service.name.clone(), to.port()))?;
    let target = |_: &Workload, endpoint: &crate::Endpoint| {
        let own = endpoint.ports.get(port.port);
        own.or_else(|| (port.target != 0).then_some(port.target))
    };
    let found = pick(mesh, source, service, to.ip(), hints, target);
    let (workload, port) = found.ok_or_else(|| Refusal::NoEndpoint(service.name.clone()))?;
    let ip = address_like(workload, to.ip()).ok_or_else(|| Refusal::NoEndpoint(service.name.clone()))?;
    Ok((workload, SocketAddr::new(ip, port)))
}

/// One endpoint at random: of those that can be reached, the ones that were not found dead a moment ago.
fn pick<'a>(
    mesh: &'a Mesh,
    source: &Workload,
    service: &'a Service,
    like: IpAddr,
    hints: &Hints,
    port: impl Fn(&Workload, &crate::Endpoint) -> Option<u16>,
) -> Option<(&'a Arc<Workload>, u16)> {
    let mut endpoints: Vec<_> = mesh.endpoints(&service.name).into_iter().flat_map(|all| all.iter()).collect();
    endpoints.sort_unstable_by_key(|(uid, _)| *uid);
    let reachable: Vec<_> = endpoints
        .into_iter()
        .filter(|(_, endpoint)| endpoint.health == Health::Healthy)
        .filter_map(|(uid, endpoint)| Some((mesh.workload(uid)?, endpoint)))
        .filter(|(workload, _)| workload.network == source.network && workload.health == Health::Healthy)
        .filter(|(workload, _)| address_like(workload, like).is_some())
        .filter_map(|(workload, endpoint)| Some((workload, port(workload, endpoint)?)))
        .collect();
    let fresh: Vec<_> = reachable
        .iter()
        .filter(|(workload, _)| !hints.avoid.contains(&workload.uid))
        .copied()
        .collect();
    let of = if fresh.is_empty() { &reachable } else { &fresh };
    if of.is_empty() {
        return None;
    }
    // `draw % len` favours none by more than len / 2^64.
    Some(of[(hints.draw % of.len() as u64) as usize])
}

/// The address of a workload in the family that the client asked in, else any: the proxy stands between the two.
fn address_like(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let same = workload.addresses.iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
    same.or_else(|| workload.addresses.first()).copied()
}

/// A CONNECT, at the server's node.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The pod whose namespace accepted the tunnel.
    pub pod: &'a Workload,
    /// What it names.
    pub authority: &'a Authority,
}

/// Where a CONNECT is delivered: only to the pod whose namespace accepted it.
///
/// # Errors
/// When it names another address (400), one of the proxy's own ports, or a service that the pod does not serve (503).
pub fn inbound(mesh: &Mesh, request: &Inbound<'_>) -> Result<SocketAddr, Refusal> {
    let to = match request.authority {
        Authority::Address(to) => {
            if !request.pod.has_address(to.ip()) || request.pod.network_mode == NetworkMode::HostNetwork {
                return Err(Refusal::NotHere {
                    authority: to.ip(),
                    pod: request.pod.uid.clone(),
                });
            }
            SocketAddr::new(to.ip().to_canonical(), to.port())
        }
        Authority::Host(name, port) => {
            let unknown = || Refusal::UnknownHost(name.clone());
            let service = mesh.service_by_hostname(name, &request.pod.namespace).ok_or_else(unknown)?;
            let endpoint = mesh.endpoint(&service.name, &request.pod.uid).ok_or_else(unknown)?;
            let offered = service.port(*port).ok_or_else(|| Refusal::NoPort(service.name.clone(), *port))?;
            let target = endpoint
                .ports
                .get(*port)
                .or_else(|| (offered.target != 0).then_some(offered.target));
            let target = target.ok_or_else(|| Refusal::NoPort(service.name.clone(), *port))?;
            SocketAddr::new(*request.pod.addresses.first().ok_or_else(unknown)?, target)
        }
    };
    if ports::is_proxys_own(to.port()) {
        return Err(Refusal::OwnPort(to.port()));
    }
    Ok(to)
}
