//! What is said on a delta stream, and what it means: pure, time as an argument.
//!
//! A [`Session`] outlives its streams. It remembers by name and version what it accepted, so that a new stream begins where
//! the last one ended. Resources are [read](Session::read) as they come, and count once their response is there whole: half of
//! one changes nothing. What cannot be read is refused by name, one by one: the rest of the same response counts.
//!
//! ```text
//!              handle_opened     read*, handle_response        handle_closed
//!   (closed) ---------------> (open) --------+         (open) ---------------> (closed)
//!                               ^            | poll_request: subscriptions, ACKs, NACKs
//!                               +------------+
//! ```
//!
//! Asked one by one, a name stays subscribed to, whether it was answered with a resource or with its absence, until it is
//! [given back](Session::give_back): what nothing else keeps then goes with it.
//!
//! Removals of more than half of a kind soon after a stream was opened wait for [`Settings::grace`]: a control plane that
//! has lost its memory says the same. What comes again meanwhile was never gone, and what has an address, or is a pod, that
//! another resource now is goes at once. A stream that closes first takes its removals along: the next one will say them again,
//! and they wait no longer for that, unless all was there meanwhile.
//! So waits, however little it is, what a stream did not [begin with](Session::handle_opened) for want of room, and is not told on it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_authz::policy::Update;
use ambient_core::{NamespacedHostname, PodUid, PolicyKey, TrustBundles, TrustDomain, mesh};

use super::{
    memory::{Entry, Kept, Remembered},
    read::{self, Key},
};
use crate::{
    Change, Fault,
    wire::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
        },
        google::rpc::Status,
    },
};

mod claims;
mod come;
mod needed;
mod opening;
#[cfg(test)]
mod tests;

use claims::{Claims, Waiting};
pub(crate) use come::Come;
use come::{Content, known_by, of_another};
pub(crate) use needed::Ask;
use needed::Reasons;

/// The kinds of resources that are asked for, in the order in which that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Workloads and services.
    Address,
    /// Authorization policies.
    Authorization,
    /// Roots and revocations of trust domains: of `ambient control` alone.
    Trust,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Address, Self::Authorization, Self::Trust];

    /// The type URL of its resources.
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Trust => "type.googleapis.com/ambient.control.v1.Trust",
        }
    }

    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// The word for people.
    fn word(self) -> &'static str {
        match self {
            Self::Address => "workloads and services",
            Self::Authorization => "authorization policies",
            Self::Trust => "trust domains",
        }
    }
}

/// How a session goes about it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Who asks.
    pub(crate) node: Node,
    /// Ask for workloads and services one by one, as they are needed.
    pub(crate) on_demand: bool,
    /// Ask for roots and revocations.
    pub(crate) trust: bool,
    /// How policies are read.
    pub(crate) policies: ambient_authz::wire::Settings,
    /// So long after a stream was opened removals may wait.
    pub(crate) settling: Duration,
    /// So long they wait.
    pub(crate) grace: Duration,
    /// The longest request that the control plane takes, in bytes.
    pub(crate) longest_request: usize,
    /// Whether what is to be remembered is told: it is as much again as came.
    pub(crate) remembers: bool,
}

/// What a response changes.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// In their order.
    pub(crate) changes: Vec<Change>,
    /// Names that were asked for and are answered now, with a resource or with its absence.
    pub(crate) answered: Vec<String>,
    /// Resources that were refused, with the reason.
    pub(crate) refused: Vec<String>,
    /// The number of removals that wait.
    pub(crate) waiting: usize,
    /// What is to be remembered of it.
    pub(super) entries: Vec<Entry>,
}

