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
use ambient_tls::{Accepted, ConfigError, PeerError, Verifier};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Response, StatusCode};
use rustls::{
    crypto::CryptoProvider,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{
    BoxedIo, Limits, Stream, TunnelLost,
    cork::Cork,
    keepalive::Keepalive,
    proto::connect,
    tunnel::{Line, WIRE_BUFFER, Wire},
};

/// A server: turns accepted connections into [`Session`]s. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Arc<dyn Credentials>,
    provider: Arc<CryptoProvider>,
    observer: Arc<dyn Observer>,
    time: Arc<dyn TimeProvider>,
    limits: Limits,
}

impl Server {
    /// A server that presents what `credentials` holds, and trusts the roots that it names.
    pub fn builder(credentials: Arc<dyn Credentials>, provider: Arc<CryptoProvider>) -> ServerBuilder {
        ServerBuilder {
            shared: Shared {
                credentials,
                provider,
                observer: Arc::new(()),
                time: Arc::new(DefaultTimeProvider),
                limits: Limits::default(),
            },
        }
    }

    /// Does the handshakes on a connection that came for `identity`, under one deadline.
    ///
    /// Any identity of a trusted domain is let in: what it may reach is decided for each request.
    ///
    /// # Errors
    /// Each also goes to the observer as `HandshakeRefused`; the connection is closed.
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
        let credential = shared
            .credentials
            .credential(identity)
            .filter(|credential| credential.identity == *identity);
        let credential = credential.ok_or_else(|| AcceptError::NoCredential {
            identity: identity.clone(),
        })?;
        let config = Verifier::new(&shared.provider, &shared.credentials.trust(), Accepted::AnyTrusted)
            .with_time(Arc::clone(&shared.time))
            .server_config(&credential)?;

