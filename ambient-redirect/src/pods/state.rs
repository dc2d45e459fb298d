//! One pod in its namespace.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{Birth, Done, Kept, Notice, Output, PodState, Refusal, Repair, Report, State, Step, Timing};
use crate::{
    PodSpec,
    later::{FAR, later},
    linux::{NetnsId, Proof, Segments, Stranger},
    plan::IpFamily,
};

/// What is being mended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mending {
    what: String,
    held: SystemTime,
    noticed: SystemTime,
    around: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closing,
    /// Handed over, and not known to be meant.
    Waiting,
    Listening,
    Enforcing,
    Proving,
    Opening,
    Announcing,
    In {
        captured_at: SystemTime,
        proof: Proof,
    },
    Retracting,
    /// Its capture cannot be upheld, and it is to go around rather than be refused.
    LettingBy,
    Withdrawing,
    Releasing,
    Draining,
    Cutting,
    Clearing,
    Removing,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<PodSpec>,
    phase: Phase,
    pub(super) busy: Option<Step>,
    /// Nothing but what is left in its namespace: nobody was told of a pod there.
    unannounced: bool,
    /// Its namespace has lost its name.
    pub(super) gone: bool,
    /// And the pod is meant all the same.
    pub(super) lost: bool,
    leave: bool,
    /// Nothing of ours is in its namespace any more.
    pub(super) cleared: bool,
    /// Something in the namespace has changed since it was last looked at.
    pub(super) dirty: bool,
    /// It was handed over, and waits until then for being meant to be in the mesh.
    pub(super) given_until: Option<Instant>,
    /// Its TCP is refused.
    pub(super) closed: bool,
    /// The rules stand, as far as is known.
    pub(super) enforced: bool,
    /// The proxy is asked to listen once the rules are back in force.
    listen_next: bool,
    /// It was handed over although it was found by itself: it is refused before anything else is done.
    close_next: bool,
    /// It is new by its status alone: what is in its namespace may tell otherwise.
    pub(super) presumed_new: bool,
    /// The proxy serves it as somebody that it is no longer.
    renew: bool,
    /// Announced by this process, and not taken back.
    announced: Option<SystemTime>,
    /// Announced by an earlier process: until this one does so, or until then.
    pub(super) earlier: Option<Instant>,
    /// What is being mended.
    mending: Option<Mending>,
    /// When the look was begun that is under way.
    looking_since: Option<Instant>,
    /// When the last look was begun that found everything as it should be.
    held: Option<SystemTime>,
    mended: Option<Arc<Repair>>,
    /// How it was proven last.
    proof: Option<Proof>,
    failures: u32,
    error: Option<Refusal>,
    not_before: Option<Instant>,
    verify_at: Instant,
    /// What is to be verified within so long is verified along with what is due: to wake for each costs more than the look.
    together: Duration,
    /// Rules are put back, while there is something else to wait for, not before.
    hold_at: Instant,
    drain_until: Option<Instant>,
    said: Option<String>,
    repairs: u64,
    proven_at: Option<SystemTime>,
    /// The time of day when a step ended last.
    wall: SystemTime,
    kept: Arc<[Kept]>,
    strays: u64,
    strangers: Arc<[Stranger]>,
    segments: Arc<[(IpFamily, Segments)]>,
}

impl Entry {
    pub(super) fn new(pod: Arc<PodSpec>, birth: Birth, now: Instant, timing: &Timing) -> Self {
        let phase = match birth {
            Birth::New if !timing.open => Phase::Closing,
            _ => Phase::Listening,
        };
        Self {
            pod,
            phase,
            busy: None,
            unannounced: false,
            gone: false,
            lost: false,
            leave: false,
            cleared: false,
            dirty: false,
            given_until: None,
            closed: false,
            enforced: false,
            listen_next: false,
            close_next: false,
            presumed_new: false,
            renew: false,
            announced: None,
            earlier: None,
            mending: None,
            looking_since: None,
            held: None,
            mended: None,
            proof: None,
            failures: 0,
            error: None,
            not_before: None,
            verify_at: later(now, timing.verify_every),
            together: timing.verify_every.min(FAR) / 5,
            hold_at: now,
            drain_until: None,
            said: None,
            repairs: 0,
            proven_at: None,
            wall: SystemTime::UNIX_EPOCH,
            kept: Arc::from([]),
            strays: 0,
            strangers: Arc::from([]),
            segments: Arc::from([]),
        }
    }

