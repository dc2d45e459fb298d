//! A certificate authority for tests: good credentials, and ones broken in one way each.

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Identity, TrustBundles, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

/// A CA of one trust domain, with a root of its own, and an intermediate where asked for. ECDSA P-256 throughout.
///
/// ```
/// use ambient_testkit::ca::Ca;
///
/// let ca = Ca::new(&"cluster.local".parse()?)?;
/// let credential = ca.issue(&"spiffe://cluster.local/ns/shop/sa/cart".parse()?)?;
/// assert_eq!(credential.chain.len(), 1);
/// assert_eq!(ca.trust().roots(&"cluster.local".parse()?), [ca.root_der().to_vec()]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ca {
    domain: TrustDomain,
    now: SystemTime,
    root: Issuer<'static, KeyPair>,
    root_der: Vec<u8>,
    root_pem: String,
    intermediate: Option<(Issuer<'static, KeyPair>, Vec<u8>)>,
}

/// How a leaf differs from a good one.
#[derive(Debug, Clone, Default)]
pub struct Leaf {
    /// When it begins to be valid; a minute before the CA's present unless said.
    pub not_before: Option<SystemTime>,
    /// When it ceases to be valid; an hour after the CA's present unless said.
    pub not_after: Option<SystemTime>,
    /// URI names in place of the identity's own: none, several, or texts that are no SPIFFE ID.
    pub uris: Option<Vec<String>>,
    /// DNS names beside the URI.
    pub dns: Vec<String>,
    /// Extended key usages in place of both of server and client authentication.
    pub usages: Option<Vec<Usage>>,
    /// Its serial number; random unless said.
    pub serial: Option<u64>,
    /// It says that it is a CA itself.
    pub is_ca: bool,
}

/// What a leaf may be used for (RFC 5280, 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// As a TLS server.
    Server,
    /// As a TLS client.
    Client,
    /// To sign code: for TLS nothing.
    CodeSigning,
}

impl Leaf {
    /// One that ceased to be valid an hour before `now`.
    pub fn expired(now: SystemTime) -> Self {
        Self {
            not_before: Some(now - 2 * HOUR),
            not_after: Some(now - HOUR),
            ..Self::default()
        }
    }

    /// One that becomes valid an hour after `now`.
    pub fn early(now: SystemTime) -> Self {
        Self {
            not_before: Some(now + HOUR),
            not_after: Some(now + 2 * HOUR),
            ..Self::default()
        }
    }

    /// One with two URI names, which no SVID may have (X.509-SVID, 2).
    pub fn with_two_names(a: &Identity, b: &Identity) -> Self {
        Self {
            uris: Some(vec![a.as_str().into(), b.as_str().into()]),
            ..Self::default()
        }
    }

    /// One that no TLS peer may use.
    pub fn for_code_signing() -> Self {
        Self {
            usages: Some(vec![Usage::CodeSigning]),
            ..Self::default()
        }
    }
}

impl Ca {
    /// A CA whose present is the machine's, with the root alone.
    ///
    /// # Errors
    /// When the crypto library fails.
    #[expect(clippy::disallowed_methods, reason = "certificates for tests against the real clock")]
    pub fn new(domain: &TrustDomain) -> Result<Self, CaError> {
        Self::at(domain, SystemTime::now())
    }

