//! A node whose pods are enrolled by a proxy in the same process: by the node proxy as it is, or by a stand-in, which has all
//! listeners of a pod, knows a proof when it sees one, and carries nothing.

mod proxying;

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use self::proxying::Proxying;

use ambient_core::PodUid;
use ambient_redirect::{
    Announce, BoxFuture, Config, Enrolment, PodSpec, Proxy, ProxyError,
    linux::{Direction, Inside, Netns, Sockets, original_destination},
    pods::{PodState, State},
};
use ambient_testkit::{End, Namespace, World, link};
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

/// A node's namespace with pods' behind wires.
#[derive(Debug)]
pub struct Node {
    world: World,
    namespace: Namespace,
    pods: Vec<PodSpec>,
}

impl Node {
    /// Makes one with so many pods, none of them enrolled; names and addresses are those of these numbers.
    ///
    /// # Errors
    /// When the machine refuses a namespace or a wire.
    pub fn new(world: &World, pods: Range<u16>) -> Result<Self, Box<dyn Error>> {
        let namespace = world.namespace(&format!("node-{}", pods.start))?;
        namespace.forward()?;
        let mut node = Self {
            world: world.clone(),
            namespace,
            pods: Vec::new(),
        };
        for n in pods {
            let pod = node.add(n)?;
            node.pods.push(pod);
        }
        Ok(node)
    }

    fn add(&self, n: u16) -> Result<PodSpec, Box<dyn Error>> {
        let [high, low] = n.to_be_bytes();
        let name = format!("pod-{n}");
        let pod = self.world.namespace(&name)?;
        let own: [IpAddr; 2] = [format!("10.1.{high}.{low}").parse()?, format!("fd00::1:{n:x}").parse()?];
        let via: [IpAddr; 2] = ["10.0.0.1".parse()?, "fd00::1".parse()?];
        link(
            &End::new(&pod, "eth0").address(IpNet::from(own[0])).address(IpNet::from(own[1])),
            &End::new(&self.namespace, &name)
                .address(IpNet::from(via[0]))
                .address(IpNet::from(via[1])),
        )?;
        for ((own, via), every) in own.into_iter().zip(via).zip(["0.0.0.0/0", "::/0"]) {
            self.namespace.add_route(IpNet::from(own), None, &name)?;
            pod.add_route(every.parse::<IpNet>()?, Some(via), "eth0")?;
        }
        Ok(PodSpec {
            uid: PodUid::from(name.as_str()),
            namespace: "shop".into(),
            // Each has its own, so that a certificate is asked for with each.
            service_account: format!("account-of-{name}").into(),
            name: name.into(),
            addresses: own.to_vec(),
            capture: ambient_core::Capture::default(),
            has_run: true,
        })
    }

    /// Its pods.
    pub fn pods(&self) -> &[PodSpec] {
        &self.pods
    }

    /// Runs in the node's namespace, on one thread but for what blocks.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> Result<T, Box<dyn Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(self.namespace.run(|| runtime.block_on(work))?)
    }

    /// Begins to enrol, as a node does by default; no pod yet.
    ///
    /// # Errors
    /// When there are no threads or descriptors for it.
    pub async fn start(&self, stand_in: bool) -> Result<Running, Box<dyn Error + Send + Sync>> {
        match stand_in {
            true => self.start_stand_in().map(Running::StandIn),
            false => Proxying::start(&self.world).await.map(Running::Proxying),
        }
    }

    /// Waits until nothing is left in the namespaces of its pods.
    ///
    /// # Panics
    /// When that takes long, or they cannot be looked into.
    pub async fn is_clear(&self) {
        let owned = |pod: &PodSpec| {
            let namespace = Netns::open(self.world.netns_dir().join(&*pod.name)).expect("it is there");
            Inside::open(&namespace)
                .and_then(|mut inside| inside.owner())
                .expect("it tells")
                .is_some()
        };
        for _ in 0..600 {
            if !self.pods.iter().any(owned) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("something is left behind");
    }

    /// Opens so many connections between the node and the first pod, which stay open as long as what is given.
    ///
    /// # Errors
    /// When the machine refuses one.
    ///
    /// # Panics
    /// Without a pod.
    pub fn connect(&self, connections: usize) -> Result<impl Sized, Box<dyn Error + Send + Sync>> {
        let pod = &self.pods[0];
        let namespace = Netns::open(self.world.netns_dir().join(&*pod.name))?;
        let listener = namespace.run(|| std::net::TcpListener::bind("[::]:8080"))??;
        let mut open = Vec::with_capacity(connections * 2);
        for _ in 0..connections {
            open.push(std::net::TcpStream::connect((pod.addresses[0], 8080))?);
            open.push(listener.accept()?.0);
        }
        Ok((listener, open))
    }

    fn start_stand_in(&self) -> Result<StandIn, Box<dyn Error + Send + Sync>> {
        let sockets = Sockets::new()?;
        let proxy = Arc::new(Listening {
            sockets: sockets.clone(),
            pods: Mutex::default(),
        });
        let config = Config::new("node-1", self.world.netns_dir());
        let enrolment = Enrolment::new(config, sockets, proxy, Arc::new(Told), Arc::new(()))?;
        let states = enrolment.states();
        let (desired, wanted) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(enrolment.run(wanted, async {
            let _ = stopped.await;
        }));
        Ok(StandIn {
            desired,
            states,
            _stop: stop,
            _task: task,
        })
    }
}

