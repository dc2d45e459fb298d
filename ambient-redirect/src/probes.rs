//! What processes of the node's own namespace send to its pods: the kubelet's probes, which must reach a pod whatever its
//! policies say.
//!
//! The node's namespace gives such connections a source that Istio reserves ([`PROBE_SOURCES`]), and the rules in a pod's
//! namespace let that source through to the application ([`Options::probes`](crate::plan::Options::probes)). Only what a
//! socket of the node's own namespace sends gets it: what is forwarded through the node does not, and what is forwarded and
//! bears that source already goes no further. Which addresses are pods' is held here, by pod; the kernel's sets hold the
//! addresses alone, so that a pod that leaves late takes nothing from the one that has its address now.
//!
//! [`HostProbes`] keeps it so, in the namespace that it is made in: as a rule the one that the kubelet is in.
//!
//! What goes by an address that a network plugin translates, or takes past the node's netfilter, does not get the source;
//! neither does what another machine sends through the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ambient_core::PodUid;
use tokio::{
    sync::{
        oneshot,
        watch::{Receiver, Sender, channel},
    },
    task::{JoinHandle, spawn_blocking},
    time::{Instant as Tick, sleep_until, timeout},
};

use crate::{
    linux::{ApplyError, Netns, NodeSide, ProbeDifference, Told},
    netlink::Events,
    plan::{Action, Chain, ChainKind, Hook, IpFamily, Match, PROXY_MARK, Protocol, Rule, Set, Table},
    pods::PodState,
};

#[cfg(doc)]
use crate::plan::PROBE_SOURCES;

/// The name of the table in the node's namespace.
pub const TABLE: &str = "ambient-probes";

/// Settings of [`HostProbes`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the node, as in [`crate::Config::node`].
    pub node: Arc<str>,
    /// Whether pods' IPv6 is captured.
    pub ipv6: bool,
    /// The rules are verified so often, besides whenever the kernel tells of a change.
    pub verify_every: Duration,
    /// Take them away at the end. Without it they stay, so that probes reach pods while the next process comes.
    pub release_at_end: bool,
}

impl Config {
    /// IPv6 as well; verified every 5 s; the rules stay at the end.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            ipv6: true,
            verify_every: Duration::from_secs(5),
            release_at_end: false,
        }
    }
}

/// How it stands with the node's own rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbesState {
    /// Whether they stood as they should when they were last looked at.
    pub in_force: bool,
    /// How many addresses of pods they hold.
    pub addresses: usize,
    /// How often they were found changed, and mended.
    pub repairs: u64,
    /// When that was last, and what was mended.
    pub last_repair: Option<(SystemTime, String)>,
    /// Why they cannot be upheld.
    pub error: Option<String>,
}

/// The table that gives probes of these addresses their source.
///
/// ```
/// let table = ambient_redirect::probes::table(["10.0.0.2".parse()?], true);
/// assert!(table.to_string().contains("ip daddr @pods-v4 oifname != lo meta skuid >= 0"));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn table(pods: impl IntoIterator<Item = IpAddr>, ipv6: bool) -> Table {
    use Match as M;
    let families: &[IpFamily] = if ipv6 { &[IpFamily::V4, IpFamily::V6] } else { &[IpFamily::V4] };
    let tcp = M::Protocol(Protocol::Tcp);
    let pods: BTreeSet<IpAddr> = pods.into_iter().map(|ip| ip.to_canonical()).collect();
    let set = |family: &IpFamily| Set {
        name: set_name(*family),
        family: *family,
        addresses: pods
            .iter()
            .copied()
            .filter(|ip| ip.is_ipv6() == (*family == IpFamily::V6))
            .collect(),
    };
    let to_pods = |family: IpFamily| M::DestinationIn(set_name(family), family);
    let probes = |family: &IpFamily| {
        Rule::new(
            // The proxy's own, which prove what comes in, are to be redirected.
            [tcp, to_pods(*family), M::NotToLoopback, M::OfOwnSocket, M::NotMark(PROXY_MARK)],
            Action::SourceNat(family.probe_source()),
            "what this node's processes send to its pods",
        )
    };
    let strangers = |family: &IpFamily| {
        Rule::new(
            [tcp, M::Source(family.probe_source()), to_pods(*family)],
            Action::Drop,
            "what others send in the guise of a probe",
        )
    };
    Table {
        name: TABLE,
        sets: families.iter().map(set).collect(),
        chains: vec![
            // Before others translate sources: the first that does it decides.
            Chain::new(Hook::Postrouting, ChainKind::Nat, 99, families.iter().map(probes).collect()),
            Chain::new(Hook::Forward, ChainKind::Filter, 0, families.iter().map(strangers).collect()),
        ],
    }
}

