//! Our two ends, as a proxy would use them.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ambient_core::{Authority, Credentials};
use ambient_hbone::{
    AcceptError, BoxFuture, BoxedIo, ConnectError, Destination, Dial, Pool, RelayLimits, Request, Server, Speaker, Stream,
    relay::{End, relay},
};
use http::{HeaderMap, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use super::certificates::{CLIENT, Certificates, SERVER, STRANGER};

/// A pool, and where its streams go.
#[derive(Clone)]
pub(crate) struct Client {
    pool: Pool,
    speaker: Speaker,
    peer: SocketAddr,
}

impl Client {
    /// Speaks to [`SERVER`] with the pair of that name: as [`CLIENT`], unless the pair is that of [`STRANGER`].
    pub(crate) fn new(certificates: &Certificates, pair: &str, peer: SocketAddr) -> Self {
        let own = if pair == "other-domain" { STRANGER } else { CLIENT };
        let held = certificates.held(&[(own, pair)]);
        let pool = Pool::builder(Arc::new(Tcp), held, Arc::new(ambient_tls::provider())).build();
        let speaker = Speaker::new("client-0", own.parse().unwrap());
        Self { pool, speaker, peer }
    }

    pub(crate) async fn connect(&self, authority: impl ToString) -> Result<Stream, ConnectError> {
        let authority = authority.to_string().parse().unwrap();
        let destination = Destination::new(self.peer, authority, [SERVER.parse().unwrap()]);
        tokio::time::timeout(super::RUN, self.pool.connect(&self.speaker, &destination))
            .await
            .expect("connecting has deadlines of its own")
    }
}

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let socket = TcpStream::connect(peer).await?;
            socket.set_nodelay(true)?;
            Ok(Box::new(socket) as BoxedIo)
        })
    }
}

/// A server for whoever comes. It connects to targets on loopback; `refuse.test:STATUS` is refused with that status, and
/// `goaway.test:PORT` is connected to loopback, and the tunnel ended gracefully.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    refusals: Vec<AcceptError>,
    baggage: Vec<String>,
    peers: Vec<String>,
    ends: Vec<End>,
}

impl Serving {
    pub(crate) async fn start(certificates: &Certificates) -> Self {
        Self::start_as(certificates, "server").await
    }

    /// With this pair.
    pub(crate) async fn start_as(certificates: &Certificates, pair: &str) -> Self {
        let held: Arc<dyn Credentials> = certificates.held(&[(SERVER, pair)]);
        let server = Server::builder(held, Arc::new(ambient_tls::provider())).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(server.clone(), socket, Arc::clone(&noted)));
            }
        });
        Self { address, seen }
    }

    /// Why connections became no tunnels, since this was last asked; waits for `count` of them.
    pub(crate) async fn refusals(&self, count: usize) -> Vec<AcceptError> {
        let came = async {
            while self.seen.lock().unwrap().refusals.len() < count {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(super::START, came).await;
        std::mem::take(&mut self.seen.lock().unwrap().refusals)
    }

    /// The `baggage` of the requests that were connected.
    pub(crate) fn baggage(&self) -> Vec<String> {
        self.seen.lock().unwrap().baggage.clone()
    }

    /// Who came.
    pub(crate) fn peers(&self) -> Vec<String> {
        self.seen.lock().unwrap().peers.clone()
    }

    /// How many streams have ended in good order, and how many otherwise.
    pub(crate) fn ends(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap();
        let orderly = seen.ends.iter().filter(|end| matches!(end, End::Orderly { .. })).count();
        (orderly, seen.ends.len() - orderly)
    }
}

async fn serve(server: Server, socket: TcpStream, seen: Arc<Mutex<Seen>>) {
    let mut session = match server.accept(socket, &SERVER.parse().unwrap()).await {
        Ok(session) => session,
        Err(refusal) => return seen.lock().unwrap().refusals.push(refusal),
    };
    seen.lock().unwrap().peers.push(session.peer().to_string());
    while let Some(request) = session.next().await {
        let (host, port) = match request.authority() {
            Authority::Address(address) => (address.ip().to_string(), address.port()),
            Authority::Host { name: host, port, .. } => (host.to_string(), *port),
        };
        if host == "refuse.test" {
            request.refuse(StatusCode::from_u16(port).unwrap());
            continue;
        }
        tokio::spawn(carry(request, port, Arc::clone(&seen)));
        if host == "goaway.test" {
            session.graceful_shutdown();
        }
    }
}

async fn carry(request: Request, port: u16, seen: Arc<Mutex<Seen>>) {
    let Ok(mut upstream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    if let Some(baggage) = request.headers().get("baggage") {
        seen.lock().unwrap().baggage.push(baggage.to_str().unwrap().to_owned());
    }
    let Ok(mut stream) = request.accept(HeaderMap::new()) else { return };
    let tally = relay(&mut stream, &mut upstream, &RelayLimits::default()).await;
    if !matches!(tally.end, End::Orderly { .. }) {
        let _ = upstream.set_zero_linger();
    }
    seen.lock().unwrap().ends.push(tally.end);
}
