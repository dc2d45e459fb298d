//! HTTP over HBONE: a connector for hyper's pooled client. `cargo run --example hbone_http_client`.

#[path = "shared/embedder.rs"]
mod embedder;

use std::{convert::Infallible, error::Error, io, net::SocketAddr, pin::Pin, sync::Arc, task::Context, task::Poll};

use ambient_core::{Identity, TrustDomain};
use ambient_hbone::{BoxFuture, Destination, Pool, Server, Speaker, Stream, http::HeaderMap};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, Uri, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::client::legacy::{Client, connect::Connected, connect::Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncRead, io::AsyncWrite, io::ReadBuf, net::TcpListener};

/// Gives hyper a stream to whatever host a URI names. A mesh looks up where that is, and who.
#[derive(Clone)]
struct Hbone(Pool, Speaker, SocketAddr, Identity);

impl tower_service::Service<Uri> for Hbone {
    type Response = TokioIo<Tunnelled>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self(pool, speaker, peer, expected) = self.clone();
        Box::pin(async move {
            let authority = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80)).parse()?;
            let destination = Destination::new(peer, authority, [expected]);
            Ok(TokioIo::new(Tunnelled(pool.connect(&speaker, &destination).await?)))
        })
    }
}

struct Tunnelled(Stream);

impl Connection for Tunnelled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let identity = Identity::new(&TrustDomain::default(), "shop", "web")?;
    let held = Arc::new(embedder::issue(identity.trust_domain(), &[&identity])?);
    let provider = Arc::new(ambient_tls::provider());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let pool = Pool::builder(Arc::new(embedder::Tcp), held.clone(), provider.clone()).build();
    let speaker = Speaker::new("cart-0", identity.clone());
    let hbone = Hbone(pool, speaker, listener.local_addr()?, identity.clone());
    tokio::spawn(serve(listener, Server::builder(held, provider).build(), identity));
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(hbone);
    for path in ["one", "two"] {
        let answer = client.get(format!("http://web.shop/{path}").parse()?).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        println!("client: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// HTTP/1.1 at the other end of every stream.
async fn serve(listener: TcpListener, server: Server, identity: Identity) -> anyhow::Result<()> {
    let mut session = server.accept(listener.accept().await?.0, &identity).await?;
    while let Some(request) = session.next().await {
        let called = request.authority().to_string();
        let answer = service_fn(move |request: Request<_>| {
            let answer = Response::new(format!("{called} is asked for {}", request.uri().path()));
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let stream = TokioIo::new(request.accept(HeaderMap::new())?);
        tokio::spawn(http1::Builder::new().serve_connection(stream, answer));
    }
    Ok(())
}
