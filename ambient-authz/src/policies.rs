//! The policies at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ambient_core::{PolicyKey, Shards};

use crate::{
    Action, Policy, Scope,
    policy::{Unreadable, Update},
};

mod bucket;
#[cfg(test)]
mod tests;

pub(crate) use bucket::{Bucket, Kind};

/// An immutable snapshot of all policies.
///
/// Cloning is one reference count. [`Policies::apply`] makes the next snapshot and shares with this one all scopes that
/// did not change.
///
/// ```
/// use ambient_authz::{policy::Update, Action, Policies, Policy, Rule, Scope};
///
/// let deny_all = Policy {
///     key: "shop/closed".into(),
///     namespace: "shop".into(),
///     scope: Scope::Namespace,
///     action: Action::Deny,
///     rules: vec![Rule::default()],
///     dry_run: false,
/// };
/// let open = Policies::default();
/// let closed = open.apply([Update::Set(deny_all.into())]);
/// assert_eq!((open.len(), closed.len()), (0, 1));
/// ```
#[derive(Clone, Default)]
pub struct Policies(Arc<Tables>);

#[derive(Clone, Default)]
struct Tables {
    known: Shards<PolicyKey, Known>,
    global: Arc<Bucket>,
    namespaces: Shards<Arc<str>, Arc<Bucket>>,
    /// Few, and wanted in order.
    unreadable: Arc<BTreeMap<PolicyKey, Arc<Unreadable>>>,
    in_force: usize,
    istio_exact: bool,
}

/// What is known under one key.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Its last version can be read.
    Good(Arc<Policy>),
    /// Its last version cannot be read; this one, before it, could.
    LastGood(Arc<Policy>),
    /// No version of it could be read.
    Unreadable(Arc<Unreadable>),
    /// Its last version cannot be read; the one before it is in force under other keys.
    Kept,
}

impl Known {
    pub(crate) fn in_force(&self) -> Option<&Arc<Policy>> {
        match self {
            Self::Good(policy) | Self::LastGood(policy) => Some(policy),
            Self::Unreadable(_) | Self::Kept => None,
        }
    }

    fn is_at(&self, place: &Place) -> bool {
        self.place().as_ref() == Some(place)
    }

    /// Where it is looked for; a policy for selected workloads only by its key.
    fn place(&self) -> Option<Place> {
        let (scope, namespace) = match self {
            Self::Good(policy) | Self::LastGood(policy) => (policy.scope, &policy.namespace),
            Self::Unreadable(unreadable) => (unreadable.scope, &unreadable.namespace),
            Self::Kept => return None,
        };
        match scope {
            Scope::Global => Some(Place::Mesh),
            Scope::Namespace => Some(Place::Namespace(namespace.clone())),
            Scope::Selector => None,
        }
    }
}

/// Where a policy is looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Mesh,
    Namespace(Arc<str>),
}

impl Policies {
    /// An empty snapshot that decides as ztunnel does where ztunnel lets through more: what a workload lists and is not
    /// known is skipped, and a policy that cannot be read and never could is as if it were not there.
    ///
    /// [`Policies::default`] refuses both.
    pub fn istio_exact() -> Self {
        Self(Arc::new(Tables {
            istio_exact: true,
            ..Tables::default()
        }))
    }

    /// Whether it decides as [`Policies::istio_exact`] says.
    pub fn is_istio_exact(&self) -> bool {
        self.0.istio_exact
    }

    /// The snapshot after some updates, in their order.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = Tables::clone(&self.0);
        let mut changed: BTreeMap<Place, BTreeSet<PolicyKey>> = BTreeMap::new();
        for update in updates {
            let key = update.key().clone();
            let before = next.known.get(&key).cloned();
            let after = next.note(update, before.as_ref());
            let places = [&before, &after].into_iter().flatten().filter_map(Known::place);
            for place in places {
                changed.entry(place).or_default().insert(key.clone());
            }
            let in_force = |known: &Option<Known>| known.as_ref().is_some_and(|k| k.in_force().is_some());
            next.in_force = next.in_force + usize::from(in_force(&after)) - usize::from(in_force(&before));
            match after {
                Some(known) => next.known.insert(key, known),
                None => drop(next.known.remove(&key)),
            }
        }
        // Each scope is built once a call, however many of its policies changed.
        for (place, keys) in changed {
            next.rebuild(&place, &keys);
        }
        Self(Arc::new(next))
    }

    /// The policy in force under a key: its last good version, where the present one cannot be read.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.known(key)?.in_force()
    }

    /// Every policy in force, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        let mut all: Vec<_> = self.0.known.values().filter_map(Known::in_force).collect();
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        all.into_iter()
    }

    /// How many policies are in force.
    pub fn len(&self) -> usize {
        self.0.in_force
    }

    /// Whether no policy is in force.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every policy whose present version cannot be read, in the order of their keys.
    ///
    /// Those that [`Policies::policy`] knows go on with their last good version, those told as [`Update::Kept`] under
    /// other keys; the others refuse all in their scope.
    pub fn unreadable(&self) -> impl Iterator<Item = &Arc<Unreadable>> {
        self.0.unreadable.values()
    }

    pub(crate) fn known(&self, key: &PolicyKey) -> Option<&Known> {
        self.0.known.get(key)
    }

    pub(crate) fn scopes(&self, namespace: &str) -> [Option<&Bucket>; 2] {
        [Some(&*self.0.global), self.0.namespaces.get(namespace).map(|b| &**b)]
    }
}

impl Tables {
    /// What is known under an update's key after it; keeps the list of what cannot be read.
    fn note(&mut self, update: Update, before: Option<&Known>) -> Option<Known> {
        match update {
            Update::Set(policy) => {
                self.readable(&policy.key);
                Some(Known::Good(policy))
            }
            Update::Remove(key) => {
                self.readable(&key);
                None
            }
            Update::Unreadable(ref unreadable) | Update::Kept(ref unreadable) => {
                Arc::make_mut(&mut self.unreadable).insert(unreadable.key.clone(), unreadable.clone());
                Some(match (before.and_then(Known::in_force), &update) {
                    (Some(good), _) => Known::LastGood(good.clone()),
                    (None, Update::Kept(_)) => Known::Kept,
                    (None, _) => Known::Unreadable(unreadable.clone()),
                })
            }
        }
    }

    fn readable(&mut self, key: &PolicyKey) {
        if self.unreadable.contains_key(key) {
            Arc::make_mut(&mut self.unreadable).remove(key);
        }
    }

    fn rebuild(&mut self, place: &Place, keys: &BTreeSet<PolicyKey>) {
        let known = &self.known;
        let here = |key: &PolicyKey| known.get(key).filter(|known| known.is_at(place));
        match place {
            Place::Mesh => self.global = Arc::new(self.global.with(keys, here)),
            Place::Namespace(namespace) => {
                let next = match self.namespaces.get(namespace) {
                    Some(bucket) => bucket.with(keys, here),
                    None => Bucket::default().with(keys, here),
                };
                if next.is_empty() {
                    self.namespaces.remove(namespace);
                } else {
                    self.namespaces.insert(namespace.clone(), Arc::new(next));
                }
            }
        }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("in_force", &self.0.in_force)
            .field("unreadable", &self.0.unreadable.len())
            .field("istio_exact", &self.0.istio_exact)
            .finish()
    }
}

impl Kind {
    pub(crate) fn of(policy: &Policy) -> Self {
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) => Self::Deny,
            (Action::Allow, false) => Self::Allow,
            (Action::Deny, true) => Self::DryDeny,
            (Action::Allow, true) => Self::DryAllow,
        }
    }
}
