//! What is known of all identities, and who waits for what: shared by both APIs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Identity, TrustBundles, TrustDomain};
use ambient_tls::Trust;
use rustls::crypto::CryptoProvider;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    account::{Account, Given, Turn},
    bundles::{Bundles, Told as Bundled},
    kept::Recalled,
};
use crate::{IssueError, LastHeard, Told};

/// The clock of certificates' dates.
pub(super) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

pub(super) struct Desk {
    /// Who speaks, for messages.
    pub(super) agent: String,
    clock: Clock,
    known: Mutex<Known>,
    /// Apart, since every handshake looks at it.
    present: Mutex<Arc<TrustBundles>>,
    changes: watch::Sender<u64>,
    news: Mutex<BTreeMap<Identity, Told>>,
    new: Notify,
    /// The last failure that was logged; the same one is not logged again.
    logged: Mutex<Option<String>>,
    /// When the agent has said last which roots these are, and whether it is still there to say otherwise.
    last_heard: LastHeard,
    listening: AtomicBool,
}

struct Known {
    bundles: Bundles,
    /// When they were told, where it was an earlier process that they were told to.
    recalled: Option<SystemTime>,
    trust: Arc<Trust>,
    accounts: HashMap<Identity, Account>,
}

impl Desk {
    /// Nothing is known but what an earlier process has left.
    pub(super) fn new(
        agent: String,
        provider: &Arc<CryptoProvider>,
        own: Option<TrustDomain>,
        clock: Clock,
        recalled: Option<Recalled>,
    ) -> Self {
        let (mut bundles, last_heard) = (Bundles::new(own), LastHeard::default());
        let told = recalled.as_ref().map(|recalled| recalled.heard);
        if let Some(Recalled { heard, bundles: kept }) = recalled {
            let domains = kept.domains().count();
            tracing::info!(
                domains,
                "the roots of before this start are trusted until the SPIFFE agent says otherwise"
            );
            last_heard.at(heard);
            bundles.recall(kept);
        }
        let present = bundles.present().clone();
        let known = Known {
            trust: Arc::new(Trust::new(provider, &present)),
            bundles,
            recalled: told,
            accounts: HashMap::new(),
        };
        Self {
            agent,
            clock,
            known: Mutex::new(known),
            present: Mutex::new(present),
            changes: watch::Sender::new(0),
            news: Mutex::default(),
            new: Notify::new(),
            logged: Mutex::default(),
            last_heard,
            listening: AtomicBool::new(false),
        }
    }

    /// Begins to know an identity. Gives `false` if that would be more than `most`.
    pub(super) fn open(&self, identity: &Identity, most: usize) -> bool {
        let mut known = self.known();
        if known.accounts.contains_key(identity) {
            return true;
        }
        if known.accounts.len() >= most {
            return false;
        }
        known.accounts.insert(identity.clone(), Account::new(identity.clone()));
        true
    }

    /// Knows an identity no more.
    pub(super) fn close(&self, identity: &Identity) {
        self.known().accounts.remove(identity);
        lock(&self.news).remove(identity);
    }

    /// Knows an identity no more. That it was taken back is still told, unless nobody has listened for very long.
    pub(super) fn retire(&self, identity: &Identity) {
        self.known().accounts.remove(identity);
        let mut news = lock(&self.news);
        if news.len() > UNTOLD {
            news.remove(identity);
        }
    }

    /// Every identity that is known.
    pub(super) fn identities(&self) -> Vec<Identity> {
        self.known().accounts.keys().cloned().collect()
    }

    /// The agent's whole answer as it concerns one identity.
    pub(super) fn update(&self, identity: &Identity, given: &Given) {
        let now = (self.clock)();
        let mut known = self.known();
        let trust = known.trust.clone();
        let Some(account) = known.accounts.get_mut(identity) else { return };
        let before = account.why().clone();
        let turn = account.update(given, &trust, now);
        self.turned(account, identity, &turn);
        if turn == Turn::Same && *account.why() != before {
            tracing::warn!(%identity, agent = self.agent, why = account.why().text, "no new certificate; what is valid stays");
        }
        drop(known);
        self.changed();
    }

    /// The agent does not vouch for an identity any more.
    pub(super) fn withdraw(&self, identity: &Identity, why: &str) {
        let mut known = self.known();
        let Some(account) = known.accounts.get_mut(identity) else { return };
        let turn = account.withdrawn(why.into());
        self.turned(account, identity, &turn);
        drop(known);
        self.changed();
    }

    /// The agent has said nothing of one identity, or of any. `refused`: it will not as long as it is configured as it is.
    pub(super) fn failed(&self, identity: Option<&Identity>, why: &str, refused: bool) {
        if identity.is_none() && self.listening.swap(false, Ordering::Relaxed) {
            self.last_heard.at((self.clock)());
        }
        let mut known = self.known();
        let all = known.accounts.iter_mut().filter(|(of, _)| identity.is_none_or(|one| one == *of));
        for (_, account) in all {
            match refused {
                true => account.denied(why.into()),
                false => account.failed(why.into()),
            }
        }
        drop(known);
        let mut logged = lock(&self.logged);
        if logged.as_deref() != Some(why) {
            tracing::warn!(agent = self.agent, why, "the SPIFFE agent does not answer; what is valid stays");
            *logged = Some(why.into());
        }
        drop(logged);
        self.changed();
    }

    /// Why the agent does not answer, where it does not.
    pub(super) fn fault(&self) -> Option<String> {
        let why = lock(&self.logged).clone()?;
        Some(format!("{}: {why}", self.agent))
    }

