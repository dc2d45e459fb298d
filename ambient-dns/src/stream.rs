//! A client's TCP connection: names of the mesh are answered on it, and everything else goes to a nameserver by a connection
//! that stands beside it, message by message, both ways and untouched. So zone transfers, many queries at once, sessions and
//! whatever else TCP carries work as they do without us.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    net::TcpStream,
    time::{self, Instant},
};

use crate::{
    Answer, Limits, Transport,
    observe::{Dropped, Event, Failure, Query, Source},
    server::{FAILED, Inner, asked},
    wire::{self, Header},
};

/// Serves a client's connection until one of both sides ends it or nothing has happened on it for too long.
pub(crate) async fn converse(inner: &Inner, client: TcpStream) -> io::Result<()> {
    let mut talk = Talk {
        inner,
        client,
        queries: Messages::default(),
        nameserver: None,
        waiting: Vec::new(),
        lasts: false,
        since: Instant::now(),
    };
    let begun = Instant::now();
    let mut asks = true;
    while asks || !talk.is_over() {
        let next = talk.next(asks).await?;
        // What is longer than one answer is not cut short by what it brings itself.
        let may_end = !talk.lasts || matches!(next, Next::Query(_));
        match next {
            Next::Query(query) => {
                if !talk.take(&query).await? {
                    break;
                }
            }
            Next::LastQuery => {
                asks = false;
                talk.ask_no_more().await?;
            }
            Next::Reply(reply) => talk.give(&reply).await?,
            // It ends for the client as it would without us: between two queries, or in the middle of a zone.
            Next::LastReply => {
                talk.fail(Failure::Unreachable);
                break;
            }
        }
        talk.since = Instant::now();
        if asks && may_end && !may_ask(&inner.limits, begun.elapsed(), || talk.is_quiet()) {
            asks = false;
            talk.ask_no_more().await?;
        }
    }
    talk.part().await;
    Ok(())
}

/// Whether a client may ask more on a connection of an age. The end is looked for between two queries; where there is no such moment
/// it comes nevertheless.
pub(crate) fn may_ask(limits: &Limits, age: Duration, is_quiet: impl FnOnce() -> bool) -> bool {
    age.checked_sub(limits.life).is_none_or(|over| over < limits.idle && !is_quiet())
}

/// What happens on a connection.
enum Next {
    Query(Vec<u8>),
    /// The client asks nothing more.
    LastQuery,
    Reply(Vec<u8>),
    /// The nameserver has closed its connection.
    LastReply,
}

struct Talk<'a> {
    inner: &'a Inner,
    client: TcpStream,
    queries: Messages,
    nameserver: Option<(TcpStream, Messages)>,
    /// What was forwarded and is not answered.
    waiting: Vec<Waiting>,
    /// Whether more than one answer to each query may come: a zone, or what a session is for.
    lasts: bool,
    since: Instant,
}

/// A query that the nameserver has.
struct Waiting {
    id: u16,
    query: Query,
    domain: Option<String>,
    since: Instant,
}