        let io = BufReader::with_capacity(WIRE_BUFFER, io);
        let tls = TlsAcceptor::from(config).accept(io).await.map_err(AcceptError::new)?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(AcceptError::NoHttp2);
        }
        let peer = ambient_tls::peer_id(tls.get_ref().1.peer_certificates().unwrap_or_default())?;
        let line = Arc::new(Line::default());
        let wire = Cork::new(TlsStream::from(tls), Arc::clone(&line));
        let connection = builder(&shared.limits).handshake(wire.clone()).await;
        let mut connection = connection.map_err(|e| match line.lost() {
            Some(TunnelLost::Io { source }) => AcceptError::Handshake {
                source: Arc::clone(source),
            },
            _ => AcceptError::Handshake {
                source: Arc::new(io::Error::other(e)),
            },
        })?;
        wire.cork();
        let keepalive = Keepalive::new(connection.ping_pong(), shared.limits.dead_peer);
        let observer = Arc::clone(&shared.observer);
        Ok(Session {
            connection,
            wire,
            keepalive,
            peer,
            line,
            observer,
            malformed: 0,
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

/// Sets up a [`Server`].
pub struct ServerBuilder {
    shared: Shared,
}

impl ServerBuilder {
    /// Other bounds than the defaults.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.shared.limits = limits;
        self
    }

    /// Who is told of refused handshakes and malformed requests.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.shared.observer = observer;
        self
    }

    /// The clock by which certificates are judged; the system's by default.
    #[must_use]
    pub fn time(mut self, time: Arc<dyn TimeProvider>) -> Self {
        self.shared.time = time;
        self
    }

    /// The server.
    pub fn build(self) -> Server {
        Server {
            shared: Arc::new(self.shared),
        }
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

/// A tunnel from one verified peer.
///
/// [`next`](Self::next) drives it: requests, the data of all its streams, and the keep-alive move only while somebody
/// waits in it. So call it again at once, and serve each [`Request`] in a task of its own. Dropping the session ends
/// the tunnel and all its streams.
pub struct Session {
    connection: h2::server::Connection<Wire, Bytes>,
    wire: Wire,
    keepalive: Keepalive,
    peer: SpiffeId,
    line: Arc<Line>,
    observer: Arc<dyn Observer>,
    malformed: u32,
}

impl Session {
    /// Who the peer is, as its certificate proves.
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
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
            let accepted = self.connection.poll_accept(cx);
            if let Poll::Ready(Err(e)) = self.wire.poll_drain(cx) {
                self.line.lose(TunnelLost::Io { source: Arc::new(e) });
                return Poll::Ready(None);
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    if let Some(request) = self.read(request, respond) {
                        return Poll::Ready(Some(request));
                    }
                }
                Poll::Ready(Some(Err(e))) => {
                    self.line.lose(TunnelLost::from_h2(&e));
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => {
                    self.line.lose(TunnelLost::Closed);
                    return Poll::Ready(None);
                }
                Poll::Pending => break,
            }
        }
        let wire = &self.wire;
        if let Poll::Ready(reason) = self.keepalive.poll(cx, || wire.reads()) {
            self.line.lose(reason);
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    /// Tells the peer to open no new streams here. Those in progress go on: keep calling [`next`](Self::next) until it
    /// says `None`; requests that were on their way still come.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Ends the tunnel and all its streams now: they end with [`TunnelLost::Ended`] here, and as a lost tunnel there.
    pub fn abort(self) {
        self.line.lose(TunnelLost::Ended);
    }

    /// Why the tunnel has ended, once it has.
    pub fn lost(&self) -> Option<&TunnelLost> {
        self.line.lost()
    }

    fn read(&mut self, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Request> {
        let (head, body) = request.into_parts();
        match connect::target(&head) {
            Ok(authority) => Some(Request {
                authority,
                headers: head.headers,
                body,
                respond,
                line: Arc::clone(&self.line),
            }),
            Err(reason) => {
                self.observer.observe(&Event::RequestRefused {
                    peer: &self.peer,
                    reason: &reason,
                });
                let mut answer = Response::new(());
                *answer.status_mut() = StatusCode::BAD_REQUEST;
                // Fails only when the stream is over already.
                let _ = respond.send_response(answer, true);
                self.malformed += 1;
                if self.malformed >= MALFORMED {
                    self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
                None
            }
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
    body: RecvStream,
    respond: SendResponse<Bytes>,
    line: Arc<Line>,
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

    /// Answers 200 with these headers; the stream carries the connection's bytes.
    ///
    /// # Errors
    /// When the peer has reset the stream meanwhile, or the tunnel is lost.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Stream, crate::StreamError> {
        let mut answer = Response::new(());
        *answer.headers_mut() = headers;
        let send = self.respond.send_response(answer, false);
        let send = send.map_err(|e| crate::StreamError::new(&e, &self.line))?;
        Ok(Stream::new(self.body, send, self.headers, self.line, None))
    }

    /// Answers with a status, and ends the stream; nothing of what the peer has sent was delivered.
    pub fn refuse(mut self, status: StatusCode) {
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        // Fails only when the stream is over already.
        let _ = self.respond.send_response(answer, true);
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
}

impl AcceptError {
    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::NoCredential { .. } | Self::Credential(_) => Origin::Control,
            Self::Peer(source) => source.origin(),
            Self::Handshake { .. } | Self::NoHttp2 | Self::Timeout { .. } => Origin::Peer,
        }
    }

    fn new(error: io::Error) -> Self {
        match PeerError::of(&error) {
            Some(source) => Self::Peer(source.clone()),
            None => Self::Handshake { source: Arc::new(error) },
        }
    }
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(Limits::CONNECTION_WINDOW)
        .max_frame_size(limits.max_frame)
        .max_header_list_size(limits.header_list)
        .max_send_buffer_size(limits.send_buffer)
        .max_concurrent_streams(limits.streams)
        .data_frame_budget(limits.frame_overhead);
    builder
}

/// Malformed requests that one tunnel may send.
const MALFORMED: u32 = 100;
