//! Signing keys: those that others hold, and those made here.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use ambient_core::{PrivateKey, SpiffeId, TrustDomain};
use rcgen::{CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData, SanType};

use super::{DirectoryCa, OpenError, Request, Whom, end_of, issued, leaf, now, seconds, serial, whole_seconds};

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
    #[error("{name:?} cannot stand in a certificate: the name of a host or an address is wanted, with nothing before or after it")]
    Name {
        /// The name.
        name: String,
    },
    /// It is of another trust domain.
    #[error("this authority is that of the trust domain {of}")]
    Foreign {
        /// The authority's.
        of: TrustDomain,
    },
    /// The identity was revoked.
    #[error("{name} was revoked: `ambient ca revoke --lift` lets it have certificates again")]
    Barred {
        /// The identity.
        name: String,
    },
    /// What signs has ended.
    #[error("{}: every intermediate here has ended: issue another where the root's key is, or make the root anew if it has ended", path.display())]
    Ended {
        /// Where intermediates are.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot sign: {why}")]
    Directory {
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The crypto library refuses.
    #[error("cannot sign: {why}")]
    Crypto {
        /// Its words.
        why: String,
    },
    /// A signer elsewhere refuses or has failed.
    #[error("the signer says: {why}")]
    Signer {
        /// Its words.
        why: String,
    },
}

impl From<OpenError> for RequestError {
    fn from(error: OpenError) -> Self {
        Self::Directory { why: error.to_string() }
    }
}

/// A certificate for a server that is known by host names.
#[derive(Debug)]
pub struct ServerCredential {
    /// DER, the leaf first.
    pub chain: Vec<Vec<u8>>,
    /// DER in PKCS#8.
    pub key: PrivateKey,
    /// It is valid until here.
    pub not_after: SystemTime,
}

/// What was signed.
pub(super) struct Signed {
    /// DER, the leaf first.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl DirectoryCa {
    /// That the directory cannot be used, as the last look has found: it is gone, or a file in it cannot be read.
    pub fn faults(&self) -> Vec<String> {
        self.holder.faults()
    }

    /// The certificates of the trusted roots, in PEM.
    pub fn roots_pem(&self) -> String {
        self.holder.roots(now())
    }

    /// Signs the key of a PEM request for a name that the caller has decided on; whatever the request asks for besides is
    /// left out. `ttl` shortens the certificate's life, and cannot make it longer than this authority's own. Gives the
    /// chain in DER, the leaf first, without the root.
    ///
    /// # Errors
    /// When it is no request that proves possession of its key, the identity is of another trust domain or was revoked, or
    /// nothing can be signed now.
    pub fn sign_request(&self, whom: &SpiffeId, request: &str, ttl: Duration) -> Result<Vec<Vec<u8>>, RequestError> {
        let request = Request {
            whom: Whom::Id(whom),
            csr: request,
            life: ttl,
            node: None,
        };
        self.sign_pem(&request).map(|signed| signed.chain)
    }

    /// A certificate with a new key for a server that is known by these host names or addresses. The root signs it itself:
    /// intermediates vouch for no host.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, the root's key is not here, or nothing can be signed now.
    pub fn issue_to_server(&self, names: &[String]) -> Result<ServerCredential, RequestError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let signed = self.sign_key(&Whom::Hosts(names), &key, self.ttl, now())?;
        Ok(ServerCredential {
            chain: signed.chain,
            key: PrivateKey::from(key.serialize_der()),
            not_after: signed.not_after,
        })
    }

    pub(super) fn sign_pem(&self, request: &Request<'_>) -> Result<Signed, RequestError> {
        let public_key = key_of(request.csr)?;
        self.sign_with(&request.whom, request.node, request.life, now(), |params, issuer| {
            CertificateSigningRequestParams { params, public_key }.signed_by(issuer)
        })
    }

    pub(super) fn sign_key(
        &self,
        whom: &Whom<'_>,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, RequestError> {
        self.sign_with(whom, None, ttl, now, |params, issuer| params.signed_by(key, issuer))
    }

    fn sign_with(
        &self,
        whom: &Whom<'_>,
        node: Option<&str>,
        ttl: Duration,
        now: SystemTime,
        sign: impl FnOnce(rcgen::CertificateParams, &rcgen::Issuer<'static, KeyPair>) -> Result<rcgen::Certificate, rcgen::Error>,
    ) -> Result<Signed, RequestError> {
        let names = self.names(whom)?;
        let number = serial::new()?;
        let ttl = ttl.min(self.ttl);
        let finish = |ends: SystemTime, issuer: &rcgen::Issuer<'static, KeyPair>| {
            let (not_before, not_after) = life(ttl, now, ends).ok_or_else(|| RequestError::Ended {
                path: self.holder.directory().into(),
            })?;
            let mut params = leaf(names, not_before, not_after);
            params.serial_number = Some(number.to_vec().into());
            let certificate = sign(params, issuer).map_err(crypto)?;
            Ok::<_, RequestError>((certificate.der().to_vec(), not_before, not_after))
        };
        let ((der, not_before, not_after), issuer, above) = match whom {
            Whom::Id(id) => {
                let present = self.holder.present(now)?;
                if present.is_barred(id.as_str()) {
                    return Err(RequestError::Barred { name: id.as_str().into() });
                }
                let signer = &present.signer;
                let above = Some(signer.der.to_vec());
                (finish(signer.not_after, &signer.issuer)?, signer.serial.clone(), above)
            }
            Whom::Hosts(_) => {
                let root = self.holder.root(now, "certificate for a host")?;
                (finish(root.root.not_after, &root.issuer)?, root.root.serial.clone(), None)
            }
        };
        let issued = issued::Issued {
            serial: serial::hex(&number),
            name: whom.to_string(),
            expires: seconds(not_after),
            node: node.map(Into::into),
        };
        // A mesh whose disk is full goes on: what is not listed can still be revoked with its issuer.
        if let Err(error) = issued::add(self.holder.directory(), &issuer, &issued) {
            tracing::warn!(%error, serial = issued.serial, name = issued.name, "a certificate is not listed among those issued");
        }
        // Whoever revokes an identity bars it first, and then reads what was issued: one of both sees the other.
        if let Whom::Id(id) = whom
            && self.holder.is_barred(id.as_str())?
        {
            return Err(RequestError::Barred { name: id.as_str().into() });
        }
        Ok(Signed {
            chain: [Some(der), above].into_iter().flatten().collect(),
            not_before,
            not_after,
        })
    }

    fn names(&self, whom: &Whom<'_>) -> Result<Vec<SanType>, RequestError> {
        match whom {
            Whom::Id(id) if id.trust_domain() != &self.trust_domain => Err(RequestError::Foreign {
                of: self.trust_domain.clone(),
            }),
            whom => whom.names(),
        }
    }
}

