//! What a pod asks of its capture.

use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use ambient_core::Capture;
use ambient_redirect::{
    Config, ExistingConnections, PodSpec,
    linux::Netns,
    netlink::{Batch, Conntrack, Family, Nftables},
    pods::Direction,
};
use ambient_testkit::{End, World, harness::Outcome, link};
use ipnet::IpNet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    application, ask, ask_until,
    mesh::{Log, Running},
    node::{Node, spec},
};

pub(crate) fn what_a_pod_asks_is_followed_while_it_runs(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let namespace = world.namespace("a")?;
    let pod = node.join(&namespace, "10.0.0.2", "fd00::2")?;
    // A machine inside the pod.
    let machine = world.namespace("machine")?;
    link(
        &End::new(&machine, "eth0").address("192.168.9.2/24".parse::<IpNet>()?),
        &End::new(&namespace, "tap0").address("192.168.9.1/24".parse::<IpNet>()?),
    )?;
    machine.add_route("0.0.0.0/0".parse::<IpNet>()?, Some("192.168.9.1".parse::<IpAddr>()?), "eth0")?;
    let machine = Arc::new(Netns::open(machine.path())?);
    let asking = |annotations: &[(&str, &str)]| {
        let capture = Capture::read(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value));
        PodSpec {
            capture,
            ..spec("a", &["10.0.0.2", "fd00::2"])
        }
    };
    node.run(async {
        application(&pod, 8081);
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[asking(&[])]);
        running.until_in(&["a"]).await;
        assert_eq!(ask(&node.netns, "10.0.0.2:8081").await.unwrap(), "in 10.0.0.2:8081 from 10.0.0.1");
        assert_eq!(ask(&pod, "198.51.100.7:53").await.unwrap(), "dns 198.51.100.7:53 from 10.0.0.2");
        // Whatever comes by a device is taken for what comes to the pod.
        ask_until(&machine, "198.51.100.7:80", "in 198.51.100.7:80 from 192.168.9.2").await;

        running.want(&[asking(&[("ambient.istio.io/bypass-inbound-capture", "true")])]);
        ask_until(&node.netns, "10.0.0.2:8081", "app called by 10.0.0.1").await;
        ask_until(&node.netns, "[fd00::2]:8081", "app called by fd00::1").await;
        ask_until(&node.netns, "10.0.0.2:15008", "hbone 10.0.0.2:15008 from 10.0.0.1").await;
        ask_until(&pod, "198.51.100.7:80", "out 198.51.100.7:80 from 10.0.0.2").await;

        running.want(&[asking(&[
            ("istio.io/reroute-virtual-interfaces", "tap0"),
            ("ambient.istio.io/dns-capture", "0"),
        ])]);
        ask_until(&machine, "198.51.100.7:80", "out 198.51.100.7:80 from 192.168.9.2").await;
        ask_until(&node.netns, "10.0.0.2:8081", "in 10.0.0.2:8081 from 10.0.0.1").await;
        ask_until(&pod, "198.51.100.7:53", "out 198.51.100.7:53 from 10.0.0.2").await;

        running.want(&[asking(&[])]);
        ask_until(&pod, "198.51.100.7:53", "dns 198.51.100.7:53 from 10.0.0.2").await;
        ask_until(&machine, "198.51.100.7:80", "in 198.51.100.7:80 from 192.168.9.2").await;
        running.until_in(&["a"]).await;
        let log = running.stop().await;
        assert_eq!(
            (log.count("captured"), log.count("withdrawn")),
            (1, 0),
            "it stayed announced: {:#?}",
            log.lines()
        );
        assert_eq!(log.count("repaired"), 0, "to follow is not to repair: {:#?}", log.lines());
    })
}

/// A resolver that keeps its socket is answered by the proxy from then on, as one is that has just opened his.
pub(crate) fn who_goes_on_asking_is_captured_as_well(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let asking = |dns| {
        let mut one = spec("a", &["10.0.0.2", "fd00::2"]);
        one.capture.dns = Some(dns);
        one
    };
    // The nameservers say nothing.
    let nameservers = ["10.0.0.1:53", "[fd00::1]:53"];
    let _silent = nameservers.map(|at| node.netns.run(|| UdpSocket::bind(at).unwrap()).unwrap());
    node.run(async {
        // Also where more ask than are held at a time.
        let config = Config {
            kept_most: 1,
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[asking(false)]);
        running.until_in(&["a"]).await;
        let asks = nameservers.map(|to| {
            let socket = pod
                .run(|| UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap())
                .unwrap();
            socket.connect(to).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.send(b"who").unwrap();
            tokio::net::UdpSocket::from_std(socket).unwrap()
        });
        running.want(&[asking(true)]);
        ask_until(&pod, "198.51.100.7:53", "dns 198.51.100.7:53 from 10.0.0.2").await;
        for socket in asks {
            let mut heard = [0; 8];
            let mut answered = None;
            for _ in 0..50 {
                // The one before may have gone between the rules and what is forgotten after them.
                socket.send(b"who").await.unwrap();
                answered = timeout(Duration::from_millis(100), socket.recv(&mut heard)).await.ok();
                if answered.is_some() {
                    break;
                }
            }
            assert_eq!(answered.and_then(Result::ok), Some(3), "{:?}", socket.peer_addr());
        }
        running.stop().await;
    })
}

