//! What the tests of this crate have in common: an authority in memory, and a clock that stands still.
#![cfg(feature = "aws-lc-rs")]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{Accepted, Trust, Verifier};

pub(crate) struct Ca {
    /// Its own certificate.
    pub(crate) der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("a root")
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Self { der, issuer }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str, serial: u64) -> Self {
        self.limited(name, |params| params.serial_number = Some(serial.into()))
    }

    /// An authority below this one, changed as a test likes.
    pub(crate) fn limited(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority(name);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Self { der, issuer }
    }

    /// A leaf with these URI SANs, changed as a test likes.
    pub(crate) fn leaf(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Credential {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Credential {
            identity: CART.parse().unwrap(),
            chain: vec![certificate.der().to_vec()],
            key: Arc::new(key.serialize_der().into()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34),
        }
    }

    /// The leaf of `cart` with this serial number.
    pub(crate) fn cart(&self, serial: u64) -> Vec<CertificateDer<'static>> {
        ders(&self.leaf(&[CART], |params| params.serial_number = Some(serial.into())))
    }

    /// A CRL of these serial numbers, to be renewed in the year 2027.
    pub(crate) fn crl(&self, serials: &[u64]) -> Vec<u8> {
        self.crl_of(serials, 2027).der().to_vec()
    }

    pub(crate) fn crl_of(&self, serials: &[u64], next_update: i32) -> rcgen::CertificateRevocationList {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2015, 1, 1),
            next_update: rcgen::date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct At(pub(crate) u64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

pub(crate) fn bundles(roots: &[(&str, &Ca)], crls: &[(&str, &[u8])]) -> TrustBundles {
    let mut bundles = TrustBundles::default();
    for (domain, ca) in roots {
        bundles.add(domain.parse().unwrap(), ca.der.clone());
    }
    for (domain, crl) in crls {
        bundles.add_crl(domain.parse().unwrap(), crl.to_vec());
    }
    bundles
}

pub(crate) fn trust(roots: &[(&str, &Ca)], crls: &[(&str, &[u8])]) -> Arc<Trust> {
    Arc::new(Trust::new(&Arc::new(crate::provider()), &bundles(roots, crls)))
}

pub(crate) fn verifier(trust: &Arc<Trust>, accepted: Accepted) -> Verifier {
    Verifier::new(trust, accepted).with_time(Arc::new(At(NOW)))
}

pub(crate) fn ders(credential: &Credential) -> Vec<CertificateDer<'static>> {
    credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

/// In November 2026.
pub(crate) const NOW: u64 = 1_795_000_000;
pub(crate) const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub(crate) const OURS: &str = "cluster.local";
