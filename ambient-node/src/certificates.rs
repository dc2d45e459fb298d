//! A valid certificate for each identity that a pod of this node bears: fetched before it is needed, renewed at half
//! its life, kept through every failure until its end.
//!
//! [`queue`] says what is asked for next; here it is asked.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use ambient_control::{IssueError, Issuer, Told};
use ambient_core::{Credential, Credentials, Identity, PodUid, TrustBundles};
use ambient_tls::Configs;
use arc_swap::ArcSwapOption;
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time,
};

use crate::{clock, entropy, text::rfc3339_of};
use queue::{Failure, Life, Now, Queue, Wait};
use standing::Judged;

pub(crate) use memory::{Keep, Memory};
pub use memory::{KeysError, NodeKeys};
pub(crate) use standing::Flaw;

mod memory;
mod queue;
pub(crate) mod standing;
#[cfg(test)]
mod tests;

/// How long one request to the issuer may take.
const ASKING: Duration = Duration::from_secs(10);
/// How long a pod that is to be served waits for its certificate.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection does, whose pod has none that is valid (any more).
const BRIEFLY: Duration = Duration::from_secs(10);
/// How often it is looked whether there is room by now for what could not be kept.
const FOR_ROOM: Duration = Duration::from_secs(2);
/// Between two looks at the wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why an identity has no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The issuer refused or failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The issuer did not answer.
    #[error("no certificate for {0}: the issuer did not answer within {ASKING:?}")]
    Timeout(Identity),
    /// Its turn has not come, or its answer.
    #[error("no certificate for {0} within {1:?}: others are asked for before it, or the issuer is slow")]
    Waited(Identity, Duration),
    /// No pod of this node bears it.
    #[error("no certificate for {0}: no pod of this node bears that identity")]
    Unknown(Identity),
    /// The request broke off.
    #[error("no certificate for {0}: the request for it has broken off")]
    Broken(Identity),
    /// What the issuer gave does not hold at this moment.
    #[error("no certificate for {0}: what was issued holds from {1} to {2}, and this machine's clock says {3}: set that, or the issuer's")]
    NotNow(Identity, String, String, String),
    /// Peers would refuse what the issuer gave, and there is one.
    #[error("no other certificate for {0}: peers would refuse the one that was issued: {1}")]
    Unaccepted(Identity, String),
}

impl CertificateError {
    /// Whether the issuer has said so.
    fn says(&self) -> Failure {
        match self {
            Self::Issue(IssueError::Refused { .. }) | Self::Unknown(_) | Self::NotNow(..) | Self::Unaccepted(..) => Failure::Answered,
            Self::Issue(IssueError::Unavailable { .. }) | Self::Timeout(_) | Self::Waited(..) | Self::Broken(_) => Failure::Silence,
        }
    }
}

/// How the last request went; counts up, so that each is news.
type News = (u64, Result<(), CertificateError>);

/// What is known of an identity besides its certificate.
#[derive(Debug)]
struct Slot {
    holders: usize,
    news: watch::Sender<News>,
}

/// What changes slowly, behind one lock that no handshake takes.
#[derive(Debug, Default)]
struct Asking {
    queue: Queue<Identity>,
    slots: HashMap<Identity, Slot>,
}

/// How often requests to the issuer have ended so.
pub(crate) type Outcomes = Family<[(&'static str, &'static str); 1], Counter>;

/// The certificates of this node's pods. Implements [`Credentials`]: a handshake looks at what is here, and never
/// waits on the issuer.
pub(crate) struct Certificates {
    issuer: Arc<dyn Issuer>,
    present: RwLock<HashMap<Identity, Arc<Credential>>>,
    /// Identities that were withdrawn since somebody has looked.
    withdrawn: Mutex<BTreeSet<Identity>>,
    asking: Mutex<Asking>,
    /// Identities, and the pods of this node that bear or will bear them; each of these is one holder.
    expected: Mutex<HashSet<(Identity, PodUid)>>,
    trust: ArcSwapOption<TrustBundles>,
    configs: Arc<Configs>,
    judged: Mutex<Judged>,
    outcomes: Outcomes,
    before: Option<Before>,
    changed: Notify,
}

