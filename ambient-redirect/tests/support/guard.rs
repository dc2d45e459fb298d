//! What would go around the proxy, and what may.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_redirect::{
    Config,
    linux::{self, Inside, Mark, Netns, Sockets},
    netlink::{BaseChain, Batch, ChainKind, Conntrack, CtKey, Entry, Expr, Family, Hook, Nftables, Progress},
    plan::{Options, PROBE_SOURCES, Plan},
};
use ambient_testkit::{World, harness::Outcome};
use socket2::{Domain, Socket, Type};

use crate::{
    ask,
    mesh::{Log, Running},
    node::{self, Node, spec},
};

/// Where every port of the pod's is remembered as another captured connection's, the kernel gives a proof's another on its way to
/// the proxy. It is known for what it is all the same, and the pod is not refused.
pub(crate) fn a_proof_whose_port_is_changed_is_known(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let every = Duration::from_millis(100);
        let config = Config {
            prove_every: every,
            verify_every: every,
            ..node.config()
        };
        let running = Running::capturing(config, &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40015").unwrap())
            .unwrap();
        for port in 40000..=40015 {
            for (from, to) in [("10.0.0.2", "10.0.0.1:80"), ("fd00::2", "[fd00::1]:80")] {
                let tuple = (SocketAddr::new(from.parse().unwrap(), port), to, pod.clone());
                assert!(ask_from(&tuple).await.unwrap().starts_with("out "));
            }
        }
        for to in ["240.0.0.1:15001", "[100::1]:15001"] {
            let proofs = || running.log.count(&format!("probe {to}"));
            let enough = proofs() + 3;
            while proofs() < enough {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let lines = running.stop().await.lines();
        assert!(!lines.iter().any(|line| line.starts_with("refused")), "{lines:?}");
    })
}

/// Entries of conntrack that outlived their connections must not take later ones around the proxy, nor have them refused: made by
/// the first packet, which the client sent, or by a later one, which the server sent.
#[expect(clippy::disallowed_methods, reason = "that a refusal is told at once is what is tested")]
pub(crate) fn an_old_tuple_does_not_go_around(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let pairs = [
            ("10.0.0.2", "10.0.0.1:8081", &pod),
            ("fd00::2", "[fd00::1]:8081", &pod),
            ("10.0.0.1", "10.0.0.2:8081", &node.netns),
            ("fd00::1", "[fd00::2]:8081", &node.netns),
        ];
        let tuples = |port: u16| pairs.map(|(from, to, client)| (SocketAddr::new(from.parse().unwrap(), port), to, client.clone()));
        let (first, later) = (tuples(45001), tuples(45002));
        late_echo(&node.netns);
        late_echo(&pod);

        let mut old: Vec<TcpStream> = later
            .iter()
            .map(|(from, to, client)| connect_from(client, *from, to).unwrap())
            .collect();
        for stream in &mut old {
            assert_eq!(hear(stream), "plain");
            stream.write_all(b"again").unwrap();
        }
        track(&pod, true);
        for stream in &mut old {
            assert_eq!(hear(stream), "again");
        }
        for (from, to, client) in &first {
            let mut stream = connect_from(client, *from, to).unwrap();
            assert_eq!(hear(&mut stream), "plain");
            old.push(stream);
        }
        track(&pod, false);
        for stream in old {
            linux::cut_when_dropped(&stream, true).unwrap();
        }

        let mut running = Running::start(node.config(), &Log::default());
        let specs = [spec("a", &["10.0.0.2", "fd00::2"])];
        running.want(&specs);
        running.until_in(&["a"]).await;
        let captured = async |tuple: &(SocketAddr, &'static str, Arc<Netns>)| {
            let word = if tuple.2.id() == pod.id() { "out " } else { "in " };
            let heard = ask_from(tuple).await.unwrap_or_else(|e| panic!("{tuple:?}: {e}"));
            assert!(heard.starts_with(word), "{tuple:?}: {heard}");
        };
        // What had ended before is not remembered any more.
        for tuple in first.iter().chain(&later) {
            captured(tuple).await;
        }
        // Where something is remembered for all that, it is no way around.
        let guarded = tuples(45003);
        pod.run(|| {
            let entries = guarded.iter().map(|(from, to, client)| {
                let to = to.parse().unwrap();
                let (local, remote) = if client.id() == pod.id() { (*from, to) } else { (to, *from) };
                Entry {
                    local,
                    remote,
                    progress: Progress::Established,
                    inbound: local != *from,
                }
            });
            let refused = Conntrack::open().unwrap().remember(&entries.collect::<Vec<_>>(), 0).unwrap();
            assert_eq!(refused.count, 0, "{refused:?}");
        })
        .unwrap();
        for tuple in &guarded {
            let begun = Instant::now();
            let error = ask_from(tuple).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{tuple:?}");
            assert!(begun.elapsed() < Duration::from_millis(500), "refused at once: {tuple:?}");
        }
        // Once it has left, nothing of before is remembered.
        running.want(&[]);
        running.until_logged("released a").await;
        for tuple in first.iter().chain(&later).chain(&guarded) {
            assert_eq!(ask_from(tuple).await.unwrap(), "plain", "{tuple:?}");
        }
        running.want(&specs);
        running.until_in(&["a"]).await;
        for tuple in first.iter().chain(&later).chain(&guarded) {
            captured(tuple).await;
        }
        running.stop().await;
    })
}

