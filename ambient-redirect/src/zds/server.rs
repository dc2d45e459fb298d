//! The agent's end: drives proxies that are somebody else's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambient_core::PodUid;
use tokio::{
    sync::{
        Notify, mpsc, oneshot,
        watch::{Receiver, Sender, channel},
    },
    task::{AbortHandle, spawn_blocking},
    time::{Instant as Tick, sleep, sleep_until, timeout},
};

use super::{
    Allowed,
    agent::{Agent, Output, ProxyId, ProxyState, Ticket, Timing, Unserved},
    wire::WorkloadInfo,
};
use crate::{
    BoxFuture, PodSpec, Proxy, ProxyError,
    linux::{Difference, Inside, Mark, Netns, Peer, ReceiveError, SeqPacket, SeqPacketListener},
    plan::{Options, Plan},
    pods::PodState,
};

/// Settings of a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; [`ISTIO_SOCKET`](super::ISTIO_SOCKET) is where Istio's proxies look for it.
    pub path: PathBuf,
    /// Who may connect.
    pub allowed: Allowed,
    /// How long things take.
    pub timing: Timing,
    /// How long [`Proxy::add`] waits for a proxy's answer, and for a proxy; below
    /// [`Config::patience`](crate::Config::patience), so that it can say what it has waited for.
    pub patience: Duration,
    /// What is captured, as the enrolment has it: a pod that is added again because something is missing is looked into, and
    /// its proxy told to begin anew where a listener of its plan is not there.
    pub options: Options,
}

impl ServerConfig {
    /// Root's and the own user's proxies, Istio's times, 6 s of patience.
    pub fn new(path: impl Into<PathBuf>, options: Options) -> Self {
        Self {
            path: path.into(),
            allowed: Allowed::default(),
            timing: Timing::default(),
            patience: Duration::from_secs(6),
            options,
        }
    }
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen at {path}: {source} (its directory must be there and writable, and only one node agent may run: stop the other, or name another path)"
)]
pub struct BindError {
    /// The path.
    pub path: PathBuf,
    /// The system's word.
    pub source: io::Error,
}

/// A node agent's end of ZDS, and a [`Proxy`]: what it is told of is served by the proxy that connected last.
///
/// Several proxies may be connected, as during an upgrade: each is told of every pod when it connects, only the newest of
/// those that are new later, and all of those that go. When the newest goes the one before it is told what it lacks.
///
/// What it cannot do for lack of words in the protocol: [`Proxy::cut`] has every proxy let go of the pod at once, DNS too.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    state: Mutex<Shared>,
    changed: Notify,
    listener: SeqPacketListener,
    proxies: Sender<Arc<[Connected]>>,
}

/// A proxy that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Who it is.
    pub peer: Peer,
    /// How it stands.
    pub state: ProxyState,
}

#[derive(Debug)]
struct Shared {
    agent: Agent<Arc<Netns>>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<(), Unserved>>>,
    /// Why the last connection was closed or refused.
    last_ended: Option<String>,
}

impl Server {
    /// Listens. Nobody is answered before [`Server::run`], and no snapshot ends before [`Server::expect`].
    ///
    /// Must be called within a runtime of tokio that has I/O; it panics otherwise.
    ///
    /// # Errors
    /// When the socket cannot be made, or another agent listens there.
    pub fn bind(config: ServerConfig) -> Result<Arc<Self>, BindError> {
        let listener = SeqPacketListener::bind(&config.path).map_err(|source| BindError {
            path: config.path.clone(),
            source,
        })?;
        let state = Shared {
            agent: Agent::new(config.timing),
            waiting: BTreeMap::new(),
            last_ended: None,
        };
        Ok(Arc::new(Self {
            config,
            state: Mutex::new(state),
            changed: Notify::new(),
            listener,
            proxies: channel(Arc::from([])).0,
        }))
    }

    /// The path that it listens at.
    pub fn path(&self) -> &Path {
        &self.config.path
    }

    /// The proxies that are connected and have said who they are, the newest last.
    pub fn proxies(&self) -> Receiver<Arc<[Connected]>> {
        self.proxies.subscribe()
    }

    /// The namespace of a pod that is to be served.
    pub fn namespace(&self, uid: &PodUid) -> Option<Arc<Netns>> {
        self.lock().agent.descriptor(uid).cloned()
    }

    /// Says which pods are to be in the mesh, whether their namespaces are known or not: see [`Agent::expect`].
    pub fn expect(&self, pods: BTreeSet<PodUid>) {
        self.lock().agent.expect(now(), pods);
        self.changed.notify_one();
    }

