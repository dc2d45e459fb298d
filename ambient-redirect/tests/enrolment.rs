//! Pods in real namespaces, real packets, real rules.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/families.rs"]
mod families;
#[path = "support/guard.rs"]
mod guard;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mesh;
#[path = "support/node.rs"]
mod node;
#[path = "support/versions.rs"]
mod versions;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_core::PodUid;
use ambient_redirect::{
    Config,
    linux::{Inside, Mark, Netns, Sockets, Way, preflight},
    netlink::{BaseChain, Batch, Expr, Family, Nftables, Routing},
    plan::{Options, Plan},
    pods::{Cause, State, Unpaired},
};
use ambient_testkit::{
    World,
    harness::{self, Outcome},
};
use heard::ask;
use mesh::{Log, Running, is_in, namespace_of};
use node::{Node, spec};
use tokio::time::sleep;

fn main() -> ExitCode {
    harness::main(&[
        ("preflight_leaves_no_trace", preflight_leaves_no_trace),
        ("rules_are_listed_as_given", rules_are_listed_as_given),
        ("captured_traffic_reaches_the_proxy", captured_traffic_reaches_the_proxy),
        ("applications_see_the_client", applications_see_the_client),
        ("an_old_tuple_does_not_go_around", guard::an_old_tuple_does_not_go_around),
        (
            "a_proof_whose_port_is_changed_is_known",
            guard::a_proof_whose_port_is_changed_is_known,
        ),
        ("the_guard_refuses_nobody_exempt", guard::the_guard_refuses_nobody_exempt),
        ("without_a_proxy_connections_are_refused", without_a_proxy_connections_are_refused),
        ("what_is_broken_is_repaired", what_is_broken_is_repaired),
        ("release_leaves_nothing", release_leaves_nothing),
        (
            "what_is_foreign_is_refused_and_left_alone",
            what_is_foreign_is_refused_and_left_alone,
        ),
        ("a_restart_takes_over", a_restart_takes_over),
        (
            "what_another_version_of_this_left_is_put_right",
            versions::what_another_version_of_this_left_is_put_right,
        ),
        (
            "what_a_later_version_left_for_nobody_goes",
            versions::what_a_later_version_left_for_nobody_goes,
        ),
        ("what_a_killed_node_left_for_others_goes", what_a_killed_node_left_for_others_goes),
        ("an_address_used_again_is_another_pod", an_address_used_again_is_another_pod),
        ("one_namespace_a_new_pod", one_namespace_a_new_pod),
        ("claims_that_conflict_pair_nobody", claims_that_conflict_pair_nobody),
        ("the_nodes_own_namespace_is_no_pods", the_nodes_own_namespace_is_no_pods),
        ("nothing_is_touched_until_it_is_known", nothing_is_touched_until_it_is_known),
        (
            "what_another_node_has_in_force_is_left_alone",
            what_another_node_has_in_force_is_left_alone,
        ),
        (
            "everything_is_released_at_the_end_if_asked",
            everything_is_released_at_the_end_if_asked,
        ),
        ("many_pods_at_once", many_pods_at_once),
        (
            "a_family_that_goes_and_comes_back_is_captured_again",
            families::a_family_that_goes_and_comes_back_is_captured_again,
        ),
        (
            "a_pod_of_one_family_is_captured_and_proven",
            families::a_pod_of_one_family_is_captured_and_proven,
        ),
    ])
}

fn preflight_leaves_no_trace(world: &World) -> Outcome {
    Node::new(world)?.run(async {
        preflight(&Options::default()).await.unwrap();
        preflight(&Options {
            ipv6: false,
            dns: false,
            probes: true,
            inbound: false,
            virtual_interfaces: vec!["tap0".parse().unwrap()],
            yields: true,
            loopback_segments: true,
        })
        .await
        .unwrap();
        assert!(Nftables::open().unwrap().tables().unwrap().is_empty());
    })
}