    /// The agent is there.
    pub(super) fn heard(&self) {
        if lock(&self.logged).take().is_some() {
            tracing::info!(agent = self.agent, "the SPIFFE agent answers");
        }
    }

    /// The agent's whole answer as it concerns roots.
    pub(super) fn bundles(&self, own: Option<TrustDomain>, told: Bundled) {
        self.listening.store(true, Ordering::Relaxed);
        self.last_heard.is_there();
        let now = (self.clock)();
        let mut known = self.known();
        known.recalled = None;
        if let Some(own) = own {
            known.bundles.set_own(own);
        }
        let updated = known.bundles.update(told);
        for fault in &updated.faults {
            tracing::warn!(agent = self.agent, %fault, "not taken of the SPIFFE agent");
        }
        if !updated.changed {
            drop(known);
            // That the agent is there to say so may be news.
            self.changed();
            return;
        }
        self.trusts(known, now);
    }

    /// How long what an earlier process was told is still gone by; `None` where it is this one that goes by what it was told itself, or by
    /// nothing.
    pub(super) fn expires_in(&self, longest: Duration) -> Option<Duration> {
        let recalled = self.known().recalled?;
        let age = (self.clock)().duration_since(recalled).unwrap_or_default();
        Some(longest.saturating_sub(age))
    }

    /// What an earlier process was told is not gone by once it is too old: nobody is trusted until the agent says who is.
    pub(super) fn expire(&self, longest: Duration) {
        let now = (self.clock)();
        let mut known = self.known();
        let age = known.recalled.and_then(|told| now.duration_since(told).ok()).unwrap_or_default();
        if age <= longest {
            return;
        }
        tracing::error!(
            ?age,
            ?longest,
            agent = self.agent,
            "the roots of before this start are too old to go by now: nobody is trusted until the agent answers"
        );
        known.recalled = None;
        known.bundles.forget();
        self.trusts(known, now);
    }

    /// Others are trusted now.
    fn trusts(&self, mut known: MutexGuard<'_, Known>, now: SystemTime) {
        let present = known.bundles.present().clone();
        let trust = Arc::new(known.trust.renew(&present));
        for fault in trust.faults() {
            tracing::warn!(agent = self.agent, %fault, "a CRL of the SPIFFE agent");
        }
        known.trust = trust.clone();
        for (identity, account) in &mut known.accounts {
            let turn = account.roots(&trust, now);
            self.turned(account, identity, &turn);
        }
        *lock(&self.present) = present;
        drop(known);
        self.changed();
    }

    /// Told whenever something is known that was not.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether the agent has told roots, and is there to say otherwise.
    pub(super) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// When roots were heard of last.
    pub(super) fn last_heard(&self) -> LastHeard {
        self.last_heard.clone()
    }

    pub(super) fn trust(&self) -> Arc<TrustBundles> {
        lock(&self.present).clone()
    }

    /// The certificate that counts now, however old it is.
    pub(super) fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        let now = (self.clock)();
        let known = self.known();
        known.accounts.get(identity)?.credential(now).ok().cloned()
    }

    /// Waits for a certificate that is not near its end.
    pub(super) async fn wait(&self, identity: &Identity, patience: Duration) -> Result<Arc<Credential>, IssueError> {
        let start = Instant::now();
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let why = match self.fresh(identity) {
                Ok(credential) => return Ok(credential),
                Err(why) => why,
            };
            // What is refused may be a matter of moments, as a pod's entry may be younger than the pod; but not of long.
            let patience = if why.refused { patience.min(REFUSED) } else { patience };
            if timeout_at(start + patience, changes.changed()).await.is_ok() {
                continue;
            }
            let (identity, why, refused) = (identity.clone(), format!("{}: {}", self.agent, why.text), why.refused);
            return Err(match refused {
                true => IssueError::Refused { identity, why },
                false => IssueError::Unavailable { identity, why },
            });
        }
    }

    fn fresh(&self, identity: &Identity) -> Result<Arc<Credential>, super::account::Why> {
        let now = (self.clock)();
        let known = self.known();
        let Some(account) = known.accounts.get(identity) else {
            return Err(super::account::Why {
                text: "it is not asked for any more".into(),
                refused: false,
            });
        };
        let credential = account.credential(now).map_err(Clone::clone)?;
        // An agent renews at half of a life; what is given out must not be the last of one.
        let life = credential.not_after.duration_since(credential.not_before).unwrap_or_default();
        match now < credential.not_before + life / 4 * 3 {
            true => Ok(credential.clone()),
            false => Err(account.why().clone()),
        }
    }

    /// What the agent has said unasked.
    pub(super) async fn told(&self) -> Told {
        loop {
            let first = lock(&self.news).pop_first();
            if let Some((_, told)) = first {
                return told;
            }
            self.new.notified().await;
        }
    }

    fn turned(&self, account: &Account, identity: &Identity, turn: &Turn) {
        let told = match (turn, account.credential((self.clock)())) {
            (Turn::Same, _) => return,
            (Turn::Renewed, Ok(credential)) => Told::Renewed(credential.clone()),
            (Turn::Renewed | Turn::Withdrawn, _) => Told::Withdrawn {
                identity: identity.clone(),
                why: account.why().text.clone(),
            },
        };
        lock(&self.news).insert(identity.clone(), told);
        self.new.notify_one();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock of the system.
pub(super) fn system() -> Clock {
    #[expect(clippy::disallowed_methods, reason = "the dates of certificates are compared with the time of day")]
    Arc::new(SystemTime::now)
}

/// Identities of which nobody has heard yet that they were taken back.
const UNTOLD: usize = 1024;
/// How long a refusal is waited for to be taken back.
const REFUSED: Duration = Duration::from_secs(1);
