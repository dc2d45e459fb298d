//! Tunnels from other nodes' proxies: each CONNECT is checked and delivered to the pod whose namespace accepted it.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use ambient_authz::{Decision, Peer};
use ambient_core::{
    Authority, Identity, Network, NetworkAddress, Observer, Workload, headers,
    observe::Event,
    proxy_header,
    route::{self, Delivery},
};
use ambient_hbone::{Pipe, Request, Session, Share, Stream, StreamError};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    Shared,
    acks::Prompt,
    afar,
    bounds::Place,
    clock,
    embed::Arrival,
    local::{Call, Joined},
    pod::{Pod, Stage, UnknownPod},
    session::{broken_off, carry, dial, drained, settle, source_for},
    shares::Whose,
    state::Snapshot,
    telemetry::{Account, Closer, Direction, Ends, Flag, Metrics, Outcome, Reason, refused_early},
    watch::{Subject, Watched},
    workers::Worker,
};

/// A tunnel without a stream for this long is closed; well after the 5 min at which peers close theirs.
const IDLE: Duration = Duration::from_secs(900);

/// Serves one tunnel on a worker; its streams stay there.
pub(crate) fn serve(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, arrival: Arrival) {
    let (home, share) = (worker.clone(), worker.share(&Whose::Peer(arrival.peer.ip())));
    let own = share.clone();
    worker.spawn(&share, move || async move {
        let Arrival {
            stream, peer, destination, ..
        } = arrival;
        let Some(handshake) = pod.room.handshakes.take() else {
            return node.metrics.connection_shed(Direction::Inbound);
        };
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        let _open = node.metrics.socket(Direction::Inbound);
        let at = destination.or_else(|| stream.local_addr().ok()).unwrap_or(peer);
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        let begun = clock::steady();
        let accept = async {
            // Where there is none the handshake says so.
            let _ = node.certificates.ready(&pod.identity).await;
            node.server.accept(stream, &pod.identity).await
        };
        let session = tokio::select! {
            session = accept => session,
            () = pod.reaches(Stage::Cut) => return,
        };
        node.metrics
            .handshaken(Direction::Inbound, session.is_ok(), clock::steady().duration_since(begun));
        match session {
            Ok(session) => {
                drop(handshake);
                let Some(_place) = pod.room.tunnels.take() else {
                    return node.metrics.connection_shed(Direction::Inbound);
                };
                Tunnel {
                    node,
                    pod: pod.clone(),
                    home,
                    share: own,
                    peer,
                    at,
                    local: false,
                }
                .run(session)
                .await;
            }
            Err(error) => {
                node.metrics.handshake_refused();
                let reason = Reason::of_accept(&error);
                if reason == Reason::CertRevoked {
                    node.metrics.refused_as_revoked(Direction::Inbound);
                }
                refused_early(&node.metrics, reason, Direction::Inbound, peer, at, None, &error);
            }
        }
    });
}

/// Serves a connection from another pod of this node on a worker, as a stream of a tunnel would be; in the share of who calls.
pub(crate) fn serve_call(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, share: Share, call: Call) {
    let tunnel = Tunnel {
        node,
        pod,
        home: worker,
        share,
        peer: call.from,
        at: call.to,
        local: true,
    };
    let mut peer = Arc::new(Peer::from(call.source.clone()));
    tunnel.resolve(&mut peer);
    Arc::new(tunnel).serve(Asked::Call(call), peer);
}

/// One tunnel of a peer, or what stands for it within this process.
struct Tunnel {
    node: Arc<Shared>,
    pod: Arc<Pod>,
    home: Arc<Worker>,
    /// Of the worker's thread: that of the peer, for the tunnel and all its streams.
    share: Share,
    peer: SocketAddr,
    at: SocketAddr,
    local: bool,
}

/// Tells of requests of a tunnel that are none for a connection, as of others that are refused before their ends are known.
struct Refusals {
    metrics: Arc<Metrics>,
    peer: SocketAddr,
    at: SocketAddr,
}

