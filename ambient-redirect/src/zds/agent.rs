//! The node agent's side, pure: which proxy is asked what next, so that each ends with what it should have.
//!
//! ```text
//!  connected        Hello              all named           acknowledged
//!  ---------> Greeting ------> Naming ----------> Ending -----------------> Living
//!                 |               |                  |                        |
//!                 +---------------+---- gone, late, or not understood --------+---> closed
//! ```
//!
//! Nothing is queued. What a proxy has been told stands beside what is wanted, and what differs is what it is asked next:
//! first what it must let go, then what it lacks. There is one request under way to a proxy at a time. An answer that does
//! not come in time ends the connection, so that a late one is never taken for the next one's; the proxy connects again and
//! is told all anew.
//!
//! While it is naming, each proxy is told of every pod. Later only the newest is told of new ones; what is to be let go, all
//! are told, and what one has refused, it is asked again. When the newest is gone, the one before it is told what it lacks. A pod whose namespace is not known yet when a
//! proxy comes it is told to keep, and where it is once that is known.
//!
//! A pod of which a proxy was told when its connection ended is suspected to be why, as the proxy may hang or end by it: whoever
//! connects next is told of it last, and from the second time on only after a pause, so that it keeps no other from being served.
//!
//! What happens goes in by [`Agent::want`] and the `handle_*` methods; [`Agent::poll`] then gives what is to be done until it
//! gives `None`; [`Agent::timeout`] says when to ask again if nothing happens.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use ambient_core::PodUid;

use super::wire::{Ack, DecodeError, Hello, LONGEST_PACKET, Request, VERSION, WorkloadInfo, cut};
use crate::{later::later, linux::NetnsId};

/// A connected proxy. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyId(u64);

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {}", self.0)
    }
}

/// Somebody who waits for an [`Output::Answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A proxy has this long to say who it is.
    pub hello: Duration,
    /// It has this long to answer a request.
    pub ack: Duration,
    /// What it refused is asked again so much later.
    pub again: Duration,
    /// So long after [`Agent::expect`] a pod whose namespace is not known holds up nobody's snapshot any more.
    pub grace: Duration,
}

impl Default for Timing {
    /// Five seconds each, as Istio has them; three for the grace.
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(5),
            ack: Duration::from_secs(5),
            again: Duration::from_secs(5),
            grace: Duration::from_secs(3),
        }
    }
}

/// What [`Agent::poll`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<F> {
    /// A packet for a proxy, with the descriptor that goes along.
    Send {
        /// To whom.
        to: ProxyId,
        /// The packet.
        packet: Vec<u8>,
        /// A namespace.
        descriptor: Option<F>,
    },
    /// A connection is to be closed; it is forgotten already.
    Close {
        /// Whose.
        proxy: ProxyId,
        /// Why.
        why: Ended,
    },
    /// What somebody has waited for.
    Answer {
        /// Who.
        ticket: Ticket,
        /// The answer.
        answer: Result<(), Unserved>,
    },
}

/// Why a connection to a proxy is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// It did not say who it is.
    #[error("it has not said which version it speaks in time: is it a proxy?")]
    NoHello,
    /// It speaks another version.
    #[error("it speaks version {0} of ZDS, and version {VERSION} is spoken here: upgrade the older of the two")]
    Version(u64),
    /// It has not answered.
    #[error("it has not answered {0} in time: is it hanging?")]
    NoAnswer(String),
    /// It has answered what was not asked.
    #[error("it has sent an answer that nothing was asked for")]
    Unasked,
    /// It has sent what is not understood.
    #[error("it has sent what is not understood: {0}")]
    Decode(#[from] DecodeError),
    /// It has sent a descriptor.
    #[error("it has sent a descriptor, which no answer has")]
    Descriptor,
    /// It refuses what cannot be refused: that its state is known no longer.
    #[error("it refuses {0}: {1}")]
    Refused(String, String),
}

/// Why a pod is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unserved {
    /// The proxy says no.
    #[error("the proxy refuses it: {0}")]
    Refused(String),
    /// It is not wanted any more.
    #[error("it has been removed meanwhile")]
    Removed,
    /// Its names are too long.
    #[error("its names are too long for a packet: {0} bytes of {LONGEST_PACKET}")]
    TooLong(usize),
}