    /// A CA whose present is `now`. Its root is valid for ten years around that.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn at(domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let wrap = CaError::of("the root");
        let (params, key) = (ca_params(domain, "root", now).map_err(wrap)?, KeyPair::generate().map_err(wrap)?);
        let certificate = params.self_signed(&key).map_err(wrap)?;
        Ok(Self {
            domain: domain.clone(),
            now,
            root_der: certificate.der().to_vec(),
            root_pem: certificate.pem(),
            root: Issuer::new(params, key),
            intermediate: None,
        })
    }

    /// Issues from an intermediate from now on: chains have two certificates.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn with_intermediate(mut self) -> Result<Self, CaError> {
        let wrap = CaError::of("the intermediate");
        let (params, key) = (
            ca_params(&self.domain, "intermediate", self.now).map_err(wrap)?,
            KeyPair::generate().map_err(wrap)?,
        );
        let certificate = params.signed_by(&key, &self.root).map_err(wrap)?;
        self.intermediate = Some((Issuer::new(params, key), certificate.der().to_vec()));
        Ok(self)
    }

    /// A good credential.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn issue(&self, identity: &Identity) -> Result<Credential, CaError> {
        self.issue_as(identity, &Leaf::default())
    }

    /// A credential whose certificate differs from a good one. It still says that it is `identity`'s.
    ///
    /// # Errors
    /// When the crypto library fails, or a name cannot stand in a certificate.
    pub fn issue_as(&self, identity: &Identity, leaf: &Leaf) -> Result<Credential, CaError> {
        let wrap = CaError::of("a leaf");
        let not_before = leaf.not_before.unwrap_or(self.now - MINUTE);
        let not_after = leaf.not_after.unwrap_or(self.now + HOUR);
        let mut params = CertificateParams::default();
        // An SVID is named by its URI alone; a subject is not needed.
        params.distinguished_name = rcgen::DistinguishedName::new();
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        params.use_authority_key_identifier_extension = true;
        params.is_ca = if leaf.is_ca {
            IsCa::Ca(BasicConstraints::Unconstrained)
        } else {
            IsCa::ExplicitNoCa
        };
        params.serial_number = leaf.serial.map(SerialNumber::from);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf
            .usages
            .as_deref()
            .unwrap_or(&[Usage::Server, Usage::Client])
            .iter()
            .map(|usage| (*usage).into())
            .collect();
        let own = [identity.as_str().to_owned()];
        for uri in leaf.uris.as_deref().unwrap_or(&own) {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(wrap)?));
        }
        for name in &leaf.dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().map_err(wrap)?));
        }
        let key = KeyPair::generate().map_err(wrap)?;
        let (issuer, above) = self
            .intermediate
            .as_ref()
            .map_or((&self.root, None), |(issuer, der)| (issuer, Some(der)));
        let certificate = params.signed_by(&key, issuer).map_err(wrap)?;
        let mut chain = vec![certificate.der().to_vec()];
        chain.extend(above.cloned());
        Ok(Credential {
            identity: identity.clone(),
            chain,
            key: Arc::new(key.serialize_der().into()),
            not_before,
            not_after,
        })
    }

    /// A list of revoked leaves by their serial numbers, DER, signed by whoever issues them now; valid for an hour.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn revoke(&self, serials: &[u64]) -> Result<Vec<u8>, CaError> {
        let wrap = CaError::of("a revocation list");
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: self.now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: (self.now - MINUTE).into(),
            next_update: (self.now + HOUR).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = self.intermediate.as_ref().map_or(&self.root, |(issuer, _)| issuer);
        Ok(params.signed_by(issuer).map_err(wrap)?.der().to_vec())
    }

    /// The bundle that trusts this CA for its domain, and nothing else.
    pub fn trust(&self) -> TrustBundles {
        let mut trust = TrustBundles::default();
        trust.add(self.domain.clone(), self.root_der.clone());
        trust
    }

    /// Its trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root certificate, DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }
}

impl From<Usage> for ExtendedKeyUsagePurpose {
    fn from(usage: Usage) -> Self {
        match usage {
            Usage::Server => Self::ServerAuth,
            Usage::Client => Self::ClientAuth,
            Usage::CodeSigning => Self::CodeSigning,
        }
    }
}

/// A certificate that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making {what} failed: {source}")]
pub struct CaError {
    what: &'static str,
    source: rcgen::Error,
}

impl CaError {
    fn of(what: &'static str) -> impl Fn(rcgen::Error) -> Self + Copy {
        move |source| Self { what, source }
    }
}

fn ca_params(domain: &TrustDomain, name: &str, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name} of {domain}"));
    // The ID of a trust domain itself: a signing certificate's (X.509-SVID, 2).
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = ((now - 5 * YEAR).into(), (now + 5 * YEAR).into());
    Ok(params)
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