impl Observer for Refusals {
    fn observe(&self, event: &Event<'_>) {
        if let Event::RequestRefused { reason, .. } = event {
            refused_early(
                &self.metrics,
                Reason::BadRequest,
                Direction::Inbound,
                self.peer,
                self.at,
                None,
                reason,
            );
        }
    }
}

/// What is asked for, on the wire or within this process.
enum Asked {
    Request(Request),
    Call(Call),
}

/// What may be carried.
struct Admitted {
    client: Client,
    server: Prompt,
    watched: Watched,
    account: Account,
    /// Counted against the pod's bound.
    _place: Place,
}

/// Who has asked, answered.
enum Client {
    Stream(Stream),
    Pipe(Pipe, Joined),
}

fn refused(request: Asked, status: StatusCode) -> Option<Box<Admitted>> {
    request.refuse(status);
    None
}

impl Asked {
    fn authority(&self) -> &Authority {
        match self {
            Self::Request(request) => request.authority(),
            Self::Call(call) => &call.authority,
        }
    }

    fn headers(&self) -> &HeaderMap {
        match self {
            Self::Request(request) => request.headers(),
            Self::Call(call) => &call.headers,
        }
    }

    /// Waits until nobody waits for an answer any more, and tells why; nothing of who asks within this process.
    async fn gone(&mut self) -> Option<StreamError> {
        match self {
            Self::Request(request) => Some(request.gone().await),
            Self::Call(call) => {
                call.gone().await;
                None
            }
        }
    }

    fn refuse(self, status: StatusCode) {
        match self {
            Self::Request(request) => request.refuse(status),
            Self::Call(call) => call.refuse(status),
        }
    }
}

impl Tunnel {
    async fn run(self, mut session: Session) {
        let identity = match Identity::try_from(session.peer().clone()) {
            Ok(identity) => identity,
            Err(error) => {
                self.node.metrics.handshake_refused();
                refused_early(
                    &self.node.metrics,
                    Reason::WrongPeer,
                    Direction::Inbound,
                    self.peer,
                    self.at,
                    None,
                    &error,
                );
                return;
            }
        };
        session.also_tell(Arc::new(Refusals {
            metrics: self.node.metrics.clone(),
            peer: self.peer,
            at: self.at,
        }));
        let mut peer = Arc::new(Peer::from(identity));
        let mut turns = self.pod.turns();
        let tunnel = Arc::new(self);
        let mut ending = false;
        let mut idle = tokio::time::interval(IDLE / 2);
        let mut quiet = 0;
        loop {
            tokio::select! {
                request = session.next() => {
                    let Some(request) = request else { return };
                    quiet = 0;
                    tunnel.resolve(&mut peer);
                    tunnel.clone().serve(Asked::Request(request), peer.clone());
                }
                () = tunnel.pod.reaches(Stage::Leaving), if !ending => {
                    ending = true;
                    session.graceful_shutdown();
                }
                // An error says that the pod is gone, which it is not while it is held here.
                Ok(()) = turns.changed(), if !ending => {
                    ending = true;
                    session.graceful_shutdown();
                }
                () = tunnel.pod.reaches(Stage::Cut) => return,
                _ = idle.tick() => {
                    // Each of its streams holds the tunnel as well.
                    quiet = if Arc::strong_count(&tunnel) == 1 { quiet + 1 } else { 0 };
                    if quiet > 2 {
                        session.graceful_shutdown();
                    }
                }
            }
        }
    }

    /// Once for all streams of the tunnel, until the names that policies ask for change.
    fn resolve(&self, peer: &mut Arc<Peer>) {
        if let Some(snapshot) = self.node.state.current()
            && !snapshot.policies.knows(peer)
        {
            *peer = Arc::new(snapshot.policies.resolve(peer.identity()));
        }
    }

