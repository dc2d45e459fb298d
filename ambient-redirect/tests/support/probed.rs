//! What processes of the node's own namespace send to its pods.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use ambient_redirect::{
    Config,
    linux::{Netns, NodeSide},
    netlink::{Batch, Family, Nftables},
    plan::{Options, PROBE_SOURCES},
    pods::State,
    probes::{self, HostProbes, ProbesState, TABLE},
};
use ambient_testkit::{World, harness::Outcome};
use socket2::{Domain, Socket, Type};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    application, ask,
    mesh::{Log, Running},
    node::{NAME, Node, spec},
};

/// Probes that are upheld until this is stopped.
struct Upheld {
    states: watch::Receiver<ProbesState>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Upheld {
    fn start(running: &Running, config: probes::Config) -> Self {
        let probes = HostProbes::prepare(config).unwrap();
        let states = probes.states();
        assert!(states.borrow().in_force, "from the first moment on");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(probes.run(running.states.clone(), async {
            let _ = stopped.await;
        }));
        Self { states, stop, task }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&ProbesState) -> bool) {
        let waited = timeout(Duration::from_secs(5), self.states.wait_for(|state| wanted(state)))
            .await
            .is_ok();
        assert!(waited, "waited for {what} in vain: {:?}", self.states.borrow());
    }

    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }
}

fn config(node: &Node) -> Config {
    Config {
        options: Options {
            probes: true,
            ..Options::default()
        },
        ..node.config()
    }
}

fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    NodeSide::open(&node.netns, NAME).unwrap().addresses().unwrap()
}

fn tables(node: &Node) -> Vec<String> {
    let tables = node.netns.run(|| Nftables::open().unwrap().tables().unwrap()).unwrap();
    tables.into_iter().map(|t| t.name).collect()
}

fn set(ips: &[&str]) -> BTreeSet<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// Connects from an address that need not be the namespace's own by rights.
async fn ask_as(from: &Arc<Netns>, source: IpAddr, to: &str) -> io::Result<String> {
    let (from, to): (_, SocketAddr) = (from.clone(), to.parse().unwrap());
    let asked = tokio::task::spawn_blocking(move || {
        from.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
            socket.connect_timeout(&to.into(), Duration::from_millis(700))?;
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut text = String::new();
            io::Read::read_to_string(&mut stream, &mut text)?;
            Ok(text)
        })
    });
    asked.await.unwrap().unwrap()
}

const SERVERS: [(&str, &str, &str); 2] = [("10.0.0.2:8081", "10.0.0.1", "10.0.0.3"), ("[fd00::2]:8081", "fd00::1", "fd00::3")];

pub(crate) fn the_nodes_own_processes_reach_its_pods_and_nobody_else_does(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let neighbour = world.namespace("b")?;
    let other = node.join(&neighbour, "10.0.0.3", "fd00::3")?;
    // It has the address that probes have, and the node would answer it there.
    let probe_sources = [IpAddr::from(PROBE_SOURCES.0), IpAddr::from(PROBE_SOURCES.1)];
    for source in probe_sources {
        neighbour.add_address("eth0", source)?;
        node.namespace.add_route(source, None, "b")?;
    }
    node.run(async {
        application(&pod, 8081);
        application(&other, 8082);
        let mut running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        for ((server, own, _), source) in SERVERS.into_iter().zip(probe_sources) {
            let heard = ask(&node.netns, server).await.unwrap();
            assert_eq!(heard, format!("in {server} from {own}"), "nothing gives it a probe's source yet");
            // What the node's table is against.
            let heard = ask_as(&other, source, server).await.unwrap();
            assert_eq!(heard, format!("app called by {source}"));
            // What the pod says to it are answers: it calls nobody there.
            let called = ask(&pod, &SocketAddr::new(source, 8082).to_string()).await.map_err(|e| e.kind());
            assert_eq!(called, Err(io::ErrorKind::ConnectionRefused), "{source}");
        }

        let mut upheld = Upheld::start(&running, probes::Config::new(NAME));
        upheld.until("addresses", |s| s.in_force && s.addresses == 2).await;
        assert_eq!(addresses(&node), set(&["10.0.0.2", "fd00::2"]));
        for ((server, _, neighbour), source) in SERVERS.into_iter().zip(probe_sources) {
            assert_eq!(ask(&node.netns, server).await.unwrap(), format!("app called by {source}"));
            // Who is forwarded gains nothing, with whatever source.
            assert_eq!(ask(&other, server).await.unwrap(), format!("in {server} from {neighbour}"));
            let refused = ask_as(&other, source, server).await.unwrap_err();
            assert!(
                matches!(refused.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock),
                "{refused:?}"
            );
            // What comes by HBONE goes to the proxy, whoever sends it.
            let tunnel = server.replace("8081", "15008");
            assert!(ask(&node.netns, &tunnel).await.unwrap().starts_with("hbone"), "{tunnel}");
        }
        // The proof of what comes in goes the way of others, not the kubelet's.
        running.want(&[]);
        running.until_logged("released a").await;
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        let state = running.states.borrow()[0].clone();
        let State::In { proof, .. } = &state.state else {
            panic!("{state:?}")
        };
        let listed = Some(ambient_redirect::linux::Way::Listed);
        assert!(proof.inbound.v4 != listed && proof.inbound.v6 != listed, "{proof}");

        running.want(&[]);
        upheld
            .until("an end", |s| !s.in_force && s.addresses == 0 && s.error.is_none())
            .await;
        assert_eq!(tables(&node), [""; 0], "without pods nothing of it is left");
        let state = upheld.states.borrow().clone();
        assert_eq!((state.repairs, state.last_repair), (0, None));
        upheld.stop().await;
        running.stop().await;
    })
}

