//! What is told of a pod.

use std::{sync::Arc, time::SystemTime};

use super::{Kept, Refusal, Unpaired};
use crate::{
    PodSpec,
    linux::{NetnsId, Proof, Segments, Stranger},
    plan::IpFamily,
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
    /// When its capture was proven last. Where nothing else changes it may be some seconds old.
    pub proven_at: Option<SystemTime>,
    /// How often its capture was found broken and mended.
    pub repairs: u64,
    /// Its connections from before it joined that are open still: outside of the mesh. As of the last look, a few seconds ago
    /// at most; in the order of their addresses.
    pub kept: Arc<[Kept]>,
    /// Its TCP is refused, but for what was captured or kept before: its capture is not proven yet, or not any more.
    pub closed: bool,
    /// Connections that went around the proxy while its capture was broken, and were reset when it was mended.
    pub strays: u64,
    /// The last repair whole: its times, and what went around the proxy meanwhile.
    pub mended: Option<Arc<Repair>>,
    /// Rules of others in its namespace that come before those that capture it: what they send elsewhere does not reach the proxy.
    /// It is refused, unless it stays in the pod. As of the last look, which follows a change at once.
    pub strangers: Arc<[Stranger]>,
    /// Whose segments what is captured has, of each family, where the loopback device's are asked for
    /// ([`Options::loopback_segments`](crate::plan::Options::loopback_segments)); else none is named but those of which they are
    /// [left](Segments::Left). As of the last look, as those are.
    pub segments: Arc<[(IpFamily, Segments)]>,
}

impl PodState {
    /// A pod of which nothing is known yet but how it stands.
    pub fn new(spec: impl Into<Arc<PodSpec>>, state: State) -> Self {
        Self {
            spec: spec.into(),
            namespace: None,
            state,
            said: None,
            proven_at: None,
            repairs: 0,
            kept: Arc::from([]),
            closed: false,
            strays: 0,
            mended: None,
            strangers: Arc::from([]),
            segments: Arc::from([]),
        }
    }

    /// Whether two differ in nothing, or in [`PodState::proven_at`] alone.
    pub(super) fn is_but_for_proof(&self, other: &Self) -> bool {
        let Self {
            spec,
            namespace,
            state,
            said,
            proven_at: _,
            repairs,
            kept,
            closed,
            strays,
            mended,
            strangers,
            segments,
        } = self;
        (spec, namespace, state, said, repairs) == (&other.spec, &other.namespace, &other.state, &other.said, &other.repairs)
            && (kept, closed, strays, mended) == (&other.kept, &other.closed, &other.strays, &other.mended)
            && (strangers, segments) == (&other.strangers, &other.segments)
    }
}

/// A capture that was found broken, and is proven again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// What differed, and what was put back.
    pub what: String,
    /// Until when the capture was known to stand: when the last look that found it so was begun.
    pub held: SystemTime,
    /// When it was found broken.
    pub noticed: SystemTime,
    /// When it was proven again.
    pub repaired: SystemTime,
    /// Connections that went around the proxy meanwhile and were still open right after the rules were put back; they are
    /// reset. What had ended by then is not counted, nor is a datagram.
    pub around: u64,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its namespace is not known.
    Pairing {
        /// Why not.
        why: Unpaired,
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
    /// It is on its way out: its announcement is being taken back, or what it had captured goes on until it ends.
    Leaving,
    /// Its TCP is refused until it is told that it is meant to be in the mesh: its namespace was handed over before that.
    Waiting,
}
