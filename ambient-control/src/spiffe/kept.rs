//! The roots that an agent tells, on disk: for a restart while it is away.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::TrustBundles;
use tokio::time::{sleep, timeout};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{desk::Desk, svid::moment};
use crate::disk::{
    MemoryConfig, MemoryError,
    trust::{KeptTrust, Root, TrustFile},
};

#[cfg(test)]
mod tests;

/// Where they are kept, and what an earlier process has left.
pub(super) struct Kept {
    file: Arc<TrustFile>,
    recalled: Option<Recalled>,
    /// How long the agent may be away until that is not gone by any more.
    longest: Duration,
}

/// What an earlier process has left that is young enough to go by.
pub(super) struct Recalled {
    pub(super) heard: SystemTime,
    pub(super) bundles: TrustBundles,
}

impl Kept {
    /// # Errors
    /// When the file system refuses, or others could have written there. A file that is damaged is told in the log, and begun
    /// anew; so is one whose agent was not heard of for too long.
    pub(super) fn open(config: &MemoryConfig, now: SystemTime) -> Result<Self, MemoryError> {
        let (file, kept) = TrustFile::open(&config.directory, "spiffe.roots")?;
        let recalled = kept.and_then(|kept| {
            let age = now.duration_since(kept.heard).unwrap_or_default();
            if age > config.longest {
                let longest = config.longest;
                tracing::error!(
                    ?age,
                    ?longest,
                    "the roots that the SPIFFE agent told are too old to go by: nobody is trusted until it answers"
                );
                return None;
            }
            Some(Recalled {
                bundles: kept.bundles(now),
                heard: kept.heard,
            })
        });
        Ok(Self {
            file: Arc::new(file),
            recalled,
            longest: config.longest,
        })
    }

    pub(super) fn take_recalled(&mut self) -> Option<Recalled> {
        self.recalled.take()
    }

    /// Keeps what a desk knows, whenever that is something else and every now and then: for ever. What cannot be kept is told,
    /// and tried again; only a restart misses it.
    pub(super) async fn follow(self, desk: &Desk) {
        let mut changes = desk.watch();
        let mut last: Option<Arc<TrustBundles>> = None;
        loop {
            desk.expire(self.longest);
            changes.mark_unchanged();
            let present = desk.trust();
            if desk.is_listening() && last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &present)) {
                let (file, kept) = (self.file.clone(), of(&present, desk.now()));
                let written = tokio::task::spawn_blocking(move || file.keep(&kept)).await;
                match written {
                    Ok(Ok(())) => last = Some(present),
                    Ok(Err(error)) => {
                        tracing::error!(%error, "the roots of the SPIFFE agent are not remembered: a restart without it has none");
                        sleep(AGAIN).await;
                    }
                    // The runtime is ending.
                    Err(_) => return std::future::pending().await,
                }
                continue;
            }
            let next = desk.expires_in(self.longest).map_or(DATED, |left| left.clamp(LEAST, DATED));
            if timeout(next, changes.changed()).await.is_err() {
                // The same roots, of which the date is old.
                last = None;
            }
        }
    }
}

/// What is written of roots that hold now. A root is trusted until its own end, or until the agent says otherwise.
fn of(bundles: &TrustBundles, heard: SystemTime) -> KeptTrust {
    let (mut roots, mut lists) = (Vec::new(), Vec::new());
    for of in bundles.domains() {
        for der in bundles.roots(of) {
            // What is no certificate was not taken.
            let until = X509Certificate::from_der(der).map_or(heard, |(_, root)| moment(root.validity().not_after.timestamp()));
            let (of, der) = (of.clone(), der.clone());
            roots.push(Root { of, der, until });
        }
        lists.extend(bundles.crls(of).iter().map(|list| (of.clone(), list.clone())));
    }
    KeptTrust { heard, roots, lists }
}

/// How old the date of what is kept may become while the agent is there.
const DATED: Duration = Duration::from_secs(300);
/// Between two looks whether what was recalled is too old.
const LEAST: Duration = Duration::from_secs(1);
/// Until the next attempt to write what could not be written.
const AGAIN: Duration = Duration::from_secs(10);
