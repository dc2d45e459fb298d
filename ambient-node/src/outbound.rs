//! Connections that a pod opens: routed, and carried to where they go, by tunnel where the other end is captured.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_core::{
    Service, Workload, headers,
    route::{self, Direct, Plan},
};
use ambient_hbone::{ConnectError, Destination, NotConnected, Phase, Stream};
use ambient_redirect::linux::{Direction as Captured, original_destination};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::{net::TcpStream, time};

use crate::{
    Shared, clock, entropy,
    pod::Pod,
    session::{App, carry, dial, settle, was_cut},
    telemetry::{Account, Direction, Ends, Flag, Outcome, refused_early},
    workers::Worker,
};

/// How long to wait before a dial that met a change is routed again.
const AGAIN: Duration = Duration::from_millis(50);

/// Serves one connection on a worker.
pub(crate) fn serve(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, stream: std::net::TcpStream, peer: SocketAddr) {
    let home = worker.clone();
    worker.spawn(Box::pin(async move {
        let to = original_destination(&stream);
        // Before it is counted: a pod that has all it may have open is captured as well.
        if to.as_ref().is_ok_and(|to| pod.namespace.is_probe(Captured::Outbound, peer, *to)) {
            return;
        }
        let Some(app) = App::take(&node, &pod.room.outbound, stream) else {
            return;
        };
        match to {
            Ok(to) => {
                let outbound = Outbound { node, pod, home, peer, to };
                let cut = outbound.pod.clone();
                tokio::select! {
                    () = outbound.run(app) => {}
                    // The carrying itself looks for this too, and then says how much it has carried.
                    () = was_cut(&cut) => {}
                }
            }
            Err(error) => tracing::debug!(%peer, %error, "outbound connection without an original destination"),
        }
    }));
}

struct Outbound {
    node: Arc<Shared>,
    pod: Arc<Pod>,
    home: Arc<Worker>,
    peer: SocketAddr,
    to: SocketAddr,
}

/// The other end, opened.
enum Far {
    Tcp(TcpStream),
    Tunnel(Stream),
}

/// Why it could not be opened.
struct Failure {
    outcome: Outcome,
    /// The other end's policy: an empty reply, not a reset.
    by_policy: bool,
    /// Refused at once, so that no byte was delivered: a change under way may be the cause.
    refused: bool,
}

impl Outbound {
    async fn run(&self, mut app: App) {
        let opened = clock::steady();
        let mut account: Option<Account> = None;
        loop {
            let Some(snapshot) = self.node.state.current() else {
                return self.early(&"the mesh's state has not arrived");
            };
            let source = match self.pod.workload(&snapshot) {
                Ok(source) => source,
                Err(unknown) => return self.early(&unknown),
            };
            let hints = route::Hints {
                draw: entropy::word(),
                avoid: Vec::new(),
            };
            let asked = route::Outbound {
                source,
                destination: self.to,
            };
            let plan = match route::outbound(&snapshot.mesh, &asked, &hints) {
                route::Route::Go(plan) => plan,
                route::Route::Refuse(refusal) => {
                    let account = account.unwrap_or_else(|| self.account(source, None, opened));
                    return account.close(&Outcome::failed(Flag::Connect, refusal));
                }
            };
            // Open before the dial, so that one that is cut while it dials is told of too.
            let mut present = match account.take() {
                Some(account) => account.reroute(self.ends(source, Some(&plan))),
                None => self.account(source, Some(&plan), opened),
            };
            let failure = match self.open(source, &plan, &mut app).await {
                // A dial may take long, and the other end be captured meanwhile: no byte was sent, so it goes by tunnel.
                Ok(Far::Tcp(_)) if self.is_tunnelled_now() => {
                    account = Some(present);
                    continue;
                }
                Ok(far) => {
                    present.proven(&plan);
                    return self.relay(app, far, present).await;
                }
                Err(failure) => failure,
            };
            if failure.refused && self.may_be_news(&plan) {
                account = Some(present);
                time::sleep(AGAIN).await;
                continue;
            }
            if failure.by_policy {
                present.proven(&plan);
            }
            present.close(&failure.outcome);
            if failure.by_policy {
                app.refuse_quietly().await;
            }
            return;
        }
    }

    /// What `app` says before the answer goes along; where there is none, or a refusal, it is as if it had not been read.
    async fn open(&self, source: &Workload, plan: &Plan, app: &mut App) -> Result<Far, Failure> {
        match plan {
            Plan::Passthrough(to) | Plan::Direct(Direct { to, .. }) => {
                dial(&self.node, &self.pod, None, *to).await.map(Far::Tcp).map_err(Failure::tcp)
            }
            Plan::Tunnel(tunnel) => {
                let destination = Destination {
                    peer: tunnel.peer,
                    authority: tunnel.authority.clone(),
                    accepted: tunnel.accepted.clone(),
                    headers: self.headers(source, tunnel.service.as_deref()),
                    early_data: true,
                };
                let connected = self
                    .home
                    .tunnels
                    .connect_with(&self.pod.speaker, &destination, &mut app.stream)
                    .await;
                connected.map(Far::Tunnel).map_err(|NotConnected { reason, early }| {
                    app.stream.unread(early);
                    Failure::tunnel(&reason)
                })
            }
        }
    }