/// What one client and a control plane have come to know of each other.
#[derive(Debug)]
pub(crate) struct Session {
    settings: Settings,
    kinds: [Known; 3],
    /// What is known of trust domains, by their names.
    trust: BTreeMap<TrustDomain, TrustBundles>,
    /// Since when a stream is open.
    opened: Option<Instant>,
    requests: VecDeque<DeltaDiscoveryRequest>,
    /// Whether what is known is what was remembered of an earlier process, which was whole.
    remembered: bool,
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Known {
    /// What was accepted, by its resource's name.
    held: HashMap<Arc<str>, Held>,
    /// Whose pods are which: one pod is one workload.
    pods: HashMap<PodUid, Arc<str>>,
    /// What was refused last, and why.
    refused: HashMap<Box<str>, Refused>,
    /// What was asked for and not answered.
    asked: BTreeSet<Box<str>>,
    /// What was asked for and answered: it is subscribed to, and by an alias as well as by a resource's name.
    subscribed: BTreeSet<Box<str>>,
    /// Whether there was ever a response.
    answered: bool,
    /// Whether there was one on this stream that has told all.
    is_told: bool,
    /// What was held when the stream was opened: of workloads or policies, and of services.
    at_opening: [usize; 2],
    /// Names removed soon after that.
    removed_early: [usize; 2],
    waiting: Option<Waiting>,
    /// Until when what is to be removed waited on the stream before: it waits no longer for a stream that has ended meanwhile.
    waited: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    version: Box<str>,
    key: Key,
    claims: Claims,
    /// Why it is sent, where not all is; else nothing.
    reasons: Option<Box<Reasons>>,
}

impl Held {
    /// Which of the two sorts of its kind it is.
    fn sort(&self) -> usize {
        usize::from(matches!(self.key, Key::Service(_)))
    }
}

#[derive(Debug)]
struct Refused {
    /// Nothing where more are refused than are told one by one.
    why: Option<String>,
    /// What refuses everything in its scope meanwhile, until it is mended or taken back.
    policy: Option<PolicyKey>,
    /// What it was asked for by, where not all comes.
    asked_by: Vec<Box<str>>,
    /// The services that it was sent along with, where nobody has asked for it and it is not of the node's own.
    along_with: Vec<NamespacedHostname>,
}

impl Session {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            kinds: Default::default(),
            trust: BTreeMap::new(),
            opened: None,
            requests: VecDeque::new(),
            remembered: false,
        }
    }

    /// What an earlier process knew, which counts as the first whole state until [`Session::forget`]. Before any stream.
    pub(super) fn remember(&mut self, remembered: Remembered) -> Received {
        let mut received = Received::default();
        self.remembered = remembered.heard.is_some();
        for ((kind, name), kept) in remembered.resources {
            let resource = Resource {
                name,
                version: kept.version,
                resource: Some(prost_types::Any {
                    type_url: kind.type_url().into(),
                    value: kept.body,
                }),
                ..Resource::default()
            };
            // It stands there already.
            let come = Come {
                sent: None,
                ..self.read(resource)
            };
            self.take_in(kind, come, &mut received);
        }
        received
    }

    /// What was remembered is too old to be taken for the state of things.
    pub(super) fn forget(&mut self) {
        self.remembered = false;
    }

    /// Whether the state is a remembered one: no kind was answered since.
    pub(super) fn is_remembered(&self) -> bool {
        self.remembered && !self.is_answered()
    }

    fn asked_for(&self) -> impl Iterator<Item = Kind> + use<> {
        let trust = self.settings.trust;
        Kind::ALL.into_iter().filter(move |kind| trust || *kind != Kind::Trust)
    }

    /// The stream is closed.
    pub(crate) fn handle_closed(&mut self) {
        self.opened = None;
        self.requests.clear();
        for known in &mut self.kinds {
            known.is_told = false;
            if let Some(waiting) = known.waiting.take() {
                known.waited = waiting.until.or(known.waited);
            }
        }
    }

    /// A response that has come at once.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn handle_whole(&mut self, now: Instant, mut response: DeltaDiscoveryResponse) -> Received {
        let resources = std::mem::take(&mut response.resources);
        let come = resources.into_iter().map(|resource| self.read(resource)).collect();
        self.handle_response(now, &response, come)
    }

    /// The end of a response has come, and its resources were read. It is answered, unless it is of a type that was never asked
    /// for: the first request of a type on a stream subscribes to it, and one that names nothing, as an ACK and a NACK do,
    /// subscribes to all of it.
    pub(crate) fn handle_response(&mut self, now: Instant, response: &DeltaDiscoveryResponse, mut come: Vec<Come>) -> Received {
        let mut received = Received::default();
        let asked_for = |kind: &Kind| self.settings.trust || *kind != Kind::Trust;
        let Some(kind) = Kind::of(&response.type_url).filter(asked_for) else {
            let of = read::brief(&response.type_url, read::WHY);
            let why = format!("resources of the type {of:?}, which were not asked for");
            received.refused.push(why);
            return received;
        };
        self.kinds[kind as usize].answered = true;
        claims::refuse_doubles(&mut come);
        // What is missed gives way to what comes with it.
        self.miss(now, kind, &come, &mut received);
        let removed = &response.removed_resources;
        // Somebody is to be trusted at any time, also where it is another from now on.
        let stays = |name: &&String| !come.iter().any(|come| *come.name == ***name);
        let distrusted: Vec<String> = match kind {
            Kind::Trust => removed.iter().filter(stays).cloned().collect(),
            _ => Vec::new(),
        };
        if kind != Kind::Trust {
            self.remove(now, kind, removed, &mut received);
        }
        received.changes.reserve_exact(come.len());
        for come in come {
            self.take_in(kind, come, &mut received);
        }
        self.distrust(&distrusted, &mut received);
        self.miss(now, kind, &[], &mut received);
        self.kinds[kind as usize].settle();
        let refused = received.refused.clone();
        self.answer(response, &refused);
        received
    }

    fn take_in(&mut self, kind: Kind, mut come: Come, received: &mut Received) {
        let name = come.name.clone();
        let sent = come.sent.take().map(|body| Kept {
            version: come.version.to_string(),
            body,
        });
        let asked_by = self.kinds[kind as usize].asked_by(&name, &come.aliases);
        let Err(mut refused) = self.accept(kind, come, received) else {
            received.entries.extend(sent.map(|sent| Entry::Put(kind, name, sent)));
            return;
        };
        refused.why = read::brief(&refused.why, read::WHY).into_owned();
        received.refused.push(format!("{name}: {}", refused.why));
        if let Some(unreadable) = &refused.unreadable {
            received.changes.push(unreadable.clone());
        }
        let policy = refused.policy();
        let along_with = match refused.endpoint {
            Some(endpoint) if self.settings.on_demand && asked_by.is_empty() && !self.settings.is_own_node(&endpoint.node) => {
                endpoint.services
            }
            _ => Vec::new(),
        };
        let known = &mut self.kinds[kind as usize];
        // A refusal is no answer to who waits for one, and yet all that comes.
        known.waiting.iter_mut().for_each(|waiting| waiting.answer(&asked_by));
        // A policy of which there is no good version refuses its scope, also after a restart.
        if policy.is_some() && !known.held.contains_key(&*name) {
            let none = |sent| Kept {
                version: String::new(),
                ..sent
            };
            received.entries.extend(sent.map(|sent| Entry::Put(kind, name.clone(), none(sent))));
        }
        let why = Some(refused.why);
        let refused = Refused {
            why,
            policy,
            asked_by,
            along_with,
        };
        known.refuse(&name, refused);
    }

    /// What to send next.
    pub(crate) fn poll_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.requests.pop_front()
    }

    /// When [`Session::handle_timeout`] has something to do.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let waiting = self.kinds.iter().filter_map(|known| known.waiting.as_ref());
        waiting.filter_map(|waiting| waiting.until).min()
    }

    /// Removals that have waited long enough.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Received {
        let mut received = Received::default();
        for kind in Kind::ALL {
            let known = &mut self.kinds[kind as usize];
            let is_over = |waiting: &mut Waiting| waiting.until.is_some_and(|until| until <= now);
            let Some(waiting) = known.waiting.take_if(is_over) else { continue };
            known.waited = None;
            if kind == Kind::Trust {
                let names: Vec<String> = waiting.names().map(ToString::to_string).collect();
                self.distrust(&names, &mut received);
                continue;
            }
            for name in waiting.names() {
                known.forgive(kind, name, &mut received);
                known.let_go(kind, name, &mut received);
            }
        }
        received
    }

    /// Whether the whole state is known: every kind has been answered once, or an earlier process knew it.
    pub(crate) fn is_synced(&self) -> bool {
        self.remembered || self.is_answered()
    }

    /// Whether every kind has been answered once: what was remembered is then known.
    pub(super) fn is_answered(&self) -> bool {
        // Asked one by one, there is no whole of workloads and services that could have come.
        let mut needed = self.asked_for().filter(|kind| !(self.settings.on_demand && *kind == Kind::Address));
        needed.all(|kind| self.kinds[kind as usize].answered)
    }

    /// What is wrong now.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = Vec::new();
        for kind in Kind::ALL {
            let known = &self.kinds[kind as usize];
            let told = known
                .refused
                .iter()
                .filter_map(|(name, refused)| Some((name, refused, refused.why.as_ref()?)));
            let before = faults.len();
            faults.extend(told.map(|(name, refused, why)| {
                let then = match (known.held.contains_key(&**name), &refused.policy) {
                    (true, _) => "its last good version stays in force",
                    (false, Some(_)) => "everything in its scope is refused until it is mended",
                    (false, None) => "it does not count until it is mended",
                };
                Fault {
                    what: format!("{name}: {why}; {then}"),
                    policy: refused.policy.clone(),
                }
            }));
            let untold = known.refused.len() - (faults.len() - before);
            if untold > 0 {
                faults.push(Fault::from(format!(
                    "{untold} more {} were refused: everything in their scopes is refused until they are mended",
                    kind.word()
                )));
            }
            if let Some(waiting) = known.waiting.as_ref().filter(|waiting| waiting.is_much) {
                let (gone, of, word) = (waiting.len(), known.at_opening.iter().sum::<usize>(), kind.word());
                faults.push(Fault::from(format!(
                    "the control plane came back without {gone} of {of} {word}: they stay for a while, should it find them again"
                )));
            }
        }
        faults.sort();
        faults
    }

    /// How much is held: workloads and services, policies, and trust domains.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn held(&self) -> [usize; 3] {
        Kind::ALL.map(|kind| self.kinds[kind as usize].held.len())
    }

    fn accept(&mut self, kind: Kind, come: Come, received: &mut Received) -> Result<(), read::Refused> {
        let known = &mut self.kinds[kind as usize];
        let name = come.name;
        let read = match come.content {
            Content::Of(of, read) if of == kind => read?,
            Content::Empty if known.held.get(&name).is_some_and(|held| held.version == come.version) => {
                known.return_of(&name);
                return Ok(());
            }
            Content::Empty => return Err("it has no body".into()),
            Content::Of(other, _) => return Err(of_another(other.type_url())),
            Content::Foreign(type_url) => return Err(of_another(&type_url)),
        };
        known.return_of(&name);
        let claims = Claims::of(&read.change);
        known.claim(kind, &name, &claims, received)?;
        known.refused.remove(&*name);
        let reasons =
            (self.settings.on_demand && kind == Kind::Address).then(|| Box::new(Reasons::of(&come.aliases, &read.change, &self.settings)));
        known.answer(&name, received);
        for alias in reasons.iter().flat_map(|reasons| reasons.aliases()) {
            known.answer(alias, received);
        }
        let held = Held {
            version: come.version,
            key: read.key,
            claims,
            reasons,
        };
        known.held.insert(name, held);
        match read.change {
            Change::Trust(of_domain) => {
                self.trust
                    .extend(of_domain.domains().map(|domain| (domain.clone(), TrustBundles::clone(&of_domain))));
                received.changes.push(self.whole_trust());
            }
            Change::Policy(Update::Unreadable(refusal)) => {
                // The control plane knows no good version: what was one before is not in force here alone.
                let gone = Update::Remove(refusal.key.clone());
                let anew = [gone, Update::Unreadable(refusal)];
                received.changes.extend(anew.map(Change::Policy));
            }
            change => received.changes.push(change),
        }
        Ok(())
    }

    fn whole_trust(&self) -> Change {
        let mut whole = TrustBundles::default();
        for (domain, of_domain) in &self.trust {
            of_domain
                .roots(domain)
                .iter()
                .for_each(|root| whole.add(domain.clone(), root.clone()));
            of_domain
                .crls(domain)
                .iter()
                .for_each(|crl| whole.add_crl(domain.clone(), crl.clone()));
        }
        Change::Trust(whole.into())
    }

    /// Trust domains that are trusted no more. Some always are: nobody could be spoken to otherwise, and nobody means that.
    fn distrust(&mut self, names: &[String], received: &mut Received) {
        for name in names {
            let known = &mut self.kinds[Kind::Trust as usize];
            let Some(Key::Trust(domain)) = known.held.get(name.as_str()).map(|held| held.key.clone()) else {
                // What was refused of it is said no more.
                known.refused.remove(&*known_by(name));
                continue;
            };
            let mut others = known.held.iter().filter(|(other, _)| ***other != **name);
            let is_anothers = others.any(|(_, held)| matches!(&held.key, Key::Trust(of) if *of == domain));
            if self.trust.len() == 1 && !is_anothers {
                received
                    .refused
                    .push(format!("{name}: without it nobody would be trusted: it stays"));
                continue;
            }
            known.refused.remove(&*known_by(name));
            known.held.remove(name.as_str());
            if !is_anothers {
                self.trust.remove(&domain);
            }
            received.entries.push(Entry::Remove(Kind::Trust, name.as_str().into()));
            received.changes.push(self.whole_trust());
        }
    }

    fn remove(&mut self, now: Instant, kind: Kind, names: &[String], received: &mut Received) {
        // The first stream of all has nothing that could be lost.
        let begun_with = self.kinds[kind as usize].at_opening;
        let settling = begun_with != [0; 2] && self.opened.is_some_and(|at| now < at + self.settings.settling);
        let grace = self.settings.grace;
        let known = &mut self.kinds[kind as usize];
        for name in names {
            known.answer(name, received);
            known.forgive(kind, &known_by(name), received);
        }
        // Workloads and services are of one kind on the wire alone: all services may be a small part of both.
        let mut gone: [Vec<Arc<str>>; 2] = Default::default();
        for name in names {
            if let Some((name, held)) = known.held.get_key_value(name.as_str()) {
                gone[held.sort()].push(name.clone());
            }
        }
        for (sort, gone) in gone.into_iter().enumerate() {
            let begun_with = known.at_opening[sort];
            if settling {
                known.removed_early[sort] += gone.len();
            }
            let most = settling && begun_with > 0 && known.removed_early[sort] * 2 > begun_with;
            let waits = known.waiting.as_ref().is_some_and(|waiting| waiting.until.is_some());
            if gone.len() > 1 && (most || waits) {
                let until = known.waits_until(now, grace);
                let waiting = known.waiting.get_or_insert_default();
                waiting.until.get_or_insert(until);
                waiting.is_much = true;
                for (name, held) in gone.iter().filter_map(|name| Some((name, known.held.get(name)?))) {
                    waiting.add(name, &held.claims);
                }
                received.waiting = waiting.len();
                continue;
            }
            for name in gone {
                known.let_go(kind, &name, received);
            }
        }
    }

    /// ACK, or NACK with what was refused.
    fn answer(&mut self, response: &DeltaDiscoveryResponse, refused: &[String]) {
        self.requests.push_back(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: (!refused.is_empty()).then(|| Status {
                code: INVALID_ARGUMENT,
                message: enumerate(refused),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        });
    }
}