    /// An entry whose one purpose is to leave; announced by a process before this one, or not.
    pub(super) fn left_behind(pod: Arc<PodSpec>, announced: bool, now: Instant, timing: &Timing) -> Self {
        Self {
            leave: true,
            unannounced: !announced,
            phase: if announced { Phase::Withdrawing } else { Phase::Releasing },
            ..Self::new(pod, Birth::Running, now, timing)
        }
    }

    pub(super) fn leaves(&self) -> bool {
        self.leave
    }

    pub(super) fn leave(&mut self) {
        if self.leave {
            return;
        }
        self.leave = true;
        self.given_until = None;
        self.failures = 0;
        self.not_before = None;
        // A step under way is waited for: it has a deadline, and two at once would undo each other.
        if self.busy.is_none() {
            self.phase = Phase::Withdrawing;
        }
    }

    /// Whether a pod that leaves can still turn round: nothing that it has open was cut.
    pub(super) fn may_stay(&self) -> bool {
        self.leave && !self.gone && !matches!(self.phase, Phase::Cutting | Phase::Clearing | Phase::Removing)
    }

    /// It is meant to be in the mesh again.
    pub(super) fn stay(&mut self) {
        self.leave = false;
        self.drain_until = None;
        self.failures = 0;
        self.error = None;
        self.not_before = None;
        if self.busy.is_none() && self.phase.leaves() {
            self.turn_round();
        }
    }

    /// From the start: what stands of it is found standing. It is announced anew, as it may have been taken back.
    fn turn_round(&mut self) {
        self.announced = None;
        self.mending = None;
        self.phase = Phase::Listening;
    }

    /// What is told of the pod has changed. Where it is who it speaks for, or what is captured of it, the proxy is asked again;
    /// rules stay meanwhile. Of one whose status has no address the addresses stay that it was paired or handed over with.
    pub(super) fn become_pod(&mut self, mut pod: PodSpec) {
        if pod.addresses.is_empty() {
            pod.addresses.clone_from(&self.pod.addresses);
        }
        if pod == *self.pod {
            return;
        }
        let serves = |pod: &PodSpec| (pod.namespace.clone(), pod.service_account.clone(), pod.capture.clone());
        self.renew |= self.given_until.is_none() && serves(&pod) != serves(&self.pod);
        self.pod = Arc::new(pod);
    }

    /// A pod that was handed over is meant to be in the mesh.
    pub(super) fn is_meant(&mut self) {
        self.given_until = None;
        if self.phase == Phase::Waiting {
            self.phase = Phase::Listening;
        }
    }

    /// It was found running, and is handed over as new before anything of it is captured.
    pub(super) fn is_new(&mut self) {
        // Whoever hands it over knows.
        self.presumed_new = false;
        self.close_next = !self.closed && !self.enforced;
    }

    /// Gives whether these are others than before.
    pub(super) fn meets(&mut self, strangers: Arc<[Stranger]>, segments: Arc<[(IpFamily, Segments)]>) -> bool {
        let changed = (&self.strangers, &self.segments) != (&strangers, &segments);
        (self.strangers, self.segments) = (strangers, segments);
        changed
    }

    /// Whether it is in, and nothing is wrong.
    pub(super) fn is_well(&self) -> bool {
        matches!(self.phase, Phase::In { .. }) && self.error.is_none() && !self.leave && !self.gone
    }

