//! A proxy that tells what reaches it, and an announcement that remembers.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ambient_core::{Observer, PodUid, observe::Event};
use ambient_redirect::{
    Announce, BoxFuture, Config, Enrolment, HandOver, KeptConnections, PodSpec, Proxy, ProxyError,
    linux::{Direction, Inside, Netns, NetnsId, Sockets, original_destination},
    pods::{PodState, State},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// Answers every connection with where it was going and whence it came.
pub(crate) struct TellingProxy {
    sockets: Sockets,
    /// It behaves as if it were another process: what it makes is known by its mark alone.
    apart: bool,
    dead: AtomicBool,
    hangs: Arc<AtomicBool>,
    silent: AtomicBool,
    held_up: Mutex<Option<PodUid>>,
    serving: Mutex<BTreeMap<PodUid, JoinSet<()>>>,
    namespaces: Mutex<BTreeMap<PodUid, Arc<Netns>>>,
    pub(crate) log: Log,
}

/// What happened, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|l| l.starts_with(line)).count()
    }
}

impl TellingProxy {
    fn with(sockets: &Sockets, log: &Log, apart: bool) -> Arc<Self> {
        Arc::new(Self {
            sockets: sockets.clone(),
            apart,
            dead: AtomicBool::new(false),
            hangs: Arc::default(),
            silent: AtomicBool::new(false),
            held_up: Mutex::default(),
            serving: Mutex::default(),
            namespaces: Mutex::default(),
            log: log.clone(),
        })
    }

    /// All listeners vanish, as when the process is killed.
    pub(crate) fn die(&self) {
        self.serving.lock().unwrap().clear();
    }

    /// And none comes back.
    pub(crate) fn stay_dead(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.die();
    }

    pub(crate) fn live(&self) {
        self.dead.store(false, Ordering::Relaxed);
    }

    /// Of what it makes from here on it does not tell when it ends.
    #[allow(dead_code, reason = "of one test alone")]
    pub(crate) fn be_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// What is accepted is looked at no more.
    pub(crate) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }

    /// A pod waits for its listeners until it is let go.
    pub(crate) fn hold_up(&self, uid: &str, hold: bool) {
        *self.held_up.lock().unwrap() = hold.then(|| uid.into());
    }

    async fn listen(&self, namespace: &Arc<Netns>) -> io::Result<JoinSet<()>> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(io::Error::other("dead"));
        }
        let another = if self.apart {
            Some(Arc::new(Netns::open(namespace.path())?))
        } else {
            None
        };
        let namespace = another.as_ref().unwrap_or(namespace);
        let mut tasks = JoinSet::new();
        for (port, word) in [(15001, "out"), (15006, "in"), (15008, "hbone"), (15053, "dns")] {
            let address = SocketAddr::new("::".parse().unwrap(), port);
            let listener = TcpListener::from_std(self.sockets.tcp_listener(namespace, address, 4096).await?)?;
            let (log, namespace, hangs) = (self.log.clone(), namespace.clone(), self.hangs.clone());
            let direction = if port == 15006 { Direction::Inbound } else { Direction::Outbound };
            let lost = (!self.silent.load(Ordering::Relaxed)).then(|| Lost(namespace.clone()));
            tasks.spawn(async move {
                let _lost = lost;
                loop {
                    let Ok((mut stream, peer)) = listener.accept().await else { return };
                    let Ok(destination) = original_destination(&stream) else { continue };
                    if hangs.load(Ordering::Relaxed) {
                        continue;
                    }
                    if namespace.is_probe(direction, peer, destination) {
                        log.push(format!("probe {destination}"));
                        continue;
                    }
                    let _ = stream
                        .write_all(format!("{word} {destination} from {}", peer.ip().to_canonical()).as_bytes())
                        .await;
                }
            });
        }
        for ip in ["127.0.0.1", "::1"] {
            let socket = match self.sockets.udp(namespace, SocketAddr::new(ip.parse().unwrap(), 15053)).await {
                Ok(socket) => UdpSocket::from_std(socket)?,
                // A namespace without IPv6 has no query to redirect to its loopback.
                Err(e) if ip == "::1" && e.kind() == io::ErrorKind::AddrNotAvailable => continue,
                Err(e) => return Err(e),
            };
            tasks.spawn(async move {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(&buffer[..length], from).await;
                }
            });
        }
        Ok(tasks)
    }
}