/// What was opened to a pod while it wanted that left alone was open before: it is kept, or closed, as what was open when a pod
/// joined is, and has not gone around anything.
pub(crate) fn what_was_left_alone_is_open_before_its_capture(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let kept = node.pod("kept", "10.0.0.2", "fd00::2")?;
    let closed = node.pod("closed", "10.0.0.3", "fd00::3")?;
    node.run(async {
        for (at, uid, address, existing) in [
            (kept, "kept", ["10.0.0.2", "fd00::2"], ExistingConnections::Keep),
            (closed, "closed", ["10.0.0.3", "fd00::3"], ExistingConnections::Close),
        ] {
            application(&at, 8081);
            echo(&at);
            let config = Config { existing, ..node.config() };
            let mut running = Running::start(config, &Log::default());
            let mut alone = spec(uid, &address);
            alone.capture.bypass_inbound = true;
            running.want(&[alone]);
            running.until_in(&[uid]).await;
            let to = format!("{}:8081", address[0]);
            ask_until(&node.netns, &to, "app called by 10.0.0.1").await;
            let mut open = Vec::new();
            for (address, is_forgotten) in [(address[0], false), (address[0], true), (address[1], true)] {
                let mut one = TcpStream::connect((address, 8083)).await.unwrap();
                say(&mut one).await.unwrap();
                // Of one that is idle for long, or was there before something began to track, the kernel knows nothing.
                if is_forgotten {
                    let (from, to) = (one.local_addr().unwrap(), one.peer_addr().unwrap());
                    at.run(|| Conntrack::open().unwrap().forget(from, to).unwrap()).unwrap();
                }
                open.push(one);
            }

            running.want(&[spec(uid, &address)]);
            ask_until(&node.netns, &to, &format!("in {to} from 10.0.0.1")).await;
            running.until_in(&[uid]).await;
            let states = running.states.borrow().clone();
            assert_eq!((states[0].strays, states[0].repairs), (0, 0), "{states:#?}");
            let ends = |one: &TcpStream| (one.peer_addr().unwrap(), one.local_addr().unwrap());
            let listed: HashSet<_> = states[0].kept.iter().map(|k| (k.local, k.remote)).collect();
            let mut wanted = HashSet::new();
            for mut one in open {
                match existing {
                    ExistingConnections::Keep => {
                        wanted.insert(ends(&one));
                        for _ in 0..3 {
                            say(&mut one).await.unwrap();
                        }
                    }
                    ExistingConnections::Close => {
                        let reset = timeout(Duration::from_secs(5), one.read_u8()).await.expect("at once, unasked");
                        assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset);
                    }
                }
            }
            assert_eq!(listed, wanted);
            assert!(states[0].kept.iter().all(|k| k.direction == Direction::Inbound), "{states:#?}");
            running.stop().await;
        }
    })
}

/// What was told to the kernel for a capture that did not come about is taken back.
pub(crate) fn what_is_not_captured_after_all_is_not_kept(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        echo(&pod);
        let mut running = Running::start(node.config(), &Log::default());
        let mut alone = spec("a", &["10.0.0.2", "fd00::2"]);
        alone.capture.bypass_inbound = true;
        alone.capture.dns = Some(false);
        running.want(std::slice::from_ref(&alone));
        running.until_in(&["a"]).await;
        ask_until(&pod, "198.51.100.7:80", "out 198.51.100.7:80 from 10.0.0.2").await;
        let mut open = TcpStream::connect("10.0.0.2:8083").await.unwrap();
        say(&mut open).await.unwrap();
        let (from, to) = (open.local_addr().unwrap(), open.peer_addr().unwrap());
        pod.run(|| {
            Conntrack::open().unwrap().forget(from, to).unwrap();
            // Nothing of ours has that name while DNS is left alone.
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "ambient-raw", b"");
            Nftables::open().unwrap().commit(batch, None).unwrap();
        })
        .unwrap();
        alone.capture.bypass_inbound = false;
        running.want(&[alone]);
        running
            .until_logged("refused a: the rules cannot be put in force: the namespace holds a table inet ambient-raw")
            .await;
        let entry = pod.run(|| Conntrack::open().unwrap().connection(from, to).unwrap()).unwrap();
        let entry = entry.expect("the kernel was told of it");
        assert_eq!(entry.mark & 0xfff, 0, "{entry:?}");
        running.stop().await;
    })
}

/// Gives back what it hears, on port 8083.
fn echo(at: &Arc<Netns>) {
    let listener = at.run(|| TcpListener::bind("[::]:8083").unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
            });
        }
    });
}

async fn say(open: &mut TcpStream) -> std::io::Result<()> {
    open.write_all(b"?").await?;
    timeout(Duration::from_secs(5), open.read_u8()).await?.map(drop)
}
