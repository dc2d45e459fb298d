//! The proxy's side, pure: which workloads it is to serve, and what it answers.
//!
//! What an agent asks changes what is wanted; what is served is brought to it, one step at a time for each workload, whether
//! a connection stands or not. A connection that ends, or says what is not understood, changes nothing of what is served:
//! only a removal does, or the end of a snapshot that did not name a workload.
//!
//! What happens goes in by the `handle_*` methods; [`Workloads::poll`] then gives what is to be done until it gives `None`;
//! [`Workloads::timeout`] says when to ask again if nothing happens. Each [`Output::Serve`] and [`Output::End`] is answered by
//! [`Workloads::handle_served`] or [`Workloads::handle_ended`] exactly once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use ambient_core::PodUid;

use super::wire::{Ack, DecodeError, Hello, Request, VERSION, WorkloadInfo};
use crate::{later::later, linux::NetnsId};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A request is answered after so long at the latest. An agent waits for 5 s.
    pub answer: Duration,
    /// What failed is tried again so much later.
    pub again: Duration,
}

impl Default for Timing {
    /// Answers within 4 s, and tries again after 5 s.
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(4),
            again: Duration::from_secs(5),
        }
    }
}

/// What [`Workloads::poll`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<F> {
    /// A packet for the agent.
    Send(Vec<u8>),
    /// The connection is to be closed; it is forgotten already.
    Close(Ended),
    /// A workload is to be served from now on, as this, here. One that is served already is served so instead.
    Serve {
        /// The pod's UID.
        uid: PodUid,
        /// Who it is.
        info: WorkloadInfo,
        /// Its namespace.
        descriptor: F,
    },
    /// A workload is to be served no longer.
    End {
        /// The pod's UID.
        uid: PodUid,
    },
}

/// Why a connection to an agent is closed. Nothing else ends with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// A packet is not understood.
    #[error("the agent has sent what is not understood: {0}")]
    Decode(#[from] DecodeError),
    /// A workload without its name.
    #[error("the agent has named no Kubernetes namespace and service account for pod {0}: it is not known who that is")]
    NoInfo(PodUid),
    /// A workload without its namespace.
    #[error("the agent has sent no network namespace for pod {0}: one descriptor goes along with each that is to be served")]
    NoDescriptor(PodUid),
    /// A descriptor too many, or where there should be none.
    #[error("the agent has sent {0} descriptors with {1}")]
    Descriptors(usize, String),
    /// What may come once only, or before the snapshot's end.
    #[error("the agent has sent {0} after the snapshot's end")]
    Late(&'static str),
    /// Two requests at once.
    #[error("the agent has not waited for the answer to its last request")]
    Hasty,
}

/// Why a pod cannot be served where the agent says. It is refused that pod alone, and the connection goes on: else one pod would keep
/// all that are named after it from being served, at every attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misplaced {
    /// A descriptor of something else.
    #[error("the agent has sent no network namespace for pod {0}: {1}")]
    NoNamespace(PodUid, String),
    /// The namespace of the node, whose own connections would be taken for the pod's.
    #[error(
        "the agent has sent the node's own network namespace {1} for pod {0}: no pod of the mesh is in it; see which one the agent finds for \
         the pod, and take one with hostNetwork out of the mesh"
    )]
    Own(PodUid, NetnsId),
}

/// What came with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given<F> {
    /// Nothing.
    Nothing,
    /// A network namespace.
    Namespace(NetnsId, F),
    /// One descriptor, of the namespace that the proxy itself is in, or the node.
    Own(NetnsId),
    /// One descriptor, of something else: what is wrong with it.
    Other(String),
    /// Several descriptors.
    Many(usize),
}

/// Whether all is served that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// No agent is connected.
    Alone,
    /// The agent has not named all workloads yet.
    Naming,
    /// Some workloads are not served, and why; at most [`MOST_TOLD`] of them, and how many there are.
    Pending(Vec<(PodUid, Unserved)>, usize),
    /// It is.
    Ready,
}