/// Whose probes are let through: the addresses of pods whose namespace is known, and of those that `present` holds already
/// from before although their namespace is yet to be found. Each belongs to the pod that it is captured for, whoever leaves.
pub fn wanted(pods: &[PodState], present: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, PodUid> {
    let mut owners = BTreeMap::new();
    let (placed, waiting): (Vec<_>, Vec<_>) = pods.iter().partition(|p| p.namespace.is_some());
    for (pods, known) in [(placed, true), (waiting, false)] {
        for pod in pods {
            let addresses = pod.spec.addresses.iter().map(IpAddr::to_canonical);
            for ip in addresses.filter(|ip| known || present.contains(ip)) {
                owners.entry(ip).or_insert_with(|| pod.spec.uid.clone());
            }
        }
    }
    owners
}

/// Keeps the rules in the node's namespace as they should be, and no longer than there are pods.
pub struct HostProbes {
    config: Config,
    home: Arc<Netns>,
    side: Arc<Mutex<Option<NodeSide>>>,
    kernel: Apart,
    states: Sender<ProbesState>,
}

impl std::fmt::Debug for HostProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostProbes").field("config", &self.config).finish_non_exhaustive()
    }
}

impl HostProbes {
    /// Puts the rules in force in the calling thread's namespace: without pods, or with those that an earlier process of this
    /// node has left there. Blocks for a millisecond.
    ///
    /// # Errors
    /// When a table of that name is somebody else's, or the kernel refuses. Nothing is changed then, and
    /// [`Options::probes`](crate::plan::Options::probes) is not to be set.
    pub fn prepare(config: Config) -> Result<Self, ApplyError> {
        let home = Arc::new(Netns::current()?);
        let mut side = NodeSide::open(&home, &config.node)?;
        let present = side.addresses()?;
        let addresses = present.len();
        side.apply(&table(present, config.ipv6))?;
        let state = ProbesState {
            in_force: true,
            addresses,
            ..ProbesState::default()
        };
        Ok(Self {
            config,
            home,
            side: Arc::new(Mutex::new(Some(side))),
            kernel: Apart::new(LONGEST),
            states: channel(state).0,
        })
    }

