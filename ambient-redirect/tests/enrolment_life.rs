//! What becomes of a pod's connections when it is born, joins, is damaged and leaves: real namespaces, real packets.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/left.rs"]
mod left;
#[path = "support/many.rs"]
mod many;
#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mesh;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod node;
#[path = "support/peers.rs"]
mod peers;

use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_redirect::{
    Config, ExistingConnections, PodSpec,
    linux::Netns,
    netlink::{Batch, Conntrack, Entry, Family, Nftables, Progress, Sockets},
    plan::KEPT_MARK,
    pods::{Direction, PodState, State},
};
use ambient_testkit::{
    World,
    harness::{self, Outcome},
};
use mesh::{Log, Running, is_in};
use node::{Node, spec};
use peers::{Pair, Traffic, ask, echo, open_all};
use tokio::time::sleep;

fn main() -> ExitCode {
    harness::main(&[
        ("what_is_open_goes_on_when_its_pod_joins", what_is_open_goes_on_when_its_pod_joins),
        ("what_is_open_is_closed_if_asked", what_is_open_is_closed_if_asked),
        ("what_was_kept_can_be_closed", what_was_kept_can_be_closed),
        ("what_was_kept_outlives_the_process", what_was_kept_outlives_the_process),
        (
            "what_came_to_a_listener_that_is_closed_came_in",
            what_came_to_a_listener_that_is_closed_came_in,
        ),
        (
            "a_socket_tells_who_opened_it_whatever_it_has_done_since",
            a_socket_tells_who_opened_it_whatever_it_has_done_since,
        ),
        (
            "what_a_pod_hears_while_it_joins_it_has_asked_for",
            what_a_pod_hears_while_it_joins_it_has_asked_for,
        ),
        (
            "nobody_is_refused_while_a_pod_joins_and_leaves",
            nobody_is_refused_while_a_pod_joins_and_leaves,
        ),
        (
            "what_is_remembered_of_connections_that_have_ended_is_forgotten",
            what_is_remembered_of_connections_that_have_ended_is_forgotten,
        ),
        (
            "nobody_is_refused_who_has_the_ports_of_those_before",
            nobody_is_refused_who_has_the_ports_of_those_before,
        ),
        (
            "what_is_being_opened_when_its_pod_joins_is_opened",
            what_is_being_opened_when_its_pod_joins_is_opened,
        ),
        (
            "a_new_pod_is_refused_until_it_is_captured",
            a_new_pod_is_refused_until_it_is_captured,
        ),
        (
            "what_has_not_been_started_is_new_unless_something_runs_there",
            what_has_not_been_started_is_new_unless_something_runs_there,
        ),
        ("what_cannot_be_mended_is_refused", what_cannot_be_mended_is_refused),
        (
            "what_was_refused_stays_refused_until_it_is_proven",
            left::what_was_refused_stays_refused_until_it_is_proven,
        ),
        (
            "who_takes_the_place_of_a_proxy_that_is_away_is_given_nothing",
            left::who_takes_the_place_of_a_proxy_that_is_away_is_given_nothing,
        ),
        (
            "who_shares_a_port_with_the_proxy_is_given_nothing_once_he_is_found",
            left::who_shares_a_port_with_the_proxy_is_given_nothing_once_he_is_found,
        ),
        (
            "what_is_open_goes_on_where_a_process_was_killed_while_its_pod_joined",
            left::what_is_open_goes_on_where_a_process_was_killed_while_its_pod_joined,
        ),
        (
            "what_cannot_be_mended_goes_around_by_choice",
            what_cannot_be_mended_goes_around_by_choice,
        ),
        ("what_went_around_is_reset_and_counted", what_went_around_is_reset_and_counted),
        (
            "of_many_open_connections_some_are_kept_and_the_rest_is_reset_and_told",
            many::of_many_open_connections_some_are_kept_and_the_rest_is_reset_and_told,
        ),
        (
            "what_is_open_is_closed_if_asked_however_much_it_is",
            many::what_is_open_is_closed_if_asked_however_much_it_is,
        ),
        (
            "what_went_around_is_reset_however_much_it_is",
            many::what_went_around_is_reset_however_much_it_is,
        ),
    ])
}

const UID: &str = "a";
const ADDRESSES: [&str; 2] = ["10.0.0.2", "fd00::2"];

fn kept_of(states: &[PodState]) -> usize {
    states.iter().find(|s| s.spec.uid.as_str() == UID).map_or(0, |s| s.kept.len())
}

