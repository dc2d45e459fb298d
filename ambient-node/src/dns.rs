//! A pod's DNS: names of the mesh answered here, everything else asked where the node asks.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_core::{Mesh, Network};
use ambient_dns::{BoxFuture, Server, Transport, Upstream, UpstreamError, Zone};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    time,
};

use crate::{
    Shared,
    pod::{Pod, Stage},
};

/// How long one nameserver may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest answer over UDP that is passed on: what EDNS can ask for.
const LARGEST: usize = 65_535;

/// Answers a pod's queries over UDP until it stops.
pub(crate) async fn serve_udp(node: Arc<Shared>, pod: Arc<Pod>, socket: UdpSocket) {
    let server = server(&node, &pod);
    tokio::select! {
        () = server.serve_udp(socket) => {}
        () = pod.reaches(Stage::Stopped) => {}
    }
}

/// Answers a pod's queries over TCP until it stops.
pub(crate) async fn serve_tcp(node: Arc<Shared>, pod: Arc<Pod>, listener: TcpListener) {
    let server = server(&node, &pod);
    tokio::select! {
        () = server.serve_tcp(listener) => {}
        () = pod.reaches(Stage::Stopped) => {}
    }
}

fn server(node: &Arc<Shared>, pod: &Arc<Pod>) -> Server {
    let zone = Zone::new(node.config.cluster_domain.clone());
    let state = node.state.clone();
    let mesh: Arc<dyn Fn() -> Option<Mesh> + Send + Sync> = Arc::new(move || state.current().map(|now| now.mesh.clone()));
    let upstream = Arc::new(Nameservers {
        node: node.clone(),
        pod: pod.clone(),
    });
    Server::new(zone, pod.spec.namespace.clone(), Network::default(), mesh, upstream)
}

/// The node's nameservers, asked from the pod's namespace: what guards the pod's traffic guards its queries too.
struct Nameservers {
    node: Arc<Shared>,
    pod: Arc<Pod>,
}

impl Nameservers {
    async fn ask(&self, server: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        match transport {
            Transport::Udp => {
                let unspecified = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                let socket = self.node.sockets.udp(&self.pod.namespace, SocketAddr::new(unspecified, 0)).await?;
                let socket = UdpSocket::from_std(socket)?;
                socket.connect(server).await?;
                socket.send(query).await?;
                let mut answer = vec![0; LARGEST];
                loop {
                    let length = socket.recv(&mut answer).await?;
                    // Connected to the server, so that nobody else is heard; but an answer may be late, to an earlier query.
                    if length >= 2 && answer[..2] == query[..2] {
                        answer.truncate(length);
                        return Ok(answer);
                    }
                }
            }
            Transport::Tcp => {
                let mut stream = self.node.sockets.tcp_connect(&self.pod.namespace, None, server, PATIENCE).await?;
                let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                stream.write_all(&length.to_be_bytes()).await?;
                stream.write_all(query).await?;
                let mut answer = vec![0; stream.read_u16().await?.into()];
                stream.read_exact(&mut answer).await?;
                Ok(answer)
            }
        }
    }
}

impl Upstream for Nameservers {
    fn exchange<'a>(&'a self, query: &'a [u8], transport: Transport) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>> {
        Box::pin(async move {
            let mut last = UpstreamError::Unavailable("no nameserver is configured".into());
            for server in &self.node.config.nameservers {
                last = match time::timeout(PATIENCE, self.ask(*server, query, transport)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => UpstreamError::Unavailable(format!("{server}: {error}")),
                    Err(_) => UpstreamError::Timeout,
                };
            }
            Err(last)
        })
    }
}