    /// Takes away what an earlier process of this node has left in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(node: &str) -> Result<(), ApplyError> {
        NodeSide::open(&Netns::current()?, node)?.clear()
    }

    /// How it stands, as it changes.
    pub fn states(&self) -> Receiver<ProbesState> {
        self.states.subscribe()
    }

    /// Follows the pods, as [`Enrolment::states`](crate::Enrolment::states) tells of them, until `stop` ends or nobody tells
    /// any more. A kernel that does not answer is told of after 10 s, and asked again as soon as it does.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rules as they are; the next process takes them over.
    pub async fn run(mut self, mut pods: Receiver<Arc<[PodState]>>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut told = self.listen().await;
        let mut upkeep = Upkeep::new(now());
        pods.mark_changed();
        loop {
            let mut look = false;
            tokio::select! {
                () = &mut stop => break,
                changed = pods.changed() => if changed.is_err() {
                    break;
                },
                changed = heard(&mut told) => {
                    if !changed {
                        told = None;
                    }
                    look = true;
                }
                () = sleep_until(Tick::from_std(upkeep.due())) => look = true,
            }
            if look {
                // Whoever keeps changing the node's rules costs no more than that.
                sleep_until(Tick::from_std(upkeep.last + LEAST)).await;
                if told.is_none() {
                    told = self.listen().await;
                }
            }
            let states = pods.borrow_and_update().clone();
            upkeep.pods(&states);
            // Most of what is told of pods is nothing that changes who they are.
            if !look && upkeep.holds(&states) {
                continue;
            }
            self.keep(&mut upkeep, states).await;
        }
        if self.config.release_at_end {
            let cleared = self.with(|side| side.clear()).await;
            self.states.send_modify(|state| {
                state.in_force = false;
                state.error = cleared.err();
            });
        }
    }

    /// Brings the rules to what the pods want, or takes them away where there are none.
    async fn keep(&mut self, upkeep: &mut Upkeep, pods: Arc<[PodState]>) {
        let (ipv6, idle, known) = (self.config.ipv6, upkeep.is_idle(now()), upkeep.known);
        let done = self
            .with(move |side| {
                if idle {
                    side.clear()?;
                    return Ok((Some(BTreeMap::new()), 0, Vec::new()));
                }
                let present = side.addresses()?;
                // As long as nobody has told which pods there are, what is there stays.
                let owners = known.then(|| wanted(&pods, &present));
                let addresses = owners.as_ref().map_or(present, |owners| owners.keys().copied().collect());
                let count = addresses.len();
                let put = side.apply(&table(addresses, ipv6))?;
                Ok((owners, count, put))
            })
            .await;
        upkeep.last = now();
        match done {
            Ok((owners, addresses, put)) => {
                let mended = upkeep.mended(&put);
                self.publish(|state| {
                    (state.in_force, state.addresses, state.error) = (!idle, addresses, None);
                    if !mended.is_empty() {
                        state.repairs += 1;
                        state.last_repair = Some((wall(), list(&mended)));
                    }
                });
                upkeep.verify_at = upkeep.last + self.config.verify_every;
                upkeep.owners = owners.or_else(|| upkeep.owners.take());
                upkeep.cleared = idle;
            }
            Err(error) => {
                self.publish(|state| (state.in_force, state.error) = (false, Some(error)));
                upkeep.verify_at = upkeep.last + AGAIN.min(self.config.verify_every);
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut ProbesState)) {
        self.states.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }

    /// Runs blocking work with the namespace's sockets.
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut NodeSide) -> Result<T, ApplyError> + Send + 'static,
    ) -> Result<T, String> {
        let (home, side, node) = (self.home.clone(), self.side.clone(), self.config.node.clone());
        let work = move || {
            let mut side = side.lock().unwrap_or_else(PoisonError::into_inner);
            let mut open = match side.take() {
                Some(open) => open,
                None => NodeSide::open(&home, &node)?,
            };
            let done = work(&mut open);
            // After an error an answer may still be on its way: a new socket cannot mistake it for its own.
            if done.is_ok() {
                *side = Some(open);
            }
            done
        };
        self.kernel.run(work).await?.map_err(|e: ApplyError| e.to_string())
    }

    /// Subscribes to changes; `None` where that cannot be had, so that the timer must do.
    async fn listen(&mut self) -> Option<Told> {
        let home = self.home.clone();
        let events = self.kernel.run(move || home.run(Events::nftables)).await;
        Told::new(events.ok()?.ok()?.ok()?).ok()
    }
}

/// Work with the kernel on threads of its own, of which there is never more than one: what takes too long does not end by that.
#[derive(Debug)]
struct Apart {
    longest: Duration,
    /// Work that nobody waits for any more.
    late: Option<JoinHandle<()>>,
}

impl Apart {
    fn new(longest: Duration) -> Self {
        Self { longest, late: None }
    }