fn rules_are_listed_as_given(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (uid, pod) = (PodUid::from("uid"), Mark::new("node-1", &"uid".into()));
    for options in [(true, true, true), (true, false, false), (false, true, true), (false, false, false)] {
        let (ipv6, dns, probes) = options;
        let plan = Plan::new(&Options {
            ipv6,
            dns,
            probes,
            ..Options::default()
        });
        let mut inside = Inside::open(&node.netns).unwrap();
        assert!(!inside.apply(&plan, &pod).unwrap().is_empty());
        assert_eq!(inside.apply(&plan, &pod).unwrap(), [], "nothing differs after it was applied");
    }
    let chains = node.netns.run(|| Nftables::open().unwrap().chains().unwrap()).unwrap();
    assert_eq!(chains.len(), 6, "a table that is not in the plan any more is gone");
    let mut inside = Inside::open(&node.netns).unwrap();
    assert_eq!(inside.owner().unwrap().unwrap().pod, Some(uid));
    // Another pod's rules are replaced, mark and all.
    inside
        .apply(&Plan::new(&Options::default()), &Mark::new("node-1", &"other".into()))
        .unwrap();
    assert_eq!(inside.owner().unwrap().unwrap().pod, Some(PodUid::from("other")));
    inside.clear().unwrap();
    inside.clear().unwrap();
    assert!(is_clean(&node.netns));
    Ok(())
}

fn captured_traffic_reaches_the_proxy(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        let spec = spec("a", &["10.0.0.2", "fd00::2"]);
        running
            .announcements
            .namespaces
            .lock()
            .unwrap()
            .insert(spec.uid.clone(), pod.clone());
        running.want(&[spec]);
        running.until_in(&["a"]).await;
        let state = running.states.borrow()[0].clone();
        let State::In { proof, .. } = &state.state else {
            panic!("{state:?}")
        };
        let known = Some(Way::Recognised);
        assert_eq!((proof.outbound.v4, proof.outbound.v6), (known, known), "{proof}");
        running
            .until("a proof from the node's side", |states| {
                let State::In { proof, .. } = &states[0].state else { return false };
                (proof.inbound.v4, proof.inbound.v6) == (known, known)
            })
            .await;
        assert!(
            state.said.unwrap().contains("tables ambient-nat, ambient-mangle"),
            "what was done is said"
        );
        assert_eq!(running.log.count("captured a with rules"), 1);
        assert!(running.log.count("probe") >= 4);

        assert_eq!(ask(&pod, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        assert_eq!(ask(&pod, "[2001:db8::7]:80").await.unwrap(), "out [2001:db8::7]:80 from fd00::2");
        assert_eq!(ask(&pod, "198.51.100.7:53").await.unwrap(), "dns 198.51.100.7:53 from 10.0.0.2");
        assert_eq!(ask(&node.netns, "10.0.0.2:8080").await.unwrap(), "in 10.0.0.2:8080 from 10.0.0.1");
        assert_eq!(ask(&node.netns, "[fd00::2]:8080").await.unwrap(), "in [fd00::2]:8080 from fd00::1");
        assert_eq!(
            ask(&node.netns, "10.0.0.2:15008").await.unwrap(),
            "hbone 10.0.0.2:15008 from 10.0.0.1"
        );
        for server in ["198.51.100.7:53", "[2001:db8::7]:53"] {
            assert_eq!(query(&pod, server).await.unwrap(), b"name?", "{server}");
        }
        running.stop().await;
    })
}

fn applications_see_the_client(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let application = pod.run(|| TcpListener::bind("[::]:8080").unwrap()).unwrap();
        let served = std::thread::spawn(move || {
            for _ in 0..4 {
                let (mut stream, peer) = application.accept().unwrap();
                // One that a client's kernel does not give.
                assert!(peer.port() >= 61_000 || peer.port() % 2 == 1, "{peer}");
                stream.write_all(peer.ip().to_canonical().to_string().as_bytes()).unwrap();
            }
        });
        let sockets = Sockets::new().unwrap();
        let clients = [("198.51.100.9", "10.0.0.2:8080"), ("2001:db8::9", "[fd00::2]:8080")];
        for (n, (client, server)) in clients.iter().chain(&clients).enumerate() {
            if n == 2 {
                // As strict as it goes: the client's address comes in by the loopback device.
                pod.run(|| {
                    for device in ["all", "default", "lo", "eth0"] {
                        std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "1").unwrap();
                    }
                })
                .unwrap();
            }
            let connected = sockets
                .tcp_connect(&pod, Some(client.parse().unwrap()), server.parse().unwrap(), Duration::from_secs(2))
                .await;
            let mut stream = connected.unwrap();
            let mut text = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await.unwrap();
            assert_eq!(text, *client, "{n}");
        }
        served.join().unwrap();
        // What the proxy sends itself is not captured: nobody is there, and the node says so.
        let refused = sockets
            .tcp_connect(&pod, None, "10.0.0.1:81".parse().unwrap(), Duration::from_secs(2))
            .await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        running.stop().await;
    })
}

