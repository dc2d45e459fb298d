//! Bare TLS: a TLS connection for each TCP connection, and nothing else.

use std::{net::SocketAddr, sync::Arc};

use ambient_core::{Credential, Credentials};
use ambient_tls::{Accepted, Verifier};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{app, certs::Certs};

/// Starts both proxies; where clients connect.
pub(crate) fn start(app: SocketAddr) -> SocketAddr {
    let certs = Certs::new();
    let provider = Arc::new(ambient_tls::provider());
    let verifier = Arc::new(Verifier::new(&provider, &certs.trust(), Accepted::AnyTrusted));
    let (chain, key) = proof(&certs.credential(&certs.stock).expect("just issued"));
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .expect("a usable key");
    let (chain, key) = proof(&certs.credential(&certs.cart).expect("just issued"));
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .expect("a usable key");

    let acceptor = TlsAcceptor::from(Arc::new(server));
    let far = app::listen(move |connection| {
        let acceptor = acceptor.clone();
        async move {
            let mut tls = acceptor.accept(connection).await.expect("a handshake");
            let mut upstream = connect(app).await;
            copy(&mut tls, &mut upstream).await;
        }
    });
    let connector = TlsConnector::from(Arc::new(client));
    app::listen(move |mut client| {
        let connector = connector.clone();
        async move {
            let name = ServerName::from(far.ip());
            let mut tls = connector.connect(name, connect(far).await).await.expect("a handshake");
            copy(&mut client, &mut tls).await;
        }
    })
}

async fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).await.expect("it listens");
    stream.set_nodelay(true).expect("a TCP option");
    stream
}

async fn copy(a: &mut (impl AsyncRead + AsyncWrite + Unpin), b: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    // Ends with the client, in whatever way.
    let _ = copy_bidirectional_with_sizes(a, b, 64 << 10, 64 << 10).await;
}

fn proof(credential: &Credential) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivatePkcs8KeyDer::from(credential.key.der().to_vec()).into())
}
