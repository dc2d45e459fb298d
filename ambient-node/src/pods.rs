//! The pods that this node serves, as redirect says which there are.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_core::{Identity, PodUid, ports};
use ambient_hbone::{Speaker, SpeakerKey};
use ambient_redirect::{BoxFuture, Drained, PodSpec, Proxy, ProxyError, linux::Netns};
use tokio::{
    net::{TcpListener, UdpSocket},
    time,
};

use crate::{
    Shared,
    accept::{Acceptor, has_no_such_address},
    dns, inbound, outbound, plaintext,
    pod::{Listening, Pod, Stage},
    workers::Worker,
};

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
        let certificate = node.certificates.hold(&identity, &spec.uid).await;
        let certificate = certificate.map_err(|e| refuse("asking for the pod's certificate", io::Error::other(e)))?;
        let key = SpeakerKey::new(format!("{} in {}", spec.uid, namespace.id()));
        let speaker = Speaker {
            key,
            identity: identity.clone(),
        };
        let pod = Arc::new(Pod::new(spec.clone(), namespace, speaker, node.bounds.pod(), certificate));
        let named = format!("{}//Pod/{}/{}", node.config.cluster_id, spec.namespace, spec.name);
        node.state.serve(named.into(), &spec.uid);
        self.listen(&pod, spec).await?;
        node.dialler.add(&pod.speaker.key, pod.namespace.clone());
        node.locals.add(&pod);
        Ok(pod)
    }

    /// Brings up every listener of the pod that is not there. All are bound before one is served: a port that is taken must
    /// not leave half a proxy behind.
    async fn listen(&self, pod: &Arc<Pod>, spec: &PodSpec) -> Result<(), ProxyError> {
        let node = &self.node;
        // What the pod asks may have changed since it is served; a listener that nothing is redirected to any more may stay.
        let dns = spec.capture.dns.unwrap_or_else(|| node.config.captures_dns());
        let mut bound = Vec::new();
        for at in Listening::all(node.config.ipv6, dns).filter(|at| !pod.has(*at)) {
            let name = || format!("listening on {at} in the pod's namespace");
            match bind(at, node, pod).await {
                Ok(socket) => bound.push((at, socket)),
                // A namespace without IPv6 has no query to redirect to its loopback.
                Err(error) if at.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) && has_no_such_address(&error) => {}
                Err(source) => return Err(ProxyError { what: name(), source }),
            }
        }
        let names = dns::server(node, pod);
        for (at, socket) in bound {
            let names = names.clone();
            let serving: BoxFuture<'static, ()> = match socket {
                Bound::Tcp(acceptor, serve) => Box::pin(accept(node.clone(), pod.clone(), acceptor, serve)),
                Bound::DnsUdp(socket) => Box::pin(dns::serve_udp(names, pod.clone(), socket)),
                Bound::DnsTcp(listener) => Box::pin(dns::serve_tcp(names, pod.clone(), listener)),
            };
            // However it ends, by a panic too: whoever keeps the pod captured looks at once.
            let told = Told(pod.namespace.clone());
            let serving = async move {
                let _told = told;
                serving.await;
            };
            pod.listens(at, tokio::spawn(serving));
        }
        Ok(())
    }
}

/// Tells, when it is dropped, that a listener has ended.
struct Told(Arc<Netns>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.listener_lost();
    }
}

fn refuse(what: &str, source: io::Error) -> ProxyError {
    ProxyError { what: what.into(), source }
}

enum Bound {
    Tcp(Acceptor, Serve),
    DnsUdp(UdpSocket),
    DnsTcp(TcpListener),
}

/// Binds a listener in the pod's namespace.
async fn bind(at: Listening, node: &Shared, pod: &Pod) -> io::Result<Bound> {
    if at.udp {
        return Ok(Bound::DnsUdp(UdpSocket::from_std(
            node.sockets.udp(&pod.namespace, at.address).await?,
        )?));
    }
    let listener = node.sockets.tcp_listener(&pod.namespace, at.address, BACKLOG).await?;
    let serve: Serve = match at.address.port() {
        ports::OUTBOUND => outbound::serve,
        ports::INBOUND_PLAINTEXT => plaintext::serve,
        ports::HBONE => inbound::serve,
        _ => return Ok(Bound::DnsTcp(TcpListener::from_std(listener)?)),
    };
    Ok(Bound::Tcp(Acceptor::new(listener)?, serve))
}

/// How long what a pod has open may take to end once it is cut.
const CUTTING: Duration = Duration::from_millis(500);
/// How long a connection takes from its accept to its worker, generously.
const HANDOVER: Duration = Duration::from_millis(20);
/// How often to look whether it has ended.
const GLANCE: Duration = Duration::from_millis(2);
/// Connections that may wait to be accepted: a burst, not a load.
const BACKLOG: i32 = 4096;
/// What is redirected to a pod that leaves was sent before it left; a listener at which nothing has come for so long has
/// had it all.
const QUIET: Duration = Duration::from_millis(100);

/// Accepts until nothing new is to be taken, or until the pod leaves and nothing comes any more.
async fn accept(node: Arc<Shared>, pod: Arc<Pod>, acceptor: Acceptor, serve: Serve) {
    loop {
        let quiet = async {
            pod.reaches(Stage::Leaving).await;
            time::sleep(QUIET).await;
        };
        tokio::select! {
            biased;
            () = pod.reaches(Stage::Draining) => {
                // They were told that they are connected: refusing them is no way to hand over to a successor.
                for _ in 0..BACKLOG {
                    let Some((stream, peer)) = acceptor.waiting() else { return };
                    serve(node.clone(), pod.clone(), node.workers.least_loaded().clone(), stream, peer);
                }
                return;
            }
            accepted = acceptor.accept() => {
                let Some((stream, peer)) = accepted else { return };
                serve(node.clone(), pod.clone(), node.workers.least_loaded().clone(), stream, peer);
            }
            () = quiet => return,
        }
    }
}

impl Proxy for Pods {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            if let Some(present) = self.present(&pod.uid) {
                if present.is(pod, namespace.id()) && present.resume() {
                    return self.listen(&present, pod).await;
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

    fn drain<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Drained> {
        Box::pin(async move {
            let Some(pod) = self.present(uid) else { return Drained::Done };
            pod.advance(Stage::Leaving);
            while pod.accepts() {
                time::sleep(GLANCE).await;
            }
            time::sleep(HANDOVER).await;
            while pod.room.connections() > 0 {
                time::sleep(GLANCE).await;
            }
            Drained::Done
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
            self.node.state.let_go(uid);
            if let Some(old) = self.take(uid) {
                self.end(&old);
            }
        })
    }
}
