//! A node's namespace, in which tests run, and pods that hang on it by wires.

use std::{error::Error, future::Future, net::IpAddr, sync::Arc, time::Duration};

use ambient_core::{Capture, PodUid};
use ambient_redirect::{Config, PodSpec, linux::Netns};
use ambient_testkit::{End, Namespace, World, harness::Outcome, link};
use ipnet::IpNet;

pub(crate) const NAME: &str = "node-1";

/// It has a name among those of its pods, as nothing keeps a node from having one.
pub(crate) struct Node {
    world: World,
    pub(crate) namespace: Namespace,
    pub(crate) netns: Arc<Netns>,
}

impl Node {
    pub(crate) fn new(world: &World) -> Result<Self, Box<dyn Error>> {
        let namespace = world.namespace("node")?;
        namespace.forward()?;
        Ok(Self {
            world: world.clone(),
            netns: Arc::new(Netns::open(namespace.path())?),
            namespace,
        })
    }

    /// A pod's namespace, with a name and [joined](Self::join).
    pub(crate) fn pod(&self, name: &str, v4: &str, v6: &str) -> Result<Arc<Netns>, Box<dyn Error>> {
        self.join(&self.world.namespace(name)?, v4, v6)
    }

    /// Gives a namespace an IPv4 and an IPv6 address, and default routes to the node, whose end of the wire has the
    /// namespace's name.
    pub(crate) fn join(&self, pod: &Namespace, v4: &str, v6: &str) -> Result<Arc<Netns>, Box<dyn Error>> {
        let (v4, v6) = (IpNet::from(v4.parse::<IpAddr>()?), IpNet::from(v6.parse::<IpAddr>()?));
        let (via4, via6) = ("10.0.0.1".parse::<IpAddr>()?, "fd00::1".parse::<IpAddr>()?);
        link(
            &End::new(pod, "eth0").address(v4).address(v6),
            &End::new(&self.namespace, pod.name()).address(via4).address(via6),
        )?;
        for (own, every, via) in [(v4, "0.0.0.0/0", via4), (v6, "::/0", via6)] {
            self.namespace.add_route(own, None, pod.name())?;
            pod.add_route(every.parse::<IpNet>()?, Some(via), "eth0")?;
        }
        Ok(Arc::new(Netns::open(pod.path())?))
    }

    /// Runs a test in the node's namespace.
    pub(crate) fn run(&self, test: impl Future<Output = ()> + Send) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(self.namespace.run(|| runtime.block_on(test))?)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            scan_every: Duration::from_millis(20),
            verify_every: Duration::from_secs(1),
            ..Config::new(NAME, self.world.netns_dir())
        }
    }
}

pub(crate) fn spec(uid: &str, addresses: &[&str]) -> PodSpec {
    PodSpec {
        uid: PodUid::from(uid),
        namespace: "shop".into(),
        name: format!("pod-of-{uid}").into(),
        service_account: "default".into(),
        addresses: addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect(),
        capture: Capture::default(),
        has_run: true,
    }
}
