//! Why a connection was refused or broken off, as a word that never changes: what alerts and runbooks are written for.
//!
//! Each stands in the table of `TELEMETRY.md`, with what to do about it.

use std::io;

use ambient_hbone::{AcceptError, ConnectError, TunnelLost};
use ambient_tls::{ChainError, PeerError};

use super::ends::Flag;
use crate::local::Cut;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// Why a connection was refused or broken off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// Every one of them.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The word.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

reasons! {
    /// Policy refuses it.
    PolicyDenied = "policy_denied",
    /// Policy has let it in, and has taken that back.
    PolicyChanged = "policy_changed",
    /// A certificate on it was revoked.
    CertRevoked = "cert_revoked",
    /// A certificate that it was made with has ended.
    CertExpired = "cert_expired",
    /// The pod or the node stops.
    Drain = "drain",
    /// There is no way to where it was to go.
    NoRoute = "no_route",
    /// Where it was to go nobody listens.
    ConnectRefused = "connect_refused",
    /// Where it was to go nobody answers.
    ConnectTimeout = "connect_timeout",
    /// It could not be opened for another cause of the system.
    ConnectFailed = "connect_failed",
    /// The peer's proxy does not answer on its HBONE port.
    HboneTimeout = "hbone_timeout",
    /// The peer has proven to be somebody else.
    WrongPeer = "wrong_peer",
    /// TLS or HTTP/2 did not come up.
    HandshakeFailed = "handshake_failed",
    /// There is no valid certificate for the pod.
    NoCertificate = "no_certificate",
    /// The peer's proxy has refused it with a status other than policy's.
    PeerRefused = "peer_refused",
    /// The mesh does not know the pod, or knows it as another.
    UnknownWorkload = "unknown_workload",
    /// The mesh's state has not arrived.
    NoState = "no_state",
    /// The request of the peer's proxy cannot be served.
    BadRequest = "bad_request",
    /// The pod or the node has as many connections as it may have.
    OverBound = "over_bound",
    /// The tunnel that it was in is lost: its peer is silent or has broken it off, or the network has.
    TunnelLost = "tunnel_lost",
    /// The client has reset it, or is gone.
    ClientReset = "client_reset",
    /// The server has reset it, or is gone.
    ServerReset = "server_reset",
}

impl Reason {
    /// Where nothing more is known than the word of Istio's metrics.
    pub(crate) fn of(flag: Flag) -> Self {
        match flag {
            // Not by this proxy: then by one of the ends.
            Flag::None => Self::ServerReset,
            Flag::Deny => Self::PolicyDenied,
            Flag::Connect => Self::ConnectFailed,
            Flag::Tls => Self::WrongPeer,
            Flag::Handshake => Self::HandshakeFailed,
            Flag::NetworkPolicy => Self::HboneTimeout,
            Flag::Identity => Self::NoCertificate,
            Flag::Revoked => Self::CertRevoked,
        }
    }

    /// Why a connection to an application could not be opened.
    pub(crate) fn of_dial(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectRefused,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            _ => Self::ConnectFailed,
        }
    }

    /// Why a peer's tunnel was not taken.
    pub(crate) fn of_accept(error: &AcceptError) -> Self {
        match error {
            AcceptError::Peer(PeerError::Chain {
                source: ChainError::Revoked(_),
                ..
            }) => Self::CertRevoked,
            AcceptError::NoCredential { .. } | AcceptError::Credential(_) => Self::NoCertificate,
            _ => Self::HandshakeFailed,
        }
    }

    /// Why a peer's proxy has not taken a connection, where the flag says no more than that it has not.
    pub(crate) fn of_connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::Refused { .. } => Self::PeerRefused,
            ConnectError::Dial { source, .. } => Self::of_dial(source),
            ConnectError::Timeout { .. } => Self::ConnectTimeout,
            ConnectError::Lost { source, .. } => Self::of_tunnel(source).unwrap_or(Self::ConnectFailed),
            _ => Self::ConnectFailed,
        }
    }

    /// Why what was in a tunnel has ended with it.
    pub(crate) fn of_tunnel(lost: &TunnelLost) -> Option<Self> {
        match lost {
            TunnelLost::Closed | TunnelLost::Io { .. } | TunnelLost::PeerSilent | TunnelLost::Protocol { .. } => Some(Self::TunnelLost),
            TunnelLost::PeerRevoked { .. } => Some(Self::CertRevoked),
            TunnelLost::CertificateExpired { .. } => Some(Self::CertExpired),
            TunnelLost::IdentityWithdrawn => Some(Self::NoCertificate),
            // By the node alone, of a pod that is cut.
            TunnelLost::Ended => Some(Self::Drain),
            _ => None,
        }
    }

    /// The same of what is carried within this process.
    pub(crate) fn of_cut(cut: Cut) -> Self {
        match cut {
            Cut::Revoked => Self::CertRevoked,
            Cut::Withdrawn => Self::NoCertificate,
            Cut::Expired => Self::CertExpired,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_stands_in_the_table_and_nothing_else() {
        let text = include_str!("../../TELEMETRY.md");
        let table = text.split("## Reasons").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let written: Vec<&str> = rows.collect();
        let known: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(known.len(), Reason::ALL.len(), "two reasons have one word");
        assert_eq!(written.len(), known.len(), "{written:?}");
        assert_eq!(written.into_iter().collect::<BTreeSet<_>>(), known);
    }
}
