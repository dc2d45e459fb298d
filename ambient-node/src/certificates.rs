//! A valid certificate for each identity that a pod of this node bears: fetched before it is needed, renewed at half
//! its life, kept through every failure until its end.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use ambient_control::{IssueError, Issuer};
use ambient_core::{Credential, Credentials, Identity, TrustBundles};
use arc_swap::ArcSwapOption;
use tokio::{sync::Notify, task::JoinSet, time};

use crate::clock;

#[cfg(test)]
mod tests;

/// How long one request to the issuer may take.
const ASKING: Duration = Duration::from_secs(10);
/// The first wait after a failed renewal, doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(150);
/// Requests under way at a time.
const AT_ONCE: usize = 8;
/// Between two looks at the wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// No certificate is asked for again sooner, however short it lives.
const LEAST_LIFE: Duration = Duration::from_millis(100);

/// Why an identity has no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The issuer refused or failed.
    #[error("no certificate for {0}: {1}")]
    Issue(Identity, #[source] IssueError),
    /// The issuer did not answer.
    #[error("no certificate for {0}: the issuer did not answer within {ASKING:?}")]
    Timeout(Identity),
}

#[derive(Debug)]
struct Slot {
    credential: Arc<Credential>,
    holders: usize,
    /// When to ask for the next one, and how long to wait after a failure.
    due: SystemTime,
    wait: Duration,
    /// Whether the next one is being asked for.
    asked: bool,
}

impl Slot {
    fn new(credential: Arc<Credential>) -> Self {
        let now = clock::wall();
        Self {
            due: now + until_renewal(&credential, now),
            credential,
            holders: 0,
            wait: FIRST_WAIT,
            asked: false,
        }
    }
}

/// The certificates of this node's pods. Implements [`Credentials`]: a handshake looks at what is here, and never
/// waits on the issuer.
pub(crate) struct Certificates {
    issuer: Arc<dyn Issuer>,
    slots: RwLock<HashMap<Identity, Slot>>,
    trust: ArcSwapOption<TrustBundles>,
    changed: Notify,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    pub(crate) fn new(issuer: Arc<dyn Issuer>) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            slots: RwLock::default(),
            trust: ArcSwapOption::empty(),
            changed: Notify::new(),
        })
    }

    /// Roots that the control plane gave; they take the place of the issuer's.
    pub(crate) fn set_trust(&self, trust: Arc<TrustBundles>) {
        self.trust.store(Some(trust));
    }

    /// Every certificate that is here now, valid or not.
    pub(crate) fn present(&self) -> Vec<Arc<Credential>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.values().map(|slot| slot.credential.clone()).collect()
    }

    /// Sees to it that an identity has a certificate for as long as the answer lives.
    ///
    /// Cancel safe: nothing is held until it ends.
    pub(crate) async fn hold(self: &Arc<Self>, identity: &Identity) -> Result<Held, CertificateError> {
        if self.join(identity) {
            return Ok(Held {
                of: self.clone(),
                identity: identity.clone(),
            });
        }
        let credential = self.ask(identity).await?;
        let slot = Slot::new(credential);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let held = slots.get(identity).map_or(0, |old| old.holders);
        // Another pod of the same account may have been faster: the one that lives longer stays.
        if slots
            .get(identity)
            .is_none_or(|old| old.credential.not_after < slot.credential.not_after)
        {
            slots.insert(identity.clone(), slot);
        }
        if let Some(slot) = slots.get_mut(identity) {
            slot.holders = held + 1;
        }
        drop(slots);
        self.changed.notify_one();
        Ok(Held {
            of: self.clone(),
            identity: identity.clone(),
        })
    }

    /// Renews what is due, for as long as it is polled.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        // What was being asked for when a former run ended is asked for again.
        for slot in self.slots.write().unwrap_or_else(PoisonError::into_inner).values_mut() {
            slot.asked = false;
        }
        let mut asking = JoinSet::new();
        loop {
            let room = asking.len() < AT_ONCE;
            let wait = if room { self.next_due() } else { LONGEST_SLEEP };
            tokio::select! {
                () = time::sleep(wait) => {}
                () = self.changed.notified() => {}
                Some(_) = asking.join_next() => {}
            }
            for identity in self.take_due(AT_ONCE.saturating_sub(asking.len())) {
                let of = self.clone();
                asking.spawn(async move { of.renew(identity).await });
            }
        }
    }

    async fn renew(&self, identity: Identity) {
        let renewed = self.ask(&identity).await;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get_mut(&identity) else { return };
        slot.asked = false;
        match renewed {
            Ok(credential) => {
                let holders = slot.holders;
                *slot = Slot {
                    holders,
                    ..Slot::new(credential)
                };
            }
            Err(error) => {
                tracing::warn!(%identity, %error, retry_in = ?slot.wait, "certificate not renewed; the present one stays until its end");
                slot.due = clock::wall() + slot.wait;
                slot.wait = (slot.wait * 2).min(LONGEST_WAIT);
            }
        }
    }

    /// How long nothing is due; by the wall clock, as the dates of certificates are, and never long, as that may be set.
    fn next_due(&self) -> Duration {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let next = slots.values().filter(|slot| !slot.asked).map(|slot| slot.due).min();
        let wait = next.map_or(LONGEST_SLEEP, |due| due.duration_since(clock::wall()).unwrap_or(Duration::ZERO));
        wait.min(LONGEST_SLEEP)
    }

    fn take_due(&self, most: usize) -> Vec<Identity> {
        let now = clock::wall();
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let due = slots.iter_mut().filter(|(_, slot)| !slot.asked && slot.due <= now).take(most);
        let asked = due.map(|(identity, slot)| {
            slot.asked = true;
            identity.clone()
        });
        asked.collect()
    }

    async fn ask(&self, identity: &Identity) -> Result<Arc<Credential>, CertificateError> {
        match time::timeout(ASKING, self.issuer.issue(identity)).await {
            Ok(Ok(credential)) => Ok(credential),
            Ok(Err(error)) => Err(CertificateError::Issue(identity.clone(), error)),
            Err(_) => Err(CertificateError::Timeout(identity.clone())),
        }
    }

    fn join(&self, identity: &Identity) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(identity) {
            Some(slot) if slot.credential.is_valid_at(clock::wall()) => {
                slot.holders += 1;
                true
            }
            _ => false,
        }
    }
}

/// Half the life, less up to a tenth of it, by the identity's own number, so that a node's pods do not all ask at once.
fn until_renewal(credential: &Credential, now: SystemTime) -> Duration {
    let half = credential.half_life().duration_since(now).unwrap_or(Duration::ZERO);
    let spread: u32 = credential
        .identity
        .as_str()
        .bytes()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    half.saturating_sub(half / 1000 * (spread % 100)).max(LEAST_LIFE)
}

impl Credentials for Certificates {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots
            .get(identity)
            .map(|slot| slot.credential.clone())
            .filter(|credential| credential.is_valid_at(clock::wall()))
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.trust.load_full().unwrap_or_else(|| self.issuer.trust())
    }
}

/// Keeps a certificate fresh; the last one of an identity lets it go.
#[derive(Debug)]
pub(crate) struct Held {
    of: Arc<Certificates>,
    identity: Identity,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut slots = self.of.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(&self.identity) {
            slot.holders = slot.holders.saturating_sub(1);
            if slot.holders == 0 {
                slots.remove(&self.identity);
            }
        }
    }
}
