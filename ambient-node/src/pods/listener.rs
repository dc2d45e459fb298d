//! A pod's listeners: bound in its namespace, served until it stops, and served again at once where that panics.

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use ambient_core::ports;
use ambient_redirect::{
    BoxFuture,
    linux::{self, Sharer},
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::{self, JoinHandle},
    time,
};

use super::Told;
use crate::{
    KeepAlive, Shared,
    accept::{Acceptor, BREATH},
    dns,
    embed::{Arrival, Kind, Listener},
    inbound, outbound, plaintext,
    pod::{Listening, Pod, Stage},
    session::keep_alive,
    shares::Whose,
    supervise::supervise,
    telemetry::Metrics,
    workers::Worker,
};

#[cfg(test)]
mod tests;

/// Connections that may wait to be accepted: a burst, not a load.
const BACKLOG: i32 = 4096;
/// What is redirected to a pod that leaves was sent before it left; a listener at which nothing has come for so long has
/// had it all.
const QUIET: Duration = Duration::from_millis(100);
/// The longest that a listener with a successor is listened at still, when it never is quiet.
const LAST: Duration = Duration::from_secs(1);

/// Begins to serve a listener, anew each time: what has come meanwhile waits in the socket.
pub(super) type Begin = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Takes a connection in.
type Take = Arc<dyn Fn(std::net::TcpStream, SocketAddr) + Send + Sync>;

/// A listener that nobody serves yet.
pub(super) enum Bound {
    /// With the worker that takes in what comes.
    Tcp(Acceptor, Kind, Arc<Worker>),
    DnsUdp(UdpSocket),
    DnsTcp(TcpListener),
}

/// Binds a listener in the pod's namespace.
pub(super) async fn bind(at: Listening, node: &Shared, pod: &Pod) -> io::Result<Bound> {
    if at.udp {
        return Ok(Bound::DnsUdp(UdpSocket::from_std(
            node.sockets.udp(&pod.namespace, at.address).await?,
        )?));
    }
    let listener = node.sockets.tcp_listener(&pod.namespace, at.address, BACKLOG).await?;
    let kind = match at.address.port() {
        ports::OUTBOUND => Kind::Outbound,
        ports::INBOUND_PLAINTEXT => Kind::Plaintext,
        ports::HBONE => Kind::Tunnel,
        _ => return Ok(Bound::DnsTcp(TcpListener::from_std(listener)?)),
    };
    // What is accepted has them from its listener, and costs no call for each.
    prepare(&listener, kind, &node.config.keep_alive)?;
    let worker = node.workers.next().clone();
    let acceptor = worker.within(|| Acceptor::new(listener, node.metrics.accept_failures()))?;
    Ok(Bound::Tcp(acceptor, kind, worker))
}

/// What every connection of a kind must have, before anything is done with it.
fn prepare(socket: &impl AsFd, kind: Kind, alive: &KeepAlive) -> io::Result<()> {
    // An application's connection ends as a reset until it is known to have ended well, also when the process is killed. A
    // tunnel's need not: TLS says whether its end is one.
    if kind != Kind::Tunnel {
        linux::cut_when_dropped(socket, true)?;
    }
    SockRef::from(socket).set_tcp_nodelay(true)?;
    keep_alive(socket, alive)
}

impl Bound {
    /// Who takes in what comes: else whoever asks.
    pub(super) fn home(&self) -> Option<Arc<Worker>> {
        match self {
            Self::Tcp(_, _, home) => Some(home.clone()),
            Self::DnsUdp(_) | Self::DnsTcp(_) => None,
        }
    }

    /// How it is served. The socket is kept through a panic of what serves it.
    pub(super) fn begin(self, node: &Arc<Shared>, pod: &Arc<Pod>, names: &ambient_dns::Server) -> Begin {
        let (node, pod, names) = (node.clone(), pod.clone(), names.clone());
        match self {
            Self::Tcp(acceptor, kind, home) => {
                let (acceptor, shared) = (Arc::new(acceptor), node.config.share_ports);
                let taking = (node, pod.clone());
                let take: Take = Arc::new(move |stream, peer| {
                    let (node, pod) = &taking;
                    let arrival = Arrival {
                        stream,
                        peer,
                        destination: None,
                        kind,
                    };
                    serve(node, pod, node.workers.near(&home), arrival);
                });
                Box::new(move || Box::pin(accept(pod.clone(), acceptor.clone(), shared, take.clone())))
            }
            Self::DnsUdp(socket) => {
                let socket = Arc::new(socket);
                Box::new(move || Box::pin(dns::serve_udp(names.clone(), pod.clone(), socket.clone())))
            }
            Self::DnsTcp(listener) => {
                let listener = Arc::new(listener);
                Box::new(move || Box::pin(dns::serve_tcp(names.clone(), pod.clone(), listener.clone())))
            }
        }
    }
}

