//! What proves an identity, and what proves are accepted by: bytes and dates, without a TLS library.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use zeroize::Zeroizing;

use crate::{Identity, TrustDomain};

/// A certificate chain and its private key.
///
/// The key is wiped from memory with the last reference, and never printed. `ambient_tls::read_credential` makes one of PEM.
#[derive(Clone)]
pub struct Credential {
    /// Whom it names.
    pub identity: Identity,
    /// DER certificates, the leaf first, then intermediates; no root.
    pub chain: Vec<Vec<u8>>,
    /// The private key, DER in PKCS#8.
    pub key: Arc<PrivateKey>,
    /// The leaf is valid from here …
    pub not_before: SystemTime,
    /// … until here.
    pub not_after: SystemTime,
}

/// The DER bytes of a private key: wiped from memory when dropped, and never printed.
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// The DER bytes.
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for PrivateKey {
    fn from(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl Credential {
    /// Whether it is valid at a moment.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The middle of its life, when a new one should be asked for.
    pub fn half_life(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO) / 2
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("certificates", &self.chain.len())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The root certificates of each trust domain, and the revocation lists (CRLs) beside them.
///
/// A chain is verified only against the roots of the domain that its leaf names: a root of one domain never vouches
/// for another. A CRL speaks of the certificates of its own domain alone, and is trusted only as far as one of their
/// issuers has signed it. Neither is read here: `ambient_tls::read_roots` and `read_crls` read
/// them for whoever gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles {
    domains: BTreeMap<TrustDomain, Bundle>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bundle {
    roots: Vec<Vec<u8>>,
    crls: Vec<Vec<u8>>,
}

impl TrustBundles {
    /// Adds a DER root of a domain, unless it is there.
    pub fn add(&mut self, domain: TrustDomain, root: Vec<u8>) {
        add(&mut self.domains.entry(domain).or_default().roots, root);
    }

    /// Adds a DER CRL of a domain, unless it is there. It makes no domain trusted.
    pub fn add_crl(&mut self, domain: TrustDomain, crl: Vec<u8>) {
        add(&mut self.domains.entry(domain).or_default().crls, crl);
    }

    /// The DER roots of a domain; none if the domain is not trusted.
    pub fn roots(&self, domain: &TrustDomain) -> &[Vec<u8>] {
        self.domains.get(domain).map_or(&[], |bundle| &bundle.roots)
    }

    /// The DER CRLs of a domain.
    pub fn crls(&self, domain: &TrustDomain) -> &[Vec<u8>] {
        self.domains.get(domain).map_or(&[], |bundle| &bundle.crls)
    }

    /// The trusted domains: those with a root.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains
            .iter()
            .filter(|(_, bundle)| !bundle.roots.is_empty())
            .map(|(domain, _)| domain)
    }
}

fn add(to: &mut Vec<Vec<u8>>, der: Vec<u8>) {
    if !to.contains(&der) {
        to.push(der);
    }
}

/// Where credentials are looked up: the present value, at once.
///
/// A handshake calls this and never waits on a network; keeping the values present is the work of whoever implements
/// it. Values may change at any time: new handshakes use the new ones. While nothing has changed give the same `Arc`:
/// what is read of it is kept by its address.
pub trait Credentials: Send + Sync {
    /// The present credential of an identity; `None` while there is none.
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>>;

    /// The present roots of every trusted domain.
    fn trust(&self) -> Arc<TrustBundles>;
}

/// Credentials and trust that never change: for whoever has them from elsewhere, for as long as they hold.
///
/// ```
/// use std::sync::Arc;
/// use ambient_core::{Credentials, TrustBundles, credential::Fixed};
///
/// let nobodys: Arc<dyn Credentials> = Arc::new(Fixed::new([], TrustBundles::default()));
/// let cart = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
/// assert!(nobodys.credential(&cart).is_none());
/// # Ok::<(), ambient_core::IdentityError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fixed {
    credentials: HashMap<Identity, Arc<Credential>>,
    trust: Arc<TrustBundles>,
}

impl Fixed {
    /// These. Of several credentials of one identity the last counts.
    pub fn new(credentials: impl IntoIterator<Item = Credential>, trust: TrustBundles) -> Self {
        let credentials = credentials.into_iter().map(|one| (one.identity.clone(), Arc::new(one)));
        Self {
            credentials: credentials.collect(),
            trust: Arc::new(trust),
        }
    }
}

impl Credentials for Fixed {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.credentials.get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.trust)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fixed_is_given_by_identity_and_always_the_same() {
        let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let credential = Credential {
            identity: cart.clone(),
            chain: vec![vec![1]],
            key: Arc::new(vec![2].into()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(60),
        };
        let mut trust = TrustBundles::default();
        trust.add(cart.trust_domain().clone(), vec![3]);
        let fixed = Fixed::new([credential], trust.clone());
        let given = fixed.credential(&cart).unwrap();
        assert_eq!(given.identity, cart);
        assert!(
            Arc::ptr_eq(&given, &fixed.credential(&cart).unwrap()),
            "what is read of it is kept by its address"
        );
        assert!(
            fixed
                .credential(&"spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap())
                .is_none()
        );
        assert_eq!(*fixed.trust(), trust);
        assert!(Arc::ptr_eq(&fixed.trust(), &fixed.trust()));
    }
}
