//! An echo over HBONE, both ends in one process: `cargo run --example hbone_echo`.
//!
//! The client speaks as `cart`, the server as `stock`; each proves it with a certificate of a CA made here.

#[path = "shared/embedder.rs"]
mod embedder;

use std::sync::Arc;

use ambient_core::{Identity, TrustDomain};
use ambient_hbone::{Destination, Pool, Server, Speaker, http::HeaderMap};
use embedder::{Tcp, issue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let domain = TrustDomain::default();
    let (cart, stock) = (Identity::new(&domain, "shop", "cart")?, Identity::new(&domain, "shop", "stock")?);
    let credentials = Arc::new(issue(&domain, &[&cart, &stock])?);
    let provider = Arc::new(ambient_tls::provider());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let peer = listener.local_addr()?;
    let server = Server::builder(credentials.clone(), provider.clone()).build();
    let called = stock.clone();
    tokio::spawn(async move {
        let (connection, _) = listener.accept().await?;
        let mut session = server.accept(connection, &called).await?;
        println!("server: the peer is {}", session.peer());
        while let Some(request) = session.next().await {
            let (mut from, mut to) = request.accept(HeaderMap::new())?.into_split();
            tokio::spawn(async move {
                tokio::io::copy(&mut from, &mut to).await?;
                to.shutdown().await
            });
        }
        anyhow::Ok(())
    });

    let pool = Pool::builder(Arc::new(Tcp), credentials, provider).build();
    let destination = Destination::new(peer, "stock.shop:8080".parse()?, [stock]);
    let mut stream = pool.connect(&Speaker::new("cart-0", cart), &destination).await?;
    stream.write_all(b"hello through the tunnel").await?;
    stream.shutdown().await?;
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await?;
    println!("client: {echo}");
    Ok(())
}
