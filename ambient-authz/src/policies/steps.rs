//! The way from one snapshot to another.

use std::collections::BTreeMap;

use ambient_core::PolicyKey;

use super::{Known, Policies, Stand};
use crate::policy::Update;

impl Policies {
    /// The updates that lead from here to a snapshot with exactly what these make of an empty one; none where it is that already.
    ///
    /// What there is of a policy must not depend on who knew it before: one that falls back on nothing among these falls
    /// back on nothing that is in force here either.
    pub(crate) fn steps_to(&self, wanted: Vec<Update>) -> Vec<Update> {
        let mut by_key: BTreeMap<PolicyKey, Vec<Update>> = BTreeMap::new();
        for update in wanted {
            by_key.entry(update.key().clone()).or_default().push(update);
        }
        let mut gone: Vec<_> = self.0.known.keys().filter(|key| !by_key.contains_key(*key)).cloned().collect();
        gone.sort_unstable();
        let mut steps = Vec::new();
        for (key, updates) in by_key {
            if self.stands_as(&key, &updates) {
                continue;
            }
            if self.known(&key).is_some() && !matches!(updates[..], [Update::Set(_), ..]) {
                steps.push(Update::Remove(key));
            }
            steps.extend(updates);
        }
        steps.extend(gone.into_iter().map(Update::Remove));
        steps
    }

    /// Whether all is known of a policy that some updates make known of it, and nothing else.
    fn stands_as(&self, key: &PolicyKey, updates: &[Update]) -> bool {
        let told = updates.iter().rev().find_map(|update| match update {
            Update::Unreadable(unreadable) | Update::Kept(unreadable) => Some(unreadable),
            Update::Set(_) | Update::Remove(_) => None,
        });
        let known = self.known(key);
        let mut stand = updates.iter().cloned().fold(Stand::Gone, Stand::after);
        stand.forget_repeated(known.and_then(Known::in_force), |number, policy| self.0.index.holds(number, policy));
        stand.is(known) && told == self.0.unreadable.get(key)
    }
}
