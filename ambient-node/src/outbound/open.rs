//! Opening the way that a plan says.

use std::{io, sync::Arc};

use ambient_core::{
    Identity, Service, Workload, headers,
    route::{Direct, Inner, Plan, Tunnel},
};
use ambient_hbone::{ConnectError, Destination, NotConnected, Phase, Pipe, Stream, TunnelLost};
use ambient_tls::{ChainError, PeerError};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time;

use super::Outbound;
use crate::{
    acks::Prompt,
    afar,
    certificates::CertificateError,
    entropy, inbound,
    inner::Within,
    local::Call,
    pod::Pod,
    session::{App, dial, drained, settle},
    telemetry::{Closer, Flag, Outcome, Reason},
};

/// The other end, opened.
pub(super) enum Far {
    Tcp(Prompt),
    Tunnel(Stream),
    /// The stream goes first, and what it is in is held until then.
    Inner {
        stream: Stream,
        _within: Within,
        /// Who the gateway has chosen, where the mesh knows it.
        who: Option<Arc<Workload>>,
    },
    /// Within this process, to a pod that has proven as much as it would have on the wire.
    Local(Pipe, Identity),
}

impl Far {
    /// Closing it is a close from now on, not a reset.
    pub(super) fn ended_well(&self) {
        if let Self::Tcp(server) = self {
            settle(server.socket());
        }
    }

    /// Who the far end has proven to be.
    pub(super) fn proven(&self) -> Option<Identity> {
        match self {
            Self::Tcp(_) => None,
            Self::Local(_, identity) => Some(identity.clone()),
            Self::Tunnel(stream) | Self::Inner { stream, .. } => stream.peer().cloned().and_then(|peer| Identity::try_from(peer).ok()),
        }
    }
}

/// Why it could not be opened.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    /// The other end's proxy has proven who it is, and has answered with a refusal.
    pub(super) answered: bool,
    /// By its policy: an empty reply, not a reset.
    pub(super) by_policy: bool,
    /// Refused at once, so that no byte was delivered: a change under way may be the cause.
    pub(super) refused: bool,
    /// Nobody has seen a byte, and another may be asked for the same.
    pub(super) elsewhere: bool,
}

impl Outbound {
    /// What `app` says before the answer goes along; where there is none, or a refusal, it is as if it had not been read.
    pub(super) async fn open(&self, source: &Workload, plan: &Plan, beside: Option<Arc<Pod>>, app: &mut App) -> Result<Far, Failure> {
        if let (Some(pod), Plan::Tunnel(tunnel)) = (beside, plan) {
            return self.call(source, tunnel, pod).await;
        }
        match plan {
            Plan::Passthrough(to) | Plan::Direct(Direct { to, .. }) => {
                let server = dial(&self.node, &self.pod, None, *to).await.map_err(Failure::tcp)?;
                Ok(Far::Tcp(self.home.acks.prompt(server)))
            }
            Plan::Tunnel(tunnel) => {
                // One that has ended while the issuer was away may come at any moment.
                self.node
                    .certificates
                    .ready(&self.pod.identity)
                    .await
                    .map_err(|error| Failure::identity(&error))?;
                self.tunnel(source, tunnel, app).await
            }
        }
    }

    async fn tunnel(&self, source: &Workload, tunnel: &Tunnel, app: &mut App) -> Result<Far, Failure> {
        match &tunnel.inner {
            None => {
                let destination = self.destination(source, tunnel, tunnel.accepted.clone());
                let stream = self.home.tunnels.connect_with(&self.pod.speaker, &destination, &mut app.stream);
                let mut stream = stream.await.map_err(|failed| take_back(app, failed))?;
                drop(stream.take_headers());
                Ok(Far::Tunnel(stream))
            }
            Some(inner) => self.open_within(source, tunnel, inner, app).await,
        }
    }

    /// Asks a pod's inbound half within this process.
    async fn call(&self, source: &Workload, tunnel: &Tunnel, pod: Arc<Pod>) -> Result<Far, Failure> {
        let (peer, identity) = (tunnel.peer, pod.identity.clone());
        let headers = self.headers(source, tunnel.service.as_ref());
        let (call, answer) = Call::new(tunnel.authority.clone(), headers, self.pod.identity.clone(), self.peer, peer);
        let share = self.home.share(&self.pod.whose());
        inbound::serve_call(self.node.clone(), pod, self.home.clone(), share, call);
        let limit = self.node.config.connect_timeout * 2;
        match time::timeout(limit, answer).await {
            Ok(Ok(Ok(pipe))) => Ok(Far::Local(pipe, identity)),
            Ok(Ok(Err(status))) => Err(Failure::tunnel(&ConnectError::Refused { peer, status })),
            // It was dropped without an answer, as a stream is that its tunnel takes along.
            Ok(Err(_)) => Err(Failure::tunnel(&ConnectError::Closed)),
            Err(_) => Err(Failure::tunnel(&ConnectError::Timeout {
                peer,
                phase: Phase::Answer,
                limit,
            })),
        }
    }

    /// Nothing of the application goes along with the outer request: the gateway is nobody that it speaks to.
    async fn open_within(&self, source: &Workload, tunnel: &Tunnel, inner: &Inner, app: &mut App) -> Result<Far, Failure> {
        let destination = self.destination(source, tunnel, tunnel.accepted.clone());
        let outer = self.home.tunnels.connect(&self.pod.speaker, &destination).await;
        let outer = outer.map_err(|reason| Failure::tunnel(&reason))?;
        let mut destination = self.destination(source, tunnel, inner.accepted.clone());
        if let Some(Ok(network)) = headers::forwarded_network(source.network.as_str()).map(HeaderValue::from_str) {
            destination.headers.insert("x-forwarded-network", network);
        }
        let stream = self
            .home
            .inner
            .connect_with(&self.pod.speaker, outer, &destination, &mut app.stream);
        let (mut stream, within) = stream.await.map_err(|failed| take_back(app, failed))?;
        let proven = stream.peer().cloned().and_then(|peer| Identity::try_from(peer).ok());
        let said = stream.take_headers();
        let now = self.node.state.current();
        let who = now.and_then(|now| afar::workload(&now.mesh, &said, proven.as_ref()));
        Ok(Far::Inner {
            stream,
            _within: within,
            who,
        })
    }

