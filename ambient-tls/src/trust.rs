//! What peers are verified against, read once for many handshakes.

use std::{collections::HashMap, fmt, sync::Arc};

use ambient_core::{SpiffeId, TrustBundles, TrustDomain};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor};
use webpki::{anchor_from_trusted_cert, spki_for_anchor};

use crate::{
    Crl, CrlError, Peer, PeerError, Revoked,
    peer::{Leaf, Link, links, read_leaf},
};

/// The roots and the CRLs of each trust domain at one moment, parsed, with the cryptography that checks signatures.
///
/// What the CRLs mean:
///
/// - A peer is revoked when a CRL of its trust domain lists **any certificate that it presents**, the leaf or another,
///   and that certificate's issuer has signed the CRL.
/// - A certificate of which no CRL speaks is not revoked. A CRL of an issuer that nobody knows speaks of nothing.
/// - A CRL stays in force past its next update: what it lists stays revoked. [`Trust::crls`] tells the dates.
/// - A CRL that cannot be used is a [fault](Trust::faults). In its domain the CRLs that were in force before stay so,
///   beside those that can be used; where there were none, **every peer of the domain is refused** until all can be used.
pub struct Trust {
    pub(crate) provider: Arc<CryptoProvider>,
    domains: HashMap<TrustDomain, Domain>,
    faults: Vec<TrustFault>,
}

#[derive(Default)]
pub(crate) struct Domain {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    crls: Vec<Arc<Crl>>,
    /// The last of its CRLs that came without a fault; there may be none.
    sound: Vec<Arc<Crl>>,
    /// Why nobody of it can be accepted.
    closed: Option<CrlError>,
}

impl Trust {
    /// Reads what is given; with CRLs that cannot be used, see [`Trust::faults`].
    pub fn new(provider: &Arc<CryptoProvider>, bundles: &TrustBundles) -> Self {
        Self::read(provider, bundles, |_| None)
    }

    /// Reads what takes the place of this: CRLs that are the same need not be read again, and stay in force where those
    /// that come are faulty.
    #[must_use]
    pub fn renew(&self, bundles: &TrustBundles) -> Self {
        Self::read(&self.provider, bundles, |domain| self.domains.get(domain))
    }

