//! The pods that this node serves: each has its listeners, its identity and its bounds.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_core::{Identity, PodUid, Workload, ports};
use ambient_hbone::{Speaker, SpeakerKey};
use ambient_redirect::{
    BoxFuture, PodSpec, Proxy, ProxyError,
    linux::{Netns, NetnsId},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinHandle,
    time,
};

use crate::{
    Shared, accept::Acceptor, bounds::Room, certificates::Held, dns, inbound, outbound, plaintext, state::Snapshot, workers::Worker,
};

/// How far a pod, or the node, is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It serves.
    Serving,
    /// It takes nothing new; what is open goes on.
    Draining,
    /// What is open is reset; names are answered still.
    Cut,
    /// Nothing of it is served any more.
    Stopped,
}

/// A pod that this node serves, in one network namespace.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) spec: PodSpec,
    pub(crate) namespace: Arc<Netns>,
    pub(crate) identity: Identity,
    /// Whom its tunnels speak for: never shared with another pod, of whatever identity.
    pub(crate) speaker: Speaker,
    pub(crate) room: Room,
    stage: watch::Sender<Stage>,
    listening: Mutex<HashMap<Listening, JoinHandle<()>>>,
    _certificate: Held,
}

impl Pod {
    /// Its workload in a version of the mesh, as long as that is who the pod has a certificate for.
    pub(crate) fn workload<'a>(&self, snapshot: &'a Snapshot) -> Result<&'a Arc<Workload>, UnknownPod> {
        local_workload(snapshot, &self.spec.uid, &self.identity)
    }

    /// Waits until it is at least at a stage. Cancel safe.
    pub(crate) async fn reaches(&self, stage: Stage) {
        // An error says that the pod itself is dropped, which nobody who holds it can see.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    /// Whether a connection may still be accepted.
    fn accepts(&self) -> bool {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut accepting = listening.iter().filter(|(at, _)| at.address.port() != ports::DNS);
        accepting.any(|(_, serving)| !serving.is_finished())
    }

    /// Whether it is the pod that a spec speaks of, in a namespace.
    fn is(&self, spec: &PodSpec, namespace: NetnsId) -> bool {
        let same = self.spec.namespace == spec.namespace && self.spec.service_account == spec.service_account;
        same && self.namespace.id() == namespace
    }

    /// Waits until its listeners are closed, once it was told to stop.
    async fn let_go(&self) {
        let listening: Vec<_> = {
            let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
            listening.drain().map(|(_, serving)| serving).collect()
        };
        for serving in listening {
            // A task that panicked has let go too.
            let _ = serving.await;
        }
    }

    /// Whether a listener is there and served.
    fn has(&self, at: Listening) -> bool {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        listening.get(&at).is_some_and(|serving| !serving.is_finished())
    }

    fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            *now < stage && {
                *now = stage;
                true
            }
        });
    }
}

/// The workload that a pod is, if it is known and bears an identity.
pub(crate) fn local_workload<'a>(snapshot: &'a Snapshot, pod: &PodUid, identity: &Identity) -> Result<&'a Arc<Workload>, UnknownPod> {
    let workload = snapshot.mesh.workload_by_pod(pod).ok_or(UnknownPod::Absent)?;
    match workload.identity() {
        Ok(present) if present == *identity => Ok(workload),
        _ => Err(UnknownPod::Renamed(identity.clone())),
    }
}

/// Why nothing is decided for a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownPod {
    /// It is not in the mesh's state.
    #[error("failed to fetch information about local workload: it is not in the mesh's state")]
    Absent,
    /// Its service account or trust domain is another than the one it was captured with.
    #[error("failed to fetch information about local workload: it is {0} no longer")]
    Renamed(Identity),
}

/// What serves one pod's connections of one kind.
type Serve = fn(Arc<Shared>, Arc<Pod>, Arc<Worker>, std::net::TcpStream, SocketAddr);

/// All of them. Implements [`Proxy`]: redirect says which pods there are.
#[derive(Debug)]
pub(crate) struct Pods {
    node: Arc<Shared>,
    served: Mutex<HashMap<PodUid, Arc<Pod>>>,
}

