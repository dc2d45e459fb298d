//! What a process holds of a directory: an intermediate that signs, and whom to trust; read again when the files change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use ambient_core::{TrustBundles, TrustDomain};

use super::{
    Authority, OpenError, RequestError, authority,
    directory::{self, Stamp},
    intermediates::{self, Intermediate},
    issued,
    revoked::{self, ABOVE, LISTS, REVOKED, Revoked},
    roots::{CERTIFICATE, KEY, Key, Roots, SigningRoot},
};

/// What is in force of a directory, for one node.
pub(super) struct Holder {
    directory: PathBuf,
    trust_domain: TrustDomain,
    node: String,
    present: RwLock<Arc<Present>>,
    /// Held while it is read again; and the stamps of what could not be used, or not in all, and when that was.
    reading: Mutex<Option<(Stamps, SystemTime)>>,
    /// What is wrong with it now, and when that was logged last.
    wrong: Mutex<Option<(String, SystemTime)>>,
}

/// What was read of it.
pub(super) struct Present {
    stamps: Stamps,
    pub(super) signer: Arc<Intermediate>,
    /// The present root has issued the signer, or its key is elsewhere.
    current: bool,
    trust: Arc<TrustBundles>,
    roots: String,
    barred: BTreeSet<String>,
    /// Lists lack what was revoked here, and could not be signed anew: why.
    lacking: Option<String>,
}

type Stamps = [Option<Stamp>; 6];

impl Holder {
    /// Reads it, or makes it.
    pub(super) fn open(directory: &Path, trust_domain: &TrustDomain, node: &str, now: SystemTime) -> Result<Self, OpenError> {
        intermediates::check_node(node)?;
        directory::make(directory)?;
        let _lock = directory::lock(directory)?;
        if Roots::read(directory)?.is_none() {
            authority::begin(directory, trust_domain, now)?;
        }
        let place = Place {
            directory,
            trust_domain,
            node,
        };
        let present = place.read(now, None)?;
        let lacking = present.lacking.clone();
        let holder = Self {
            present: RwLock::new(Arc::new(present)),
            directory: directory.into(),
            trust_domain: trust_domain.clone(),
            node: node.into(),
            reading: Mutex::default(),
            wrong: Mutex::default(),
        };
        holder.is_wrong(lacking, now);
        Ok(holder)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whom to trust now.
    pub(super) fn trust(&self, now: SystemTime) -> Arc<TrustBundles> {
        self.look(now).trust.clone()
    }

    /// What the last look has found wrong with it.
    pub(super) fn faults(&self) -> Vec<String> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.iter().map(|(what, _)| what.clone()).collect()
    }

    /// The certificates of the roots, in PEM.
    pub(super) fn roots(&self, now: SystemTime) -> String {
        self.look(now).roots.clone()
    }

    /// What signs now.
    pub(super) fn present(&self, now: SystemTime) -> Result<Arc<Present>, RequestError> {
        let present = self.look(now);
        match present.signer.not_after <= now {
            false => Ok(present),
            true => Err(RequestError::Ended {
                path: intermediates::place(&self.directory, &self.node),
            }),
        }
    }

    /// The root that signs, with its key.
    pub(super) fn root(&self, now: SystemTime, what: &'static str) -> Result<SigningRoot, OpenError> {
        let roots = Roots::read(&self.directory)?.ok_or_else(|| OpenError::Missing {
            path: self.directory.clone(),
        })?;
        roots.of(&self.trust_domain)?.signing(now)?.ok_or_else(|| OpenError::NoRootKey {
            path: Key::Signs.path(&self.directory),
            what,
        })
    }