fn without_a_proxy_connections_are_refused(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let _outside = TcpListener::bind("10.0.0.1:80").unwrap();
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        running.kill().await;
        sleep(Duration::from_millis(50)).await;
        let _application = pod.run(|| TcpListener::bind("10.0.0.2:8080").unwrap()).unwrap();
        for to in ["10.0.0.1:80", "198.51.100.7:80", "[2001:db8::7]:80", "198.51.100.7:53"] {
            assert_eq!(ask(&pod, to).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
        assert_eq!(
            ask(&node.netns, "10.0.0.2:8080").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    })
}

/// Does damage in the namespace in which the two were opened.
type Breakage = fn(&mut Routing, &mut Nftables);

#[expect(clippy::disallowed_methods, reason = "the time from damage to repair is what is tested")]
fn what_is_broken_is_repaired(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let plan = Plan::new(&Options::default());
        let breakages: [(&str, Breakage); 4] = [
            ("all rules of a table", |_, nft| {
                let mut batch = Batch::default();
                batch.flush_table(Family::Inet, "ambient-nat");
                nft.commit(batch, None).unwrap();
            }),
            ("a table", |_, nft| {
                let mut batch = Batch::default();
                batch.delete_table(Family::Inet, "ambient-mangle");
                nft.commit(batch, None).unwrap();
            }),
            ("a rule before ours", |_, nft| {
                let mut batch = Batch::default();
                batch.add_rule(Family::Inet, "ambient-nat", "output", &[Expr::Counter]);
                nft.commit(batch, None).unwrap();
            }),
            ("the routing rules", |routing, _| {
                for rule in routing.rules().unwrap().iter().filter(|r| r.table == 100) {
                    routing.delete_rule(rule).unwrap();
                }
                for route in routing.routes(100).unwrap() {
                    routing.delete_route(&route).unwrap();
                }
            }),
        ];
        for (count, (what, breakage)) in breakages.into_iter().enumerate() {
            sleep(Duration::from_millis(120)).await;
            let begun = pod
                .run(|| {
                    breakage(&mut Routing::open().unwrap(), &mut Nftables::open().unwrap());
                    Instant::now()
                })
                .unwrap();
            while running.log.count("repaired a") == count {
                assert!(
                    begun.elapsed() < Duration::from_secs(1),
                    "{what} was not repaired: {:#?}",
                    running.log.lines()
                );
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(
                Inside::open(&pod)
                    .unwrap()
                    .verify(&plan, &Mark::new(node::NAME, &"a".into()))
                    .unwrap(),
                [],
                "{what}"
            );
        }
        assert_eq!(running.log.count("withdrawn"), 0);
        running.proxy.die();
        running.until_logged("repaired a: nobody listens").await;
        assert_eq!(ask(&pod, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        running.stop().await;
    })
}

fn release_leaves_nothing(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    pod.run(|| {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, "theirs", b"");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.announcements.namespaces.lock().unwrap().insert("a".into(), pod.clone());
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        running.want(&[]);
        running.until_logged("released a").await;
        let log = running.log.lines();
        let at = |line: &str| {
            log.iter()
                .position(|l| l.starts_with(line))
                .unwrap_or_else(|| panic!("no {line}: {log:#?}"))
        };
        assert!(
            at("withdrawn a with rules") < at("cut a with rules") && at("cut a") < at("remove a"),
            "{log:#?}"
        );
        assert!(is_clean(&pod));
        let tables = pod.run(|| Nftables::open().unwrap().tables().unwrap()).unwrap();
        assert_eq!(tables.len(), 1, "what is theirs stays");
        let outside = TcpListener::bind("10.0.0.1:80").unwrap();
        std::thread::spawn(move || outside.accept().unwrap().0.write_all(b"plain").unwrap());
        assert_eq!(ask(&pod, "10.0.0.1:80").await.unwrap(), "plain");
        running.stop().await;
    })
}

fn what_is_foreign_is_refused_and_left_alone(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let table = node.pod("table", "10.0.0.2", "fd00::2")?;
    let port = node.pod("port", "10.0.0.3", "fd00::3")?;
    node.pod("fine", "10.0.0.4", "fd00::4")?;
    table
        .run(|| {
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "ambient-nat", b"");
            batch.add_base_chain(Family::Inet, "ambient-nat", "output", &BaseChain::nat_output());
            Nftables::open().unwrap().commit(batch, None).unwrap();
        })
        .unwrap();
    let _theirs = port.run(|| TcpListener::bind("0.0.0.0:15006").unwrap()).unwrap();
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[
            spec("table", &["10.0.0.2", "fd00::2"]),
            spec("port", &["10.0.0.3", "fd00::3"]),
            spec("fine", &["10.0.0.4", "fd00::4"]),
        ]);
        running.until_in(&["fine"]).await;
        running
            .until_logged("refused table: the rules cannot be put in force: the namespace holds a table inet ambient-nat")
            .await;
        running.until_logged("refused port: the proxy cannot listen").await;
        let states = running.states.borrow().clone();
        assert!(!is_in(&states, "table") && !is_in(&states, "port"));
        // For whoever tells people what to do.
        let cause = |uid: &str| match states.iter().find(|s| s.spec.uid.as_str() == uid).map(|s| &s.state) {
            Some(State::Refused { error }) => error.why.clone(),
            other => panic!("{uid}: {other:?}"),
        };
        assert!(matches!(cause("table"), Cause::ForeignTable(_)) && matches!(cause("port"), Cause::PortTaken(_)));
        assert_eq!(
            table.run(|| Nftables::open().unwrap().chains().unwrap().len()).unwrap(),
            1,
            "theirs is untouched"
        );
        assert!(is_clean(&port));
        assert_eq!(running.log.count("captured"), 1);
        // Mended by hand, it is captured without being asked again.
        table
            .run(|| {
                let mut batch = Batch::default();
                batch.delete_table(Family::Inet, "ambient-nat");
                Nftables::open().unwrap().commit(batch, None).unwrap();
            })
            .unwrap();
        running.until_in(&["table", "fine"]).await;
        running.stop().await;
    })
}