/// The key of a PEM request, whose possession it proves; whatever else it asks for is left out.
fn key_of(request: &str) -> Result<PublicKey, RequestError> {
    let request = CertificateSigningRequestParams::from_pem(request).map_err(|e| RequestError::Request { why: e.to_string() })?;
    Ok(request.public_key)
}

/// See [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    use std::sync::OnceLock;

    use x509_parser::{extensions::GeneralName, prelude::*};

    static ISSUER: OnceLock<rcgen::Issuer<'static, KeyPair>> = OnceLock::new();
    let Some(public_key) = std::str::from_utf8(data).ok().and_then(|text| key_of(text).ok()) else {
        return;
    };
    let issuer = ISSUER.get_or_init(|| rcgen::Issuer::new(rcgen::CertificateParams::default(), KeyPair::generate().expect("a key")));
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().expect("it is one");
    let (key, names) = (public_key.der_bytes().to_vec(), Whom::Id(&id).names().expect("it is a name"));
    let params = leaf(names, now(), now() + Duration::from_secs(60));
    let signed = CertificateSigningRequestParams { params, public_key }.signed_by(issuer);
    let signed = signed.expect("a key that was read is signed");
    let (_, signed) = X509Certificate::from_der(signed.der()).expect("a certificate");
    let names = signed.subject_alternative_name().expect("one alone").expect("one");
    assert_eq!(names.value.general_names, [GeneralName::URI(id.as_str())]);
    assert!(!signed.is_ca() && *signed.public_key().subject_public_key.data == *key);
}

/// From when to when a certificate of now is valid; `None` if its issuer has ended.
fn life(ttl: Duration, now: SystemTime, issuer_ends: SystemTime) -> Option<(SystemTime, SystemTime)> {
    // Clocks of the same machine differ by nothing, but those of its guests may; never so much of a short life that half of
    // it is over at once.
    let back = (ttl / 10).min(super::SKEW);
    let not_after = end_of(ttl, now).min(issuer_ends);
    (not_after > now).then(|| (whole_seconds(now - back), not_after))
}

pub(super) fn crypto(error: rcgen::Error) -> RequestError {
    RequestError::Crypto { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use ambient_core::Identity;
    use rcgen::{BasicConstraints, CertificateParams, IsCa};
    use x509_parser::{extensions::GeneralName, prelude::*};

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
        let sign = |request: &str| ca.sign_request(whom.spiffe_id(), request, Duration::from_secs(3600));
        let chain = sign(&request).unwrap();
        let (_, signed) = X509Certificate::from_der(&chain[0]).unwrap();
        assert!(!signed.is_ca());
        let names = signed.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert_eq!(names.value.general_names, [GeneralName::URI(whom.as_str())]);
        assert_eq!(*signed.public_key().subject_public_key.data, *key.public_key_raw());
        let life = signed.validity().not_after.timestamp() - seconds(now()).cast_signed();
        assert!((3590..=3601).contains(&life), "{life}");
        // The same key again is another certificate, which can be revoked alone.
        let again = sign(&request).unwrap();
        let (_, again) = X509Certificate::from_der(&again[0]).unwrap();
        assert_ne!(again.raw_serial(), signed.raw_serial());
        // A request that somebody has changed on its way.
        let mut lines: Vec<String> = request.lines().map(String::from).collect();
        let middle = lines.len() / 2;
        lines[middle] = lines[middle].chars().rev().collect();
        let error = sign(&lines.join("\n")).unwrap_err();
        assert!(matches!(error, RequestError::Request { .. }), "{error}");
        for host in ["", "bad name", "istiod:15012", "https://istiod", "[::1]", "a..b"] {
            let error = ca.issue_to_server(&["istiod".into(), host.into()]).unwrap_err();
            assert_eq!(error, RequestError::Name { name: host.into() });
        }
        ca.issue_to_server(&["istiod.istio-system.svc", "*.mesh.example", "::1", "127.0.0.1"].map(String::from))
            .unwrap();
        let foreign = "spiffe://other/ns/shop/sa/cart".parse().unwrap();
        let error = ca.sign_request(&foreign, &request, Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, RequestError::Foreign { .. }), "{error}");
    }
}
