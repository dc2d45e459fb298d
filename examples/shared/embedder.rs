//! What whoever embeds HBONE brings: how peers are reached, and what proves who one is.

use std::{io, net::SocketAddr, sync::Arc};

use ambient_core::{Credential, Identity, TrustBundles, TrustDomain, credential::Fixed};
use ambient_hbone::{BoxFuture, BoxedIo, Dial, Speaker};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::net::TcpStream;

/// Plain TCP. A node's proxy dials from the speaker's own network namespace.
pub(crate) struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(peer).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// Everybody's credentials, of a CA made here, which is trusted for the domain. Whoever goes on for longer asks a CA, and renews them.
pub(crate) fn issue(domain: &TrustDomain, identities: &[&Identity]) -> anyhow::Result<Fixed> {
    let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut trust = TrustBundles::default();
    trust.add(domain.clone(), params.self_signed(&key)?.der().to_vec());
    let issuer = Issuer::new(params, key);
    let mut credentials = Vec::new();
    for &identity in identities {
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        credentials.push(Credential {
            identity: identity.clone(),
            chain: vec![params.signed_by(&key, &issuer)?.der().to_vec()],
            key: Arc::new(key.serialize_der().into()),
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
        });
    }
    Ok(Fixed::new(credentials, trust))
}
