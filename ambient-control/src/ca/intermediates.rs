//! Intermediates: what signs for a node, for a day at most.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{Identity, TrustBundles, TrustDomain};
use ambient_tls::{Accepted, Role, Trust, Verifier};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{
    OpenError, SKEW, directory, end_of, leaf,
    roots::{Key, Roots, SigningRoot, domain_uri, moment, pem},
    serial, whole_seconds,
};

/// An authority below the root, with its key.
pub(super) struct Intermediate {
    pub(super) node: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) serial: String,
    /// The name of the root that has issued it.
    pub(super) root: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) issuer: rcgen::Issuer<'static, KeyPair>,
    /// Where it lies.
    pub(super) path: PathBuf,
}

impl Intermediate {
    /// When the next one is to take its place: at half its life.
    pub(super) fn half_life(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2
    }

    /// Its name, as its lists bear it.
    pub(super) fn name(&self) -> String {
        X509Certificate::from_der(&self.der).map_or_else(|_| String::new(), |(_, certificate)| certificate.subject().to_string())
    }
}

/// Makes one for a node, and writes it: certificate and key in one file, so that neither is ever without the other.
pub(super) fn make(
    directory: &Path,
    root: &SigningRoot,
    trust_domain: &TrustDomain,
    node: &str,
    life: Duration,
    now: SystemTime,
) -> Result<Intermediate, OpenError> {
    let crypto = |e: rcgen::Error| OpenError::Crypto { why: e.to_string() };
    check_node(node)?;
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let number = serial::new()?;
    let serial = serial::hex(&number);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    // 64 octets are the most that a common name may have (RFC 5280 A.1); no two have one name.
    let shown: String = node.chars().take(40).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("ambient {shown} {}", &serial[..8]));
    params.serial_number = Some(number.to_vec().into());
    params.subject_alt_names = vec![SanType::URI(domain_uri(trust_domain).as_str().try_into().map_err(crypto)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(no_hosts());
    params.use_authority_key_identifier_extension = true;
    let not_before = whole_seconds(now - SKEW.min(life / 10));
    let not_after = end_of(life.min(LIFE), now).min(root.root.not_after);
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    let certificate = params.signed_by(&pair, &root.issuer).map_err(crypto)?;
    let text = Zeroizing::new(format!(
        "{}{}",
        pem("CERTIFICATE", certificate.der()),
        *Zeroizing::new(pair.serialize_pem())
    ));
    let place = place(directory, node);
    directory::make(&directory.join(INTERMEDIATES))?;
    directory::make(&place)?;
    let path = place.join(format!("{serial}.pem"));
    directory::write(&path, 0o600, text.as_bytes())?;
    let der = certificate.der().clone();
    let issuer = rcgen::Issuer::from_ca_cert_der(&der, pair).map_err(crypto)?;
    Ok(Intermediate {
        node: node.into(),
        root: root.root.name.clone(),
        der,
        serial,
        not_before,
        not_after,
        issuer,
        path,
    })
}

/// What an intermediate may not vouch for: any host, so that with a stolen one nobody can be a control plane or whatever
/// else is known by a host name. That it vouches in its trust domain alone is said by the SPIFFE ID it bears: webpki reads no
/// constraints on URIs, and refuses every chain with them.
fn no_hosts() -> NameConstraints {
    NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(String::new()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    }
}

/// Every intermediate of a node that has not ended, the one that lives longest last.
pub(super) fn of(directory: &Path, node: &str, now: SystemTime) -> Result<Vec<Intermediate>, OpenError> {
    let mut found: Vec<_> = each(directory, node, now)?.into_iter().collect::<Result<_, _>>()?;
    found.sort_by_key(|intermediate| intermediate.not_after);
    Ok(found)
}

/// The same, or why one cannot be used. Those that ended are removed, and so is what whoever was killed while writing one has left: it
/// has a key.
pub(super) fn each(directory: &Path, node: &str, now: SystemTime) -> Result<Vec<Result<Intermediate, OpenError>>, OpenError> {
    check_node(node)?;
    let place = place(directory, node);
    let mut found = Vec::new();
    for name in directory::names(&place)? {
        let path = place.join(&name);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pem") => {}
            // Nobody writes for so long.
            Some("new") if directory::written(&path).is_ok_and(|at| at + DRAFT <= now) => {
                tidy(&path)?;
                continue;
            }
            _ => continue,
        }
        let one = directory::absent(directory::read_secret(&path)).and_then(|pem| {
            let read = pem.map(|pem| read(node, &path, &pem));
            read.transpose().map_err(|why| OpenError::Unusable { path: path.clone(), why })
        });
        match one {
            Ok(None) => {}
            Ok(Some(one)) if one.not_after <= now => tidy(&path)?,
            Ok(Some(one)) => found.push(Ok(one)),
            Err(error) => found.push(Err(error)),
        }
    }
    Ok(found)
}