    /// One stream, in a task of its own. Most stand open for long, and many do: what only the opening needs is apart, and has gone by then.
    fn serve(self: Arc<Self>, request: Asked, peer: Arc<Peer>) {
        let (home, share) = (self.home.clone(), self.share.clone());
        let admitting = Box::pin(self.clone().admit(request, peer));
        home.spawn(&share, move || async move {
            if let Some(mut admitted) = admitting.await
                && self.carry(&mut admitted).await
            {
                settle(admitted.server.socket());
            }
        });
    }

    /// Whether it ended as both ends wanted.
    async fn carry(&self, admitted: &mut Admitted) -> bool {
        let Admitted {
            client,
            server,
            watched,
            account,
            ..
        } = admitted;
        let (pod, relays) = (&self.pod, &self.home.relays);
        match client {
            Client::Stream(client) => carry(pod, relays, client, server, Some(watched), account).await,
            Client::Pipe(client, joined) => {
                // Apart: streams of tunnels, whose end in time is the tunnel's, would have room for it too.
                let mut in_time = Box::pin(joined.end_in_time());
                let mut carried = pin!(carry(pod, relays, client, server, Some(watched), account));
                poll_fn(|cx| {
                    // Never ready: what is carried sees the end.
                    let _ = in_time.as_mut().poll(cx);
                    carried.as_mut().poll(cx)
                })
                .await
            }
        }
    }

    /// Finds out where to, asks the policies, connects and answers; or tells of why not.
    async fn admit(self: Arc<Self>, request: Asked, peer: Arc<Peer>) -> Option<Box<Admitted>> {
        let opened = clock::steady();
        let (node, pod) = (&self.node, &self.pod);
        let Some(place) = pod.room.inbound.take() else {
            node.metrics.connection_shed(Direction::Inbound);
            return refused(request, StatusCode::SERVICE_UNAVAILABLE);
        };
        let authority = request.authority().clone();
        let snapshot = match pod.known(&node.state).await {
            Ok(snapshot) => snapshot,
            Err(unknown) => {
                self.early(unknown.reason(), &authority, &unknown);
                return refused(request, StatusCode::SERVICE_UNAVAILABLE);
            }
        };
        let Ok(workload) = pod.workload(&snapshot) else {
            return refused(request, StatusCode::SERVICE_UNAVAILABLE);
        };
        let to = match route::inbound(
            &snapshot.mesh,
            &route::Inbound {
                pod: workload,
                at: self.at.ip(),
                authority: &authority,
            },
        ) {
            Ok(to) => to,
            Err(refusal) => {
                self.early(Reason::BadRequest, &authority, &refusal);
                return refused(
                    request,
                    StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                );
            }
        };
        let snapshot = self.meet(snapshot, &request).await;
        let ends = self.ends(&snapshot, &request, peer.identity(), authority, &to);
        let account = Account::open(&node.metrics, ends, opened);
        self.deliver(request, peer, to, snapshot, account, place).await
    }

