//! An echo over HBONE, both ends in one process: `cargo run --example hbone_echo`.
//!
//! The client speaks as `cart`, the server as `stock`; each proves it with a certificate of a CA made here.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use ambient_core::{Credential, Credentials, Identity, TrustBundles, TrustDomain};
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, Server, Speaker, http::HeaderMap};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Everybody's credentials; a real one asks a CA and renews them.
struct Held(HashMap<Identity, Arc<Credential>>, Arc<TrustBundles>);

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.0.get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.1.clone()
    }
}

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

fn issue(domain: &TrustDomain, identities: &[&Identity]) -> anyhow::Result<Held> {
    let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut trust = TrustBundles::default();
    trust.add(domain.clone(), params.self_signed(&key)?.der().to_vec());
    let issuer = Issuer::new(params, key);
    let mut credentials = HashMap::new();
    for &identity in identities {
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        let credential = Credential {
            identity: identity.clone(),
            chain: vec![params.signed_by(&key, &issuer)?.der().to_vec()],
            key: Arc::new(key.serialize_der().into()),
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
        };
        credentials.insert(identity.clone(), Arc::new(credential));
    }
    Ok(Held(credentials, Arc::new(trust)))
}