    /// Keeps [`Server::expect`] up to what an enrolment is given and how it goes. Ends when the enrolment has.
    ///
    /// A pod that cannot be captured is waited for no longer: what a proxy has of it from before it keeps.
    pub async fn follow(&self, mut desired: Receiver<Option<Arc<[PodSpec]>>>, mut states: Receiver<Arc<[PodState]>>) {
        loop {
            let wanted = desired.borrow_and_update().clone();
            states.borrow_and_update();
            if let Some(wanted) = wanted {
                // One without an address has nothing yet that a proxy could have been told of.
                let placed = wanted.iter().filter(|pod| !pod.addresses.is_empty());
                self.expect(placed.map(|pod| pod.uid.clone()).collect());
            }
            tokio::select! {
                changed = desired.changed() => if changed.is_err() {
                    // The last word stands.
                    while states.changed().await.is_ok() {}
                    return;
                },
                changed = states.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Serves proxies, until it is dropped; the socket's path goes with the [`Server`].
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections. Proxies go on with what they have and come back to the next.
    pub async fn run(&self) {
        let (told, mut news) = mpsc::channel(NEWS);
        let mut links: BTreeMap<ProxyId, Link> = BTreeMap::new();
        loop {
            self.act(&mut links);
            let wake = self.lock().agent.timeout();
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(socket) => self.admit(socket, &mut links, &told),
                    // No descriptor left, a client that went away, or a path that did: none of these ends the listener.
                    Err(error) => {
                        self.lock().last_ended = Some(error.to_string());
                        sleep(PAUSE).await;
                    }
                },
                Some((from, news)) = news.recv() => self.take(from, news, &mut links),
                () = self.changed.notified() => (),
                () = sleep_until(wake.map_or_else(far, Tick::from_std)), if wake.is_some() => (),
            }
        }
    }

    /// Does what is to be done, and publishes how it stands.
    fn act(&self, links: &mut BTreeMap<ProxyId, Link>) {
        let mut state = self.lock();
        while let Some(output) = state.agent.poll(now()) {
            match output {
                Output::Send { to, packet, descriptor } => {
                    let sent = links
                        .get(&to)
                        .is_some_and(|link| link.outgoing.try_send((packet, descriptor)).is_ok());
                    if !sent {
                        // It has ended and has not said so yet.
                        links.remove(&to);
                        state.agent.handle_closed(now(), to);
                    }
                }
                Output::Close { proxy, why } => {
                    let link = links.remove(&proxy);
                    state.agent.descriptors().for_each(|namespace| namespace.listener_lost());
                    state.ended(link.map(|link| link.peer), &why);
                }
                Output::Answer { ticket, answer } => {
                    if let Some(waiting) = state.waiting.remove(&ticket) {
                        let _ = waiting.send(answer);
                    }
                }
            }
        }
        let states = state.agent.states();
        drop(state);
        let proxies: Arc<[Connected]> = states
            .into_iter()
            .filter_map(|state| {
                Some(Connected {
                    peer: links.get(&state.proxy)?.peer,
                    state,
                })
            })
            .collect();
        self.proxies.send_if_modified(|published| {
            let differs = *published != proxies;
            if differs {
                *published = proxies;
            }
            differs
        });
    }

    fn admit(&self, socket: SeqPacket, links: &mut BTreeMap<ProxyId, Link>, told: &mpsc::Sender<(ProxyId, News)>) {
        let refused = match socket.peer() {
            Ok(peer) if !self.config.allowed.0.contains(&peer.uid) => format!("a process of user {} is not let in", peer.uid),
            Ok(_) if links.len() >= MOST_PROXIES => format!("there are {MOST_PROXIES} proxies connected already"),
            Err(error) => format!("it cannot be told whose a connection is: {error}"),
            Ok(peer) => {
                let id = self.lock().agent.handle_connected(now());
                let (outgoing, queue) = mpsc::channel(1);
                let link = tokio::spawn(talk(id, socket, queue, told.clone())).abort_handle();
                links.insert(id, Link { peer, outgoing, link });
                return;
            }
        };
        self.lock().last_ended = Some(refused);
    }

    fn take(&self, from: ProxyId, news: News, links: &mut BTreeMap<ProxyId, Link>) {
        let mut state = self.lock();
        match news {
            News::Packet(bytes, descriptors) => state.agent.handle_packet(now(), from, &bytes, descriptors),
            News::Ended(why) => {
                let link = links.remove(&from);
                state.agent.handle_closed(now(), from);
                // Its listeners may have ended with it: better looked at now than when it is time to.
                state.agent.descriptors().for_each(|namespace| namespace.listener_lost());
                if let Some(why) = why {
                    state.ended(link.map(|link| link.peer), &why);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for something, and waits for the answer; `None` when there is none in time.
    async fn ask(&self, ask: impl FnOnce(&mut Agent<Arc<Netns>>) -> Ticket) -> Option<Result<(), Unserved>> {
        let (answer, answered) = oneshot::channel();
        let ticket = {
            let mut state = self.lock();
            let ticket = ask(&mut state.agent);
            state.waiting.insert(ticket, answer);
            ticket
        };
        // Also when the future is dropped.
        let _forget = Forget { server: self, ticket };
        self.changed.notify_one();
        timeout(self.config.patience, answered).await.ok()?.ok()
    }

    async fn serve(&self, pod: &PodSpec, namespace: Arc<Netns>) -> Result<(), ProxyError> {
        let anew = self.lock().agent.is_served(&pod.uid) && self.lacks_listeners(pod, namespace.clone()).await;
        let info = WorkloadInfo {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        };
        let (uid, place) = (pod.uid.clone(), namespace.id());
        let answer = self.ask(|agent| agent.want(now(), uid, info, place, namespace, anew)).await;
        let source = match answer {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => io::Error::other(why),
            None => self.why_none(),
        };
        let what = format!("having a proxy serve the pod over {}", self.config.path.display());
        Err(ProxyError { what, source })
    }

    fn why_none(&self) -> io::Error {
        let state = self.lock();
        let path = self.config.path.display();
        let last = state.last_ended.as_ref().map(|why| format!(" (last: {why})")).unwrap_or_default();
        match state.agent.has_proxy() {
            true => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the proxy has not come to it within {} s{last}", self.config.patience.as_secs_f32()),
            ),
            false => io::Error::new(
                io::ErrorKind::NotConnected,
                format!("no proxy is connected at {path}: start it, and have it connect there (ztunnel: INPOD_UDS={path}){last}"),
            ),
        }
    }

    /// Whether one of the plan's listeners is not there, as the kernel lists them. What cannot be told is not missing.
    async fn lacks_listeners(&self, pod: &PodSpec, namespace: Arc<Netns>) -> bool {
        let plan = Plan::new(&self.config.options.of(&pod.capture));
        let mark = Mark::new("", &pod.uid);
        let look = spawn_blocking(move || Inside::open(&namespace)?.verify(&plan, &mark));
        let differences = look.await.ok().and_then(Result::ok).unwrap_or_default();
        differences.iter().any(|d| matches!(d, Difference::Listener(..)))
    }
}

impl Proxy for Server {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(self.serve(pod, namespace))
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // One that does not answer loses its connection, and is told anew by the next.
            let _ = self.ask(|agent| agent.unwant(uid)).await;
        })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        self.cut(uid)
    }
}

impl Shared {
    fn ended(&mut self, peer: Option<Peer>, why: &dyn std::fmt::Display) {
        let whose = peer
            .and_then(|peer| peer.pid)
            .map(|pid| format!("proxy {pid}: "))
            .unwrap_or_default();
        self.last_ended = Some(format!("{whose}{why}"));
    }
}

/// Takes a ticket back.
struct Forget<'a> {
    server: &'a Server,
    ticket: Ticket,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut state = self.server.lock();
        state.waiting.remove(&self.ticket);
        state.agent.forget(self.ticket);
    }
}

