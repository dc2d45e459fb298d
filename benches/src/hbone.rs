//! The tunnel: a pool at the near end, a server at the far end, relays at both.

use std::{io, net::SocketAddr, sync::Arc};

use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Limits, Pool, RelayLimits, Request, Server, Speaker, Stream, relay};
use ambient_tls::Configs;
use http::{HeaderMap, StatusCode};
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    Certs, Sides, Warmth,
    node::{Node, Place},
};

/// From where the tunnels go.
struct Tcp(Place);

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = self.0.connect(peer).await?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// Starts both proxies, the near one first.
pub(crate) fn start(sides: &Sides, app: SocketAddr, warmth: Warmth) -> [Node; 2] {
    let ends = Ends::new();
    let limits = RelayLimits::default();
    let [here, there] = sides.proxies();
    let far = ends.far(&there.clone(), move |request, _| {
        let (limits, there) = (limits.clone(), there.clone());
        tokio::spawn(async move {
            let Ok(mut upstream) = there.connect(app).await else {
                return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
            };
            let mut stream = request.accept(HeaderMap::new()).expect("the peer waits");
            relay(&mut stream, &mut upstream, &limits).await;
        });
    });
    let (speaker, destination) = ends.call(far.address, app);
    let kept = ends.pool(&here);
    let limits = RelayLimits::default();
    let near = Node::listen(&here.clone(), move |mut client| {
        let pool = match warmth {
            Warmth::Warm => kept.clone(),
            Warmth::Cold => ends.pool(&here),
        };
        let (speaker, destination, limits) = (speaker.clone(), destination.clone(), limits.clone());
        async move {
            let connected = pool.connect_with(&speaker, &destination, &mut client).await;
            let mut stream = connected.expect("a tunnel");
            relay(&mut client, &mut stream, &limits).await;
        }
    });
    [near, far]
}

/// Starts both proxies; streams are opened as the near one is told, and held.
pub(crate) fn hold(sides: &Sides) -> [Node; 2] {
    let ends = Ends::new();
    let far = ends.far(&sides.far, |request, held| {
        held.push(request.accept(HeaderMap::new()).expect("the peer waits"));
    });
    let (speaker, destination) = ends.call(far.address, far.address);
    let pool = ends.pool(&sides.near);
    let near = Node::listen(&sides.near, move |mut client| {
        let (pool, speaker, destination) = (pool.clone(), speaker.clone(), destination.clone());
        async move {
            let mut held = Vec::new();
            // Ends with the client.
            while let Ok(streams) = client.read_u32().await {
                for _ in 0..streams {
                    held.push(pool.connect(&speaker, &destination).await.expect("a tunnel"));
                }
                client.write_u8(0).await.expect("the client waits");
            }
        }
    });
    [near, far]
}

/// What both ends are made of.
struct Ends {
    certs: Arc<Certs>,
    provider: Arc<CryptoProvider>,
    /// As in a node, and in bare TLS: what is made of a credential is made once, for all pools.
    configs: Arc<Configs>,
}

impl Ends {
    fn new() -> Self {
        let provider = Arc::new(ambient_tls::provider());
        Self {
            certs: Arc::new(Certs::new()),
            configs: Arc::new(Configs::new(provider.clone())),
            provider,
        }
    }

    fn pool(&self, from: &Place) -> Pool {
        let mut limits = Limits::default();
        // Enough for 10,000 streams.
        limits.tunnels = 64;
        Pool::builder(Arc::new(Tcp(from.clone())), self.certs.clone(), self.provider.clone())
            .limits(limits)
            .configs(self.configs.clone())
            .build()
    }

    fn call(&self, peer: SocketAddr, authority: SocketAddr) -> (Speaker, Destination) {
        (
            Speaker::new("cart-0", self.certs.cart.clone()),
            Destination::new(peer, authority.into(), [self.certs.stock.clone()]),
        )
    }

    /// The far proxy: what it does with a request, and what it may hold as long as the tunnel stands.
    fn far(&self, place: &Place, answer: impl Fn(Request, &mut Vec<Stream>) + Clone + Send + 'static) -> Node {
        let server = Server::builder(self.certs.clone(), self.provider.clone()).build();
        let stock = self.certs.stock.clone();
        Node::listen(place, move |connection| {
            let (server, stock, answer) = (server.clone(), stock.clone(), answer.clone());
            async move {
                let mut session = server.accept(connection, &stock).await.expect("a session");
                let mut held = Vec::new();
                while let Some(request) = session.next().await {
                    answer(request, &mut held);
                }
            }
        })
    }
}