/// Why a workload that is to be served is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unserved {
    /// It is about to be: each workload is this for a moment.
    #[error("it is being begun; it will be served as soon as that is done")]
    Begun,
    /// Another pod is where it is to be.
    #[error("its network namespace is that of pod {0}, which has not been removed")]
    Taken(PodUid),
    /// The attempt failed; there will be another.
    #[error("{0}")]
    Failed(String),
    /// The agent has not said where it is.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
}

/// All workloads of a proxy.
#[derive(Clone, Debug)]
pub struct Workloads<F> {
    timing: Timing,
    workloads: BTreeMap<PodUid, Workload<F>>,
    session: Option<Session>,
    output: VecDeque<Output<F>>,
    claims: u64,
}

#[derive(Clone, Debug)]
struct Session {
    /// What the snapshot has named until now; `None` after its end.
    named: Option<BTreeSet<PodUid>>,
    /// Workloads that were named last with a place where they cannot be served, and why; [`MOST`] at most.
    misplaced: BTreeMap<PodUid, Misplaced>,
    /// The workload that an answer waits for, whether it is to be served, and until when.
    asked: Option<(PodUid, bool, Instant)>,
}

#[derive(Clone, Debug)]
struct Workload<F> {
    wanted: Option<Wanted<F>>,
    served: Option<(WorkloadInfo, NetnsId)>,
    /// Where something of it may be.
    held: BTreeSet<NetnsId>,
    busy: Option<Step>,
    failed: Option<(String, Instant)>,
}

#[derive(Clone, Debug)]
struct Wanted<F> {
    info: WorkloadInfo,
    place: NetnsId,
    descriptor: F,
    /// Who claims a namespace first has it.
    claim: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Serve(WorkloadInfo, NetnsId),
    End,
}

