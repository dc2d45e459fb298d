//! What whoever embeds HBONE brings: how peers are reached, and what proves who one is.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use ambient_core::{Credential, Credentials, Identity, TrustBundles, TrustDomain};
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

/// Everybody's credentials; a real one asks a CA and renews them.
pub(crate) struct Held(HashMap<Identity, Arc<Credential>>, Arc<TrustBundles>);

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.0.get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.1.clone()
    }
}

/// Credentials of a CA made here, which is trusted for the domain.
pub(crate) fn issue(domain: &TrustDomain, identities: &[&Identity]) -> anyhow::Result<Held> {
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
