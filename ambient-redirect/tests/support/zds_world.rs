//! An agent, its proxies and all that is underway between them: what can happen, and what must hold whatever does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use ambient_core::PodUid;
use ambient_redirect::{
    linux::NetnsId,
    zds::{
        agent::{self, Agent, ProxyId, Ticket},
        wire::{Ack, Request, WorkloadInfo},
        workloads::{self, Given, Readiness, Workloads},
    },
};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A pod is to be served, in a namespace.
    Want(usize, u64),
    /// One of its listeners was found missing.
    WantAnew(usize),
    Unwant(usize),
    /// The agent's process is another one, that has not been told of any pod yet.
    RestartAgent,
    /// A pod that it was told of before is told to the new one.
    Remember(usize),
    /// A proxy without a connection connects.
    Connect(usize),
    /// A packet arrives.
    ToProxy(usize),
    ToAgent(usize),
    /// An answer is not given.
    Lose(usize),
    /// A proxy's connection breaks; the agent does not know yet.
    Break(usize),
    /// The agent sees that the oldest broken connection is one.
    Notice,
    /// What a proxy does ends, well or not.
    Finish(usize, bool),
    /// A proxy's process is another one.
    Kill(usize),
    /// A proxy hears what it does not understand: instead of the next request, if there is one.
    Garble(usize),
    /// A pod comes to a proxy with what is no pod's namespace.
    Misplace(usize),
    /// The agent hears from a proxy what it does not understand.
    Babble(usize, Babble),
    /// So much time passes that something is due.
    Pass,
}

/// What no proxy sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Babble {
    Garbage,
    /// An answer that a descriptor comes with.
    Descriptor,
    /// One that nothing was asked for.
    Unasked,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) agent: Agent<u64>,
    pub(crate) desired: BTreeMap<usize, u64>,
    /// The pods that the agent's process has been told of.
    pub(crate) told: BTreeSet<usize>,
    pub(crate) tickets: BTreeSet<Ticket>,
    /// When what is wanted of a pod was last another than before.
    pub(crate) touched: BTreeMap<PodUid, u64>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) serial: u64,
    pub(crate) history: Vec<Event>,
}

/// A connection as the agent has it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) id: ProxyId,
    /// Whose, unless it is broken.
    pub(crate) proxy: Option<usize>,
    /// The request that no answer has come for.
    pub(crate) outstanding: Option<u64>,
    /// What its proxy has sent before it closed it.
    pub(crate) last: VecDeque<(Vec<u8>, Option<u64>)>,
    /// When it was last asked to serve a pod, and where.
    pub(crate) added: BTreeMap<PodUid, (u64, u64)>,
    /// Whom it was told to keep.
    pub(crate) kept: BTreeSet<PodUid>,
    /// Whom it was told to let go before the snapshot's end, and where it may be until then.
    pub(crate) unlisted: BTreeMap<PodUid, u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) workloads: Workloads<u64>,
    pub(crate) connection: Option<ProxyId>,
    pub(crate) to_proxy: VecDeque<(Vec<u8>, Option<u64>, u64)>,
    /// What it sends, and the request that it answers.
    pub(crate) to_agent: VecDeque<(Vec<u8>, Option<u64>)>,
    pub(crate) asked: Option<u64>,
    pub(crate) doing: VecDeque<workloads::Output<u64>>,
    pub(crate) serving: BTreeMap<PodUid, Served>,
    /// What it was told to let go, and not to serve since.
    pub(crate) deleted: BTreeSet<PodUid>,
    pub(crate) named: BTreeSet<PodUid>,
}

#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) place: u64,
    /// It was, since it began, to be somewhere else or nowhere, or was found wanting.
    pub(crate) excused: bool,
}

pub(crate) fn uid(pod: usize) -> PodUid {
    PodUid::from(["a", "b", "c"][pod])
}

pub(crate) fn place(n: u64) -> NetnsId {
    NetnsId { dev: 4, ino: n }
}

pub(crate) fn info(pod: usize) -> WorkloadInfo {
    WorkloadInfo {
        name: format!("pod-{pod}").into(),
        namespace: "shop".into(),
        service_account: "default".into(),
    }
}

