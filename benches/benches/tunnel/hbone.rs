//! The tunnel: a pool at the near end, a server at the far end, relays at both.

use std::{io, net::SocketAddr, sync::Arc};

use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, RelayLimits, Server, Speaker, SpeakerKey, relay};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;

use crate::{app, certs::Certs};

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(peer).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// Starts both proxies; where clients connect.
pub(crate) fn start(app: SocketAddr) -> SocketAddr {
    let certs = Arc::new(Certs::new());
    let provider = Arc::new(ambient_tls::provider());
    let far = far(app, &certs, Server::builder(certs.clone(), provider.clone()).build());
    let pool = Pool::builder(Arc::new(Tcp), certs.clone(), provider).build();
    let speaker = Speaker {
        key: SpeakerKey::new("cart-0"),
        identity: certs.cart.clone(),
    };
    let destination = Destination {
        peer: far,
        authority: app.into(),
        accepted: vec![certs.stock.clone()],
        headers: HeaderMap::new(),
        early_data: true,
    };
    app::listen(move |mut client| {
        let (pool, speaker, destination) = (pool.clone(), speaker.clone(), destination.clone());
        async move {
            let mut stream = pool.connect(&speaker, &destination).await.expect("a tunnel");
            relay(&mut client, &mut stream, &RelayLimits::default()).await;
        }
    })
}

fn far(app: SocketAddr, certs: &Arc<Certs>, server: Server) -> SocketAddr {
    let stock = certs.stock.clone();
    app::listen(move |connection| {
        let (server, stock) = (server.clone(), stock.clone());
        async move {
            let mut session = server.accept(connection, &stock).await.expect("a session");
            while let Some(request) = session.next().await {
                tokio::spawn(async move {
                    let Ok(mut upstream) = TcpStream::connect(app).await else {
                        return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
                    };
                    upstream.set_nodelay(true).expect("a TCP option");
                    let mut stream = request.accept(HeaderMap::new()).expect("the peer waits");
                    relay(&mut stream, &mut upstream, &RelayLimits::default()).await;
                });
            }
        }
    })
}
