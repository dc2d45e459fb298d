//! Tunnels for those who speak, shared by their streams.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Credentials, Identity, Observer};
use ambient_tls::{Configs, Trust};
use rustls::{
    crypto::CryptoProvider,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::{
    io::AsyncRead,
    sync::watch,
    task::AbortHandle,
    time::{timeout, timeout_at},
};

use crate::{
    Destination, Dial, Limits, Rechecked, Speaker, SpeakerKey, Stream, limits,
    proto::choice::{self, Bounds, Choice},
    tunnel::Line,
};

pub use self::error::{ConnectError, NotConnected, Phase};
pub(crate) use self::tunnel::Lease;
use self::{open::Early, tunnel::Tunnel};

mod dialing;
mod error;
mod open;
mod tunnel;

/// A client: streams to peers, in tunnels that it makes, shares and ends.
///
/// A tunnel serves one speaker, one peer and one list of accepted identities. Those who want the same wait for one dial
/// and share its outcome; no dial holds up anybody else. Once the speaker's credential has changed, or the first of both
/// certificates comes near its end, new streams go into new tunnels; the older ones end with their last stream, or when
/// that certificate ends, or when the peer is [found revoked](Self::recheck).
///
/// Cheap to clone; when the last clone is gone, tunnels end with their last stream. Its tasks run on the runtime on which [`connect`](Self::connect) is called: one pool for each runtime
/// keeps a tunnel and its streams on one core.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// What the pool and the tasks of its tunnels share.
struct Shared {
    dial: Arc<dyn Dial>,
    credentials: Arc<dyn Credentials>,
    configs: Arc<Configs>,
    observer: Arc<dyn Observer>,
    time: Arc<dyn TimeProvider>,
    limits: Limits,
    closing: AtomicBool,
    /// Held for moments, never across an await.
    slots: Mutex<HashMap<Arc<Key>, Slot>>,
    /// Tunnels that stand, for whoever waits until none does.
    standing: watch::Sender<usize>,
}

/// What two streams must have in common to share a tunnel: the whole speaker, the peer, and who the peer may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    speaker: Speaker,
    peer: SocketAddr,
    /// Sorted, without doubles.
    accepted: Vec<Identity>,
}

struct Slot {
    tunnels: Vec<Arc<Tunnel>>,
    dials: Vec<Dialing>,
    /// Whether more tunnels are made than are needed for the streams that there are.
    spreads: bool,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            tunnels: Vec::new(),
            dials: Vec::new(),
            spreads: true,
        }
    }
}

/// What a dial comes to: the fate of the tunnel that it made, or why it made none.
type Outcome = watch::Receiver<Option<Result<Arc<Line>, ConnectError>>>;

/// A dial that goes on, and who waits for it.
struct Dialing {
    outcome: Outcome,
    task: AbortHandle,
    waiting: usize,
}

impl Pool {
    /// A pool that reaches peers with `dial` and presents what `credentials` holds.
    pub fn builder(dial: Arc<dyn Dial>, credentials: Arc<dyn Credentials>, provider: Arc<CryptoProvider>) -> PoolBuilder {
        PoolBuilder {
            dial,
            credentials,
            provider,
            configs: None,
            observer: Arc::new(()),
            time: Arc::new(DefaultTimeProvider),
            limits: Limits::default(),
        }
    }

    /// A stream to a destination, once the peer has accepted it.
    ///
    /// The dial runs as a task of its own.
    ///
    /// # Errors
    /// [`ConnectError`] says who caused it and whether another peer may be tried. After at most the sum of the limits
    /// `dial`, `handshake` and `answer` (twice, where a tunnel in use turned out to be closing) there is an outcome.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time (`enable_time`).
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back (CANCEL); a dial that others may wait for goes on.
    pub async fn connect(&self, speaker: &Speaker, destination: &Destination) -> Result<Stream, ConnectError> {
        let mut early = Early::<tokio::io::Empty>::new(None, 0);
        self.open(speaker, destination, &mut early).await
    }

