//! Which pod is where, and what is to be done about it: pure, with time as an argument.
//!
//! ```text
//!  new            found
//! Closing --+-> Listening --> Enforcing --> Proving --> (Opening, Proving) --> Announcing --> In
//!           |    ^   ^ a step failed: again, later |                               |
//!  given    |    |   +-----------------------------+-- a difference is found: -----+
//! Waiting --+    |                                     mending
//!                +-- Closing: its TCP is refused <-------- mending failed
//!                +-- Retracting: announced no more <------ mending failed MENDINGS times
//!
//! any of them --- not desired any more, or the namespace is gone ---+
//!                                                                   v
//!                 Withdrawing -> Releasing -> Draining -> Cutting -> Clearing -> Removing -> (unpaired)
//!                     desired again: Listening    |     (a namespace that is gone needs no clearing)
//!                     ^---------------------------+
//! ```
//!
//! What a pod's TCP may do: *closed* (from Closing until Opening has ended) it is refused. Not closed and before its first
//! Enforcing has ended it goes as if there were no mesh. From then until Releasing has ended it is redirected, whoever listens;
//! what was open before goes on, and is listed ([`PodState::kept`]). From Releasing on what is new goes as if there were no
//! mesh, and what is captured goes on until it ends or is cut.
//!
//! A look at the namespaces is begun by [`Pods::look_begins`], which says whether addresses are to be read again, and ends with
//! [`Pods::handle_namespaces`], before it with [`Pods::handle_unseen`] and, where not all could be seen, [`Pods::handle_shortage`]. No
//! pod gets a namespace but by a look that was begun after it was told of: at once where [`Pods::wants_look`] says so, and now and
//! then while [`Pods::wants_addresses`] does. What else happens goes in by the other `handle_*` methods, in any order;
//! [`Pods::poll`] then gives what is to be done or told until
//! it gives `None`; [`Pods::timeout`] says when to call it again if nothing happens. Each action is answered by
//! [`Pods::handle_done`] exactly once. There is at most one action under way for a namespace, at most one pod to a namespace
//! and one namespace to a pod.

mod claims;
mod kept;
mod pairing;
mod reason;
mod state;
mod step;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambient_core::PodUid;

use self::{
    claims::{Beside, Reading},
    state::Entry,
};
use crate::{
    PodSpec,
    find::Whose,
    later::later,
    linux::{NetnsId, Proof, Segments, Stranger},
    plan::IpFamily,
};

pub use kept::{Direction, Kept};
pub use reason::{Cause, Refusal, Unpaired};
pub use step::Step;
pub use told::{PodState, Repair, State};

/// All pods of a node and their namespaces.
#[derive(Debug)]
pub struct Pods {
    timing: Timing,
    /// `None` until it is known.
    desired: Option<Arc<[PodSpec]>>,
    /// Whether namespaces were ever told of.
    looked: bool,
    seen: BTreeMap<NetnsId, Seen>,
    /// Why there may be a namespace that is not among them.
    unseen: Option<Cause>,
    entries: BTreeMap<NetnsId, Entry>,
    /// Why a desired pod has no namespace.
    unpaired: BTreeMap<PodUid, Unpaired>,
    /// Announced by an earlier process, and not seen since by this one.
    earlier: BTreeSet<PodUid>,
    /// Until when those of them are waited for that are desired.
    earlier_until: Option<Instant>,
    /// How many were withdrawn of whom nothing was found.
    lost: u64,
    /// Of each desired pod without a namespace: whether addresses were read since that is so.
    readings: BTreeMap<PodUid, Reading>,
    /// What was there as a namespace went that was a pod's, or may have been, by the pod.
    beside: BTreeMap<PodUid, Beside>,
    /// Whom a namespace served before, and until when it is not given to another.
    former: BTreeMap<NetnsId, (PodUid, Instant)>,
    output: VecDeque<Output>,
    /// Of which entry a step was begun last, since [`Pods::poll`] gave nothing.
    begun: Option<NetnsId>,
    /// Whether a pod may stand otherwise than when [`Pods::changed`] was asked last.
    changed: bool,
    /// Whether one was proven anew since [`Pods::proven`] was asked last.
    proven: bool,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A captured pod is verified so often, besides whenever the kernel tells of a change.
    pub verify_every: Duration,
    /// The first pause after a step that failed; it doubles up to [`Timing::pause_most`].
    pub pause: Duration,
    /// The longest pause between two attempts.
    pub pause_most: Duration,
    /// Between two verifications of one pod, so that whoever keeps changing its rules costs no more than that.
    pub verify_least: Duration,
    /// A namespace that served one pod is given to another only so much later: a new pod's own may be about to appear.
    pub reuse: Duration,
    /// What is captured of a pod that leaves may go on so long.
    pub drain: Duration,
    /// A pod whose namespace was handed over is refused so long at most, unless it is meant to be in the mesh; and one that an
    /// earlier process announced stays announced so long at most without being proven.
    pub wait: Duration,
    /// Let TCP go around the mesh rather than refuse it where a capture cannot be upheld.
    pub open: bool,
}

