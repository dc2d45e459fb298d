//! What both ends of a tunnel have in common.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use ambient_core::{Origin, SpiffeId};
use ambient_tls::{Peer, Revoked, Trust, TrustFault};

use crate::proto::{
    code::Code,
    engine::{Broken, Engine, Key, Role, Terms},
};

/// A tunnel as its streams and its driver share it: its engine, and its fate.
#[derive(Debug)]
pub(crate) struct Line {
    /// Held for moments, never across an await. A tunnel's streams live on its thread as a rule, so that nobody waits here.
    engine: Mutex<Engine>,
    lost: OnceLock<TunnelLost>,
}

impl Line {
    pub(crate) fn new(role: Role, terms: Terms) -> Self {
        Self {
            engine: Mutex::new(Engine::new(role, terms)),
            lost: OnceLock::new(),
        }
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why the tunnel is lost, ends its streams, and wakes who drives it; the first reason stays.
    ///
    /// It may be called from another thread, between two pieces of what the tunnel's own has read: no stream begins or is answered
    /// between the one and the other.
    pub(crate) fn lose(&self, reason: TunnelLost) {
        let mut engine = self.engine();
        if self.lost.set(reason).is_ok() {
            engine.lose();
        }
    }

    /// Ends a tunnel that stands if its peer is revoked now; whether it did.
    pub(crate) fn end_if_revoked(&self, trust: &Trust, peer: &Peer) -> bool {
        if self.lost().is_some() {
            return false;
        }
        let Some(certificate) = trust.revoked(peer) else {
            return false;
        };
        let id = peer.id().clone();
        self.lose(TunnelLost::PeerRevoked { id, certificate });
        true
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

/// A stream of a tunnel: with the last of them it is over.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) line: Arc<Line>,
    pub(crate) key: Key,
}

impl Held {
    /// Takes over a stream that the engine has just given out.
    pub(crate) fn new(line: &Arc<Line>, key: Key) -> Self {
        Self {
            line: Arc::clone(line),
            key,
        }
    }

    /// Resets the stream.
    pub(crate) fn cut(&self, code: Code) {
        self.line.engine().cut(self.key, code);
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        self.line.engine().hold(self.key);
        Self::new(&self.line, self.key)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.line.engine().release(self.key);
    }
}

/// What came of looking again at the peers of all tunnels, with the trust of now.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Rechecked {
    /// Tunnels that were ended, each with [`TunnelLost::PeerRevoked`].
    pub ended: usize,
    /// CRLs that cannot be used. Those before them stay in force; see [`Trust`].
    pub faults: Vec<TrustFault>,
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
    #[error("the tunnel was broken off by {} with HTTP/2 code {}", if *.by_peer { "the peer" } else { "this end" }, Code(*.code))]
    Protocol {
        /// Whether the peer did.
        by_peer: bool,
        /// The HTTP/2 error code (RFC 9113 7).
        code: u32,
    },
    /// The peer was revoked while the tunnel stood.
    #[error("the tunnel's peer {id} is revoked: {certificate}")]
    PeerRevoked {
        /// Who the peer is.
        id: SpiffeId,
        /// Which of the certificates that it presented.
        certificate: Revoked,
    },
    /// A certificate with which the tunnel was made has ended; whoever has a new one makes a new tunnel.
    #[error("the certificate of {} has expired, and its tunnel with it", if *.of_peer { "the tunnel's peer" } else { "this end of the tunnel" })]
    CertificateExpired {
        /// Whether it is the peer's.
        of_peer: bool,
    },
    /// Nobody vouches any more for who this end is: [`Pool::withdraw`](crate::Pool::withdraw),
    /// [`Server::withdraw`](crate::Server::withdraw).
    #[error("the identity of this end of the tunnel was withdrawn")]
    IdentityWithdrawn,
    /// The speaker has left, or its owner ended the tunnel.
    #[error("the tunnel was ended by its owner")]
    Ended,
}

impl TunnelLost {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Ended => Origin::Local,
            // Whoever broke off, it is the peer that broke the rules as this end knows them.
            Self::Closed | Self::Protocol { .. } | Self::PeerRevoked { .. } | Self::CertificateExpired { of_peer: true } => Origin::Peer,
            Self::CertificateExpired { of_peer: false } | Self::IdentityWithdrawn => Origin::Control,
            Self::Io { .. } | Self::PeerSilent => Origin::Network,
        }
    }
}

impl From<io::Error> for TunnelLost {
    fn from(error: io::Error) -> Self {
        Self::Io { source: Arc::new(error) }
    }
}

impl From<Broken> for TunnelLost {
    fn from(Broken(code): Broken) -> Self {
        Self::Protocol {
            by_peer: false,
            code: code.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_breaks_the_rules_is_the_cause() {
        assert_eq!(TunnelLost::from(Broken(Code::PROTOCOL_ERROR)).origin(), Origin::Peer);
        assert_eq!(TunnelLost::Protocol { by_peer: true, code: 1 }.origin(), Origin::Peer);
        assert_eq!(TunnelLost::Ended.origin(), Origin::Local);
    }
}