    /// The same, a round trip sooner for whoever has something to say: what `from` has to say before the peer's answer goes
    /// along with the request, at most [`early_data`](Limits::early_data) bytes of it, and so does its end. The peer gives
    /// it to nobody before it has accepted; here it is kept until then.
    ///
    /// Nothing of `from` is read where [`Destination::early_data`] is off.
    ///
    /// # Errors
    /// As [`connect`](Self::connect) has them, with what was read of `from`.
    ///
    /// # Panics
    /// As [`connect`](Self::connect) does.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back; what was read of `from` is lost.
    pub async fn connect_with<R>(&self, speaker: &Speaker, destination: &Destination, from: &mut R) -> Result<Stream, NotConnected>
    where
        R: AsyncRead + Unpin,
    {
        let from = Some(from).filter(|_| destination.early_data);
        let mut early = Early::new(from, self.shared.limits.early_data);
        match self.open(speaker, destination, &mut early).await {
            Ok(stream) => Ok(stream),
            Err(reason) => Err(NotConnected {
                reason,
                early: early.into_bytes(),
            }),
        }
    }

    async fn open<R>(&self, speaker: &Speaker, destination: &Destination, early: &mut Early<'_, R>) -> Result<Stream, ConnectError>
    where
        R: AsyncRead + Unpin,
    {
        let key = Arc::new(Key::new(speaker, destination));
        let mut again = true;
        loop {
            let credential = self.shared.credential(&speaker.identity)?;
            let lease = self.lease(&key, &credential).await?;
            // A tunnel is chosen by its key; that the key's speaker is this one is what everything else rests on.
            if lease.tunnel().key().speaker != *speaker {
                return Err(ConnectError::Closed);
            }
            match open::open(lease, destination, early, &self.shared.limits).await {
                // The tunnel had said GOAWAY, or ended, before the request left: nobody has seen it.
                Err(ConnectError::Unprocessed { .. }) if std::mem::take(&mut again) => {}
                outcome => return outcome,
            }
        }
    }

    /// Ends the tunnels of a speaker at once: its streams end with [`TunnelLost::Ended`](crate::TunnelLost::Ended), and
    /// those who wait for a dial on its behalf with [`ConnectError::Closed`].
    pub fn forget(&self, speaker: &SpeakerKey) {
        self.shared.slots().retain(|key, slot| {
            let theirs = key.speaker.key == *speaker;
            if theirs {
                slot.end();
            }
            !theirs
        });
    }

    /// Lets the tunnels of a speaker end: each with its last stream, and none takes a new one. For a speaker that has said all
    /// that it had to say; a later stream of its own gets a new tunnel.
    pub fn retire(&self, speaker: &SpeakerKey) {
        let slots = self.shared.slots();
        let theirs = slots.iter().filter(|(key, _)| key.speaker.key == *speaker);
        theirs.flat_map(|(_, slot)| &slot.tunnels).for_each(|tunnel| tunnel.retire());
    }

    /// Looks again at the peers of all tunnels, after the trust that the credentials name has changed: ends those whose
    /// peer is revoked, with their streams, by [`TunnelLost::PeerRevoked`](crate::TunnelLost::PeerRevoked).
    ///
    /// That a root has gone ends none: new handshakes fail without it. Call it from whatever thread: it reads the CRLs and
    /// ends the streams; the tunnels' own tasks close the connections.
    pub fn recheck(&self) -> Rechecked {
        let trust = self.shared.trust();
        let tunnels: Vec<_> = self.shared.slots().values().flat_map(|slot| &slot.tunnels).cloned().collect();
        Rechecked {
            ended: tunnels.iter().filter(|tunnel| tunnel.end_if_revoked(&trust)).count(),
            faults: trust.faults().to_vec(),
        }
    }

    /// Ends the tunnels of an identity at once, as nobody vouches for it any more: their streams end with
    /// [`TunnelLost::IdentityWithdrawn`](crate::TunnelLost::IdentityWithdrawn), and those who wait for a dial with
    /// [`ConnectError::Closed`]. New ones are made once the credentials have it again. Gives how many it ended.
    pub fn withdraw(&self, identity: &Identity) -> usize {
        let mut ended = 0;
        self.shared.slots().retain(|key, slot| {
            let theirs = key.speaker.identity == *identity;
            if theirs {
                ended += slot.tunnels.len();
                slot.tunnels.iter().for_each(|tunnel| tunnel.withdraw());
                slot.end();
            }
            !theirs
        });
        ended
    }

    /// Closes the pool: no new streams, tunnels end with their last stream, and what still stands at the deadline is cut.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time (`enable_time`).
    ///
    /// # Cancel safety
    /// The pool stays closed; what stands is left to end by itself.
    pub async fn drain(&self, deadline: Duration) {
        self.shared.closing.store(true, Ordering::Relaxed);
        let mut standing = self.shared.standing.subscribe();
        for slot in self.shared.slots().values_mut() {
            slot.dials.drain(..).for_each(|dialing| dialing.task.abort());
            slot.tunnels.iter().for_each(|tunnel| tunnel.retire());
        }
        if timeout(deadline, standing.wait_for(|count| *count == 0)).await.is_err() {
            self.shared.slots().drain().for_each(|(_, mut slot)| slot.end());
        }
    }

    /// A place for a stream in a tunnel: of one that stands, or of one that is dialled.
    async fn lease(&self, key: &Arc<Key>, credential: &Arc<Credential>) -> Result<Lease, ConnectError> {
        let limits = &self.shared.limits;
        let limit = limits.dial.saturating_add(limits.handshake);
        let deadline = limits::after(limit);
        loop {
            let mut outcome = match self.choose(key, credential)? {
                Ok(lease) => return Ok(lease),
                Err(dial) => dial,
            };
            let outcome = timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
            match outcome {
                Ok(Ok(outcome)) => match &*outcome {
                    Some(Err(e)) => return Err(e.clone()),
                    // Lost as soon as it stood, or of a peer that takes no streams: dialling on and on would not help, and a peer
                    // that refuses our certificate says so only now.
                    Some(Ok(line)) if line.lost().is_some() || line.engine().is_refusing() => {
                        line.engine().retire();
                        return Err(open::unsent(key.peer, line));
                    }
                    _ => {}
                },
                Ok(Err(_aborted)) => return Err(ConnectError::Closed),
                Err(_) => {
                    return Err(ConnectError::Timeout {
                        peer: key.peer,
                        phase: Phase::Queue,
                        limit,
                    });
                }
            }
        }
    }

    /// A place in a tunnel that stands, or else a dial to wait for.
    fn choose(&self, key: &Arc<Key>, credential: &Arc<Credential>) -> Result<Result<Lease, Outcome>, ConnectError> {
        let limits = &self.shared.limits;
        let mut slots = self.shared.slots();
        // Looked at under the lock, so that what is added after `drain` or `forget` looked is not missed.
        if self.shared.closing.load(Ordering::Relaxed) {
            return Err(ConnectError::Closed);
        }
        let slot = slots.entry(Arc::clone(key)).or_default();
        let loads = slot.tunnels.iter().map(|tunnel| tunnel.load(credential, limits.streams as usize));
        let waiting = slot.dials.iter().map(|dialing| dialing.waiting);
        let bounds = Bounds {
            streams: limits.streams as usize,
            most: limits.tunnels,
            spread: (limits.spread_from as usize, if slot.spreads { limits.spread_over } else { 0 }),
        };
        match choice::choose(loads, waiting, bounds) {
            Choice::Use(index) => Ok(Ok(Lease::new(&slot.tunnels[index]))),
            Choice::UseAndDial(index) => {
                slot.dials.push(dialing::start(&self.shared, key, credential, 0));
                Ok(Ok(Lease::new(&slot.tunnels[index])))
            }
            Choice::Join(index) => {
                slot.dials[index].waiting += 1;
                Ok(Err(slot.dials[index].outcome.clone()))
            }
            Choice::Dial => {
                let dialing = dialing::start(&self.shared, key, credential, 1);
                let outcome = dialing.outcome.clone();
                slot.dials.push(dialing);
                Ok(Err(outcome))
            }
            Choice::Full => Err(ConnectError::Full {
                peer: key.peer,
                tunnels: limits.tunnels,
            }),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("tunnels", &*self.shared.standing.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, HashMap<Arc<Key>, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present trust, read if it has changed.
    fn trust(&self) -> Arc<Trust> {
        self.configs.trust(&self.credentials.trust())
    }

    fn credential(&self, identity: &Identity) -> Result<Arc<Credential>, ConnectError> {
        let now = self
            .time
            .current_time()
            .map(|now| SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()));
        let usable = |credential: &Arc<Credential>| credential.identity == *identity && now.is_some_and(|now| credential.is_valid_at(now));
        self.credentials
            .credential(identity)
            .filter(usable)
            .ok_or_else(|| ConnectError::NoCredential {
                identity: identity.clone(),
            })
    }
}

/// Nobody can ask for streams any more: tunnels end with their last one.
impl Drop for Shared {
    fn drop(&mut self) {
        let slots = self.slots.get_mut().unwrap_or_else(PoisonError::into_inner);
        slots.values().flat_map(|slot| &slot.tunnels).for_each(|tunnel| tunnel.retire());
    }
}

impl Slot {
    /// A dial has come to its end; false where it was forgotten before.
    fn end_dial(&mut self, task: tokio::task::Id) -> bool {
        let index = self.dials.iter().position(|dialing| dialing.task.id() == task);
        index.map(|index| self.dials.swap_remove(index)).is_some()
    }

    fn end(&mut self) {
        self.dials.drain(..).for_each(|dialing| dialing.task.abort());
        self.tunnels.drain(..).for_each(|tunnel| tunnel.end());
    }

    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.dials.is_empty()
    }
}

impl Key {
    fn new(speaker: &Speaker, destination: &Destination) -> Self {
        let mut accepted = destination.accepted.clone();
        accepted.sort_unstable();
        accepted.dedup();
        Self {
            speaker: speaker.clone(),
            peer: destination.peer,
            accepted,
        }
    }
}

/// Sets up a [`Pool`].
pub struct PoolBuilder {
    dial: Arc<dyn Dial>,
    credentials: Arc<dyn Credentials>,
    provider: Arc<CryptoProvider>,
    configs: Option<Arc<Configs>>,
    observer: Arc<dyn Observer>,
    time: Arc<dyn TimeProvider>,
    limits: Limits,
}

impl PoolBuilder {
    /// Other bounds than the defaults.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who is told of tunnels that open and close.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Shares what is read of trust and of keys with pools and servers that look at the same credentials. Its provider
    /// and its clock are those of the handshakes then.
    #[must_use]
    pub fn configs(mut self, configs: Arc<Configs>) -> Self {
        self.configs = Some(configs);
        self
    }

    /// The clock by which certificates are judged; the system's by default.
    #[must_use]
    pub fn time(mut self, time: Arc<dyn TimeProvider>) -> Self {
        self.time = time;
        self
    }

    /// The pool.
    pub fn build(self) -> Pool {
        let Self {
            dial,
            credentials,
            provider,
            configs,
            observer,
            time,
            limits,
        } = self;
        let shared = Shared {
            dial,
            credentials,
            configs: configs.unwrap_or_else(|| Arc::new(Configs::new(provider).with_time(Arc::clone(&time)))),
            observer,
            time,
            limits,
            closing: AtomicBool::new(false),
            slots: Mutex::default(),
            standing: watch::Sender::new(0),
        };
        Pool { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}
