//! Signing keys that others hold.

use std::time::{Duration, SystemTime};

use ambient_core::{PrivateKey, SpiffeId};
use rcgen::{CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::{DirectoryCa, leaf, now, whole_seconds};

/// Why a request was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is no request, or its signature is not that of its key.
    #[error("no certificate request that can be signed: {why}")]
    Request {
        /// What is wrong with it.
        why: String,
    },
    /// What is to be named is no name of a certificate.
    #[error("{name:?} cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
    },
    /// The root has ended.
    #[error("the root certificate has ended: stop every node, remove root.pem and root-key.pem, and start again")]
    RootEnded,
    /// The crypto library refuses.
    #[error("cannot sign: {why}")]
    Crypto {
        /// Its words.
        why: String,
    },
}

/// A certificate for a server that is known by host names.
#[derive(Debug)]
pub struct ServerCredential {
    /// DER.
    pub certificate: Vec<u8>,
    /// DER in PKCS#8.
    pub key: PrivateKey,
    /// It is valid until here.
    pub not_after: SystemTime,
}

impl DirectoryCa {
    /// The root certificate, in PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Signs the key of a PEM request for a name that the caller has decided on; whatever the request asks for besides is
    /// left out. `ttl` shortens the certificate's life, and cannot make it longer than this authority's own.
    ///
    /// # Errors
    /// When it is no request that proves possession of its key, or nothing can be signed now.
    pub fn sign_request(&self, whom: &SpiffeId, request: &str, ttl: Duration) -> Result<String, RequestError> {
        let name = || RequestError::Name {
            name: whom.as_str().into(),
        };
        let uri = SanType::URI(whom.as_str().try_into().map_err(|_| name())?);
        let request = CertificateSigningRequestParams::from_pem(request).map_err(|e| RequestError::Request { why: e.to_string() })?;
        let (not_before, not_after) = self.life(ttl.min(self.ttl), now())?;
        let certificate = CertificateSigningRequestParams {
            params: leaf(vec![uri], not_before, not_after),
            public_key: request.public_key,
        }
        .signed_by(&self.issuer)
        .map_err(crypto)?;
        Ok(certificate.pem())
    }

    /// A certificate with a new key for a server that is known by these host names or addresses.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or nothing can be signed now.
    pub fn server(&self, names: &[String]) -> Result<ServerCredential, RequestError> {
        let san = |name: &String| match name.parse() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => {
                let dns = name.as_str().try_into().map(SanType::DnsName);
                dns.map_err(|_| RequestError::Name { name: name.clone() })
            }
        };
        let names = names.iter().map(san).collect::<Result<Vec<_>, _>>()?;
        let (not_before, not_after) = self.life(self.ttl, now())?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let certificate = leaf(names, not_before, not_after).signed_by(&key, &self.issuer).map_err(crypto)?;
        Ok(ServerCredential {
            certificate: certificate.der().to_vec(),
            key: PrivateKey::from(key.serialize_der()),
            not_after,
        })
    }

    /// From when to when a certificate of now is valid.
    pub(super) fn life(&self, ttl: Duration, now: SystemTime) -> Result<(SystemTime, SystemTime), RequestError> {
        // Clocks of the same machine differ by nothing, but those of its guests may; never so much of a short life that
        // half of it is over at once.
        let back = (ttl / 10).min(Duration::from_secs(300));
        let not_after = whole_seconds(now + ttl).min(self.root_ends);
        if not_after <= now {
            return Err(RequestError::RootEnded);
        }
        Ok((whole_seconds(now - back), not_after))
    }
}

fn crypto(error: rcgen::Error) -> RequestError {
    RequestError::Crypto { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use ambient_core::Identity;
    use rcgen::{BasicConstraints, CertificateParams, IsCa};
    use x509_parser::{extensions::GeneralName, pem::parse_x509_pem, prelude::*};

    use super::*;

    #[test]
    fn a_request_gets_the_name_that_was_decided_on_and_nothing_else_it_asks_for() {
        let scratch = tempfile::tempdir().unwrap();
        let ca = DirectoryCa::open(
            scratch.path().join("ca"),
            "cluster.local".parse().unwrap(),
            DirectoryCa::DEFAULT_TTL,
        )
        .unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let whom: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let pem = ca.sign_request(whom.spiffe_id(), &request, Duration::from_secs(3600)).unwrap();
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, signed) = X509Certificate::from_der(&pem.contents).unwrap();
        assert!(!signed.is_ca());
        let names = signed.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert_eq!(names.value.general_names, [GeneralName::URI(whom.as_str())]);
        assert_eq!(*signed.public_key().subject_public_key.data, *key.public_key_raw());
        let life = signed.validity().not_after.timestamp() - now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
        assert!((3590..=3601).contains(&life), "{life}");
        // A request that somebody has changed on its way.
        let mut lines: Vec<String> = request.lines().map(String::from).collect();
        let middle = lines.len() / 2;
        lines[middle] = lines[middle].chars().rev().collect();
        let error = ca
            .sign_request(whom.spiffe_id(), &lines.join("\n"), Duration::from_secs(60))
            .unwrap_err();
        assert!(matches!(error, RequestError::Request { .. }), "{error}");
    }
}
