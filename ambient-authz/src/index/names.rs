//! What rules ask of identities, and which of it an identity has.

use std::sync::atomic::{AtomicU64, Ordering};

use ambient_core::Identity;

use super::{
    dictionary::{AT_ONCE, Dictionary},
    lengths::Lengths,
    sums::Sums,
    value::{Name, NameOf, TextField, account, exact, prefix, presence, suffix},
};
use crate::{ServiceAccount, StringMatch};

/// All names that rules ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) dictionary: Dictionary<Name>,
    pub(crate) sums: Sums<CHAINS>,
    /// For each field how long the beginnings are that rules ask for, and the ends.
    lengths: [[Lengths; 2]; 3],
    /// Another one for each other set of names, in the whole process; 0 for none.
    version: u64,
}

/// What is compared from the front and from the back of each field, and accounts.
pub(crate) const CHAINS: usize = 2 * TextField::ALL.len() + 1;

impl Names {
    /// Moves whenever a name comes or goes, and only then.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The numbers of some names, of those that have any.
    pub(crate) fn find_all(&self, names: &[NameOf<'_>]) -> Vec<Option<u32>> {
        let hashes: Vec<_> = names.iter().map(|name| name.hash(self.dictionary.keys())).collect();
        self.dictionary.find_all(&hashes, |at, name| names[at].is(name))
    }

    /// Uses a name once more, which has this number if any is told; gives its number, and whether it is new.
    pub(crate) fn take(&mut self, name: NameOf<'_>, found: Option<u32>) -> (u32, bool) {
        if let Some(number) = found {
            self.dictionary.use_again(number);
            return (number, false);
        }
        let hash = name.hash(self.dictionary.keys());
        let (number, new) = self.dictionary.take_by(hash, |other| name.is(other), || name.to_keep());
        if new && let Some((lengths, length)) = self.lengths(name) {
            lengths.take(length);
        }
        (number, new)
    }

    /// Uses a name once less; says whether it is gone.
    pub(crate) fn release(&mut self, number: u32) -> bool {
        let Some(name) = self.dictionary.release(number) else {
            return false;
        };
        let name = match &name {
            Name::Text(field, one) => NameOf::Text(*field, one),
            Name::Account(one) => NameOf::Account(one),
        };
        if let Some((lengths, length)) = self.lengths(name) {
            lengths.release(length);
        }
        true
    }

    /// In how many names at most a name lies that lies in others as this one may.
    pub(crate) fn depth(&self, number: u32) -> usize {
        let side = |field: TextField, side: usize| self.lengths[field as usize][side].depth();
        match self.dictionary.value(number) {
            Some(Name::Text(field, StringMatch::Prefix(_))) => side(*field, 0),
            Some(Name::Text(field, StringMatch::Suffix(_))) => side(*field, 1),
            // No other lies in one of these.
            _ => 1,
        }
    }

    /// Must be called after names have come or gone.
    pub(crate) fn renew(&mut self) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        self.version = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// The numbers of all names that a peer has, in order; none where there is no room for them.
    pub(crate) fn numbers<'r>(&self, peer: &Identity, room: &'r mut [u32]) -> Option<&'r [u32]> {
        let mut found = 0;
        self.of(Some(peer), |name| {
            if let Some(place) = room.get_mut(found) {
                *place = name;
            }
            found += 1;
        });
        let numbers = room.get_mut(..found)?;
        numbers.sort_unstable();
        Some(numbers)
    }

    /// Calls for each name that a peer has, once.
    pub(crate) fn of(&self, peer: Option<&Identity>, mut call: impl FnMut(u32)) {
        for field in TextField::ALL {
            if let Some(text) = field.of(peer) {
                self.of_text(field, text, &mut call);
            }
        }
        if let Some(peer) = peer {
            let (namespace, name) = (peer.namespace(), peer.service_account());
            let is = |wanted: &Name| match wanted {
                Name::Account(ServiceAccount { namespace: ns, name: n }) => **ns == *namespace && **n == *name,
                Name::Text(..) => false,
            };
            self.dictionary
                .find(account(self.dictionary.keys(), namespace, name), is)
                .into_iter()
                .for_each(&mut call);
        }
    }

    fn of_text(&self, field: TextField, text: &str, call: &mut impl FnMut(u32)) {
        let keys = self.dictionary.keys();
        let [prefixes, suffixes] = &self.lengths[field as usize];
        let (mut hash, mut done) = (keys.rolling(), 0);
        let hash_of = |length: usize| {
            hash = hash.bytes(text.as_bytes()[done..length].iter().copied());
            done = length;
            prefix(field, hash)
        };
        self.of_lengths((prefixes, text), hash_of, call, |name, length| match name {
            Name::Text(of, StringMatch::Prefix(start)) => *of == field && start.len() == length && text.starts_with(&**start),
            _ => false,
        });

        let mut note = |hash: u64, wanted: &dyn Fn(&StringMatch) -> bool| {
            let is = |name: &Name| matches!(name, Name::Text(of, one) if *of == field && wanted(one));
            self.dictionary.find(hash, is).into_iter().for_each(&mut *call);
        };
        note(
            exact(keys, field, text),
            &|one| matches!(one, StringMatch::Exact(whole) if **whole == *text),
        );
        if !text.is_empty() {
            note(presence(keys, field), &|one| matches!(one, StringMatch::Presence));
        }

        let (mut hash, mut done) = (keys.rolling(), text.len());
        let hash_of = |length: usize| {
            let from = text.len() - length;
            hash = hash.bytes(text.as_bytes()[from..done].iter().rev().copied());
            done = from;
            suffix(field, hash)
        };
        self.of_lengths((suffixes, text), hash_of, call, |name, length| match name {
            Name::Text(of, StringMatch::Suffix(end)) => *of == field && end.len() == length && text.ends_with(&**end),
            _ => false,
        });
    }

    /// Calls for each name that a text has of some lengths, given in their order what its hashes are and which it is.
    fn of_lengths(
        &self,
        (lengths, text): (&Lengths, &str),
        mut hash_of: impl FnMut(usize) -> u64,
        call: &mut impl FnMut(u32),
        is: impl Fn(&Name, usize) -> bool,
    ) {
        let mut rest = lengths.iter().take_while(|length| *length <= text.len()).peekable();
        while rest.peek().is_some() {
            let (mut hashes, mut of, mut len) = ([0; AT_ONCE], [0; AT_ONCE], 0);
            for ((hash, of), length) in hashes.iter_mut().zip(&mut of).zip(rest.by_ref()) {
                (*hash, *of) = (hash_of(length), length);
                len += 1;
            }
            self.dictionary.find_each(&hashes[..len], |at, name| is(name, of[at]), &mut *call);
        }
    }

    fn lengths(&mut self, name: NameOf<'_>) -> Option<(&mut Lengths, usize)> {
        let (field, side, length) = match name {
            NameOf::Text(field, StringMatch::Prefix(text)) => (field, 0, text.len()),
            NameOf::Text(field, StringMatch::Suffix(text)) => (field, 1, text.len()),
            NameOf::Text(..) | NameOf::Account(_) => return None,
        };
        Some((&mut self.lengths[field as usize][side], length))
    }
}
