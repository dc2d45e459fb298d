//! The proxy's end: does what somebody else's agent says.

use std::{
    collections::hash_map::RandomState,
    future::Future,
    hash::{BuildHasher, Hasher},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_core::PodUid;
use tokio::{
    sync::{
        mpsc,
        watch::{Receiver, Sender, channel},
    },
    task::JoinError,
    time::{Instant as Tick, sleep_until, timeout},
};

use super::{
    Allowed,
    wire::WorkloadInfo,
    workloads::{Given, Output, Readiness, Timing, Workloads},
};
use crate::{
    PodSpec, Proxy,
    later::FAR,
    linux::{Netns, NetnsId, Packet, SeqPacket},
};

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the agent listens; [`ISTIO_SOCKET`](super::ISTIO_SOCKET) where it is Istio's.
    pub path: PathBuf,
    /// Who may listen there.
    pub allowed: Allowed,
    /// How long things take.
    pub timing: Timing,
    /// How long a step of the proxy's may take.
    pub patience: Duration,
    /// The first pause between two attempts to connect; it doubles up to [`ClientConfig::pause_most`].
    pub pause: Duration,
    /// The longest pause between two attempts to connect.
    pub pause_most: Duration,
}

impl ClientConfig {
    /// Root's and the own user's agents, Istio's times: attempts to connect after 10 ms to 15 s.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            allowed: Allowed::default(),
            timing: Timing::default(),
            patience: Duration::from_secs(10),
            pause: Duration::from_millis(10),
            pause_most: Duration::from_secs(15),
        }
    }
}

/// How a [`Client`] stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientState {
    /// Whether all is served that is to be.
    pub readiness: Readiness,
    /// Pods that are served.
    pub served: usize,
    /// Why the agent cannot be reached, or why the last connection to it has ended; until a snapshot is whole again.
    pub trouble: Option<String>,
}

/// A proxy's end of ZDS: has a [`Proxy`] serve the pods that an agent names, in the namespaces that it passes.
///
/// A pod is served from its [`Proxy::add`]; of one that goes, or is not in a snapshot, first what is open is
/// [cut](Proxy::cut), then it is [removed](Proxy::remove). Pods that the agent names have no addresses here.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    workloads: Workloads<Arc<Netns>>,
    /// The namespaces in which no pod of the mesh is.
    own: Vec<NetnsId>,
    state: Sender<ClientState>,
    trouble: Option<String>,
}

impl Client {
    /// Prepares to connect.
    pub fn new(config: ClientConfig) -> Self {
        let state = ClientState {
            readiness: Readiness::Alone,
            served: 0,
            trouble: None,
        };
        Self {
            workloads: Workloads::new(config.timing),
            own: nodes_own(),
            state: channel(state).0,
            trouble: None,
            config,
        }
    }

    /// How it stands, as that changes.
    pub fn state(&self) -> Receiver<ClientState> {
        self.state.subscribe()
    }

    /// Connects, and connects again, and does what is asked, until it is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; what is served goes on.
    pub async fn run(mut self, proxy: Arc<dyn Proxy>) {
        let (ended, mut endings) = mpsc::channel(ENDINGS);
        let (mut link, mut pause): (Option<SeqPacket>, _) = (None, self.config.pause);
        let mut attempt = Tick::now();
        loop {
            if let Err(why) = self.act(&mut link, &proxy, &ended).await {
                self.lose(&mut link, why);
            }
            if link.is_none() && attempt <= Tick::now() {
                match self.connect() {
                    Ok(connected) => {
                        link = Some(connected);
                        self.workloads.handle_connected();
                    }
                    Err(error) => self.lose(
                        &mut link,
                        format!("the agent cannot be reached at {}: {error}", self.config.path.display()),
                    ),
                }
                // Also one that takes a connection and ends it is left in peace.
                attempt = Tick::now() + jittered(pause);
                pause = pause.saturating_mul(2).min(self.config.pause_most);
                continue;
            }
            if matches!(self.workloads.readiness(), Readiness::Ready | Readiness::Pending(..)) {
                (pause, self.trouble) = (self.config.pause, None);
            }
            self.publish();
            let wake = self.workloads.timeout().map(Tick::from_std);
            tokio::select! {
                received = receive(link.as_ref()), if self.workloads.is_idle() => match received {
                    Ok(packet) => self.take(packet),
                    Err(why) => {
                        attempt = attempt.max(Tick::now() + jittered(self.config.pause));
                        self.lose(&mut link, why);
                    }
                },
                Some(end) = endings.recv() => self.settle(end),
                () = sleep_until(wake.unwrap_or(attempt)), if wake.is_some() => (),
                () = sleep_until(attempt), if link.is_none() => (),
            }
        }
    }

