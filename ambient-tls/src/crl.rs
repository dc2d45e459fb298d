//! Certificate revocation lists: read once, when they are given.

use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls_pki_types::{
    CertificateRevocationListDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    pem::{self, PemObject},
};
use webpki::{BorrowedCertRevocationList, CertRevocationList};
use x509_parser::{
    asn1_rs::{Any, FromDer},
    time::ASN1Time,
    x509::X509Name,
};

use crate::{pem::pem_in_words, signed::Signed};

/// Reads what somebody gives as revocation lists: one in DER, or any number in PEM.
///
/// For whoever fills [`TrustBundles`](ambient_core::TrustBundles): put [`Crl::der`] of each in, and keep what was there
/// before when there is an error.
///
/// # Errors
/// When there is not at least one, or when anything in it is not a CRL that can be used. Nothing is left out silently,
/// as that would lift revocations.
pub fn read_crls(bytes: &[u8]) -> Result<Vec<Crl>, CrlError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CrlError::Missing);
    }
    let sections = bytes.split(|b| *b == b'\n' || *b == b'\r').filter(|line| line.starts_with(PEM));
    let sections = sections.count();
    if sections == 0 {
        return Ok(vec![Crl::read(bytes).map_err(|why| CrlError::Unreadable { index: 0, why })?]);
    }
    let mut crls = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
        let der = der.map_err(|e: pem::Error| CrlError::Pem { why: pem_in_words(&e) })?;
        let crl = Crl::read(&der).map_err(|why| CrlError::Unreadable { index: crls.len(), why })?;
        crls.push(crl);
    }
    // The PEM reader passes over what has another label.
    if crls.len() != sections {
        return Err(CrlError::Pem {
            why: format!("of {sections} sections {} are X509 CRL; nothing else may be among them", crls.len()),
        });
    }
    Ok(crls)
}

/// A certificate revocation list that can be used (RFC 5280 5: version 2, complete, direct). Its signature is checked
/// when it is asked about a certificate, whose issuer must have made it.
pub struct Crl {
    der: Vec<u8>,
    /// The content of the issuer's name, as certificates are compared by it.
    issuer: Vec<u8>,
    serials: HashSet<Box<[u8]>>,
    signed: Signed,
    name: String,
    next_update: SystemTime,
    /// Which keys were found to have signed it, and which not: a list may be megabytes long.
    signers: Mutex<Vec<(SubjectPublicKeyInfoDer<'static>, bool)>>,
}

impl Crl {
    /// The list in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The name of the authority that says to have made it.
    pub fn issuer(&self) -> &str {
        &self.name
    }

    /// When the next one should be there. A list that is older stays in force, as what it revokes stays revoked; but what
    /// was revoked since is not known, and that is worth an alarm.
    pub fn next_update(&self) -> SystemTime {
        self.next_update
    }

    /// How many certificates it revokes.
    pub fn entries(&self) -> usize {
        self.serials.len()
    }

    pub(crate) fn read(der: &[u8]) -> Result<Self, String> {
        let list = BorrowedCertRevocationList::from_der(der).map_err(|e| e.to_string())?;
        let serials = list.into_iter().map(|entry| entry.map(|entry| entry.serial_number.into()));
        let serials = serials.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let issuer = CertRevocationList::from(list).issuer().to_vec();
        let signed = Signed::read(der).ok_or("it is not valid DER")?;
        let (name, next_update) = name_and_next_update(signed.content(der)).ok_or("its issuer or its dates cannot be read")?;
        Ok(Self {
            der: der.to_vec(),
            issuer,
            serials,
            signed,
            name,
            next_update,
            signers: Mutex::default(),
        })
    }

    /// Whether it says to be of the issuer with this name (its content, without the tag).
    pub(crate) fn is_of(&self, issuer: &[u8]) -> bool {
        self.issuer == issuer
    }

    /// Whether it names a serial number (the content of the INTEGER).
    ///
    /// The scope of a partial list does not matter: a serial number is unique for its issuer.
    pub(crate) fn lists(&self, serial: &[u8]) -> bool {
        self.serials.contains(serial)
    }

    /// Whether a key has signed it.
    pub(crate) fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'static>, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let signers = || self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, signed)) = signers().iter().find(|(known, _)| known == key) {
            return *signed;
        }
        // Not under the lock: it may take milliseconds.
        let signed = self.signed.is_by(&self.der, key, algorithms);
        let mut signers = signers();
        if signers.len() == SIGNERS {
            signers.remove(0);
        }
        signers.push((key.clone(), signed));
        signed
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("issuer", &self.name)
            .field("entries", &self.entries())
            .field("next_update", &self.next_update)
            .finish_non_exhaustive()
    }
}

/// The issuer's name as text, and the date of the next update, of what RFC 5280 5.1 calls the TBSCertList.
fn name_and_next_update(list: &[u8]) -> Option<(String, SystemTime)> {
    let (rest, _version) = Any::from_der(list).ok()?;
    let (rest, _algorithm) = Any::from_der(rest).ok()?;
    let (rest, name) = X509Name::from_der(rest).ok()?;
    let (rest, _this_update) = ASN1Time::from_der(rest).ok()?;
    let (_, next_update) = ASN1Time::from_der(rest).ok()?;
    Some((name.to_string(), moment(next_update.timestamp())))
}

/// Why what was given as revocation lists is refused. What was in force before stays so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// There is none.
    #[error("there is no CRL in it")]
    Missing,
    /// It is not PEM that holds CRLs.
    #[error("the CRLs cannot be read as PEM: {why}")]
    Pem {
        /// What is wrong with it.
        why: String,
    },
    /// One of them cannot be read, or is of a kind that cannot be used: a delta or an indirect CRL, or one of version 1.
    #[error("CRL {} cannot be used: {why}", index + 1)]
    Unreadable {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It bears the name of a root, whose key has not signed it.
    #[error("CRL {} bears the name of the root {issuer}, but no root of that name has signed it", index + 1)]
    Unsigned {
        /// Which one, counted from 0.
        index: usize,
        /// The name it bears.
        issuer: String,
    },
}

/// A moment of X.509; before 1970 is taken for 1970.
pub(crate) fn moment(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.try_into().unwrap_or(0))
}

/// What begins a section of PEM (RFC 7468 2).
const PEM: &[u8] = b"-----BEGIN ";

/// Keys that a list remembers; more than any domain has with one name.
const SIGNERS: usize = 16;

#[cfg(test)]
mod tests;