impl<F: Clone> Workloads<F> {
    /// Serves nothing, and is not connected.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            workloads: BTreeMap::new(),
            session: None,
            output: VecDeque::new(),
            claims: 0,
        }
    }

    /// An agent is connected; what came of an earlier connection comes no more.
    pub fn handle_connected(&mut self) {
        self.session = Some(Session {
            named: Some(BTreeSet::new()),
            misplaced: BTreeMap::new(),
            asked: None,
        });
        self.output.retain(|output| !matches!(output, Output::Send(_) | Output::Close(_)));
        self.output.push_back(Output::Send(Hello { version: VERSION }.encode()));
    }

    /// The connection has ended.
    pub fn handle_closed(&mut self) {
        self.session = None;
    }

    /// Whether the last request is answered, so that the next may come.
    pub fn is_idle(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.asked.is_none())
    }

    /// The agent has sent a packet. What is wrong with it ends the connection, and is told the agent before.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8], given: Given<F>) {
        let Some(session) = &mut self.session else { return };
        let handled = match session.asked.is_some() {
            true => Err(Ended::Hasty),
            false => Request::decode(packet)
                .map_err(Ended::from)
                .and_then(|r| self.handle_request(now, r, given)),
        };
        if let Err(why) = handled {
            self.session = None;
            self.output.push_back(Output::Send(Ack::refusal(&why.to_string()).encode()));
            self.output.push_back(Output::Close(why));
        }
    }

    /// A workload is served now as was asked, or it is not.
    pub fn handle_served(&mut self, now: Instant, uid: &PodUid, result: Result<(), String>) {
        let again = later(now, self.timing.again);
        let Some(workload) = self.workloads.get_mut(uid) else { return };
        let Some(Step::Serve(info, place)) = workload.busy.take() else {
            return;
        };
        match result {
            Ok(()) => {
                workload.failed = None;
                workload.held = BTreeSet::from([place]);
                workload.served = Some((info, place));
            }
            Err(why) => {
                // What it was served as before it may be no longer.
                workload.failed = Some((why, again));
                workload.served = None;
            }
        }
        self.answer(now);
    }

    /// A workload is served no longer.
    pub fn handle_ended(&mut self, now: Instant, uid: &PodUid) {
        let Some(workload) = self.workloads.get_mut(uid) else { return };
        if workload.busy != Some(Step::End) {
            return;
        }
        workload.busy = None;
        workload.served = None;
        workload.held.clear();
        workload.failed = None;
        if workload.wanted.is_none() {
            self.workloads.remove(uid);
        }
        self.answer(now);
    }

    /// What is to be done now, one after another until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Output<F>> {
        self.answer(now);
        if let Some(output) = self.output.pop_front() {
            return Some(output);
        }
        let due = self
            .workloads
            .iter()
            .find_map(|(uid, w)| Some((uid.clone(), self.due(uid, w, now)?)));
        let (uid, step) = due?;
        let workload = self.workloads.get_mut(&uid)?;
        workload.busy = Some(step.clone());
        if let Step::Serve(_, place) = &step {
            workload.held.insert(*place);
        }
        match (step, &workload.wanted) {
            (Step::Serve(info, _), Some(wanted)) => Some(Output::Serve {
                uid,
                info,
                descriptor: wanted.descriptor.clone(),
            }),
            _ => Some(Output::End { uid }),
        }
    }

    /// When [`Workloads::poll`] has something to give although nothing happens.
    pub fn timeout(&self) -> Option<Instant> {
        let answer = self.session.as_ref().and_then(|s| s.asked.as_ref()).map(|(_, _, until)| *until);
        let idle = self
            .workloads
            .iter()
            .filter(|(uid, w)| w.busy.is_none() && self.in_the_way(uid, w).is_none());
        let again = idle.filter_map(|(_, w)| w.failed.as_ref().filter(|_| w.wanted.is_some()).map(|(_, again)| *again));
        answer.into_iter().chain(again).min()
    }

    /// Whether all is served that is to be.
    pub fn readiness(&self) -> Readiness {
        let misplaced = match &self.session {
            None => return Readiness::Alone,
            Some(session) if session.named.is_some() => return Readiness::Naming,
            Some(session) => &session.misplaced,
        };
        let pending = self.workloads.iter().filter(|(_, w)| w.wanted.is_some() && !w.is_as_wanted());
        let pending = pending.filter(|(uid, _)| !misplaced.contains_key(*uid));
        let nowhere = misplaced.iter().map(|(uid, why)| (uid.clone(), Unserved::from(why.clone())));
        let told = nowhere.chain(pending.clone().map(|(uid, w)| (uid.clone(), self.why_not(uid, w))));
        let told: Vec<_> = told.take(MOST_TOLD).collect();
        match told.is_empty() {
            true => Readiness::Ready,
            false => Readiness::Pending(told, misplaced.len() + pending.count()),
        }
    }

    /// Workloads that are served.
    pub fn served(&self) -> usize {
        self.workloads.values().filter(|w| w.served.is_some()).count()
    }

    fn handle_request(&mut self, now: Instant, request: Request, given: Given<F>) -> Result<(), Ended> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let until = later(now, self.timing.answer);
        match request {
            Request::Add { uid, info } => {
                let given = given.one(&uid)?;
                let info = info.ok_or_else(|| Ended::NoInfo(uid.clone()))?;
                if let Some(named) = &mut session.named {
                    named.insert(uid.clone());
                }
                session.misplaced.remove(&uid);
                let (place, descriptor) = match given {
                    Ok(placed) => placed,
                    Err(why) => {
                        self.output.push_back(Output::Send(Ack::refusal(&why.to_string()).encode()));
                        if session.misplaced.len() < MOST {
                            session.misplaced.insert(uid, why);
                        }
                        self.give_way();
                        return Ok(());
                    }
                };
                session.asked = Some((uid.clone(), true, until));
                self.want(now, uid, info, place, descriptor);
                self.give_way();
            }
            Request::Keep { uid } => {
                given.none("a request to keep a pod")?;
                session.named.as_mut().ok_or(Ended::Late("a request to keep a pod"))?.insert(uid);
                self.output.push_back(Output::Send(Ack::well().encode()));
            }
            Request::Del { uid } => {
                given.none("a removal")?;
                if let Some(named) = &mut session.named {
                    named.remove(&uid);
                }
                session.misplaced.remove(&uid);
                session.asked = Some((uid.clone(), false, until));
                self.end(&uid);
            }
            Request::SnapshotSent => {
                given.none("the snapshot's end")?;
                let named = session.named.take().ok_or(Ended::Late("a second snapshot's end"))?;
                let gone: Vec<PodUid> = self.workloads.keys().filter(|uid| !named.contains(uid)).cloned().collect();
                gone.iter().for_each(|uid| self.end(uid));
                self.output.push_back(Output::Send(Ack::well().encode()));
            }
        }
        self.answer(now);
        Ok(())
    }

    fn want(&mut self, now: Instant, uid: PodUid, info: WorkloadInfo, place: NetnsId, descriptor: F) {
        let full = self.workloads.len() >= MOST && !self.workloads.contains_key(&uid);
        if full {
            return;
        }
        self.claims += 1;
        let workload = self.workloads.entry(uid).or_default();
        let same = workload.wanted.as_ref().filter(|w| w.info == info && w.place == place);
        if same.is_some() && workload.failed.is_none() {
            // The descriptor that is held is as good as the new one.
            return;
        }
        let claim = match &workload.wanted {
            Some(wanted) if wanted.place == place => wanted.claim,
            _ => self.claims,
        };
        if let Some((_, again)) = &mut workload.failed {
            *again = now.min(*again);
        }
        workload.wanted = Some(Wanted {
            info,
            place,
            descriptor,
            claim,
        });
    }

    /// A pod that was named elsewhere, where it cannot be, goes on where it is; until that is another's.
    fn give_way(&mut self) {
        let Some(session) = &self.session else { return };
        let wanted = |uid: &PodUid| Some(self.workloads.get(uid)?.wanted.as_ref()?.place);
        let is_anothers = |uid: &&PodUid| {
            let mut others = self.workloads.keys().filter(|other| other != uid);
            wanted(uid).is_some_and(|place| others.any(|other| wanted(other) == Some(place)))
        };
        let strays: Vec<PodUid> = session.misplaced.keys().filter(is_anothers).cloned().collect();
        strays.iter().for_each(|uid| self.end(uid));
    }

    fn end(&mut self, uid: &PodUid) {
        let Some(workload) = self.workloads.get_mut(uid) else { return };
        workload.wanted = None;
        if workload.held.is_empty() && workload.busy.is_none() {
            self.workloads.remove(uid);
        }
    }

    /// The step that is due for a workload.
    fn due(&self, uid: &PodUid, workload: &Workload<F>, now: Instant) -> Option<Step> {
        if workload.busy.is_some() {
            return None;
        }
        match &workload.wanted {
            None => Some(Step::End),
            Some(_) if workload.is_as_wanted() => None,
            // Those who wait for each other's namespace would wait for ever: where it is no more it lets go of.
            Some(wanted) if self.in_the_way(uid, workload).is_some() && self.is_waited_for(uid, workload, wanted.place) => Some(Step::End),
            Some(_) if workload.failed.as_ref().is_some_and(|(_, again)| *again > now) => None,
            Some(_) if self.in_the_way(uid, workload).is_some() => None,
            Some(wanted) => Some(Step::Serve(wanted.info.clone(), wanted.place)),
        }
    }

    /// The other pod whose the wanted namespace is, and whether it is to keep it.
    fn in_the_way(&self, uid: &PodUid, workload: &Workload<F>) -> Option<(&PodUid, bool)> {
        let wanted = workload.wanted.as_ref()?;
        let mut others = self.workloads.iter().filter(|(other, _)| *other != uid);
        others.find_map(|(uid, other)| {
            let earlier = |w: &Wanted<F>| w.place == wanted.place && w.claim < wanted.claim;
            let keeps = other.wanted.as_ref().is_some_and(earlier);
            (keeps || other.held.contains(&wanted.place)).then_some((uid, keeps))
        })
    }

    /// Whether another pod is to be where something of this one may be, which itself is to be here.
    fn is_waited_for(&self, uid: &PodUid, workload: &Workload<F>, here: NetnsId) -> bool {
        let left = |place: &NetnsId| *place != here && workload.held.contains(place);
        let mut others = self.workloads.iter().filter(|(other, _)| *other != uid);
        others.any(|(_, other)| other.wanted.as_ref().is_some_and(|wanted| left(&wanted.place)))
    }

    /// Gives the answer that is waited for, if there is one by now.
    fn answer(&mut self, now: Instant) {
        let Some((uid, serve, until)) = self.session.as_ref().and_then(|s| s.asked.clone()) else {
            return;
        };
        let workload = self.workloads.get(&uid);
        let ack = match (serve, workload) {
            (true, Some(w)) if w.is_as_wanted() && w.busy.is_none() => Ack::well(),
            (true, Some(w)) if self.in_the_way(&uid, w).is_some_and(|(_, keeps)| keeps) => Ack::refusal(&self.why_not(&uid, w).to_string()),
            (true, Some(w)) if w.busy.is_none() && w.failed.as_ref().is_some_and(|(_, again)| *again > now) => {
                Ack::refusal(&self.why_not(&uid, w).to_string())
            }
            (true, Some(w)) if until <= now => Ack::refusal(&self.why_not(&uid, w).to_string()),
            (true, None) => Ack::refusal(&format!("there are {MOST} pods here already")),
            (false, None) => Ack::well(),
            // It has been taken note of: the rest follows.
            (false, Some(_)) if until <= now => Ack::well(),
            _ => return,
        };
        if let Some(session) = &mut self.session {
            session.asked = None;
        }
        self.output.push_back(Output::Send(ack.encode()));
    }

    fn why_not(&self, uid: &PodUid, workload: &Workload<F>) -> Unserved {
        match (self.in_the_way(uid, workload), &workload.failed) {
            (Some((other, _)), _) => Unserved::Taken(other.clone()),
            (None, Some((why, _))) => Unserved::Failed(why.clone()),
            (None, None) => Unserved::Begun,
        }
    }
}