    /// Sends what is to be sent, and begins what is to be done.
    async fn act(&mut self, link: &mut Option<SeqPacket>, proxy: &Arc<dyn Proxy>, ended: &mpsc::Sender<End>) -> Result<(), String> {
        while let Some(output) = self.workloads.poll(now()) {
            match output {
                Output::Send(packet) => {
                    let Some(link) = link.as_ref() else { continue };
                    // An agent that reads nothing is none.
                    let sent = timeout(self.config.timing.answer, link.send(&packet, None)).await;
                    sent.map_err(|_| "the agent takes no answer".to_owned())?
                        .map_err(|error| format!("the connection to the agent is broken: {error}"))?;
                }
                Output::Close(why) => return Err(why.to_string()),
                Output::Serve { uid, info, descriptor } => {
                    let (proxy, patience, pod) = (proxy.clone(), self.config.patience, spec(&uid, &info));
                    let work = async move { timeout(patience, proxy.add(&pod, descriptor)).await };
                    begin(uid, ended.clone(), work, move |done| {
                        How::Served(match done {
                            Ok(Ok(added)) => added.map_err(|error| error.to_string()),
                            Ok(Err(_)) => Err(format!("it was not done within {} s", patience.as_secs_f32())),
                            Err(panic) => Err(panic.to_string()),
                        })
                    });
                }
                Output::End { uid } => {
                    let (proxy, patience, pod) = (proxy.clone(), self.config.patience, uid.clone());
                    let work = async move {
                        let _ = timeout(patience, proxy.cut(&pod)).await;
                        let _ = timeout(patience, proxy.remove(&pod)).await;
                    };
                    begin(uid, ended.clone(), work, |_| How::Ended);
                }
            }
        }
        Ok(())
    }

    fn connect(&self) -> io::Result<SeqPacket> {
        let link = SeqPacket::connect(&self.config.path)?;
        let uid = link.peer()?.uid;
        match self.config.allowed.0.contains(&uid) {
            true => Ok(link),
            false => {
                let why = format!("a process of user {uid} listens there, whose agent is not believed");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }

    fn take(&mut self, packet: Packet) {
        let mut descriptors = packet.descriptors;
        let given = match (descriptors.len(), descriptors.pop()) {
            (1, Some(descriptor)) => match Netns::from_fd(descriptor) {
                Ok(namespace) if self.own.contains(&namespace.id()) => Given::Own(namespace.id()),
                Ok(namespace) => Given::Namespace(namespace.id(), Arc::new(namespace)),
                Err(error) => Given::Other(error.to_string()),
            },
            (0, _) => Given::Nothing,
            (several, _) => Given::Many(several),
        };
        self.workloads.handle_packet(now(), &packet.bytes, given);
    }

    fn settle(&mut self, end: End) {
        match end.how {
            How::Served(result) => self.workloads.handle_served(now(), &end.uid, result),
            How::Ended => self.workloads.handle_ended(now(), &end.uid),
        }
    }

    fn lose(&mut self, link: &mut Option<SeqPacket>, why: String) {
        *link = None;
        self.workloads.handle_closed();
        self.trouble = Some(why);
    }

    fn publish(&self) {
        let now = ClientState {
            readiness: self.workloads.readiness(),
            served: self.workloads.served(),
            trouble: self.trouble.clone(),
        };
        self.state.send_if_modified(|published| {
            let differs = *published != now;
            if differs {
                *published = now;
            }
            differs
        });
    }
}

/// A step has ended.
#[derive(Debug)]
struct End {
    uid: PodUid,
    how: How,
}

#[derive(Debug)]
enum How {
    Served(Result<(), String>),
    Ended,
}

/// Does a step beside everything else, in a task of its own: a panic of the proxy's is one pod's failure.
fn begin<T: Send + 'static>(
    uid: PodUid,
    ended: mpsc::Sender<End>,
    work: impl Future<Output = T> + Send + 'static,
    how: impl FnOnce(Result<T, JoinError>) -> How + Send + 'static,
) {
    let work = tokio::spawn(work);
    tokio::spawn(async move {
        let how = how(work.await);
        // An error says that nobody drives this proxy any more.
        let _ = ended.send(End { uid, how }).await;
    });
}

/// Waits for a packet; for ever where there is no connection.
async fn receive(link: Option<&SeqPacket>) -> Result<Packet, String> {
    let Some(link) = link else { return std::future::pending().await };
    match link.receive(LONGEST_REQUEST).await {
        Ok(Some(packet)) => Ok(packet),
        Ok(None) => Err("the agent has closed the connection".into()),
        Err(error) => Err(format!("the agent's last word was not received: {error}")),
    }
}

/// The namespace of this process, and that of the first one, which is the node's where the node's processes are seen from here.
fn nodes_own() -> Vec<NetnsId> {
    let seen = [Netns::current(), Netns::open(FIRST)];
    seen.into_iter().flatten().map(|namespace| namespace.id()).collect()
}

fn spec(uid: &PodUid, info: &WorkloadInfo) -> PodSpec {
    PodSpec {
        uid: uid.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        service_account: info.service_account.clone(),
        addresses: Vec::new(),
        capture: Default::default(),
        has_run: true,
    }
}

/// Between four and five quarters of a pause, so that those who lost an agent together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let draw = RandomState::new().build_hasher().finish();
    pause.min(FAR).mul_f64(0.8 + 0.4 * (draw as f64 / u64::MAX as f64))
}

fn now() -> Instant {
    Tick::now().into_std()
}

const FIRST: &str = "/proc/1/ns/net";
/// An agent's request may be longer than it should, as long as it is understood.
const LONGEST_REQUEST: usize = 4096;
/// Steps that have ended and are not looked at; more wait.
const ENDINGS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_without_end_is_a_long_one() {
        let pause = jittered(Duration::MAX);
        assert!(pause >= FAR / 2 && pause <= FAR * 2, "{pause:?}");
        assert!((8..=12).contains(&jittered(Duration::from_millis(10)).as_millis()));
    }
}
