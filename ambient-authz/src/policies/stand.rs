//! How a policy stands while updates come in.

use std::sync::Arc;

use super::Known;
use crate::{
    Policy, Scope,
    policy::{Unreadable, Update},
};

/// What will be known under a key; see [`Known`].
#[derive(Clone, Debug)]
pub(super) enum Stand {
    Gone,
    Good(InForce),
    LastGood(InForce),
    Unreadable(Arc<Unreadable>),
    Kept,
}

#[derive(Clone, Debug)]
pub(super) enum InForce {
    /// The one that was in force before, by its number.
    Before(u32),
    New(Arc<Policy>),
}

impl Stand {
    pub(super) fn of(known: Option<&Known>) -> Self {
        match known {
            None => Self::Gone,
            Some(Known::Good(number)) => Self::Good(InForce::Before(*number)),
            Some(Known::LastGood(number)) => Self::LastGood(InForce::Before(*number)),
            Some(Known::Unreadable(unreadable)) => Self::Unreadable(unreadable.clone()),
            Some(Known::Kept) => Self::Kept,
        }
    }

    /// How it stands after an update.
    pub(super) fn after(self, update: Update) -> Self {
        match update {
            Update::Set(policy) => Self::Good(InForce::New(policy)),
            Update::Remove(_) => Self::Gone,
            Update::Unreadable(unreadable) => self.last_good().unwrap_or(Self::Unreadable(unreadable)),
            Update::Kept(_) => self.last_good().unwrap_or(Self::Kept),
        }
    }

    fn last_good(self) -> Option<Self> {
        match self {
            Self::Good(in_force) | Self::LastGood(in_force) => Some(Self::LastGood(in_force)),
            Self::Gone | Self::Unreadable(_) | Self::Kept => None,
        }
    }

    /// Takes a policy that comes again as it was for the one in force.
    pub(super) fn forget_repeated(&mut self, before: Option<u32>, is_in_force: impl FnOnce(u32, &Policy) -> bool) {
        if let Self::Good(in_force) | Self::LastGood(in_force) = self
            && let (InForce::New(policy), Some(before)) = (&*in_force, before)
            && is_in_force(before, policy)
        {
            *in_force = InForce::Before(before);
        }
    }

    /// The one in force before, if it still is.
    pub(super) fn in_force_before(&self) -> Option<u32> {
        match self {
            Self::Good(InForce::Before(number)) | Self::LastGood(InForce::Before(number)) => Some(*number),
            _ => None,
        }
    }

    /// Whether all is as it was.
    pub(super) fn is(&self, known: Option<&Known>) -> bool {
        match (self, known) {
            (Self::Good(InForce::Before(_)), Some(Known::Good(_))) | (Self::LastGood(InForce::Before(_)), Some(Known::LastGood(_))) => true,
            (Self::Good(_) | Self::LastGood(_), _) => false,
            _ => self.decides_as(known),
        }
    }

    /// Whether decisions are what they were.
    pub(super) fn decides_as(&self, known: Option<&Known>) -> bool {
        match (self, known) {
            (Self::Gone, None) | (Self::Kept, Some(Known::Kept)) => true,
            (Self::Unreadable(new), Some(Known::Unreadable(old))) => new == old,
            _ => self.in_force_before().is_some(),
        }
    }

    /// Where it applies, but for the workloads that list it.
    pub(super) fn scope(&self) -> Option<(Scope, &Arc<str>)> {
        match self {
            Self::Good(InForce::New(policy)) | Self::LastGood(InForce::New(policy)) => Some((policy.scope, &policy.namespace)),
            Self::Unreadable(unreadable) => Some((unreadable.scope, &unreadable.namespace)),
            _ => None,
        }
    }
}