/// What outlives the process, and what has outlived the one before.
struct Before {
    keep: Box<dyn Keep>,
    /// Not yet asked for.
    left: Mutex<HashMap<Identity, Arc<Credential>>>,
    /// In use, until the issuer gives others.
    used: Mutex<HashSet<Identity>>,
    /// Whom that process trusted: for as long as the issuer has not said.
    trust: Option<Arc<TrustBundles>>,
    /// The trust that was kept last.
    kept: Mutex<Option<Arc<TrustBundles>>>,
    owed: Mutex<Owed>,
}

/// What a restart would lack, because the file system has refused it.
#[derive(Debug, Default)]
struct Owed {
    identities: BTreeSet<Identity>,
    trust: bool,
    /// The last refusal.
    why: String,
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.identities.is_empty() && !self.trust
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    #[cfg(test)]
    pub(crate) fn new(issuer: Arc<dyn Issuer>) -> Arc<Self> {
        Self::keeping(issuer, Self::reading(), None, Outcomes::default())
    }

    #[cfg(test)]
    fn reading() -> Arc<Configs> {
        Arc::new(Configs::new(Arc::new(ambient_tls::provider())))
    }

    /// With what a process before has kept; what trust says is read by `configs`, and requests are counted in `outcomes`.
    pub(crate) fn keeping(issuer: Arc<dyn Issuer>, configs: Arc<Configs>, keep: Option<Box<dyn Keep>>, outcomes: Outcomes) -> Arc<Self> {
        let before = keep.map(|keep| Before::load(keep, &issuer.trust()));
        Arc::new(Self {
            issuer,
            outcomes,
            before,
            present: RwLock::default(),
            withdrawn: Mutex::default(),
            asking: Mutex::default(),
            expected: Mutex::default(),
            trust: ArcSwapOption::empty(),
            configs,
            judged: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Roots that the control plane gave; they take the place of the issuer's.
    pub(crate) fn set_trust(&self, trust: Arc<TrustBundles>) {
        self.trust.store(Some(trust));
        self.keep_trust();
    }

    /// Identities whose certificate is of a process before this, as the issuer has given no other yet; in the order of
    /// their names, with its end.
    pub(crate) fn of_before(&self) -> Vec<(Identity, SystemTime)> {
        let Some(before) = &self.before else { return Vec::new() };
        // Not held on: who keeps a certificate holds those that are present, and then asks for this.
        let used = locked(&before.used).clone();
        let ends = used.into_iter().filter_map(|identity| {
            let end = self.credential(&identity)?.not_after;
            Some((identity, end))
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        ends
    }

    fn keep_trust(&self) {
        let Some(before) = &self.before else { return };
        let present = self.trust();
        let mut kept = locked(&before.kept);
        if present.domains().next().is_none() || kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &present)) {
            return;
        }
        match before.keep.put_trust(&present) {
            Ok(()) => {
                *kept = Some(present);
                locked(&before.owed).trust = false;
            }
            Err(error) => {
                let mut owed = locked(&before.owed);
                owed.why = error.to_string();
                if !std::mem::replace(&mut owed.trust, true) {
                    tracing::warn!(%error, "the roots are not kept for a restart, until they can be written");
                }
            }
        }
    }

    /// What is wrong with what certificates come from.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.issuer.faults()
    }

    /// Identities whose certificate holds, and of which the last request for another has failed; in the order of their names, with
    /// the reason.
    pub(crate) fn unrenewed(&self) -> Vec<(Identity, String)> {
        let (asking, now) = (self.asking(), clock::wall());
        let held = asking.slots.iter().filter(|(identity, _)| asking.queue.is_held(identity, now));
        let failed = held.filter_map(|(identity, slot)| match &slot.news.borrow().1 {
            // Nobody was asked yet.
            Ok(()) | Err(CertificateError::Unknown(_)) => None,
            Err(error) => Some((identity.clone(), error.to_string())),
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort_unstable();
        failed
    }

    /// How many certificates a restart would lack, whether the roots too, and why, where it would lack any.
    pub(crate) fn unkept(&self) -> Option<(usize, bool, String)> {
        let owed = locked(&self.before.as_ref()?.owed);
        (!owed.is_empty()).then(|| (owed.identities.len(), owed.trust, owed.why.clone()))
    }

    /// Keeps what there was no room for, if there is by now.
    fn keep_owed(&self) {
        let Some(before) = &self.before else { return };
        let (identities, trust) = {
            let owed = locked(&before.owed);
            (owed.identities.clone(), owed.trust)
        };
        for identity in identities {
            // Held until it is written: whoever withdraws it meanwhile wipes it after that.
            let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
            match present.get(&identity) {
                Some(credential) => before.keep(credential),
                None => drop(locked(&before.owed).identities.remove(&identity)),
            }
        }
        if trust {
            self.keep_trust();
        }
        if self.unkept().is_none() {
            tracing::info!("what could not be written is kept for a restart now");
        }
    }

    /// Every certificate that is here now, valid or not.
    pub(crate) fn present(&self) -> Vec<Arc<Credential>> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present.values().cloned().collect()
    }

    /// An identity's certificate is no good any more, such as one that is revoked: another is asked for now.
    fn renew(&self, identity: &Identity) {
        self.asking().queue.spoilt(identity, clock::wall());
        self.changed.notify_one();
    }

    /// Identities that are needed here and have no valid certificate, in the order of their names.
    pub(crate) fn lacking(&self) -> Vec<Identity> {
        let asking = self.asking();
        let mut lacking: Vec<_> = asking.queue.lacking(clock::wall()).cloned().collect();
        lacking.sort_unstable();
        lacking
    }

    /// Pods of this node bear these identities, or are about to: each is asked for when nothing else is more urgent.
    pub(crate) fn expect(&self, borne: impl IntoIterator<Item = (Identity, PodUid)>) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let now: HashSet<(Identity, PodUid)> = borne.into_iter().collect();
        for (identity, pod) in now.difference(&expected) {
            self.want(identity, pod);
        }
        for (identity, pod) in expected.difference(&now) {
            self.release(identity, pod);
        }
        *expected = now;
        drop(expected);
        self.changed.notify_one();
    }

    /// All pods of this node are known by now: who has a certificate of before this start, and was not asked for, is here no more.
    pub(crate) fn wipe_left(&self) {
        let Some(before) = &self.before else { return };
        let left: Vec<_> = locked(&before.left).drain().collect();
        for (identity, _) in left {
            before.wipe(&identity);
        }
    }

    /// Whether the issuer goes by which pods bear an identity: what it is asked for before they are known it may refuse.
    pub(crate) fn go_by_pods(&self) -> bool {
        self.issuer.takes_back()
    }

    /// Sees to it that an identity, which a pod bears, has a certificate for as long as the answer lives.
    ///
    /// Cancel safe: nothing is held until it ends. Needs [`Certificates::keep_fresh`] to run.
    pub(crate) async fn hold(self: &Arc<Self>, identity: &Identity, pod: &PodUid) -> Result<Held, CertificateError> {
        self.want(identity, pod);
        let held = Held {
            of: self.clone(),
            identity: identity.clone(),
            pod: pod.clone(),
        };
        self.wait(identity, PATIENCE).await?;
        Ok(held)
    }

    /// Waits for a moment until a pod's identity has a valid certificate; it does so at once if it has one. Where the last
    /// request has failed and the next is not due, that is the answer. Cancel safe.
    pub(crate) async fn ready(&self, identity: &Identity) -> Result<(), CertificateError> {
        if self.credential(identity).is_some() {
            return Ok(());
        }
        self.wait(identity, BRIEFLY).await
    }

    async fn wait(&self, identity: &Identity, patience: Duration) -> Result<(), CertificateError> {
        let unknown = || CertificateError::Unknown(identity.clone());
        let (mut news, _waiting) = {
            let mut asking = self.asking();
            let Asking { queue, slots } = &mut *asking;
            let slot = slots.get(identity).ok_or_else(unknown)?;
            match queue.wait(identity, now()) {
                Wait::Held => return Ok(()),
                Wait::Failed(_) => return slot.news.borrow().1.clone(),
                Wait::Unknown => return Err(unknown()),
                Wait::Joined => {}
            }
            (slot.news.subscribe(), Waiting { of: self, identity })
        };
        self.changed.notify_one();
        match time::timeout(patience, news.changed()).await {
            Ok(Ok(())) => news.borrow().1.clone(),
            Ok(Err(_)) => Err(unknown()),
            Err(_) => Err(CertificateError::Waited(identity.clone(), patience)),
        }
    }

    /// Asks for what is due, for as long as it is polled.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        // What was being asked for when a former run ended is asked for again.
        self.asking().queue.restart();
        let mut requests = JoinSet::new();
        let mut room_at = time::Instant::now() + FOR_ROOM;
        loop {
            let owes = self.unkept().is_some();
            if owes && time::Instant::now() >= room_at {
                self.keep_owed();
                room_at = time::Instant::now() + FOR_ROOM;
            }
            while let Some(identity) = self.next() {
                let of = self.clone();
                requests.spawn(async move { of.request(identity).await });
            }
            // By the wall clock, as the dates of certificates are, and never long, as that may be set.
            let wait = self.asking().queue.timeout(now()).unwrap_or(LONGEST_SLEEP);
            tokio::select! {
                () = time::sleep(wait.min(LONGEST_SLEEP)) => {}
                () = time::sleep_until(room_at), if owes => {}
                () = self.changed.notified() => {}
                Some(_) = requests.join_next() => {}
                told = self.issuer.told() => self.hear(told),
            }
        }
    }

    fn next(&self) -> Option<Identity> {
        self.asking().queue.next(now())
    }

    async fn request(&self, identity: Identity) {
        let mut request = Request {
            of: self,
            identity,
            told: false,
        };
        let identity = &request.identity;
        let outcome = match time::timeout(ASKING, self.issuer.issue(identity)).await {
            Ok(Ok(credential)) => Ok(credential),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(CertificateError::Timeout(identity.clone())),
        };
        request.told = true;
        self.answered(identity, outcome);
    }

    /// Takes what has come of a request.
    fn answered(&self, identity: &Identity, outcome: Result<Arc<Credential>, CertificateError>) {
        let word = match outcome.as_ref().map_err(CertificateError::says) {
            Ok(_) => "issued",
            Err(Failure::Answered) => "refused",
            Err(Failure::Silence) => "unanswered",
        };
        self.outcomes.get_or_create(&[("outcome", word)]).inc();
        let outcome = outcome.map(|issued| (self.refusal(&issued, &self.trust()), issued));
        let mut asking = self.asking();
        let Asking { queue, slots } = &mut *asking;
        let outcome = outcome.and_then(|(refusal, issued)| {
            let now = clock::wall();
            // Neither takes the place of one that holds.
            match (issued.is_valid_at(now), refusal, self.credential(identity)) {
                (false, _, Some(_)) => Err(not_now(&issued, now)),
                (_, Some(why), Some(_)) => Err(CertificateError::Unaccepted(identity.clone(), why)),
                _ => Ok(issued),
            }
        });
        let result = match outcome {
            Ok(credential) => {
                let now = now();
                let life = Life::issued(credential.not_before, credential.not_after, now.wall, entropy::word());
                let taken = queue.issued(identity, life, now, entropy::word());
                if taken {
                    let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
                    present.insert(identity.clone(), credential.clone());
                    drop(present);
                    if let Some(before) = &self.before {
                        before.keep(&credential);
                    }
                } else if !queue.is_held(identity, clock::wall()) {
                    // It was withdrawn meanwhile: who waits, waits for the next answer.
                    return;
                }
                if !taken || life.holds(now.wall) {
                    Ok(())
                } else {
                    let error = not_now(&credential, now.wall);
                    tracing::warn!(%identity, %error, "a certificate does not hold now");
                    Err(error)
                }
            }
            Err(error) => {
                if let Some(retry_in) = queue.failed(identity, error.says(), now(), entropy::word()) {
                    self.tell(identity, &error, retry_in);
                }
                Err(error)
            }
        };
        if let Some(slot) = slots.get(identity) {
            slot.news.send_modify(|news| *news = (news.0 + 1, result));
        }
        drop(asking);
        self.keep_trust();
    }

    /// Takes what the issuer says unasked.
    fn hear(&self, told: Told) {
        let mut asking = self.asking();
        let Asking { queue, slots } = &mut *asking;
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        match told {
            Told::Renewed(credential) => {
                let identity = &credential.identity;
                let life = Life::issued(credential.not_before, credential.not_after, clock::wall(), entropy::word());
                if !queue.renewed(identity, life) {
                    return;
                }
                if let Some(slot) = slots.get(identity) {
                    slot.news.send_modify(|news| *news = (news.0 + 1, Ok(())));
                }
                present.insert(identity.clone(), credential.clone());
                drop(present);
                if let Some(before) = &self.before {
                    before.keep(&credential);
                }
            }
            Told::Withdrawn { identity, why } => {
                queue.withdrawn(&identity);
                let removed = present.remove(&identity);
                drop(present);
                if let Some(before) = &self.before {
                    locked(&before.left).remove(&identity);
                    before.wipe(&identity);
                }
                if removed.is_some() {
                    tracing::error!(%identity, why, "certificate withdrawn: what needs it is refused, and what is open ends");
                    self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner).insert(identity);
                }
            }
        }
    }