impl Known {
    /// What was to be removed is there again.
    fn return_of(&mut self, name: &str) {
        if let Some(waiting) = &mut self.waiting {
            waiting.take(name);
            if waiting.len() == 0 {
                (self.waiting, self.waited) = (None, None);
            }
        }
    }

    /// A response has been seen to.
    fn settle(&mut self) {
        // While more may be told of what this stream did not begin with, nobody knows whether it is missed.
        let is_open = self.waiting.as_ref().is_some_and(|waiting| waiting.until.is_none());
        if !is_open && !std::mem::replace(&mut self.is_told, true) && self.waiting.is_none() {
            // What was missed is there: to be missed again is another time.
            self.waited = None;
        }
    }

    /// What was refused of it is said no more, and a policy that was refuses nothing any more.
    fn forgive(&mut self, kind: Kind, name: &str, received: &mut Received) {
        if let Some(refused) = self.refused.remove(name)
            && !self.held.contains_key(name)
            && let Some(policy) = refused.policy
        {
            received.changes.push(Change::Policy(Update::Remove(policy)));
            received.entries.push(Entry::Remove(kind, name.into()));
        }
    }

    fn let_go(&mut self, kind: Kind, name: &str, received: &mut Received) {
        self.return_of(name);
        if let Some((name, held)) = self.held.remove_entry(name) {
            self.forgo(&held.claims);
            received.changes.extend(removal(held.key));
            received.entries.push(Entry::Remove(kind, name));
        }
    }