fn a_restart_takes_over(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let log = Log::default();
    node.run(async {
        let running = Running::capturing(node.config(), &log, &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        running.kill().await;
        let before = handles(&pod);
        let running = Running::capturing(node.config(), &log, &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert_eq!(log.count("captured a"), 2);
        assert_eq!((log.count("withdrawn"), log.count("refused")), (0, 0), "{:#?}", log.lines());
        assert_eq!(handles(&pod), before);
        assert_eq!(ask(&pod, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        // An orderly stop leaves the rules: what is captured stays captured.
        running.stop().await;
        assert!(!is_clean(&pod));
    })
}

fn what_a_killed_node_left_for_others_goes(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let log = Log::default();
    node.run(async {
        let running = Running::capturing(node.config(), &log, &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        running.kill().await;
        let running = Running::start(node.config(), &log);
        running.want(&[]);
        running.until_logged("released a").await;
        assert_eq!(log.count("withdrawn a"), 1);
        assert!(is_clean(&pod));
        running.stop().await;
    })
}

fn an_address_used_again_is_another_pod(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let name = world.namespace("first")?;
    let first = node.join(&name, "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("old", &["10.0.0.2"])]).await;
        // The new one is wanted before the old one's namespace has gone.
        running.want(&[spec("new", &["10.0.0.2"])]);
        running.until_logged("withdrawn old").await;
        name.delete().unwrap();
        sleep(Duration::from_millis(60)).await;
        node.namespace.delete_interface("first").unwrap();
        let second = node.pod("second", "10.0.0.2", "fd00::2").unwrap();
        running.until_in(&["new"]).await;
        assert_eq!(namespace_of(&running.states.borrow(), "new"), Some(second.id()));
        assert_eq!(
            running.log.count(&format!("add new {}", first.id())),
            0,
            "{:#?}",
            running.log.lines()
        );
        running.stop().await;
    })
}

fn one_namespace_a_new_pod(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("old", &["10.0.0.2"])]).await;
        running.want(&[spec("new", &["10.0.0.2"])]);
        running.until_in(&["new"]).await;
        let log = running.log.lines();
        let at = |line: &str| {
            log.iter()
                .position(|l| l.starts_with(line))
                .unwrap_or_else(|| panic!("no {line}: {log:#?}"))
        };
        assert!(
            at("withdrawn old") < at("remove old") && at("remove old") < at("add new"),
            "{log:#?}"
        );
        assert_eq!(Inside::open(&pod).unwrap().owner().unwrap().unwrap().pod, Some("new".into()));
        running.stop().await;
    })
}