/// Tells, when it is dropped, that a listener has ended.
struct Lost(Arc<Netns>);

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.listener_lost();
    }
}

impl Proxy for TellingProxy {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            while self.held_up.lock().unwrap().as_ref() == Some(&pod.uid) {
                sleep(Duration::from_millis(5)).await;
            }
            // A pod that is served already is served anew: its listeners are what was found missing.
            drop(self.serving.lock().unwrap().remove(&pod.uid));
            sleep(Duration::from_millis(1)).await;
            let tasks = self.listen(&namespace).await.map_err(|source| ProxyError {
                what: "listening".into(),
                source,
            })?;
            self.log.push(format!("add {} {}", pod.uid, namespace.id()));
            self.serving.lock().unwrap().insert(pod.uid.clone(), tasks);
            self.namespaces.lock().unwrap().insert(pod.uid.clone(), namespace);
            Ok(())
        })
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let namespace = self.namespaces.lock().unwrap().get(uid).cloned();
            self.log.push(format!("cut {uid}{}", rules_of(uid, namespace)));
        })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.log.push(format!("remove {uid}"));
            drop(self.serving.lock().unwrap().remove(uid));
            drop(self.namespaces.lock().unwrap().remove(uid));
        })
    }
}

/// Whether a pod's rules stand in a namespace.
fn rules_of(uid: &PodUid, namespace: Option<Arc<Netns>>) -> &'static str {
    let Some(namespace) = namespace else { return "" };
    let owner = Inside::open(&namespace).and_then(|mut inside| inside.owner());
    match owner {
        Ok(Some(owner)) if owner.pod.as_ref() == Some(uid) => " with rules",
        Ok(_) => " without rules",
        Err(_) => " unknown",
    }
}

/// Writes into the log, and whether the rules stood at that moment.
pub(crate) struct Announcements {
    pub(crate) log: Log,
    /// Where a pod's rules are.
    pub(crate) namespaces: Mutex<BTreeMap<PodUid, Arc<Netns>>>,
}

impl Announcements {
    fn rules_of(&self, uid: &PodUid) -> &'static str {
        rules_of(uid, self.namespaces.lock().unwrap().get(uid).cloned())
    }
}

impl Announce for Announcements {
    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.log.push(format!("captured {}{}", pod.uid, self.rules_of(&pod.uid)));
            Ok(())
        })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.log.push(format!("withdrawn {uid}{}", self.rules_of(uid)));
            Ok(())
        })
    }
}

struct Observed(Log);

impl Observer for Observed {
    fn observe(&self, event: &Event<'_>) {
        self.0.push(match event {
            Event::PodRepaired {
                pod,
                what,
                held,
                noticed,
                repaired,
                around,
            } => {
                assert!(held <= noticed && noticed <= repaired, "{held:?} {noticed:?} {repaired:?}");
                format!("repaired {pod}: {what}; around {around}")
            }
            Event::PodRefused { pod, reason } => format!("refused {pod}: {reason}"),
            Event::PodReleased { pod, lost: false } => format!("released {pod}"),
            Event::PodReleased { pod, lost: true } => format!("released {pod}: lost"),
            Event::NamespacesUnseen { why } => format!("unseen: {why}"),
            Event::NamespacesSeen => "seen".into(),
            _ => return,
        });
    }
}

/// An enrolment that runs.
pub(crate) struct Running {
    pub(crate) proxy: Arc<TellingProxy>,
    pub(crate) announcements: Arc<Announcements>,
    pub(crate) log: Log,
    pub(crate) desired: watch::Sender<Option<Arc<[PodSpec]>>>,
    pub(crate) states: watch::Receiver<Arc<[PodState]>>,
    pub(crate) hand_over: HandOver,
    pub(crate) kept: KeptConnections,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(config: Config, log: &Log) -> Self {
        Self::with(config, log, false)
    }