/// An enrolment that runs until it is dropped.
#[derive(Debug)]
pub enum Running {
    /// By the node proxy.
    Proxying(Proxying),
    /// By a stand-in for it.
    StandIn(StandIn),
}

impl Running {
    /// These pods are to be in the mesh, and no others; waits until that is announced of them, and taken back of others.
    pub async fn want(&mut self, pods: &[PodSpec]) {
        match self {
            Self::Proxying(running) => running.want(pods).await,
            Self::StandIn(running) => running.want(pods).await,
        }
    }

    /// How often captures were mended, or taken back.
    pub fn repairs(&self) -> u64 {
        match self {
            Self::Proxying(running) => running.taken_back(),
            Self::StandIn(running) => running.repairs(),
        }
    }
}

/// Without a proxy.
#[derive(Debug)]
pub struct StandIn {
    desired: watch::Sender<Option<Arc<[PodSpec]>>>,
    states: watch::Receiver<Arc<[PodState]>>,
    _stop: oneshot::Sender<()>,
    _task: JoinHandle<()>,
}

impl StandIn {
    async fn want(&mut self, pods: &[PodSpec]) {
        // An error says that the enrolment has ended; then the wait does too.
        let _ = self.desired.send(Some(pods.into()));
        let all_in = |states: &Arc<[PodState]>| states.len() == pods.len() && states.iter().all(|s| matches!(s.state, State::In { .. }));
        let _ = self.states.wait_for(all_in).await;
    }

    fn repairs(&self) -> u64 {
        self.states.borrow().iter().map(|state| state.repairs).sum()
    }
}

#[derive(Debug)]
struct Listening {
    sockets: Sockets,
    pods: Mutex<HashMap<PodUid, JoinSet<()>>>,
}

impl Listening {
    async fn listen(&self, namespace: &Arc<Netns>) -> io::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        for port in [15001, 15006, 15008, 15053] {
            let address = SocketAddr::new(IpAddr::from([0u16; 8]), port);
            let listener = TcpListener::from_std(self.sockets.tcp_listener(namespace, address, 4096).await?)?;
            let namespace = namespace.clone();
            let direction = if port == 15006 { Direction::Inbound } else { Direction::Outbound };
            tasks.spawn(async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    let known = original_destination(&stream).map(|to| namespace.is_probe(direction, peer, to));
                    assert!(matches!(known, Ok(true)), "nobody else is here");
                }
            });
        }
        for ip in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(ip.parse().map_err(io::Error::other)?, 15053);
            let socket = UdpSocket::from_std(self.sockets.udp(namespace, address).await?)?;
            tasks.spawn(async move {
                let _ = socket.recv_from(&mut [0; 512]).await;
            });
        }
        Ok(tasks)
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, JoinSet<()>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy for Listening {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            let listening = self.listen(&namespace).await.map_err(|source| ProxyError {
                what: "listening".into(),
                source,
            })?;
            self.pods().insert(pod.uid.clone(), listening);
            Ok(())
        })
    }

    fn cut<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let listening = self.pods().remove(uid);
            if let Some(mut listening) = listening {
                listening.shutdown().await;
            }
        })
    }
}

struct Told;

impl Announce for Told {
    fn captured<'a>(&'a self, _: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn withdrawn<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
