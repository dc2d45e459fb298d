//! The policies at one moment.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use ambient_core::{Identity, PolicyKey, Shards, Workload};

use crate::{
    Action, Peer, Policy, Scope, Target,
    index::{Entry, Index, Revision},
    policy::{Fallback, Refuses, Unreadable, Update},
};

mod affected;
mod stamps;
mod stand;
#[cfg(feature = "kubernetes")]
mod steps;
#[cfg(test)]
mod tests;

pub use affected::Affected;
pub(crate) use stamps::Seen;
use stamps::Stamps;
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
    nobody: Nobody,
    /// For those who have looked up what a workload lists.
    stamps: Stamps,
    istio_exact: bool,
    /// What could never be read refuses nothing.
    lets_unreadable_go: bool,
    /// What is listed and has not come counts as never coming.
    waited: bool,
}

/// Who speaks in plaintext, resolved with every change: there is no handshake at which it could be done.
#[derive(Clone)]
struct Nobody(Peer);

impl Default for Nobody {
    fn default() -> Self {
        Self(Peer::plaintext())
    }
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
    pub(crate) const ALL: [Self; 4] = [Self::Deny, Self::Allow, Self::DryDeny, Self::DryAllow];

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

    /// The same snapshot, which lets go what cannot be read and never could: it refuses nothing, as if it were not there.
    /// What has a last good version keeps that.
    ///
    /// This may let through what the policy would refuse. It is to be said before anybody decides: it does not tell whose
    /// decisions it turns.
    #[must_use]
    pub fn letting_unreadable_go(&self) -> Self {
        Self(Arc::new(Tables {
            lets_unreadable_go: true,
            ..Tables::clone(&self.0)
        }))
    }

    /// The same snapshot, and every later one, no longer waits: what workloads list and is not known counts as never
    /// coming. Whom that concerns is told beside it; it refuses no more than before.
    ///
    /// Istiod lists `converted_peer_authentication_…` for some workloads and never publishes it. Such a key refuses
    /// from now on peers without an identity only, which is all that it could ask for; any other refuses everybody
    /// as before. There is no clock here: whoever has one says when the source of policies has had its time.
    #[must_use]
    pub fn stop_waiting(&self) -> (Self, Affected) {
        let mut affected = Affected::default();
        if self.is_waiting() && !self.0.istio_exact {
            affected.note_awaited();
        }
        let waited = Tables {
            waited: true,
            ..Tables::clone(&self.0)
        };
        (Self(Arc::new(waited)), affected)
    }

    /// The same snapshot, and every later one, decides as if there were very many policies: over bitmaps, of which every peer keeps
    /// what its names let through. For those who compare decisions; they are the same, and slower.
    #[doc(hidden)]
    #[must_use]
    pub fn by_bitmaps(&self) -> Self {
        let tables = Tables::clone(&self.0);
        let mut tables = Tables {
            index: tables.index.by_bitmaps(),
            ..tables
        };
        tables.resolve_nobody();
        Self(Arc::new(tables))
    }

    /// Whether what workloads list and is not known may still come: until [`Policies::stop_waiting`].
    pub fn is_waiting(&self) -> bool {
        !self.0.waited
    }

