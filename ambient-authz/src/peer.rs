//! Who speaks, and which of the policies' names that is.

use std::sync::Arc;

use ambient_core::Identity;

use crate::index::Passing;

/// A peer, as decisions see it: who it has proven to be, and which of the names that policies ask for are its.
///
/// [`Policies::resolve`](crate::Policies::resolve) makes one, once for all connections of a peer: then no decision
/// compares a text. It fits every later snapshot until the set of names that policies ask for changes; a decision
/// notices one that does not fit and looks the names up again, each time, so that it is right all the same, and slower.
/// [`Policies::knows`](crate::Policies::knows) tells whether it is time to resolve it anew.
///
/// Where there are very many rules it may keep which of them its names let through; see
/// [`Policies::resolve`](crate::Policies::resolve). What it keeps of rules that have changed since is not used.
///
/// Made from an identity alone it fits no policies at all: for those who ask once.
///
/// ```
/// use ambient_authz::{Peer, Policies};
/// use ambient_core::Identity;
///
/// let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
/// let peer = Policies::default().resolve(Some(&cart));
/// assert_eq!(peer.identity(), Some(&cart));
/// assert_eq!(Peer::plaintext().identity(), None);
/// # Ok::<(), ambient_core::IdentityError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Peer {
    identity: Option<Identity>,
    names: Numbers,
    /// Of the names among which these are its; 0 is that of no names.
    version: u64,
    /// Which rows of the policies these let through, where that is worth keeping; however stale, it says itself of which it
    /// still tells.
    passing: Option<Arc<Passing>>,
}

impl Peer {
    /// One who speaks in plaintext: nobody, for all that is proven. It need not be resolved: what these have for names, policies
    /// know themselves.
    pub const fn plaintext() -> Self {
        Self {
            identity: None,
            names: Numbers::new(),
            version: 0,
            passing: None,
        }
    }

    /// Who it has proven to be; `None` when it speaks in plaintext.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub(crate) fn new(identity: Option<Identity>, version: u64) -> Self {
        Self {
            identity,
            names: Numbers::new(),
            version,
            passing: None,
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The numbers of its names, in order.
    pub(crate) fn names(&self) -> &[u32] {
        self.names.as_slice()
    }

    pub(crate) fn name(&mut self, number: u32) {
        self.names.insert(number);
    }

    pub(crate) fn passing(&self) -> Option<&Passing> {
        self.passing.as_deref()
    }

    /// The same, to be shared.
    pub(crate) fn kept(&self) -> Option<&Arc<Passing>> {
        self.passing.as_ref()
    }

    pub(crate) fn pass(&mut self, passing: Option<Arc<Passing>>) {
        self.passing = passing;
    }
}

impl From<Identity> for Peer {
    fn from(identity: Identity) -> Self {
        Self::new(Some(identity), 0)
    }
}

impl From<Option<Identity>> for Peer {
    fn from(identity: Option<Identity>) -> Self {
        Self::new(identity, 0)
    }
}

/// Numbers in order; on the heap only when there are many.
#[derive(Clone, Debug)]
struct Numbers {
    few: [u32; FEW],
    len: usize,
    many: Vec<u32>,
}

impl Numbers {
    const fn new() -> Self {
        Self {
            few: [0; FEW],
            len: 0,
            many: Vec::new(),
        }
    }

    fn as_slice(&self) -> &[u32] {
        if self.many.is_empty() { &self.few[..self.len] } else { &self.many }
    }

    fn insert(&mut self, number: u32) {
        let Err(at) = self.as_slice().binary_search(&number) else {
            return;
        };
        if self.many.is_empty() && self.len < FEW {
            self.few.copy_within(at..self.len, at + 1);
            self.few[at] = number;
            self.len += 1;
            return;
        }
        if self.many.is_empty() {
            self.many = self.few.to_vec();
        }
        self.many.insert(at, number);
    }
}

/// A whole name, its namespace, account and trust domain, and some beginnings and ends.
const FEW: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_in_order_however_many() {
        let mut numbers = Numbers::new();
        for number in [5, 3, 9, 3, 1] {
            numbers.insert(number);
        }
        assert_eq!(numbers.as_slice(), [1, 3, 5, 9]);
        for number in (0..40).rev() {
            numbers.insert(number);
        }
        assert_eq!(numbers.as_slice(), (0..40).collect::<Vec<_>>());
    }
}