    /// What was read last, after reading again what has changed or is due. What cannot be read changes nothing.
    fn look(&self, now: SystemTime) -> Arc<Present> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner).clone();
        let place = self.place();
        let stamps = place.stamps();
        // What has not begun was made by a clock that was ahead: nobody accepts what it signs.
        let in_time = present.signer.not_before <= now && now < present.signer.half_life();
        if stamps == present.stamps && present.lacking.is_none() && (!present.current || in_time) {
            // Also where it was away, and has come back as it was.
            self.is_wrong(None, now);
            return present;
        }
        // Somebody reads it already: what is there will do for this once, unless it has ended.
        let Ok(mut reading) = self.reading.try_lock() else { return present };
        let again = |(failed, at): &(Stamps, SystemTime)| *failed != stamps || now.duration_since(*at).map_or(true, |gone| gone >= AGAIN);
        if !reading.as_ref().is_none_or(again) {
            return present;
        }
        match self.read_again(&place, now, &present) {
            Ok(Some(new)) => {
                *reading = new.lacking.is_some().then(|| (place.stamps(), now));
                self.is_wrong(new.lacking.clone(), now);
                let new = Arc::new(new);
                *self.present.write().unwrap_or_else(PoisonError::into_inner) = new.clone();
                new
            }
            // Another process writes there: its change comes with the next look.
            Ok(None) => present,
            Err(error) => {
                let directory = self.directory.display();
                let why = match &error {
                    // Who makes another, as that error says, is trusted by nobody.
                    OpenError::Missing { .. } => "its root is gone".into(),
                    other => other.to_string(),
                };
                let what = format!(
                    "{directory}: the directory of the authority cannot be used: {why}: mend it, or put back what was there; \
                     what was read before stays in force"
                );
                self.is_wrong(Some(what), now);
                // As they are now: what was begun may have changed them.
                *reading = Some((place.stamps(), now));
                present
            }
        }
    }

    /// Takes note of what a look has found wrong, or that nothing is. It is logged when it begins, changes or ends, and seldom while
    /// it lasts.
    fn is_wrong(&self, what: Option<String>, now: SystemTime) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(what) = what else {
            if wrong.take().is_some() {
                tracing::info!(directory = %self.directory.display(), "the directory of the authority can be used again");
            }
            return;
        };
        let is_told = |(told, at): &(String, SystemTime)| *told == what && now.duration_since(*at).is_ok_and(|gone| gone < SILENCE);
        if !wrong.as_ref().is_some_and(is_told) {
            tracing::error!("{what}");
            *wrong = Some((what, now));
        }
    }

    fn read_again(&self, place: &Place<'_>, now: SystemTime, before: &Present) -> Result<Option<Present>, OpenError> {
        directory::check(&self.directory)?;
        let Some(_lock) = directory::try_lock(&self.directory)? else {
            return Ok(None);
        };
        place.read(now, Some(before)).map(Some)
    }

    /// Whether an identity gets no certificate any more by what is there now. While somebody writes there [`present`](Self::present)
    /// is as it was before.
    ///
    /// # Errors
    /// When that cannot be read, and no look has found so and told it: what was read before stays in force after that alone.
    pub(super) fn is_barred(&self, name: &str) -> Result<bool, OpenError> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner).clone();
        if present.is_barred(name) {
            return Ok(true);
        }
        let stamps = self.place().stamps();
        if stamps == present.stamps {
            return Ok(false);
        }
        match Revoked::in_force(&self.directory) {
            Ok(revoked) => Ok(revoked.barred.contains(name)),
            Err(error) => {
                let told = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
                let is_told = told.as_ref().is_some_and(|(failed, _)| *failed == stamps);
                if is_told { Ok(false) } else { Err(error) }
            }
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            directory: &self.directory,
            trust_domain: &self.trust_domain,
            node: &self.node,
        }
    }
}

impl Present {
    /// Whether an identity gets no certificate any more.
    pub(super) fn is_barred(&self, name: &str) -> bool {
        self.barred.contains(name)
    }
}

struct Place<'a> {
    directory: &'a Path,
    trust_domain: &'a TrustDomain,
    node: &'a str,
}