impl Talk<'_> {
    async fn next(&mut self, asks: bool) -> io::Result<Next> {
        let limits = &self.inner.limits;
        let patience = if self.waiting.is_empty() { limits.idle } else { limits.forward };
        let asks = asks && self.waiting.len() < MOST_WAITING;
        let (queries, client) = (&mut self.queries, &mut self.client);
        let reply = async {
            match &mut self.nameserver {
                Some((stream, replies)) => replies.next(stream).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            query = queries.next(client), if asks => Ok(query?.map_or(Next::LastQuery, Next::Query)),
            // However it has ended, the client learns that it has.
            reply = reply => Ok(reply.ok().flatten().map_or(Next::LastReply, Next::Reply)),
            () = time::sleep(patience.saturating_sub(self.since.elapsed())) => {
                self.fail(Failure::Silent);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// What has been asked is answered still; the nameserver is told as well, and closes when that is done.
    async fn ask_no_more(&mut self) -> io::Result<()> {
        match &mut self.nameserver {
            Some((nameserver, _)) => nameserver.shutdown().await,
            None => Ok(()),
        }
    }

    /// Whether nothing is under way, and nothing has come that is not looked at yet.
    fn is_quiet(&mut self) -> bool {
        if !self.waiting.is_empty() || self.lasts {
            return false;
        }
        self.queries.0.reserve(SMALL);
        let nothing_came = matches!(self.client.try_read_buf(&mut self.queries.0), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        nothing_came && self.queries.0.is_empty()
    }

    /// Whether everything is answered, of a client that asks no more.
    fn is_over(&self) -> bool {
        self.nameserver.is_none() || self.waiting.is_empty() && !self.lasts
    }

    /// Ends the client's connection, so that what it was told arrives: a close with something unread would be a reset.
    async fn part(mut self) {
        self.nameserver = None;
        let read_away = async {
            if self.client.shutdown().await.is_ok() {
                let _ = copy(&mut (&mut self.client).take(READ_AWAY), &mut sink()).await;
            }
        };
        let _ = time::timeout(PARTING, read_away).await;
    }

    /// Tells that what waits is not answered any more.
    fn fail(&self, failure: Failure) {
        for waiting in &self.waiting {
            self.failed(waiting.query, &|| waiting.domain.clone(), failure);
        }
    }

    fn failed(&self, query: Query, domain: &dyn Fn() -> Option<String>, failure: Failure) {
        self.inner.log_unanswered(query, domain, FAILED, failure.as_str());
        self.inner.tell(&Event::Failed { query, failure });
    }

    /// Answers a query or sends it on. `false` ends the connection: nothing that follows can be trusted to be a query.
    async fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let query = Query::of(bytes, Transport::Tcp);
        let mut answer = self.inner.answer(bytes, Transport::Tcp);
        if let Some(Answer::Forward) = answer
            && let learned @ Some(Answer::Reply(_)) = self.inner.learn(bytes, Transport::Tcp).await
        {
            answer = learned;
        }
        match answer {
            Some(Answer::Reply(reply)) => {
                self.inner.answered(query, Source::Mesh, &reply);
                within(self.inner.limits.idle, write_message(&mut self.client, &reply)).await?;
            }
            Some(Answer::Forward) => return self.forward(query, bytes).await,
            // An answer to what the nameserver has asked of the client.
            Some(Answer::Drop) if self.nameserver.is_some() && bytes.len() >= wire::HEADER => return self.forward(query, bytes).await,
            Some(Answer::Drop) => {
                self.inner.tell(&Event::Dropped(Dropped::NoQuery));
                return Ok(false);
            }
            None => {
                self.inner.dropped(query, bytes, Dropped::NotReady);
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn forward(&mut self, query: Query, bytes: &[u8]) -> io::Result<bool> {
        self.inner.tell(&Event::Forwarded(query));
        let sent = self.send(bytes).await;
        if sent.is_err() {
            self.failed(query, &|| asked(bytes), Failure::Unreachable);
            return Ok(false);
        }
        let has_one_answer = |header: Header| header.is_query() && wire::kind(bytes, &header).is_some_and(|kind| !ZONES.contains(&kind));
        self.lasts |= !Header::read(bytes).is_some_and(has_one_answer);
        // What answers a query of the nameserver's is not answered itself.
        if let Some(header) = Header::read(bytes).filter(|header| !header.is_response()) {
            self.waiting.push(Waiting {
                id: header.id,
                query,
                domain: asked(bytes),
                since: Instant::now(),
            });
        }
        Ok(true)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.nameserver.is_none() {
            let servers = self.inner.upstream.for_stream(&self.client);
            let servers = time::timeout(self.inner.limits.forward, servers).await?;
            self.nameserver = Some((connect(self.inner, &servers).await?, Messages::default()));
        }
        match &mut self.nameserver {
            Some((stream, _)) => within(self.inner.limits.idle, write_message(stream, bytes)).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    async fn give(&mut self, reply: &[u8]) -> io::Result<()> {
        let id = Header::read(reply).filter(Header::is_response).map(|header| header.id);
        if let Some(at) = self.waiting.iter().position(|waiting| Some(waiting.id) == id) {
            // Of several messages that answer one query, such as a zone, the first counts.
            let Waiting { query, since, .. } = self.waiting.swap_remove(at);
            let took = since.elapsed();
            self.inner.tell(&Event::Took { query, took });
            self.inner.answered(query, Source::Upstream, reply);
        }
        within(self.inner.limits.idle, write_message(&mut self.client, reply)).await
    }
}

/// Connects to the first of some nameservers that can be connected to.
async fn connect(inner: &Inner, servers: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let each = inner.limits.forward / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
    for server in servers {
        last = match within(each, inner.upstream.tcp(*server)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        tracing::debug!(%server, error = %last, "cannot connect to a nameserver");
    }
    Err(last)
}

/// Messages of a stream, each after its length.
#[derive(Debug, Default)]
struct Messages(Vec<u8>);

impl Messages {
    /// The next message; `None` at the stream's orderly end.
    ///
    /// Cancel safe: what has been read of a message is kept. Memory is taken as bytes come, not as a length promises them.
    async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.0.split_first_chunk::<2>()
                && let Some(message) = rest.get(..u16::from_be_bytes(*length).into())
            {
                let message = message.to_vec();
                self.0.drain(..2 + message.len());
                // One large message must not hold memory for as long as the connection stands.
                self.0.shrink_to(SMALL);
                return Ok(Some(message));
            }
            self.0.reserve(SMALL);
            if stream.read_buf(&mut self.0).await? == 0 {
                return if self.0.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("a message over 65535 bytes"))?;
    // At once: some clients take the length and the message for one read.
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend(length.to_be_bytes());
    out.extend(message);
    stream.write_all(&out).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limited = time::timeout(limit, work).await;
    limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Queries of one connection that wait for the nameserver; no more are read meanwhile.
const MOST_WAITING: usize = 64;
/// The types that ask for a zone, or what is new of it.
const ZONES: [u16; 2] = [251, 252];
/// How long a client is waited for that was told of the end, and how much of what it says is read away.
const PARTING: Duration = Duration::from_secs(1);
const READ_AWAY: u64 = 64 << 10;
/// Room for a message of the usual size.
const SMALL: usize = 512;