fn claims_that_conflict_pair_nobody(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pods = [node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?];
    let thief = world.namespace("thief")?;
    for address in ["10.0.0.7", "10.0.0.2"] {
        thief.add_address("lo", address.parse::<IpAddr>()?)?;
    }
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[
            spec("a", &["10.0.0.2"]),
            spec("b", &["10.0.0.3"]),
            spec("c", &["10.0.0.3"]),
            spec("d", &["127.0.0.1"]),
        ]);
        let why = |states: &[ambient_redirect::pods::PodState], uid: &str, text: &str| {
            states
                .iter()
                .any(|s| s.spec.uid.as_str() == uid && matches!(&s.state, State::Pairing { why } if why.to_string().contains(text)))
        };
        running
            .until("the conflicts to be named", |s| {
                why(s, "a", "two namespaces")
                    && why(s, "b", "has the same address")
                    && why(s, "c", "has the same address")
                    && why(s, "d", "no pod's")
            })
            .await;
        let states = running.states.borrow().clone();
        assert!(why(&states, "b", "shop/pod-of-c (c) has the same address 10.0.0.3"), "{states:#?}");
        assert!(pods.iter().all(|p| is_clean(p)));
        // Once it is clear whose it is, it is taken. If one of the two went, it would not be clear which of them was the pod's.
        let give_up = || Routing::open()?.delete_address(1, [10, 0, 0, 2].into(), 32);
        thief.run(give_up).unwrap().unwrap();
        running.want(&[spec("a", &["10.0.0.2"]), spec("b", &["10.0.0.3"])]);
        running.until_in(&["a", "b"]).await;
        // A later claim changes nothing, and is told why it is not heard.
        running.want(&[spec("a", &["10.0.0.2"]), spec("b", &["10.0.0.3"]), spec("late", &["10.0.0.3"])]);
        running
            .until("the late claim to be told", |s| {
                is_in(s, "b") && why(s, "late", "shop/pod-of-b (b) has the same address 10.0.0.3, and the namespace")
            })
            .await;
        running.stop().await;
    })
}

fn the_nodes_own_namespace_is_no_pods(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        // It has a name among those of the pods, and this address.
        running.want(&[spec("a", &["10.0.0.2"]), spec("impostor", &["10.0.0.1"])]);
        running.until_in(&["a"]).await;
        running
            .until("the impostor to stay outside", |states| {
                let of = states.iter().find(|s| s.spec.uid.as_str() == "impostor");
                of.is_some_and(|s| matches!(&s.state, State::Pairing { why } if *why == Unpaired::Nowhere))
            })
            .await;
        assert_eq!(running.log.count("add impostor"), 0);
        assert!(is_clean(&node.netns));
        running.stop().await;
    })
}

fn nothing_is_touched_until_it_is_known(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let mut inside = Inside::open(&pod).unwrap();
    inside
        .apply(&Plan::new(&Options::default()), &Mark::new(node::NAME, &"left".into()))
        .unwrap();
    node.run(async {
        let running = Running::start(node.config(), &Log::default());
        sleep(Duration::from_millis(200)).await;
        assert_eq!(running.log.lines(), [""; 0]);
        assert!(!is_clean(&pod));
        running.stop().await;
    })
}

fn what_another_node_has_in_force_is_left_alone(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (theirs, ours) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    let plan = Plan::new(&Options::default());
    let apply = |to: &Arc<Netns>, node: &str| Inside::open(to).unwrap().apply(&plan, &Mark::new(node, &"left".into())).unwrap();
    apply(&theirs, "node-2");
    apply(&ours, node::NAME);
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[]);
        while !is_clean(&ours) {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(!is_clean(&theirs), "another node's pod was uncovered");
        // Wanted here, it is taken over all the same: its address says whose it is.
        running.want(&[spec("a", &["10.0.0.2"])]);
        running.until_in(&["a"]).await;
        assert!(Inside::open(&theirs).unwrap().owner().unwrap().unwrap().is_node(node::NAME));
        running.stop().await;
    })
}