/// IPv4 and IPv6, inbound and outbound, busy and idle; and once it has joined, whatever is new is captured.
fn what_is_open_goes_on_when_its_pod_joins(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut idle = open_all(&node, &pod);
        let busy = Traffic::over(open_all(&node, &pod));
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        let joined = busy.count();
        sleep(Duration::from_millis(300)).await;
        assert!(busy.count() > joined, "what is busy goes on");
        for pair in &mut idle {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        let kept = running.states.borrow()[0].kept.clone();
        assert_eq!(kept.len(), 16, "{kept:#?}");
        for pair in &idle {
            let one = kept.iter().find(|k| (k.local, k.remote) == (pair.pods, pair.others));
            let one = one.unwrap_or_else(|| panic!("{pair:?} is not listed: {kept:#?}"));
            assert_eq!(one.direction == Direction::Inbound, pair.inbound, "{one}");
        }
        for (from, to, word) in [
            (&pod, "10.0.0.1:8081", "out 10.0.0.1:8081 from 10.0.0.2"),
            (&pod, "[fd00::1]:8081", "out [fd00::1]:8081 from fd00::2"),
            (&node.netns, "10.0.0.2:8081", "in 10.0.0.2:8081 from 10.0.0.1"),
            (&node.netns, "[fd00::2]:8081", "in [fd00::2]:8081 from fd00::1"),
        ] {
            assert_eq!(ask(from, to).await.unwrap(), word);
        }
        // What has ended is listed no more.
        drop(idle);
        running.until("the idle ones to be gone", |states| kept_of(states) == 8).await;
        assert_eq!(busy.failures(), [""; 0]);
        drop(busy);
        running.until("all to be gone", |states| kept_of(states) == 0).await;
        assert_eq!(running.log.count("repaired") + running.log.count("refused"), 0);
        running.stop().await;
    })
}

fn what_is_open_is_closed_if_asked(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut idle = open_all(&node, &pod);
        let config = Config {
            existing: ExistingConnections::Close,
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        for pair in &mut idle {
            assert!(pair.is_cut(), "{pair:?}");
        }
        assert_eq!(kept_of(&running.states.borrow()), 0);
        running.stop().await;
    })
}

fn what_was_kept_can_be_closed(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut idle = open_all(&node, &pod);
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        let kept = running.states.borrow()[0].kept.clone();
        let inbound: Vec<_> = kept.iter().filter(|k| k.direction == Direction::Inbound).cloned().collect();
        assert_eq!(running.kept.close(UID.into(), inbound.clone()).await, 4);
        for pair in &mut idle {
            if pair.inbound {
                assert!(pair.is_cut(), "{pair:?}");
            } else {
                pair.converse().unwrap();
            }
        }
        running.until("the closed ones to be gone", |states| kept_of(states) == 4).await;
        assert_eq!(running.kept.close(UID.into(), inbound).await, 0, "they are closed once");
        assert_eq!(running.kept.close("nobody".into(), kept.to_vec()).await, 0);
        running.stop().await;
    })
}

fn what_was_kept_outlives_the_process(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut idle = open_all(&node, &pod);
        let log = Log::default();
        let mut running = Running::start(node.config(), &log);
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        running.kill().await;
        // Nobody watches, and one goes around.
        let mut stray = flush_and_connect(&pod);
        stray.converse().unwrap();
        let mut running = Running::start(node.config(), &log);
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        assert_eq!(kept_of(&running.states.borrow()), 8);
        for pair in &mut idle {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        assert!(stray.is_cut());
        assert_eq!(running.states.borrow()[0].strays, 1);
        // And the pod's leaving.
        running.want(&[]);
        running.until_logged("released a").await;
        for pair in &mut idle {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        running.stop().await;
    })
}

