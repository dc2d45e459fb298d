//! What an agent gives, read strictly: an X.509-SVID, and the roots of a trust domain. Pure.

use std::{sync::Arc, time::SystemTime};

use ambient_core::{Credential, Identity, PrivateKey, SpiffeId, TrustDomain};
use ambient_tls::ChainError;
use spiffe::{X509Bundle, X509Svid};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

/// An X.509-SVID as it comes.
pub(super) struct Raw {
    /// Whom the agent says that it names; empty where it does not say.
    pub(super) named: String,
    /// DER certificates one after the other, the leaf first.
    pub(super) chain: Vec<u8>,
    /// DER in PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
}

/// An X.509-SVID that keeps the standard's rules. Nothing is said yet of who vouches for it, nor of whose its key is.
#[derive(Clone)]
pub(super) struct Svid {
    pub(super) id: SpiffeId,
    chain: Vec<Vec<u8>>,
    key: Arc<PrivateKey>,
    not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// An X.509-SVID that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the SVID of {named:?} cannot be used: {why}")]
pub(super) struct SvidError {
    /// Whom the agent says that it names; empty where it does not say.
    pub(super) named: String,
    why: String,
}

impl SvidError {
    /// Whether it may be this identity's: one that does not say whose it is may be.
    pub(super) fn may_be_of(&self, own: &str) -> bool {
        self.named.is_empty() || self.named == own
    }
}

impl Raw {
    /// Reads it by the X.509-SVID standard.
    pub(super) fn read(self) -> Result<Svid, SvidError> {
        let named = self.named.clone();
        self.read_or_say().map_err(|why| SvidError { named, why })
    }

    fn read_or_say(self) -> Result<Svid, String> {
        if self.chain.len() > LONGEST_CHAIN {
            return Err(format!(
                "its chain is of {} bytes, and {LONGEST_CHAIN} are read at most",
                self.chain.len()
            ));
        }
        let svid = X509Svid::parse_from_der(&self.chain, &self.key).map_err(|e| whole(&e))?;
        let id: SpiffeId = svid.spiffe_id().to_string().parse().map_err(|e| format!("{e}"))?;
        if !self.named.is_empty() && self.named != id.as_str() {
            return Err(format!("its certificate names {id}"));
        }
        let (_, leaf) = X509Certificate::from_der(svid.leaf().as_bytes()).map_err(|e| e.to_string())?;
        Ok(Svid {
            id,
            chain: svid.cert_chain().iter().map(|c| c.as_bytes().to_vec()).collect(),
            key: Arc::new(svid.private_key().as_bytes().to_vec().into()),
            not_before: moment(leaf.validity().not_before.timestamp()),
            not_after: moment(leaf.validity().not_after.timestamp()),
        })
    }
}

impl Svid {
    /// The same as the credential of an identity, which must be the one that it names.
    pub(super) fn credential(&self, identity: &Identity) -> Credential {
        debug_assert_eq!(identity.spiffe_id(), &self.id);
        Credential {
            identity: identity.clone(),
            chain: self.chain.clone(),
            key: self.key.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }

    /// Why it does not count at a moment, if it does not.
    pub(super) fn out_of_date(&self, now: SystemTime) -> Option<String> {
        if let Ok(early) = self.not_before.duration_since(now)
            && !early.is_zero()
        {
            let why = ChainError::NotYetValid {
                begins: self.not_before.into(),
                now: now.into(),
            };
            return Some(format!("{why}, this one and SPIRE's"));
        }
        let why = ChainError::Expired {
            ended: self.not_after.into(),
            now: now.into(),
        };
        (self.not_after <= now).then(|| format!("{why}, this one and SPIRE's"))
    }
}

/// The roots in a bundle: DER certificates one after the other.
///
/// # Errors
/// When it holds none, more than are kept, or something else.
pub(super) fn roots(domain: &TrustDomain, bundle: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bundle.len() > LONGEST_BUNDLE {
        return Err(format!("it is of {} bytes, and {LONGEST_BUNDLE} are read at most", bundle.len()));
    }
    let name = spiffe::TrustDomain::new(domain.as_str()).map_err(|e| e.to_string())?;
    let bundle = X509Bundle::parse_from_der(name, bundle).map_err(|e| whole(&e))?;
    let mut roots: Vec<Vec<u8>> = Vec::new();
    for root in bundle.authorities() {
        if !roots.iter().any(|known| known == root.as_bytes()) {
            roots.push(root.as_bytes().to_vec());
        }
    }
    match roots.len() {
        0 => Err("it holds no certificate".into()),
        count if count > MOST_ROOTS => Err(format!("it holds {count} roots, and {MOST_ROOTS} are kept at most")),
        _ => Ok(roots),
    }
}

/// The trust domain that a bundle is told of: by its name, or by its SPIFFE ID as SPIRE does.
pub(super) fn domain(told: &str) -> Result<TrustDomain, String> {
    let name = told.strip_prefix("spiffe://").unwrap_or(told);
    name.parse().map_err(|e: ambient_core::TrustDomainError| e.to_string())
}

/// An error with all that it comes from.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let cause = inner.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = inner.source();
    }
    text
}

/// A moment of X.509; before 1970 is taken for 1970.
pub(super) fn moment(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(timestamp.try_into().unwrap_or(0))
}

/// A leaf and a few intermediates, with the largest keys.
const LONGEST_CHAIN: usize = 256 * 1024;
const LONGEST_BUNDLE: usize = 1024 * 1024;
/// Roots of one trust domain: one, or a few while they change.
const MOST_ROOTS: usize = 64;