/// How a proxy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyState {
    /// Which.
    pub proxy: ProxyId,
    /// Whether it has everything that it was to be told at its beginning.
    pub synced: bool,
    /// Pods that it serves.
    pub served: usize,
    /// Pods that it refuses, and why.
    pub refused: Vec<(PodUid, String)>,
}

/// All that is wanted, and all proxies.
#[derive(Clone, Debug)]
pub struct Agent<F> {
    timing: Timing,
    wanted: BTreeMap<PodUid, Wanted<F>>,
    /// Pods that are to be wanted as soon as their namespaces are known, and since when that is so.
    expected: Option<(Instant, BTreeSet<PodUid>)>,
    proxies: BTreeMap<ProxyId, Connection>,
    tickets: BTreeMap<Ticket, Waits>,
    /// Pods that are wanted, and were not answered for when a connection ended.
    suspects: BTreeMap<PodUid, Suspect>,
    output: VecDeque<Output<F>>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    times: u32,
    /// It is not asked for again before.
    not_before: Instant,
}

#[derive(Clone, Debug)]
struct Wanted<F> {
    info: WorkloadInfo,
    place: NetnsId,
    descriptor: F,
}

#[derive(Clone, Debug)]
struct Waits {
    uid: PodUid,
    for_what: For,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Served,
    Gone,
}

#[derive(Clone, Debug)]
struct Connection {
    phase: Phase,
    /// What was sent and is not answered.
    asked: Option<(Request, Instant)>,
    /// What it has been told to serve and not to let go, as far as it has answered.
    told: BTreeMap<PodUid, Told>,
    /// What it was told and told to let go, all while naming: real proxies serve that until the snapshot's end.
    unlisted: BTreeMap<PodUid, Option<NetnsId>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting { until: Instant },
    Naming,
    Living,
}

#[derive(Clone, Debug)]
struct Told {
    /// `None` for one that it was only told to keep.
    pod: Option<(WorkloadInfo, NetnsId)>,
    refused: Option<(String, Instant)>,
    /// It is to let go of the pod, whatever is wanted now, or has been told to.
    ends: bool,
}

impl Told {
    fn is<F>(&self, wanted: &Wanted<F>) -> bool {
        !self.ends
            && self
                .pod
                .as_ref()
                .is_some_and(|(info, place)| *info == wanted.info && *place == wanted.place)
    }
}