impl Proxy {
    pub(crate) fn new() -> Self {
        Self {
            workloads: Workloads::new(workloads::Timing::default()),
            connection: None,
            to_proxy: VecDeque::new(),
            to_agent: VecDeque::new(),
            asked: None,
            doing: VecDeque::new(),
            serving: BTreeMap::new(),
            deleted: BTreeSet::new(),
            named: BTreeSet::new(),
        }
    }
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    pub(crate) fn new(proxies: usize) -> Self {
        let now = Instant::now();
        let mut agent = Agent::new(agent::Timing::default());
        agent.expect(now, BTreeSet::new());
        Self {
            now,
            agent,
            desired: BTreeMap::new(),
            told: BTreeSet::new(),
            tickets: BTreeSet::new(),
            touched: BTreeMap::new(),
            connections: Vec::new(),
            proxies: vec![Proxy::new(); proxies],
            serial: 0,
            history: Vec::new(),
        }
    }

    /// Whether something can happen now.
    pub(crate) fn may(&self, event: Event) -> bool {
        match event {
            Event::Want(pod, n) => self.desired.get(&pod) != Some(&n) && !self.desired.iter().any(|(p, m)| *p != pod && *m == n),
            Event::WantAnew(pod) => self.told.contains(&pod) && self.agent.is_served(&uid(pod)),
            Event::Unwant(pod) => self.desired.contains_key(&pod),
            Event::RestartAgent => true,
            Event::Remember(pod) => self.desired.contains_key(&pod) && !self.told.contains(&pod),
            Event::Connect(p) => self.proxies[p].connection.is_none(),
            Event::ToProxy(p) => !self.proxies[p].to_proxy.is_empty() && self.proxies[p].workloads.is_idle(),
            Event::ToAgent(p) => !self.proxies[p].to_agent.is_empty(),
            // Its greeting is not an answer.
            Event::Lose(p) => self.proxies[p].to_agent.front().is_some_and(|(_, answers)| answers.is_some()),
            Event::Break(p) => self.proxies[p].connection.is_some(),
            Event::Notice => self.connections.iter().any(|c| c.proxy.is_none()),
            Event::Finish(p, _) => !self.proxies[p].doing.is_empty(),
            Event::Kill(_) => true,
            Event::Garble(p) => self.proxies[p].connection.is_some(),
            Event::Misplace(p) => self.may(Event::ToProxy(p)) && self.proxies[p].to_proxy[0].1.is_some(),
            Event::Babble(p, what) => {
                let id = self.proxies[p].connection;
                let connection = self.connections.iter().find(|c| Some(c.id) == id);
                // An answer to what was asked cannot be told from another.
                connection.is_some_and(|c| what != Babble::Unasked || c.outstanding.is_none())
            }
            Event::Pass => self.due().is_some(),
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        self.history.push(event);
        let before = self.clone();
        self.begin(event);
        self.run();
        match event {
            Event::Garble(p) | Event::Babble(p, _) => {
                assert_eq!(self.proxies[p].connection, None, "{event:?} is gone on with");
                self.is_unmoved(&before, Some(p));
            }
            Event::Misplace(_) => self.is_unmoved(&before, None),
            _ => (),
        }
    }

    /// What is served is as it was, nothing more is to end, and every connection but one goes on.
    pub(crate) fn is_unmoved(&self, before: &Self, but: Option<usize>) {
        let ends = |proxy: &Proxy| proxy.doing.iter().filter(|o| matches!(o, workloads::Output::End { .. })).count();
        for (p, (now, then)) in self.proxies.iter().zip(&before.proxies).enumerate() {
            let same = now.serving.keys().eq(then.serving.keys()) && ends(now) == ends(then);
            assert!(same, "a wrong message ends what is served by proxy {p}: {:#?}", self.history);
            assert!(Some(p) == but || now.connection == then.connection, "or its connection");
        }
    }

    pub(crate) fn begin(&mut self, event: Event) {
        match event {
            Event::Want(pod, n) => {
                self.excuse(pod);
                self.desired.insert(pod, n);
                self.want(pod, false);
            }
            Event::WantAnew(pod) => {
                self.excuse(pod);
                self.want(pod, true);
            }
            Event::Unwant(pod) => {
                self.excuse(pod);
                self.desired.remove(&pod);
                self.told.remove(&pod);
                self.expect();
                let ticket = self.agent.unwant(&uid(pod));
                self.tickets.insert(ticket);
            }
            Event::RestartAgent => {
                for p in 0..self.proxies.len() {
                    self.cut(p);
                }
                self.connections.clear();
                self.tickets.clear();
                self.told.clear();
                self.agent = Agent::new(agent::Timing::default());
                self.expect();
            }
            Event::Remember(pod) => self.want(pod, false),
            Event::Connect(p) => {
                let id = self.agent.handle_connected(self.now);
                self.connections.push(Connection {
                    id,
                    proxy: Some(p),
                    outstanding: None,
                    last: VecDeque::new(),
                    added: BTreeMap::new(),
                    kept: BTreeSet::new(),
                    unlisted: BTreeMap::new(),
                });
                self.proxies[p].connection = Some(id);
                self.proxies[p].asked = None;
                self.proxies[p].named.clear();
                self.proxies[p].workloads.handle_connected();
            }
            Event::ToProxy(p) => {
                let (packet, descriptor, serial) = self.proxies[p].to_proxy.pop_front().unwrap();
                let given = descriptor.map_or(Given::Nothing, |n| Given::Namespace(place(n), n));
                self.deliver(p, &packet, serial, given);
            }
            Event::Misplace(p) => {
                let (packet, _, serial) = self.proxies[p].to_proxy.pop_front().unwrap();
                self.deliver(p, &packet, serial, Given::Own(place(9)));
            }
            Event::Garble(p) => {
                let proxy = &mut self.proxies[p];
                proxy.asked = proxy.to_proxy.pop_front().map(|(_, _, serial)| serial);
                proxy.workloads.handle_packet(self.now, b"\x0a\xff", Given::Nothing);
            }
            Event::Babble(p, what) => {
                let id = self.proxies[p].connection.unwrap();
                let (packet, descriptors) = match what {
                    Babble::Garbage => (b"\x0a\xff".to_vec(), 0),
                    Babble::Descriptor => (Ack::well().encode(), 1),
                    Babble::Unasked => (Ack::well().encode(), 0),
                };
                self.agent.handle_packet(self.now, id, &packet, descriptors);
            }
            Event::ToAgent(p) => {
                let (packet, answers) = self.proxies[p].to_agent.pop_front().unwrap();
                let id = self.proxies[p].connection.unwrap();
                if let Some(at) = self.connections.iter().position(|c| c.id == id) {
                    self.hear(at, &packet, answers);
                }
            }
            Event::Lose(p) => drop(self.proxies[p].to_agent.pop_front()),
            Event::Break(p) => self.cut(p),
            Event::Notice => {
                let at = self.connections.iter().position(|c| c.proxy.is_none()).unwrap();
                let id = self.connections[at].id;
                while let Some(at) = self.connections.iter().position(|c| c.id == id) {
                    let Some((packet, answers)) = self.connections[at].last.pop_front() else {
                        self.connections.remove(at);
                        self.agent.handle_closed(self.now, id);
                        break;
                    };
                    // A refusal of what was not asked may come when something else has been: it is for that then.
                    let unasked = answers.is_none() && self.connections[at].outstanding.is_some();
                    let answers = if unasked { self.connections[at].outstanding } else { answers };
                    self.hear(at, &packet, answers);
                    self.run();
                }
            }
            Event::Finish(p, well) => self.finish(p, well),
            Event::Kill(p) => {
                self.cut(p);
                self.proxies[p] = Proxy::new();
            }
            Event::Pass => self.now = self.due().unwrap().max(self.now),
        }
    }

    /// A request arrives at a proxy.
    pub(crate) fn deliver(&mut self, p: usize, packet: &[u8], serial: u64, given: Given<u64>) {
        let proxy = &mut self.proxies[p];
        assert_eq!(proxy.asked, None, "a request before the answer to the last");
        proxy.asked = Some(serial);
        match Request::decode(packet).unwrap() {
            Request::Del { uid } => {
                proxy.named.remove(&uid);
                proxy.deleted.insert(uid);
            }
            Request::Add { uid, .. } => {
                proxy.deleted.remove(&uid);
                proxy.named.insert(uid);
            }
            Request::Keep { uid } => drop(proxy.named.insert(uid)),
            Request::SnapshotSent => {
                let begun = proxy.doing.iter().filter_map(|output| match output {
                    workloads::Output::Serve { uid, .. } => Some(uid),
                    _ => None,
                });
                let unnamed = proxy.serving.keys().chain(begun).filter(|uid| !proxy.named.contains(*uid));
                proxy.deleted.extend(unnamed.cloned());
            }
        }
        proxy.workloads.handle_packet(self.now, packet, given);
    }

    /// An answer, or a greeting, arrives at the agent.
    pub(crate) fn hear(&mut self, at: usize, packet: &[u8], answers: Option<u64>) {
        let connection = &mut self.connections[at];
        assert_eq!(connection.outstanding.take(), answers, "an answer is taken for another request's");
        self.agent.handle_packet(self.now, connection.id, packet, 0);
    }

    pub(crate) fn want(&mut self, pod: usize, anew: bool) {
        self.told.insert(pod);
        self.expect();
        let n = self.desired[&pod];
        let ticket = self.agent.want(self.now, uid(pod), info(pod), place(n), n, anew);
        self.tickets.insert(ticket);
    }

    pub(crate) fn expect(&mut self) {
        self.agent.expect(self.now, self.desired.keys().map(|pod| uid(*pod)).collect());
    }

    /// What is served of a pod may end.
    pub(crate) fn excuse(&mut self, pod: usize) {
        self.serial += 1;
        self.touched.insert(uid(pod), self.serial);
        for proxy in &mut self.proxies {
            proxy.serving.entry(uid(pod)).and_modify(|served| served.excused = true);
        }
    }

    pub(crate) fn cut(&mut self, p: usize) {
        let proxy = &mut self.proxies[p];
        if let Some(id) = proxy.connection.take() {
            proxy.workloads.handle_closed();
            proxy.to_proxy.clear();
            proxy.to_agent.clear();
            if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
                connection.proxy = None;
            }
        }
    }

