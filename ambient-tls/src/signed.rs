//! What certificates and CRLs have in common: something signed, the algorithm, and the signature.

use std::ops::Range;

use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use x509_parser::asn1_rs::{Any, FromDer};

/// Where in its DER the parts of a signed thing are.
pub(crate) struct Signed {
    /// What is signed, with its tag …
    whole: Range<usize>,
    /// … and without.
    content: Range<usize>,
    algorithm: Range<usize>,
    signature: Range<usize>,
}

impl Signed {
    /// `None` if it is not built that way (RFC 5280 4.1 and 5.1).
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (after, outer) = Any::from_der(der).ok()?;
        if !after.is_empty() {
            return None;
        }
        let (after_content, content) = Any::from_der(outer.data).ok()?;
        let (after_algorithm, algorithm) = Any::from_der(after_content).ok()?;
        let (after_signature, signature) = Any::from_der(after_algorithm).ok()?;
        // The first octet counts the bits of the last one that do not belong to it.
        let (0, signature) = signature.data.split_first()? else {
            return None;
        };
        if !after_signature.is_empty() {
            return None;
        }
        let end = |rest: &[u8]| der.len() - rest.len();
        Some(Self {
            whole: end(outer.data)..end(after_content),
            content: end(after_content) - content.data.len()..end(after_content),
            algorithm: end(after_algorithm) - algorithm.data.len()..end(after_algorithm),
            signature: end(signature)..der.len(),
        })
    }

    /// What is signed, without its tag.
    pub(crate) fn content<'d>(&self, der: &'d [u8]) -> &'d [u8] {
        &der[self.content.clone()]
    }

    /// Whether a key has signed it. `der` is what it was read from.
    pub(crate) fn is_by(&self, der: &[u8], key: &SubjectPublicKeyInfoDer<'_>, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else {
            return false;
        };
        let (whole, algorithm, signature) = (&der[self.whole.clone()], &der[self.algorithm.clone()], &der[self.signature.clone()]);
        // Several: the same algorithm is there once for each kind of key.
        algorithms
            .iter()
            .filter(|candidate| candidate.signature_alg_id().as_ref() == algorithm)
            .any(|algorithm| key.verify_signature(*algorithm, whole, signature).is_ok())
    }
}