    /// And waits until it has captured these.
    pub(crate) async fn capturing(config: Config, log: &Log, pods: &[PodSpec]) -> Self {
        let mut running = Self::start(config, log);
        running.want(pods);
        let uids: Vec<_> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        running.until_in(&uids).await;
        running
    }

    /// With a proxy that behaves as if it were another process.
    pub(crate) fn start_apart(config: Config, log: &Log) -> Self {
        Self::with(config, log, true)
    }

    fn with(config: Config, log: &Log, apart: bool) -> Self {
        let sockets = Sockets::new().unwrap();
        let proxy = TellingProxy::with(&sockets, log, apart);
        Self::start_both(config, log, sockets, proxy.clone(), proxy)
    }

    /// With a proxy whose listeners share their ports with whoever shares them too.
    #[allow(dead_code, reason = "of one test alone")]
    pub(crate) fn start_sharing(config: Config, log: &Log) -> Self {
        let sockets = Sockets::new().unwrap().sharing_ports(true);
        let proxy = TellingProxy::with(&sockets, log, false);
        Self::start_both(config, log, sockets, proxy.clone(), proxy)
    }

    /// Another proxy is asked; the telling one serves nothing of itself.
    #[allow(dead_code, reason = "of one test alone")]
    pub(crate) fn start_with(config: Config, log: &Log, asked: Arc<dyn Proxy>) -> Self {
        let sockets = Sockets::new().unwrap();
        let proxy = TellingProxy::with(&sockets, log, false);
        Self::start_both(config, log, sockets, proxy, asked)
    }

    fn start_both(config: Config, log: &Log, sockets: Sockets, proxy: Arc<TellingProxy>, asked: Arc<dyn Proxy>) -> Self {
        let announcements = Arc::new(Announcements {
            log: log.clone(),
            namespaces: Mutex::default(),
        });
        let enrolment = Enrolment::new(config, sockets, asked, announcements.clone(), Arc::new(Observed(log.clone()))).unwrap();
        let states = enrolment.states();
        let (hand_over, kept) = (enrolment.hand_over(), enrolment.kept());
        let (desired, receiver) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(enrolment.run(receiver, async {
            let _ = stopped.await;
        }));
        Self {
            proxy,
            announcements,
            log: log.clone(),
            desired,
            states,
            hand_over,
            kept,
            stop: Some(stop),
            task,
        }
    }

    pub(crate) fn want(&self, pods: &[PodSpec]) {
        self.desired.send(Some(pods.into())).unwrap();
    }

    /// Waits until what is published is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&[PodState]) -> bool) {
        let waited = timeout(Duration::from_secs(20), self.states.wait_for(|states| wanted(states)))
            .await
            .is_ok();
        if !waited {
            panic!("waited for {what} in vain: {:#?}\n{:#?}", self.states.borrow(), self.log.lines());
        }
    }

    pub(crate) async fn until_in(&mut self, uids: &[&str]) {
        self.until("capture", |states| uids.iter().all(|uid| is_in(states, uid))).await;
    }

    pub(crate) async fn until_logged(&self, line: &str) {
        for _ in 0..2000 {
            if self.log.count(line) > 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("waited for {line:?} in vain: {:#?}", self.log.lines());
    }

    pub(crate) async fn stop(mut self) -> Log {
        drop(self.stop.take());
        (&mut self.task).await.unwrap();
        self.log.clone()
    }

    /// The process is killed.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.proxy.die();
    }
}

pub(crate) fn is_in(states: &[PodState], uid: &str) -> bool {
    states
        .iter()
        .any(|s| s.spec.uid.as_str() == uid && matches!(s.state, State::In { .. }))
}

pub(crate) fn namespace_of(states: &[PodState], uid: &str) -> Option<NetnsId> {
    states.iter().find(|s| s.spec.uid.as_str() == uid).and_then(|s| s.namespace)
}
