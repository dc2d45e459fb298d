//! The accepting end: TLS with the certificate of whoever is called, then CONNECT requests.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ambient_core::{Authority, Credentials, Identity, Observer, Origin, SpiffeId, observe::Event};
use ambient_tls::{Accepted, ConfigError, Configs, Handshake, PeerError};
use http::{HeaderMap, StatusCode};
use rustls::{
    crypto::CryptoProvider,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    BoxedIo, Limits, Rechecked, Stream, StreamError, TunnelLost,
    driver::Driver,
    keepalive::Keepalive,
    proto::{
        code::Code,
        connect,
        engine::{Broken, Incoming, Role},
    },
    term::Term,
    tunnel::{Held, Line},
    wire::Wire,
};

use self::sessions::{Entry, Lives, Sessions};

mod sessions;

/// A server: turns accepted connections into [`Session`]s. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Arc<dyn Credentials>,
    configs: Arc<Configs>,
    accepted: Accepted,
    observer: Arc<dyn Observer>,
    time: Arc<dyn TimeProvider>,
    limits: Limits,
    sessions: Arc<Sessions>,
}

impl Server {
    /// A server that presents what `credentials` holds, and trusts the roots that it names.
    pub fn builder(credentials: Arc<dyn Credentials>, provider: Arc<CryptoProvider>) -> ServerBuilder {
        ServerBuilder {
            credentials,
            provider,
            configs: None,
            accepted: Accepted::AnyTrusted,
            observer: Arc::new(()),
            time: Arc::new(DefaultTimeProvider),
            limits: Limits::default(),
        }
    }

