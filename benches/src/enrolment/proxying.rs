//! The node proxy as it is: its state comes by a queue, its certificates from a CA in a directory, and it announces into a set.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ambient_control::{Batch, BoxFuture, Change, Source, ca::DirectoryCa};
use ambient_core::{Observer, PodUid, Workload, WorkloadUid, mesh::Update, observe::Event};
use ambient_node::{Config, Node};
use ambient_redirect::{Announce, PodSpec};
use ambient_testkit::World;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// A node proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxying {
    source: mpsc::UnboundedSender<Batch>,
    wanted: BTreeMap<PodUid, WorkloadUid>,
    announced: watch::Receiver<BTreeSet<PodUid>>,
    /// How many pods were let go whole.
    released: watch::Receiver<u64>,
    taken_back: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
    _task: JoinHandle<()>,
}

impl Proxying {
    pub(super) async fn start(world: &World) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let config = Config {
            metrics: anywhere,
            readiness: anywhere,
            admin: anywhere,
            // Nobody is asked anything; without one DNS is not captured.
            nameservers: vec![SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), 53)],
            ..Config::new(NODE, world.netns_dir())
        };
        let issuer = DirectoryCa::open(
            world.scratch_dir().join("ca"),
            config.trust_domain.clone(),
            DirectoryCa::DEFAULT_TTL,
        )?;
        let (source, batches) = mpsc::unbounded_channel();
        let (set, announced) = watch::channel(BTreeSet::new());
        let taken_back = Arc::new(AtomicU64::new(0));
        let announce = Arc::new(Announced {
            set,
            taken_back: taken_back.clone(),
        });
        let (let_go, released) = watch::channel(0);
        let builder = Node::builder(config).source(Queue(batches)).issuer(issuer);
        let node = builder.announce(announce).observer(LetGo(let_go)).build().await?;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let ran = node.run(async {
                let _ = stopped.await;
            });
            ran.await.expect("the node runs");
        });
        Ok(Self {
            source,
            wanted: BTreeMap::new(),
            announced,
            released,
            taken_back,
            _stop: stop,
            _task: task,
        })
    }

    pub(super) async fn want(&mut self, pods: &[PodSpec]) {
        let wanted: BTreeSet<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let mut changes: Vec<Change> = Vec::new();
        self.wanted.retain(|uid, workload| {
            let stays = wanted.contains(uid);
            if !stays {
                changes.push(Change::Mesh(Update::RemoveWorkload(workload.clone())));
            }
            stays
        });
        let left = changes.len() as u64;
        for pod in pods.iter().filter(|pod| !self.wanted.contains_key(&pod.uid)) {
            changes.push(Change::Mesh(Update::Workload(Arc::new(workload_of(pod)))));
        }
        self.wanted = pods.iter().map(|pod| (pod.uid.clone(), workload_of(pod).uid)).collect();
        let batch = Batch {
            changes,
            synced: true,
            ..Batch::default()
        };
        // An error says that the node has ended; then the wait does too.
        let released = *self.released.borrow() + left;
        let _ = self.source.send(batch);
        let _ = self.announced.wait_for(|announced| *announced == wanted).await;
        // A pod that comes back before all of it is gone has to wait for that.
        let _ = self.released.wait_for(|count| *count >= released).await;
    }

    pub(super) fn taken_back(&self) -> u64 {
        self.taken_back.load(Ordering::Relaxed)
    }
}

fn workload_of(pod: &PodSpec) -> Workload {
    Workload {
        pod: Some(pod.uid.clone()),
        addresses: pod.addresses.iter().map(IpAddr::to_canonical).collect(),
        service_account: pod.service_account.clone(),
        node: NODE.into(),
        ambient: true,
        ..Workload::new(
            &format!("Kubernetes//Pod/{}/{}", pod.namespace, pod.name),
            &pod.namespace,
            &pod.name,
        )
    }
}

struct Queue(mpsc::UnboundedReceiver<Batch>);

impl Source for Queue {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

struct LetGo(watch::Sender<u64>);

impl Observer for LetGo {
    fn observe(&self, event: &Event<'_>) {
        if let Event::PodReleased { .. } = event {
            self.0.send_modify(|count| *count += 1);
        }
    }
}

struct Announced {
    set: watch::Sender<BTreeSet<PodUid>>,
    taken_back: Arc<AtomicU64>,
}

impl Announce for Announced {
    fn captured<'a>(&'a self, pod: &'a PodSpec) -> ambient_redirect::BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.set.send_if_modified(|set| set.insert(pod.uid.clone()));
            Ok(())
        })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> ambient_redirect::BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.set.send_if_modified(|set| set.remove(uid));
            self.taken_back.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }
}

const NODE: &str = "node-1";