impl Place<'_> {
    fn stamps(&self) -> Stamps {
        let of = |name: &str| directory::stamp(&self.directory.join(name));
        let node = directory::stamp(&intermediates::place(self.directory, self.node));
        [of(CERTIFICATE), of(KEY), of(LISTS), of(REVOKED), of(ABOVE), node]
    }

    /// Reads it under its lock, and renews what is due. What is the same as before stays the same value: what is read of it
    /// is kept by its address.
    fn read(&self, now: SystemTime, before: Option<&Present>) -> Result<Present, OpenError> {
        // Who copies files into the directory asks for no lock: what comes while it is read is another the next time.
        let stamps = self.stamps();
        let roots = Roots::read(self.directory)?.ok_or_else(|| OpenError::Missing {
            path: self.directory.into(),
        })?;
        let roots = roots.of(self.trust_domain)?;
        let revoked = Revoked::in_force(self.directory)?;
        let signing = roots.signing(now)?;
        let signer = self.signer(&roots, signing.as_ref(), &revoked, now)?;
        // As where the disk is full: what was carried here is in force all the same.
        let completed = Authority::complete_lists(self.directory, &roots, &revoked, now);
        let lacking = |error: OpenError| {
            let directory = self.directory.display();
            format!("{directory}: what was revoked here is not in every list, and these cannot be signed anew: {error}")
        };
        let mut trust = TrustBundles::default();
        for root in roots.trusted.iter().filter(|root| now < root.not_after) {
            trust.add(self.trust_domain.clone(), root.der.to_vec());
        }
        for list in revoked::read_lists(self.directory)? {
            trust.add_crl(self.trust_domain.clone(), list.der);
        }
        let trust = match before {
            Some(before) if *before.trust == trust => before.trust.clone(),
            _ => Arc::new(trust),
        };
        Ok(Present {
            stamps,
            signer,
            current: signing.is_some(),
            trust,
            roots: roots.pem(),
            barred: revoked.barred,
            lacking: completed.err().map(lacking),
        })
    }

    fn signer(
        &self,
        roots: &Roots,
        signing: Option<&SigningRoot>,
        revoked: &Revoked,
        now: SystemTime,
    ) -> Result<Arc<Intermediate>, OpenError> {
        let good = |intermediate: &Intermediate| {
            let root = roots.trusted.iter().find(|root| root.name == intermediate.root);
            root.is_some_and(|root| !revoked.has(&root.serial, &intermediate.serial))
        };
        let found = intermediates::of(self.directory, self.node, now)?;
        let mut found = found.into_iter().filter(good);
        let Some(root) = signing else {
            let Some(newest) = found.next_back() else {
                let mut others = intermediates::nodes(self.directory)?;
                others.retain(|node| node != self.node);
                return Err(OpenError::NoIntermediate {
                    path: self.directory.into(),
                    node: self.node.into(),
                    others,
                });
            };
            intermediates::check(&newest, roots, now)?;
            if newest.half_life() <= now {
                // In seconds since 1970.
                let until = super::seconds(newest.not_after);
                tracing::warn!(
                    node = self.node,
                    until,
                    "the intermediate is past half its life: issue another where the root's key is"
                );
            }
            return Ok(Arc::new(newest));
        };
        let fresh = |one: &Intermediate| one.root == root.root.name && one.not_before <= now && now < one.half_life();
        if let Some(fresh) = found.rfind(fresh) {
            intermediates::check(&fresh, roots, now)?;
            return Ok(Arc::new(fresh));
        }
        let new = intermediates::make(self.directory, root, self.trust_domain, self.node, intermediates::LIFE, now)?;
        // As often as this is, lists stay young.
        Authority::renew_lists(self.directory, roots, now)?;
        // Nothing that is signed hangs on it.
        if let Err(error) = issued::tidy(self.directory, now) {
            tracing::warn!(%error, "what was issued and has ended cannot be forgotten");
        }
        Ok(Arc::new(new))
    }
}

/// What could not be read is looked at again after that.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two lines of the log that say that the same is still wrong.
const SILENCE: Duration = Duration::from_secs(60);
