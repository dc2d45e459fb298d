//! What rules ask of identities, and which of it an identity has.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ambient_core::Identity;

use super::{
    dictionary::{Dictionary, Rolling},
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
    lengths: [[Arc<Lengths>; 2]; 3],
    /// Another one for each other set of names, in the whole process; 0 for none.
    version: u64,
}

/// What is compared from the front and from the back of each field, and accounts.
pub(crate) const CHAINS: usize = 2 * TextField::ALL.len() + 1;

/// Lengths in their order, each with how many names have it.
type Lengths = Vec<(usize, u32)>;

impl Names {
    /// Moves whenever a name comes or goes, and only then.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The numbers of some names, of those that have any.
    pub(crate) fn find_all(&self, names: &[NameOf<'_>]) -> Vec<Option<u32>> {
        let hashes: Vec<_> = names.iter().map(|name| name.hash()).collect();
        self.dictionary.find_all(&hashes, |at, name| names[at].is(name))
    }

    /// Uses a name once more, which has this number if any is told; gives its number, and whether it is new.
    pub(crate) fn take(&mut self, name: NameOf<'_>, found: Option<u32>) -> (u32, bool) {
        if let Some(number) = found {
            self.dictionary.use_again(number);
            return (number, false);
        }
        let (number, new) = self.dictionary.take_by(name.hash(), |other| name.is(other), || name.to_keep());
        if new && let Some((lengths, length)) = self.lengths(name) {
            match lengths.binary_search_by_key(&length, |(length, _)| *length) {
                Ok(at) => lengths[at].1 += 1,
                Err(at) => lengths.insert(at, (length, 1)),
            }
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
        if let Some((lengths, length)) = self.lengths(name)
            && let Ok(at) = lengths.binary_search_by_key(&length, |(length, _)| *length)
        {
            lengths[at].1 -= 1;
            if lengths[at].1 == 0 {
                lengths.remove(at);
            }
        }
        true
    }

    /// Must be called after names have come or gone.
    pub(crate) fn renew(&mut self) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        self.version = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// Calls for each name that a peer has.
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
            self.dictionary.find(account(namespace, name), is).into_iter().for_each(&mut call);
        }
    }

    fn of_text(&self, field: TextField, text: &str, call: &mut impl FnMut(u32)) {
        let mut note = |hash: u64, wanted: &dyn Fn(&StringMatch) -> bool| {
            let is = |name: &Name| matches!(name, Name::Text(of, one) if *of == field && wanted(one));
            self.dictionary.find(hash, is).into_iter().for_each(&mut *call);
        };
        let [prefixes, suffixes] = &self.lengths[field as usize];
        let (mut hash, mut done) = (Rolling::new(), 0);
        for (length, _) in prefixes.iter().take_while(|(length, _)| *length <= text.len()) {
            hash = hash.bytes(text.as_bytes()[done..*length].iter().copied());
            done = *length;
            note(
                prefix(field, hash),
                &|one| matches!(one, StringMatch::Prefix(start) if start.len() == *length && text.starts_with(&**start)),
            );
        }
        note(
            exact(field, text),
            &|one| matches!(one, StringMatch::Exact(whole) if **whole == *text),
        );
        if !text.is_empty() {
            note(presence(field), &|one| matches!(one, StringMatch::Presence));
        }

        let (mut hash, mut done) = (Rolling::new(), text.len());
        for (length, _) in suffixes.iter().take_while(|(length, _)| *length <= text.len()) {
            let from = text.len() - length;
            hash = hash.bytes(text.as_bytes()[from..done].iter().rev().copied());
            done = from;
            note(
                suffix(field, hash),
                &|one| matches!(one, StringMatch::Suffix(end) if end.len() == *length && text.ends_with(&**end)),
            );
        }
    }

    fn lengths(&mut self, name: NameOf<'_>) -> Option<(&mut Lengths, usize)> {
        let (field, side, length) = match name {
            NameOf::Text(field, StringMatch::Prefix(text)) => (field, 0, text.len()),
            NameOf::Text(field, StringMatch::Suffix(text)) => (field, 1, text.len()),
            NameOf::Text(..) | NameOf::Account(_) => return None,
        };
        Some((Arc::make_mut(&mut self.lengths[field as usize][side]), length))
    }
}
