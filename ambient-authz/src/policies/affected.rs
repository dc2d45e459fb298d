//! Whose decisions a change of the policies can turn.

use std::{collections::BTreeSet, sync::Arc};

use ambient_core::{PolicyKey, Workload};

use super::is_converted;
use crate::Scope;

/// The workloads whose decisions a change of the policies can turn: those of the mesh, of some namespaces, and those that
/// list some policies.
///
/// ```
/// use ambient_authz::{policy::Update, Action, Policies, Policy, Rule, Scope};
/// use ambient_core::Workload;
///
/// let deny_all = Policy {
///     key: "shop/closed".into(),
///     namespace: "shop".into(),
///     scope: Scope::Namespace,
///     action: Action::Deny,
///     rules: vec![Rule::default()],
///     dry_run: false,
/// };
/// let (_, affected) = Policies::default().advance([Update::Set(deny_all.into())]);
/// assert!(affected.concerns(&Workload::new("uid", "shop", "stock")));
/// assert!(!affected.concerns(&Workload::new("uid", "office", "printer")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    mesh: bool,
    namespaces: BTreeSet<Arc<str>>,
    listed: BTreeSet<PolicyKey>,
    /// Those that list what is made of a PeerAuthentication, which may not have come.
    awaiting: bool,
}

impl Affected {
    /// Whether it is nobody.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a decision on a connection to a workload can be another than it was, while it lists what it listed before: whoever
    /// changes that too decides its connections again without asking.
    pub fn concerns(&self, workload: &Workload) -> bool {
        self.mesh
            || self.namespaces.contains(&workload.namespace)
            || (!self.listed.is_empty() && workload.policies.iter().any(|key| self.listed.contains(key)))
            || (self.awaiting && workload.policies.iter().any(is_converted))
    }

    /// Adds those whom another change concerns.
    pub fn extend(&mut self, other: Self) {
        self.mesh |= other.mesh;
        self.awaiting |= other.awaiting;
        self.namespaces.extend(other.namespaces);
        self.listed.extend(other.listed);
        self.shorten();
    }

    pub(super) fn note(&mut self, scope: Scope, namespace: &Arc<str>) {
        match scope {
            Scope::Global => self.mesh = true,
            Scope::Namespace => drop(self.namespaces.insert(namespace.clone())),
            Scope::Selector => {}
        }
        self.shorten();
    }

    pub(super) fn note_listed(&mut self, key: &PolicyKey) {
        if !self.mesh {
            self.listed.insert(key.clone());
        }
    }

    pub(super) fn note_awaited(&mut self) {
        self.awaiting = true;
    }

    /// Whom the whole mesh holds need not be named.
    fn shorten(&mut self) {
        if self.mesh && !(self.namespaces.is_empty() && self.listed.is_empty()) {
            self.namespaces = BTreeSet::new();
            self.listed = BTreeSet::new();
        }
    }
}