    pub(crate) fn finish(&mut self, p: usize, well: bool) {
        let proxy = &mut self.proxies[p];
        match proxy.doing.pop_front().unwrap() {
            workloads::Output::Serve { uid, descriptor, .. } => {
                let result = match well {
                    true => {
                        let excused =
                            self.desired.get(&["a", "b", "c"].iter().position(|u| *u == uid.as_str()).unwrap()) != Some(&descriptor);
                        let served = Served {
                            place: descriptor,
                            excused,
                        };
                        proxy.serving.insert(uid.clone(), served);
                        Ok(())
                    }
                    false => {
                        proxy.serving.remove(&uid);
                        Err("the port is taken".into())
                    }
                };
                proxy.workloads.handle_served(self.now, &uid, result);
            }
            workloads::Output::End { uid } => {
                proxy.serving.remove(&uid);
                proxy.deleted.remove(&uid);
                proxy.workloads.handle_ended(self.now, &uid);
            }
            other => panic!("{other:?} is no work"),
        }
        let places: BTreeSet<u64> = proxy.serving.values().map(|s| s.place).collect();
        assert_eq!(
            places.len(),
            proxy.serving.len(),
            "two pods are served in one namespace: {:?}",
            proxy.serving
        );
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        let proxies = self.proxies.iter().filter_map(|proxy| proxy.workloads.timeout());
        self.agent.timeout().into_iter().chain(proxies).min()
    }

