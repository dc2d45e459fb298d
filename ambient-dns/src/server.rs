//! The loop around [`answer()`](crate::answer()): sockets in, answers out, the rest forwarded.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_core::{Mesh, Network};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time,
};

use crate::{
    Answer, Client, Transport, Upstream, Zone, answer,
    answer::{meant, might_be_ours, unreachable},
    forward::{self, Outcome},
    observe::{Dropped, Event, Failure, Observer, Query, Source, code_name},
    stream,
    wire::{self, Header},
};

#[cfg(test)]
mod tests;

/// The bounds of a [`Server`], over all its sockets together unless said. More may come: what is not to be other than it is
/// by default is best taken from there (`..Limits::default()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many queries by UDP may wait for nameservers at a time; one more is dropped, as a full queue on the way would.
    pub forwards: usize,
    /// How long an answer of a nameserver is waited for. Clients ask again after 5 s, as a rule.
    pub forward: Duration,
    /// How long one of several nameservers may be silent before the next is asked too.
    pub patience: Duration,
    /// How many connections one TCP listener serves at a time; more wait in its backlog.
    pub connections: usize,
    /// How long a TCP client may take for a whole query, counted from the last answer, and for taking an answer.
    pub idle: Duration,
    /// After how long a TCP connection ends between two queries: as soon as all that was asked on it is answered, or after `idle` more
    /// whatever is asked still. The client calls again for others.
    pub life: Duration,
}

impl Default for Limits {
    /// 256 forwards of at most 5 s, the next nameserver after 1.5 s, 64 connections that may idle for 5 s and stand for a minute.
    fn default() -> Self {
        Self {
            forwards: 256,
            forward: Duration::from_secs(5),
            patience: Duration::from_millis(1500),
            connections: 64,
            idle: Duration::from_secs(5),
            life: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// The same, with a quarter at most of what servers may use together of queries and, over two listeners, of connections: whatever
    /// one client does, others have theirs.
    #[must_use]
    pub fn within(self, budget: &Budget) -> Self {
        Self {
            forwards: self.forwards.min(budget.most.0 / 4).max(1),
            connections: self.connections.min(budget.most.1 / 8).max(1),
            ..self
        }
    }
}

/// What several servers may use together. Clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget {
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Of each.
    most: (usize, usize),
}

impl Budget {
    /// Room for so many queries that wait for nameservers, each of which takes a descriptor (one for each nameserver that
    /// is asked, three at most), and for so many TCP connections, each of which takes two.
    pub fn new(forwards: usize, connections: usize) -> Self {
        let [forwards, connections] = [forwards, connections].map(|most| most.clamp(1, Semaphore::MAX_PERMITS));
        Self {
            forwards: Arc::new(Semaphore::new(forwards)),
            connections: Arc::new(Semaphore::new(connections)),
            most: (forwards, connections),
        }
    }
}

impl Default for Budget {
    /// As much as the limits of one server allow.
    fn default() -> Self {
        let limits = Limits::default();
        Self::new(limits.forwards, 2 * limits.connections)
    }
}

/// What a server knows at the moment of a query.
#[derive(Clone, Debug)]
pub struct View {
    /// The mesh.
    pub mesh: Mesh,
    /// The client's network ([`Client::network`]).
    pub network: Network,
    /// The client's own search domains ([`Client::search`]).
    pub search: Arc<[String]>,
}

impl View {
    /// What a client of the mesh's one network knows that has no search domains of its own.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            network: Network::default(),
            search: Arc::default(),
        }
    }
}

/// Gives the present [`View`], called for each query; `None` before the first whole state.
pub type Views = Arc<dyn Fn() -> Option<View> + Send + Sync>;