/// Whoever could choose the port he comes from, or has the server close its listener, is told from whom the pod has called, and can
/// be closed.
fn what_came_to_a_listener_that_is_closed_came_in(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "45000").unwrap())?;
    let mut called = pod.run(|| Pair::open("10.0.0.1:8081".parse().unwrap(), false).unwrap())?;
    called.converse()?;
    // A client that comes from a server's port.
    let also_called = pod.run(|| call_from(9200))?;
    let mut came = Vec::new();
    for (to, from) in [
        ("10.0.0.2:9090", 0),
        ("[fd00::2]:9090", 0),
        // As if it were a server.
        ("10.0.0.2:9091", 443),
        ("[fd00::2]:9091", 443),
        // Among the ports of clients, kept for servers and not.
        ("10.0.0.2:45000", 0),
        ("10.0.0.2:46001", 0),
        ("[fd00::2]:46001", 444),
    ] {
        let (listener, ends) = peers::come(&node.netns, &pod, to, from);
        drop(listener);
        came.push(ends);
    }
    // One whose listener is there yet, and goes later.
    let (listener, ends) = peers::come(&node.netns, &pod, "10.0.0.2:46000", 0);
    came.push(ends);
    node.run(async {
        let log = Log::default();
        let mut running = Running::start(node.config(), &log);
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        drop(listener);
        running.kill().await;
        let mut running = Running::start(node.config(), &log);
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        let kept = running.states.borrow()[0].kept.clone();
        let way = |pair: &Pair| {
            kept.iter()
                .find(|k| (k.local, k.remote) == (pair.pods, pair.others))
                .map(|k| k.direction)
        };
        for pair in [&called, &also_called] {
            assert_eq!(way(pair), Some(Direction::Outbound), "{pair:?}");
        }
        for pair in &came {
            assert_eq!(way(pair), Some(Direction::Inbound), "{pair:?}");
        }
        let inbound: Vec<_> = kept.iter().filter(|k| k.direction == Direction::Inbound).cloned().collect();
        assert_eq!(running.kept.close(UID.into(), inbound).await, came.len());
        for pair in &mut came {
            assert!(pair.is_cut(), "{pair:?}");
        }
        running.stop().await;
    })
}

/// Opens a connection from this namespace, and from a port, to where all is given back.
fn call_from(port: u16) -> Pair {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into()).unwrap();
    socket.connect(&std::net::SocketAddr::from(([10, 0, 0, 1], 8081)).into()).unwrap();
    Pair::of(socket.into(), false).unwrap()
}

/// By the running kernel: both ends of connections that are fresh, have spoken, are full in either direction, have lost packets, or
/// are half closed.
fn a_socket_tells_who_opened_it_whatever_it_has_done_since(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    for address in ["10.0.0.2", "[fd00::2]"] {
        let listener = pod.run(|| std::net::TcpListener::bind(format!("{address}:7000")).unwrap())?;
        let to = listener.local_addr()?;
        let mut pairs = Vec::new();
        for _ in 0..8 {
            let caller = node.netns.run(|| std::net::TcpStream::connect(to).unwrap())?;
            pairs.push([caller, listener.accept()?.0]);
        }
        drop(listener);
        let say = |mut from: &std::net::TcpStream, mut to: &std::net::TcpStream| {
            use std::io::{Read, Write};
            from.write_all(&[7; 3000]).unwrap();
            to.read_exact(&mut [0; 3000]).unwrap();
        };
        let fill = |mut from: &std::net::TcpStream| {
            use std::io::Write;
            from.set_nonblocking(true).unwrap();
            while from.write(&[7; 65_536]).is_ok() {}
        };
        for pair in &pairs[1..] {
            say(&pair[0], &pair[1]);
            say(&pair[1], &pair[0]);
        }
        fill(&pairs[2][0]);
        fill(&pairs[3][1]);
        // What is on its way is lost, and sent again for ever.
        peers::lose(&node.netns, 7000, true);
        for end in &pairs[4] {
            fill(end);
        }
        thread::sleep(Duration::from_millis(700));
        let check = |which: &[usize]| {
            for (at, whose, opened_here) in [(&node.netns, 0, true), (&pod, 1, false)] {
                let all = at.run(|| Sockets::open().unwrap().connections().unwrap()).unwrap();
                for n in which {
                    let ends = &pairs[*n];
                    let local = ends[whose].local_addr().unwrap();
                    let remote = ends[1 - whose].local_addr().unwrap();
                    let found = all.iter().find(|c| (c.local, c.remote) == (local, remote));
                    let told = found.unwrap_or_else(|| panic!("{n} is not there")).opened_here;
                    assert_eq!(told, Some(opened_here), "{n} of {address}");
                }
            }
        };
        check(&[0, 1, 2, 3, 4]);
        peers::lose(&node.netns, 7000, false);
        pairs[5][0].shutdown(std::net::Shutdown::Write)?;
        pairs[6][1].shutdown(std::net::Shutdown::Write)?;
        thread::sleep(Duration::from_millis(100));
        check(&[0, 1, 2, 3, 5, 6, 7]);
    }
    Ok(())
}