impl Timing {
    /// The pause after so many failures.
    fn pause_after(&self, failures: u32) -> Duration {
        self.pause
            .saturating_mul(1 << failures.saturating_sub(1).min(16))
            .min(self.pause_most)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            verify_every: Duration::from_secs(5),
            pause: Duration::from_millis(100),
            pause_most: Duration::from_secs(5),
            verify_least: Duration::from_millis(100),
            reuse: Duration::from_secs(1),
            drain: Duration::from_secs(30),
            wait: Duration::from_secs(30),
            open: false,
        }
    }
}

/// A namespace that has a name on this node, other than the node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The addresses in it.
    pub addresses: Vec<IpAddr>,
    /// Rules of ours that it holds and that no pod of this process's stands behind.
    pub left_behind: Option<LeftBehind>,
    /// Whether something may have run in it already.
    pub birth: Birth,
    /// Whose it is by the processes in it, where those can be seen.
    pub whose: Option<Whose>,
}

/// What an earlier process has left in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftBehind {
    /// For which pod it was put there; `None` where that cannot be read.
    pub pod: Option<PodUid>,
    /// What captures is among it: whatever goes around the proxy now went around it then.
    pub captures: bool,
    /// What refuses is among it: the pod's capture was not proven, or not any more.
    pub refuses: bool,
}

/// Why a namespace that is handed over is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGiven {
    /// What stands in the way is being let go: asked again a moment later it may be taken.
    #[error("{0}")]
    Passing(String),
    /// The pod has another namespace, as far as is known: it stays so unless that one is gone.
    #[error("{1}")]
    Elsewhere(NetnsId, String),
    /// It is another pod's, and stays so.
    #[error("{0}")]
    Taken(String),
}

/// What is known of a namespace's past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Birth {
    /// Nothing has run in it: its pod's TCP is refused until its capture is proven. For whoever hands a namespace over before
    /// he starts anything in it; one that is found is so as well if its pod's status says so ([`PodSpec::has_run`]), and no
    /// TCP socket is in it.
    New,
    /// Something may run in it: its pod's TCP goes on as it does until it is captured.
    #[default]
    Running,
}

/// What [`Pods::poll`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To be done, and answered.
    Do(Action),
    /// To be told.
    Tell(Notice),
}

