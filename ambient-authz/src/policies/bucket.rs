//! What applies to one scope: the mesh or a namespace.

use std::{collections::BTreeSet, sync::Arc};

use ambient_core::PolicyKey;

use super::Known;
use crate::{Policy, policy::Unreadable};

/// The step of a decision at which a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Deny,
    Allow,
    DryDeny,
    DryAllow,
}

/// The policies of a scope by kind, each list in the order of keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket {
    by_kind: [Vec<Arc<Policy>>; 4],
    unreadable: Vec<Arc<Unreadable>>,
}

impl Bucket {
    pub(crate) fn of(&self, kind: Kind) -> &[Arc<Policy>] {
        &self.by_kind[kind as usize]
    }

    /// Those of which no version could be read.
    pub(crate) fn unreadable(&self) -> &[Arc<Unreadable>] {
        &self.unreadable
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unreadable.is_empty() && self.by_kind.iter().all(Vec::is_empty)
    }

    /// The same, with what now stands under some keys in place of what stood there.
    pub(super) fn with<'a>(&self, keys: &BTreeSet<PolicyKey>, now: impl Fn(&PolicyKey) -> Option<&'a Known>) -> Self {
        let kinds = [Kind::Deny, Kind::Allow, Kind::DryDeny, Kind::DryAllow];
        let policies = |kind| {
            let of_kind = |key: &PolicyKey| now(key)?.in_force().filter(|policy| Kind::of(policy) == kind);
            merge(self.of(kind), |policy| &policy.key, keys, of_kind)
        };
        let unreadable = |key: &PolicyKey| match now(key)? {
            Known::Unreadable(unreadable) => Some(unreadable),
            Known::Good(_) | Known::LastGood(_) | Known::Kept => None,
        };
        Self {
            by_kind: kinds.map(policies),
            unreadable: merge(&self.unreadable, |unreadable| &unreadable.key, keys, unreadable),
        }
    }
}

/// Both are in order, so what lies between two keys is copied as it is: a key costs a search, not a pass.
fn merge<'a, T: 'a>(
    list: &[Arc<T>],
    key_of: impl Fn(&T) -> &PolicyKey,
    keys: &BTreeSet<PolicyKey>,
    now: impl Fn(&PolicyKey) -> Option<&'a Arc<T>>,
) -> Vec<Arc<T>> {
    let mut next = Vec::with_capacity(list.len() + 1);
    let mut rest = list;
    for key in keys {
        let (before, from) = rest.split_at(rest.partition_point(|item| key_of(item) < key));
        next.extend_from_slice(before);
        rest = match from.split_first() {
            Some((first, after)) if key_of(first) == key => after,
            _ => from,
        };
        next.extend(now(key).cloned());
    }
    next.extend_from_slice(rest);
    next
}
