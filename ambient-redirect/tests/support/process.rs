//! An enrolment with a proxy, in a runtime of its own, that can be killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::{Observer, PodUid, observe::Event};
use ambient_redirect::{
    Announce, BoxFuture, Config, Enrolment, PodSpec, Proxy, ProxyError,
    linux::{Direction, Netns, Sockets, original_destination},
    plan::Options,
    pods::{PodState, State},
};
use tokio::{io::AsyncWriteExt, net::TcpListener, runtime::Runtime, sync::watch, task::JoinSet};

use crate::node::Node;

pub(crate) struct Process {
    runtime: Runtime,
    desired: watch::Sender<Option<Arc<[PodSpec]>>>,
    states: watch::Receiver<Arc<[PodState]>>,
}

impl Process {
    pub(crate) fn start(node: &Node) -> Self {
        let config = Config {
            options: Options {
                dns: false,
                loopback_segments: true,
                ..Options::default()
            },
            drain: Duration::from_secs(1),
            ..node.config()
        };
        let start = || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let sockets = Sockets::new().unwrap();
            let proxy = Arc::new(NamingProxy {
                sockets: sockets.clone(),
                serving: Mutex::default(),
            });
            let guard = runtime.enter();
            let enrolment = Enrolment::new(config, sockets, proxy, Arc::new(Nowhere), Arc::new(Nobody)).unwrap();
            let states = enrolment.states();
            let (desired, receiver) = watch::channel(None);
            runtime.spawn(enrolment.run(receiver, std::future::pending()));
            drop(guard);
            Self { runtime, desired, states }
        };
        node.namespace.run(start).unwrap()
    }

    pub(crate) fn want(&self, pods: Vec<PodSpec>) {
        self.desired.send_replace(Some(pods.into()));
    }

    /// Those whose capture is proven.
    pub(crate) fn captured(&self) -> BTreeSet<String> {
        let states = self.states.borrow();
        let captured = states.iter().filter(|s| matches!(s.state, State::In { .. }));
        captured.map(|s| s.spec.uid.as_str().to_owned()).collect()
    }

    pub(crate) fn until_empty(&self) {
        for _ in 0..3000 {
            if self.states.borrow().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("they do not leave: {:#?}", self.states.borrow());
    }

    /// All its tasks and sockets go at once; a system call under way ends first, as the kernel has it too.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(10));
    }
}

/// Answers every connection with the name of the pod that it serves there.
struct NamingProxy {
    sockets: Sockets,
    serving: Mutex<BTreeMap<PodUid, JoinSet<()>>>,
}

impl Proxy for NamingProxy {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            let refuse = |source| ProxyError {
                what: "listening".into(),
                source,
            };
            let before = self.serving.lock().unwrap().remove(&pod.uid);
            if let Some(mut before) = before {
                before.shutdown().await;
            }
            let mut tasks = JoinSet::new();
            for port in [15001, 15006, 15008] {
                let address = SocketAddr::new("::".parse().unwrap(), port);
                let listener = self.sockets.tcp_listener(&namespace, address, 4096).await.map_err(refuse)?;
                let listener = TcpListener::from_std(listener).map_err(refuse)?;
                let direction = if port == 15006 { Direction::Inbound } else { Direction::Outbound };
                tasks.spawn(serve(listener, direction, namespace.clone(), pod.uid.clone()));
            }
            self.serving.lock().unwrap().insert(pod.uid.clone(), tasks);
            Ok(())
        })
    }

    fn cut<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let tasks = self.serving.lock().unwrap().remove(uid);
            if let Some(mut tasks) = tasks {
                tasks.shutdown().await;
            }
        })
    }
}

async fn serve(listener: TcpListener, direction: Direction, namespace: Arc<Netns>, uid: PodUid) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        let Ok(destination) = original_destination(&stream) else { continue };
        if !namespace.is_probe(direction, peer, destination) {
            let _ = stream.write_all(format!("mesh {uid}").as_bytes()).await;
        }
    }
}

struct Nowhere;

impl Announce for Nowhere {
    fn captured<'a>(&'a self, _: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn withdrawn<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: &Event<'_>) {}
}