    /// Why the last request for an identity has failed, if it has.
    pub(crate) fn failure(&self, identity: &Identity) -> Option<String> {
        match &self.asking().slots.get(identity)?.news.borrow().1 {
            // Nobody was asked yet.
            Ok(()) | Err(CertificateError::Unknown(_)) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// The identities that were withdrawn since the last call: what they have open is to end.
    pub(crate) fn take_withdrawn(&self) -> BTreeSet<Identity> {
        std::mem::take(&mut *self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, identity: &Identity, error: &CertificateError, retry_in: Duration) {
        let Some(present) = self.credential(identity) else {
            tracing::warn!(%identity, %error, ?retry_in, "no certificate: what needs it is refused");
            return;
        };
        let now = clock::wall();
        let ends_in = present.not_after.duration_since(now).unwrap_or_default();
        let life = present.not_after.duration_since(present.not_before).unwrap_or_default();
        let ends_in = Duration::from_secs(ends_in.as_secs());
        match ends_in > life / 4 {
            true => tracing::warn!(%identity, %error, ?retry_in, ?ends_in, "certificate not renewed; the present one stays until its end"),
            false => tracing::error!(%identity, %error, ?retry_in, ?ends_in, "certificate not renewed, and the present one ends soon"),
        }
    }

    /// One more wants it, as a pod that bears it, until it is [released](Self::release).
    fn want(&self, identity: &Identity, pod: &PodUid) {
        self.issuer.arrives(identity, pod);
        let mut asking = self.asking();
        let Asking { queue, slots } = &mut *asking;
        queue.want(identity);
        let found = self.before.as_ref().and_then(|before| before.take(identity));
        if let Some(found) = found.filter(|found| clock::wall() < found.not_after) {
            let spread = (!self.issuer.takes_back()).then(entropy::word);
            queue.found(identity, Life::left([found.not_before, found.not_after], clock::wall(), spread));
            let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
            present.insert(identity.clone(), found);
        }
        let slot = slots.entry(identity.clone()).or_insert_with(|| Slot {
            holders: 0,
            news: watch::Sender::new((0, Err(CertificateError::Unknown(identity.clone())))),
        });
        slot.holders += 1;
    }

    fn release(&self, identity: &Identity, pod: &PodUid) {
        let mut asking = self.asking();
        let Asking { queue, slots } = &mut *asking;
        if let Some(slot) = slots.get_mut(identity) {
            slot.holders = slot.holders.saturating_sub(1);
            if slot.holders == 0 {
                slots.remove(identity);
                queue.forget(identity);
                self.present.write().unwrap_or_else(PoisonError::into_inner).remove(identity);
                if let Some(before) = &self.before {
                    before.wipe(identity);
                }
            }
        }
        drop(asking);
        self.issuer.leaves(identity, pod);
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_now(credential: &Credential, now: SystemTime) -> CertificateError {
    let [from, to, now] = [credential.not_before, credential.not_after, now].map(rfc3339_of);
    CertificateError::NotNow(credential.identity.clone(), from, to, now)
}

fn now() -> Now {
    Now {
        steady: clock::steady(),
        wall: clock::wall(),
    }
}

impl Credentials for Certificates {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present
            .get(identity)
            .filter(|credential| credential.is_valid_at(clock::wall()))
            .cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        if let Some(given) = self.trust.load_full() {
            return given;
        }
        let issuers = self.issuer.trust();
        match self.before.as_ref().and_then(|before| before.trust.as_ref()) {
            Some(kept) if issuers.domains().next().is_none() => kept.clone(),
            _ => issuers,
        }
    }
}

impl Before {
    fn load(keep: Box<dyn Keep>, present: &TrustBundles) -> Self {
        let loaded = keep.load(present, clock::wall());
        for why in &loaded.dropped {
            tracing::warn!(why, "a certificate of before this start was dropped");
        }
        let left: HashMap<_, _> = loaded
            .credentials
            .into_iter()
            .map(|one| (one.identity.clone(), Arc::new(one)))
            .collect();
        if !left.is_empty() {
            tracing::info!(
                count = left.len(),
                "certificates of before this start are used until the issuer gives others, or their ends"
            );
        }
        Self {
            keep,
            left: Mutex::new(left),
            used: Mutex::default(),
            trust: loaded.trust.map(Arc::new),
            kept: Mutex::default(),
            owed: Mutex::default(),
        }
    }

    fn take(&self, identity: &Identity) -> Option<Arc<Credential>> {
        let found = locked(&self.left).remove(identity)?;
        locked(&self.used).insert(identity.clone());
        Some(found)
    }

    fn keep(&self, credential: &Credential) {
        let identity = &credential.identity;
        locked(&self.used).remove(identity);
        let put = self.keep.put(credential);
        let mut owed = locked(&self.owed);
        match put {
            Ok(()) => drop(owed.identities.remove(identity)),
            Err(error) => {
                // What is there of before would come back with the next start.
                let _ = self.keep.remove(identity);
                owed.why = error.to_string();
                if owed.identities.insert(identity.clone()) {
                    tracing::warn!(%identity, %error, "a certificate is not kept for a restart, until it can be written");
                }
            }
        }
    }

    fn wipe(&self, identity: &Identity) {
        locked(&self.used).remove(identity);
        locked(&self.owed).identities.remove(identity);
        if let Err(error) = self.keep.remove(identity) {
            tracing::error!(%identity, %error, "a key that is needed no more cannot be wiped");
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that is under way; one that breaks off has failed.
struct Request<'a> {
    of: &'a Certificates,
    identity: Identity,
    told: bool,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.told {
            let error = CertificateError::Broken(self.identity.clone());
            self.of.answered(&self.identity, Err(error));
        }
    }
}

/// Somebody waits.
struct Waiting<'a> {
    of: &'a Certificates,
    identity: &'a Identity,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.of.asking().queue.leave(self.identity);
    }
}

/// Keeps a certificate fresh; the last one of an identity lets it go.
#[derive(Debug)]
pub(crate) struct Held {
    of: Arc<Certificates>,
    identity: Identity,
    pod: PodUid,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.release(&self.identity, &self.pod);
    }
}