/// The DNS server of one client, as a rule a pod: who asks is known by the sockets that it serves on.
///
/// Names of the mesh are answered by the loop that reads the socket, so that they are whatever becomes of the nameservers
/// upstream. Everything else is forwarded:
///
/// - **By UDP** each query has a socket and an ID of its own; an answer must come from the server that was asked, to that
///   port, with that ID and the same question. It is sent back byte for byte but for the ID, however long.
/// - **By TCP** messages go both ways untouched, on a connection that stands beside the client's (`stream`).
/// - **Where nameservers are silent, nothing is said**, as without us: the client's own timer counts, its retry may be
///   answered, and no failure is made up. Where the *network* says that a nameserver is not there (refused, unreachable, no
///   route), a client would be told by its own socket; it is told SERVFAIL at once, with an extended error ([RFC 8914])
///   if it speaks EDNS, because that is what makes resolvers go on to their next nameserver. By TCP the connection ends.
/// - **Where the client has chosen its nameserver**, as it has where redirection tells, no other is asked. Where that is not
///   known, several are asked one after the other, and answers that make resolvers go on (SERVFAIL, NOTIMP, REFUSED) count
///   only if nobody has a better one.
///
/// Before the mesh is known nothing is said to queries for addresses, so that no name of the mesh is looked up elsewhere by
/// accident; the client asks again.
///
/// Cheap to clone; the clones share their limits.
///
/// [RFC 8914]: https://www.rfc-editor.org/rfc/rfc8914
#[derive(Clone)]
pub struct Server(Arc<Inner>);

/// A [`Server`] in the making.
#[must_use]
pub struct Builder(Inner);

#[derive(Clone)]
pub(crate) struct Inner {
    zone: Zone,
    namespace: Arc<str>,
    /// What the log calls the client.
    client: Option<Arc<str>>,
    views: Views,
    pub(crate) upstream: Arc<dyn Upstream>,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) limits: Limits,
    budget: Budget,
    forwards: Arc<Semaphore>,
}

impl Builder {
    /// What the client is called in the log: the name of its pod.
    pub fn called(mut self, client: impl Into<Arc<str>>) -> Self {
        self.0.client = Some(client.into());
        self
    }

    /// Other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.0.forwards = Arc::new(Semaphore::new(limits.forwards.min(Semaphore::MAX_PERMITS)));
        self.0.limits = limits;
        self
    }

    /// What is used together with others; without this, nothing is.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.0.budget = budget;
        self
    }

    /// Who is told what happens.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.0.observer = Some(observer);
        self
    }

    /// The server.
    #[must_use]
    pub fn build(self) -> Server {
        Server(Arc::new(self.0))
    }
}

impl Server {
    /// A server for a client in a namespace.
    pub fn builder(zone: Zone, namespace: impl Into<Arc<str>>, views: Views, upstream: Arc<dyn Upstream>) -> Builder {
        let limits = Limits::default();
        Builder(Inner {
            zone,
            namespace: namespace.into(),
            client: None,
            views,
            upstream,
            observer: None,
            limits,
            budget: Budget::default(),
            forwards: Arc::new(Semaphore::new(limits.forwards)),
        })
    }

