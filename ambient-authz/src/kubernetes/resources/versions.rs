//! A resource that changes: its last version that could be read, and what is wrong with its present one.

use ambient_core::PolicyKey;

use super::{ReadError, Reading, Selecting, SelectingKind, Selector};
use crate::policy::Update;

/// The versions of an AuthorizationPolicy that count; one of the two at least.
#[derive(Clone, Debug)]
pub(super) struct Versions {
    good: Option<Reading>,
    error: Option<ReadError>,
}

impl Versions {
    /// A version has come: one that cannot be read leaves in force what was good before.
    pub(super) fn after(before: Option<Self>, read: Result<Reading, ReadError>) -> Self {
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

    /// The version in force, if any could be read.
    pub(super) fn good(&self) -> Option<&Reading> {
        self.good.as_ref()
    }

    /// What makes it known to a snapshot that knows nothing of it.
    pub(super) fn updates(&self) -> Vec<Update> {
        let policy = self.good.as_ref().and_then(|good| good.policy.clone());
        let set = policy.map(|policy| Update::Set(policy.into()));
        let unreadable = self.error.as_ref().map(|error| {
            let unreadable = error.unreadable().into();
            match (&set, &self.good) {
                // The last good version is not for L4: it goes on doing nothing.
                (None, Some(_)) => Update::Kept(unreadable),
                _ => Update::Unreadable(unreadable),
            }
        });
        set.into_iter().chain(unreadable).collect()
    }

    /// What the workloads list that it selects, and whom it selects: as the version in force has it.
    pub(super) fn attached(&self) -> Option<(&PolicyKey, &Selector)> {
        match &self.good {
            Some(good) => Some((&good.policy.as_ref()?.key, good.selector.as_ref()?)),
            None => self.error.as_ref().and_then(|error| Some((&error.key, error.selector.as_ref()?))),
        }
    }

    pub(super) fn selecting(&self) -> Option<Selecting<'_>> {
        let (key, selector) = self.attached()?;
        let policy = self.good.as_ref().and_then(|good| good.policy.as_ref());
        let kind = policy.map_or(SelectingKind::Unreadable, |policy| SelectingKind::Policy {
            action: policy.action,
            dry_run: policy.dry_run,
        });
        Some(Selecting::new(kind, key.clone(), selector))
    }
}

/// A PeerAuthentication whose present version cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub(super) error: ReadError,
    /// Whether an earlier version is in force, and so is among those that were read.
    pub(super) kept: bool,
}

impl Unread {
    pub(super) fn update(&self) -> Update {
        let unreadable = self.error.unreadable().into();
        match self.kept {
            true => Update::Kept(unreadable),
            false => Update::Unreadable(unreadable),
        }
    }

    /// Why no version of it is in force.
    pub(super) fn refusing(&self) -> Option<&ReadError> {
        Some(&self.error).filter(|_| !self.kept)
    }
}