    /// Moves what comes out of both ends.
    pub(crate) fn run(&mut self) {
        while let Some(output) = self.agent.poll(self.now) {
            match output {
                agent::Output::Send { to, packet, descriptor } => {
                    self.serial += 1;
                    let connection = self.connections.iter_mut().find(|c| c.id == to).unwrap();
                    assert_eq!(connection.outstanding.replace(self.serial), None, "two requests at once");
                    match Request::decode(&packet).unwrap() {
                        Request::Add { uid, .. } => drop(connection.added.insert(uid, (self.serial, descriptor.unwrap()))),
                        Request::Del { uid } => {
                            let added = connection.added.remove(&uid);
                            let touched = self.touched.get(&uid) > added.as_ref().map(|(when, _)| when);
                            assert!(touched, "a proxy is to let go of {uid}, which is wanted as it was");
                            connection.unlisted.extend(added.map(|(_, n)| (uid, n)));
                        }
                        Request::Keep { uid } => drop(connection.kept.insert(uid)),
                        Request::SnapshotSent => {
                            let named = self.desired.iter().all(|(pod, n)| {
                                let uid = uid(*pod);
                                let named = connection.added.contains_key(&uid) || connection.kept.contains(&uid);
                                named || connection.unlisted.contains_key(&uid) || connection.unlisted.values().any(|m| m == n)
                            });
                            assert!(
                                named,
                                "a snapshot lacks what is to be there: {:?} of {:?}",
                                connection, self.desired
                            );
                        }
                    }
                    if let Some(p) = connection.proxy {
                        self.proxies[p].to_proxy.push_back((packet, descriptor, self.serial));
                    }
                }
                agent::Output::Close { proxy, .. } => {
                    let at = self.connections.iter().position(|c| c.id == proxy).unwrap();
                    let closed = self.connections.remove(at);
                    if let Some(p) = closed.proxy {
                        self.cut(p);
                    }
                }
                agent::Output::Answer { ticket, answer } => {
                    assert!(self.tickets.remove(&ticket), "an answer that nobody waits for: {answer:?}");
                }
            }
        }
        // Whoever sleeps until an instant that is past does not sleep.
        let wake = self.agent.timeout();
        assert!(
            wake.is_none_or(|wake| wake > self.now),
            "it says that something is due, and gives nothing: {:#?}",
            self.history
        );
        for p in 0..self.proxies.len() {
            while let Some(output) = self.proxies[p].workloads.poll(self.now) {
                let proxy = &mut self.proxies[p];
                match output {
                    workloads::Output::Send(packet) => {
                        let answers = proxy.asked.take();
                        if proxy.connection.is_some() {
                            proxy.to_agent.push_back((packet, answers));
                        }
                    }
                    workloads::Output::Close(why) => {
                        let garbled = matches!(self.history.last(), Some(Event::Garble(at)) if *at == p);
                        assert!(garbled, "our own agent is not understood: {why}");
                        let last = std::mem::take(&mut proxy.to_agent);
                        let id = proxy.connection;
                        self.cut(p);
                        let connection = self.connections.iter_mut().find(|c| Some(c.id) == id);
                        connection.unwrap().last = last;
                    }
                    workloads::Output::End { ref uid } => {
                        let innocent = proxy.serving.get(uid).is_some_and(|served| !served.excused) && !proxy.deleted.contains(uid);
                        assert!(
                            !innocent,
                            "{uid} is ended though it was to be there all the time: {:#?}",
                            self.history
                        );
                        proxy.doing.push_back(output);
                    }
                    workloads::Output::Serve { .. } => proxy.doing.push_back(output),
                }
            }
        }
    }