/// Something to be done in a namespace, for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The namespace.
    pub namespace: NetnsId,
    /// The pod.
    pub pod: Arc<PodSpec>,
    /// What.
    pub step: Step,
    /// Whether the pod's TCP is refused: rules that are put in force refuse as well as capture.
    pub closed: bool,
    /// For [`Step::Close`]: what the pod's status says of it is not to be believed where a TCP socket of somebody's is in the
    /// namespace; nothing is done then, and the answer is [`Done::Runs`].
    pub unless_it_runs: bool,
    /// Whether rules of the pod stood already: what goes around the proxy now went around it then, and is reset. Else it was
    /// open before.
    pub enforced: bool,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// As it should.
    Well(Report),
    /// [`Step::Prove`], or a [`Step::Verify`] that was as much, ended as it should.
    Proven(Proof),
    /// [`Step::Drain`] found connections that go on: it is to be asked again.
    Unfinished,
    /// [`Step::Close`] found that something runs there already, and has done nothing: see [`Action::unless_it_runs`].
    Runs,
    /// [`Step::Verify`] found that something is not as it should be.
    Differs {
        /// What.
        what: String,
        /// Whether rules or routes are missing or changed.
        rules: bool,
        /// Whether a listener is missing, so that the proxy is to be asked as well.
        listeners: bool,
    },
    /// Not at all.
    Failed(Cause),
    /// [`Step::Listen`] has failed, and a process listens where the proxy is to that is no proxy: what is redirected there ends at it.
    Usurped(Cause),
}

/// What was found when a step was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What there is to say of it.
    pub said: Option<String>,
    /// The connections that are outside of the mesh, where they were looked for.
    pub kept: Option<Arc<[Kept]>>,
    /// How many connections went around the proxy and are reset.
    pub strays: u64,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A pod's capture is proven and announced.
    Captured(Arc<PodSpec>),
    /// A pod's capture was broken, and is proven again.
    Repaired(Arc<PodSpec>, Repair),
    /// A pod cannot be captured; told once for each reason.
    Refused(Arc<PodSpec>, Refusal),
    /// A pod has left.
    Released(PodUid),
    /// A pod that is meant has left as its namespace was lost sight of; what is ours may still be in that.
    Lost(PodUid),
}

