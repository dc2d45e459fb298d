//! The driver: sees, asks [`Pods`] what is to be done, does it.

mod orders;
mod perform;
mod places;
mod watch;

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambient_core::{Observer, observe::Event};
use tokio::{
    sync::{
        mpsc, oneshot,
        watch::{Receiver, Sender, channel},
    },
    time::{Instant as Tick, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};

pub use self::orders::{HandOver, HandOverError, KeptConnections};
use self::{
    orders::{ORDERS, Order},
    perform::Hands,
    places::{Places, Scan},
    watch::Changes,
};
use crate::{
    Announce, PodSpec, Proxy,
    later::FAR,
    linux::{MOST_HELD, NetnsError, NetnsId, Sockets},
    plan::Options,
    pods::{Action, Cause, Done, NotGiven, Notice, Output, PodState, Pods, Step, Timing},
};

/// Settings of an [`Enrolment`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node: what a node of this name has left behind is taken away, what another has in force is not.
    pub node: Arc<str>,
    /// Where the runtime gives names to the network namespaces of pods, such as `/run/netns`.
    pub netns_dir: PathBuf,
    /// A `/proc` of the PID namespace in which pods' processes can be seen: their namespaces are found without a name, and told
    /// from each other. `None`, as by default, does without.
    pub proc: Option<PathBuf>,
    /// What is captured, of pods that ask nothing else.
    pub options: Options,
    /// That directory is read so often at most, and no more often than each millisecond: while a pod's namespace is not found, and
    /// when mounts change. What nobody tells of, as a name that is a link, is found within 5 s.
    pub scan_every: Duration,
    /// A captured pod is verified so often, or up to a fifth sooner together with others, besides whenever the kernel tells of a
    /// change. Where it has told of none only the listeners are looked at, as of them it does not tell.
    pub verify_every: Duration,
    /// So often a verification makes the connections of a proof anew, where the proxy is in this process: those of one family, and
    /// the next time those of the other; and half as often, whatever the kernel has told, it lists everything. Connections show what
    /// no listing and no event does: a proxy that takes nothing any more, and what is done to packets by other means than nftables and routes,
    /// such as BPF. After a change in the namespace that the kernel has told of, as of somebody else's rules, all of them are made
    /// at once, or with the next verification where that was done within the last second. To a proxy of another process they are
    /// made only when its pod is captured or repaired: they would stand in its log.
    pub prove_every: Duration,
    /// A step of the proxy or of the announcement that takes longer has failed, and is tried again.
    pub patience: Duration,
    /// What becomes of the connections that a pod has open when it joins.
    pub existing: ExistingConnections,
    /// So many of them are kept of a pod; those beyond are reset, and the pod's state says so ([`PodState::said`]). No more of a pod's
    /// connections is held in memory at a time either.
    pub kept_most: usize,
    /// What is captured of a pod that leaves may go on so long, and is reset then.
    pub drain: Duration,
    /// Let a pod's TCP go around the mesh, in plaintext and asked of no policy, whenever its capture cannot be upheld, and until
    /// a new pod is captured. Without it (the default) that TCP is refused with a reset. Whether or not: while no process
    /// enrols, the rules of captured pods stand, and their TCP is refused. What rules of others translate of a captured pod
    /// [`Options::yields`] says.
    pub open_when_unproven: bool,
    /// Let all pods go at the end. Without it their rules stay, and their traffic is refused until the next process serves
    /// them.
    pub release_at_end: bool,
}

impl Config {
    /// IPv4, IPv6 and DNS; namespaces looked for every 200 ms, captures verified every 5 s, by connections every 30 s, steps
    /// given 10 s; existing connections are kept, 65,536 of a pod, captured ones given 30 s when a pod leaves; refused what is not
    /// proven; rules stay at the end.
    pub fn new(node: &str, netns_dir: impl Into<PathBuf>) -> Self {
        Self {
            node: node.into(),
            netns_dir: netns_dir.into(),
            proc: None,
            options: Options::default(),
            scan_every: Duration::from_millis(200),
            verify_every: Duration::from_secs(5),
            prove_every: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            existing: ExistingConnections::default(),
            kept_most: MOST_HELD,
            drain: Duration::from_secs(30),
            open_when_unproven: false,
            release_at_end: false,
        }
    }
}