pub(crate) fn the_guard_refuses_nobody_exempt(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let old = node.pod("b", "10.0.0.3", "fd00::3")?;
    let (probe4, probe6) = PROBE_SOURCES;
    node.namespace.add_address("a", IpAddr::from(probe4))?;
    node.namespace.add_address("a", IpAddr::from(probe6))?;
    node.run(async {
        late_echo(&node.netns);
        late_echo(&pod);
        let config = node.config();
        let options = Options {
            probes: true,
            ..Options::default()
        };
        let running = Running::capturing(
            Config { options, ..config },
            &Log::default(),
            &[spec("a", &["10.0.0.2", "fd00::2"])],
        )
        .await;
        let from = |client: &Arc<Netns>, from: IpAddr, to: &'static str| (SocketAddr::new(from, 0), to, client.clone());
        let any = |to: &str| {
            if to.starts_with('[') {
                IpAddr::from([0u16; 8])
            } else {
                IpAddr::from([0u8; 4])
            }
        };
        // Itself, by every address that it has.
        for to in ["10.0.0.2:8081", "[fd00::2]:8081", "127.0.0.1:8081", "127.0.0.2:8081", "[::1]:8081"] {
            assert_eq!(ask_from(&from(&pod, any(to), to)).await.unwrap(), "plain", "{to}");
        }
        // The kubelet's probes.
        for (source, to) in [(probe4.into(), "10.0.0.2:8081"), (probe6.into(), "[fd00::2]:8081")] {
            assert_eq!(ask_from(&from(&node.netns, source, to)).await.unwrap(), "plain", "{to}");
        }
        // Which have answers, and no more: nothing is opened to where they come from, as nobody captures it.
        for to in ["169.254.7.127:8081", "[fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:8081"] {
            let called = ask_from(&from(&pod, any(to), to)).await.map_err(|e| e.kind());
            assert_eq!(called, Err(io::ErrorKind::ConnectionRefused), "{to}");
        }
        // The proxy itself.
        let sockets = Sockets::new().unwrap();
        for to in ["10.0.0.1:8081", "[fd00::1]:8081"] {
            let connected = sockets.tcp_connect(&pod, None, to.parse().unwrap(), Duration::from_secs(2)).await;
            let mut heard = [0; 5];
            tokio::io::AsyncReadExt::read_exact(&mut connected.unwrap(), &mut heard)
                .await
                .unwrap();
            assert_eq!(&heard, b"plain", "{to}");
        }
        // Its ports, from without: the tunnels' is open, and the others are nobody's.
        assert_eq!(
            ask(&node.netns, "10.0.0.2:15008").await.unwrap(),
            "hbone 10.0.0.2:15008 from 10.0.0.1"
        );
        assert_eq!(ask(&node.netns, "10.0.0.2:15001").await.unwrap(), "in 10.0.0.2:15001 from 10.0.0.1");
        let own = ask(&node.netns, "10.0.0.2:15006").await.unwrap_err();
        assert_eq!(own.kind(), io::ErrorKind::ConnectionRefused);
        running.stop().await;

        // Where IPv6 is not captured, it goes around.
        late_echo(&old);
        let options = Options {
            ipv6: false,
            ..Options::default()
        };
        let plan = Plan::new(&options);
        let mark = Mark::new(node::NAME, &"b".into());
        Inside::open(&old).unwrap().apply(&plan, &mark).unwrap();
        for (client, to) in [(&old, "[fd00::1]:8081"), (&node.netns, "[fd00::3]:8081")] {
            assert_eq!(ask_from(&from(client, any(to), to)).await.unwrap(), "plain", "{to}");
        }
    })
}

/// Greets whoever connects to port 8081 of a namespace, and later says again what it hears.
fn late_echo(at: &Arc<Netns>) {
    let listener = at.run(|| TcpListener::bind("[::]:8081").unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> io::Result<()> {
                stream.write_all(b"plain")?;
                let mut heard = [0; 5];
                stream.read_exact(&mut heard)?;
                std::thread::sleep(Duration::from_millis(300));
                stream.write_all(&heard)?;
                // Held until the other end is done.
                let _ = stream.read(&mut heard)?;
                Ok(())
            });
        }
    });
}

/// The next that comes: one word.
fn hear(stream: &mut TcpStream) -> String {
    try_hear(stream).unwrap()
}

fn try_hear(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard)?;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// Connects from an address and port of a namespace.
fn connect_from(client: &Arc<Netns>, from: SocketAddr, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    client
        .run(move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
            Ok(socket.into())
        })
        .unwrap()
}

/// Connects, hears a word, and ends with a reset.
async fn ask_from((from, to, client): &(SocketAddr, &'static str, Arc<Netns>)) -> io::Result<String> {
    let (from, to, client) = (*from, *to, client.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = connect_from(&client, from, to)?;
        linux::cut_when_dropped(&stream, true)?;
        try_hear(&mut stream)
    });
    asked.await.unwrap()
}

/// Switches conntrack on in a namespace, or off again, as somebody's rules would.
fn track(at: &Arc<Netns>, on: bool) {
    at.run(|| {
        let mut batch = Batch::default();
        if on {
            batch.add_table(Family::Inet, "theirs", b"");
            let anywhere = BaseChain {
                kind: ChainKind::Filter,
                hook: Hook::Prerouting,
                priority: 0,
            };
            batch.add_base_chain(Family::Inet, "theirs", "prerouting", &anywhere);
            batch.add_rule(Family::Inet, "theirs", "prerouting", &[Expr::Ct { key: CtKey::State, reg: 1 }]);
        } else {
            batch.delete_table(Family::Inet, "theirs");
        }
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}
