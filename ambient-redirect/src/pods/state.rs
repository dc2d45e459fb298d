//! One pod in its namespace.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{Done, Notice, Output, Timing};
use crate::{
    PodSpec,
    linux::{NetnsId, Proof},
};

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// The pod.
    pub spec: Arc<PodSpec>,
    /// Its namespace, if it is known.
    pub namespace: Option<NetnsId>,
    /// How it stands.
    pub state: State,
    /// What was last put into its namespace, in words for people: all of it, or what was put back.
    pub said: Option<String>,
    /// How often its capture was found broken and mended.
    pub repairs: u64,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its namespace is not known.
    Pairing {
        /// Why not.
        why: String,
    },
    /// It is being captured.
    Joining,
    /// Its capture is proven and announced.
    In {
        /// Since when.
        captured_at: SystemTime,
        /// How that was proven last.
        proof: Proof,
    },
    /// It cannot be captured; it is tried again.
    Refused {
        /// Why.
        error: Refusal,
    },
    /// It is on its way out.
    Leaving,
}

/// Why a pod cannot be captured, or let go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Refusal {
    /// What failed.
    pub step: Step,
    /// Why.
    pub why: String,
}

/// What is done for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// The proxy is asked to listen.
    Listen,
    /// Rules and routes are put in force.
    Enforce,
    /// It is proven that all of it stands.
    Prove,
    /// It is announced that the pod is captured.
    Announce,
    /// It is verified that all of it still stands.
    Verify,
    /// The announcement is taken back.
    Withdraw,
    /// The proxy is told to reset what the pod has open, and to take no other.
    Cut,
    /// Rules and routes are taken away.
    Clear,
    /// The proxy is told to let go.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen => "the proxy cannot listen",
            Self::Enforce => "the rules cannot be put in force",
            Self::Prove => "the capture cannot be proven",
            Self::Announce => "the capture cannot be announced",
            Self::Verify => "the capture cannot be verified",
            Self::Withdraw => "the announcement cannot be taken back",
            Self::Cut => "the proxy does not cut what is open",
            Self::Clear => "the rules cannot be taken away",
            Self::Remove => "the proxy does not let go",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Listening,
    Enforcing,
    Proving,
    Announcing,
    In { captured_at: SystemTime, proof: Proof },
    Retracting,
    Withdrawing,
    Cutting,
    Clearing,
    Removing,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<PodSpec>,
    phase: Phase,
    pub(super) busy: Option<Step>,
    /// Its namespace has lost its name.
    pub(super) gone: bool,
    leave: bool,
    /// Nothing of ours is in its namespace any more.
    pub(super) cleared: bool,
    /// Something in the namespace has changed since it was last looked at.
    pub(super) dirty: bool,
    /// The proxy serves it as somebody that it is no longer.
    renew: bool,
    /// Announced by this process, and not taken back.
    announced: Option<SystemTime>,
    /// What is being mended.
    mending: Option<String>,
    /// How it was proven last.
    proof: Option<Proof>,
    failures: u32,
    error: Option<Refusal>,
    not_before: Option<Instant>,
    verify_at: Instant,
    said: Option<String>,
    repairs: u64,
}

impl Entry {
    pub(super) fn new(pod: Arc<PodSpec>, phase: Phase, now: Instant, timing: &Timing) -> Self {
        Self {
            pod,
            phase,
            busy: None,
            gone: false,
            leave: false,
            cleared: false,
            dirty: false,
            renew: false,
            announced: None,
            mending: None,
            proof: None,
            failures: 0,
            error: None,
            not_before: None,
            verify_at: now + timing.verify_every,
            said: None,
            repairs: 0,
        }
    }

    /// An entry whose one purpose is to leave.
    pub(super) fn left_behind(pod: Arc<PodSpec>, phase: Phase, now: Instant, timing: &Timing) -> Self {
        Self {
            leave: true,
            ..Self::new(pod, phase, now, timing)
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
        self.failures = 0;
        self.not_before = None;
        // A step under way is waited for: it has a deadline, and two at once would undo each other.
        if self.busy.is_none() {
            self.phase = Phase::Withdrawing;
        }
    }

    /// What is told of the pod has changed. Where it is who it speaks for, or what is captured of it, the proxy is asked again;
    /// rules stay meanwhile.
    pub(super) fn become_pod(&mut self, pod: Arc<PodSpec>) {
        let serves = |pod: &PodSpec| (pod.namespace.clone(), pod.service_account.clone(), pod.capture.clone());
        self.renew |= serves(&pod) != serves(&self.pod);
        self.pod = pod;
    }

    /// Begins the step that is due.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Step> {
        if self.renew && self.busy.is_none() && !self.leave {
            self.renew = false;
            self.phase = Phase::Listening;
        }
        let step = self.due(now)?;
        self.busy = Some(step);
        if matches!(step, Step::Enforce | Step::Verify) {
            // What changes from here on may not be seen by it.
            self.dirty = false;
        }
        Some(step)
    }

    fn due(&self, now: Instant) -> Option<Step> {
        if self.busy.is_some() || self.not_before.is_some_and(|t| t > now) {
            return None;
        }
        match self.phase {
            Phase::Listening => Some(Step::Listen),
            Phase::Enforcing => Some(Step::Enforce),
            Phase::Proving => Some(Step::Prove),
            Phase::Announcing => Some(Step::Announce),
            Phase::In { .. } => (self.dirty || self.verify_at <= now).then_some(Step::Verify),
            Phase::Retracting | Phase::Withdrawing => Some(Step::Withdraw),
            Phase::Cutting => Some(Step::Cut),
            Phase::Clearing => Some(Step::Clear),
            Phase::Removing => Some(Step::Remove),
        }
    }