    async fn deliver(
        &self,
        mut request: Asked,
        peer: Arc<Peer>,
        to: Delivery,
        snapshot: Arc<Snapshot>,
        account: Account,
        place: Place,
    ) -> Option<Box<Admitted>> {
        let (node, pod) = (&self.node, &self.pod);
        // Asking for who speaks takes a while, in which the pod itself may have become unknown.
        let workload = match pod.workload(&snapshot) {
            Ok(workload) => workload,
            Err(unknown) => return unknown_pod(request, account, unknown),
        };
        let subject = Subject {
            server: pod.server.clone(),
            workload: workload.uid.clone(),
            peer,
            source: self.peer.ip(),
            destination: to.to,
        };
        let watched = node.watch.register(subject.clone());
        // Decided on what is present after the registration: a change in between is either seen here or cut later.
        let snapshot = node.state.current().unwrap_or(snapshot);
        let target = match pod.target(&snapshot) {
            Ok(target) => target,
            Err(unknown) => return unknown_pod(request, account, unknown),
        };
        if let Decision::Deny(denial) = subject.decide(&snapshot, &target) {
            account.close(&Outcome::failed(
                Flag::Deny,
                format_args!("connection closed due to policy rejection: {denial}"),
            ));
            return refused(request, StatusCode::UNAUTHORIZED);
        }
        let connected = tokio::select! {
            connected = self.connect(&to, subject.peer.identity()) => connected,
            // Whom the application does not answer may have given up long before.
            why = request.gone() => {
                self.went_away(account, why.as_ref());
                return None;
            }
            () = pod.reaches(Stage::Cut) => {
                account.close(&drained());
                return None;
            }
        };
        let server = match connected {
            Ok(server) => server,
            Err(error) => {
                let failed = Outcome::failed(Flag::Connect, format_args!("connection failed: {error}"));
                account.close(&failed.because(Reason::of_dial(&error)));
                return refused(request, StatusCode::SERVICE_UNAVAILABLE);
            }
        };
        let client = match request {
            Asked::Request(request) => {
                let mut answer = HeaderMap::new();
                if let Ok(baggage) = HeaderValue::from_str(&headers::baggage(target.workload())) {
                    answer.insert("baggage", baggage);
                }
                request.accept(answer).map(Client::Stream).map_err(Some)
            }
            Asked::Call(call) => {
                let accepted = call.accept(&node.locals, &pod.identity);
                accepted.map(|(pipe, joined)| Client::Pipe(pipe, joined)).ok_or(None)
            }
        };
        match client {
            Ok(client) => Some(Box::new(Admitted {
                client,
                server: self.home.acks.prompt(server),
                watched,
                account,
                _place: place,
            })),
            Err(why) => {
                self.went_away(account, why.as_ref());
                None
            }
        }
    }

    /// A connection to the application, from the peer's own address. One that is told who speaks needs not see it, and is
    /// reached where it listens for nobody else. In the pod of this process, which is not captured, answers to another's address
    /// would leave.
    async fn connect(&self, delivery: &Delivery, identity: Option<&Identity>) -> io::Result<TcpStream> {
        let (node, pod, to) = (&self.node, &self.pod, delivery.to);
        let source = source_for(self.peer, to).filter(|_| !pod.is_own);
        let Some(told) = delivery.told else {
            return dial(node, pod, source, to).await;
        };
        let (from, at) = match node.config.localhost_app_tunnel {
            true => (None, SocketAddr::new(loopback(to), to.port())),
            false => (source, to),
        };
        let mut server = dial(node, pod, from, at).await?;
        // It fits into the socket's buffer: nobody is waited for.
        server.write_all(&proxy_header::write(self.peer, told, identity)).await?;
        Ok(server)
    }

    /// Where the mesh does not come whole, who speaks is asked for as well: the snapshot after the answer, or the same.
    async fn meet(&self, snapshot: Arc<Snapshot>, request: &Asked) -> Arc<Snapshot> {
        let (Some(demand), Ok(own)) = (&self.node.demand, self.pod.workload(&snapshot)) else {
            return snapshot;
        };
        if !is_from_afar(request, &own.network) {
            let address = NetworkAddress::new(own.network.clone(), self.peer.ip());
            demand.meet(&self.pod.spec.uid, &snapshot.mesh, &address).await;
        }
        self.node.state.current().unwrap_or(snapshot)
    }

