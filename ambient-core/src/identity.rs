//! Who speaks: SPIFFE IDs, and the form of them that a mesh's workloads bear.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A SPIFFE trust domain, such as `cluster.local`: lower case letters, digits, `.`, `-` and `_` ([SPIFFE ID 2.1]).
///
/// [SPIFFE ID 2.1]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#21-trust-domain
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(pub(crate) Arc<str>);

impl TrustDomain {
    /// The name, as it stands in a SPIFFE ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, Istio's default.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: String| TrustDomainError { text: text.into(), why };
        if text.contains("://") || text.bytes().any(|b| b.is_ascii_uppercase()) {
            // The library lowers case and accepts whole IDs; a name that is compared must stand as it is written.
            return Err(refuse("a trust domain is a lower case name without a scheme".into()));
        }
        spiffe::TrustDomain::new(text).map_err(|e| refuse(e.to_string()))?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = TrustDomainError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().into()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a trust domain: {why}")]
pub struct TrustDomainError {
    text: String,
    why: String,
}

/// Any valid SPIFFE ID: `spiffe://TRUST-DOMAIN/PATH`.
///
/// A certificate bears one of these; whether it is a workload of the mesh is asked with [`Identity::try_from`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    /// The trust domain that vouches for it.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path with its leading slash; empty for the ID of a trust domain itself.
    pub fn path(&self) -> &str {
        &self.uri[SCHEME.len() + self.domain.as_str().len()..]
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let refuse = |why: String| SpiffeIdError { text: uri.into(), why };
        let parsed = spiffe::SpiffeId::new(uri).map_err(|e| refuse(e.to_string()))?;
        let domain = TrustDomain::from_str(parsed.trust_domain().as_ref()).map_err(|e| refuse(e.why))?;
        if !uri.starts_with(SCHEME) || !uri[SCHEME.len()..].starts_with(domain.as_str()) {
            return Err(refuse("scheme and trust domain are written in lower case".into()));
        }
        Ok(Self { uri: uri.into(), domain })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A text that is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SPIFFE ID: {why}")]
pub struct SpiffeIdError {
    text: String,
    why: String,
}

/// The identity of a workload: exactly `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, the form that Istio
/// gives to Kubernetes service accounts.
///
/// Cheap to clone and to compare: one shared text and two offsets in it.
///
/// ```
/// use ambient_core::Identity;
/// let id: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
/// assert_eq!((id.namespace(), id.service_account()), ("shop", "cart"));
/// assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
/// # Ok::<(), ambient_core::IdentityError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    id: SpiffeId,
    /// Length of the namespace within the path; the rest follows from the form.
    namespace: usize,
}

impl Identity {
    /// The identity of an account in a namespace.
    ///
    /// # Errors
    /// When a part is empty or holds what a SPIFFE ID cannot.
    pub fn new(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        let uri = format!("{SCHEME}{domain}{NS}{namespace}{SA}{service_account}");
        if [namespace, service_account].iter().any(|part| part.contains('/')) {
            return Err(IdentityError {
                text: uri,
                why: "neither a namespace nor an account has a '/'".into(),
            });
        }
        // It begins with a domain that is one, and whose text is shared.
        match spiffe::SpiffeId::new(&uri) {
            Ok(_) => Ok(Self {
                namespace: namespace.len(),
                id: SpiffeId {
                    uri: uri.into(),
                    domain: domain.clone(),
                },
            }),
            Err(error) => Err(IdentityError {
                why: error.to_string(),
                text: uri,
            }),
        }
    }

    /// The trust domain that vouches for it.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.id.trust_domain()
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        let start = NS.len();
        &self.id.path()[start..start + self.namespace]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.id.path()[NS.len() + self.namespace + SA.len()..]
    }

    /// The ID without its scheme, as an AuthorizationPolicy's `principals` write it.
    pub fn principal(&self) -> &str {
        &self.id.as_str()[SCHEME.len()..]
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        self.id.as_str()
    }

    /// The whole URI, as the text that all clones of it share.
    pub fn shared(&self) -> Arc<str> {
        self.id.uri.clone()
    }

    /// The identity as a general SPIFFE ID.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }
}

impl TryFrom<SpiffeId> for Identity {
    type Error = IdentityError;

    fn try_from(id: SpiffeId) -> Result<Self, Self::Error> {
        let form = || IdentityError {
            text: id.as_str().into(),
            why: "the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT".into(),
        };
        let rest = id.path().strip_prefix(NS).ok_or_else(form)?;
        let namespace = rest.find('/').ok_or_else(form)?;
        let account = rest[namespace..].strip_prefix(SA).ok_or_else(form)?;
        if namespace == 0 || account.is_empty() || account.contains('/') {
            return Err(form());
        }
        Ok(Self { id, namespace })
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        SpiffeId::from_str(uri)
            .map_err(|e| IdentityError { text: e.text, why: e.why })?
            .try_into()
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(uri: String) -> Result<Self, Self::Error> {
        uri.parse()
    }
}

impl From<Identity> for String {
    fn from(id: Identity) -> Self {
        id.as_str().into()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not the identity of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the identity of a workload: {why}")]
pub struct IdentityError {
    text: String,
    why: String,
}

const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_identity() {
        let id: Identity = "spiffe://td.example/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "td.example");
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "cart");
        assert_eq!(Identity::new(id.trust_domain(), "shop", "cart").unwrap(), id);
    }

    #[test]
    fn an_identity_of_parts_is_that_of_its_text_or_none() {
        let domain: TrustDomain = "td.example".parse().unwrap();
        for (namespace, account) in [
            ("shop", "cart"),
            ("s", "c"),
            ("sa", "ns"),
            ("a.b", "_-."),
            ("", "cart"),
            ("shop", ""),
            ("shop", "."),
            ("..", "cart"),
            ("shop", "a b"),
            ("shop", "\u{e9}"),
            ("shop", "cart?"),
            ("shop", "cart/x"),
            ("shop/sa/x", "cart"),
            ("/shop", "cart"),
        ] {
            let made = Identity::new(&domain, namespace, account);
            let read = format!("spiffe://td.example/ns/{namespace}/sa/{account}").parse::<Identity>();
            assert_eq!(made.as_ref().ok(), read.as_ref().ok(), "{namespace:?} {account:?}");
            if let Ok(made) = made {
                assert_eq!((made.namespace(), made.service_account()), (namespace, account));
                assert!(Arc::ptr_eq(&made.trust_domain().0, &domain.0), "its text is shared");
            }
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for uri in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "http://td/ns/a/sa/b",
            "spiffe://td",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/b/ns/a",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td:1/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/ns/../sa/b",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }

    #[test]
    fn a_trust_domain_is_what_is_written() {
        assert!("cluster.local".parse::<TrustDomain>().is_ok());
        for bad in ["", "Cluster.local", "spiffe://td", "a/b", "a b", "a:1"] {
            assert!(bad.parse::<TrustDomain>().is_err(), "{bad}");
        }
    }
}
