//! Connections between two pods of this node that are carried within this process, where [`Config::local_shortcut`] has it so.
//!
//! It is the inbound half that is asked, with the source's identity in the place of a tunnel's: nothing is decided here. What
//! a handshake would have looked at is looked at; where it would fail the connection goes by the wire, and fails there.
//!
//! [`Config::local_shortcut`]: crate::Config::local_shortcut

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Authority, Credential, Credentials as _, Identity, PodUid, ports, route};
use ambient_hbone::{Pipe, PipeCutter, PipeLost, pipe};
use ambient_tls::{Configs, Role, Trust};
use http::{HeaderMap, StatusCode};
use tokio::{sync::oneshot, time};

use crate::{
    Shared,
    certificates::{Certificates, standing},
    clock,
    pod::Pod,
};

#[cfg(test)]
mod tests;

/// Between two looks at the wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Certificates whose verification is remembered.
const MOST_VERIFIED: usize = 1024;

/// The pods that may be reached within this process, and what is carried there.
#[derive(Debug)]
pub(crate) struct Locals {
    certificates: Arc<Certificates>,
    configs: Arc<Configs>,
    pods: RwLock<HashMap<PodUid, Weak<Pod>>>,
    /// Whom to trust, as of the last [`recheck`](Self::recheck): streams of a tunnel that stands are begun by no other. To ask for what
    /// is so now may be to look at files.
    trust: RwLock<Arc<Trust>>,
    /// What was found in order, with the very trust and certificate that it was found with.
    verified: Mutex<HashMap<(Identity, bool), Verified>>,
    live: Mutex<HashMap<u64, Live>>,
    next: AtomicU64,
}

type Verified = (Weak<Trust>, Weak<Credential>);

/// A connection that is carried.
#[derive(Debug)]
struct Live {
    /// Those of both ends that it began with, as a handshake of the two would have shown them.
    shown: [Option<Arc<Credential>>; 2],
    cutter: PipeCutter,
}

impl Locals {
    /// Nothing yet; certificates are those of a node, and what is read of trust is shared with its handshakes.
    pub(crate) fn new(certificates: Arc<Certificates>, configs: Arc<Configs>) -> Self {
        let trust = RwLock::new(configs.trust(&certificates.trust()));
        Self {
            certificates,
            configs,
            pods: RwLock::default(),
            trust,
            verified: Mutex::default(),
            live: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// A pod that is served from now on. One that is no longer is dropped, and found no more.
    pub(crate) fn add(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(pod.spec.uid.clone(), Arc::downgrade(pod));
    }

    /// The pod that a tunnel would end at, if it is one of this node that takes connections, and if a handshake of the two would
    /// succeed now.
    pub(crate) fn beside(&self, node: &Shared, source: &Pod, tunnel: &route::Tunnel) -> Option<Arc<Pod>> {
        if !node.config.local_shortcut || tunnel.inner.is_some() || tunnel.peer.port() != ports::HBONE {
            return None;
        }
        let uid = tunnel.destination.pod.as_ref()?;
        let pod = self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid)?.upgrade()?;
        let in_order = pod.serves()
            && tunnel.accepted.contains(&pod.identity)
            && self.is_in_order(&source.identity, Role::Client)
            && self.is_in_order(&pod.identity, Role::Server);
        in_order.then_some(pod)
    }

    /// Whether an identity has a certificate now that the other end of a handshake would accept, by the trust of the last
    /// [`recheck`](Self::recheck).
    fn is_in_order(&self, identity: &Identity, role: Role) -> bool {
        let Some(credential) = self.certificates.credential(identity) else {
            return false;
        };
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner).clone();
        let key = (identity.clone(), role == Role::Client);
        let known = self.verified().get(&key).is_some_and(|(of_trust, of)| {
            std::ptr::eq(of_trust.as_ptr(), Arc::as_ptr(&trust)) && std::ptr::eq(of.as_ptr(), Arc::as_ptr(&credential))
        });
        if known {
            return true;
        }
        if let Err(error) = standing::accepted(&credential, &trust, role, clock::wall()) {
            tracing::debug!(%identity, %error, "a connection to a pod of this node goes by the wire: its certificate is not in order");
            return false;
        }
        let mut verified = self.verified();
        if verified.len() >= MOST_VERIFIED {
            verified.clear();
        }
        verified.insert(key, (Arc::downgrade(&trust), Arc::downgrade(&credential)));
        true
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<(Identity, bool), Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both ends of a connection, to be cut when one of the two is revoked.
    fn join(self: &Arc<Self>, source: &Identity, destination: &Identity) -> (Pipe, Pipe, Joined) {
        let (near, far) = pipe();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let shown = [source, destination].map(|identity| self.certificates.credential(identity));
        // One that has ended just now ends it at once.
        let ends = shown
            .iter()
            .map(|shown| shown.as_ref().map(|credential| credential.not_after))
            .min();
        let ends = ends.flatten().unwrap_or_else(clock::wall);
        let cutter = far.cutter();
        let live = Live {
            shown,
            cutter: cutter.clone(),
        };
        self.live().insert(id, live);
        // Connecting to the application takes a while: whoever was revoked meanwhile was looked for before this was on the list.
        if !self.is_in_order(source, Role::Client) || !self.is_in_order(destination, Role::Server) {
            self.recheck();
        }
        let joined = Joined {
            of: self.clone(),
            id,
            ends,
            cutter,
        };
        (near, far, joined)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u64, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again at who speaks, after the trust has changed: ends what somebody speaks in whose certificate, as it was when
    /// that began, is revoked. Gives how many it ended.
    pub(crate) fn recheck(&self) -> usize {
        // Asked for each certificate once, however many connections it has.
        let mut revoked: HashMap<*const Credential, bool> = HashMap::new();
        let trust = self.configs.trust(&self.certificates.trust());
        // Before what lives is looked at: what joins from now on looks at this.
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = trust.clone();
        let mut is_revoked = |credential: &Arc<Credential>| {
            *revoked.entry(Arc::as_ptr(credential)).or_insert_with(|| {
                let chain: Vec<_> = credential.chain.iter().map(|der| der.as_slice().into()).collect();
                let peer = trust.peer(&chain);
                peer.is_ok_and(|peer| trust.check_revocation(&peer).is_err())
            })
        };
        self.cut(Cut::Revoked, |credential| is_revoked(credential))
    }

    /// Ends what somebody speaks in whom nobody vouches for any more. Gives how many it ended.
    pub(crate) fn withdraw(&self, identity: &Identity) -> usize {
        self.cut(Cut::Withdrawn, |credential| credential.identity == *identity)
    }

    fn cut(&self, why: Cut, mut concerns: impl FnMut(&Arc<Credential>) -> bool) -> usize {
        let live = self.live();
        let ended = live.values().filter(|live| live.shown.iter().flatten().any(&mut concerns));
        let ended: Vec<_> = ended.map(|live| live.cutter.clone()).collect();
        drop(live);
        ended.iter().for_each(|cutter| cutter.cut(why));
        ended.len()
    }
}

/// Why a connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    /// A certificate of one of the two was revoked.
    #[error("peer certificate revoked by CRL")]
    Revoked,
    /// Nobody vouches for one of the two any more.
    #[error("the identity of one of the two was withdrawn")]
    Withdrawn,
    /// A certificate of one of the two has ended.
    #[error("a certificate that the connection was made with has expired")]
    Expired,
}

impl Cut {
    /// The reason that an error of a [`Pipe`] holds.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match PipeLost::of(error)? {
            PipeLost::Cut { reason } => reason.downcast_ref().copied(),
            _ => None,
        }
    }
}

