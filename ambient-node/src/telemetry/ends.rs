//! Both ends of a connection, and how it ended: what its line in the log and its labels are made of.

use std::{fmt, net::SocketAddr, sync::Arc};

use ambient_core::{Authority, Identity, Service, Workload};

use super::reason::Reason;

/// Which half of a connection's way this node carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a pod of this node.
    Outbound,
    /// To a pod of this node.
    Inbound,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// The word of Istio's metrics.
    pub(crate) fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound => "destination",
        }
    }
}

/// Who and what stands at both ends. Workloads and the service come from the mesh, never from what a peer wrote.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) direction: Direction,
    pub(crate) source: SocketAddr,
    pub(crate) source_workload: Option<Arc<Workload>>,
    /// Proven by TLS, or our own pod's when TLS carries it.
    pub(crate) source_identity: Option<Identity>,
    /// The address at this node's own end: what the pod dialled, or where at the pod it is delivered.
    pub(crate) application: SocketAddr,
    /// Where it is carried to.
    pub(crate) destination: SocketAddr,
    pub(crate) hbone: Option<Authority>,
    pub(crate) service: Option<Arc<Service>>,
    /// Whether nobody has asked for that service, and only the port says that it is it.
    pub(crate) guessed: bool,
    pub(crate) destination_workload: Option<Arc<Workload>>,
    /// Proven by TLS where there is [`mutual_tls`](Self::mutual_tls), else whom it is meant to be, as far as that is at hand.
    pub(crate) destination_identity: Option<Identity>,
    /// Whether a waypoint is on the way.
    pub(crate) waypoint: bool,
    /// Whether there is a tunnel within the tunnel, which ends at the gateway of another network.
    pub(crate) double: bool,
    pub(crate) mutual_tls: bool,
    /// Whether it is carried within this process.
    pub(crate) local: bool,
    /// Endpoints that were tried before this one and could not be reached.
    pub(crate) retries: u32,
    /// Endpoints of the service that were passed over, as others could not reach them a moment ago.
    pub(crate) avoided: u32,
}

impl Ends {
    /// Who the destination has proven to be.
    pub(super) fn proven_destination(&self) -> Option<&Identity> {
        self.destination_identity.as_ref().filter(|_| self.mutual_tls)
    }
}

/// The word in the label `response_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// It ended as its ends wanted.
    None,
    /// Policy.
    Deny,
    /// No way to the other end.
    Connect,
    /// The peer is not who it should be.
    Tls,
    /// TLS or HTTP/2 did not come up.
    Handshake,
    /// Silence where HBONE should answer: as a NetworkPolicy makes it.
    NetworkPolicy,
    /// A certificate is missing.
    Identity,
    /// A certificate was revoked.
    Revoked,
}

impl Flag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Handshake => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
            Self::Revoked => "CERT_REVOKED",
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) flag: Flag,
    /// `None` for an orderly end.
    pub(crate) error: Option<(Reason, String)>,
    /// Who ended it, where that is known.
    pub(crate) closer: Option<Closer>,
}

/// Who ended a connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closer {
    /// Who opened it.
    Client,
    /// Whom it was opened to.
    Server,
    /// This proxy.
    Proxy,
}

impl Closer {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Proxy => "proxy",
        }
    }
}

impl Outcome {
    pub(crate) fn orderly() -> Self {
        Self {
            flag: Flag::None,
            error: None,
            closer: None,
        }
    }

    pub(crate) fn failed(flag: Flag, error: impl fmt::Display) -> Self {
        Self {
            flag,
            error: Some((Reason::of(flag), error.to_string())),
            closer: None,
        }
    }

    /// With a reason of which the flag says less.
    pub(crate) fn because(mut self, reason: Reason) -> Self {
        self.error = self.error.map(|(_, error)| (reason, error));
        self
    }

    /// With who has ended it.
    pub(crate) fn by(mut self, closer: Closer) -> Self {
        self.closer = Some(closer);
        self
    }
}