    /// Begins the step that is due.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Step> {
        if self.renew && self.busy.is_none() && !self.leave {
            self.renew = false;
            self.phase = Phase::Listening;
        }
        if self.close_next && self.busy.is_none() && !self.leave {
            self.close_next = false;
            if !self.enforced && !self.closed {
                self.phase = Phase::Closing;
                self.not_before = None;
            }
        }
        if self.phase == Phase::Draining && self.busy.is_none() && self.drain_until.is_some_and(|until| until <= now) {
            self.phase = Phase::Cutting;
            self.not_before = None;
        }
        let step = self.due(now)?;
        self.busy = Some(step);
        if matches!(step, Step::Prove | Step::Verify) {
            self.looking_since = Some(now);
        }
        if matches!(step, Step::Enforce | Step::Verify | Step::Close) {
            // What changes from here on may not be seen by it.
            self.dirty = false;
        }
        Some(step)
    }

    fn due(&self, now: Instant) -> Option<Step> {
        if self.busy.is_some() {
            return None;
        }
        if let Some(at) = self.hold_due()
            && at <= now
        {
            return Some(if self.enforced { Step::Enforce } else { Step::Close });
        }
        if self.not_before.is_some_and(|t| t > now) {
            return None;
        }
        match self.phase {
            Phase::Closing => Some(Step::Close),
            Phase::Waiting => None,
            Phase::Listening => Some(Step::Listen),
            Phase::Enforcing => Some(Step::Enforce),
            Phase::Proving => Some(Step::Prove),
            Phase::Opening => Some(Step::Open),
            Phase::Announcing => Some(Step::Announce),
            Phase::In { .. } => (self.dirty || self.verify_at <= later(now, self.together)).then_some(Step::Verify),
            Phase::Retracting | Phase::Withdrawing => Some(Step::Withdraw),
            Phase::LettingBy | Phase::Releasing => Some(Step::Release),
            Phase::Draining => Some(Step::Drain),
            Phase::Cutting => Some(Step::Cut),
            Phase::Clearing => Some(Step::Clear),
            Phase::Removing => Some(Step::Remove),
        }
    }

    /// When what refuses or captures is to be put back, although something else is waited for: a proxy that is away, or the
    /// word that the pod is meant. What holds a pod closed must not wait for either.
    fn hold_due(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Waiting | Phase::Listening);
        if !waits || self.leave || !(self.enforced || self.closed) {
            return None;
        }
        Some(self.hold_at.max(if self.dirty { self.hold_at } else { self.verify_at }))
    }

    /// When a step is due, if nothing else happens.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.busy.is_some() {
            return None;
        }
        let own = match (self.not_before, &self.phase) {
            (None, Phase::In { .. }) if !self.dirty => Some(self.verify_at),
            (Some(t), Phase::In { .. }) if !self.dirty => Some(t.max(self.verify_at)),
            (_, Phase::Waiting) => self.given_until,
            (not_before, _) => not_before,
        };
        let drained = self.drain_until.filter(|_| self.phase == Phase::Draining);
        [own, drained, self.hold_due()].into_iter().flatten().min()
    }

    /// Takes the outcome of a step; `true` when the pod has left.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        wall: SystemTime,
        timing: &Timing,
        step: Step,
        done: Done,
        output: &mut VecDeque<Output>,
    ) -> bool {
        self.wall = wall;
        let held = self.is_hold(step);
        if !held {
            self.not_before = None;
        }
        match done {
            Done::Failed(why) => self.failed(now, timing, Refusal { step, why }, false, output),
            Done::Usurped(why) => self.failed(now, timing, Refusal { step, why }, true, output),
            Done::Well(_) if step == Step::Prove => return self.advance(now, wall, timing, step, Done::Failed(UNPROVEN.into()), output),
            Done::Proven(proof) => {
                self.proof = Some(proof);
                self.proven_at = Some(wall);
                if let Phase::In { proof: shown, .. } = &mut self.phase {
                    *shown = proof;
                }
                if self.succeeded(now, wall, timing, step, output) {
                    return true;
                }
            }
            Done::Differs { what, rules, listeners } => {
                let earlier = self.mending.take();
                self.mending = Some(Mending {
                    what,
                    held: self.held.or(self.announced).unwrap_or(wall),
                    noticed: earlier.as_ref().map_or(wall, |mending| mending.noticed),
                    around: earlier.map_or(0, |mending| mending.around),
                });
                // What goes around the proxy weighs more than what is refused.
                self.listen_next = listeners;
                self.phase = if rules { Phase::Enforcing } else { Phase::Listening };
            }
            Done::Unfinished => self.not_before = Some(later(now, timing.pause)),
            Done::Runs => self.phase = Phase::Listening,
            Done::Well(report) => {
                self.report(step, &report);
                if held {
                    self.put_back(now, timing, step);
                } else if self.succeeded(now, wall, timing, step, output) {
                    return true;
                }
            }
        }
        self.turn(timing, now);
        false
    }

    /// Whether a step was begun for [`Entry::hold_due`].
    fn is_hold(&self, step: Step) -> bool {
        matches!(step, Step::Enforce | Step::Close) && matches!(self.phase, Phase::Waiting | Phase::Listening)
    }

    fn put_back(&mut self, now: Instant, timing: &Timing, step: Step) {
        self.enforced |= step == Step::Enforce;
        self.hold_at = later(now, timing.verify_least);
        self.verify_at = later(now, timing.verify_every);
    }

    /// After a step, where it is to go the other way: out, although it was on its way in, or the reverse.
    fn turn(&mut self, timing: &Timing, now: Instant) {
        if self.leave && !self.phase.leaves() {
            self.phase = Phase::Withdrawing;
            self.not_before = None;
        }
        if !self.leave && self.phase.leaves() {
            self.turn_round();
            self.not_before = None;
        }
        if self.gone && matches!(self.phase, Phase::Releasing | Phase::Draining) {
            self.phase = Phase::Cutting;
            self.not_before = None;
        }
        if self.phase == Phase::Clearing && self.gone {
            // Nothing is left to be cleared but what died with the namespace.
            self.phase = Phase::Removing;
            self.not_before = None;
        }
        if self.phase == Phase::Draining && self.drain_until.is_none() {
            self.drain_until = Some(later(now, timing.drain));
        }
    }

    fn report(&mut self, step: Step, report: &Report) {
        if let Some(kept) = &report.kept {
            self.kept = kept.clone();
        }
        self.strays = self.strays.saturating_add(report.strays);
        if step != Step::Enforce {
            return;
        }
        let Some(said) = &report.said else { return };
        if let Some(Mending { what, around, .. }) = &mut self.mending {
            *what = format!("{what}; put back: {said}");
            if report.strays > 0 {
                *what = format!("{what}; {} connections that went around the proxy are reset", report.strays);
            }
            *around += report.strays;
        }
        self.said = Some(said.clone());
    }

    fn succeeded(&mut self, now: Instant, wall: SystemTime, timing: &Timing, step: Step, output: &mut VecDeque<Output>) -> bool {
        match step {
            Step::Close => {
                self.closed = true;
                self.hold_at = later(now, timing.verify_least);
                // After a failure the next attempt has a pause of its own.
                self.not_before = (self.failures > 0).then(|| later(now, timing.pause_after(self.failures)));
                self.phase = match self.given_until {
                    Some(_) => Phase::Waiting,
                    None => Phase::Listening,
                };
            }
            Step::Listen => self.phase = Phase::Enforcing,
            Step::Enforce => {
                self.enforced = true;
                self.hold_at = later(now, timing.verify_least);
                self.phase = match std::mem::take(&mut self.listen_next) {
                    true => Phase::Listening,
                    false => Phase::Proving,
                };
            }
            Step::Prove => {
                self.holds(now, wall);
                self.proven(now, wall, timing, output);
            }
            Step::Open => {
                self.closed = false;
                // As it stands now, without what refused.
                self.phase = Phase::Proving;
            }
            Step::Announce => {
                self.announced = Some(wall);
                self.earlier = None;
                if !self.leave {
                    output.push_back(Output::Tell(Notice::Captured(self.pod.clone())));
                }
                self.arrived(now, wall, timing, wall, output);
            }
            Step::Verify => {
                self.holds(now, wall);
                self.failures = 0;
                self.error = None;
                self.verify_at = later(now, timing.verify_every);
                self.not_before = Some(later(now, timing.verify_least));
            }
            Step::Withdraw => {
                self.announced = None;
                self.earlier = None;
                self.mending = None;
                if self.phase == Phase::Retracting {
                    self.phase = if timing.open { Phase::LettingBy } else { Phase::Listening };
                    self.not_before = (!timing.open).then(|| later(now, timing.pause_most));
                } else {
                    self.failures = 0;
                    self.phase = if self.gone { Phase::Cutting } else { Phase::Releasing };
                }
            }
            Step::Release => {
                self.enforced = false;
                self.closed = false;
                if self.phase == Phase::LettingBy {
                    self.phase = Phase::Listening;
                    self.not_before = Some(later(now, timing.pause_most));
                } else {
                    self.failures = 0;
                    self.phase = Phase::Draining;
                }
            }
            Step::Drain => {
                self.failures = 0;
                self.phase = Phase::Cutting;
            }
            Step::Cut => {
                self.failures = 0;
                self.phase = Phase::Clearing;
            }
            Step::Clear => {
                self.cleared = true;
                self.failures = 0;
                self.phase = Phase::Removing;
            }
            Step::Remove => {
                if !self.unannounced {
                    let uid = self.pod.uid.clone();
                    // Cleared as long as it was there, or it left of itself and was lost on its way.
                    let lost = self.lost && !self.cleared;
                    output.push_back(Output::Tell(if lost { Notice::Lost(uid) } else { Notice::Released(uid) }));
                }
                return true;
            }
        }
        false
    }

    /// A look has found everything as it should be; it says so of the moment at which it was begun.
    fn holds(&mut self, now: Instant, wall: SystemTime) {
        let took = self
            .looking_since
            .map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        // Where a capture is being mended, until when it held stays what it was.
        if self.mending.is_none() {
            self.held = wall.checked_sub(took);
        }
    }

    /// Its capture is proven: it is refused no more, then announced.
    fn proven(&mut self, now: Instant, wall: SystemTime, timing: &Timing, output: &mut VecDeque<Output>) {
        match self.announced {
            _ if self.closed => self.phase = Phase::Opening,
            Some(at) => self.arrived(now, wall, timing, at, output),
            None => self.phase = Phase::Announcing,
        }
    }

    fn arrived(&mut self, now: Instant, wall: SystemTime, timing: &Timing, captured_at: SystemTime, output: &mut VecDeque<Output>) {
        if let Some(mended) = self.mending.take() {
            self.repairs += 1;
            let repair = Repair {
                what: mended.what,
                held: mended.held,
                noticed: mended.noticed,
                repaired: wall,
                around: mended.around,
            };
            self.mended = Some(Arc::new(repair.clone()));
            self.holds(now, wall);
            output.push_back(Output::Tell(Notice::Repaired(self.pod.clone(), repair)));
        }
        self.failures = 0;
        self.error = None;
        self.verify_at = later(now, timing.verify_every);
        self.not_before = Some(later(now, timing.verify_least));
        self.phase = match self.proof {
            Some(proof) => Phase::In { captured_at, proof },
            // Nobody has proven it: a driver that answers so has not done what it was told.
            None => Phase::Proving,
        };
    }

    fn failed(&mut self, now: Instant, timing: &Timing, refusal: Refusal, usurped: bool, output: &mut VecDeque<Output>) {
        let step = refusal.step;
        self.failures = self.failures.saturating_add(1);
        let pause = later(now, timing.pause_after(self.failures));
        if self.error.as_ref() != Some(&refusal) && !self.gone {
            output.push_back(Output::Tell(Notice::Refused(self.pod.clone(), refusal.clone())));
        }
        self.error = Some(refusal);
        if self.is_hold(step) {
            // The way in is tried again when it is due anyway, and what this was begun for is not done.
            (self.hold_at, self.dirty) = (pause, true);
            return;
        }
        // Whatever has changed was not looked at.
        self.dirty |= step == Step::Verify;
        self.not_before = Some(pause);
        if self.leave {
            return;
        }
        self.listen_next = false;
        match self.phase {
            // From the start, listeners first: what failed may be the consequence of one that has gone.
            Phase::Enforcing | Phase::Proving => self.phase = Phase::Listening,
            // By the time of the next attempt the proof is old.
            Phase::Announcing | Phase::Opening => self.phase = Phase::Proving,
            Phase::In { .. } if self.failures >= MENDINGS => self.phase = Phase::Listening,
            // It must not stay uncaptured because it cannot be refused.
            Phase::Closing if self.given_until.is_none() => self.phase = Phase::Listening,
            _ => (),
        }
        let given_up = self.announced.is_some() && self.failures >= MENDINGS;
        if given_up || self.earlier.is_some_and(|until| until <= now) {
            self.phase = Phase::Retracting;
            self.not_before = None;
        } else if !self.closed && !timing.open && (usurped && self.enforced || self.is_known() && self.may_be_open(step)) {
            // What cannot be proven is refused until it is.
            self.phase = Phase::Closing;
            self.not_before = None;
        }
    }

    /// Whether others have been told that it is captured.
    fn is_known(&self) -> bool {
        self.announced.is_some() || self.earlier.is_some()
    }

    /// Whether the pod may not be captured as this has failed.
    fn may_be_open(&self, step: Step) -> bool {
        CAPTURES.contains(&step) || (step == Step::Verify && self.failures > 1)
    }

    pub(super) fn state(&self, namespace: NetnsId) -> PodState {
        let state = match (&self.phase, &self.error) {
            _ if self.leave => State::Leaving,
            (Phase::In { captured_at, proof }, None) => State::In {
                captured_at: *captured_at,
                proof: *proof,
            },
            (_, Some(error)) => State::Refused { error: error.clone() },
            (_, None) if self.given_until.is_some() => State::Waiting,
            (_, None) => State::Joining,
        };
        PodState {
            spec: self.pod.clone(),
            // Of one that was announced alone there is none.
            namespace: (namespace.dev != 0).then_some(namespace),
            state,
            said: self.said.clone(),
            proven_at: self.proven_at,
            repairs: self.repairs,
            kept: self.kept.clone(),
            closed: self.closed,
            strays: self.strays,
            mended: self.mended.clone(),
            strangers: self.strangers.clone(),
            segments: self.segments.clone(),
        }
    }
}

impl Phase {
    /// Whether it is one of the way out.
    fn leaves(&self) -> bool {
        matches!(
            self,
            Self::Withdrawing | Self::Releasing | Self::Draining | Self::Cutting | Self::Clearing | Self::Removing
        )
    }
}

const UNPROVEN: &str = "nothing was proven";
/// A capture that could not be mended so many times is announced no more.
const MENDINGS: u32 = 3;
/// The steps after whose failure the pod may not be captured. Of a verification that cannot be made that follows at the second.
const CAPTURES: [Step; 2] = [Step::Enforce, Step::Prove];
