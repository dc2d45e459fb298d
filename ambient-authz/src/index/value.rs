//! What the dictionaries hold.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_core::{Identity, PolicyKey};
use ipnet::IpNet;

use super::dictionary::{Rolling, Value, mix};
use crate::{ServiceAccount, StringMatch, policy::Unreadable};

/// What a rule asks of a peer's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Text(TextField, StringMatch),
    Account(ServiceAccount),
}

/// A part of an identity that is compared as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextField {
    Namespace,
    Principal,
    TrustDomain,
}

impl TextField {
    pub(crate) const ALL: [Self; 3] = [Self::Namespace, Self::Principal, Self::TrustDomain];

    /// What is compared: for a peer without an identity the empty text where the field is its namespace, else nothing.
    pub(crate) fn of(self, peer: Option<&Identity>) -> Option<&str> {
        match self {
            Self::Namespace => Some(peer.map_or("", Identity::namespace)),
            Self::Principal => peer.map(Identity::principal),
            Self::TrustDomain => peer.map(|peer| peer.trust_domain().as_str()),
        }
    }
}

impl Value for Name {
    fn hash(&self) -> u64 {
        match self {
            Self::Text(field, StringMatch::Exact(text)) => exact(*field, Rolling::new().bytes(text.bytes())),
            Self::Text(field, StringMatch::Prefix(text)) => prefix(*field, Rolling::new().bytes(text.bytes())),
            Self::Text(field, StringMatch::Suffix(text)) => suffix(*field, Rolling::new().bytes(text.bytes().rev())),
            Self::Text(field, StringMatch::Presence) => presence(*field),
            Self::Account(ServiceAccount { namespace, name }) => account(namespace, name),
        }
    }

    /// Copies texts: those of a hundred thousand policies, as they were read, lie too far apart to compare with.
    fn to_keep(&self) -> Self {
        let own = |text: &Arc<str>| Arc::from(&**text);
        match self {
            Self::Text(field, one) => Self::Text(
                *field,
                match one {
                    StringMatch::Exact(text) => StringMatch::Exact(own(text)),
                    StringMatch::Prefix(text) => StringMatch::Prefix(own(text)),
                    StringMatch::Suffix(text) => StringMatch::Suffix(own(text)),
                    StringMatch::Presence => StringMatch::Presence,
                },
            ),
            Self::Account(ServiceAccount { namespace, name }) => Self::Account(ServiceAccount {
                namespace: own(namespace),
                name: own(name),
            }),
        }
    }
}

/// The hash of a text as a whole value of a field, taken from its front.
pub(crate) fn exact(field: TextField, text: Rolling) -> u64 {
    text.of(field as u8)
}

/// The same as the beginning of one.
pub(crate) fn prefix(field: TextField, text: Rolling) -> u64 {
    text.of(3 + field as u8)
}

/// The same as the end of one, taken from its back.
pub(crate) fn suffix(field: TextField, text: Rolling) -> u64 {
    text.of(6 + field as u8)
}

pub(crate) fn presence(field: TextField) -> u64 {
    Rolling::new().of(9 + field as u8)
}

pub(crate) fn account(namespace: &str, name: &str) -> u64 {
    // A byte that no text has keeps the two apart.
    Rolling::new().bytes(namespace.bytes()).bytes([0xff]).bytes(name.bytes()).of(12)
}

impl Value for u16 {
    fn hash(&self) -> u64 {
        mix(u64::from(*self) + 1)
    }
}

impl Value for IpNet {
    fn hash(&self) -> u64 {
        let length = u64::from(self.prefix_len());
        match self.addr() {
            IpAddr::V4(ip) => mix(u64::from(u32::from(ip)) << 8 | length),
            IpAddr::V6(ip) => {
                let bits = u128::from(ip);
                mix(mix((bits >> 64) as u64) ^ bits as u64 ^ length << 56)
            }
        }
    }
}

/// A namespace as a place where policies apply; also the mesh, which stands in no dictionary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) name: Arc<str>,
    /// How many policies of each kind apply to all of it.
    pub(crate) kinds: [u32; 4],
    /// The policies that apply to all of it, and of which no version could be read.
    pub(crate) unreadable: BTreeMap<PolicyKey, Arc<Unreadable>>,
}

impl Place {
    /// A place where nothing applies.
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self { name, ..Self::default() }
    }

    pub(crate) fn hash_of(name: &str) -> u64 {
        Rolling::new().bytes(name.bytes()).of(0)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Place {}

impl Value for Place {
    fn hash(&self) -> u64 {
        Self::hash_of(&self.name)
    }
}
