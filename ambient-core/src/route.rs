//! Where a connection goes: from a snapshot and a connection to a plan, and nothing else.
//!
//! [`outbound`] is asked at the node of the client, [`inbound`] at the node of the server. Both are pure: the random
//! draw, what was learned of endpoints, and what names mean outside of the mesh come in as [`Hints`]. Where a plan hangs on
//! such a name the answer is [`Route::Need`]: whoever asks looks it up, and asks again.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    Authority, BalancerMode, Endpoint, GatewayTarget, Identity, IpFamilies, Mesh, NamespacedHostname, Network, NetworkAddress, Origin,
    Service, TunnelProtocol, Workload, WorkloadUid, mesh::WaypointUser, ports,
};

mod balance;
mod deliver;
mod gateway;
#[cfg(test)]
mod tests;

use balance::Choice;
pub use deliver::{Delivery, Inbound, inbound};

/// A captured connection, at the client's node.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The pod that opened it.
    pub source: &'a Workload,
    /// Where the pod's application wanted it to go.
    pub destination: SocketAddr,
}

/// What the plan may depend on besides the snapshot and the connection. More may come: what is not said is best taken from
/// `..Hints::default()`.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// A random number, for choices between equals. The same one with the same snapshot makes the same choices.
    pub draw: u64,
    /// Endpoints that could not be reached a moment ago: chosen only where no other is left.
    pub avoid: Vec<WorkloadUid>,
    /// What a [`Lookup`] found; no addresses where there are none.
    pub resolved: Option<(Lookup, Vec<IpAddr>)>,
}

/// The answer to [`outbound`]. It is exhaustive on purpose: whoever connects must know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Go this way.
    Go(Plan),
    /// Refuse it.
    Refuse(Refusal),
    /// Look this up, and ask again with the same draw and what was found.
    Need(Lookup),
}

/// A name whose addresses are wanted, as the node's own nameservers know them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lookup(pub Arc<str>);

/// A way for a connection. It is exhaustive on purpose: whoever connects must know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nobody of the mesh is there: connect to the address itself, in plaintext.
    Passthrough(SocketAddr),
    /// A workload of the mesh that is not captured: connect to it in plaintext.
    Direct(Direct),
    /// A captured workload, a waypoint or a gateway: through a tunnel.
    Tunnel(Tunnel),
}

impl Plan {
    /// The workload at the end of the way, if it is one: of a waypoint or a gateway, that one.
    pub fn destination(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Passthrough(_) => None,
            Self::Direct(direct) => Some(&direct.destination),
            Self::Tunnel(tunnel) => Some(&tunnel.destination),
        }
    }
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
    /// Who is at the end of the tunnel: the destination, its waypoint, or the gateway of its network.
    pub destination: Arc<Workload>,
    /// The service that was asked for, if one was.
    pub service: Option<Arc<Service>>,
    /// Whether the tunnel ends at a waypoint.
    pub waypoint: bool,
    /// The tunnel within it, where it ends at the gateway of another network.
    pub inner: Option<Inner>,
}