    /// From here on everything goes well: everybody must end with what he should have.
    pub(crate) fn settle(mut self) {
        for pod in self.desired.keys().copied().collect::<Vec<_>>() {
            if !self.told.contains(&pod) {
                self.happen(Event::Remember(pod));
            }
        }
        for _ in 0..400 {
            let next = (0..self.proxies.len())
                .flat_map(|p| [Event::Finish(p, true), Event::ToAgent(p), Event::ToProxy(p), Event::Connect(p)])
                .chain([Event::Notice])
                .find(|event| self.may(*event));
            match next {
                Some(event) => self.happen(event),
                None if self.is_settled() => return,
                None if self.may(Event::Pass) => self.happen(Event::Pass),
                None => panic!("nothing moves any more: {self:#?}"),
            }
        }
        panic!("it does not settle: {self:#?}");
    }

    pub(crate) fn is_settled(&self) -> bool {
        let newest = self.connections.last().and_then(|c| c.proxy);
        let desired: BTreeMap<PodUid, u64> = self.desired.iter().map(|(pod, n)| (uid(*pod), *n)).collect();
        let holds = |p: usize, proxy: &Proxy| {
            let serving: BTreeMap<PodUid, u64> = proxy.serving.iter().map(|(uid, served)| (uid.clone(), served.place)).collect();
            let all = match Some(p) == newest {
                true => serving == desired,
                // It need not have all, and has nothing else.
                false => serving.iter().all(|(uid, n)| desired.get(uid) == Some(n)),
            };
            all && proxy.workloads.readiness() == Readiness::Ready
        };
        let every = self.proxies.iter().enumerate().all(|(p, proxy)| holds(p, proxy));
        every && self.tickets.is_empty() && self.connections.len() == self.proxies.len()
    }

    pub(crate) fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        // What is to come does not depend on how many requests there were.
        format!(
            "{:?}",
            (&self.agent, &self.desired, &self.told, &self.connections, &self.proxies, self.now)
        )
        .hash(&mut hasher);
        hasher.finish()
    }
}