/// The first packet that the kernel sees of a download comes from the server: that does not make the server a client, who would be
/// asked of the pod's policies.
fn what_a_pod_hears_while_it_joins_it_has_asked_for(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let enough = Arc::new(AtomicBool::new(false));
    let heard = ["10.0.0.1", "fd00::1"].map(|at| peers::download(&node.netns, &pod, at, &enough));
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        let kept = running.states.borrow()[0].kept.clone();
        assert_eq!(kept.len(), heard.len(), "{kept:#?}");
        let known = pod.run(|| Conntrack::open().unwrap().connections().unwrap()).unwrap();
        let known: Vec<_> = known
            .iter()
            .filter(|c| c.mark == KEPT_MARK)
            .map(|c| (c.source, c.known_by))
            .collect();
        println!("{known:?}");
        assert!(kept.iter().all(|k| k.direction == Direction::Outbound), "{kept:#?}\n{known:?}");
        let before = heard.each_ref().map(|count| count.load(Ordering::Relaxed));
        for (count, before) in heard.iter().zip(before) {
            peers::until("more of it", || count.load(Ordering::Relaxed) > before).await;
        }
        enough.store(true, Ordering::Relaxed);
        running.stop().await;
    })
}

/// Ten thousand connections, from inside and from outside, made one after the other by several clients while the pod joins and
/// leaves again and again: each is answered, by the proxy or by whom it goes to.
fn nobody_is_refused_while_a_pod_joins_and_leaves(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    all_are_answered(&node, &pod, 10_000)
}

/// As before, and clients have so few ports that each is used again at once: what is still remembered of a connection is in the way
/// of the next.
/// Something tracked once, and saw no end: whoever has those addresses and ports when the pod is captured would pass for what was.
fn what_is_remembered_of_connections_that_have_ended_is_forgotten(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let ended = |local: &str, remote: &str, inbound| Entry {
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        progress: Progress::Established,
        inbound,
    };
    let (of_others, gone) = (
        ended("10.0.0.9:45000", "198.51.100.7:80", false),
        [
            ended("10.0.0.2:45000", "198.51.100.7:80", false),
            ended("[fd00::2]:45000", "[2001:db8::7]:80", false),
            ended("10.0.0.2:8080", "10.0.0.1:41000", true),
        ],
    );
    node.run(async {
        let all = [&gone[..], &[of_others]].concat();
        let refused = pod.run(|| Conntrack::open().unwrap().remember(&all, 0).unwrap()).unwrap();
        assert_eq!(refused.count, 0, "{refused:?}");
        // And so is more than is held of it at a time.
        let config = Config {
            kept_most: 1,
            ..node.config()
        };
        let running = Running::capturing(config, &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let known = pod.run(|| Conntrack::open().unwrap().connections().unwrap()).unwrap();
        let is_known = |entry: &Entry| known.iter().any(|t| [t.source, t.destination].contains(&entry.local));
        assert!(!gone.iter().any(is_known) && is_known(&of_others), "{known:#?}");
        running.stop().await;
    })
}

fn nobody_is_refused_who_has_the_ports_of_those_before(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    for namespace in [&node.netns, &pod] {
        namespace.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40009").unwrap())?;
    }
    all_are_answered(&node, &pod, 40_000)
}

fn all_are_answered(node: &Node, pod: &Arc<Netns>, connections: usize) -> Outcome {
    let (plain, captured) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let enough = Arc::new(AtomicBool::new(false));
    peers::telling(&node.netns);
    peers::telling(pod);
    let ways: [(&Arc<Netns>, &str); 4] = [
        (pod, "10.0.0.1:8082"),
        (&node.netns, "10.0.0.2:8082"),
        (pod, "[fd00::1]:8082"),
        (&node.netns, "[fd00::2]:8082"),
    ];
    let clients = ways.map(|(from, to)| {
        let (from, to) = (from.clone(), to.parse().unwrap());
        let (plain, captured, enough, pod) = (plain.clone(), captured.clone(), enough.clone(), pod.clone());
        thread::spawn(move || {
            let work = || -> Result<(), String> {
                loop {
                    let heard = peers::hear_all_or_say(to).map_err(|(port, e)| {
                        let known = pod.run(|| Conntrack::open().unwrap().connections().unwrap()).unwrap();
                        let about = known.iter().filter(|c| c.source.port() == port || c.destination.port() == port);
                        format!("{e}; the kernel knows {:?}", about.collect::<Vec<_>>())
                    })?;
                    let which = if heard == "plain" { &plain } else { &captured };
                    assert!(heard == "plain" || heard.contains(&to.to_string()), "{heard}");
                    which.fetch_add(1, Ordering::Relaxed);
                    if enough.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
            };
            from.run(work).unwrap()
        })
    });
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        let mut rounds = 0;
        while plain.load(Ordering::Relaxed) + captured.load(Ordering::Relaxed) < connections {
            assert!(
                clients.iter().all(|c| !c.is_finished()),
                "a client was refused: {:#?}",
                running.log.lines()
            );
            running.want(&[spec(UID, &ADDRESSES)]);
            running.until_in(&[UID]).await;
            sleep(Duration::from_millis(100)).await;
            running.want(&[]);
            running.until("the pod to leave", <[_]>::is_empty).await;
            rounds += 1;
        }
        enough.store(true, Ordering::Relaxed);
        running.stop().await;
        println!("{rounds} rounds; {plain:?} plain, {captured:?} captured");
        assert!(rounds > 0 && plain.load(Ordering::Relaxed) > 0 && captured.load(Ordering::Relaxed) > 0);
    })?;
    for client in clients {
        client.join().unwrap()?;
    }
    Ok(())
}