/// What becomes of the connections that a pod has open when it joins the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExistingConnections {
    /// They go on until they end, outside of the mesh: unencrypted, and asked of no policy. They are listed
    /// ([`PodState::kept`]) and can be closed ([`Enrolment::kept`]). Of one pod no more than [`Config::kept_most`].
    #[default]
    Keep,
    /// They are reset once new ones are captured.
    Close,
}

/// Keeps the pods that are meant to be in the mesh captured, and no others.
///
/// For each: the proxy listens, then the rules come, then it is proven, then it is announced. Whatever of it is found
/// missing later is mended; what cannot be mended is refused. On the way out: the announcement is taken back, then new
/// connections are captured no more, then those that are have time to end, then the proxy cuts what is left, then all that is
/// ours goes, then the proxy lets go.
pub struct Enrolment {
    config: Config,
    pods: Pods,
    places: Places,
    hands: Arc<Hands>,
    observer: Arc<dyn Observer>,
    states: Sender<Arc<[PodState]>>,
    orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    /// Whether it is known what an earlier process has announced.
    knows_announced: bool,
    /// Who waits for a namespace that was handed over to be closed.
    handing_over: BTreeMap<NetnsId, Vec<HandingOver>>,
    /// Namespaces could not be looked for at the last look.
    blind: bool,
    /// Whether a pod was proven since states were told, and when that was.
    proven: bool,
    told: Option<Instant>,
}