/// Serves a listener on a task of its own, on a worker's thread in the share of who is named, or here. However it ends, whoever
/// keeps the pod captured looks at once.
pub(super) fn keep(home: Option<(&Worker, Whose)>, metrics: Arc<Metrics>, told: Told, begin: Begin) -> JoinHandle<()> {
    let share = home.as_ref().map(|(worker, whose)| worker.share(whose));
    let begin = move || -> BoxFuture<'static, ()> {
        match &share {
            Some(share) => Box::pin(share.run(begin())),
            None => begin(),
        }
    };
    let serving = async move {
        let _told = told;
        supervise("a pod's listener", &metrics, begin).await;
    };
    match home {
        Some((worker, _)) => worker.keep(serving),
        None => tokio::spawn(serving),
    }
}

/// Hands a connection over to a worker.
fn serve(node: &Arc<Shared>, pod: &Arc<Pod>, worker: &Arc<Worker>, arrival: Arrival) {
    let serve = match arrival.kind {
        Kind::Outbound => outbound::serve,
        Kind::Plaintext => plaintext::serve,
        Kind::Tunnel => inbound::serve,
    };
    serve(node.clone(), pod.clone(), worker.clone(), arrival);
}

/// Accepts until nothing new is to be taken, or until the pod leaves and nothing comes any more.
async fn accept(pod: Arc<Pod>, acceptor: Arc<Acceptor>, shared: bool, take: Take) {
    loop {
        let quiet = async {
            pod.reaches(Stage::Leaving).await;
            time::sleep(QUIET).await;
        };
        tokio::select! {
            biased;
            () = pod.reaches(Stage::Draining) => {
                if shared {
                    leave(&acceptor, &take).await;
                }
                // They were told that they are connected: refusing them is no way to hand over to a successor.
                for _ in 0..BACKLOG {
                    let Some((stream, peer)) = acceptor.waiting() else { return };
                    take(stream, peer);
                }
                return;
            }
            accepted = acceptor.accept() => {
                let Some((stream, peer)) = accepted else { return };
                take(stream, peer);
                // One at a time, and then whatever else waits for this thread: who connects without end gets a turn as others do.
                task::yield_now().await;
            }
            // It may be back, and serve on.
            () = quiet => if !pod.serves() {
                return;
            },
        }
    }
}

/// Takes in what was on its way, and has the kernel bring what comes from now on to who else listens at the port: as a rule a
/// successor, which has joined later; where the younger one is the one that stops, as at a return to the former version, the elder.
async fn leave(acceptor: &Acceptor, take: &Take) {
    let (mut to, last) = (Sharer::Younger, time::Instant::now() + LAST);
    let quiet = || last.min(time::Instant::now() + QUIET);
    while time::Instant::now() < last {
        acceptor.leave_to(to);
        let (mut came, on_its_way) = (false, quiet());
        while let Ok(Some((stream, peer))) = time::timeout_at(on_its_way, acceptor.accept()).await {
            take(stream, peer);
            came = true;
        }
        for _ in 0..BACKLOG {
            let Some((stream, peer)) = acceptor.waiting() else { break };
            take(stream, peer);
            came = true;
        }
        if !came {
            return;
        }
        // What comes after all of that was meant for this one still.
        match time::timeout_at(quiet(), acceptor.accept()).await {
            Ok(Some((stream, peer))) => take(stream, peer),
            _ => return,
        }
        to = to.other();
    }
}

/// The same, from a listener of somebody else's.
pub(super) async fn accept_from(node: Arc<Shared>, pod: Arc<Pod>, listener: Arc<dyn Listener>) {
    loop {
        tokio::select! {
            biased;
            () = pod.reaches(Stage::Leaving) => return,
            arrived = listener.accept() => match arrived {
                None => return,
                Some(Ok(arrival)) => {
                    let prepared = prepare(&arrival.stream, arrival.kind, &node.config.keep_alive);
                    if let Err(error) = prepared.and_then(|()| arrival.stream.set_nonblocking(true)) {
                        tracing::debug!(%error, "a connection that was given cannot be served");
                        continue;
                    }
                    serve(&node, &pod, node.workers.least_loaded(), arrival);
                }
                Some(Err(error)) => {
                    node.metrics.accept_failed();
                    tracing::debug!(%error, "accept, at a listener that was given");
                    time::sleep(BREATH).await;
                }
            },
        }
    }
}