    /// What comes of some work, begun once all work before it has ended.
    ///
    /// Cancel safe, but that a thread may be left which nobody knows of.
    async fn run<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let silent = |_| format!("the kernel has not answered within {:?}", self.longest);
        if let Some(late) = &mut self.late {
            // Whether it has ended well does not matter any more.
            let _ = timeout(self.longest, late).await.map_err(silent)?;
            self.late = None;
        }
        let (answer, answered) = oneshot::channel();
        let thread = spawn_blocking(move || drop(answer.send(work())));
        match timeout(self.longest, answered).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(thread.await.err().map_or_else(String::new, |e| e.to_string())),
            Err(elapsed) => {
                let why = silent(elapsed);
                self.late = Some(thread);
                Err(why)
            }
        }
    }
}

/// What is known between two looks.
#[derive(Debug)]
struct Upkeep {
    /// Which addresses were put there last, and for whom; `None` before it was told which pods there are.
    owners: Option<BTreeMap<IpAddr, PodUid>>,
    began: Instant,
    /// Whether there was ever a pod.
    known: bool,
    /// Whether there is none now.
    empty: bool,
    /// Whether nothing is there, as it should be.
    cleared: bool,
    last: Instant,
    verify_at: Instant,
}

impl Upkeep {
    fn new(now: Instant) -> Self {
        Self {
            owners: None,
            began: now,
            known: false,
            empty: true,
            cleared: false,
            last: now,
            verify_at: now,
        }
    }

    fn pods(&mut self, pods: &[PodState]) {
        self.empty = pods.is_empty();
        self.known |= !self.empty;
    }

    /// Whether there is no pod, and it is not only that none is known yet.
    fn is_idle(&self, now: Instant) -> bool {
        self.empty && (self.known || now >= self.began + IDLE)
    }

    /// Whether what these pods want is what was put there last.
    fn holds(&self, pods: &[PodState]) -> bool {
        let Some(owners) = self.owners.as_ref().filter(|_| self.cleared == self.empty) else {
            return false;
        };
        // Nobody's addresses but these are there, so that nobody who waits gains by others.
        let present = owners.keys().copied().collect();
        wanted(pods, &present) == *owners
    }

    /// When to look although nothing happens.
    fn due(&self) -> Instant {
        match self.empty && !self.known && !self.cleared {
            true => self.verify_at.min(self.began + IDLE),
            false => self.verify_at,
        }
    }

    /// What of that which was put had been there before and was lost, or had been put there by somebody else.
    fn mended(&self, put: &[ProbeDifference]) -> Vec<ProbeDifference> {
        let Some(before) = &self.owners else { return Vec::new() };
        let lost = |difference: &&ProbeDifference| match difference {
            // Without pods the table goes, and comes back for the next.
            ProbeDifference::Table => !self.cleared,
            ProbeDifference::Missing(ip) => before.contains_key(ip),
            ProbeDifference::Stray(ip) => !before.contains_key(ip),
        };
        put.iter().filter(lost).cloned().collect()
    }
}

/// Waits for a change; for ever where none can be told. `false` when no more will be.
async fn heard(told: &mut Option<Told>) -> bool {
    match told {
        Some(told) => told.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

fn list(differences: &[ProbeDifference]) -> String {
    let some: Vec<String> = differences.iter().take(TOLD).map(ToString::to_string).collect();
    match differences.len().saturating_sub(TOLD) {
        0 => some.join(", "),
        more => format!("{}, and {more} more", some.join(", ")),
    }
}

fn set_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "pods-v4",
        IpFamily::V6 => "pods-v6",
    }
}

fn now() -> Instant {
    Tick::now().into_std()
}

#[expect(clippy::disallowed_methods, reason = "when something was mended is told to people")]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// Between two looks that events cause.
const LEAST: Duration = Duration::from_millis(100);
/// Work with the kernel takes a millisecond, unless it is at work on what others ask of it.
const LONGEST: Duration = Duration::from_secs(10);
/// After a failure it is tried again so much later.
const AGAIN: Duration = Duration::from_secs(1);
/// If for so long no pod was ever told of, there are none. A process that begins knows of none for a moment.
const IDLE: Duration = Duration::from_secs(10);
/// Differences that are told.
const TOLD: usize = 5;

#[cfg(test)]
mod tests;
