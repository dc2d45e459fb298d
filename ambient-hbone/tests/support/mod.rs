//! Certificates for tests: a CA in memory, and the credentials that it issues.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Credentials, Identity, TrustBundles, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SanType, SerialNumber,
};

/// A CA of one trust domain.
pub(crate) struct Ca {
    pub(crate) domain: TrustDomain,
    pub(crate) root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new(domain: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            domain: domain.parse().unwrap(),
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, identity: &Identity) -> Credential {
        self.issue_as(identity, |_| {})
    }

    /// The same, changed as a test likes; the credential's own dates stay wide.
    pub(crate) fn issue_as(&self, identity: &Identity, change: impl FnOnce(&mut CertificateParams)) -> Credential {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Credential {
            identity: identity.clone(),
            chain: vec![certificate.der().to_vec()],
            key: Arc::new(key.serialize_der().into()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34),
        }
    }
}

impl Ca {
    /// A CRL of these serial numbers.
    pub(crate) fn crl(&self, serials: &[u64]) -> Vec<u8> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(2027, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// Credentials in a map.
#[derive(Default)]
pub(crate) struct Held {
    credentials: Mutex<HashMap<Identity, Arc<Credential>>>,
    trust: Mutex<Arc<TrustBundles>>,
}

impl Held {
    pub(crate) fn hold(&self, credential: Credential) {
        self.credentials
            .lock()
            .unwrap()
            .insert(credential.identity.clone(), Arc::new(credential));
    }

    pub(crate) fn trust_in(&self, ca: &Ca) {
        let mut trust = self.trust.lock().unwrap();
        let mut bundles = TrustBundles::clone(&trust);
        bundles.add(ca.domain.clone(), ca.root.clone());
        *trust = Arc::new(bundles);
    }

    /// Trusts in these authorities alone, with these CRLs of the first.
    pub(crate) fn trust_only(&self, cas: &[&Ca], crls: &[&[u8]]) {
        let mut bundles = TrustBundles::default();
        cas.iter().for_each(|ca| bundles.add(ca.domain.clone(), ca.root.clone()));
        crls.iter().for_each(|crl| bundles.add_crl(cas[0].domain.clone(), crl.to_vec()));
        *self.trust.lock().unwrap() = Arc::new(bundles);
    }
}

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.credentials.lock().unwrap().get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.trust.lock().unwrap())
    }
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new(&TrustDomain::default(), "shop", account).unwrap()
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

/// Two identities with credentials of one CA, and what holds them.
pub(crate) fn pair() -> (Identity, Identity, Arc<Held>, Arc<rustls::crypto::CryptoProvider>) {
    let (cart, stock, held) = (identity("cart"), identity("stock"), Arc::new(Held::default()));
    let ca = Ca::new("cluster.local");
    held.trust_in(&ca);
    held.hold(ca.issue(&cart));
    held.hold(ca.issue(&stock));
    (cart, stock, held, provider())
}
