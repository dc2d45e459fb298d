//! Asking nameservers by UDP: one after the other, until one has an answer.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{io::Interest, net::UdpSocket, task::JoinSet, time};

use crate::{Upstream, exchange::Exchange, wire::Header};

/// What became of a query that was sent upstream.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A nameserver's answer, untouched but for its ID.
    Reply(Vec<u8>),
    /// The network says of every nameserver that it is not there.
    Unreachable(io::Error),
    /// Nobody has said anything.
    Silent,
}

/// Why there is no answer of one nameserver.
enum Failed {
    /// The network said so.
    Unreachable(io::Error),
    /// It could not even be asked, for want of something on this machine.
    Here(io::Error),
}

/// Asks nameservers, each as soon as those before it have failed or have been silent for `patience`. The first good answer
/// is taken; of answers that send the client elsewhere (SERVFAIL, NOTIMP, REFUSED) the last, once there is nobody left to ask
/// or time is up.
pub(crate) async fn ask(
    upstream: &Arc<dyn Upstream>,
    servers: &[SocketAddr],
    query: &[u8],
    patience: Duration,
    limit: Duration,
) -> Outcome {
    let mut deadline = pin!(time::sleep(limit));
    let mut left = servers.iter();
    let mut asked = JoinSet::new();
    let mut outcome = Outcome::Silent;
    loop {
        if let Some(server) = left.next() {
            asked.spawn(ask_one(upstream.clone(), *server, query.to_vec()));
        } else if asked.is_empty() {
            return outcome;
        }
        let hurry = !left.as_slice().is_empty();
        let ended = tokio::select! {
            ended = asked.join_next() => ended,
            () = time::sleep(patience), if hurry => continue,
            // Of who is silent the network has not said that it is not there.
            () = &mut deadline => return match outcome {
                Outcome::Unreachable(_) => Outcome::Silent,
                answered => answered,
            },
        };
        match ended {
            Some(Ok(Ok(reply))) if goes_on(&reply) => outcome = Outcome::Reply(reply),
            Some(Ok(Ok(reply))) => return Outcome::Reply(reply),
            Some(Ok(Err(Failed::Unreachable(error)))) if matches!(outcome, Outcome::Silent) => outcome = Outcome::Unreachable(error),
            Some(Ok(Err(Failed::Here(error)))) => tracing::debug!(%error, "cannot ask a nameserver"),
            Some(Ok(Err(_))) | None => {}
            Some(Err(error)) => tracing::error!(%error, "a DNS query's task has failed"),
        }
    }
}

/// Whether a stub resolver takes an answer as a reason to ask another nameserver.
fn goes_on(reply: &[u8]) -> bool {
    Header::read(reply).is_some_and(|header| matches!(header.code(), SERVFAIL | NOTIMP | REFUSED))
}

async fn ask_one(upstream: Arc<dyn Upstream>, server: SocketAddr, query: Vec<u8>) -> Result<Vec<u8>, Failed> {
    let Some((exchange, bytes)) = Exchange::new(&query, upstream.draw()) else {
        return Err(Failed::Here(io::ErrorKind::InvalidInput.into()));
    };
    let socket = upstream.udp(server).await.map_err(failed)?;
    socket.send(&bytes).await.map_err(failed)?;
    loop {
        let mut reply = receive(&socket).await.map_err(failed)?;
        match exchange.settle(&mut reply) {
            Ok(()) => return Ok(reply),
            // Whoever guesses must not end the exchange; it goes on until the true answer or its deadline.
            Err(mismatch) => tracing::debug!(%server, %mismatch, "what came is not the answer to the query"),
        }
        // However fast somebody guesses, others have their turn.
        tokio::task::yield_now().await;
    }
}

/// The next datagram. Room for the largest one is made only when there is one.
async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    loop {
        // What ICMP says makes a socket not readable, but ailing.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error()
            && let Some(error) = socket.take_error()?
        {
            return Err(error);
        }
        if !ready.is_readable() {
            // It was taken already; else it would be told of again and again.
            let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            continue;
        }
        let mut buffer = vec![0; LARGEST];
        match socket.try_recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                buffer.shrink_to_fit();
                return Ok(buffer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn failed(error: io::Error) -> Failed {
    use io::ErrorKind as K;
    match error.kind() {
        // What ICMP says, what no route says, and what a firewall on the way out says.
        K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown | K::AddrNotAvailable | K::PermissionDenied => {
            Failed::Unreachable(error)
        }
        _ => Failed::Here(error),
    }
}

/// The largest datagram that there is.
const LARGEST: usize = 65_535;

const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;