    /// Does the handshakes on a connection that came for `identity`, under one deadline.
    ///
    /// Any identity of a trusted domain is let in, unless [`ServerBuilder::accepted`] says otherwise: what it may reach is
    /// decided for each request.
    ///
    /// # Errors
    /// Each also goes to the observer as `HandshakeRefused`; the connection is closed.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time (`enable_time`).
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept<IO>(&self, io: IO, identity: &Identity) -> Result<Session, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limit = self.shared.limits.handshake;
        let session = match timeout(limit, self.handshake(Box::new(io), identity)).await {
            Ok(session) => session,
            Err(_) => Err(AcceptError::Timeout { limit }),
        };
        if let Err(reason) = &session {
            self.shared.observer.observe(&Event::HandshakeRefused { reason });
        }
        session
    }

    async fn handshake(&self, io: BoxedIo, identity: &Identity) -> Result<Session, AcceptError> {
        let shared = &self.shared;
        if shared.sessions.is_closed() {
            return Err(AcceptError::Closed);
        }
        let credential = shared
            .credentials
            .credential(identity)
            .filter(|credential| credential.identity == *identity);
        let credential = credential.ok_or_else(|| AcceptError::NoCredential {
            identity: identity.clone(),
        })?;
        let trust = shared.configs.trust(&shared.credentials.trust());
        let config = shared.configs.server(&credential, &trust, &shared.accepted)?;

        let handshake = Handshake::server(config).map_err(io::Error::other).map_err(AcceptError::new)?;
        let (wire, introduction) = Wire::shake_hands(io, handshake).await.map_err(AcceptError::new)?;
        if introduction.alpn.as_deref() != Some(b"h2") {
            return Err(AcceptError::NoHttp2);
        }
        let peer = trust.peer(&introduction.peer_certificates)?;
        let line = Arc::new(Line::new(Role::Server, shared.limits.terms()));
        let mut driver = Driver::new(wire, Arc::clone(&line));
        if let Err(lost) = poll_fn(|cx| driver.poll_greeting(cx)).await {
            return Err(AcceptError::before_http2(lost));
        }
        let lives = Lives {
            own: identity.clone(),
            peer: peer.clone(),
            line: Arc::clone(&line),
        };
        let entry = Sessions::enter(&shared.sessions, lives).ok_or(AcceptError::Closed)?;
        // What has changed meanwhile was asked about the sessions there were, of which this one was none yet.
        shared.configs.trust(&shared.credentials.trust()).check_revocation(&peer)?;
        if shared.credentials.credential(identity).is_none() {
            return Err(AcceptError::NoCredential {
                identity: identity.clone(),
            });
        }
        let running = Running {
            driver,
            keepalive: Keepalive::new(shared.limits.dead_peer),
            term: Term::new(&credential, &peer, Arc::clone(&shared.time)),
        };
        Ok(Session {
            running: Some(running),
            peer: peer.id().clone(),
            line,
            observer: Arc::clone(&shared.observer),
            besides: None,
            malformed: 0,
            _entry: entry,
        })
    }

    /// Looks again at the peers of all sessions, after the trust that the credentials name has changed: ends those whose
    /// peer is revoked, with their streams, by [`TunnelLost::PeerRevoked`].
    ///
    /// That a root has gone ends none: new handshakes fail without it. Call it from whatever thread: it reads the CRLs and
    /// ends the streams; whoever waits in [`Session::next`] is woken, and closes the connection.
    pub fn recheck(&self) -> Rechecked {
        let trust = self.shared.configs.trust(&self.shared.credentials.trust());
        let sessions = self.shared.sessions.all();
        let revoked = |session: &&Lives| session.line.end_if_revoked(&trust, &session.peer);
        Rechecked {
            ended: sessions.iter().filter(revoked).count(),
            faults: trust.faults().to_vec(),
        }
    }

    /// Ends the sessions of an identity of this end at once, as nobody vouches for it any more: with their streams, by
    /// [`TunnelLost::IdentityWithdrawn`]. Gives how many it ended.
    pub fn withdraw(&self, identity: &Identity) -> usize {
        let sessions = self.shared.sessions.all();
        let theirs = sessions
            .iter()
            .filter(|session| session.own == *identity && session.line.lost().is_none());
        theirs.inspect(|session| session.line.lose(TunnelLost::IdentityWithdrawn)).count()
    }

    /// Closes the server: no new sessions, the peers of all others are told to open new streams elsewhere, and what still stands at
    /// the deadline is cut, by [`TunnelLost::Ended`]. Returns once every [`Session`] is dropped, or at the deadline.
    ///
    /// Streams go on meanwhile, as after [`Session::graceful_shutdown`]: keep calling [`Session::next`].
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time (`enable_time`).
    ///
    /// # Cancel safety
    /// The server stays closed; what stands is left to end by itself.
    pub async fn drain(&self, deadline: Duration) {
        let sessions = &self.shared.sessions;
        sessions.close();
        sessions.all().iter().for_each(|session| session.line.engine().announce_leave());
        if timeout(deadline, sessions.gone()).await.is_err() {
            sessions.all().iter().for_each(|session| session.line.lose(TunnelLost::Ended));
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("sessions", &self.shared.sessions.count())
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

/// Sets up a [`Server`].
pub struct ServerBuilder {
    credentials: Arc<dyn Credentials>,
    provider: Arc<CryptoProvider>,
    configs: Option<Arc<Configs>>,
    accepted: Accepted,
    observer: Arc<dyn Observer>,
    time: Arc<dyn TimeProvider>,
    limits: Limits,
}

impl ServerBuilder {
    /// Other bounds than the defaults.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who is let in; [`Accepted::AnyTrusted`] by default.
    #[must_use]
    pub fn accepted(mut self, accepted: Accepted) -> Self {
        self.accepted = accepted;
        self
    }

    /// Who is told of refused handshakes and malformed requests.
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

    /// The server.
    pub fn build(self) -> Server {
        let Self {
            credentials,
            provider,
            configs,
            accepted,
            observer,
            time,
            limits,
        } = self;
        let shared = Shared {
            credentials,
            configs: configs.unwrap_or_else(|| Arc::new(Configs::new(provider).with_time(Arc::clone(&time)))),
            accepted,
            observer,
            time,
            limits,
            sessions: Arc::default(),
        };
        Server { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A tunnel from one verified peer.
///
/// [`next`](Self::next) drives it: requests, the data of all its streams, and the keep-alive move only while somebody
/// waits in it. So call it again at once, and serve each [`Request`] in a task of its own. Dropping the session ends
/// the tunnel and all its streams.
///
/// It ends when the first of both certificates does, and when the peer is [found revoked](Server::recheck). Once that
/// certificate comes near its end the peer is told to open new streams elsewhere.
pub struct Session {
    /// Gone, and the connection with it, once the tunnel has ended.
    running: Option<Running>,
    peer: SpiffeId,
    line: Arc<Line>,
    observer: Arc<dyn Observer>,
    besides: Option<Arc<dyn Observer>>,
    malformed: u32,
    _entry: Entry,
}

struct Running {
    driver: Driver,
    keepalive: Keepalive,
    term: Term,
}

impl Session {
    /// Who the peer is, as its certificate proves.
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Who is told of the events of this tunnel besides the server's observer: whoever knows whose connection it is.
    pub fn also_tell(&mut self, observer: Arc<dyn Observer>) {
        self.besides = Some(observer);
    }

    /// The next request; `None` when the tunnel has ended, and [`lost`](Self::lost) says why.
    ///
    /// A request that is not a CONNECT to a host and port is answered 400 here, and the observer told; a peer that sends
    /// 100 of those is cut off.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped, but the tunnel stands still until the next call.
    pub async fn next(&mut self) -> Option<Request> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Request>> {
        loop {
            // What has come before is given out before more is read.
            let incoming = self.line.engine().accept();
            if let Some(incoming) = incoming {
                match self.take(incoming) {
                    Some(request) => return Poll::Ready(Some(request)),
                    None => continue,
                }
            }
            if self.line.lost().is_some() {
                self.running = None;
            }
            let Some(running) = &mut self.running else {
                return Poll::Ready(None);
            };
            let lost = if self.malformed >= MALFORMED {
                running.driver.break_off(cx, Broken(Code::ENHANCE_YOUR_CALM))
            } else {
                let (peer, observer, besides) = (&self.peer, &self.observer, &self.besides);
                let tell = |streams| tell(observer, besides, &Event::StreamsGivenUp { peer, streams });
                match running.poll(cx, &self.line, tell) {
                    Poll::Ready(lost) => lost,
                    // Looked at last, when whoever loses it from elsewhere is known to wake this task.
                    Poll::Pending if self.line.lost().is_some() || self.line.engine().has_incoming() => continue,
                    Poll::Pending => return Poll::Pending,
                }
            };
            self.line.lose(lost);
        }
    }

    /// Tells the peer to open no new streams here. Those in progress go on: keep calling [`next`](Self::next) until it
    /// says `None`; requests that were on their way still come.
    pub fn graceful_shutdown(&mut self) {
        self.line.engine().announce_leave();
    }

    /// Ends the tunnel and all its streams now: they end with [`TunnelLost::Ended`] here, and as a lost tunnel there.
    pub fn abort(self) {
        self.line.lose(TunnelLost::Ended);
    }

    /// Why the tunnel has ended, once it has.
    pub fn lost(&self) -> Option<&TunnelLost> {
        self.line.lost()
    }

    fn take(&mut self, incoming: Incoming) -> Option<Request> {
        match incoming {
            Incoming::Request(key, request) => {
                let connect::Request { authority, headers } = *request;
                Some(Request {
                    authority,
                    headers,
                    held: Held::new(&self.line, key),
                })
            }
            Incoming::Unfit(reason) => {
                let refused = Event::RequestRefused {
                    peer: &self.peer,
                    reason: &reason,
                };
                tell(&self.observer, &self.besides, &refused);
                self.malformed += 1;
                None
            }
        }
    }
}

/// Tells of what happens in a tunnel.
fn tell(observer: &Arc<dyn Observer>, besides: &Option<Arc<dyn Observer>>, event: &Event<'_>) {
    for observer in std::iter::once(observer).chain(besides) {
        observer.observe(event);
    }
}

impl Running {
    /// Ready once the tunnel is lost.
    fn poll(&mut self, cx: &mut Context<'_>, line: &Line, tell: impl Fn(usize)) -> Poll<TunnelLost> {
        while let Poll::Ready(told) = self.term.poll(cx) {
            match told {
                Some(lost) => return Poll::Ready(lost),
                None => line.engine().announce_leave(),
            }
        }
        match self.driver.poll(cx) {
            Poll::Pending => self.keepalive.poll(cx, line, self.driver.reads(), tell),
            lost => lost,
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.line.lose(TunnelLost::Ended);
    }
}

/// A CONNECT request. What the peer sends behind it waits, within its window, until it is accepted. Dropped without an
/// answer it is reset.
pub struct Request {
    authority: Authority,
    headers: HeaderMap,
    held: Held,
}

impl Request {
    /// What the peer asks to be connected to.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The headers it sent, such as `baggage`. They are the peer's words, bounded in size and not believed.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Waits until nobody waits for an answer any more: the peer has reset the stream, or the tunnel is lost. Cancel safe.
    pub async fn gone(&mut self) -> StreamError {
        let Held { line, key } = &self.held;
        let cut = poll_fn(|cx| line.engine().poll_cut(*key, cx)).await;
        StreamError::new(cut, line)
    }

    /// Answers 200 with these headers; the stream carries the connection's bytes.
    ///
    /// # Errors
    /// When the peer has reset the stream meanwhile, or the tunnel is lost.
    pub fn accept(self, headers: HeaderMap) -> Result<Stream, StreamError> {
        let Held { line, key } = &self.held;
        let accepted = line.engine().respond(*key, StatusCode::OK, &headers);
        accepted.map_err(|cut| StreamError::new(cut, line))?;
        Ok(Stream::accepted(self.held))
    }

    /// Answers with a status, and ends the stream; nothing of what the peer has sent was delivered.
    pub fn refuse(self, status: StatusCode) {
        let Held { line, key } = &self.held;
        // Fails only when the stream is over already.
        let _ = line.engine().respond(*key, status, &HeaderMap::new());
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("authority", &self.authority)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// Why an accepted connection became no [`Session`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Whoever is called has no credential.
    #[error("{identity} has no credential yet; it must be issued before it can be called")]
    NoCredential {
        /// Whose is missing.
        identity: Identity,
    },
    /// The credential cannot be used.
    #[error(transparent)]
    Credential(#[from] ConfigError),
    /// The peer's certificate is refused.
    #[error("the peer is refused: {0}")]
    Peer(#[from] PeerError),
    /// TLS or HTTP/2 could not be set up.
    #[error("no tunnel could be set up: {source}")]
    Handshake {
        /// How it failed; an alert of the peer is found here.
        source: Arc<io::Error>,
    },
    /// The peer chose no HTTP/2.
    #[error("the peer does not speak HTTP/2: ALPN h2 is asked for")]
    NoHttp2,
    /// The peer was too slow.
    #[error("the peer did not finish the handshakes within {limit:?}")]
    Timeout {
        /// How long they may take.
        limit: Duration,
    },
    /// The server takes no new sessions any more: see [`Server::drain`].
    #[error("no tunnel is taken any more: this end is being shut down")]
    Closed,
}

impl AcceptError {
    /// The peer did not get as far as its SETTINGS.
    fn before_http2(lost: TunnelLost) -> Self {
        let source = match lost {
            TunnelLost::Io { source } => source,
            other => Arc::new(io::Error::other(other)),
        };
        Self::Handshake { source }
    }

    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::NoCredential { .. } | Self::Credential(_) => Origin::Control,
            Self::Peer(source) => source.origin(),
            Self::Handshake { .. } | Self::NoHttp2 | Self::Timeout { .. } => Origin::Peer,
            Self::Closed => Origin::Local,
        }
    }

    fn new(error: io::Error) -> Self {
        match PeerError::of(&error) {
            Some(source) => Self::Peer(source.clone()),
            None => Self::Handshake { source: Arc::new(error) },
        }
    }
}

/// Malformed requests that one tunnel may send.
const MALFORMED: u32 = 100;
