//! Bare TLS: a TLS connection for each TCP connection, and nothing else.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambient_core::{Credential, Credentials};
use ambient_tls::{Accepted, Trust, Verifier};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::NoServerSessionStorage,
    version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    Certs, Handshakes, Sides, Warmth,
    node::{self, Node},
    relay::copy,
};

/// Starts both proxies, the near one first.
pub(crate) fn start(sides: &Sides, app: SocketAddr, warmth: Warmth, handshakes: &Arc<Handshakes>) -> [Node; 2] {
    let (client, server) = configs(warmth);
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let far = Node::listen(&sides.far, move |connection| {
        let acceptor = acceptor.clone();
        async move {
            let mut tls = acceptor.accept(connection).await.expect("a handshake");
            let mut upstream = node::connect(app).await.expect("the application listens");
            copy(&mut tls, &mut upstream, BUFFER).await;
        }
    });
    // rustls keeps eight tickets for a server. Each connection brings two, so that a client seldom runs out of them with
    // a few connections at a time; with more, some of them would not resume.
    let connectors = [(); 4].map(|()| {
        let mut client = client.clone();
        if warmth == Warmth::Warm {
            client.resumption = Resumption::default();
        }
        TlsConnector::from(Arc::new(client))
    });
    let turn = AtomicUsize::new(0);
    let (to, handshakes) = (far.address, handshakes.clone());
    let near = Node::listen(&sides.near, move |mut client| {
        let connector = connectors[turn.fetch_add(1, Ordering::Relaxed) % connectors.len()].clone();
        let handshakes = handshakes.clone();
        async move {
            let peer = node::connect(to).await.expect("the far proxy listens");
            let mut tls = connector.connect(ServerName::from(to.ip()), peer).await.expect("a handshake");
            handshakes.count(tls.get_ref().1.handshake_kind());
            copy(&mut client, &mut tls, BUFFER).await;
        }
    });
    [near, far]
}

/// What the two ends agree on is what the tunnel's ends agree on, but for the ALPN; all else is as rustls has it by
/// default.
fn configs(warmth: Warmth) -> (ClientConfig, ServerConfig) {
    let certs = Certs::new();
    let provider = Arc::new(ambient_tls::provider());
    let trust = Arc::new(Trust::new(&provider, &certs.trust()));
    let verifier = Arc::new(Verifier::new(&trust, Accepted::AnyTrusted));
    let (chain, key) = proof(&certs.credential(&certs.stock).expect("just issued"));
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .expect("a usable key");
    let (chain, key) = proof(&certs.credential(&certs.cart).expect("just issued"));
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .expect("a usable key");
    if warmth == Warmth::Cold {
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
    }
    (client, server)
}

fn proof(credential: &Credential) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivatePkcs8KeyDer::from(credential.key.der().to_vec()).into())
}

const BUFFER: usize = 64 << 10;