impl Pods {
    /// Knows nothing, and does nothing until it does.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            desired: None,
            looked: false,
            seen: BTreeMap::new(),
            unseen: None,
            entries: BTreeMap::new(),
            unpaired: BTreeMap::new(),
            earlier: BTreeSet::new(),
            earlier_until: None,
            lost: 0,
            readings: BTreeMap::new(),
            beside: BTreeMap::new(),
            former: BTreeMap::new(),
            output: VecDeque::new(),
            begun: None,
            changed: true,
            proven: false,
        }
    }

    /// These pods are meant to be in the mesh; `None` changes nothing.
    pub fn handle_desired(&mut self, now: Instant, desired: Option<Arc<[PodSpec]>>) {
        if desired.is_none() {
            return;
        }
        self.desired = desired;
        self.reconsider(now);
    }

    /// An earlier process has announced these pods, and not taken it back. They are taken for captured ones whose capture is
    /// broken; what of them is not desired is withdrawn, also where nothing else is left of it.
    pub fn handle_announced(&mut self, now: Instant, announced: impl IntoIterator<Item = PodUid>) {
        self.earlier = announced.into_iter().collect();
        self.earlier_until = Some(later(now, self.timing.wait));
        self.reconsider(now);
    }

    /// These namespaces are there, as the look found them that was begun last ([`Pods::look_begins`]). One that is not among them is
    /// gone; one that a pod has left without its rules having been cleared is looked into anew before it is told of again.
    pub fn handle_namespaces(&mut self, now: Instant, seen: BTreeMap<NetnsId, Seen>) {
        let awaited = self.look_ends();
        if self.looked && self.seen == seen && !awaited {
            return;
        }
        self.looked = true;
        self.note_beside(|id| seen.get(&id));
        self.seen = seen;
        self.former.retain(|id, _| self.seen.contains_key(id));
        self.reconsider(now);
    }

    /// Some namespace, or what shows namespaces, could not be looked into, for this reason; `None` where all could. It is told of pods
    /// of which none is found.
    pub fn handle_unseen(&mut self, now: Instant, why: Option<Cause>) {
        if self.unseen == why {
            return;
        }
        self.unseen = why;
        if !self.unpaired.is_empty() {
            self.reconsider(now);
        }
    }

    /// A namespace is handed over before anything runs in it: what is opened in it is refused from the end of the
    /// [`Step::Close`] that follows, until the pod is captured. The namespace must be among those of
    /// [`Pods::handle_namespaces`] as well, from then on.
    ///
    /// # Errors
    /// Where the namespace is another pod's, or the pod is elsewhere.
    pub fn handle_given(&mut self, now: Instant, id: NetnsId, pod: &PodSpec) -> Result<(), NotGiven> {
        if let Some(entry) = self.entries.get_mut(&id) {
            if entry.leaves() {
                return Err(NotGiven::Passing(format!("the namespace {id} is being let go by {}", entry.pod)));
            }
            if entry.pod.uid != pod.uid {
                return Err(NotGiven::Taken(format!("the namespace {id} is {}'s", entry.pod)));
            }
            if !self.timing.open {
                entry.is_new();
            }
            return Ok(());
        }
        if let Some((elsewhere, entry)) = self.entries.iter().find(|(_, entry)| entry.pod.uid == pod.uid) {
            return Err(match entry.leaves() || entry.gone {
                true => NotGiven::Passing(format!("{pod} is leaving the namespace {elsewhere}")),
                false => NotGiven::Elsewhere(*elsewhere, format!("{pod} is in the namespace {elsewhere}")),
            });
        }
        let seen = self.seen.entry(id).or_insert_with(|| Seen {
            whose: None,
            addresses: pod.addresses.clone(),
            left_behind: None,
            birth: Birth::New,
        });
        let left = seen.left_behind.as_ref().map(|left| left.pod.clone());
        if let Some(others) = left.filter(|uid| uid.as_ref() != Some(&pod.uid)) {
            let whose = others.as_ref().map_or("somebody", PodUid::as_str);
            let why = format!("the namespace {id} holds rules of {whose}");
            // They are taken away unless their pod is to be here, which is decided once that can be known.
            let is_meant = |desired: &Arc<[PodSpec]>| desired.iter().any(|spec| Some(&spec.uid) == others.as_ref());
            let stays = self.desired.as_ref().is_some_and(is_meant) && !others.as_ref().is_some_and(|uid| self.has_entry(uid));
            return Err(if stays { NotGiven::Taken(why) } else { NotGiven::Passing(why) });
        }
        // Whoever hands it over knows.
        self.beside.remove(&pod.uid);
        if self.timing.open {
            // Found by its address once it is meant.
            return Ok(());
        }
        let mut entry = Entry::new(Arc::new(pod.clone()), Birth::New, now, &self.timing);
        entry.earlier = self.take_earlier(&pod.uid);
        entry.given_until = Some(later(now, self.timing.wait));
        self.former.remove(&id);
        self.entries.insert(id, entry);
        self.reconsider(now);
        Ok(())
    }

    /// A namespace is not there any more, although it was among those of [`Pods::handle_namespaces`], or was handed over.
    pub fn handle_gone(&mut self, now: Instant, id: NetnsId) {
        if self.forget(id) {
            self.reconsider(now);
        }
    }

    /// Something in a namespace has changed.
    pub fn handle_changed(&mut self, id: NetnsId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.dirty = true;
        }
    }

    /// These rules of others come before those of the capture in a namespace, and what is captured there has these segments.
    pub fn handle_beside(&mut self, id: NetnsId, strangers: Arc<[Stranger]>, segments: Arc<[(IpFamily, Segments)]>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.changed |= entry.meets(strangers, segments);
    }

    /// An action has ended. `wall` is the time of day, for people.
    pub fn handle_done(&mut self, now: Instant, wall: SystemTime, id: NetnsId, step: Step, done: Done) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.busy != Some(step) {
            return;
        }
        entry.busy = None;
        if step == Step::Verify && entry.is_well() && matches!(&done, Done::Well(found) if *found == Report::default()) {
            // Most that ends is this, and nothing of what is told of the pod changes by it.
            entry.advance(now, wall, &self.timing, step, done, &mut self.output);
            return;
        }
        let before = entry.state(id);
        let ended = entry.advance(now, wall, &self.timing, step, done, &mut self.output);
        // Who is where is another question only where a pod goes.
        let goes = ended || entry.leaves();
        let now_is = entry.state(id);
        self.proven |= now_is.proven_at != before.proven_at;
        self.changed |= ended || !before.is_but_for_proof(&now_is);
        if ended && let Some(entry) = self.entries.remove(&id) {
            self.former.insert(id, (entry.pod.uid.clone(), later(now, self.timing.reuse)));
            if !entry.cleared {
                // What is in there now is not known until it is looked at again.
                if self.forget(id) {
                    self.read_anew();
                }
            } else if let Some(seen) = self.seen.get_mut(&id) {
                seen.left_behind = None;
            }
        }
        if goes {
            self.reconsider(now);
        }
    }

    /// What is to be done or told now, one after another until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        if let Some(output) = self.output.pop_front() {
            return Some(output);
        }
        if self.former.values().any(|(_, until)| *until <= now) {
            self.former.retain(|_, (_, until)| *until > now);
            self.reconsider(now);
        }
        if !self.earlier.is_empty() && self.earlier_until.is_some_and(|until| until <= now) {
            self.earlier_until = None;
            self.reconsider(now);
        }
        if self.begun.is_none() {
            let waited = |entry: &Entry| entry.given_until.is_some_and(|until| until <= now) && !entry.leaves();
            for entry in self.entries.values_mut().filter(|entry| waited(entry)) {
                entry.leave();
                self.changed = true;
            }
        }
        let (namespace, step) = self.begin(now)?;
        self.changed |= step != Step::Verify;
        let entry = self.entries.get_mut(&namespace)?;
        Some(Output::Do(Action {
            namespace,
            pod: entry.pod.clone(),
            step,
            closed: entry.closed,
            // Once it was looked at, what is refused is refused whatever runs.
            unless_it_runs: step == Step::Close && std::mem::take(&mut entry.presumed_new),
            enforced: entry.enforced,
        }))
    }

    /// Begins a step that is due: of an entry after the one that was begun last, so that of many each is looked at once, then of
    /// any.
    fn begin(&mut self, now: Instant) -> Option<(NetnsId, Step)> {
        let begin = |(id, entry): (&NetnsId, &mut Entry)| Some((*id, entry.begin(now)?));
        let begun = match self.begun {
            Some(last) => {
                let after = self.entries.range_mut((Bound::Excluded(last), Bound::Unbounded)).find_map(begin);
                after.or_else(|| self.entries.range_mut(..=last).find_map(begin))
            }
            None => self.entries.iter_mut().find_map(begin),
        };
        self.begun = begun.map(|(id, _)| id);
        begun
    }

    /// When [`Pods::poll`] has something to give although nothing happens.
    pub fn timeout(&self) -> Option<Instant> {
        let entries = self.entries.values().filter_map(Entry::due_at);
        let earlier = self.earlier_until.filter(|_| !self.earlier.is_empty());
        entries.chain(self.former.values().map(|(_, until)| *until)).chain(earlier).min()
    }

    /// Whether desired pods lack a namespace that could be told by its addresses, so that those are to be looked at again.
    pub fn wants_addresses(&self) -> bool {
        !self.unpaired.is_empty()
            && self.desired.iter().flat_map(|desired| desired.iter()).any(|spec| {
                // One without an address is no reason: none could be its own.
                !spec.addresses.is_empty() && self.unpaired.contains_key(&spec.uid)
            })
    }

    /// Whether a namespace has a pod.
    pub fn is_paired(&self, id: NetnsId) -> bool {
        self.entries.contains_key(&id)
    }

    /// Where a pod is.
    pub fn namespace_of(&self, uid: &PodUid) -> Option<NetnsId> {
        self.entries.iter().find(|(_, entry)| entry.pod.uid == *uid).map(|(id, _)| *id)
    }

    /// Whether the TCP of a namespace's pod is refused, or it is captured.
    pub fn is_closed(&self, id: NetnsId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.closed || entry.enforced)
    }

    /// Whether no pod has anything in its namespace any more.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether [`Pods::states`] may be others than when this was asked last, but for [`PodState::proven_at`].
    pub fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whether a pod was proven since this was asked last. That alone happens all the time.
    pub fn proven(&mut self) -> bool {
        std::mem::take(&mut self.proven)
    }

    /// How each pod stands: the desired ones and those that are leaving, ordered by UID.
    pub fn states(&self) -> Vec<PodState> {
        let mut states: BTreeMap<PodUid, PodState> = BTreeMap::new();
        let placed: HashSet<&PodUid> = self.entries.values().map(|e| &e.pod.uid).collect();
        for spec in self
            .desired
            .iter()
            .flat_map(|d| d.iter())
            .filter(|spec| !placed.contains(&spec.uid))
        {
            let why = self.unpaired.get(&spec.uid).cloned().unwrap_or(Unpaired::OwnLetGo);
            let state = match why {
                // There is one, of which it is made sure: nothing to wait for.
                Unpaired::NotLooked if self.looked && self.is_being_read(&spec.uid) => State::Joining,
                why => State::Pairing { why },
            };
            states.insert(spec.uid.clone(), PodState::new(spec.clone(), state));
        }
        for (id, entry) in &self.entries {
            states.insert(entry.pod.uid.clone(), entry.state(*id));
        }
        states.into_values().collect()
    }

    /// Compares what is desired with what is there. Decides only who leaves and who begins; steps follow by themselves.
    fn reconsider(&mut self, now: Instant) {
        let Some(desired) = self.desired.clone() else { return };
        self.changed = true;
        let by_uid: HashMap<&PodUid, &PodSpec> = desired.iter().rev().map(|spec| (&spec.uid, spec)).collect();
        self.want_readings(&by_uid);
        for (id, entry) in &mut self.entries {
            entry.gone = !self.seen.contains_key(id);
            let spec = by_uid.get(&entry.pod.uid).copied();
            entry.lost = entry.gone && spec.is_some();
            // What it was paired by still holds, so that what has begun to leave need not.
            if let Some(spec) = spec
                && entry.may_stay()
                && !entry.pod.addresses.is_empty()
                && entry.pod.addresses == spec.addresses
            {
                entry.stay();
            }
            match spec {
                Some(spec) if !entry.gone && !entry.leaves() => {
                    if *entry.pod != *spec {
                        entry.become_pod(spec.clone());
                    }
                    entry.is_meant();
                }
                None if !entry.gone && entry.given_until.is_some() => (),
                _ => entry.leave(),
            }
        }
        if !self.looked {
            let why = self.unseen.clone().map_or(Unpaired::NotLooked, Unpaired::Unseen);
            let unknown = |spec: &PodSpec| (spec.uid.clone(), why.clone());
            self.unpaired = desired.iter().filter(|spec| !self.has_entry(&spec.uid)).map(unknown).collect();
            return;
        }
        let found = self.pair(now, &desired);
        self.unpaired = found.unpaired;
        if let Some(unseen) = self.unseen.clone() {
            let not_read: HashSet<PodUid> = self.unpaired.keys().filter(|uid| !self.is_being_read(uid)).cloned().collect();
            for (uid, why) in &mut self.unpaired {
                if *why == Unpaired::Nowhere || *why == Unpaired::NotLooked && not_read.contains(uid) {
                    *why = Unpaired::Unseen(unseen.clone());
                }
            }
        }
        let mut beginning = Vec::new();
        for (id, spec) in found.pairs {
            let others = self
                .seen
                .get(&id)
                .and_then(|s| s.left_behind.as_ref().map(|left| left.pod.clone()))
                .filter(|uid| uid.as_ref() != Some(&spec.uid));
            match others {
                Some(uid) => self.release_left_behind(now, id, uid),
                None => beginning.push((id, spec)),
            }
        }
        for (id, spec) in beginning {
            // Not while what was left behind of it elsewhere is being withdrawn.
            if !self.has_entry(&spec.uid) {
                self.begin_found(now, id, spec);
            }
        }
        let left_behind: Vec<(NetnsId, Option<PodUid>)> = self
            .seen
            .iter()
            .filter(|(id, _)| !self.entries.contains_key(id))
            .filter_map(|(id, seen)| Some((*id, seen.left_behind.as_ref()?.pod.clone())))
            // A desired pod without a namespace may turn out to be in this one: its rules refuse meanwhile, as they should.
            .filter(|(_, uid)| {
                uid.as_ref()
                    .is_none_or(|uid| self.has_entry(uid) || !desired.iter().any(|d| d.uid == *uid))
            })
            .collect();
        for (id, uid) in left_behind {
            self.release_left_behind(now, id, uid);
        }
        self.withdraw_lost(now, &by_uid);
    }

    /// A pod that is paired with a namespace.
    fn begin_found(&mut self, now: Instant, id: NetnsId, spec: PodSpec) {
        let seen = self.seen.get(&id);
        let left = seen.and_then(|seen| seen.left_behind.clone()).unwrap_or_default();
        let known = seen.map(|seen| seen.birth).unwrap_or_default();
        // What is refused already is so whatever runs.
        let presumed_new = known == Birth::Running && !spec.has_run && !left.refuses;
        let birth = if presumed_new { Birth::New } else { known };
        let mut entry = Entry::new(Arc::new(spec), birth, now, &self.timing);
        entry.presumed_new = presumed_new;
        entry.earlier = self.take_earlier(&entry.pod.uid);
        // Where what captures is left it was captured. What only tracks lets everything go on, and marks it.
        entry.enforced = left.captures || entry.earlier.is_some();
        // It was refused for a reason, which may stand: it is let go once its capture is proven, as it would have been.
        entry.closed = left.refuses && !self.timing.open;
        entry.dirty = entry.earlier.is_some();
        self.entries.insert(id, entry);
    }

    /// Who was announced, and is not to be captured, or is nowhere to be found: nothing but that is left to be taken back.
    fn withdraw_lost(&mut self, now: Instant, desired: &HashMap<&PodUid, &PodSpec>) {
        let waits = self.earlier_until.is_some_and(|until| now < until);
        let lost: Vec<PodUid> = self
            .earlier
            .iter()
            .filter(|uid| !(self.has_entry(uid) || waits && desired.contains_key(uid)))
            .cloned()
            .collect();
        for uid in lost {
            self.earlier.remove(&uid);
            self.lost += 1;
            // No device has this number.
            let nowhere = NetnsId { dev: 0, ino: self.lost };
            let mut entry = Entry::left_behind(Arc::new(nobody(uid)), true, now, &self.timing);
            entry.gone = true;
            self.entries.insert(nowhere, entry);
        }
    }

    /// Until when what an earlier process announced of a pod may stand unproven.
    fn take_earlier(&mut self, uid: &PodUid) -> Option<Instant> {
        self.earlier.remove(uid).then_some(self.earlier_until).flatten()
    }

    /// Rules that an earlier process left for a pod that is not to be there: announced no more, then taken away.
    fn release_left_behind(&mut self, now: Instant, id: NetnsId, uid: Option<PodUid>) {
        let leaves_elsewhere = |uid: &PodUid| self.entries.values().any(|e| e.pod.uid == *uid && e.leaves());
        if uid.as_ref().is_some_and(leaves_elsewhere) {
            // Its announcement is being taken back: until then its rules stay.
            return;
        }
        // A pod that lives elsewhere stays announced.
        let announced = uid.as_ref().is_some_and(|uid| !self.has_entry(uid));
        // Else it goes by its namespace's name: no pod has that.
        let uid = uid.filter(|_| announced).unwrap_or_else(|| id.to_string().into());
        self.earlier.remove(&uid);
        self.entries
            .insert(id, Entry::left_behind(Arc::new(nobody(uid)), announced, now, &self.timing));
    }

    fn has_entry(&self, uid: &PodUid) -> bool {
        self.entries.values().any(|e| e.pod.uid == *uid)
    }
}

/// A pod of which nothing but its UID is known.
fn nobody(uid: PodUid) -> PodSpec {
    PodSpec {
        uid,
        namespace: "".into(),
        name: "".into(),
        service_account: "".into(),
        addresses: Vec::new(),
        capture: ambient_core::Capture::default(),
        has_run: true,
    }
}

#[cfg(test)]
mod tests;