    fn read<'b>(provider: &Arc<CryptoProvider>, bundles: &TrustBundles, before: impl Fn(&TrustDomain) -> Option<&'b Domain>) -> Self {
        let (mut domains, mut faults) = (HashMap::new(), Vec::new());
        for name in bundles.domains() {
            let mut domain = Domain::new(bundles.roots(name));
            let mut fault = |source| {
                faults.push(TrustFault {
                    domain: name.clone(),
                    source,
                });
            };
            domain.take_crls(provider, bundles.crls(name), before(name), &mut fault);
            domains.insert(name.clone(), domain);
        }
        Self {
            provider: Arc::clone(provider),
            domains,
            faults,
        }
    }

    /// What is wrong with the CRLs that were given.
    pub fn faults(&self) -> &[TrustFault] {
        &self.faults
    }

    /// The CRLs in force, and their domains.
    pub fn crls(&self) -> impl Iterator<Item = (&TrustDomain, &Crl)> {
        let domains = self.domains.iter();
        domains.flat_map(|(name, domain)| domain.crls.iter().map(move |crl| (name, &**crl)))
    }

    /// What is remembered of a peer whose chain was **verified** with this, for as long as a connection with it lives.
    ///
    /// # Errors
    /// When the chain cannot be read, so that it was not verified.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, PeerError> {
        let (leaf, rest) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        let Leaf { id, not_after, .. } = read_leaf(leaf)?;
        let links = self.links(leaf, rest, self.domain(&id)?)?;
        Ok(Peer::new(id, not_after, links))
    }

    /// Whether a peer is revoked now, and by which of its certificates. A domain that is no longer trusted revokes nobody.
    pub fn revoked(&self, peer: &Peer) -> Option<Revoked> {
        let domain = self.domains.get(peer.id().trust_domain())?;
        self.revoked_among(domain, peer.links())
    }

    /// The same as the refusal that a handshake would end with.
    ///
    /// # Errors
    /// [`ChainError::Revoked`](crate::ChainError::Revoked), if the peer is revoked now.
    pub fn check_revocation(&self, peer: &Peer) -> Result<(), PeerError> {
        self.revoked(peer)
            .map_or(Ok(()), |revoked| Err(PeerError::revoked(peer.id(), revoked)))
    }

    /// What a CRL might list of a verified chain.
    pub(crate) fn links(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], domain: &Domain) -> Result<Vec<Link>, PeerError> {
        links(leaf, rest, domain, self.provider.signature_verification_algorithms.all)
    }

    pub(crate) fn revoked_among(&self, domain: &Domain, links: &[Link]) -> Option<Revoked> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let revokes = |crl: &Crl, link: &Link| {
            let listed = crl.is_of(&link.issuer) && crl.lists(&link.serial);
            listed && link.keys.iter().any(|key| crl.is_signed_by(key, algorithms))
        };
        links.iter().find_map(|link| {
            let crl = domain.crls.iter().find(|crl| revokes(crl, link))?;
            Some(Revoked::new(&link.serial, crl.issuer()))
        })
    }

    /// What a peer that says to be `id` is verified against.
    pub(crate) fn domain(&self, id: &SpiffeId) -> Result<&Domain, PeerError> {
        let domain = self.domains.get(id.trust_domain());
        let domain = domain.ok_or_else(|| PeerError::UntrustedDomain {
            id: id.clone(),
            domain: id.trust_domain().clone(),
        })?;
        match &domain.closed {
            Some(source) => Err(PeerError::UnusableCrl {
                id: id.clone(),
                source: source.clone(),
            }),
            None => Ok(domain),
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains: Vec<_> = self.domains.keys().collect();
        f.debug_struct("Trust")
            .field("domains", &domains)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl Domain {
    fn new(roots: &[Vec<u8>]) -> Self {
        // A root that cannot be read vouches for nobody; the others still do.
        let anchor = |root: &Vec<u8>| {
            let root = CertificateDer::from(root.as_slice());
            anchor_from_trusted_cert(&root).ok().map(|anchor| anchor.to_owned())
        };
        Self {
            anchors: roots.iter().filter_map(anchor).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn has_crls(&self) -> bool {
        !self.crls.is_empty()
    }

    /// The keys of the roots with this name.
    pub(crate) fn keys_of<'d>(&'d self, name: &'d [u8]) -> impl Iterator<Item = SubjectPublicKeyInfoDer<'static>> + 'd {
        let named = self.anchors.iter().filter(move |anchor| anchor.subject.as_ref() == name);
        named.map(spki_for_anchor)
    }

    fn take_crls(&mut self, provider: &CryptoProvider, given: &[Vec<u8>], before: Option<&Self>, fault: &mut dyn FnMut(CrlError)) {
        let known: &[Arc<Crl>] = before.map_or(&[], |before| &before.crls);
        let mut first = None;
        for (index, der) in given.iter().enumerate() {
            match self.read_crl(provider, index, der, known) {
                Ok(crl) => self.crls.push(crl),
                Err(error) => {
                    first.get_or_insert_with(|| error.clone());
                    fault(error);
                }
            }
        }
        let Some(first) = first else {
            self.sound = self.crls.clone();
            return;
        };
        self.sound = before.map_or_else(Vec::new, |before| before.sound.clone());
        if self.sound.is_empty() {
            self.closed = Some(first);
        }
        let missing = |old: &&Arc<Crl>| !self.crls.iter().any(|crl| crl.der() == old.der());
        let missing: Vec<_> = self.sound.iter().filter(missing).cloned().collect();
        self.crls.extend(missing);
    }

    fn read_crl(&self, provider: &CryptoProvider, index: usize, der: &[u8], known: &[Arc<Crl>]) -> Result<Arc<Crl>, CrlError> {
        let same = known.iter().find(|crl| crl.der() == der).cloned();
        let crl = match same {
            Some(crl) => crl,
            None => Arc::new(Crl::read(der).map_err(|why| CrlError::Unreadable { index, why })?),
        };
        // The issuer of one that bears no root's name is seen when its chain comes.
        let named: Vec<_> = self.anchors.iter().filter(|anchor| crl.is_of(&anchor.subject)).collect();
        let algorithms = provider.signature_verification_algorithms.all;
        if named.is_empty() || named.iter().any(|root| crl.is_signed_by(&spki_for_anchor(root), algorithms)) {
            Ok(crl)
        } else {
            let issuer = crl.issuer().to_owned();
            Err(CrlError::Unsigned { index, issuer })
        }
    }
}

/// A CRL of a trust domain that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("trust domain {domain}: {source}; the CRLs before it stay in force, and without any the domain is refused")]
pub struct TrustFault {
    /// The domain.
    pub domain: TrustDomain,
    /// What is wrong, and with which of its CRLs.
    pub source: CrlError,
}

#[cfg(test)]
mod tests;