    /// Both ends as the mesh knows them. What the peer wrote in headers only picks from what is looked up.
    fn ends(&self, snapshot: &Snapshot, request: &Asked, identity: Option<&Identity>, authority: Authority, to: &Delivery) -> Ends {
        let mesh = &snapshot.mesh;
        let destination = self.pod.workload(snapshot).ok().cloned();
        let network = destination.as_ref().map(|w| w.network.clone()).unwrap_or_default();
        let source = if is_from_afar(request, &network) {
            afar::workload(mesh, request.headers(), identity)
        } else {
            let source = mesh.workload_by_address(&NetworkAddress::new(network, self.peer.ip()));
            // An address that belongs to somebody else than the certificate names (a waypoint's, say) says nothing.
            source.filter(|w| identity.is_some_and(|identity| w.bears(identity))).cloned()
        };
        let host = request
            .headers()
            .get("forwarded")
            .and_then(|value| headers::forwarded_host(value.as_bytes()));
        let service = host.and_then(|host| mesh.service_by_hostname(host, &self.pod.spec.namespace));
        let service = service
            .filter(|s| destination.as_ref().is_some_and(|w| mesh.endpoint(&s.name, &w.uid).is_some()))
            .cloned();
        let asked = to.service.clone().or(service);
        // What is for another address is for a service of the waypoint's only by chance.
        let is_own = |w: &&Arc<Workload>| matches!(&authority, Authority::Address(named) if w.has_address(named.ip()));
        let at_port = || {
            destination
                .as_ref()
                .filter(is_own)
                .and_then(|w| mesh.service_at(w, to.to.port()))
                .cloned()
        };
        let guessed = asked.is_none();
        let service = asked.or_else(at_port);
        Ends {
            direction: Direction::Inbound,
            source: self.peer,
            source_workload: source,
            source_identity: identity.cloned(),
            application: to.to,
            destination: self.at,
            hbone: Some(authority),
            service,
            destination_workload: destination,
            destination_identity: Some(self.pod.identity.clone()),
            waypoint: false,
            double: false,
            mutual_tls: true,
            local: self.local,
            retries: 0,
            avoided: 0,
            guessed,
        }
    }

    /// Tells of who waits for an answer no more; where the pod is cut the tunnel has ended with it.
    fn went_away(&self, account: Account, why: Option<&StreamError>) {
        if self.pod.is_cut() {
            return account.close(&drained());
        }
        let by_client = (Closer::Client, Reason::ClientReset);
        let outcome = match why {
            Some(StreamError::Lost { source }) => {
                let text = format_args!("it was not answered yet: {source}");
                broken_off(Reason::of_tunnel(source), Some(source), by_client, &text)
            }
            Some(reset) => broken_off(
                None,
                None,
                by_client,
                &format_args!("the peer went away before it was answered: {reset}"),
            ),
            None => broken_off(None, None, by_client, &"the peer went away before it was answered"),
        };
        account.close(&outcome);
    }

    fn early(&self, reason: Reason, authority: &Authority, error: &dyn std::fmt::Display) {
        refused_early(
            &self.node.metrics,
            reason,
            Direction::Inbound,
            self.peer,
            self.at,
            Some(authority),
            error,
        );
    }
}

/// Whether it came through a gateway of another network, whose address says nothing of who speaks.
fn is_from_afar(request: &Asked, network: &Network) -> bool {
    let mut networks = request.headers().get_all("x-forwarded-network").iter();
    networks.any(|value| headers::is_from_other_network(value.as_bytes(), network.as_str()))
}

/// The pod's own loopback address of the same family.
fn loopback(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Tells of a connection to a pod of which the mesh has ceased to say who it is.
fn unknown_pod(request: Asked, account: Account, unknown: UnknownPod) -> Option<Box<Admitted>> {
    let reason = unknown.reason();
    account.close(&Outcome::failed(Flag::Connect, unknown).because(reason));
    refused(request, StatusCode::SERVICE_UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// What each stream that stands idle holds of its own here, in bytes.
    #[test]
    fn a_connection_that_stands_is_small() {
        let carrying = |tunnel: &'static Tunnel, admitted: &'static mut Admitted| tunnel.carry(admitted);
        let (future, admitted) = (size_of_future(carrying), size_of::<Admitted>());
        assert!(future <= 424, "{future}");
        assert!(admitted <= 264, "{admitted}");
    }
}
