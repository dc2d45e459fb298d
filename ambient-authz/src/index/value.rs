//! What the dictionaries hold.

use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_core::{Identity, PolicyKey};
use ipnet::IpNet;

use super::{
    dictionary::Value,
    keys::{Keys, Rolling},
    sums::Nested,
    term::Lane,
};
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

/// The same, where it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NameOf<'a> {
    Text(TextField, &'a StringMatch),
    Account(&'a ServiceAccount),
}

impl NameOf<'_> {
    pub(crate) fn hash(self, keys: &Keys) -> u64 {
        match self {
            Self::Text(field, StringMatch::Exact(text)) => exact(keys, field, text),
            Self::Text(field, StringMatch::Prefix(text)) => prefix(field, keys.rolling().bytes(text.bytes())),
            Self::Text(field, StringMatch::Suffix(text)) => suffix(field, keys.rolling().bytes(text.bytes().rev())),
            Self::Text(field, StringMatch::Presence) => presence(keys, field),
            Self::Account(ServiceAccount { namespace, name }) => account(keys, namespace, name),
        }
    }

    pub(crate) fn is(self, name: &Name) -> bool {
        match (self, name) {
            (Self::Text(field, one), Name::Text(of, other)) => field == *of && one == other,
            (Self::Account(one), Name::Account(other)) => one == other,
            _ => false,
        }
    }

    /// Copies texts: those of a hundred thousand policies, as they were read, lie too far apart to compare with.
    pub(crate) fn to_keep(self) -> Name {
        let own = |text: &Arc<str>| Arc::from(&**text);
        match self {
            Self::Text(field, one) => Name::Text(
                field,
                match one {
                    StringMatch::Exact(text) => StringMatch::Exact(own(text)),
                    StringMatch::Prefix(text) => StringMatch::Prefix(own(text)),
                    StringMatch::Suffix(text) => StringMatch::Suffix(own(text)),
                    StringMatch::Presence => StringMatch::Presence,
                },
            ),
            Self::Account(ServiceAccount { namespace, name }) => Name::Account(ServiceAccount {
                namespace: own(namespace),
                name: own(name),
            }),
        }
    }
}

impl Value for Name {
    fn hash(&self, keys: &Keys) -> u64 {
        match self {
            Self::Text(field, one) => NameOf::Text(*field, one).hash(keys),
            Self::Account(one) => NameOf::Account(one).hash(keys),
        }
    }

    /// Its lane, as a number of [`Lane::ALL`].
    fn tag(&self) -> u8 {
        Lane::of_name(self) as u8
    }
}

/// For each field a chain of what is compared from its front, the whole text innermost, and one of what is from its back;
/// accounts lie apart.
impl Nested for Name {
    fn chain(&self) -> Option<usize> {
        Some(Lane::of_name(self) as usize)
    }

    fn depth(&self) -> u32 {
        match self {
            Self::Text(_, StringMatch::Prefix(text)) if text.is_empty() => 0,
            Self::Text(_, StringMatch::Presence) => 1,
            Self::Text(_, StringMatch::Prefix(text) | StringMatch::Suffix(text)) => {
                u32::try_from(text.len()).map_or(u32::MAX - 1, |len| len + 1)
            }
            Self::Text(_, StringMatch::Exact(_)) | Self::Account(_) => u32::MAX,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        let (Self::Text(_, outer), Self::Text(_, inner)) = (self, other) else {
            return self == other;
        };
        match (outer, inner) {
            (StringMatch::Suffix(end), StringMatch::Suffix(text)) => text.ends_with(&**end),
            (StringMatch::Prefix(start), StringMatch::Prefix(text) | StringMatch::Exact(text)) => text.starts_with(&**start),
            (StringMatch::Prefix(start), StringMatch::Presence) => start.is_empty(),
            (StringMatch::Presence, StringMatch::Prefix(text) | StringMatch::Exact(text)) => !text.is_empty(),
            _ => outer == inner,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let (Self::Text(_, a), Self::Text(_, b)) = (self, other) else {
            return Ordering::Equal;
        };
        match (a, b) {
            (StringMatch::Suffix(a), StringMatch::Suffix(b)) => a.bytes().rev().cmp(b.bytes().rev()),
            _ => from_front(a).cmp(&from_front(b)),
        }
    }
}

/// What any text has, the empty text, what is not empty, and then by beginnings, each before the whole text that it is.
fn from_front(wanted: &StringMatch) -> (u8, &str, u8) {
    match wanted {
        StringMatch::Prefix(text) => (if text.is_empty() { 0 } else { 3 }, text, 0),
        StringMatch::Exact(text) => (if text.is_empty() { 1 } else { 3 }, text, 1),
        StringMatch::Presence => (2, "", 0),
        // Of another chain.
        StringMatch::Suffix(text) => (4, text, 0),
    }
}

/// The hash of a text as a whole value of a field.
pub(crate) fn exact(keys: &Keys, field: TextField, text: &str) -> u64 {
    keys.whole(text.as_bytes()) ^ u64::from(field as u8) << 56
}

/// The same as the beginning of one.
pub(crate) fn prefix(field: TextField, text: Rolling) -> u64 {
    text.of(3 + field as u8)
}

/// The same as the end of one, taken from its back.
pub(crate) fn suffix(field: TextField, text: Rolling) -> u64 {
    text.of(6 + field as u8)
}

pub(crate) fn presence(keys: &Keys, field: TextField) -> u64 {
    keys.rolling().of(9 + field as u8)
}

pub(crate) fn account(keys: &Keys, namespace: &str, name: &str) -> u64 {
    // A byte that no text has keeps the two apart.
    keys.rolling().bytes(namespace.bytes()).bytes([0xff]).bytes(name.bytes()).of(12)
}

impl Value for u16 {
    fn hash(&self, keys: &Keys) -> u64 {
        keys.number(u64::from(*self))
    }
}

/// No port lies in another.
impl Nested for u16 {
    fn chain(&self) -> Option<usize> {
        Some(0)
    }

    fn depth(&self) -> u32 {
        0
    }

    fn covers(&self, other: &Self) -> bool {
        self == other
    }

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }
}

impl Value for IpNet {
    fn hash(&self, keys: &Keys) -> u64 {
        let length = self.prefix_len();
        match self.addr() {
            IpAddr::V4(ip) => keys.number(u64::from(u32::from(ip)) << 8 | u64::from(length)),
            IpAddr::V6(ip) => keys.long_number(ip.into(), length),
        }
    }
}

/// One chain for all: no address is of both families.
impl Nested for IpNet {
    fn chain(&self) -> Option<usize> {
        Some(0)
    }

    fn depth(&self) -> u32 {
        self.prefix_len().into()
    }

    fn covers(&self, other: &Self) -> bool {
        self.contains(other)
    }

    fn order(&self, other: &Self) -> Ordering {
        (self.network(), self.prefix_len()).cmp(&(other.network(), other.prefix_len()))
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

    pub(crate) fn hash_of(keys: &Keys, name: &str) -> u64 {
        keys.whole(name.as_bytes())
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Place {}

impl Value for Place {
    fn hash(&self, keys: &Keys) -> u64 {
        Self::hash_of(keys, &self.name)
    }
}