/// Removes what is of no use; where nothing can be written it is in nobody's way.
fn tidy(path: &Path) -> Result<(), OpenError> {
    match directory::remove(path) {
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        removed => removed,
    }
}

/// An intermediate as it is given to a directory elsewhere: what is before its sections is no part of them (RFC 7468).
pub(super) fn given(pem: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([GIVEN.as_bytes(), pem].concat())
}

/// Whether a directory is one that was given to a node, by an intermediate in it.
pub(super) fn is_given(directory: &Path) -> Result<bool, OpenError> {
    if directory::stamp(&Key::Signs.path(directory)).is_some() {
        return Ok(false);
    }
    for node in nodes(directory)? {
        let place = place(directory, &node);
        let mut files = directory::names(&place)?.into_iter().filter(|name| name.ends_with(".pem"));
        // Of what cannot be read whoever uses it tells.
        if files.any(|name| directory::read_secret(&place.join(name)).is_ok_and(|pem| pem.starts_with(GIVEN.as_bytes()))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The nodes that have intermediates.
pub(super) fn nodes(directory: &Path) -> Result<Vec<String>, OpenError> {
    let names = directory::names(&directory.join(INTERMEDIATES))?;
    Ok(names.into_iter().filter(|name| check_node(name).is_ok()).collect())
}

fn read(node: &str, path: &Path, pem: &[u8]) -> Result<Intermediate, String> {
    let again = "remove it, and a new one is issued where the root's key is";
    let der = CertificateDer::from_pem_slice(pem).map_err(|e| format!("holds no PEM certificate ({e}): {again}"))?;
    let key = std::str::from_utf8(pem).ok().and_then(|text| {
        let begin = text.find("-----BEGIN PRIVATE KEY")?;
        KeyPair::from_pem(&text[begin..]).ok()
    });
    let key = key.ok_or_else(|| format!("holds no PEM private key: {again}"))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| format!("holds no certificate ({e}): {again}"))?;
    if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err(format!("its key is not that of its certificate: {again}"));
    }
    let (serial, root) = (serial::hex(certificate.raw_serial()), certificate.issuer().to_string());
    let (not_before, not_after) = (
        moment(certificate.validity().not_before.timestamp()),
        moment(certificate.validity().not_after.timestamp()),
    );
    let issuer = rcgen::Issuer::from_ca_cert_der(&der, key).map_err(|e| format!("is not a certificate that can issue ({e}): {again}"))?;
    Ok(Intermediate {
        node: node.into(),
        root,
        der,
        serial,
        not_before,
        not_after,
        issuer,
        path: path.into(),
    })
}

/// Whether what it signs is accepted by those who trust the roots: a certificate of it is made and verified, as a peer does.
pub(super) fn check(intermediate: &Intermediate, roots: &Roots, now: SystemTime) -> Result<(), OpenError> {
    let unusable = |why: String| OpenError::Unusable {
        path: intermediate.path.clone(),
        why: format!("what it signs is refused ({why}): remove it, and a new one is issued where the root's key is"),
    };
    let identity = Identity::new(&roots.trust_domain, "ambient", "check").map_err(|e| unusable(e.to_string()))?;
    let crypto = |e: rcgen::Error| OpenError::Crypto { why: e.to_string() };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let name = SanType::URI(identity.as_str().try_into().map_err(crypto)?);
    let signed = leaf(vec![name], intermediate.not_before, intermediate.not_after).signed_by(&key, &intermediate.issuer);
    let chain = [signed.map_err(crypto)?.der().clone(), intermediate.der.clone()];
    let mut bundles = TrustBundles::default();
    for root in &roots.trusted {
        bundles.add(roots.trust_domain.clone(), root.der.to_vec());
    }
    let trust = Arc::new(Trust::new(&Arc::new(ambient_tls::provider()), &bundles));
    let verifier = Verifier::new(&trust, Accepted::any_of([identity])).at(now);
    let verified = verifier.verify(&chain, Role::Client);
    verified.map(drop).map_err(|e| unusable(e.to_string()))
}

/// The name of a node is that of a directory here.
pub(super) fn check_node(node: &str) -> Result<(), OpenError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match !node.is_empty() && node.len() <= 253 && node.chars().all(fits) && !node.starts_with('.') {
        true => Ok(()),
        false => Err(OpenError::Node { node: node.into() }),
    }
}

/// Where those of a node are.
pub(super) fn place(directory: &Path, node: &str) -> PathBuf {
    directory.join(INTERMEDIATES).join(node)
}

/// What an intermediate begins with that was given to its node.
const GIVEN: &str = "Given to its node, with revoked-above.json.\n";
/// How old a file is that was being written and will not be finished.
const DRAFT: Duration = Duration::from_secs(60 * 60);
pub(super) const INTERMEDIATES: &str = "intermediates";
/// The longest that an intermediate lives: a stolen one ends by itself.
pub(super) const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
