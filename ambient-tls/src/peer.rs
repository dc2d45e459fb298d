//! Whom a certificate names.

use ambient_core::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::PeerError;

/// The SPIFFE ID that a chain's leaf names by its single URI SAN. The chain is **not** verified.
///
/// # Errors
/// When there is no leaf, when it cannot be read, or when it does not bear exactly one URI SAN that is a SPIFFE ID. A
/// name that is not text counts as unreadable, so that it cannot hide beside a good one.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let unreadable = |why: &dyn ToString| PeerError::Unreadable { why: why.to_string() };
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|e| unreadable(&e))?;
    if !rest.is_empty() {
        return Err(unreadable(&"bytes follow the certificate"));
    }
    // Refuses a certificate that bears the extension twice.
    let names = certificate.subject_alternative_name().map_err(|e| unreadable(&e))?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(unreadable(&"a subject alternative name is not text")),
            _ => {}
        }
    }
    let [uri] = uris[..] else {
        return Err(PeerError::UriNames { count: uris.len() });
    };
    uri.parse()
        .map_err(|e: ambient_core::SpiffeIdError| PeerError::NotSpiffe { why: e.to_string() })
}