    fn destination(&self, source: &Workload, tunnel: &Tunnel, accepted: Vec<Identity>) -> Destination {
        Destination {
            peer: tunnel.peer,
            authority: tunnel.authority.clone(),
            accepted,
            headers: self.headers(source, tunnel.service.as_ref()),
            early_data: true,
            ample: tunnel.waypoint || tunnel.inner.is_some(),
        }
    }

    fn headers(&self, source: &Workload, service: Option<&Arc<Service>>) -> HeaderMap {
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
}

fn take_back(app: &mut App, failed: NotConnected) -> Failure {
    app.stream.unread(failed.early);
    Failure::tunnel(&failed.reason)
}

impl Failure {
    /// How the connection has ended by it. Where its pod is cut that is the reason, unless somebody has answered: what it was to be
    /// opened by may have been told of that before it.
    pub(super) fn told(self, is_cut: bool) -> Outcome {
        if is_cut && !self.answered { drained() } else { self.outcome }
    }

    fn tcp(error: io::Error) -> Self {
        Self {
            refused: error.kind() == io::ErrorKind::ConnectionRefused,
            answered: false,
            by_policy: false,
            elsewhere: true,
            outcome: Outcome::failed(Flag::Connect, format_args!("connection failed: {error}")).because(Reason::of_dial(&error)),
        }
    }

    fn identity(error: &CertificateError) -> Self {
        Self {
            outcome: Outcome::failed(Flag::Identity, format_args!("identity error: {error}")),
            answered: false,
            by_policy: false,
            refused: false,
            elsewhere: false,
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
            ConnectError::NoCredential { .. }
            | ConnectError::Credential(_)
            | ConnectError::Lost {
                source: TunnelLost::IdentityWithdrawn,
                ..
            } => Flag::Identity,
            ConnectError::WrongPeer {
                source: PeerError::Chain {
                    source: ChainError::Revoked(_),
                    ..
                },
                ..
            }
            | ConnectError::Lost {
                source: TunnelLost::PeerRevoked { .. },
                ..
            } => Flag::Revoked,
            ConnectError::WrongPeer { .. } => Flag::Tls,
            ConnectError::Handshake { .. }
            | ConnectError::Timeout {
                phase: Phase::Handshake, ..
            } => Flag::Handshake,
            _ => Flag::Connect,
        };
        let outcome = match (flag, error) {
            // As where it breaks off a moment later.
            (_, ConnectError::Early { source }) => Outcome::failed(Flag::None, format_args!("receive: {source}"))
                .because(Reason::ClientReset)
                .by(Closer::Client),
            (Flag::NetworkPolicy, _) => Outcome::failed(
                flag,
                format_args!("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {error}"),
            ),
            (Flag::Connect, _) => Outcome::failed(flag, error).because(Reason::of_connect(error)),
            (Flag::Identity, _) => Outcome::failed(flag, format_args!("identity error: {error}")),
            _ => Outcome::failed(flag, error),
        };
        Self {
            outcome,
            answered: error.refused_status().is_some(),
            by_policy,
            refused,
            elsewhere: error.may_retry_elsewhere(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_peer_is_told_by_its_status() {
        let peer = "10.0.0.2:15008".parse().unwrap();
        for (status, by_policy, reason, text) in [
            (
                StatusCode::UNAUTHORIZED,
                true,
                Reason::PolicyDenied,
                "http status: 401 Unauthorized",
            ),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                false,
                Reason::PeerRefused,
                "http status: 503 Service Unavailable",
            ),
        ] {
            let failure = Failure::tunnel(&ConnectError::Refused { peer, status });
            assert_eq!((failure.answered, failure.by_policy), (true, by_policy), "{status}");
            let (why, error) = failure.outcome.error.unwrap();
            assert_eq!(why, reason);
            assert!(error.starts_with(text) && error.contains("10.0.0.2:15008"), "{error}");
        }
        let closed = Failure::tunnel(&ConnectError::Closed);
        assert!(!closed.answered && !closed.by_policy, "nobody has answered");
    }

    #[test]
    fn what_a_pod_was_opening_as_it_was_cut_is_told_as_cut() {
        let peer = "10.0.0.2:15008".parse().unwrap();
        let status = StatusCode::UNAUTHORIZED;
        for (error, is_cut, wanted) in [
            (ConnectError::Closed, true, Reason::Drain),
            (ConnectError::Closed, false, Reason::ConnectFailed),
            (ConnectError::Refused { peer, status }, true, Reason::PolicyDenied),
        ] {
            let (reason, _) = Failure::tunnel(&error).told(is_cut).error.unwrap();
            assert_eq!(reason, wanted, "{error} {is_cut}");
        }
    }

    #[test]
    fn who_is_not_vouched_for_any_more_has_no_certificate() {
        let lost = ConnectError::Lost {
            peer: "10.0.0.2:15008".parse().unwrap(),
            source: TunnelLost::IdentityWithdrawn,
        };
        let Outcome { flag, error, .. } = Failure::tunnel(&lost).outcome;
        assert_eq!((flag, error.unwrap().0), (Flag::Identity, Reason::NoCertificate));
    }
}
