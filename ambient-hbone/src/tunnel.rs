//! What both ends of a tunnel have in common.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use ambient_core::Origin;
use tokio::io::BufReader;
use tokio_rustls::TlsStream;

use crate::{BoxedIo, cork::Cork};

/// TLS under the cork. The reader under TLS spares system calls: rustls reads 4 KiB at a time.
pub(crate) type Wire = Cork<TlsStream<BufReader<BoxedIo>>>;

/// The buffer under TLS, in bytes.
pub(crate) const WIRE_BUFFER: usize = 64 << 10;

/// A tunnel's fate, shared by the tunnel and its streams.
#[derive(Debug, Default)]
pub(crate) struct Line {
    lost: OnceLock<TunnelLost>,
}

impl Line {
    /// Notes why the tunnel is lost; the first reason stays.
    pub(crate) fn lose(&self, reason: TunnelLost) {
        let _ = self.lost.set(reason);
    }

    /// Notes a failure of the stream below, and returns one that may be passed on.
    pub(crate) fn fail(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let error = Arc::new(error);
        self.lose(TunnelLost::Io {
            source: Arc::clone(&error),
        });
        io::Error::new(kind, error)
    }

    /// Why the tunnel is lost, if it is.
    pub(crate) fn lost(&self) -> Option<&TunnelLost> {
        self.lost.get()
    }

    /// Why the tunnel is lost, where it is known to be.
    pub(crate) fn reason(&self) -> TunnelLost {
        self.lost.get().cloned().unwrap_or(TunnelLost::Closed)
    }
}

/// Why a tunnel has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelLost {
    /// It was closed in good order: by the peer, for idleness, or after its last stream.
    #[error("the tunnel was closed")]
    Closed,
    /// The connection below failed; a TLS alert is found here too.
    #[error("the tunnel's connection failed: {source}")]
    Io {
        /// How.
        source: Arc<io::Error>,
    },
    /// The peer answers no PING.
    #[error("the tunnel's peer has been silent for too long")]
    PeerSilent,
    /// One of the ends broke off at the level of HTTP/2.
    #[error("the tunnel was broken off by {} with HTTP/2 code {code}: {}", if *.by_peer { "the peer" } else { "this end" }, h2::Reason::from(*.code).description())]
    Protocol {
        /// Whether the peer did.
        by_peer: bool,
        /// The HTTP/2 error code (RFC 9113 7).
        code: u32,
    },
    /// The speaker has left, or its owner ended the tunnel.
    #[error("the tunnel was ended by its owner")]
    Ended,
}

impl TunnelLost {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Ended | Self::Protocol { by_peer: false, .. } => Origin::Local,
            Self::Closed | Self::Protocol { .. } => Origin::Peer,
            Self::Io { .. } | Self::PeerSilent => Origin::Network,
        }
    }

    /// What an error of an HTTP/2 connection means for the tunnel, where nothing better is known.
    pub(crate) fn from_h2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(h2::Reason::NO_ERROR) => Self::Closed,
            Some(reason) => Self::Protocol {
                by_peer: error.is_remote(),
                code: reason.into(),
            },
            None => Self::Io {
                source: Arc::new(io::Error::other(error.to_string())),
            },
        }
    }
}
