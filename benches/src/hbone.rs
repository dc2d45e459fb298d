//! The tunnel: a pool at the near end, a server at the far end, relays at both.

use std::{io, net::SocketAddr, sync::Arc};

use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, RelayLimits, Server, Speaker, relay};
use ambient_tls::Configs;
use http::{HeaderMap, StatusCode};

use crate::{
    Certs, Sides, Warmth,
    node::{self, Node, Place},
};

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = node::connect(peer).await?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// Starts both proxies, the near one first.
pub(crate) fn start(sides: &Sides, app: SocketAddr, warmth: Warmth) -> [Node; 2] {
    let certs = Arc::new(Certs::new());
    let provider = Arc::new(ambient_tls::provider());
    let far = far(&sides.far, app, &certs, Server::builder(certs.clone(), provider.clone()).build());
    let speaker = Speaker::new("cart-0", certs.cart.clone());
    let destination = Destination::new(far.address, app.into(), [certs.stock.clone()]);
    // As in a node, and in bare TLS: what is made of a credential is made once.
    let configs = Arc::new(Configs::new(provider.clone()));
    let fresh = move || {
        let pool = Pool::builder(Arc::new(Tcp), certs.clone(), provider.clone());
        pool.configs(configs.clone()).build()
    };
    let kept = fresh();
    let limits = RelayLimits::default();
    let near = Node::listen(&sides.near, move |mut client| {
        let pool = match warmth {
            Warmth::Warm => kept.clone(),
            Warmth::Cold => fresh(),
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

fn far(place: &Place, app: SocketAddr, certs: &Arc<Certs>, server: Server) -> Node {
    let stock = certs.stock.clone();
    let limits = RelayLimits::default();
    Node::listen(place, move |connection| {
        let (server, stock, limits) = (server.clone(), stock.clone(), limits.clone());
        async move {
            let mut session = server.accept(connection, &stock).await.expect("a session");
            while let Some(request) = session.next().await {
                let limits = limits.clone();
                tokio::spawn(async move {
                    let Ok(mut upstream) = node::connect(app).await else {
                        return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
                    };
                    let mut stream = request.accept(HeaderMap::new()).expect("the peer waits");
                    relay(&mut stream, &mut upstream, &limits).await;
                });
            }
        }
    })
}