/// Takes the connection off the list when dropped.
#[derive(Debug)]
pub(crate) struct Joined {
    of: Arc<Locals>,
    id: u64,
    ends: SystemTime,
    cutter: PipeCutter,
}

impl Joined {
    /// Ends the connection once the first of the certificates that it began with ends, as a tunnel would be; as long as it is
    /// polled. Never ends itself: what is carried sees the end. Cancel safe.
    pub(crate) async fn end_in_time(&self) {
        // By the wall clock, as the dates of certificates are, and never for long, as that may be set.
        while let Ok(left) = self.ends.duration_since(clock::wall())
            && !left.is_zero()
        {
            time::sleep(left.min(LONGEST_SLEEP)).await;
        }
        self.cutter.cut(Cut::Expired);
        std::future::pending().await
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.of.live().remove(&self.id);
    }
}

/// What a CONNECT is on the wire, from within this process.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) authority: Authority,
    pub(crate) headers: HeaderMap,
    /// Who speaks.
    pub(crate) source: Identity,
    /// The address that it speaks from, and the one that it speaks to.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    answer: oneshot::Sender<Result<Pipe, StatusCode>>,
}

/// What comes of a [`Call`].
pub(crate) type Answer = oneshot::Receiver<Result<Pipe, StatusCode>>;

impl Call {
    /// Waits until nobody waits for an answer any more.
    pub(crate) async fn gone(&mut self) {
        self.answer.closed().await;
    }

    pub(crate) fn new(authority: Authority, headers: HeaderMap, source: Identity, from: SocketAddr, to: SocketAddr) -> (Self, Answer) {
        let (answer, answered) = oneshot::channel();
        let call = Self {
            authority,
            headers,
            source,
            from,
            to,
            answer,
        };
        (call, answered)
    }

    /// Takes it; `None` if the caller went away.
    pub(crate) fn accept(self, locals: &Arc<Locals>, destination: &Identity) -> Option<(Pipe, Joined)> {
        let (near, far, joined) = locals.join(&self.source, destination);
        self.answer.send(Ok(near)).ok()?;
        Some((far, joined))
    }

    pub(crate) fn refuse(self, status: StatusCode) {
        // A caller that went away need not know.
        let _ = self.answer.send(Err(status));
    }
}
