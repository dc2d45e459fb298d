//! Certificates as files, for programs of others, and as credentials, for our ends. Good ones and bad ones.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Credentials, Identity, TrustBundles, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

/// A directory with a CA, `ca.crt`, and the pairs that it and a foreign one have issued.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
    root: Vec<u8>,
}

/// Who the test's two ends are.
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// Who bears `other-domain`: nobody whom the test's root may vouch for.
pub(crate) const STRANGER: &str = "spiffe://other.test/ns/shop/sa/client";

/// The host name that `server-and-name` bears beside its SPIFFE ID.
pub(crate) const NAME: &str = "server.test";

/// The names of the bad pairs; beside them there are `server` and `client`.
pub(crate) const BAD: [&str; 4] = ["other-domain", "foreign-ca", "expired", "two-uris"];

impl Certificates {
    pub(crate) fn new() -> Self {
        let (root, ca) = authority("ours");
        let (_, foreign) = authority("of others");
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.crt"), root.pem()).unwrap();
        let both = [CLIENT, "spiffe://cluster.local/ns/shop/sa/admin"];
        for (name, issuer, uris, year) in [
            ("server", &ca, &[SERVER][..], 2100),
            ("server-and-name", &ca, &[SERVER], 2100),
            ("client", &ca, &[CLIENT], 2100),
            ("other-domain", &ca, &[STRANGER], 2100),
            ("foreign-ca", &foreign, &[CLIENT], 2100),
            ("expired", &ca, &[CLIENT], 2020),
            ("two-uris", &ca, &both, 2100),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = leaf(uris, year);
            if name.ends_with("-and-name") {
                params.subject_alt_names.push(SanType::DnsName(NAME.try_into().unwrap()));
            }
            let certificate = params.signed_by(&key, issuer).unwrap();
            fs::write(directory.path().join(format!("{name}.crt")), certificate.pem()).unwrap();
            fs::write(directory.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self {
            directory,
            root: root.der().to_vec(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// What our ends present and trust: these pairs, each beside the identity that it bears.
    pub(crate) fn held(&self, pairs: &[(&str, &str)]) -> Arc<dyn Credentials> {
        let mut trust = TrustBundles::default();
        trust.add(TrustDomain::default(), self.root.clone());
        let credential = |&(identity, name): &(&str, &str)| {
            let certificate = der(&self.file(&format!("{name}.crt")));
            Arc::new(Credential {
                identity: identity.parse().unwrap(),
                chain: vec![certificate],
                key: Arc::new(der(&self.file(&format!("{name}.key"))).into()),
                not_before: SystemTime::UNIX_EPOCH,
                not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34),
            })
        };
        Arc::new(Held(pairs.iter().map(credential).collect(), Arc::new(trust)))
    }
}

struct Held(Vec<Arc<Credential>>, Arc<TrustBundles>);

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.0.iter().find(|credential| credential.identity == *identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.1)
    }
}

/// The names differ, as chains are found by them.
fn authority(name: &str) -> (rcgen::Certificate, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.self_signed(&key).unwrap(), Issuer::new(params, key))
}

fn leaf(uris: &[&str], until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_after = date_time_ymd(until, 1, 1);
    params.not_before = date_time_ymd(2019, 1, 1);
    params
}

/// The one object in a PEM file.
fn der(file: &Path) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    if file.extension().is_some_and(|extension| extension == "key") {
        PrivateKeyDer::from_pem_file(file).unwrap().secret_der().to_vec()
    } else {
        CertificateDer::from_pem_file(file).unwrap().to_vec()
    }
}
