//! Why no stream could be had.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_core::{Identity, Origin};
use ambient_tls::{ConfigError, PeerError};
use bytes::Bytes;
use http::StatusCode;

use crate::{TunnelLost, proto::code::Code};

/// Why [`Pool::connect`](crate::Pool::connect) brought no stream.
///
/// All who waited for one dial get the same.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The speaker has no credential that is valid now.
    #[error("{identity} has no valid credential yet; it must be issued before it can speak")]
    NoCredential {
        /// Whose is missing.
        identity: Identity,
    },
    /// The speaker's credential cannot be used.
    #[error(transparent)]
    Credential(#[from] ConfigError),
    /// No connection to the peer could be made.
    #[error("{peer} cannot be reached: {source}")]
    Dial {
        /// The peer.
        peer: SocketAddr,
        /// What the dial says.
        source: Arc<io::Error>,
    },
    /// TLS or HTTP/2 could not be set up with the peer.
    #[error("no tunnel to {peer} could be set up: {source}")]
    Handshake {
        /// The peer.
        peer: SocketAddr,
        /// How it failed; an alert of the peer is found here.
        source: Arc<io::Error>,
    },
    /// The peer is not who it should be.
    #[error("the peer at {peer} is refused: {source}")]
    WrongPeer {
        /// The peer.
        peer: SocketAddr,
        /// Who it is, and who was expected.
        source: PeerError,
    },
    /// The peer answered with a status other than success.
    #[error("http status: {status}, from the peer at {peer}")]
    Refused {
        /// The peer.
        peer: SocketAddr,
        /// Its answer.
        status: StatusCode,
    },
    /// The peer reset the stream instead of an answer.
    #[error("the peer at {peer} reset the stream with HTTP/2 code {}", Code(*.code))]
    Reset {
        /// The peer.
        peer: SocketAddr,
        /// The HTTP/2 error code (RFC 9113 7).
        code: u32,
    },
    /// The peer said that it did nothing with the request, or the request never left.
    #[error("the tunnel to {peer} took no new stream")]
    Unprocessed {
        /// The peer.
        peer: SocketAddr,
    },
    /// The tunnel was lost before the answer came.
    #[error("the tunnel to {peer} was lost before it answered: {source}")]
    Lost {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        source: TunnelLost,
    },
    /// A deadline passed.
    #[error("{peer} did not finish {phase} within {limit:?}")]
    Timeout {
        /// The peer.
        peer: SocketAddr,
        /// What took too long.
        phase: Phase,
        /// How long it was allowed to take.
        limit: Duration,
    },
    /// There are as many tunnels to the peer as there may be, and all are full.
    #[error("all {tunnels} tunnels to {peer} are full")]
    Full {
        /// The peer.
        peer: SocketAddr,
        /// The limit that was reached.
        tunnels: usize,
    },
    /// What was to go along with the request could not be read.
    #[error("what was to be sent could not be read: {source}")]
    Early {
        /// How that failed.
        source: Arc<io::Error>,
    },
    /// The pool is closing, or the speaker was forgotten while it waited.
    #[error("the pool takes no new streams: it is being closed, or the speaker has left")]
    Closed,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The connection to the peer.
    Dial,
    /// TLS and HTTP/2.
    Handshake,
    /// A tunnel that others dial.
    Queue,
    /// A place in a tunnel whose peer takes no more streams, or reads no requests, for now.
    Place,
    /// The answer to CONNECT.
    Answer,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dial => "accepting the connection",
            Self::Handshake => "the handshake",
            Self::Queue => "giving a tunnel to all who wait for one",
            Self::Place => "taking one more stream",
            Self::Answer => "answering CONNECT",
        })
    }
}

impl ConnectError {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::NoCredential { .. } | Self::Credential(_) => Origin::Control,
            Self::Dial { .. }
            | Self::Timeout {
                phase: Phase::Dial | Phase::Queue,
                ..
            } => Origin::Network,
            Self::Handshake { .. } | Self::Refused { .. } | Self::Reset { .. } => Origin::Peer,
            Self::Unprocessed { .. } | Self::Timeout { .. } => Origin::Peer,
            Self::WrongPeer { source, .. } => source.origin(),
            Self::Lost { source, .. } => source.origin(),
            Self::Full { .. } | Self::Closed => Origin::Local,
            Self::Early { .. } => Origin::App,
        }
    }

    /// Whether another peer may be asked for the same without risk that both serve it: the request never left, or the
    /// peer said that it did nothing with it (503, REFUSED_STREAM, GOAWAY below the stream).
    ///
    /// Not after another status, which is a decision, nor when the answer is unknown.
    pub fn may_retry_elsewhere(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Handshake { .. } | Self::WrongPeer { .. } | Self::Unprocessed { .. } | Self::Full { .. } => true,
            Self::Timeout { phase, .. } => *phase != Phase::Answer,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::NoCredential { .. } | Self::Credential(_) | Self::Early { .. } | Self::Closed => false,
            Self::Reset { .. } | Self::Lost { .. } => false,
        }
    }

    /// The peer's answer, where there was one.
    pub fn refused_status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Why [`Pool::connect_with`](crate::Pool::connect_with) brought no stream, and what it had sent along.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct NotConnected {
    /// Why; [`ConnectError::may_retry_elsewhere`] says whether `early` may be offered to another peer.
    pub reason: ConnectError,
    /// What was read and sent along with the request. None of it counts as delivered.
    pub early: Bytes,
}

impl From<NotConnected> for ConnectError {
    fn from(error: NotConnected) -> Self {
        error.reason
    }
}
