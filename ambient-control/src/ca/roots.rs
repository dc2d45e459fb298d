//! The roots of an authority: those that are trusted, the one that signs, and how one takes the place of another.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::{
    LAST, OpenError, SKEW,
    directory::{self, absent},
    end_of, serial, whole_seconds,
};

/// The roots of a directory, of which at least one is trusted.
pub(super) struct Roots {
    directory: PathBuf,
    pub(super) trust_domain: TrustDomain,
    pub(super) trusted: Vec<Root>,
}

/// A root's certificate.
#[derive(Clone)]
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    pub(super) serial: String,
    pub(super) name: String,
    /// The key that it is of.
    public_key: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// A root with its key.
pub(super) struct SigningRoot {
    pub(super) root: Root,
    pub(super) issuer: rcgen::Issuer<'static, KeyPair>,
}

/// Which key of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// That of the root which signs.
    Signs,
    /// That of a root which is trusted, and will sign.
    Next,
    /// That of a root which has signed, and is still trusted.
    Old,
}

impl Key {
    pub(super) fn path(self, directory: &Path) -> PathBuf {
        directory.join(match self {
            Self::Signs => KEY,
            Self::Next => "next-key.pem",
            Self::Old => "old-key.pem",
        })
    }
}

impl Roots {
    /// Reads them; `None` if there are none, so that the directory is none of an authority yet.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, OpenError> {
        let path = directory.join(CERTIFICATE);
        let Some(pem) = directory::read_if_there(&path)? else {
            return Ok(None);
        };
        let unusable = |why: String| OpenError::Unusable { path: path.clone(), why };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.map_err(|e| unusable(format!("is not a PEM certificate ({e}); {AGAIN}")))?;
        let (mut trusted, mut domains) = (Vec::new(), Vec::new());
        for der in certificates {
            let (root, domain) = Root::read(der).map_err(unusable)?;
            trusted.push(root);
            domains.push(domain);
        }
        let Some(trust_domain) = domains.first().cloned() else {
            return Err(unusable(format!("is not a PEM certificate: it holds none; {AGAIN}")));
        };
        if domains.iter().any(|domain| *domain != trust_domain) {
            return Err(unusable(format!("holds roots of several trust domains; {AGAIN}")));
        }
        Ok(Some(Self {
            directory: directory.into(),
            trust_domain,
            trusted,
        }))
    }

    /// Makes the first root.
    pub(super) fn begin(directory: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), OpenError> {
        // The certificate is written last: a key without one has never signed anything, so a start that was cut short
        // begins again.
        let (pair, pem) = make(trust_domain, now)?;
        directory::write(&Key::Signs.path(directory), 0o600, pair.as_bytes())?;
        directory::write(&directory.join(CERTIFICATE), 0o644, pem.as_bytes())
    }

    /// Refuses those of another trust domain.
    pub(super) fn of(self, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        match self.trust_domain == *trust_domain {
            true => Ok(self),
            false => Err(OpenError::Unusable {
                path: self.directory.join(CERTIFICATE),
                why: format!(
                    "is not a root of the trust domain {trust_domain}, but of {}: choose another directory, or the trust domain that \
                     it was made for",
                    self.trust_domain
                ),
            }),
        }
    }

    /// The root of a key; `None` if there is no such key here.
    pub(super) fn root(&self, key: Key) -> Result<Option<SigningRoot>, OpenError> {
        let path = key.path(&self.directory);
        let Some(pem) = absent(directory::read_secret(&path))? else {
            return Ok(None);
        };
        let unusable = |path: &Path, why: &str| OpenError::Unusable {
            path: path.into(),
            why: format!("{why}; {AGAIN}"),
        };
        let pair = std::str::from_utf8(&pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let pair = pair.ok_or_else(|| unusable(&path, "is not a PEM private key"))?;
        let root = self.trusted.iter().find(|root| root.public_key == pair.public_key_raw());
        let certificate = self.directory.join(CERTIFICATE);
        let Some(root) = root.cloned() else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A change of roots that was cut short: the certificate of the one that is to come is written after its key,
            // and that of the old one is removed before it.
            if key != Key::Signs {
                return Ok(None);
            }
            return Err(unusable(&certificate, &format!("is not the certificate of the key in {name}")));
        };
        let issuer = rcgen::Issuer::from_ca_cert_der(&root.der, pair)
            .map_err(|e| unusable(&certificate, &format!("is not a certificate that can issue ({e})")))?;
        Ok(Some(SigningRoot { root, issuer }))
    }

    /// The root that signs, if it is valid now; `None` if its key is kept elsewhere.
    pub(super) fn signing(&self, now: SystemTime) -> Result<Option<SigningRoot>, OpenError> {
        let Some(signing) = self.root(Key::Signs)? else { return Ok(None) };
        let refuse = |why: String| {
            Err(OpenError::Unusable {
                path: self.directory.join(CERTIFICATE),
                why,
            })
        };
        if now < signing.root.not_before {
            return refuse("is not valid yet: look at the machine's clock".into());
        }
        if signing.root.not_after <= now {
            return refuse(format!("is no longer valid; {AGAIN}"));
        }
        Ok(Some(signing))
    }

    /// Makes a root that is trusted beside the others and does not sign.
    pub(super) fn add(&self, now: SystemTime) -> Result<Root, OpenError> {
        let (pair, pem) = make(&self.trust_domain, now)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| OpenError::Crypto { why: e.to_string() })?;
        let (root, _) = Root::read(der).map_err(|why| OpenError::Crypto { why })?;
        let key = Key::Next.path(&self.directory);
        directory::write(&key, 0o600, pair.as_bytes())?;
        directory::date(&key, now)?;
        self.write([&self.trusted[..], std::slice::from_ref(&root)].concat().iter())?;
        Ok(root)
    }

    /// Makes the next root the one that signs.
    pub(super) fn use_next(&self, now: SystemTime) -> Result<(), OpenError> {
        let [signs, next, old] = [Key::Signs, Key::Next, Key::Old].map(|key| key.path(&self.directory));
        let present = directory::read_secret(&signs)?;
        directory::write(&old, 0o600, &present)?;
        directory::date(&old, now)?;
        std::fs::rename(&next, &signs).map_err(directory::io_error("rename", &next))
    }

    /// Trusts only the root that signs.
    pub(super) fn withdraw_old(&self) -> Result<Vec<Root>, OpenError> {
        let signs = self.root(Key::Signs)?.map(|signing| signing.root.serial);
        let (stay, go): (Vec<_>, Vec<_>) = self.trusted.iter().cloned().partition(|root| Some(&root.serial) == signs.as_ref());
        self.write(stay.iter())?;
        directory::remove(&Key::Old.path(&self.directory))?;
        Ok(go)
    }

    fn write<'a>(&self, roots: impl Iterator<Item = &'a Root>) -> Result<(), OpenError> {
        let text: String = roots.map(|root| pem("CERTIFICATE", &root.der)).collect();
        directory::write(&self.directory.join(CERTIFICATE), 0o644, text.as_bytes())
    }

    /// The names of those that are trusted.
    pub(super) fn names(&self) -> Vec<String> {
        self.trusted.iter().map(|root| root.name.clone()).collect()
    }

    /// The roots in PEM, one after the other.
    pub(super) fn pem(&self) -> String {
        self.trusted.iter().map(|root| pem("CERTIFICATE", &root.der)).collect()
    }
}