/// A tunnel within a tunnel, to whoever the gateway of another network chooses. It is one connection's alone, names what the
/// outer one names, and carries [`forwarded_network`](crate::headers::forwarded_network).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The identities that the far end may prove: the service's, or those of its waypoint; never empty.
    pub accepted: Vec<Identity>,
    /// The network of the far end.
    pub network: Network,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The service has no endpoint that may be chosen.
    #[error("no healthy upstream: {0}")]
    NoEndpoint(NamespacedHostname),
    /// The service does not offer the port.
    #[error("service {0} has no port {1}")]
    NoPort(NamespacedHostname, u16),
    /// The connection would come back to this proxy.
    #[error("attempted recursive call to ourselves at {0}")]
    Loop(SocketAddr),
    /// A waypoint is named and not found: going around it would go around its policies.
    #[error("unknown waypoint: {0}")]
    NoWaypoint(GatewayTarget),
    /// A waypoint is named that leads back to whom it is of by other waypoints: which of them is to look at a connection nobody
    /// can say, and going around them would go around their policies.
    #[error("waypoint of {user} leads back to it by {by}")]
    WaypointCircle {
        /// Whose waypoint it is.
        user: WaypointUser,
        /// The next on the way.
        by: WaypointUser,
    },
    /// The gateway of another network is named and not found.
    #[error("unknown network gateway: {0}")]
    NoGateway(GatewayTarget),
    /// An endpoint in another network that nothing leads to: it has no gateway, or was not asked for by a service's name.
    #[error("no valid routing destination for workload: {0} is in another network")]
    Unreachable(WorkloadUid),
    /// The chosen endpoint has a name and no address, and the name has none either.
    #[error("no ip addresses were resolved for workload: {0}")]
    Unresolved(Arc<str>),
    /// The destination has no valid identity, so that nobody could prove to be it.
    #[error("workload {0} has no valid identity")]
    NoIdentity(WorkloadUid),
    /// Nobody can prove to speak for a service in another network, as it, or its waypoint there, names no identity.
    #[error("service {0}, or its waypoint, names no identity of its endpoints in another network")]
    NoServiceIdentity(NamespacedHostname),
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
    #[error("attempted recursive call to ourselves: port {0} is the proxy's own")]
    OwnPort(u16),
    /// A CONNECT names a service that has no address to tell the application of.
    #[error("no ip address for service: {0}")]
    NoAddress(NamespacedHostname),
}

impl Refusal {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::NoEndpoint(_)
            | Self::NoWaypoint(_)
            | Self::WaypointCircle { .. }
            | Self::NoGateway(_)
            | Self::Unreachable(_)
            | Self::NoIdentity(_)
            | Self::NoServiceIdentity(_)
            | Self::NoAddress(_) => Origin::Control,
            Self::Unresolved(_) => Origin::Network,
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
    let way = Way {
        mesh,
        source: conn.source,
        to,
        hints,
    };
    let address = NetworkAddress::new(conn.source.network.clone(), to.ip());
    let planned = if let Some(service) = mesh.service_by_vip(&address, &conn.source.namespace) {
        way.to_service(service)
    } else if let Some(workload) = mesh.workload_by_address(&address) {
        match &workload.waypoint {
            Some(waypoint) if !gateway::is(mesh, conn.source, waypoint) => way.to_waypoint_of_workload(waypoint, workload),
            _ => way.to_workload(workload, to, None),
        }
    } else {
        Ok(Plan::Passthrough(to))
    };
    match planned {
        Ok(plan) => Route::Go(plan),
        Err(Stop::Refused(refusal)) => Route::Refuse(refusal),
        Err(Stop::Needs(lookup)) => Route::Need(lookup),
    }
}

/// A connection on its way, and all that is known of it.
#[derive(Debug)]
struct Way<'a> {
    mesh: &'a Mesh,
    source: &'a Workload,
    to: SocketAddr,
    hints: &'a Hints,
}

/// Why there is no plan (yet).
#[derive(Debug)]
enum Stop {
    Refused(Refusal),
    Needs(Lookup),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Way<'_> {
    fn to_service(&self, service: &Arc<Service>) -> Result<Plan, Stop> {
        // One of several waypoints goes on, whichever the draw falls on: two would send it to each other and back.
        if let Some(waypoint) = gateway::waypoint(service, self.hints.draw)
            && !gateway::is_one_of(self.mesh, self.source, service)
        {
            return self.to_waypoint_of_service(waypoint, service);
        }
        let balancer = service.load_balancer.as_ref();
        if balancer.is_some_and(|balancer| balancer.mode == BalancerMode::Passthrough) {
            return Ok(Plan::Passthrough(self.to));
        }
        if service.port(self.to.port()).is_none() {
            return Err(Refusal::NoPort(service.name.clone(), self.to.port()).into());
        }
        let usable =
            |workload: &Workload, endpoint: &Endpoint| self.target(service, endpoint).is_some() && self.is_reachable(service, workload);
        let choice = Choice::of(self, service).pick(usable);
        let (workload, endpoint) = choice.ok_or_else(|| Refusal::NoEndpoint(service.name.clone()))?;
        if workload.network != self.source.network {
            return self.through_gateway(service, workload, &service.subject_alt_names);
        }
        let port = self.target(service, endpoint).unwrap_or_else(|| self.to.port());
        let at = SocketAddr::new(self.address(workload, service.ip_families)?, port);
        self.to_workload(workload, at, Some(service))
    }