impl Pods {
    pub(crate) fn new(node: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            node,
            served: Mutex::default(),
        })
    }

    /// Brings every pod to a stage.
    pub(crate) fn advance(&self, stage: Stage) {
        for pod in self.served.lock().unwrap_or_else(PoisonError::into_inner).values() {
            pod.advance(stage);
        }
    }

    /// Connections that are open now.
    pub(crate) fn open_connections(&self) -> usize {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().map(|pod| pod.room.connections()).sum()
    }

    /// Ends what a pod has open, and the tunnels that speak for it.
    fn end(&self, pod: &Pod) {
        pod.advance(Stage::Stopped);
        self.node.dialler.remove(&pod.speaker.key);
        for worker in self.node.workers.iter() {
            worker.tunnels.forget(&pod.speaker.key);
        }
    }

    fn take(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = served.remove(uid);
        self.node.metrics.serve_pods(served.len());
        taken
    }

    fn present(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    async fn serve(&self, spec: &PodSpec, namespace: Arc<Netns>) -> Result<Arc<Pod>, ProxyError> {
        let node = &self.node;
        let identity = Identity::new(&node.config.trust_domain, &spec.namespace, &spec.service_account);
        let identity = identity.map_err(|e| refuse("naming the pod", io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let certificate = node.certificates.hold(&identity).await;
        let certificate = certificate.map_err(|e| refuse("asking for the pod's certificate", io::Error::other(e)))?;
        let key = SpeakerKey::new(format!("{} in {}", spec.uid, namespace.id()));
        let pod = Arc::new(Pod {
            spec: spec.clone(),
            speaker: Speaker {
                key,
                identity: identity.clone(),
            },
            identity,
            room: node.bounds.pod(),
            stage: watch::Sender::new(Stage::Serving),
            listening: Mutex::default(),
            _certificate: certificate,
            namespace,
        });
        self.listen(&pod).await?;
        node.dialler.add(&pod.speaker.key, pod.namespace.clone());
        Ok(pod)
    }

    /// Brings up every listener of the pod that is not there. All are bound before one is served: a port that is taken must
    /// not leave half a proxy behind.
    async fn listen(&self, pod: &Arc<Pod>) -> Result<(), ProxyError> {
        let node = &self.node;
        let dns = !node.config.nameservers.is_empty();
        let mut bound = Vec::new();
        for at in Listening::all(node.config.ipv6, dns).filter(|at| !pod.has(*at)) {
            let name = || format!("listening on {at} in the pod's namespace");
            match at.bind(node, pod).await {
                Ok(socket) => bound.push((at, socket)),
                // A namespace without IPv6 has no query to redirect to its loopback.
                Err(error) if at.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) && has_no_such_address(&error) => {}
                Err(source) => return Err(ProxyError { what: name(), source }),
            }
        }
        for (at, socket) in bound {
            let serving = match socket {
                Bound::Tcp(acceptor, serve) => tokio::spawn(accept(node.clone(), pod.clone(), acceptor, serve)),
                Bound::DnsUdp(socket) => tokio::spawn(dns::serve_udp(node.clone(), pod.clone(), socket)),
                Bound::DnsTcp(listener) => tokio::spawn(dns::serve_tcp(node.clone(), pod.clone(), listener)),
            };
            pod.listening.lock().unwrap_or_else(PoisonError::into_inner).insert(at, serving);
        }
        Ok(())
    }
}

fn refuse(what: &str, source: io::Error) -> ProxyError {
    ProxyError { what: what.into(), source }
}

/// A listener that every pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Listening {
    address: SocketAddr,
    udp: bool,
}

enum Bound {
    Tcp(Acceptor, Serve),
    DnsUdp(UdpSocket),
    DnsTcp(TcpListener),
}

impl Listening {
    fn all(ipv6: bool, dns: bool) -> impl Iterator<Item = Self> {
        let any: IpAddr = if ipv6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let tcp = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE].map(|port| SocketAddr::new(any, port));
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let names = loopback
            .into_iter()
            .filter(move |ip| dns && (ipv6 || ip.is_ipv4()))
            .map(|ip| SocketAddr::new(ip, ports::DNS));
        let names = names.flat_map(|address| [true, false].map(|udp| Self { address, udp }));
        tcp.map(|address| Self { address, udp: false }).into_iter().chain(names)
    }

    async fn bind(self, node: &Shared, pod: &Pod) -> io::Result<Bound> {
        if self.udp {
            return Ok(Bound::DnsUdp(UdpSocket::from_std(
                node.sockets.udp(&pod.namespace, self.address).await?,
            )?));
        }
        let listener = node.sockets.tcp_listener(&pod.namespace, self.address, BACKLOG).await?;
        let serve: Serve = match self.address.port() {
            ports::OUTBOUND => outbound::serve,
            ports::INBOUND_PLAINTEXT => plaintext::serve,
            ports::HBONE => inbound::serve,
            _ => return Ok(Bound::DnsTcp(TcpListener::from_std(listener)?)),
        };
        Ok(Bound::Tcp(Acceptor::new(listener)?, serve))
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", if self.udp { "UDP" } else { "TCP" }, self.address.port())
    }
}

/// How long what a pod has open may take to end once it is cut.
const CUTTING: Duration = Duration::from_millis(500);
/// How long a connection takes from its accept to its worker, generously.
const HANDOVER: Duration = Duration::from_millis(20);
/// How often to look whether it has ended.
const GLANCE: Duration = Duration::from_millis(2);
/// Connections that may wait to be accepted: a burst, not a load.
const BACKLOG: i32 = 1024;

async fn accept(node: Arc<Shared>, pod: Arc<Pod>, acceptor: Acceptor, serve: Serve) {
    let draining = pod.reaches(Stage::Draining);
    tokio::pin!(draining);
    loop {
        tokio::select! {
            biased;
            () = &mut draining => return,
            accepted = acceptor.accept() => {
                let Some((stream, peer)) = accepted else { return };
                serve(node.clone(), pod.clone(), node.workers.least_loaded().clone(), stream, peer);
            }
        }
    }
}

impl Proxy for Pods {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            if let Some(present) = self.present(&pod.uid) {
                if present.is(pod, namespace.id()) {
                    return self.listen(&present).await;
                }
                // Somebody else now, or elsewhere: its ports must be free before they are bound anew.
                self.take(&pod.uid);
                self.end(&present);
                present.let_go().await;
            }
            let new = self.serve(pod, namespace).await?;
            let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            served.insert(pod.uid.clone(), new);
            self.node.metrics.serve_pods(served.len());
            Ok(())
        })
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(pod) = self.present(uid) else { return };
            pod.advance(Stage::Cut);
            let idle = async {
                while pod.accepts() {
                    time::sleep(GLANCE).await;
                }
                // What was accepted last may still be on its way to its worker, and is not counted until it is there.
                time::sleep(HANDOVER).await;
                while pod.room.connections() > 0 {
                    time::sleep(GLANCE).await;
                }
            };
            let _ = time::timeout(CUTTING, idle).await;
        })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(old) = self.take(uid) {
                self.end(&old);
            }
        })
    }
}

/// Whether an error says that a namespace has no IPv6.
pub(crate) fn has_no_such_address(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}
