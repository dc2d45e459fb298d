//! A pod's DNS: names of the mesh answered here, everything else asked where the pod asks.

mod count;
mod once;
mod own;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_dns::{BoxFuture, Budget, Limits, Server, Upstream, View, Views, Zone};
use ambient_redirect::{
    PodSpec,
    linux::{Datagrams, Netns, original_destination},
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::{
    Config, Shared, assumed, demand, entropy,
    pod::{Pod, Stage},
};
use count::Count;
use once::Once;
use own::Own;

/// What the DNS of all pods together may use of a node that may have so many connections: each query that waits is a
/// descriptor, three at most, and each connection two.
pub(crate) fn budget(connections: usize) -> Budget {
    Budget::new((connections / 16).min(1024), (connections / 32).min(512))
}

/// The server of a pod's names, for all its sockets.
pub(crate) fn server(node: &Arc<Shared>, pod: &Pod) -> Server {
    let config = &node.config;
    let own = Own::new(pod.namespace.id());
    let way = Arc::new(Way {
        pod: pod.spec.clone(),
        node: node.clone(),
        namespace: pod.namespace.clone(),
        own: own.clone(),
        datagrams: Once::default(),
    });
    let views = views(node.clone(), pod.spec.clone(), own);
    let count = Arc::new(Count::new(node.clone(), pod.spec.uid.clone()));
    let server = Server::builder(zone(config), pod.spec.namespace.clone(), views, way);
    server
        .called(pod.spec.name.clone())
        .limits(Limits::default().within(&node.names))
        .budget(node.names.clone())
        .observer(count)
        .build()
}

/// The services that names may be, of the client's namespace and of the preferred one.
fn asked_for(hostnames: &[String], namespace: &str, config: &Config) -> Vec<String> {
    let in_namespace = |namespace: &str| demand::service_names(hostnames, namespace, &config.cluster_domain);
    let mut names = in_namespace(namespace);
    for name in config
        .preferred_service_namespace
        .iter()
        .flat_map(|preferred| in_namespace(preferred))
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What the mesh's names are. Where IPv6 is not captured, connections to an IPv6 address go past the mesh: nobody is told of one.
fn zone(config: &Config) -> Zone {
    Zone::new(&config.cluster_domain)
        .preferring(config.preferred_service_namespace.clone())
        .with_ipv6(config.ipv6)
}

/// Answers a pod's queries over UDP until it stops.
pub(crate) async fn serve_udp(server: Server, pod: Arc<Pod>, socket: Arc<UdpSocket>) {
    tokio::select! {
        () = server.serve_udp(socket) => {}
        () = pod.reaches(Stage::Stopped) => {}
    }
}

/// Answers a pod's queries over TCP until it stops.
pub(crate) async fn serve_tcp(server: Server, pod: Arc<Pod>, listener: Arc<TcpListener>) {
    tokio::select! {
        () = server.serve_tcp(listener) => {}
        () = pod.reaches(Stage::Stopped) => {}
    }
}

fn views(node: Arc<Shared>, pod: PodSpec, own: Arc<Own>) -> Views {
    Arc::new(move || {
        let now = node.state.current()?;
        Some(View {
            network: assumed::network(&node.config, &pod, &now.mesh),
            mesh: now.mesh.clone(),
            search: own.present().search.clone(),
        })
    })
}

/// A pod's way to nameservers: to the one that it sent its query to, as the kernel remembers; where that cannot be had to
/// those of its `resolv.conf`, and where that cannot be read to the node's. Always from its own namespace: what guards the
/// pod's traffic guards its queries too.
struct Way {
    pod: PodSpec,
    node: Arc<Shared>,
    namespace: Arc<Netns>,
    own: Arc<Own>,
    /// Opened when a datagram is forwarded for the first time. That may take longer than any of them waits.
    datagrams: Once<Datagrams>,
}

impl Way {
    /// Whom a pod's process has sent a datagram to, if the kernel tells.
    async fn meant(&self, client: SocketAddr, at: SocketAddr) -> Option<SocketAddr> {
        let namespace = self.namespace.clone();
        let open = move || {
            let opened = Datagrams::open(&namespace);
            opened.inspect_err(|error| tracing::info!(%error, CANNOT_ASK)).ok()
        };
        let datagrams = self.datagrams.get(open).await?;
        let asked = datagrams.original_destination(client, at);
        asked.inspect_err(|error| tracing::debug!(%error, CANNOT_ASK)).ok()?
    }

    async fn usual(&self) -> Arc<[SocketAddr]> {
        let own = self.own.fresh().await;
        if own.nameservers.is_empty() {
            return self.node.config.nameservers.as_slice().into();
        }
        own.nameservers.clone()
    }
}

impl Upstream for Way {
    fn draw(&self) -> u64 {
        entropy::word()
    }

    fn learns(&self) -> bool {
        self.node.demand.is_some()
    }

    fn learn(&self, hostnames: Vec<String>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(demand) = &self.node.demand {
                demand
                    .learn(&self.pod.uid, &asked_for(&hostnames, &self.pod.namespace, &self.node.config))
                    .await;
            }
        })
    }

    fn for_datagram(&self, client: SocketAddr, at: SocketAddr) -> BoxFuture<'_, Arc<[SocketAddr]>> {
        Box::pin(async move {
            match self.meant(client, at).await {
                Some(meant) => [meant].into(),
                None => self.usual().await,
            }
        })
    }

    fn for_stream<'a>(&'a self, client: &'a TcpStream) -> BoxFuture<'a, Arc<[SocketAddr]>> {
        Box::pin(async {
            let meant = original_destination(client).ok();
            // Who talks to this very port was not redirected, and means nobody else.
            match meant.filter(|meant| client.local_addr().is_ok_and(|local| local != *meant)) {
                Some(meant) => [meant].into(),
                None => self.usual().await,
            }
        })
    }

    fn udp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        Box::pin(async move {
            let unspecified = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = self.node.sockets.udp(&self.namespace, SocketAddr::new(unspecified, 0)).await?;
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(server).await?;
            Ok(socket)
        })
    }

    fn tcp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(self.node.sockets.tcp_connect(&self.namespace, None, server, PATIENCE))
    }
}

const CANNOT_ASK: &str = "the kernel does not tell where DNS queries were sent; they go to the pod's usual nameservers";

/// How long connecting to a nameserver may take; the server gives up before.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_of_the_families_that_are_captured() {
        let mut config = Config::new("node", "/run/netns");
        config.cluster_domain = "mesh.example".into();
        assert_eq!(zone(&config), Zone::new("mesh.example"));
        config.ipv6 = false;
        assert_eq!(zone(&config), Zone::new("mesh.example").with_ipv6(false));
    }

    #[test]
    fn names_are_asked_for_in_the_clients_namespace_and_in_the_preferred_one() {
        let names = ["api.example.com", "web.shop.svc.cluster.local"].map(String::from);
        let mut config = Config::new("node", "/run/netns");
        assert_eq!(
            asked_for(&names, "shop", &config),
            ["shop/api.example.com", "shop/web.shop.svc.cluster.local"]
        );
        config.preferred_service_namespace = Some("egress".into());
        assert_eq!(
            asked_for(&names, "shop", &config),
            ["shop/api.example.com", "shop/web.shop.svc.cluster.local", "egress/api.example.com"]
        );
    }
}