    /// Serves datagrams until it is dropped; it never ends by itself.
    ///
    /// Bind the socket to one address: from one that is bound to all, answers go out from whichever the kernel chooses, and a
    /// client takes only those of the address that it asked.
    ///
    /// # Cancel safety
    /// Dropping the future abandons what was being forwarded, and closes the socket unless somebody else holds it too.
    pub async fn serve_udp(&self, socket: impl Into<Arc<UdpSocket>>) {
        let socket = socket.into();
        let mut forwards = JoinSet::new();
        loop {
            if let Err(error) = socket.readable().await {
                pause("wait for queries", &error).await;
                continue;
            }
            // Held only while there is something to read: most sockets are idle, and most of what comes is short.
            let mut buffer = vec![0; LONGEST_MESSAGE];
            let mut taken = 0;
            while taken < BURST {
                taken += 1;
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, client)) => self.take(&socket, client, &buffer[..length], &mut forwards),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        pause("receive a query", &error).await;
                        break;
                    }
                }
            }
            while forwards.try_join_next().is_some() {}
            // Trying a socket is not counted by the runtime: without this a client that floods would have it for itself.
            if taken == BURST {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Answers a datagram, or sees to it that it is answered.
    fn take(&self, socket: &Arc<UdpSocket>, client: SocketAddr, bytes: &[u8], forwards: &mut JoinSet<()>) {
        let query = Query::of(bytes, Transport::Udp);
        match self.0.answer(bytes, Transport::Udp) {
            Some(Answer::Reply(reply)) => self.0.send(socket, client, query, Source::Mesh, &reply),
            Some(Answer::Forward) => match self.0.room() {
                Some(room) => {
                    let (inner, socket, bytes) = (self.0.clone(), socket.clone(), bytes.to_vec());
                    forwards.spawn(async move {
                        inner.forward(&socket, client, query, &bytes).await;
                        drop(room);
                    });
                }
                None => self.0.dropped(query, bytes, Dropped::Busy),
            },
            Some(Answer::Drop) => self.0.tell(&Event::Dropped(Dropped::NoQuery)),
            None => self.0.dropped(query, bytes, Dropped::NotReady),
        }
    }

    /// Serves connections until it is dropped, or until somebody shuts the listener from outside. The queries of one
    /// connection are taken in their order.
    ///
    /// # Cancel safety
    /// Dropping the future closes every connection, and the listener unless somebody else holds it too.
    pub async fn serve_tcp(&self, listener: impl Into<Arc<TcpListener>>) {
        let listener = listener.into();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= self.0.limits.connections.max(1) {
                // Each ends by its own deadline.
                connections.join_next().await;
                continue;
            }
            match listener.accept().await {
                Ok((client, _)) => {
                    // What does not fit waits in the backlog, all but this one, which does so for as long as it might idle.
                    let room = self.0.budget.connections.clone().acquire_owned();
                    let Ok(Ok(room)) = time::timeout(self.0.limits.idle, room).await else {
                        continue;
                    };
                    let inner = self.0.clone();
                    connections.spawn(async move {
                        if let Err(error) = stream::converse(&inner, client).await {
                            tracing::debug!(%error, "a DNS client's connection ended early");
                        }
                        drop(room);
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
    /// What is to be done with a query; `None` while that is not known.
    pub(crate) fn answer(&self, query: &[u8], transport: Transport) -> Option<Answer> {
        self.tell(&Event::Asked(Query::of(query, transport)));
        self.decide(query, transport)
    }

    /// Where names become known by asking: what is to be done with a query that would be sent on, once that is done.
    pub(crate) async fn learn(&self, query: &[u8], transport: Transport) -> Option<Answer> {
        if !self.upstream.learns() {
            return None;
        }
        let search = (self.views)().map_or_else(Arc::default, |view| view.search);
        let client = Client {
            namespace: &self.namespace,
            network: &Network::default(),
            search: &search,
        };
        let names = meant(&self.zone, &client, query);
        if names.is_empty() {
            return None;
        }
        self.upstream.learn(names).await;
        self.decide(query, transport)
    }

    fn decide(&self, query: &[u8], transport: Transport) -> Option<Answer> {
        let view = (self.views)();
        if view.is_none() && might_be_ours(query) {
            return None;
        }
        let view = view.unwrap_or_else(|| View::new(Mesh::default()));
        let client = Client {
            namespace: &self.namespace,
            network: &view.network,
            search: &view.search,
        };
        Some(answer(&view.mesh, &self.zone, &client, query, transport, self.upstream.draw()))
    }

    /// Room for one query more that waits: its own, and that of all.
    fn room(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = self.forwards.clone().try_acquire_owned().ok()?;
        Some((own, self.budget.forwards.clone().try_acquire_owned().ok()?))
    }

    async fn forward(&self, socket: &UdpSocket, client: SocketAddr, query: Query, bytes: &[u8]) {
        if let Some(Answer::Reply(reply)) = self.learn(bytes, Transport::Udp).await {
            return self.send(socket, client, query, Source::Mesh, &reply);
        }
        self.tell(&Event::Forwarded(query));
        let since = time::Instant::now();
        let servers = match socket.local_addr() {
            Ok(at) => time::timeout(self.limits.forward, self.upstream.for_datagram(client, at))
                .await
                .unwrap_or_default(),
            Err(_) => Arc::default(),
        };
        let outcome = forward::ask(&self.upstream, &servers, bytes, self.limits.patience, self.limits.forward).await;
        let failure = match outcome {
            Outcome::Reply(reply) => {
                let took = since.elapsed();
                self.tell(&Event::Took { query, took });
                return self.send(socket, client, query, Source::Upstream, &reply);
            }
            Outcome::Unreachable(error) => {
                // A pod can cause as many of these as it likes, so they are not worth a line each.
                tracing::debug!(%error, namespace = %self.namespace, "no nameserver can be reached");
                match unreachable(bytes) {
                    Some(reply) => self.send(socket, client, query, Source::Server, &reply),
                    None => self.log_unanswered(query, &|| asked(bytes), FAILED, Failure::Unreachable.as_str()),
                }
                Failure::Unreachable
            }
            Outcome::Silent => {
                self.log_unanswered(query, &|| asked(bytes), FAILED, Failure::Silent.as_str());
                self.tell(&Event::Dropped(Dropped::Silent));
                Failure::Silent
            }
        };
        self.tell(&Event::Failed { query, failure });
    }

    /// Sends an answer. One that cannot be sent at once is lost, as datagrams are; the client asks again.
    fn send(&self, socket: &UdpSocket, client: SocketAddr, query: Query, source: Source, reply: &[u8]) {
        match socket.try_send_to(reply, client) {
            Ok(_) => self.answered(query, source, reply),
            Err(error) => {
                tracing::debug!(%error, %client, "cannot send a DNS answer");
                self.tell(&Event::Dropped(Dropped::Full));
            }
        }
    }

    pub(crate) fn answered(&self, query: Query, source: Source, reply: &[u8]) {
        let header = Header::read(reply);
        let code = header.map_or("unknown", |header| code_name(header.code()));
        let answers = header.map_or(0, |header| header.answers());
        tracing::event!(
            target: "dns",
            tracing::Level::DEBUG,
            src.workload = self.client.as_deref(),
            src.namespace = &*self.namespace,
            query = query.kind,
            domain = header.and_then(|header| wire::asked(reply, &header)),
            result = result(source, code, answers),
            endpoints = answers,
            source = source.as_str(),
            code,
            "query answered"
        );
        self.tell(&Event::Answered { query, source, code });
    }

    /// Nothing is said to the client.
    pub(crate) fn dropped(&self, query: Query, bytes: &[u8], why: Dropped) {
        self.log_unanswered(query, &|| asked(bytes), "dropped", why.as_str());
        self.tell(&Event::Dropped(why));
    }

    /// The query that a client has no answer to has a line as well, at the same level: a pod can cause many.
    pub(crate) fn log_unanswered(&self, query: Query, domain: &dyn Fn() -> Option<String>, result: &str, reason: &str) {
        tracing::event!(
            target: "dns",
            tracing::Level::DEBUG,
            src.workload = self.client.as_deref(),
            src.namespace = &*self.namespace,
            query = query.kind,
            domain = domain(),
            result,
            endpoints = 0,
            reason,
            "query not answered"
        );
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(observer) = &self.observer {
            observer.observe(event);
        }
    }
}

/// The name that a query asks for.
pub(crate) fn asked(query: &[u8]) -> Option<String> {
    wire::asked(query, &Header::read(query)?)
}

/// What became of a query, in ztunnel's words for it.
fn result(source: Source, code: &'static str, answers: u16) -> &'static str {
    match (source, code) {
        (Source::Upstream, _) => "forwarded",
        (Source::Server, _) => FAILED,
        (Source::Mesh, "NOERROR") if answers > 0 => "success",
        (Source::Mesh, "NOERROR") => "no records",
        (Source::Mesh, _) => code,
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("zone", &self.0.zone)
            .field("namespace", &self.0.namespace)
            .field("limits", &self.0.limits)
            .field("free_forwards", &self.0.forwards.available_permits())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

/// The socket is there to stay; what ails it (descriptors used up, as a rule) may pass, and must not make the loop spin.
async fn pause(what: &'static str, error: &io::Error) {
    tracing::warn!(%error, "cannot {what}; trying again in {} ms", PAUSE.as_millis());
    time::sleep(PAUSE).await;
}

/// ztunnel's words for what no nameserver has answered.
pub(crate) const FAILED: &str = "forwarding failed";
const LONGEST_MESSAGE: usize = 65_535;
/// Datagrams that are taken before others have their turn.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(100);
