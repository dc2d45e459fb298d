//! Connections to a host by whichever of its addresses answers.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::sleep,
};

/// Connects to a host, by the first of its addresses that answers: an address that nothing comes back from, as one of a family that
/// is not routed, keeps nobody from the next.
///
/// # Cancel safety
/// Dropping the future ends what it has begun.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    any_of(lookup_host((host, port)).await?.take(MOST), HEAD_START).await
}

async fn any_of(mut addresses: impl Iterator<Item = SocketAddr>, head_start: Duration) -> io::Result<TcpStream> {
    let (mut attempts, mut failed) = (JoinSet::new(), None);
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            done = attempts.join_next() => match done {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failed = Some(error),
                // It has not come to an answer.
                Some(Err(_)) => {}
                None => return Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address"))),
            },
            () = sleep(head_start), if !is_last => {}
        }
    }
}

/// Addresses of a host that are tried: all of them within the time that a connection may take.
const MOST: usize = 16;
/// How long each is tried alone.
const HEAD_START: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use tokio::{
        net::{TcpListener, TcpSocket},
        time::{Instant, timeout},
    };

    use super::*;

    /// What is sent there is answered by nobody: who listens there takes no more connections.
    async fn deaf() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 64, "it takes however many come");
        }
        (address, listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_keeps_nobody_from_the_next() {
        let (deaf, _listening, _waiting) = deaf().await;
        // Held, so that nobody else listens there.
        let held = TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap();
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = (good.local_addr().unwrap(), good);
        let begun = Instant::now();
        let connected = timeout(Duration::from_secs(20), any_of([deaf, closed, good.0].into_iter(), HEAD_START)).await;
        assert_eq!(connected.expect("it is connected").unwrap().peer_addr().unwrap(), good.0);
        assert!(begun.elapsed() >= HEAD_START, "each is given its time");
        // What refuses is not waited for.
        let patient = Duration::from_secs(3600);
        let connected = timeout(Duration::from_secs(20), any_of([closed, good.0].into_iter(), patient)).await;
        assert_eq!(connected.expect("at once").unwrap().peer_addr().unwrap(), good.0);
        let error = any_of([closed, closed].into_iter(), patient).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = any_of([].into_iter(), patient).await.unwrap_err();
        assert_eq!(error.to_string(), "it has no address");
    }
}