impl Root {
    fn read(der: CertificateDer<'static>) -> Result<(Self, TrustDomain), String> {
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| format!("is not a certificate ({e}); {AGAIN}"))?;
        if !certificate.is_ca() {
            return Err(format!("is not the certificate of an authority; {AGAIN}"));
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let domain = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .find_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.parse().ok(),
                _ => None,
            });
        let domain = domain.ok_or_else(|| format!("is not the root of a trust domain: it names none as spiffe://DOMAIN; {AGAIN}"))?;
        let root = Self {
            serial: serial::hex(certificate.raw_serial()),
            name: certificate.subject().to_string(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            not_before: moment(certificate.validity().not_before.timestamp()),
            not_after: moment(certificate.validity().not_after.timestamp()),
            der: der.clone(),
        };
        Ok((root, domain))
    }
}

/// A key and its root certificate, both in PEM.
fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<(Zeroizing<String>, String), OpenError> {
    let age = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if age < EARLIEST || age + ROOT_LIFE > Duration::from_secs(LAST) {
        return Err(OpenError::Clock { days: age.as_secs() / DAY });
    }
    let crypto = |e: rcgen::Error| OpenError::Crypto { why: e.to_string() };
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let serial = serial::new()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    // No two roots have one name: CRLs and chains are told apart by it.
    let name = format!("ambient root {}", &serial::hex(&serial)[..8]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial.to_vec().into());
    params.subject_alt_names = vec![SanType::URI(domain_uri(trust_domain).as_str().try_into().map_err(crypto)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = whole_seconds(now - SKEW).into();
    params.not_after = end_of(ROOT_LIFE, now).into();
    let root = params.self_signed(&pair).map_err(crypto)?;
    Ok((Zeroizing::new(pair.serialize_pem()), root.pem()))
}

/// The SPIFFE ID of a trust domain itself, which its authorities bear.
pub(super) fn domain_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

/// DER as a section of PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(label, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

/// A moment of X.509; before 1970 is taken for 1970.
pub(super) fn moment(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

pub(super) const CERTIFICATE: &str = "root.pem";
pub(super) const KEY: &str = "root-key.pem";
/// The first of January 2026: before this was written.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
const DAY: u64 = 24 * 60 * 60;
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const AGAIN: &str = "put the right one back, or remove all that is in the directory while no node runs for a new authority";
