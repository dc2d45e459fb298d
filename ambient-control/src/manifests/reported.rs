//! What this process writes of captures: that it stands there, and that nothing does of pods that are gone.

#[cfg(feature = "serve")]
use std::sync::Arc;
use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, PoisonError},
};

use ambient_core::PodUid;

#[cfg(feature = "serve")]
use super::Statuses;
use super::{Status, directory::Directory};

/// The reports that are this process's to write.
#[derive(Debug)]
pub(super) struct Reported {
    /// Of the node that watches.
    pub(super) own: Option<Status>,
    /// Of the nodes that a control plane serves.
    #[cfg(feature = "serve")]
    pub(super) kept: Option<Arc<Statuses>>,
    /// Looks since the last round began.
    pub(super) looks: u32,
    /// Looks from one round to the next.
    pub(super) round: u32,
    /// What is named, was in no manifest as the last round began, and has not been in any since.
    pub(super) missing: BTreeSet<PodUid>,
    pub(super) failing: Failing,
    pub(super) forgetting: Failing,
}

impl Default for Reported {
    fn default() -> Self {
        Self {
            own: None,
            #[cfg(feature = "serve")]
            kept: None,
            looks: 0,
            round: ROUND,
            missing: BTreeSet::new(),
            forgetting: Failing::default(),
            failing: Failing::default(),
        }
    }
}

impl Reported {
    /// Forgets, once in a round, what is in no manifest now and has not been since the last: a node that is away takes nothing
    /// back, and a file that goes for a while takes no capture along, which its node would not say again. The first look begins a
    /// round.
    pub(super) fn look(&mut self, directory: &Directory) {
        self.missing.retain(|uid| !directory.has_pod(uid));
        let begins = self.looks == 0;
        self.looks = (self.looks + 1) % self.round;
        if !begins {
            return;
        }
        let missing = directory.lacks(self.named());
        let gone: BTreeSet<PodUid> = missing.intersection(&self.missing).cloned().collect();
        self.missing = missing;
        let forgotten = if gone.is_empty() { Ok(()) } else { self.forget(&gone) };
        let failure = forgotten.err().map(|error| error.to_string());
        if let Some(told) = self
            .forgetting
            .after(failure, "pods that are gone are taken out of the reports again")
        {
            tracing::warn!("{told}");
        }
    }

    fn named(&self) -> BTreeSet<PodUid> {
        let named = self.own.as_ref().map(Status::named).unwrap_or_default();
        #[cfg(feature = "serve")]
        let named = named.into_iter().chain(self.kept.iter().flat_map(|kept| kept.named())).collect();
        named
    }

    fn forget(&self, gone: &BTreeSet<PodUid>) -> io::Result<()> {
        let own = self.own.as_ref().map_or(Ok(()), |own| own.forget(gone));
        #[cfg(feature = "serve")]
        let own = self.kept.as_ref().map_or(Ok(()), |kept| kept.forget(gone)).and(own);
        own
    }

    /// Writes the node's own again, where somebody has removed or changed it; before each tenth look.
    pub(super) async fn mend(&self) {
        let Some(own) = self.own.as_ref().filter(|_| self.looks.is_multiple_of(MENDS)) else {
            return;
        };
        let failure = own.mend().await.err().map(|error| error.to_string());
        if let Some(told) = self.failing.after(failure, "what this node reports is written again") {
            tracing::warn!("{told}");
        }
    }
}

/// What is tried again and again, and fails: told of once, however often it fails alike.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<Option<String>>);

impl Failing {
    /// What is to be told after another attempt, if anything; `well` where it no longer fails.
    pub(super) fn after(&self, failure: Option<String>, well: &str) -> Option<String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == failure {
            return None;
        }
        let told = match &failure {
            Some(error) => format!("{error}; it is tried again"),
            None => well.to_owned(),
        };
        *known = failure;
        Some(told)
    }
}

/// Looks from one mending to the next: a second. Whoever begins to read in between finds the report missing, as he may one that is late.
const MENDS: u32 = 10;

/// An hour: longer than a manifest is away while it is replaced, by whichever hand.
const ROUND: u32 = 36_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_somebody_has_removed_is_written_again_before_the_tenth_look() {
        let scratch = tempfile::tempdir().unwrap();
        let own = Status::open(scratch.path(), "node-1").unwrap();
        own.captured(&"u1".into(), &[], std::time::UNIX_EPOCH).await.unwrap();
        let file = scratch.path().join("status/node-1.json");
        let settings = crate::objects::Settings::default();
        let directory = Directory::new(scratch.path().into(), settings);
        let mut reported = Reported {
            own: Some(own),
            ..Reported::default()
        };
        for look in 0..3 * MENDS {
            std::fs::remove_file(&file).unwrap_or_default();
            reported.mend().await;
            assert_eq!(file.exists(), look % MENDS == 0, "{look}");
            reported.look(&directory);
        }
    }

    #[test]
    fn what_fails_again_and_again_is_told_once_and_so_is_its_end() {
        let failing = Failing::default();
        let after = |failure: Option<&str>| failing.after(failure.map(str::to_owned), "it is well");
        assert_eq!(after(None), None);
        assert_eq!(after(Some("full")).as_deref(), Some("full; it is tried again"));
        assert_eq!(after(Some("full")), None);
        assert_eq!(after(Some("read-only")).as_deref(), Some("read-only; it is tried again"));
        assert_eq!(after(None).as_deref(), Some("it is well"));
        assert_eq!(after(None), None);
    }
}
