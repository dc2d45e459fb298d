//! A client's TCP connection: names of the mesh are answered on it, and everything else goes to a nameserver by a connection
//! that stands beside it, message by message, both ways and untouched. So zone transfers, many queries at once, sessions and
//! whatever else TCP carries work as they do without us.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{self, Instant},
};

use crate::{
    Answer, Transport,
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
        since: Instant::now(),
    };
    let last_query_after = Instant::now() + inner.limits.life;
    let mut asks = true;
    while asks || talk.nameserver.is_some() {
        match talk.next(asks).await? {
            Next::Query(query) => {
                if !talk.take(&query).await? {
                    return Ok(());
                }
                if Instant::now() >= last_query_after {
                    asks = false;
                    talk.ask_no_more().await?;
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
                return Ok(());
            }
        }
        talk.since = Instant::now();
    }
    Ok(())
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
            () = time::sleep_until(self.since + patience) => {
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
/// Room for a message of the usual size.
const SMALL: usize = 512;
