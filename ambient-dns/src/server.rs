//! The loop around [`answer()`](crate::answer()): sockets in, answers out, the rest forwarded.

use std::{fmt, io, sync::Arc, time::Duration};

use ambient_core::{Mesh, Network};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::{
    Answer, Client, Transport, Upstream, UpstreamError, Zone, answer,
    answer::{fail, reply_limit},
    wire::{self, Header, Question},
};

#[cfg(test)]
mod tests;

/// The bounds of a [`Server`], over all its sockets together unless said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many queries may wait for [`Upstream`] at a time; one more is SERVFAIL at once.
    pub forwards: usize,
    /// How long one query may wait for [`Upstream`]; then it is SERVFAIL. Less than the 5 s after which clients ask again.
    pub forward: Duration,
    /// How many connections one TCP listener serves at a time; more wait in its backlog.
    pub connections: usize,
    /// How long a TCP client may take for a whole query, counted from the last answer, and for taking an answer.
    pub idle: Duration,
}

impl Default for Limits {
    /// 256 forwards of at most 4 s, 64 connections that may idle for 5 s: some 8 MB at the very most.
    fn default() -> Self {
        Self {
            forwards: 256,
            forward: Duration::from_secs(4),
            connections: 64,
            idle: Duration::from_secs(5),
        }
    }
}

/// The DNS server of one client, as a rule a pod: who asks is known by the sockets that it serves on.
///
/// Names of the mesh are answered by the loop that reads the socket, so that they are whatever becomes of the nameservers
/// upstream. Cheap to clone; the clones share their limits.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    zone: Zone,
    namespace: Arc<str>,
    network: Network,
    mesh: Arc<dyn Fn() -> Option<Mesh> + Send + Sync>,
    upstream: Arc<dyn Upstream>,
    limits: Limits,
    forwards: Semaphore,
}

impl Server {
    /// A server for a client in a namespace and a network, with the default limits.
    ///
    /// `mesh` gives the present snapshot and is called for each query; while it gives `None`, before the first whole
    /// state, every query is SERVFAIL: a name of the mesh must not be looked up elsewhere by accident.
    pub fn new(
        zone: Zone,
        namespace: impl Into<Arc<str>>,
        network: Network,
        mesh: Arc<dyn Fn() -> Option<Mesh> + Send + Sync>,
        upstream: Arc<dyn Upstream>,
    ) -> Self {
        let limits = Limits::default();
        Self(Arc::new(Inner {
            zone,
            namespace: namespace.into(),
            network,
            mesh,
            upstream,
            limits,
            forwards: Semaphore::new(limits.forwards),
        }))
    }

    /// The same server with other limits, and nothing in use of them.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        let inner = &self.0;
        Self(Arc::new(Inner {
            zone: inner.zone.clone(),
            namespace: inner.namespace.clone(),
            network: inner.network.clone(),
            mesh: inner.mesh.clone(),
            upstream: inner.upstream.clone(),
            limits,
            forwards: Semaphore::new(limits.forwards.min(Semaphore::MAX_PERMITS)),
        }))
    }

    /// Serves datagrams until it is dropped; it never ends by itself.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket and abandons what was being forwarded.
    pub async fn serve_udp(&self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut forwards = JoinSet::new();
        let mut buffer = vec![0; LONGEST_MESSAGE];
        loop {
            while forwards.try_join_next().is_some() {}
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    pause("receive a query", &error).await;
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.0.answer(query, Transport::Udp) {
                Answer::Drop => {}
                Answer::Reply(reply) => send(&socket, &reply, client).await,
                Answer::Forward if self.0.forwards.available_permits() == 0 => {
                    if let Answer::Reply(reply) = self.0.failed(query, &UpstreamError::Busy(self.0.limits.forwards)) {
                        send(&socket, &reply, client).await;
                    }
                }
                Answer::Forward => {
                    let (inner, socket, query) = (self.0.clone(), socket.clone(), query.to_vec());
                    forwards.spawn(async move {
                        if let Some(reply) = inner.forward(&query, Transport::Udp).await {
                            send(&socket, &reply, client).await;
                        }
                    });
                }
            }
        }
    }

    /// Serves connections until it is dropped, or until somebody shuts the listener from outside. The queries of one
    /// connection are answered one after the other.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listener and every connection.
    pub async fn serve_tcp(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= self.0.limits.connections.max(1) {
                // Each ends by its own deadline.
                connections.join_next().await;
                continue;
            }
            match listener.accept().await {
                Ok((stream, _)) => {
                    let inner = self.0.clone();
                    connections.spawn(async move {
                        if let Err(error) = inner.converse(stream).await {
                            tracing::debug!(%error, "a DNS client's connection ended early");
                        }
                    });
                }
                // The kernel has shut the listener, as `ss -K` does: it will never bring another.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                Err(error) => pause("accept a DNS connection", &error).await,
            }
        }
    }
}