impl<F> Default for Workload<F> {
    fn default() -> Self {
        Self {
            wanted: None,
            served: None,
            held: BTreeSet::new(),
            busy: None,
            failed: None,
        }
    }
}

impl<F> Workload<F> {
    fn is_as_wanted(&self) -> bool {
        match (&self.wanted, &self.served) {
            (Some(wanted), Some((info, place))) => *info == wanted.info && *place == wanted.place,
            _ => false,
        }
    }
}

impl<F> Given<F> {
    /// The one namespace that comes with a pod, or why the pod cannot be served there.
    fn one(self, uid: &PodUid) -> Result<Result<(NetnsId, F), Misplaced>, Ended> {
        match self {
            Self::Namespace(place, descriptor) => Ok(Ok((place, descriptor))),
            Self::Own(place) => Ok(Err(Misplaced::Own(uid.clone(), place))),
            Self::Other(why) => Ok(Err(Misplaced::NoNamespace(uid.clone(), why))),
            Self::Nothing => Err(Ended::NoDescriptor(uid.clone())),
            Self::Many(count) => Err(Ended::Descriptors(count, format!("pod {uid}, and one is to go along"))),
        }
    }

    fn none(&self, with: &str) -> Result<(), Ended> {
        let count = match self {
            Self::Nothing => return Ok(()),
            Self::Namespace(..) | Self::Own(_) | Self::Other(_) => 1,
            Self::Many(count) => *count,
        };
        Err(Ended::Descriptors(count, format!("{with}, and none is to go along")))
    }
}

/// More workloads than a node has pods, by far.
pub const MOST: usize = 4096;
/// So many that are not served are named.
pub const MOST_TOLD: usize = 16;
