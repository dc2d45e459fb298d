//! A dial: connection, TLS, HTTP/2, and then the tunnel's own task.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use ambient_core::{Credential, observe::Event};
use ambient_tls::{Accepted, Handshake, Peer, PeerError};
use rustls::pki_types::ServerName;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    ConnectError, Dialing, Key, Phase, Shared,
    tunnel::{self, OutOfPool, Tunnel},
};
use crate::{driver::Driver, proto::engine::Role, term::Term, tunnel::Line, turns, wire::Wire};

/// Starts a dial as a task of its own, so that it outlives whoever asked first; `waiting` wait for it. It is in the share of who
/// asks first, and so is the tunnel: both are of the same speaker as all who join.
pub(super) fn start(shared: &Arc<Shared>, key: &Arc<Key>, credential: &Arc<Credential>, waiting: usize) -> Dialing {
    let (tell, outcome) = watch::channel(None);
    let task = turns::spawn(run(Arc::clone(shared), Arc::clone(key), Arc::clone(credential), tell));
    Dialing {
        outcome,
        task: task.abort_handle(),
        waiting,
    }
}

async fn run(
    shared: Arc<Shared>,
    key: Arc<Key>,
    credential: Arc<Credential>,
    tell: watch::Sender<Option<Result<Arc<Line>, ConnectError>>>,
) {
    let task = tokio::task::id();
    let under_way = UnderWay {
        shared: Arc::downgrade(&shared),
        key: Arc::clone(&key),
        task,
    };
    let result = set_up(&shared, &key, &credential).await;
    let stands = {
        let mut slots = shared.slots();
        let Some(slot) = slots.get_mut(&key) else { return };
        if !slot.end_dial(task) {
            // Forgotten while it went on: the connection goes with this task.
            return;
        }
        match result {
            Ok((driver, line, peer)) => {
                let term = Term::new(&credential, &peer, Arc::clone(&shared.time));
                let tunnel = Arc::new(Tunnel::new(Arc::clone(&key), credential, peer, line));
                slot.tunnels.push(Arc::clone(&tunnel));
                Ok((OutOfPool::new(tunnel, &shared), driver, term))
            }
            Err(e) => {
                // A peer that has enough of tunnels is not asked for more than are needed.
                slot.spreads = false;
                if slot.is_empty() {
                    slots.remove(&key);
                }
                Err(e)
            }
        }
    };
    let (stands, driver, term) = match stands {
        Ok(stands) => stands,
        Err(e) => {
            tell.send_replace(Some(Err(e)));
            return;
        }
    };
    // Trust that has changed meanwhile was asked about the tunnels in the pool, of which this one was none yet.
    let tunnel = stands.tunnel();
    tunnel.end_if_revoked(&shared.trust());
    if shared.credential(&key.speaker.identity).is_err() {
        tunnel.withdraw();
    }
    tell.send_replace(Some(Ok(Arc::clone(tunnel.line()))));
    let (observer, limits) = (Arc::clone(&shared.observer), shared.limits.clone());
    // The tunnel must not keep its pool alive.
    drop((shared, tell, under_way));
    tunnel::drive(stands, driver, term, observer, limits).await;
}

/// A dial that goes on, and is forgotten however that ends: those who wait for one that is no more would wait in vain.
struct UnderWay {
    shared: Weak<Shared>,
    key: Arc<Key>,
    task: tokio::task::Id,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut slots = shared.slots();
        if let Some(slot) = slots.get_mut(&self.key)
            && slot.end_dial(self.task)
            && slot.is_empty()
        {
            slots.remove(&self.key);
        }
        // Not under the lock: it may be the last that holds the pool.
        drop(slots);
    }
}

async fn set_up(shared: &Shared, key: &Key, credential: &Arc<Credential>) -> Result<(Driver, Arc<Line>, Peer), ConnectError> {
    let (peer, limits) = (key.peer, &shared.limits);
    let trust = shared.trust();
    let accepted = Accepted::any_of(key.accepted.iter().cloned());
    let config = shared.configs.client(credential, &trust, accepted)?;

    let timed_out = |phase, limit| move |_| ConnectError::Timeout { peer, phase, limit };
    let io = timeout(limits.dial, shared.dial.dial(&key.speaker, peer))
        .await
        .map_err(timed_out(Phase::Dial, limits.dial))?
        .map_err(|e| ConnectError::Dial { peer, source: Arc::new(e) })?;

    let handshake = async {
        // Never sent, never compared: HBONE knows its peers by SPIFFE ID.
        let nobody = ServerName::from(peer.ip());
        let begun = Handshake::client(config, nobody)
            .map_err(io::Error::other)
            .map_err(|e| refused(peer, e))?;
        let (wire, introduction) = Wire::shake_hands(io, begun).await.map_err(|e| refused(peer, e))?;
        if introduction.alpn.as_deref() != Some(b"h2") {
            let why = io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak HTTP/2 (ALPN h2)");
            return Err(refused(peer, why));
        }
        let known = trust.peer(&introduction.peer_certificates);
        // Trust may have changed while the handshake went on.
        let known = known.and_then(|known| shared.trust().check_revocation(&known).map(|()| known));
        let known = known.map_err(|source| ConnectError::WrongPeer { peer, source })?;
        let line = Arc::new(Line::new(Role::Client, limits.terms()));
        // The peer's SETTINGS are not waited for: a request may be on its way a round trip earlier.
        Ok((Driver::speaking(wire, Arc::clone(&line)), line, known))
    };
    let begun = Instant::now();
    let ended = timeout(limits.handshake, handshake).await;
    let ended = ended.unwrap_or_else(|elapsed| Err(timed_out(Phase::Handshake, limits.handshake)(elapsed)));
    shared.observer.observe(&Event::HandshakeEnded {
        peer,
        speaker: &key.speaker.identity,
        error: ended.as_ref().err().map(|error| error as _),
        took: begun.elapsed(),
    });
    ended
}

fn refused(peer: SocketAddr, error: io::Error) -> ConnectError {
    match PeerError::of(&error) {
        Some(source) => ConnectError::WrongPeer {
            peer,
            source: source.clone(),
        },
        None => ConnectError::Handshake {
            peer,
            source: Arc::new(error),
        },
    }
}