    /// The snapshot after some updates, in their order.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> Self {
        self.advance(updates).0
    }

    /// The snapshot after some updates, in their order, and the workloads whose decisions can be others than they were: live
    /// connections to those are to be decided again.
    ///
    /// What workloads list is theirs: one whose [`policies`](Workload::policies) have changed as well is not told for that, and
    /// its connections are to be decided again all the same.
    ///
    /// A policy costs as much as it has values, whatever else there is; one that comes again as it was costs a
    /// comparison.
    ///
    /// ```
    /// use std::net::{IpAddr, SocketAddr};
    /// use ambient_authz::{decide_again, policy::Update, Action, Conn, Peer, Policies, Policy, Rule, Scope};
    /// use ambient_core::{Identity, Workload};
    ///
    /// struct Live { to: Workload, peer: Peer, source: IpAddr, destination: SocketAddr }
    ///
    /// let policies = Policies::default();
    /// let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
    /// let mut live = Vec::new();
    /// for namespace in ["shop", "office"] {
    ///     live.push(Live {
    ///         to: Workload::new("uid", namespace, "stock"),
    ///         peer: policies.resolve(Some(&cart)),
    ///         source: "10.0.1.2".parse()?,
    ///         destination: "10.0.2.2:8080".parse()?,
    ///     });
    /// }
    ///
    /// let mut closed = Policy::new("shop/closed", "shop", Scope::Namespace, Action::Deny);
    /// closed.rules.push(Rule::default());
    /// let (policies, affected) = policies.advance([Update::Set(closed.into())]);
    /// live.retain(|Live { to, peer, source, destination }| {
    ///     let conn = Conn { peer, source: *source, destination: *destination };
    ///     !affected.concerns(to) || decide_again(&policies, to, &conn).is_allow()
    /// });
    /// assert_eq!(live.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// It takes some microseconds. Where there are more than 262,144 ways in which rules can match, and so many are found by one
    /// thing that a decision has to go over all of them, it takes up to some hundred: the peer then keeps which of them its names
    /// let through, a bit for each, so that its decisions need not. All peers together keep 64 MiB of that at most; those beyond
    /// keep none, and their decisions take longer. Of peers without an identity the policies themselves keep it.
    pub fn resolve(&self, identity: Option<&Identity>) -> Peer {
        if identity.is_none() {
            return self.nobody().clone();
        }
        let mut peer = self.names_of(identity);
        let passing = self.0.index.passing(peer.names());
        peer.pass(passing);
        peer
    }

    /// The same without what is kept of rows.
    pub(crate) fn names_of(&self, identity: Option<&Identity>) -> Peer {
        self.0.names_of(identity)
    }

    /// Whoever speaks in plaintext.
    pub(crate) fn nobody(&self) -> &Peer {
        &self.0.nobody.0
    }

    /// Whether a peer was resolved against the names that these policies ask for, and what it keeps is not far behind them.
    /// One without an identity is known to all.
    pub fn knows(&self, peer: &Peer) -> bool {
        if peer.identity().is_none() {
            return true;
        }
        self.knows_names(peer) && !peer.passing().is_some_and(|passing| passing.is_stale(&self.0.index))
    }

    pub(crate) fn knows_names(&self, peer: &Peer) -> bool {
        peer.version() == self.0.index.terms.names.version()
    }

    /// What the policies are that apply to a workload alone. See [`Target`].
    pub fn target(&self, workload: &Arc<Workload>) -> Target {
        Target::new(self, workload)
    }

    /// Whether a target is what these policies would make of its workload.
    pub fn fits(&self, target: &Target) -> bool {
        self.0.stamps.are_as(target.seen())
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
        self.entries().map(|entry| self.0.index.policy(entry))
    }

    /// The same, as they are kept.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let in_force = self.0.known.values().filter_map(Known::in_force);
        let mut all: Vec<_> = in_force.filter_map(|number| self.entry(number)).collect();
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
    /// What is in force in their place is told by [`Policies::fallback`].
    pub fn unreadable(&self) -> impl Iterator<Item = &Arc<Unreadable>> {
        self.0.unreadable.values()
    }

    /// What is in force in the place of a policy whose present version cannot be read; none where it can, or where there
    /// is no such policy.
    pub fn fallback(&self, key: &PolicyKey) -> Option<Fallback> {
        match self.known(key)? {
            Known::Good(_) => None,
            Known::LastGood(_) | Known::Kept => Some(Fallback::LastGood),
            Known::Unreadable(unreadable) if self.unreadable_refuses() && !unreadable.dry_run => Some(Fallback::Refusal),
            Known::Unreadable(_) => Some(Fallback::Nothing),
        }
    }

    /// Of the policies that a workload lists those that are not known, in the order of the list, and whom each refuses.
    pub fn missing<'a>(&'a self, listed: &'a [PolicyKey]) -> impl Iterator<Item = (&'a PolicyKey, Refuses)> {
        let missing = listed.iter().filter(|key| self.known(key).is_none());
        missing.map(|key| match self.refuses_missing() {
            Refuses::Plaintext if !is_converted(key) => (key, Refuses::Everybody),
            refuses => (key, refuses),
        })
    }

    /// Whom what is listed and not known refuses, if it comes from a PeerAuthentication. Any other refuses everybody where
    /// such a one refuses plaintext.
    pub(crate) fn refuses_missing(&self) -> Refuses {
        match self.0.istio_exact {
            true => Refuses::Nobody,
            false if self.0.waited => Refuses::Plaintext,
            false => Refuses::Everybody,
        }
    }

    /// Whether what could never be read refuses everything in its scope.
    pub(crate) fn unreadable_refuses(&self) -> bool {
        !(self.0.istio_exact || self.0.lets_unreadable_go)
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

    pub(crate) fn stamps(&self) -> &Stamps {
        &self.0.stamps
    }
}

impl Tables {
    fn names_of(&self, identity: Option<&Identity>) -> Peer {
        let names = &self.index.terms.names;
        let mut peer = Peer::new(identity.cloned(), names.version());
        names.of(identity, |name| peer.name(name));
        peer
    }

    /// Must be called after rows or names have changed.
    fn resolve_nobody(&mut self) {
        let mut nobody = self.names_of(None);
        let passing = self.index.kept_passing(nobody.names(), self.nobody.0.kept());
        nobody.pass(passing);
        self.nobody = Nobody(nobody);
    }

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
        // Rows come to stand in the order of keys.
        stands.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));

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
                Some(known) => drop(self.known.insert(key, known)),
                None => drop(self.known.remove(&key)),
            }
        }
        revision.finish();
        self.in_force = in_force;
        self.resolve_nobody();
        affected
    }

    /// Whose decisions those turn that stand otherwise than before; what was looked up of them fits no longer.
    fn affected(&mut self, stands: &[(PolicyKey, Stand)]) -> Affected {
        let mut affected = Affected::default();
        let mut changed: Vec<&str> = Vec::new();
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
                changed.extend((scope == Scope::Namespace).then_some(&**namespace));
            }
            affected.note_listed(key);
            changed.push(key.as_str());
        }
        self.stamps.note(changed.into_iter());
        affected
    }
}

/// Whether a policy is what istiod makes of one PeerAuthentication, by its name.
pub(crate) fn is_converted(key: &PolicyKey) -> bool {
    converted_from(key).is_some()
}

/// Namespace and name of the PeerAuthentication that istiod made a policy of.
pub(crate) fn converted_from(key: &PolicyKey) -> Option<(&str, &str)> {
    Some((key.namespace(), key.name().strip_prefix("converted_peer_authentication_")?))
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("in_force", &self.0.in_force)
            .field("unreadable", &self.0.unreadable.len())
            .field("istio_exact", &self.0.istio_exact)
            .field("lets_unreadable_go", &self.0.lets_unreadable_go)
            .field("waited", &self.0.waited)
            .finish()
    }
}