    /// The port at an endpoint; `None` where nobody says it.
    fn target(&self, service: &Service, endpoint: &Endpoint) -> Option<u16> {
        let port = service.port(self.to.port())?;
        let own = endpoint.ports.get(port.port);
        own.or_else(|| (port.target != 0).then_some(port.target))
    }

    /// Whether it can be dialled, or is behind the gateway of another network, and then needs no address. One of the client's own
    /// network may have a gateway as well: those of other networks reach it there.
    fn is_reachable(&self, service: &Service, workload: &Workload) -> bool {
        match workload.network == self.source.network {
            true => may_be_dialled(workload, service.ip_families),
            false => workload.network_gateway.is_some(),
        }
    }

    /// The address of a workload: the one that the client asked for, if it is one of its own; in the family that the client
    /// asked in, else any of the families that it is reached in (the proxy stands between the two), else what its name means.
    fn address(&self, workload: &Workload, families: IpFamilies) -> Result<IpAddr, Stop> {
        if workload.has_address(self.to.ip()) {
            return Ok(self.to.ip());
        }
        let mut accepted = workload.addresses.iter().filter(|ip| families.accepts(**ip));
        if let Some(ip) = like(&mut accepted, self.to.ip()) {
            return Ok(ip);
        }
        let lookup = Lookup(workload.hostname.clone());
        let Some((_, found)) = self.hints.resolved.as_ref().filter(|(of, _)| *of == lookup) else {
            return Err(Stop::Needs(lookup));
        };
        let of_family: Vec<_> = found.iter().filter(|ip| families.accepts(**ip)).collect();
        let same: Vec<_> = of_family.iter().filter(|ip| ip.is_ipv4() == self.to.is_ipv4()).copied().collect();
        let among = if same.is_empty() { of_family } else { same };
        let at = (balance::mix(self.hints.draw, balance::ADDRESS) % among.len().max(1) as u64) as usize;
        let ip = among.get(at).ok_or_else(|| Refusal::Unresolved(lookup.0.clone()))?;
        Ok(ip.to_canonical())
    }

    fn to_workload(&self, workload: &Arc<Workload>, at: SocketAddr, service: Option<&Arc<Service>>) -> Result<Plan, Stop> {
        if workload.network != self.source.network {
            return Err(Refusal::Unreachable(workload.uid.clone()).into());
        }
        let (destination, service) = (workload.clone(), service.cloned());
        if workload.tunnel == TunnelProtocol::None {
            return Ok(Plan::Direct(Direct {
                to: at,
                destination,
                service,
            }));
        }
        Ok(Plan::Tunnel(Tunnel {
            peer: SocketAddr::new(at.ip(), ports::HBONE),
            authority: at.into(),
            accepted: accepted(workload, service.as_deref())?,
            destination,
            service,
            waypoint: false,
            inner: None,
        }))
    }
}

/// Whether a workload has an address in some families, or a name that may have one.
fn may_be_dialled(workload: &Workload, families: IpFamilies) -> bool {
    workload.addresses.iter().any(|ip| families.accepts(*ip)) || !workload.hostname.is_empty()
}

/// Who may answer for a workload: itself, and whom the service names.
fn accepted(workload: &Workload, service: Option<&Service>) -> Result<Vec<Identity>, Refusal> {
    let own = workload.identity().ok();
    let others = service.into_iter().flat_map(|service| &service.subject_alt_names);
    let mut all: Vec<Identity> = own.into_iter().collect();
    for identity in others {
        if !all.contains(identity) {
            all.push(identity.clone());
        }
    }
    match all.is_empty() {
        true => Err(Refusal::NoIdentity(workload.uid.clone())),
        false => Ok(all),
    }
}

/// The first address in the family of another, else the first.
fn like<'a>(addresses: &mut (impl Iterator<Item = &'a IpAddr> + Clone), other: IpAddr) -> Option<IpAddr> {
    let same = addresses.clone().find(|ip| ip.is_ipv4() == other.is_ipv4());
    same.or_else(|| addresses.next()).copied()
}
