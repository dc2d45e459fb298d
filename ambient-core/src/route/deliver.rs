//! Where a CONNECT is delivered, at the server's node.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Refusal, gateway};
use crate::{
    ApplicationProtocol, ApplicationTunnel, Authority, Mesh, NamespacedHostname, NetworkAddress, NetworkMode, Service, Workload, ports,
};

/// A CONNECT, at the server's node.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The pod whose namespace accepted the tunnel.
    pub pod: &'a Workload,
    /// The address of the pod that the tunnel came to.
    pub at: IpAddr,
    /// What it names.
    pub authority: &'a Authority,
}

/// Where a CONNECT goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// An address of the pod, and the port to connect to there: what policies decide on.
    pub to: SocketAddr,
    /// The destination that the application is told of in a PROXY protocol header before anything else; `None` where it is
    /// told nothing.
    pub told: Option<SocketAddr>,
    /// The service that was named, if one was.
    pub service: Option<Arc<Service>>,
}

/// Where a CONNECT is delivered: only to the pod whose namespace accepted it, which is what it names, a waypoint of it, or an
/// application with a tunnel of its own.
///
/// # Errors
/// When it names another address (400), one of the proxy's own ports, or a service that the pod neither serves nor is a
/// waypoint of (503).
pub fn inbound(mesh: &Mesh, request: &Inbound<'_>) -> Result<Delivery, Refusal> {
    let pod = request.pod;
    let own = || {
        if pod.has_address(request.at) {
            Some(request.at.to_canonical())
        } else {
            pod.addresses.first().copied()
        }
    };
    let (to, service) = match request.authority {
        Authority::Address(named) => {
            let named = SocketAddr::new(named.ip().to_canonical(), named.port());
            let not_here = || Refusal::NotHere {
                authority: named.ip(),
                pod: pod.uid.clone(),
            };
            if pod.network_mode == NetworkMode::HostNetwork {
                return Err(not_here());
            }
            match pod.has_address(named.ip()) {
                true => (named, None),
                false => {
                    let service = match behind(mesh, pod, named.ip()) {
                        Some(service) => service,
                        // An application that has a tunnel of its own decides itself what it is asked for; it is reached as
                        // by its own address.
                        None if pod.application_tunnel.is_some() => None,
                        None => return Err(not_here()),
                    };
                    (SocketAddr::new(own().ok_or_else(not_here)?, named.port()), service)
                }
            }
        }
        Authority::Host { name, port } => {
            let unknown = || Refusal::UnknownHost(name.clone());
            let service = serving(mesh, pod, name).ok_or_else(unknown)?;
            let port = port_at(mesh, pod, service, *port)?;
            (SocketAddr::new(own().ok_or_else(unknown)?, port), Some(service.clone()))
        }
    };
    let mut delivery = Delivery { to, told: None, service };
    not_own_port(&delivery)?;
    if let Some(tunnel) = &pod.application_tunnel {
        hand_over(pod, tunnel, request.authority, &mut delivery)?;
        not_own_port(&delivery)?;
    }
    Ok(delivery)
}

/// What is delivered to the proxy itself would come around for ever.
fn not_own_port(delivery: &Delivery) -> Result<(), Refusal> {
    match delivery.to.port() {
        port if ports::is_proxys_own(port) => Err(Refusal::OwnPort(port)),
        _ => Ok(()),
    }
}

/// A service or workload at an address that a pod is a waypoint of: `None` if it is of neither, else the service, if it is one. Whose
/// address it is hangs on the client ([`outbound`](super::outbound)), of which nothing is known here: so each that it may have meant counts.
fn behind(mesh: &Mesh, pod: &Workload, named: IpAddr) -> Option<Option<Arc<Service>>> {
    let address = NetworkAddress::new(pod.network.clone(), named);
    let nearest = mesh.service_by_vip(&address, &pod.namespace);
    let mut services = nearest.into_iter().chain(mesh.services_by_vip(&address));
    if let Some(service) = services.find(|service| gateway::is_one_of(mesh, pod, service)) {
        return Some(Some(service.clone()));
    }
    let waypoint = mesh.workload_by_address(&address)?.waypoint.as_ref()?;
    gateway::is(mesh, pod, waypoint).then_some(None)
}

/// The service of a name that a pod serves or is a waypoint of; of several the one that its namespace sees first.
fn serving<'a>(mesh: &'a Mesh, pod: &Workload, name: &str) -> Option<&'a Arc<Service>> {
    let is_served = |service: &Arc<Service>| mesh.endpoint(&service.name, &pod.uid).is_some();
    let nearest = mesh.service_by_hostname(name, &pod.namespace);
    let all = || nearest.into_iter().chain(mesh.services_by_hostname(name));
    let served = all().find(|service| is_served(service));
    served.or_else(|| all().find(|service| gateway::is_one_of(mesh, pod, service)))
}

/// The port at a pod for a port of a service; a waypoint is asked for the service's own.
fn port_at(mesh: &Mesh, pod: &Workload, service: &Service, port: u16) -> Result<u16, Refusal> {
    let no_port = || Refusal::NoPort(service.name.clone(), port);
    let offered = service.port(port).ok_or_else(no_port)?;
    let Some(endpoint) = mesh.endpoint(&service.name, &pod.uid) else {
        return Ok(port);
    };
    let target = endpoint.ports.get(port).or_else(|| (offered.target != 0).then_some(offered.target));
    target.ok_or_else(no_port)
}

/// An application that wants what comes for it in another way than it was sent.
fn hand_over(pod: &Workload, tunnel: &ApplicationTunnel, named: &Authority, delivery: &mut Delivery) -> Result<(), Refusal> {
    if let Some(port) = tunnel.port {
        delivery.to.set_port(port);
    }
    if tunnel.protocol == ApplicationProtocol::None {
        return Ok(());
    }
    delivery.told = Some(match named {
        Authority::Address(named) => SocketAddr::new(named.ip().to_canonical(), named.port()),
        // The header has no place for a name that is read everywhere: an address of the service stands for it.
        Authority::Host { name, port } => {
            let none = || match &delivery.service {
                Some(service) => Refusal::NoAddress(service.name.clone()),
                None => Refusal::NoAddress(NamespacedHostname::new(&pod.namespace, name)),
            };
            let vips = delivery.service.iter().flat_map(|service| &service.vips);
            let vip = vips.min_by_key(|vip| (vip.network != pod.network, !vip.ip.is_ipv4()));
            SocketAddr::new(vip.ok_or_else(none)?.ip, *port)
        }
    });
    Ok(())
}