impl Inner {
    fn answer(&self, query: &[u8], transport: Transport) -> Answer {
        let client = Client {
            namespace: &self.namespace,
            network: &self.network,
        };
        match (self.mesh)() {
            Some(mesh) => answer(&mesh, &self.zone, &client, query, transport),
            None => fail(query),
        }
    }

    /// What is sent back for a forwarded query, if anything.
    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let answer = match self.ask(query, transport).await {
            Ok(reply) => Answer::Reply(reply),
            Err(error) => self.failed(query, &error),
        };
        match answer {
            Answer::Reply(reply) => Some(reply),
            Answer::Forward | Answer::Drop => None,
        }
    }

    async fn ask(&self, query: &[u8], transport: Transport) -> Result<Vec<u8>, UpstreamError> {
        let Ok(_permit) = self.forwards.try_acquire() else {
            return Err(UpstreamError::Busy(self.limits.forwards));
        };
        let exchange = self.upstream.exchange(query, transport);
        let reply = time::timeout(self.limits.forward, exchange)
            .await
            .map_err(|_| UpstreamError::Timeout)??;
        check(query, &reply)?;
        if reply.len() > reply_limit(query, transport) {
            return Ok(wire::cut(reply));
        }
        Ok(reply)
    }

    fn failed(&self, query: &[u8], error: &UpstreamError) -> Answer {
        // A pod can cause as many of these as it likes, so they are not worth a line each.
        tracing::debug!(%error, namespace = %self.namespace, "a DNS query failed upstream");
        fail(query)
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        while let Some(query) = within(self.limits.idle, read_message(&mut stream)).await? {
            let reply = match self.answer(&query, Transport::Tcp) {
                Answer::Reply(reply) => Some(reply),
                Answer::Forward => self.forward(&query, Transport::Tcp).await,
                Answer::Drop => None,
            };
            // What is no query at all ends the connection: nothing that follows it can be trusted to be one.
            let Some(reply) = reply else { break };
            within(self.limits.idle, write_message(&mut stream, &reply)).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("zone", &self.0.zone)
            .field("namespace", &self.0.namespace)
            .field("network", &self.0.network)
            .field("limits", &self.0.limits)
            .field("free_forwards", &self.0.forwards.available_permits())
            .finish_non_exhaustive()
    }
}

/// Whether a reply is one to this query: whoever sits upstream must not be able to answer what was not asked.
fn check(query: &[u8], reply: &[u8]) -> Result<(), UpstreamError> {
    let (Some(asked), Some(answered)) = (Header::read(query), Header::read(reply)) else {
        return Err(UpstreamError::Mismatch("it is too short"));
    };
    if answered.id != asked.id {
        return Err(UpstreamError::Mismatch("it has another ID"));
    }
    if !answered.is_response() {
        return Err(UpstreamError::Mismatch("it is a query itself"));
    }
    // A server that does not understand a query may leave the question out.
    if answered.questions != 0 && !Question::read(query).is_ok_and(|question| question.is_asked_by(reply)) {
        return Err(UpstreamError::Mismatch("it is to another question"));
    }
    Ok(())
}

/// An answer that cannot be sent is lost, as datagrams are; the client asks again.
async fn send(socket: &UdpSocket, reply: &[u8], client: std::net::SocketAddr) {
    if let Err(error) = within(SEND, socket.send_to(reply, client)).await {
        tracing::debug!(%error, %client, "cannot send a DNS answer");
    }
}

/// The next message of a stream; `None` at its orderly end.
async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("an answer over 65535 bytes"))?;
    // At once: some clients take the length and the message for one read.
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend(length.to_be_bytes());
    out.extend(message);
    stream.write_all(&out).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The socket is there to stay; what ails it (descriptors used up, as a rule) may pass, and must not make the loop spin.
async fn pause(what: &'static str, error: &io::Error) {
    tracing::warn!(%error, "cannot {what}; trying again in {} ms", PAUSE.as_millis());
    time::sleep(PAUSE).await;
}

const LONGEST_MESSAGE: usize = 65_535;
const SEND: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