/// Handshakes of which the wire loses the first packet, or the answer to it, until the pod has joined: they go on as they began, and
/// whatever begins later is captured.
fn what_is_being_opened_when_its_pod_joins_is_opened(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    peers::telling(&node.netns);
    peers::telling(&pod);
    node.run(async {
        peers::lose(&node.netns, 8082, true);
        let asking = [
            (&pod, "10.0.0.1:8082", "out"),
            (&pod, "[fd00::1]:8082", "out"),
            (&node.netns, "10.0.0.2:8082", "in"),
            (&node.netns, "[fd00::2]:8082", "in"),
        ];
        let opening = asking.map(|(from, to, _)| {
            let (from, to) = (from.clone(), to.parse().unwrap());
            tokio::task::spawn_blocking(move || from.run(|| peers::hear_all_or_say(to)).unwrap())
        });
        sleep(Duration::from_millis(100)).await;
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        assert_eq!(kept_of(&running.states.borrow()), 4, "they are outside of the mesh");
        peers::lose(&node.netns, 8082, false);
        for opening in opening {
            assert_eq!(opening.await.unwrap(), Ok("plain".into()));
        }
        for (from, to, word) in asking {
            let heard = ask(from, to).await.unwrap();
            assert!(heard.starts_with(word), "{to}: {heard}");
        }
        running.stop().await;
    })
}

fn a_new_pod_is_refused_until_it_is_captured(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[]);
        running.hand_over.take(spec(UID, &ADDRESSES), pod.clone()).await.unwrap();
        let refused = async || {
            for (from, to) in [
                (&pod, "10.0.0.1:8081"),
                (&pod, "[fd00::1]:8081"),
                (&node.netns, "10.0.0.2:8081"),
                (&node.netns, "[fd00::2]:8081"),
            ] {
                let kind = ask(from, to).await.unwrap_err().kind();
                assert_eq!(kind, io::ErrorKind::ConnectionRefused, "{to}");
            }
            // Itself it may call.
            peers::converse_with(&pod, "127.0.0.1:8081").unwrap();
            peers::converse_with(&pod, "10.0.0.2:8081").unwrap();
        };
        refused().await;
        assert!(matches!(
            running.states.borrow()[..],
            [PodState {
                state: State::Waiting,
                closed: true,
                ..
            }]
        ));
        // Somebody who flushes it is put right.
        pod.run(|| {
            let mut batch = Batch::default();
            batch.flush_table(Family::Inet, "ambient-closed");
            Nftables::open().unwrap().commit(batch, None).unwrap();
        })
        .unwrap();
        sleep(Duration::from_millis(700)).await;
        refused().await;
        // A proxy that does not come up changes nothing.
        running.proxy.stay_dead();
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_logged("refused a: the proxy cannot listen").await;
        refused().await;
        running.proxy.live();
        running.until_in(&[UID]).await;
        assert_eq!(ask(&pod, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.2");
        assert_eq!(ask(&node.netns, "[fd00::2]:8081").await.unwrap(), "in [fd00::2]:8081 from fd00::1");
        let state = running.states.borrow()[0].clone();
        assert!(!state.closed && state.kept.is_empty(), "{state:#?}");
        let other = running.hand_over.take(spec("b", &["10.0.0.2"]), pod.clone()).await;
        assert!(other.unwrap_err().to_string().contains("shop/pod-of-a (a)'s"));
        running.stop().await;
    })
}