pub(crate) fn what_is_broken_of_it_is_mended(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        application(&pod, 8081);
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let never = Duration::from_secs(3600);
        let slow = probes::Config {
            verify_every: never,
            ..probes::Config::new(NAME)
        };
        // The timer would be too late: events must tell.
        let mut upheld = Upheld::start(&running, slow);
        upheld.until("addresses", |s| s.addresses == 2).await;
        type Breaking = (&'static str, fn(&mut Batch));
        let breakings: [Breaking; 4] = [
            ("the table", |b| b.delete_table(Family::Inet, TABLE)),
            ("its rules", |b| b.flush_table(Family::Inet, TABLE)),
            ("an address", |b| {
                b.delete_elements(Family::Inet, TABLE, "pods-v4", [&"10.0.0.2".parse().unwrap()]);
            }),
            ("a stranger's", |b| {
                b.add_elements(Family::Inet, TABLE, "pods-v4", [&"10.0.0.9".parse().unwrap()]);
            }),
        ];
        for (n, (what, breaking)) in breakings.into_iter().enumerate() {
            let mut batch = Batch::default();
            breaking(&mut batch);
            Nftables::open().unwrap().commit(batch, None).unwrap();
            upheld.until(what, |s| s.repairs == n as u64 + 1 && s.in_force).await;
            assert_eq!(addresses(&node), set(&["10.0.0.2", "fd00::2"]), "{what}");
            assert_eq!(
                ask(&node.netns, SERVERS[0].0).await.unwrap(),
                "app called by 169.254.7.127",
                "{what}"
            );
        }
        let told = upheld.states.borrow().last_repair.clone().unwrap().1;
        assert_eq!(told, "10.0.0.9 is in table ambient-probes and no pod's");

        // Killed and begun again, it goes on where it was; nothing is taken away before it is known which pods there are.
        upheld.task.abort();
        let began = HostProbes::prepare(probes::Config::new(NAME)).unwrap();
        let state = began.states().borrow().clone();
        assert_eq!((state.in_force, state.addresses, state.repairs), (true, 2, 0), "{state:?}");
        assert_eq!(addresses(&node), set(&["10.0.0.2", "fd00::2"]));
        let (unknown, none) = watch::channel(Arc::from([]));
        let task = tokio::spawn(began.run(none, std::future::pending()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(addresses(&node), set(&["10.0.0.2", "fd00::2"]));
        unknown.send(running.states.borrow().clone()).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(addresses(&node), set(&["10.0.0.2", "fd00::2"]));
        task.abort();

        let last = Upheld::start(
            &running,
            probes::Config {
                release_at_end: true,
                ..probes::Config::new(NAME)
            },
        );
        last.stop().await;
        assert_eq!(tables(&node), [""; 0]);
        running.stop().await;
    })
}

pub(crate) fn a_strangers_table_is_left_alone(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.run(async {
        let make = |comment: &[u8]| {
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, TABLE, comment);
            Nftables::open().unwrap().commit(batch, None).unwrap();
        };
        make(b"");
        let error = HostProbes::prepare(probes::Config::new(NAME)).unwrap_err().to_string();
        assert!(error.contains(TABLE) && error.contains("not ours"), "{error}");
        HostProbes::clear(NAME).unwrap();
        assert_eq!(tables(&node), [TABLE]);
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, TABLE);
        Nftables::open().unwrap().commit(batch, None).unwrap();
        // Neither does one node take what another has in force.
        HostProbes::prepare(probes::Config::new("another")).unwrap();
        HostProbes::prepare(probes::Config::new(NAME)).unwrap_err();
        HostProbes::clear(NAME).unwrap();
        assert_eq!(tables(&node), [TABLE]);
        HostProbes::clear("another").unwrap();
        assert_eq!(tables(&node), [""; 0]);
        // Many at once, as on a node with many pods.
        let pods: BTreeSet<IpAddr> = (0..3000u32).map(|n| IpAddr::from((0x0a01_0000 + n).to_be_bytes())).collect();
        let mut side = NodeSide::open(&node.netns, NAME).unwrap();
        let table = probes::table(pods.iter().copied(), true);
        assert_eq!(side.apply(&table).unwrap().len(), 3001);
        assert_eq!((side.verify(&table).unwrap(), side.addresses().unwrap()), (vec![], pods));
        let fewer = probes::table(["10.1.0.7".parse().unwrap()], true);
        assert_eq!(side.apply(&fewer).unwrap().len(), 2999);
        assert_eq!(side.addresses().unwrap(), set(&["10.1.0.7"]));
    })
}