fn everything_is_released_at_the_end_if_asked(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(
            Config {
                release_at_end: true,
                ..node.config()
            },
            &Log::default(),
            &[spec("a", &["10.0.0.2"])],
        )
        .await;
        let log = running.stop().await;
        assert_eq!((log.count("withdrawn a"), log.count("remove a")), (1, 1));
        assert!(is_clean(&pod));
    })
}

/// All that a node may have to take on when it starts. How long it takes is printed: `--nocapture` shows it.
#[expect(clippy::disallowed_methods, reason = "how long it takes is only printed")]
fn many_pods_at_once(world: &World) -> Outcome {
    const PODS: u8 = 50;
    let node = Node::new(world)?;
    let begun = Instant::now();
    let mut pods = BTreeMap::new();
    let mut specs = Vec::new();
    for n in 1..=PODS {
        let (uid, v4, v6) = (format!("pod-{n}"), format!("10.0.1.{n}"), format!("fd00::1:{n}"));
        pods.insert(PodUid::from(uid.as_str()), node.pod(&uid, &v4, &v6)?);
        specs.push(spec(&uid, &[&v4, &v6]));
    }
    println!("{PODS} namespaces made: {:?}", begun.elapsed());
    node.run(async {
        let begun = Instant::now();
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&specs);
        let uids: Vec<&str> = pods.keys().map(PodUid::as_str).collect();
        running.until_in(&uids).await;
        println!("{PODS} pods captured: {:?}", begun.elapsed());
        for (uid, pod) in &pods {
            assert_eq!(namespace_of(&running.states.borrow(), uid.as_str()), Some(pod.id()), "{uid}");
        }
        let log = &running.log;
        let said = (
            log.count("captured"),
            log.count("repaired"),
            log.count("refused"),
            log.count("withdrawn"),
        );
        assert_eq!(said, (usize::from(PODS), 0, 0, 0), "{:#?}", log.lines());

        let plan = Plan::new(&Options::default());
        let (mut opening, mut verifying) = (Duration::ZERO, Duration::ZERO);
        for (uid, pod) in &pods {
            let mark = Mark::new(node::NAME, uid);
            let begun = Instant::now();
            let mut inside = Inside::open(pod).unwrap();
            opening += begun.elapsed();
            let begun = Instant::now();
            assert_eq!(inside.verify(&plan, &mark).unwrap(), [], "{uid}");
            verifying += begun.elapsed();
        }
        let each = |all: Duration| all / u32::from(PODS);
        println!("a look into one: opening {:?}, verifying {:?}", each(opening), each(verifying));

        let begun = Instant::now();
        running.want(&[]);
        running.until("all pods to leave", <[_]>::is_empty).await;
        println!("{PODS} pods released: {:?}", begun.elapsed());
        assert!(pods.values().all(|pod| is_clean(pod)));
        running.stop().await;
    })
}

/// Sends a datagram from a connected socket, which takes an answer from nobody else.
async fn query(from: &Arc<Netns>, to: &str) -> io::Result<Vec<u8>> {
    let (from, to): (_, SocketAddr) = (from.clone(), to.parse().unwrap());
    let asked = tokio::task::spawn_blocking(move || {
        from.run(|| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.send(b"name?")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok(buffer[..length].to_vec())
        })
    });
    asked.await.unwrap().unwrap()
}

/// Whether nothing of ours is in a namespace.
fn is_clean(namespace: &Netns) -> bool {
    namespace
        .run(|| {
            let tables = Nftables::open().unwrap().tables().unwrap();
            let mut routing = Routing::open().unwrap();
            let rules = routing.rules().unwrap();
            !tables.iter().any(|t| t.name.starts_with("ambient-"))
                && rules.iter().all(|r| r.table != 100)
                && routing.routes(100).unwrap().is_empty()
        })
        .unwrap()
}

/// The kernel's numbers of the rules that redirect.
fn handles(namespace: &Netns) -> Vec<u64> {
    let rules = namespace
        .run(|| Nftables::open().unwrap().rules(Family::Inet, "ambient-nat").unwrap())
        .unwrap();
    rules.iter().map(|rule| rule.handle).collect()
}