    /// When a step is due, if nothing else happens.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.busy.is_some() {
            return None;
        }
        match (self.not_before, &self.phase) {
            (None, Phase::In { .. }) if !self.dirty => Some(self.verify_at),
            (Some(t), Phase::In { .. }) if !self.dirty => Some(t.max(self.verify_at)),
            (not_before, _) => not_before,
        }
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
        self.not_before = None;
        match done {
            Done::Failed(why) => self.failed(now, timing, Refusal { step, why }, output),
            Done::Well(_) if step == Step::Prove => {
                let why = "nothing was proven".into();
                self.failed(now, timing, Refusal { step, why }, output);
            }
            Done::Differs { what, listeners } => {
                self.mending = Some(what);
                self.phase = if listeners { Phase::Listening } else { Phase::Enforcing };
            }
            Done::Proven(proof) => {
                self.proof = Some(proof);
                if let Phase::In { proof: shown, .. } = &mut self.phase {
                    *shown = proof;
                }
                if self.succeeded(now, wall, timing, step, output) {
                    return true;
                }
            }
            Done::Well(said) => {
                if step == Step::Enforce
                    && let Some(said) = &said
                {
                    if let Some(what) = &mut self.mending {
                        *what = format!("{what}; put back: {said}");
                    }
                    self.said = Some(said.clone());
                }
                if self.succeeded(now, wall, timing, step, output) {
                    return true;
                }
            }
        }
        let leaving = [Phase::Withdrawing, Phase::Cutting, Phase::Clearing, Phase::Removing];
        if self.leave && !leaving.contains(&self.phase) {
            self.phase = Phase::Withdrawing;
            self.not_before = None;
        }
        if self.phase == Phase::Clearing && self.gone {
            // Nothing is left to be cleared but what died with the namespace.
            self.phase = Phase::Removing;
            self.not_before = None;
        }
        false
    }

    fn succeeded(&mut self, now: Instant, wall: SystemTime, timing: &Timing, step: Step, output: &mut VecDeque<Output>) -> bool {
        match step {
            Step::Listen => self.phase = Phase::Enforcing,
            Step::Enforce => self.phase = Phase::Proving,
            Step::Prove => match self.announced {
                Some(at) => self.arrived(now, timing, at, output),
                None => self.phase = Phase::Announcing,
            },
            Step::Announce => {
                self.announced = Some(wall);
                if !self.leave {
                    output.push_back(Output::Tell(Notice::Captured(self.pod.clone())));
                }
                self.arrived(now, timing, wall, output);
            }
            Step::Verify => {
                self.failures = 0;
                self.error = None;
                self.verify_at = now + timing.verify_every;
                self.not_before = Some(now + timing.verify_least);
            }
            Step::Withdraw => {
                self.announced = None;
                self.mending = None;
                if self.phase == Phase::Retracting {
                    self.phase = Phase::Listening;
                    self.not_before = Some(now + timing.pause_most);
                } else {
                    self.failures = 0;
                    self.phase = Phase::Cutting;
                }
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
                output.push_back(Output::Tell(Notice::Released(self.pod.uid.clone())));
                return true;
            }
        }
        false
    }

    fn arrived(&mut self, now: Instant, timing: &Timing, captured_at: SystemTime, output: &mut VecDeque<Output>) {
        if let Some(what) = self.mending.take() {
            self.repairs += 1;
            output.push_back(Output::Tell(Notice::Repaired(self.pod.clone(), what)));
        }
        self.failures = 0;
        self.error = None;
        self.verify_at = now + timing.verify_every;
        self.not_before = Some(now + timing.verify_least);
        self.phase = match self.proof {
            Some(proof) => Phase::In { captured_at, proof },
            // Nobody has proven it: a driver that answers so has not done what it was told.
            None => Phase::Proving,
        };
    }

    fn failed(&mut self, now: Instant, timing: &Timing, refusal: Refusal, output: &mut VecDeque<Output>) {
        self.failures = self.failures.saturating_add(1);
        let pause = timing
            .pause
            .saturating_mul(1 << self.failures.saturating_sub(1).min(16))
            .min(timing.pause_most);
        self.not_before = Some(now + pause);
        if self.error.as_ref() != Some(&refusal) && !self.gone {
            output.push_back(Output::Tell(Notice::Refused(self.pod.clone(), refusal.clone())));
        }
        self.error = Some(refusal);
        if self.leave {
            return;
        }
        match self.phase {
            // From the start, listeners first: what failed may be the consequence of one that has gone.
            Phase::Enforcing | Phase::Proving => self.phase = Phase::Listening,
            // By the time of the next attempt the proof is old.
            Phase::Announcing => self.phase = Phase::Proving,
            Phase::In { .. } if self.failures >= MENDINGS => self.phase = Phase::Listening,
            _ => (),
        }
        if self.announced.is_some() && self.failures >= MENDINGS {
            self.phase = Phase::Retracting;
            self.not_before = None;
        }
    }

    pub(super) fn state(&self, namespace: NetnsId) -> PodState {
        let state = match (&self.phase, &self.error) {
            _ if self.leave => State::Leaving,
            (Phase::In { captured_at, proof }, None) => State::In {
                captured_at: *captured_at,
                proof: *proof,
            },
            (_, Some(error)) => State::Refused { error: error.clone() },
            (_, None) => State::Joining,
        };
        PodState {
            spec: self.pod.clone(),
            namespace: Some(namespace),
            state,
            said: self.said.clone(),
            repairs: self.repairs,
        }
    }
}

/// A capture that could not be mended so many times is announced no more.
const MENDINGS: u32 = 3;