fn what_has_not_been_started_is_new_unless_something_runs_there(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (fresh, late) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    echo(&node.netns);
    // Its status does not know of it yet.
    echo(&late);
    let not_started = |uid: &str, addresses: &[&str]| PodSpec {
        has_run: false,
        ..spec(uid, addresses)
    };
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.proxy.stay_dead();
        running.want(&[not_started("a", &ADDRESSES), not_started("b", &["10.0.0.3", "fd00::3"])]);
        running.until_logged("refused a: the proxy cannot listen").await;
        running.until_logged("refused b: the proxy cannot listen").await;
        for (from, to) in [
            (&fresh, "10.0.0.1:8081"),
            (&fresh, "[fd00::1]:8081"),
            (&node.netns, "10.0.0.2:8081"),
            (&node.netns, "[fd00::2]:8081"),
        ] {
            let kind = ask(from, to).await.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::ConnectionRefused, "{to}");
        }
        let closed: Vec<bool> = running.states.borrow().iter().map(|s| s.closed).collect();
        assert_eq!(closed, [true, false]);
        // What runs is not refused for what is said of it.
        peers::converse_with(&late, "10.0.0.1:8081").unwrap();
        peers::converse_with(&node.netns, "[fd00::3]:8081").unwrap();
        running.proxy.live();
        running.until_in(&["a", "b"]).await;
        assert_eq!(ask(&fresh, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.2");
        assert_eq!(ask(&late, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.3");
        assert!(running.states.borrow().iter().all(|s| !s.closed));
        running.stop().await;
    })
}

fn what_cannot_be_mended_is_refused(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut kept = open_all(&node, &pod);
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        usurp(&pod);
        running.until("refusal", |states| states[0].closed).await;
        for (from, to) in [(&pod, "10.0.0.1:8081"), (&pod, "[fd00::1]:8081"), (&node.netns, "10.0.0.2:8081")] {
            let kind = ask(from, to).await.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::ConnectionRefused, "{to}");
        }
        for pair in &mut kept {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        give_back(&pod);
        running.until("capture", |states| is_in(states, UID) && !states[0].closed).await;
        assert_eq!(ask(&pod, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.2");
        for pair in &mut kept {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        running.stop().await;
    })
}

fn what_cannot_be_mended_goes_around_by_choice(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    node.run(async {
        let config = Config {
            open_when_unproven: true,
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        // Rules stand, and nobody is there.
        running.proxy.stay_dead();
        running.until_logged("withdrawn a").await;
        peers::until("what is open", || peers::converse_with(&pod, "10.0.0.1:8081").is_ok()).await;
        running.proxy.live();
        running.until_in(&[UID]).await;
        assert_eq!(ask(&pod, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.2");
        running.stop().await;
    })
}

fn what_went_around_is_reset_and_counted(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut kept = open_all(&node, &pod);
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        sleep(Duration::from_millis(150)).await;
        let mut stray = flush_and_connect(&pod);
        running.until_logged("repaired a").await;
        assert!(stray.is_cut());
        assert_eq!(running.states.borrow()[0].strays, 1);
        assert!(
            running
                .log
                .lines()
                .iter()
                .any(|l| l.contains("1 connections that went around the proxy are reset"))
        );
        for pair in &mut kept {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        assert_eq!(kept_of(&running.states.borrow()), 8);
        running.stop().await;
    })
}

/// Takes what redirects away, and connects before anybody can put it back.
fn flush_and_connect(pod: &Arc<Netns>) -> Pair {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.flush_table(Family::Inet, "ambient-nat");
        batch.flush_table(Family::Inet, "ambient-guard");
        Nftables::open().unwrap().commit(batch, None).unwrap();
        Pair::open("10.0.0.1:8081".parse().unwrap(), false)
    })
    .unwrap()
    .unwrap()
}

/// Puts a table of somebody else's in the place of ours.
fn usurp(pod: &Arc<Netns>) {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, "ambient-nat");
        batch.add_table(Family::Inet, "ambient-nat", b"");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}

fn give_back(pod: &Arc<Netns>) {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, "ambient-nat");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}
