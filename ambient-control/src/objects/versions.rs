//! A policy that changes: what is in force of it, and what is told.

use std::sync::Arc;

use ambient_authz::{
    Policy,
    kubernetes::{ReadError, Selector},
    policy::{self, Unreadable},
};
use ambient_core::PolicyKey;

/// A policy's last version that could be read, and what is wrong with its present one. One of them at least.
#[derive(Debug)]
pub(super) struct Versions<T> {
    pub(super) good: Option<T>,
    pub(super) error: Option<ReadError>,
}

impl<T> Versions<T> {
    /// A version has come: one that cannot be read leaves in force what was good before.
    pub(super) fn after(before: Option<Self>, read: Result<T, ReadError>) -> Self {
        match read {
            Ok(good) => Self {
                good: Some(good),
                error: None,
            },
            Err(error) => Self {
                good: before.and_then(|before| before.good),
                error: Some(error),
            },
        }
    }

    /// Why no version of it is in force.
    pub(super) fn unread(&self) -> Option<&ReadError> {
        self.error.as_ref().filter(|_| self.good.is_none())
    }

    pub(super) fn told_unreadable(&self, error: &ReadError) -> Told {
        let unreadable = Arc::new(error.unreadable());
        match self.good {
            Some(_) => Told::Kept(unreadable),
            None => Told::Unreadable(unreadable),
        }
    }
}

/// An AuthorizationPolicy that was read.
#[derive(Debug)]
pub(super) struct Authorization {
    /// None where it is not for L4.
    pub(super) policy: Option<Arc<Policy>>,
    pub(super) selector: Option<Selector>,
}

impl Versions<Authorization> {
    /// What is told of it, and its key.
    pub(super) fn told(&self) -> Option<(PolicyKey, Told)> {
        let policy = self.good.as_ref().and_then(|good| good.policy.as_ref());
        Some(match (policy, &self.error) {
            (Some(policy), None) => (policy.key.clone(), Told::Policy(policy.clone())),
            (Some(policy), Some(error)) => (error.key.clone(), Told::LastGood(policy.clone(), Arc::new(error.unreadable()))),
            (None, Some(error)) => (error.key.clone(), self.told_unreadable(error)),
            (None, None) => return None,
        })
    }

    /// The key that the workloads of its selector list.
    pub(super) fn attached(&self) -> Option<(&PolicyKey, &Selector)> {
        match (&self.good, &self.error) {
            (Some(good), _) => Some((&good.policy.as_ref()?.key, good.selector.as_ref()?)),
            (None, error) => error.as_ref().and_then(|e| Some((&e.key, e.selector.as_ref()?))),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Policy(Arc<Policy>),
    /// The last good version, and what is wrong with the present one.
    LastGood(Arc<Policy>, Arc<Unreadable>),
    /// The last good version is in force under other keys, or is nothing.
    Kept(Arc<Unreadable>),
    /// No version was ever good.
    Unreadable(Arc<Unreadable>),
}

impl Told {
    pub(super) fn in_force(&self) -> Option<&Arc<Policy>> {
        match self {
            Self::Policy(policy) | Self::LastGood(policy, _) => Some(policy),
            Self::Kept(_) | Self::Unreadable(_) => None,
        }
    }

    /// The updates that lead here from what was told before.
    pub(super) fn updates(&self, before: Option<&Self>) -> Vec<policy::Update> {
        let in_force = before.and_then(Self::in_force);
        let set = |policy: &Arc<Policy>| policy::Update::Set(policy.clone());
        // What has a new beginning falls back on nothing that was there before it.
        let anew = |key: &PolicyKey| before.map(|_| policy::Update::Remove(key.clone()));
        match self {
            Self::Policy(policy) => vec![set(policy)],
            Self::LastGood(policy, unreadable) => {
                let first = (in_force != Some(policy)).then(|| set(policy));
                first.into_iter().chain([policy::Update::Unreadable(unreadable.clone())]).collect()
            }
            Self::Kept(unreadable) => anew(&unreadable.key)
                .into_iter()
                .chain([policy::Update::Kept(unreadable.clone())])
                .collect(),
            Self::Unreadable(unreadable) => {
                let update = policy::Update::Unreadable(unreadable.clone());
                anew(&unreadable.key).into_iter().chain([update]).collect()
            }
        }
    }
}
