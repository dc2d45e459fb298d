//! The policies at one moment.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use ambient_core::{Identity, PolicyKey, Shards};

use crate::{
    Action, Peer, Policy,
    index::{Entry, Index, Revision},
    policy::{Unreadable, Update},
};

mod affected;
mod stand;
#[cfg(test)]
mod tests;

pub use affected::Affected;
use stand::{InForce, Stand};

/// An immutable snapshot of all policies.
///
/// Cloning is one reference count. [`Policies::apply`] makes the next snapshot and shares with this one all that did not
/// change; so does [`Policies::advance`], which also says whom the change concerns.
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
    index: Index,
    known: Shards<PolicyKey, Known>,
    /// Few, and wanted in order.
    unreadable: Arc<BTreeMap<PolicyKey, Arc<Unreadable>>>,
    in_force: usize,
    istio_exact: bool,
}

/// What is known under one key. A policy in force is told by its number in the index.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Its last version can be read.
    Good(u32),
    /// Its last version cannot be read; this one, before it, could.
    LastGood(u32),
    /// No version of it could be read.
    Unreadable(Arc<Unreadable>),
    /// Its last version cannot be read; the one before it is in force under other keys.
    Kept,
}

impl Known {
    pub(crate) fn in_force(&self) -> Option<u32> {
        match self {
            Self::Good(number) | Self::LastGood(number) => Some(*number),
            Self::Unreadable(_) | Self::Kept => None,
        }
    }
}

/// The step of a decision at which a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Deny,
    Allow,
    DryDeny,
    DryAllow,
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

    /// What a policy of this kind does, and whether that is only told.
    pub(crate) fn parts(self) -> (Action, bool) {
        match self {
            Self::Deny => (Action::Deny, false),
            Self::Allow => (Action::Allow, false),
            Self::DryDeny => (Action::Deny, true),
            Self::DryAllow => (Action::Allow, true),
        }
    }
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
        self.advance(updates).0
    }

    /// The same, and the workloads whose decisions can be others than they were.
    ///
    /// A policy costs as much as it has values, whatever else there is; one that comes again as it was costs a
    /// comparison.
    #[must_use]
    pub fn advance(&self, updates: impl IntoIterator<Item = Update>) -> (Self, Affected) {
        let mut next = Tables::clone(&self.0);
        // In the order in which they come, each key once.
        let (mut stands, mut places) = (Vec::new(), HashMap::new());
        for update in updates {
            let place = *places.entry(update.key().clone()).or_insert(stands.len());
            if place == stands.len() {
                stands.push((update.key().clone(), Stand::of(self.0.known.get(update.key()))));
            }
            next.note_unreadable(&update);
            let stand: &mut Stand = &mut stands[place].1;
            *stand = std::mem::replace(stand, Stand::Gone).after(update);
        }
        let affected = next.settle(stands);
        (Self(Arc::new(next)), affected)
    }

    /// Which of the names that policies ask for a peer has. See [`Peer`].
    pub fn resolve(&self, identity: Option<&Identity>) -> Peer {
        let names = &self.0.index.terms.names;
        let mut peer = Peer::new(identity.cloned(), names.version());
        names.of(identity, |name| peer.name(name));
        peer
    }

    /// Whether a peer was resolved against the names that these policies ask for.
    pub fn knows(&self, peer: &Peer) -> bool {
        peer.version() == self.0.index.terms.names.version()
    }

    /// The policy in force under a key: its last good version, where the present one cannot be read.
    ///
    /// Policies are kept in another form, so this makes it anew.
    pub fn policy(&self, key: &PolicyKey) -> Option<Policy> {
        let entry = self.entry(self.known(key)?.in_force()?)?;
        Some(self.0.index.policy(entry))
    }

    /// Every policy in force, in the order of their keys; each is made anew when it is its turn.
    pub fn iter(&self) -> impl Iterator<Item = Policy> {
        let in_force = self.0.known.values().filter_map(Known::in_force);
        let mut all: Vec<_> = in_force.filter_map(|number| self.entry(number)).collect();
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        all.into_iter().map(|entry| self.0.index.policy(entry))
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

    pub(crate) fn entry(&self, number: u32) -> Option<&Entry> {
        self.0.index.entry(number)
    }

    pub(crate) fn index(&self) -> &Index {
        &self.0.index
    }
}

impl Tables {
    /// Keeps the list of what cannot be read.
    fn note_unreadable(&mut self, update: &Update) {
        match update {
            Update::Unreadable(unreadable) | Update::Kept(unreadable) => {
                Arc::make_mut(&mut self.unreadable).insert(unreadable.key.clone(), unreadable.clone());
            }
            Update::Set(_) | Update::Remove(_) => {
                if self.unreadable.contains_key(update.key()) {
                    Arc::make_mut(&mut self.unreadable).remove(update.key());
                }
            }
        }
    }

    /// Brings in how policies stand after some updates.
    fn settle(&mut self, mut stands: Vec<(PolicyKey, Stand)>) -> Affected {
        let known = &self.known;
        stands.retain_mut(|(key, stand)| {
            let known = known.get(key);
            stand.forget_repeated(known.and_then(Known::in_force), |number, policy| self.index.holds(number, policy));
            !stand.is(known)
        });
        let affected = self.affected(&stands);

        let mut in_force = self.in_force;
        let mut revision = Revision::new(&mut self.index);
        // What goes, before what comes: so that its numbers are given again at once.
        for (key, stand) in &stands {
            match self.known.get(key) {
                Some(Known::Good(number) | Known::LastGood(number)) if stand.in_force_before().is_none() => {
                    revision.remove(*number);
                    in_force -= 1;
                }
                Some(Known::Unreadable(unreadable)) => revision.readable(unreadable),
                _ => {}
            }
        }
        for (key, stand) in stands {
            let mut take_in = |policy| match policy {
                InForce::Before(number) => number,
                InForce::New(policy) => {
                    in_force += 1;
                    revision.insert(&policy)
                }
            };
            let known = match stand {
                Stand::Gone => None,
                Stand::Good(policy) => Some(Known::Good(take_in(policy))),
                Stand::LastGood(policy) => Some(Known::LastGood(take_in(policy))),
                Stand::Unreadable(unreadable) => {
                    revision.unreadable(&unreadable);
                    Some(Known::Unreadable(unreadable))
                }
                Stand::Kept => Some(Known::Kept),
            };
            match known {
                Some(known) => self.known.insert(key, known),
                None => drop(self.known.remove(&key)),
            }
        }
        revision.finish();
        self.in_force = in_force;
        affected
    }

    fn affected(&self, stands: &[(PolicyKey, Stand)]) -> Affected {
        let mut affected = Affected::default();
        for (key, stand) in stands {
            let before = self.known.get(key);
            if stand.decides_as(before) {
                continue;
            }
            let before = before.and_then(|known| match known {
                Known::Good(number) | Known::LastGood(number) => self.index.entry(*number).map(|entry| (entry.scope, &entry.namespace)),
                Known::Unreadable(unreadable) => Some((unreadable.scope, &unreadable.namespace)),
                Known::Kept => None,
            });
            for (scope, namespace) in [before, stand.scope()].into_iter().flatten() {
                affected.note(scope, namespace);
            }
            affected.note_listed(key);
        }
        affected
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