impl<F: Clone> Agent<F> {
    /// Wants nothing, and knows of no proxy. No snapshot ends before [`Agent::expect`].
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            wanted: BTreeMap::new(),
            expected: None,
            proxies: BTreeMap::new(),
            tickets: BTreeMap::new(),
            suspects: BTreeMap::new(),
            output: VecDeque::new(),
            next: 0,
        }
    }

    /// These pods are to be served as soon as their namespaces are known, and no others but those that are wanted already.
    ///
    /// A proxy that goes on from before drops what a snapshot does not name: so no snapshot ends before all of these have
    /// been wanted, or the grace is over; those that are not wanted then it is told to keep.
    pub fn expect(&mut self, now: Instant, pods: BTreeSet<PodUid>) {
        let since = self.expected.as_ref().map_or(now, |(since, _)| *since);
        self.expected = Some((since, pods));
    }

    /// A pod is to be served, in a namespace. The answer says when the newest proxy does. With `anew` it is told to let go
    /// first, although it has said that it serves the pod.
    pub fn want(&mut self, now: Instant, uid: PodUid, info: WorkloadInfo, place: NetnsId, descriptor: F, anew: bool) -> Ticket {
        let request = Request::Add {
            uid: uid.clone(),
            info: Some(info.clone()),
        };
        let ticket = self.ticket(&uid, For::Served);
        let length = request.encode().len();
        if length > LONGEST_PACKET {
            self.answer(ticket, Err(Unserved::TooLong(length)));
            return ticket;
        }
        let wanted = Wanted { info, place, descriptor };
        let newest = self.newest().and_then(|id| self.proxies.get_mut(&id));
        if let Some(told) = newest.and_then(|c| c.told.get_mut(&uid)).filter(|told| told.is(&wanted)) {
            match &mut told.refused {
                // Whoever asks again is not made to wait.
                Some((_, again)) => *again = now.min(*again),
                None if anew => told.ends = true,
                None => self.answer(ticket, Ok(())),
            }
        }
        let before = self.wanted.get(&uid);
        if before.is_none_or(|before| before.place != wanted.place || before.info != wanted.info) {
            self.suspects.remove(&uid);
        }
        self.wanted.insert(uid, wanted);
        ticket
    }

    /// A pod is to be served no longer. The answer, which is never an error, says when no proxy does.
    pub fn unwant(&mut self, uid: &PodUid) -> Ticket {
        self.wanted.remove(uid);
        self.suspects.remove(uid);
        if let Some((_, expected)) = &mut self.expected {
            expected.remove(uid);
        }
        self.answer_all(uid, For::Served, &Err(Unserved::Removed));
        let ticket = self.ticket(uid, For::Gone);
        self.answer_gone();
        ticket
    }

    /// Whoever holds a ticket waits no longer.
    pub fn forget(&mut self, ticket: Ticket) {
        self.tickets.remove(&ticket);
    }

    /// A proxy has connected.
    pub fn handle_connected(&mut self, now: Instant) -> ProxyId {
        let id = ProxyId(self.number());
        let phase = Phase::Greeting {
            until: later(now, self.timing.hello),
        };
        let connection = Connection {
            phase,
            asked: None,
            told: BTreeMap::new(),
            unlisted: BTreeMap::new(),
        };
        self.proxies.insert(id, connection);
        id
    }

    /// A proxy has sent a packet, and so many descriptors with it.
    pub fn handle_packet(&mut self, now: Instant, from: ProxyId, packet: &[u8], descriptors: usize) {
        let Some(connection) = self.proxies.get_mut(&from) else { return };
        let taken = match (connection.phase, descriptors) {
            (_, 1..) => Err(Ended::Descriptor),
            (Phase::Greeting { .. }, _) => greet(packet).map(|()| {
                connection.phase = Phase::Naming;
                None
            }),
            _ => answered(connection, packet).map(Some),
        };
        match taken {
            Ok(Some((request, ack))) => {
                if let Err(why) = self.handle_ack(now, from, request, ack) {
                    self.close(now, from, why);
                }
            }
            Ok(None) => (),
            Err(why) => self.close(now, from, why),
        }
        self.answer_gone();
    }

    /// A proxy is gone, or its connection could not be gone on with.
    pub fn handle_closed(&mut self, now: Instant, proxy: ProxyId) {
        if let Some((Request::Add { uid, .. }, _)) = self.proxies.remove(&proxy).and_then(|c| c.asked) {
            self.suspect(now, uid);
        }
        self.answer_served_by_newest();
        self.answer_gone();
    }

    /// What is to be done now, one after another until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Output<F>> {
        if let Some(output) = self.output.pop_front() {
            return Some(output);
        }
        let late = self.proxies.iter().find_map(|(id, c)| Some((*id, c.late(now)?)));
        if let Some((id, why)) = late {
            self.close(now, id, why);
            self.answer_gone();
            return self.output.pop_front();
        }
        let newest = self.newest();
        let (id, request) = self.proxies.iter().find_map(|(id, c)| {
            let request = self.next_request(c, newest == Some(*id), now)?;
            Some((*id, request))
        })?;
        let descriptor = match &request {
            Request::Add { uid, .. } => self.wanted.get(uid).map(|w| w.descriptor.clone()),
            _ => None,
        };
        let packet = request.encode();
        let until = later(now, self.timing.ack);
        self.proxies.get_mut(&id)?.ask(request, until, &self.wanted);
        Some(Output::Send {
            to: id,
            packet,
            descriptor,
        })
    }

    /// When [`Agent::poll`] has something to give although nothing happens.
    pub fn timeout(&self) -> Option<Instant> {
        let newest = self.newest();
        let proxies = self.proxies.iter().flat_map(|(id, c)| {
            let until = match c.phase {
                Phase::Greeting { until } => Some(until),
                _ => c.asked.as_ref().map(|(_, until)| *until),
            };
            let naming = c.phase == Phase::Naming && c.asked.is_none();
            let grace = self.expected.as_ref().map(|(since, _)| later(*since, self.timing.grace));
            let adds = naming || newest == Some(*id);
            let later = self.wanted.iter().filter(move |_| c.asked.is_none());
            let later = later.filter_map(move |(uid, wanted)| {
                let at = self.not_before(c, uid, wanted)?;
                self.is_lacked(c, uid, adds, at).then_some(at)
            });
            until.into_iter().chain(grace.filter(|_| naming)).chain(later)
        });
        proxies.min()
    }

    /// The namespaces of all pods that are wanted.
    pub fn descriptors(&self) -> impl Iterator<Item = &F> {
        self.wanted.values().map(|wanted| &wanted.descriptor)
    }

    /// The namespace of a pod that is wanted.
    pub fn descriptor(&self, uid: &PodUid) -> Option<&F> {
        self.wanted.get(uid).map(|wanted| &wanted.descriptor)
    }

    /// Whether a proxy is connected that has said who it is.
    pub fn has_proxy(&self) -> bool {
        self.newest().is_some()
    }

    /// Whether the newest proxy has said that it serves a pod as it is wanted now.
    pub fn is_served(&self, uid: &PodUid) -> bool {
        let newest = self.newest().and_then(|id| self.proxies.get(&id));
        let told = newest.and_then(|c| c.told.get(uid));
        let wanted = self.wanted.get(uid);
        told.zip(wanted)
            .is_some_and(|(told, wanted)| told.refused.is_none() && told.is(wanted))
    }

    /// How each proxy stands that has said who it is, the newest last.
    pub fn states(&self) -> Vec<ProxyState> {
        let greeted = self.proxies.iter().filter(|(_, c)| !matches!(c.phase, Phase::Greeting { .. }));
        let state = |(id, c): (&ProxyId, &Connection)| {
            let refused: Vec<_> = c
                .told
                .iter()
                .filter_map(|(uid, told)| Some((uid.clone(), told.refused.as_ref()?.0.clone())))
                .collect();
            ProxyState {
                proxy: *id,
                synced: c.phase == Phase::Living,
                served: c.told.len() - refused.len(),
                refused,
            }
        };
        greeted.map(state).collect()
    }

    fn newest(&self) -> Option<ProxyId> {
        let mut greeted = self.proxies.iter().rev();
        greeted.find(|(_, c)| !matches!(c.phase, Phase::Greeting { .. })).map(|(id, _)| *id)
    }

    /// What a proxy is to be asked next.
    fn next_request(&self, connection: &Connection, newest: bool, now: Instant) -> Option<Request> {
        if connection.asked.is_some() || matches!(connection.phase, Phase::Greeting { .. }) {
            return None;
        }
        let naming = connection.phase == Phase::Naming;
        let adds = naming || newest;
        let outdated = connection.told.iter().find(|(uid, told)| self.is_outdated(uid, told, adds));
        if let Some((uid, _)) = outdated {
            return Some(Request::Del { uid: uid.clone() });
        }
        let lacked = |uid: &&PodUid| self.is_lacked(connection, uid, adds, now);
        // Whoever is waited for comes first, and who is suspected last.
        let waited = self.tickets.values().filter(|w| w.for_what == For::Served).map(|w| &w.uid);
        let trusted = waited.chain(self.wanted.keys()).filter(|uid| !self.suspects.contains_key(*uid));
        let due = self
            .suspects
            .iter()
            .filter(|(_, suspect)| suspect.not_before <= now)
            .map(|(uid, _)| uid);
        let next = trusted.chain(due).find(lacked);
        if let Some((uid, wanted)) = next.and_then(|uid| self.wanted.get_key_value(uid)) {
            return Some(Request::Add {
                uid: uid.clone(),
                info: Some(wanted.info.clone()),
            });
        }
        let (since, expected) = self.expected.as_ref().filter(|_| naming)?;
        let mut missing = expected.iter().filter(|uid| !self.wanted.contains_key(*uid)).peekable();
        if missing.peek().is_some() && now < later(*since, self.timing.grace) {
            return None;
        }
        let mut missing = missing.chain(self.suspects.keys());
        let known = |uid: &PodUid| connection.told.contains_key(uid) || connection.unlisted.contains_key(uid);
        let kept = missing.find(|uid| uid.as_str().len() <= LONGEST_UID && !known(uid));
        Some(kept.map_or(Request::SnapshotSent, |uid| Request::Keep { uid: uid.clone() }))
    }

    /// Whether a proxy must be told of a pod. `adds`: whether it is told of pods now.
    fn is_lacked(&self, connection: &Connection, uid: &PodUid, adds: bool, now: Instant) -> bool {
        let Some(wanted) = self.wanted.get(uid) else { return false };
        // What it was told to keep it may serve somewhere else, and what it has refused it may serve by now, or be able to: also an
        // older one is told where that is. Were it told to let go instead, that would cut what it serves.
        let by_itself = |told: &Told| told.pod.is_none() || told.refused.is_some() && told.is(wanted);
        let concerned = adds || connection.told.get(uid).is_some_and(by_itself);
        concerned && connection.lacks(uid, wanted, now)
    }

    /// Before when a proxy is not told of a pod, whatever it lacks: what it refused has its time, and a suspect its own. `None` where
    /// nothing need be waited for.
    fn not_before(&self, connection: &Connection, uid: &PodUid, wanted: &Wanted<F>) -> Option<Instant> {
        let told = connection.told.get(uid).filter(|told| told.is(wanted));
        let refused = told.and_then(|told| told.refused.as_ref()).map(|(_, again)| *again);
        refused.max(self.suspects.get(uid).map(|suspect| suspect.not_before))
    }

    /// Whether a proxy must let go of what it was told. `adds`: whether it is told of pods now.
    fn is_outdated(&self, uid: &PodUid, told: &Told, adds: bool) -> bool {
        let Some(wanted) = self.wanted.get(uid) else {
            let expected = self.expected.as_ref().is_some_and(|(_, expected)| expected.contains(uid));
            return told.pod.is_some() || !expected;
        };
        match &told.pod {
            None => false,
            Some(_) if told.is(wanted) => false,
            // In another namespace it is begun anew without that; in the same one a proxy does nothing.
            Some((_, place)) => told.ends || !adds || *place == wanted.place,
        }
    }

    fn handle_ack(&mut self, now: Instant, from: ProxyId, request: Request, ack: Ack) -> Result<(), Ended> {
        let newest = self.newest() == Some(from);
        let again = later(now, self.timing.again);
        let Some(connection) = self.proxies.get_mut(&from) else {
            return Ok(());
        };
        let refusal = (!ack.error.is_empty()).then(|| cut(&ack.error, LONGEST_PACKET).to_owned());
        match (request, refusal) {
            (Request::Add { uid, .. }, refusal) => {
                self.suspects.remove(&uid);
                let Some(told) = connection.told.get_mut(&uid) else { return Ok(()) };
                told.refused = refusal.clone().map(|why| (why, again));
                let current = self.wanted.get(&uid).is_some_and(|wanted| told.is(wanted));
                if newest && current {
                    let answer = refusal.map_or(Ok(()), |why| Err(Unserved::Refused(why)));
                    self.answer_all(&uid, For::Served, &answer);
                }
            }
            (Request::Del { uid }, None) => {
                let told = connection.told.remove(&uid);
                if connection.phase == Phase::Naming {
                    let place = told.and_then(|told| told.pod).map(|(_, place)| place);
                    connection.unlisted.insert(uid, place);
                }
            }
            // Whether it serves the pod still nobody knows: it is asked anew, over a new connection.
            (request, Some(why)) => return Err(Ended::Refused(words(&request), why)),
            (Request::Keep { .. }, None) => (),
            (Request::SnapshotSent, None) => {
                connection.phase = Phase::Living;
                connection.unlisted.clear();
            }
        }
        Ok(())
    }

    /// A connection has ended before a pod was answered for.
    fn suspect(&mut self, now: Instant, uid: PodUid) {
        let Some(wanted) = self.wanted.get(&uid) else { return };
        let serves = |c: &Connection| c.told.get(&uid).is_some_and(|told| told.refused.is_none() && told.is(wanted));
        if self.proxies.values().any(serves) {
            return;
        }
        let times = self.suspects.get(&uid).map_or(0, |suspect| suspect.times).saturating_add(1);
        // Once may be by chance.
        let pause = match times {
            1 => Duration::ZERO,
            times => self.timing.again.saturating_mul(1 << (times - 2).min(LONGEST_PAUSE)),
        };
        let not_before = later(now, pause);
        self.suspects.insert(uid, Suspect { times, not_before });
    }

    fn close(&mut self, now: Instant, proxy: ProxyId, why: Ended) {
        // What is not understood is the proxy's own doing, whatever it was asked.
        let hangs = matches!(why, Ended::NoAnswer(_));
        if let Some(connection) = self.proxies.get_mut(&proxy).filter(|_| !hangs) {
            connection.asked = None;
        }
        self.handle_closed(now, proxy);
        self.output.push_back(Output::Close { proxy, why });
    }

    /// Another proxy is the newest now, and may serve what somebody waits for.
    fn answer_served_by_newest(&mut self) {
        let served: Vec<Ticket> = self
            .tickets
            .iter()
            .filter(|(_, w)| w.for_what == For::Served && self.is_served(&w.uid))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in served {
            self.answer(ticket, Ok(()));
        }
    }

    fn answer_gone(&mut self) {
        let gone: Vec<Ticket> = self
            .tickets
            .iter()
            .filter(|(_, w)| w.for_what == For::Gone)
            .filter(|(_, w)| self.wanted.contains_key(&w.uid) || !self.proxies.values().any(|c| c.told.contains_key(&w.uid)))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in gone {
            self.answer(ticket, Ok(()));
        }
    }

    fn answer_all(&mut self, uid: &PodUid, for_what: For, answer: &Result<(), Unserved>) {
        let of = |(ticket, w): (&Ticket, &Waits)| (w.uid == *uid && w.for_what == for_what).then_some(*ticket);
        let tickets: Vec<Ticket> = self.tickets.iter().filter_map(of).collect();
        for ticket in tickets {
            self.answer(ticket, answer.clone());
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<(), Unserved>) {
        if self.tickets.remove(&ticket).is_some() {
            self.output.push_back(Output::Answer { ticket, answer });
        }
    }

    fn ticket(&mut self, uid: &PodUid, for_what: For) -> Ticket {
        let ticket = Ticket(self.number());
        let waits = Waits {
            uid: uid.clone(),
            for_what,
        };
        self.tickets.insert(ticket, waits);
        ticket
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Connection {
    fn late(&self, now: Instant) -> Option<Ended> {
        match (self.phase, &self.asked) {
            (Phase::Greeting { until }, _) => (until <= now).then_some(Ended::NoHello),
            (_, Some((request, until))) => (*until <= now).then(|| Ended::NoAnswer(words(request))),
            _ => None,
        }
    }

    /// Whether it must be told of a pod.
    fn lacks<F>(&self, uid: &PodUid, wanted: &Wanted<F>, now: Instant) -> bool {
        // Until the snapshot's end another may be served there still.
        let in_the_way = self.unlisted.iter().any(|(u, place)| u == uid || *place == Some(wanted.place));
        match self.told.get(uid) {
            _ if in_the_way => false,
            None => true,
            Some(told) if told.is(wanted) => told.refused.as_ref().is_some_and(|(_, again)| *again <= now),
            Some(told) => told.pod.as_ref().is_none_or(|(_, place)| *place != wanted.place),
        }
    }

    fn ask<F>(&mut self, request: Request, until: Instant, wanted: &BTreeMap<PodUid, Wanted<F>>) {
        let told = match &request {
            // From here on it may serve the pod, whatever it answers and whether it does.
            Request::Add { uid, .. } => wanted.get(uid).map(|wanted| {
                let told = Told {
                    pod: Some((wanted.info.clone(), wanted.place)),
                    refused: Some((UNANSWERED.into(), until)),
                    ends: false,
                };
                (uid, told)
            }),
            Request::Keep { uid } => {
                let told = Told {
                    pod: None,
                    refused: None,
                    ends: false,
                };
                Some((uid, told))
            }
            Request::Del { uid } => {
                if let Some(told) = self.told.get_mut(uid) {
                    told.ends = true;
                }
                None
            }
            Request::SnapshotSent => None,
        };
        if let Some((uid, told)) = told {
            self.told.insert(uid.clone(), told);
        }
        self.asked = Some((request, until));
    }
}

fn greet(packet: &[u8]) -> Result<(), Ended> {
    match Hello::decode(packet)?.version {
        VERSION => Ok(()),
        other => Err(Ended::Version(other)),
    }
}

fn answered(connection: &mut Connection, packet: &[u8]) -> Result<(Request, Ack), Ended> {
    let ack = Ack::decode(packet)?;
    let (request, _) = connection.asked.take().ok_or(Ended::Unasked)?;
    Ok((request, ack))
}

fn words(request: &Request) -> String {
    match request {
        Request::Add { uid, .. } => format!("a request to serve pod {uid}"),
        Request::Del { uid } => format!("a request to let go of pod {uid}"),
        Request::Keep { uid } => format!("a request to keep pod {uid}"),
        Request::SnapshotSent => "the snapshot's end".into(),
    }
}

/// What a proxy that has been asked is said to say of a pod until it answers.
pub const UNANSWERED: &str = "it has not answered yet";
/// The pause for a suspect, [`Timing::again`] the second time, doubles so many times.
const LONGEST_PAUSE: u32 = 5;
/// The longest UID that is named without anything beside it.
const LONGEST_UID: usize = 512;
