//! Two identities, and a CA that lives as long as the bench.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Credentials, Identity, TrustBundles, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

/// The credentials of `cart`, who calls, and of `stock`, who is called.
#[derive(Debug)]
pub struct Certs {
    /// Who calls.
    pub cart: Identity,
    /// Who is called.
    pub stock: Identity,
    credentials: HashMap<Identity, Arc<Credential>>,
    trust: Arc<TrustBundles>,
}

impl Certs {
    /// Fresh ones.
    ///
    /// # Panics
    /// When the library that issues them refuses.
    #[expect(clippy::new_without_default, reason = "each call makes others")]
    pub fn new() -> Self {
        let domain = TrustDomain::default();
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root");
        let issuer = Issuer::new(params, key);
        let mut trust = TrustBundles::default();
        trust.add(domain.clone(), root.der().to_vec());
        let [cart, stock] = ["cart", "stock"].map(|account| Identity::new(&domain, "shop", account).expect("well formed"));
        let credentials = [&cart, &stock].map(|identity| (identity.clone(), Arc::new(issue(&issuer, identity))));
        Self {
            cart,
            stock,
            credentials: credentials.into(),
            trust: Arc::new(trust),
        }
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, identity: &Identity) -> Credential {
    let key = KeyPair::generate().expect("a P-256 key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().expect("ASCII"))];
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    Credential {
        identity: identity.clone(),
        chain: vec![certificate.der().to_vec()],
        key: Arc::new(key.serialize_der().into()),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34),
    }
}

impl Credentials for Certs {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.credentials.get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.trust)
    }
}