    fn refuse(&mut self, name: &str, mut refused: Refused) {
        self.return_of(name);
        let before = self.refused.remove(name);
        let had_reason = before.as_ref().is_some_and(|before| before.why.is_some());
        // It stands in its place also where what comes next under its name is no policy at all.
        refused.policy = refused.policy.or_else(|| before?.policy);
        // One that is refused may come without end under ever new names. What refuses others meanwhile has to be taken back by its
        // name, however many there are; like what is held, it is the control plane's to bound.
        let is_told = had_reason || self.refused.len() < REFUSED;
        if is_told || (refused.policy.is_some() && !self.held.contains_key(name)) {
            refused.why = refused.why.filter(|_| is_told);
            self.refused.insert(name.into(), refused);
        }
        // It is to be sent again: the version that was accepted is no longer the last.
        if let Some(held) = self.held.get_mut(name) {
            held.version = "".into();
        }
    }
}

fn removal(key: Key) -> Option<Change> {
    match key {
        Key::Workload(uid) => Some(Change::Mesh(mesh::Update::RemoveWorkload(uid))),
        Key::Service(name) => Some(Change::Mesh(mesh::Update::RemoveService(*name))),
        Key::Policy(key) => Some(Change::Policy(Update::Remove(key))),
        // What is said of trust is said as a whole.
        Key::Trust(_) => None,
    }
}

/// What was refused, for the control plane's log: the first few, within a bound.
fn enumerate(refused: &[String]) -> String {
    let mut message = String::new();
    for (at, one) in refused.iter().enumerate() {
        if at > 0 {
            message.push_str("; ");
        }
        if message.len() + one.len() > MESSAGE {
            message.push_str(&format!("and {} more", refused.len() - at));
            break;
        }
        message.push_str(one);
    }
    message
}

/// The gRPC status code of what the other side has said wrongly.
const INVALID_ARGUMENT: i32 = 3;
/// The longest text of a NACK, in bytes, but for its first words.
const MESSAGE: usize = 4096;
/// Refused resources of a kind that are told one by one. Of more none is remembered but policies, which have an effect.
const REFUSED: usize = 10_000;