type HandingOver = (Box<PodSpec>, oneshot::Sender<Result<(), HandOverError>>);

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolment").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Enrolment {
    /// Prepares to run; changes nothing. `sockets` also proves captures.
    ///
    /// # Errors
    /// When the own network namespace, which is never touched, cannot be told.
    pub fn new(
        config: Config,
        sockets: Sockets,
        proxy: Arc<dyn Proxy>,
        announce: Arc<dyn Announce>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NetnsError> {
        let timing = Timing {
            verify_every: config.verify_every,
            drain: config.drain,
            open: config.open_when_unproven,
            ..Timing::default()
        };
        Ok(Self {
            pods: Pods::new(timing),
            places: Places::new(config.netns_dir.clone(), config.proc.clone(), config.node.clone())?,
            hands: Arc::new(Hands {
                node: config.node.clone(),
                options: config.options.clone(),
                sockets,
                proxy,
                announce,
                patience: config.patience,
                prove_every: config.prove_every,
                existing: config.existing,
                kept_most: config.kept_most,
            }),
            observer,
            states: channel(Arc::from([])).0,
            orders: mpsc::channel(ORDERS),
            knows_announced: false,
            handing_over: BTreeMap::new(),
            blind: false,
            proven: false,
            told: None,
            config,
        })
    }

    /// How each pod stands, as it changes.
    pub fn states(&self) -> Receiver<Arc<[PodState]>> {
        self.states.subscribe()
    }

    /// What to do where a pod's capture cannot be announced, or that be taken back: [`Announce::remedy`].
    pub fn remedy(&self) -> &'static str {
        self.hands.announce.remedy()
    }

    /// Hands namespaces of new pods over while it runs.
    pub fn hand_over(&self) -> HandOver {
        HandOver(self.orders.0.clone())
    }

    /// Closes connections that were kept while it runs.
    pub fn kept(&self) -> KeptConnections {
        KeptConnections(self.orders.0.clone())
    }

    /// Runs until `stop` ends. While `desired` holds `None` nothing is touched.
    ///
    /// At the end steps under way are waited for, for [`Config::patience`] at most; [`Config::drain`] longer where pods are let
    /// go.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time and I/O (`enable_all`).
    ///
    /// # Cancel safety
    /// Dropping the future is like a kill: rules stay, and the next process takes them over.
    pub async fn run(mut self, mut desired: Receiver<Option<Arc<[PodSpec]>>>, stop: impl Future<Output = ()>) {
        let changes = Changes::default();
        let (ended, mut endings) = mpsc::unbounded_channel::<Ended>(); // one for each namespace at most
        let mut under_way = 0usize;
        let mut scans = each(self.config.scan_every);
        let mut scan: Option<tokio::task::JoinHandle<Scan>> = None;
        let mut source_lives = true;
        self.places.listen();
        let mut stop = std::pin::pin!(stop);
        desired.mark_changed();

        loop {
            let begun = self.act(&changes, &ended);
            under_way += begun.steps;
            if begun.more {
                // What else is done on this thread waits no longer than for so many looks.
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self.pods.timeout();
            tokio::select! {
                () = &mut stop => break,
                changed = desired.changed(), if source_lives => {
                    source_lives = changed.is_ok();
                    let now_desired = desired.borrow_and_update().clone();
                    self.desire(now_desired);
                }
                Some(end) = endings.recv() => {
                    under_way -= 1;
                    self.settle(&end);
                }
                Some(order) = self.orders.1.recv() => self.take_order(order, &changes),
                () = changes.wait() => changes.take().into_iter().for_each(|id| self.pods.handle_changed(id)),
                () = self.places.change() => (),
                // A pod that was just told of does not wait for the time of the next look.
                () = std::future::ready(()), if scan.is_none() && self.pods.wants_look() => scan = Some(self.look()),
                _ = scans.tick(), if scan.is_none() => {
                    if self.places.is_due(self.pods.wants_addresses()) {
                        scan = Some(self.look());
                    }
                }
                seen = finished(&mut scan) => {
                    scan = None;
                    self.take_look(seen);
                }
                () = sleep_until(wake.map_or_else(far, Tick::from_std)), if wake.is_some() => (),
            }
        }
        let drain = if self.config.release_at_end {
            self.config.drain
        } else {
            Duration::ZERO
        };
        let _ = timeout(
            self.config.patience.saturating_add(drain),
            self.end(&changes, &ended, &mut endings, under_way),
        )
        .await;
    }

    /// Waits for what is under way, and lets the pods go if so configured.
    async fn end(
        &mut self,
        changes: &Changes,
        ended: &mpsc::UnboundedSender<Ended>,
        endings: &mut mpsc::UnboundedReceiver<Ended>,
        mut under_way: usize,
    ) {
        if self.config.release_at_end {
            self.desire(Some(Arc::from([])));
        }
        loop {
            if self.config.release_at_end {
                let begun = self.act(changes, ended);
                under_way += begun.steps;
                if begun.more {
                    continue;
                }
            }
            if under_way == 0 && (!self.config.release_at_end || self.pods.is_empty()) {
                return;
            }
            let wake = self.pods.timeout().filter(|_| self.config.release_at_end);
            tokio::select! {
                Some(end) = endings.recv() => {
                    under_way -= 1;
                    self.settle(&end);
                }
                () = sleep_until(wake.map_or_else(far, Tick::from_std)), if wake.is_some() => (),
            }
        }
    }

    /// Takes what is meant to be in the mesh; what an earlier process has announced is known before that.
    fn desire(&mut self, desired: Option<Arc<[PodSpec]>>) {
        if desired.is_some()
            && !self.knows_announced
            && let Some(announced) = self.hands.announce.announced()
        {
            self.knows_announced = true;
            self.pods.handle_announced(now(), announced);
        }
        self.pods.handle_desired(now(), desired);
    }

    /// Begins what is to be done, as much as may be done at once, and tells what is to be told.
    fn act(&mut self, changes: &Changes, ended: &mpsc::UnboundedSender<Ended>) -> Begun {
        let mut begun = Begun::default();
        for left in (0..AT_ONCE).rev() {
            match self.pods.poll(now()) {
                Some(Output::Tell(notice)) => self.tell(&notice),
                Some(Output::Do(action)) => begun.steps += usize::from(self.begin(action, changes, ended.clone())),
                None => break,
            }
            begun.more = left == 0;
        }
        self.proven |= self.pods.proven();
        let told = self.told.get_or_insert_with(now);
        // That one of many pods is proven anew is told with the others.
        let proofs = self.proven && now().saturating_duration_since(*told) >= self.config.verify_every;
        if !self.pods.changed() && !proofs {
            return begun;
        }
        self.proven = false;
        *told = now();
        let states = self.pods.states();
        self.states.send_if_modified(|published| {
            let differs = published[..] != states[..];
            if differs {
                *published = states.into();
            }
            differs
        });
        begun
    }

    /// Whether its end is still to be told of.
    fn begin(&mut self, action: Action, changes: &Changes, ended: mpsc::UnboundedSender<Ended>) -> bool {
        let (namespace, step) = (action.namespace, action.step);
        let hands = self.hands.clone();
        let Some(room) = self.places.room(namespace, changes) else {
            if let Some(elsewhere) = hands.without_a_room(&action) {
                tokio::spawn(async move {
                    let done = elsewhere.await;
                    let _ = ended.send(Ended { namespace, step, done });
                });
                return true;
            }
            let done = Done::Failed("its namespace is not held open".into());
            let _ = ended.send(Ended { namespace, step, done });
            return true;
        };
        if let Some(done) = hands.at_a_glance(&action, &room) {
            // Most that is ever done is this: no task, no message.
            self.pods.handle_done(now(), wall(), namespace, step, done);
            return false;
        }
        tokio::spawn(async move {
            // A task of its own, so that a panic of the embedder's is one pod's failure.
            let work = tokio::spawn(async move { hands.perform(&action, &room).await });
            let done = work.await.unwrap_or_else(|e| Done::Failed(e.to_string().into()));
            let _ = ended.send(Ended { namespace, step, done });
        });
        true
    }

    fn settle(&mut self, end: &Ended) {
        if end.step == Step::Clear && matches!(end.done, Done::Well(_)) {
            self.places.cleared(end.namespace);
        }
        // Captured it is refused nothing, and goes around nothing.
        if matches!(end.step, Step::Close | Step::Enforce) && end.done != Done::Runs {
            self.answer(end.namespace, &end.done);
        }
        self.pods.handle_done(now(), wall(), end.namespace, end.step, end.done.clone());
        if matches!(end.step, Step::Prove | Step::Verify)
            && let Some((strangers, segments)) = self.places.beside(end.namespace)
        {
            self.pods.handle_beside(end.namespace, strangers, segments);
        }
        if !self.pods.is_paired(end.namespace) {
            self.answer(end.namespace, &Done::Failed("its pod has left".into()));
            self.places.leave(end.namespace);
        }
    }

    fn take_order(&mut self, order: Order, changes: &Changes) {
        match order {
            Order::Take { pod, namespace, answer } => {
                let id = namespace.id();
                if self.places.is_own(id) {
                    let why = format!("{} is the node's own", namespace.path().display());
                    let _ = answer.send(Err(HandOverError::Refused { pod, why }));
                    return;
                }
                // Its runtime has made it another sandbox, as it does when a plugin has refused the one before.
                let before = self.pods.namespace_of(&pod.uid).filter(|before| *before != id);
                if let Some(before) = before.filter(|before| self.places.take_back(*before)) {
                    self.pods.handle_gone(now(), before);
                }
                if let Err(error) = self.pods.handle_given(now(), id, &pod) {
                    let passes = match &error {
                        NotGiven::Passing(_) => true,
                        // That its name is gone the kernel has told, or is about to tell.
                        NotGiven::Elsewhere(before, _) => !self.places.is_named_still(*before),
                        NotGiven::Taken(_) => false,
                    };
                    let why = error.to_string();
                    let _ = answer.send(Err(match passes {
                        true => HandOverError::Passing { pod, why },
                        false => HandOverError::Refused { pod, why },
                    }));
                    return;
                }
                self.places.give(namespace, &pod.addresses);
                if self.config.open_when_unproven || self.pods.is_closed(id) {
                    let _ = answer.send(Ok(()));
                } else {
                    self.handing_over.entry(id).or_default().push((pod, answer));
                }
            }
            Order::Close { uid, connections, answer } => {
                let room = self.pods.namespace_of(&uid).and_then(|id| self.places.room(id, changes));
                let hands = self.hands.clone();
                tokio::spawn(async move {
                    let closed = match room {
                        Some(room) => hands.close_kept(&room, connections).await,
                        None => 0,
                    };
                    let _ = answer.send(closed);
                });
            }
        }
    }

    /// Begins a look at the namespaces.
    fn look(&mut self) -> tokio::task::JoinHandle<Scan> {
        let again = self.pods.look_begins();
        self.places.scan(again, |id| self.pods.is_paired(id))
    }

    /// Takes what a look has found.
    fn take_look(&mut self, scan: Option<Scan>) {
        let seen = scan.and_then(|scan| self.places.take(scan));
        let unseen = self.places.unseen();
        let in_part = seen.is_none() || self.places.is_short();
        self.tell_of_sight(unseen.as_ref().filter(|_| in_part));
        self.pods.handle_unseen(now(), unseen);
        if in_part {
            self.pods.handle_shortage(now());
        }
        if let Some(seen) = seen {
            self.pods.handle_namespaces(now(), seen);
        }
    }

    /// Tells whoever handed a namespace over how it was closed.
    fn answer(&mut self, namespace: NetnsId, done: &Done) {
        for (pod, answer) in self.handing_over.remove(&namespace).unwrap_or_default() {
            let _ = answer.send(match done {
                Done::Failed(why) => Err(HandOverError::Open { pod, why: why.to_string() }),
                _ => Ok(()),
            });
        }
    }

    /// Tells when namespaces cannot be looked for any more, and when they can again.
    fn tell_of_sight(&mut self, unseen: Option<&Cause>) {
        match unseen {
            Some(why) if !self.blind => self.observer.observe(&Event::NamespacesUnseen { why: &why.to_string() }),
            None if self.blind => self.observer.observe(&Event::NamespacesSeen),
            _ => {}
        }
        self.blind = unseen.is_some();
    }

    fn tell(&self, notice: &Notice) {
        match notice {
            Notice::Captured(pod) => self.observer.observe(&Event::PodCaptured { pod: &pod.uid }),
            Notice::Repaired(pod, repair) => self.observer.observe(&Event::PodRepaired {
                pod: &pod.uid,
                what: &repair.what,
                held: repair.held,
                noticed: repair.noticed,
                repaired: repair.repaired,
                around: repair.around,
            }),
            Notice::Refused(pod, reason) => self.observer.observe(&Event::PodRefused { pod: &pod.uid, reason }),
            Notice::Released(pod) => self.observer.observe(&Event::PodReleased { pod, lost: false }),
            Notice::Lost(pod) => self.observer.observe(&Event::PodReleased { pod, lost: true }),
        }
    }
}

/// What was begun, and whether more is to be.
#[derive(Debug, Default)]
struct Begun {
    steps: usize,
    more: bool,
}

#[derive(Debug)]
struct Ended {
    namespace: NetnsId,
    step: Step,
    done: Done,
}

/// Waits for a scan, for ever where there is none; `None` if it broke.
async fn finished(scan: &mut Option<tokio::task::JoinHandle<Scan>>) -> Option<Scan> {
    match scan {
        Some(running) => running.await.ok(),
        None => std::future::pending().await,
    }
}

fn each(pause: Duration) -> Interval {
    let mut each = interval(pause.clamp(Duration::from_millis(1), FAR));
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    each
}

fn now() -> Instant {
    Tick::now().into_std()
}

fn far() -> Tick {
    Tick::now() + Duration::from_secs(3600)
}

#[expect(clippy::disallowed_methods, reason = "since when a pod is captured is told to people")]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// Most of it takes some microseconds.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_may_be_asked_for_all_the_time_or_never() {
        let mut all_the_time = each(Duration::ZERO);
        let begun = all_the_time.tick().await;
        assert_eq!(all_the_time.tick().await - begun, Duration::from_millis(1));
        each(Duration::MAX).tick().await;
    }
}
