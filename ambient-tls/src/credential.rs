//! A credential, and the roots of a domain, out of PEM.

use std::sync::Arc;

use ambient_core::{Credential, Identity};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use x509_parser::asn1_rs::{Any, FromDer};

use crate::{
    ConfigError, PeerError,
    config::certified_key,
    peer::{Leaf, read_leaf},
    pem::pem_in_words,
};

/// Reads a certificate chain, the leaf first, and its private key (PKCS#8, or SEC1 or PKCS#1 as OpenSSL writes them). Whose
/// they are and how long they hold is what the leaf says. Sections of PEM of other kinds are passed over, so both may be in one file.
///
/// # Errors
/// When either cannot be read, when the leaf does not name a workload (see [`Identity`]), or when the key is not that of the leaf, or
/// of a kind that the provider does not know.
pub fn read_credential(provider: &CryptoProvider, chain: &[u8], key: &[u8]) -> Result<Credential, CredentialError> {
    let chain = certificates(chain).map_err(|why| CredentialError::Chain { why })?;
    let unfit = |why: &dyn ToString| CredentialError::Chain { why: why.to_string() };
    let Leaf {
        id,
        not_before,
        not_after,
        key: public,
    } = read_leaf(&chain[0]).map_err(|e| unfit(&own_leaf(&e)))?;
    let identity = Identity::try_from(id).map_err(|e| unfit(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| CredentialError::Key { why: pem_in_words(&e) })?;
    let key = match &key {
        PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
        PrivateKeyDer::Sec1(key) => pkcs8(public, key.secret_sec1_der()),
        PrivateKeyDer::Pkcs1(key) => pkcs8(public, key.secret_pkcs1_der()),
        _ => {
            let why = "it is neither PKCS#8 nor SEC1 nor PKCS#1".into();
            return Err(CredentialError::Key { why });
        }
    };
    let credential = Credential {
        identity,
        chain: chain.iter().map(|der| der.to_vec()).collect(),
        key: Arc::new(key.into()),
        not_before,
        not_after,
    };
    certified_key(provider, &credential)?;
    Ok(credential)
}

/// Reads the roots of a trust domain for [`TrustBundles::add`](ambient_core::TrustBundles::add): DER, in the order in which they stand.
///
/// # Errors
/// When there is not at least one, or one of them cannot vouch for anybody. None is left out silently: who is missing could be the one
/// that counts.
pub fn read_roots(pem: &[u8]) -> Result<Vec<Vec<u8>>, RootsError> {
    let roots = certificates(pem).map_err(|why| RootsError::Pem { why })?;
    for (index, root) in roots.iter().enumerate() {
        let unreadable = |why: webpki::Error| RootsError::Unreadable {
            index,
            why: why.to_string(),
        };
        webpki::anchor_from_trusted_cert(root).map_err(unreadable)?;
    }
    Ok(roots.iter().map(|root| root.to_vec()).collect())
}

/// At least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(none) if none.is_empty() => Err("it holds no certificate".into()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("it is no PEM: {}", pem_in_words(&error))),
    }
}

/// What is wrong with a leaf, said of our own.
pub(crate) fn own_leaf(error: &PeerError) -> String {
    match error {
        PeerError::Unreadable { why } => format!("its leaf cannot be read: {why}"),
        PeerError::UriNames { count } => format!("its leaf bears {count} URI names; an X.509-SVID bears exactly one"),
        PeerError::NotSpiffe { why } => format!("its leaf does not name a SPIFFE ID: {why}"),
        PeerError::NoCertificate => "it holds no certificate".into(),
        other => other.to_string(),
    }
}

/// A bare private key as PKCS#8 has it (RFC 5958 2, version 1). Of which kind it is does not stand in all of them: of that of the
/// public key, or they do not belong together.
fn pkcs8(public: &[u8], key: &[u8]) -> Vec<u8> {
    const VERSION: [u8; 3] = [2, 1, 0];
    let algorithm = first_in(public).unwrap_or_default();
    let octets = head(OCTET_STRING, key.len());
    let content = VERSION.len() + algorithm.len() + octets.len() + key.len();
    [&head(SEQUENCE, content)[..], &VERSION, algorithm, &octets, key].concat()
}

/// The first value within a value of DER.
fn first_in(der: &[u8]) -> Option<&[u8]> {
    let (_, outer) = Any::from_der(der).ok()?;
    let (rest, _) = Any::from_der(outer.data).ok()?;
    outer.data.get(..outer.data.len() - rest.len())
}

/// The tag and the length of a value in DER.
fn head(tag: u8, length: usize) -> Vec<u8> {
    let bytes = length.to_be_bytes();
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
    let significant = &bytes[first..];
    match significant {
        [short] if *short < 0x80 => vec![tag, *short],
        long => [&[tag, 0x80 | long.len() as u8][..], long].concat(),
    }
}

/// Why PEM became no credential.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The chain cannot be read, or is nobody's.
    #[error("the certificate chain cannot be used: {why}")]
    Chain {
        /// What is wrong with it.
        why: String,
    },
    /// The key cannot be read.
    #[error("the private key cannot be used: {why}")]
    Key {
        /// What is wrong with it.
        why: String,
    },
    /// They do not belong together, or the provider does not know their kind.
    #[error(transparent)]
    Unfit(#[from] ConfigError),
}

/// Why PEM became no roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// It is not PEM that holds certificates.
    #[error("the roots cannot be read: {why}")]
    Pem {
        /// What is wrong with it.
        why: String,
    },
    /// One of them can vouch for nobody.
    #[error("root {} cannot be used: {why}", index + 1)]
    Unreadable {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
}

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;

#[cfg(test)]
mod tests;