/// A connection's task.
#[derive(Debug)]
struct Link {
    peer: Peer,
    outgoing: mpsc::Sender<(Vec<u8>, Option<Arc<Netns>>)>,
    link: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.link.abort();
    }
}

/// What a connection has to tell.
#[derive(Debug)]
enum News {
    /// A packet, and how many descriptors came with it.
    Packet(Vec<u8>, usize),
    /// It has ended: why, if not because the proxy has closed it.
    Ended(Option<ReceiveError>),
}

/// Moves packets both ways.
async fn talk(
    id: ProxyId,
    socket: SeqPacket,
    mut outgoing: mpsc::Receiver<(Vec<u8>, Option<Arc<Netns>>)>,
    told: mpsc::Sender<(ProxyId, News)>,
) {
    loop {
        let news = tokio::select! {
            received = socket.receive(LONGEST_ANSWER) => match received {
                Ok(Some(packet)) => News::Packet(packet.bytes, packet.descriptors.len()),
                Ok(None) => News::Ended(None),
                Err(why) => News::Ended(Some(why)),
            },
            Some((packet, descriptor)) = outgoing.recv() => {
                // The packet before it has been answered, so that there is room for this one.
                let sent = socket.send(&packet, descriptor.as_ref().map(|namespace| namespace.as_fd())).await;
                match sent {
                    Ok(()) => continue,
                    Err(error) => News::Ended(Some(error.into())),
                }
            }
        };
        let over = matches!(news, News::Ended(_));
        if told.send((id, news)).await.is_err() || over {
            return;
        }
    }
}

fn now() -> Instant {
    Tick::now().into_std()
}

fn far() -> Tick {
    Tick::now() + Duration::from_secs(3600)
}

/// Proxies at once: an old and a new one, and some that are about to go.
const MOST_PROXIES: usize = 8;
/// A real proxy's refusal may be longer than what it reads itself.
const LONGEST_ANSWER: usize = 16 * 1024;
/// Packets that have come and are not looked at.
const NEWS: usize = 16;
/// Where no connection can be taken.
const PAUSE: Duration = Duration::from_millis(50);