    async fn relay(&self, mut app: App, far: Far, account: Account) {
        match far {
            Far::Tcp(mut server) => {
                if carry(&self.pod, &self.home.relays, &mut app.stream, &mut server, None, account)
                    .await
                    .is_some()
                {
                    settle(&server);
                    app.ended_well();
                }
            }
            Far::Tunnel(mut server) => {
                if carry(&self.pod, &self.home.relays, &mut app.stream, &mut server, None, account)
                    .await
                    .is_some()
                {
                    app.ended_well();
                }
            }
        }
    }

    /// Whether it would be carried by tunnel if it were routed at this moment.
    fn is_tunnelled_now(&self) -> bool {
        let Some(snapshot) = self.node.state.current() else { return false };
        let Ok(source) = self.pod.workload(&snapshot) else { return false };
        let asked = route::Outbound {
            source,
            destination: self.to,
        };
        matches!(
            route::outbound(&snapshot.mesh, &asked, &route::Hints::default()),
            route::Route::Go(Plan::Tunnel(_))
        )
    }

    /// Whether the destination's way was changing a moment ago: then a refusal may only say that the news is under way.
    fn may_be_news(&self, plan: &Plan) -> bool {
        let destination = match plan {
            Plan::Passthrough(_) => return false,
            Plan::Direct(direct) => &direct.destination,
            Plan::Tunnel(tunnel) => &tunnel.destination,
        };
        self.node
            .state
            .settles_at(&destination.uid)
            .is_some_and(|settled| clock::steady() < settled)
    }

    fn headers(&self, source: &Workload, service: Option<&Service>) -> HeaderMap {
        let host = service.map(|service| &*service.name.hostname);
        let texts = [
            ("baggage", headers::baggage(source)),
            ("forwarded", headers::forwarded(self.peer, host)),
            (
                "traceparent",
                headers::traceparent(u128::from(entropy::word()) << 64 | u128::from(entropy::word()), entropy::word()),
            ),
        ];
        // A text that no header can hold (a name outside ASCII) is left out: nothing depends on it.
        texts
            .into_iter()
            .filter_map(|(name, text)| Some((HeaderName::from_static(name), HeaderValue::try_from(text).ok()?)))
            .collect()
    }

    fn account(&self, source: &Arc<Workload>, plan: Option<&Plan>, opened: Instant) -> Account {
        Account::open(&self.node.metrics, self.ends(source, plan), opened)
    }

    /// Both ends, as far as the plan knows them; who the other end is stands only once it has proven it.
    fn ends(&self, source: &Arc<Workload>, plan: Option<&Plan>) -> Ends {
        let mut ends = Ends {
            direction: Direction::Outbound,
            source: self.peer,
            source_workload: Some(source.clone()),
            source_identity: None,
            asked: self.to,
            destination: self.to,
            hbone: None,
            service: None,
            destination_workload: None,
            destination_identity: None,
            waypoint: false,
            mutual_tls: false,
        };
        match plan {
            None | Some(Plan::Passthrough(_)) => {}
            Some(Plan::Direct(direct)) => {
                ends.destination = direct.to;
                ends.destination_workload = Some(direct.destination.clone());
                ends.service = direct.service.clone();
            }
            Some(Plan::Tunnel(tunnel)) => {
                ends.destination = tunnel.peer;
                ends.hbone = Some(tunnel.authority.clone());
                ends.destination_workload = Some(tunnel.destination.clone());
                ends.service = tunnel.service.clone();
                ends.source_identity = Some(self.pod.identity.clone());
                ends.waypoint = tunnel.waypoint;
                ends.mutual_tls = true;
            }
        }
        ends
    }

    fn early(&self, error: &dyn std::fmt::Display) {
        refused_early(Direction::Outbound, self.peer, self.to, None, error);
    }
}

impl Failure {
    fn tcp(error: io::Error) -> Self {
        Self {
            refused: error.kind() == io::ErrorKind::ConnectionRefused,
            by_policy: false,
            outcome: Outcome::failed(Flag::Connect, format_args!("connection failed: {error}")),
        }
    }

    fn tunnel(error: &ConnectError) -> Self {
        let by_policy = error.refused_status() == Some(StatusCode::UNAUTHORIZED);
        let refused = matches!(error, ConnectError::Dial { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused);
        let silent = matches!(
            error,
            ConnectError::Timeout {
                phase: Phase::Dial | Phase::Queue,
                ..
            }
        ) || matches!(error, ConnectError::Dial { source, .. } if source.kind() == io::ErrorKind::TimedOut);
        let flag = match error {
            _ if by_policy => Flag::Deny,
            // A packet filter that drops looks like this; one that rejects is a refused dial.
            _ if silent => Flag::NetworkPolicy,
            ConnectError::NoCredential { .. } | ConnectError::Credential(_) => Flag::Identity,
            ConnectError::WrongPeer { .. } => Flag::Tls,
            ConnectError::Handshake { .. }
            | ConnectError::Timeout {
                phase: Phase::Handshake, ..
            } => Flag::Handshake,
            _ => Flag::Connect,
        };
        let outcome = match flag {
            Flag::NetworkPolicy => Outcome::failed(
                flag,
                format_args!("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {error}"),
            ),
            _ => Outcome::failed(flag, error),
        };
        Self {
            outcome,
            by_policy,
            refused,
        }
    }
}
