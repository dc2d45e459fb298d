//! How large the segments are of what is captured, and of what is not.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mesh;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod node;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::Duration,
};

use ambient_core::Capture;
use ambient_redirect::{
    Config, PodSpec,
    linux::{Aside, Inside, Mark, Netns, Segments},
    netlink::{Batch, Family, LeadsTo, Nftables, Packet, Policy, Route, RouteKind, Routing},
    plan::{IpFamily, Options, PROBE_SOURCES, PROXY_MARK, Plan, SEGMENTS_MTU, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
    pods::{Cause, PodState, State},
};
use ambient_testkit::{
    World,
    harness::{self, Outcome},
};
use ipnet::IpNet;
use mesh::{Log, Running};
use node::{NAME, Node, spec};
use socket2::{Domain, SockRef, Socket, Type};

fn main() -> ExitCode {
    harness::main(&[
        (
            "what_is_captured_has_the_loopbacks_segments",
            what_is_captured_has_the_loopbacks_segments,
        ),
        ("what_goes_around_has_the_links_segments", what_goes_around_has_the_links_segments),
        (
            "segments_come_back_to_each_family_by_itself",
            segments_come_back_to_each_family_by_itself,
        ),
        (
            "segments_of_an_earlier_life_do_not_stay_beside_what_is_kept",
            segments_of_an_earlier_life_do_not_stay_beside_what_is_kept,
        ),
        (
            "a_family_that_is_switched_off_is_not_spoken_of",
            a_family_that_is_switched_off_is_not_spoken_of,
        ),
        ("segments_are_put_and_taken_by_hand", segments_are_put_and_taken_by_hand),
        (
            "segments_leave_out_no_rule_of_somebody_elses",
            segments_leave_out_no_rule_of_somebody_elses,
        ),
        ("segments_stay_where_a_narrow_link_is_met", segments_stay_where_a_narrow_link_is_met),
        (
            "segments_that_are_refused_come_once_they_can",
            segments_that_are_refused_come_once_they_can,
        ),
        ("segments_follow_what_changed_meanwhile", segments_follow_what_changed_meanwhile),
        (
            "segments_do_not_outlive_the_rules_that_capture",
            segments_do_not_outlive_the_rules_that_capture,
        ),
    ])
}

/// The largest segment that a socket of the namespace sends to somebody it is connected with, in bytes.
fn segment(pod: &Netns, to: &str) -> u32 {
    let to: SocketAddr = to.parse().unwrap();
    let connect = || {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).unwrap();
        SockRef::from(&stream).tcp_mss().unwrap()
    };
    pod.run(connect).unwrap()
}

/// The rules and the routes that are there for segments.
fn there(pod: &Netns) -> (Vec<Policy>, Vec<Route>) {
    let list = || {
        let mut routing = Routing::open().unwrap();
        let mut policies = routing.policies().unwrap();
        policies.retain(|policy| policy.table() == Some(SEGMENTS_TABLE));
        (policies, routing.routes(SEGMENTS_TABLE).unwrap())
    };
    pod.run(list).unwrap()
}

/// Waits until as many rules are there, and their routes lead to these.
async fn until(pod: &Netns, rules: usize, destinations: &[&str], what: &str) {
    let mut wanted: Vec<String> = destinations.iter().map(ToString::to_string).collect();
    wanted.sort_unstable();
    for _ in 0..500 {
        let (policies, mut routes) = there(pod);
        // What goes to probes goes by the main table.
        let (all, main) = (routes.len(), pod.run(|| Routing::open().unwrap().routes(254).unwrap()).unwrap());
        routes.retain(|route| route.kind != RouteKind::Thrown);
        let thrown = all - routes.len();
        let mut lead_to: Vec<String> = routes.iter().map(|route| route.destination.to_string()).collect();
        lead_to.sort_unstable();
        if policies.len() == rules && lead_to == wanted && thrown == rules {
            let is_rule = |policy: &Policy| policy.priority == SEGMENTS_PRIORITY && policy.protocol == 6;
            assert!(policies.iter().all(is_rule), "{policies:?}");
            let is_mirrored = |route: &Route| {
                let as_mirrored = |main: &Route| Route {
                    table: SEGMENTS_TABLE,
                    mtu: Some(SEGMENTS_MTU),
                    protocol: route.protocol,
                    ..main.clone()
                };
                main.iter().any(|main| as_mirrored(main) == *route)
            };
            let well = |route: &Route| route.protocol == BY_HAND || is_mirrored(route);
            if routes.iter().all(well) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {:#?} instead of {rules} rules, and routes to {wanted:?}", there(pod));
}

/// Waits until this is told of whose segments there are, of IPv4 and of IPv6.
async fn until_told(running: &Running, what: &str) {
    let told = || {
        let states = running.states.borrow();
        let told = states
            .first()
            .map(|pod| pod.segments.iter().map(|(_, whose)| whose.to_string()).collect::<Vec<_>>());
        format!("[{}]", told.unwrap_or_default().join(", "))
    };
    for _ in 0..500 {
        if told() == what {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} is told, and not {what}", told());
}

const WELL: &str = "[the loopback device's, the loopback device's]";

fn change(pod: &Netns, work: impl FnOnce(&mut Routing, u32) + Send) {
    let work = || {
        let mut routing = Routing::open().unwrap();
        let device = routing.link("eth0").unwrap().index;
        work(&mut routing, device);
    };
    pod.run(work).unwrap();
}

/// Of a route that `ip route` makes.
const BY_HAND: u8 = 3;
fn config(node: &Node) -> Config {
    Config {
        options: asked_for(),
        verify_every: Duration::from_millis(100),
        ..node.config()
    }
}

fn asked_for() -> Options {
    Options {
        loopback_segments: true,
        ..Options::default()
    }
}

/// What a pod of [`Node::pod`] has in its main table.
const MAIN: [&str; 4] = ["0.0.0.0/0", "::/0", "fd00::2/128", "fe80::/64"];

fn what_is_captured_has_the_loopbacks_segments(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let net = |text: &str| text.parse().unwrap();
    node.run(async {
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        for to in ["198.51.100.7:80", "[2001:db8::7]:80"] {
            let segment = segment(&pod, to);
            assert!(segment > 30_000, "{segment} bytes to {to}");
        }
        // As the main table changes, so does ours.
        let extra = |device| Route::to(net("192.0.2.0/24")).via([10, 0, 0, 1].into()).dev(device).onlink();
        change(&pod, |routing, device| routing.add_route(&extra(device)).unwrap());
        until(&pod, 2, &[&MAIN[..], &["192.0.2.0/24"]].concat(), "with another route").await;
        change(&pod, |routing, device| routing.delete_route(&extra(device)).unwrap());
        until(&pod, 2, &MAIN, "without it").await;
        // What a route says of the link's packets, as some network plugins have it, is nothing to what stays in the pod.
        let narrow = |device| Route {
            mtu: Some(1280),
            ..extra(device)
        };
        change(&pod, |routing, device| routing.add_route(&narrow(device)).unwrap());
        until(&pod, 2, &[&MAIN[..], &["192.0.2.0/24"]].concat(), "with a route that has an MTU").await;
        assert!(segment(&pod, "192.0.2.7:80") > 30_000);
        change(&pod, |routing, device| routing.delete_route(&narrow(device)).unwrap());
        until(&pod, 2, &MAIN, "without that").await;
        // A route that leads nowhere is not said again: that family's are the link's.
        let nowhere = || Route::to(net("192.0.2.0/24")).kind(RouteKind::Unreachable);
        change(&pod, |routing, _| routing.add_route(&nowhere()).unwrap());
        until(&pod, 1, &MAIN[1..], "with a route that leads nowhere").await;
        until_told(
            &running,
            "[the link's: the main table says more of the route to 192.0.2.0/24 than whereto it leads, the loopback device's]",
        )
        .await;
        assert!(segment(&pod, "198.51.100.7:80") <= 1460);
        assert!(segment(&pod, "[2001:db8::7]:80") > 30_000);
        change(&pod, |routing, _| routing.delete_route(&nowhere()).unwrap());
        until(&pod, 2, &MAIN, "without that").await;
        until_told(&running, WELL).await;
        // The kernel has routes of IPv6 follow their device.
        change(&pod, |routing, device| routing.set_mtu(device, 1400).unwrap());
        until(&pod, 2, &MAIN, "with another MTU of the link").await;
        // Two devices with the same network: one route would take the other's place.
        change(&pod, |routing, _| {
            routing.add_veth("net1", "net2", None).unwrap();
            for name in ["net1", "net2"] {
                let link = routing.link(name).unwrap().index;
                routing.set_up(link).unwrap();
            }
        });
        until(&pod, 1, &MAIN[..1], "with two devices of one network").await;
        change(&pod, |routing, _| {
            let link = routing.link("net1").unwrap().index;
            routing.delete_link(link).unwrap();
        });
        until(&pod, 2, &MAIN, "without them").await;
        // Probes are answered by the link's.
        let mtu = |to| pod.run(|| Routing::open().unwrap().taken(&Packet::tcp(to, 0)).unwrap().unwrap().mtu);
        assert_eq!(mtu([198, 51, 100, 7].into()).unwrap(), Some(SEGMENTS_MTU));
        for probes in [PROBE_SOURCES.0.into(), PROBE_SOURCES.1.into()] {
            assert_eq!(mtu(probes).unwrap(), None, "{probes}");
        }
        // As all is that is not TCP.
        let datagram = Packet {
            protocol: 17,
            ..Packet::tcp([198, 51, 100, 7].into(), 0)
        };
        let taken = pod.run(|| Routing::open().unwrap().taken(&datagram).unwrap().unwrap()).unwrap();
        assert_eq!(taken.mtu, None);
        // Whoever takes them away finds them there again.
        change(&pod, |routing, _| {
            for policy in routing.policies().unwrap().iter().filter(|p| p.table() == Some(SEGMENTS_TABLE)) {
                routing.delete_policy(policy).unwrap();
            }
        });
        until(&pod, 2, &MAIN, "after somebody took the rules away").await;
        running.want(&[]);
        until(&pod, 0, &[], "as it has left").await;
        running.stop().await;
    })
}

fn what_goes_around_has_the_links_segments(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let server = node.pod("b", "10.0.0.3", "fd00::3")?;
    let listener = server.run(|| TcpListener::bind("10.0.0.3:80"))??;
    node.run(async {
        let kept = pod.run(|| TcpStream::connect("10.0.0.3:80")).unwrap().unwrap();
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert_eq!(running.states.borrow()[0].kept.len(), 1);
        let aside = "the link's: a connection from before the capture goes around the proxy";
        // Of its family alone: the other has routing of its own.
        until_told(&running, &format!("[{aside}, the loopback device's]")).await;
        until(&pod, 1, &MAIN[1..], "of the family of which none is kept").await;
        let segment_then = segment(&pod, "198.51.100.7:80");
        assert!(
            segment_then <= 1460 && there(&pod).0.iter().all(|policy| policy.ipv6),
            "{segment_then} bytes beside one that is kept"
        );
        let of_other = segment(&pod, "[2001:db8::7]:80");
        assert!(of_other > 30_000, "{of_other} bytes of the other family");
        assert!(SockRef::from(&kept).tcp_mss().unwrap() <= 1460);
        // Nor does who puts the plan there himself put them, or say that he would.
        let (plan, mark) = (Plan::new(&asked_for()), Mark::new(NAME, &"a".into()));
        let mut inside = Inside::open(&pod).unwrap();
        let would = inside.dry_run(&plan, &mark).unwrap();
        let aside = "no loopback segments, IPv4: a connection from before the capture goes around the proxy";
        assert!(would.to_string().contains(aside), "{would}");
        assert!(!would.to_string().contains("+ loopback segments, IPv4"), "{would}");
        inside.apply(&plan, &mark).unwrap();
        assert!(there(&pod).0.iter().all(|policy| policy.ipv6), "{:?}", there(&pod));
        drop((kept, listener));
        until(&pod, 2, &MAIN, "once it has ended").await;
        until_told(&running, WELL).await;
        // The proxy's own have the link's: they leave it.
        let listener = server.run(|| TcpListener::bind("10.0.0.3:80")).unwrap().unwrap();
        let proxys = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_mark(PROXY_MARK).unwrap();
            let to: SocketAddr = "10.0.0.3:80".parse().unwrap();
            socket.connect_timeout(&to.into(), Duration::from_secs(3)).unwrap();
            socket.tcp_mss().unwrap()
        };
        let proxys = pod.run(proxys).unwrap();
        assert!(proxys <= 1460, "{proxys} bytes");
        drop(listener);
        // What comes to the pod around the proxy from here on is answered around it.
        let around = PodSpec {
            capture: Capture {
                bypass_inbound: true,
                ..Capture::default()
            },
            ..spec("a", &["10.0.0.2", "fd00::2"])
        };
        running.want(&[around]);
        until(&pod, 0, &[], "with a way around the proxy").await;
        let aside = "the link's: what comes to the pod goes around the proxy";
        until_told(&running, &format!("[{aside}, {aside}]")).await;
        running.stop().await;
    })
}

/// As soon as nothing of it is kept any more, whatever is of the other, and although the kernel tells of no change.
fn segments_come_back_to_each_family_by_itself(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let server = node.pod("b", "10.0.0.3", "fd00::3")?;
    let listen = || Ok::<_, std::io::Error>((TcpListener::bind("10.0.0.3:80")?, TcpListener::bind("[fd00::3]:80")?));
    let (v4, v6) = server.run(listen)??;
    node.run(async {
        // With its other end, so that it ends with both.
        let connect = |to: &TcpListener| {
            let address = to.local_addr().unwrap();
            (pod.run(|| TcpStream::connect(address)).unwrap().unwrap(), to.accept().unwrap())
        };
        let (first, second, of_v6) = (connect(&v4), connect(&v4), connect(&v6));
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert_eq!(running.states.borrow()[0].kept.len(), 3);
        let one = "the link's: a connection from before the capture goes around the proxy";
        let two = "the link's: 2 connections from before the capture go around the proxy";
        until_told(&running, &format!("[{two}, {one}]")).await;
        drop(first);
        until_told(&running, &format!("[{one}, {one}]")).await;
        drop(second);
        until_told(&running, &format!("[the loopback device's, {one}]")).await;
        assert!(there(&pod).0.len() == 1 && !there(&pod).0[0].ipv6, "{:#?}", there(&pod));
        drop(of_v6);
        until_told(&running, WELL).await;
        running.stop().await;
    })
}

/// An earlier process has left a connection that is kept and, all the same, segments of the loopback device's: they go as soon as the
/// rules are put in force, and not only once the capture is proven, which may never be.
fn segments_of_an_earlier_life_do_not_stay_beside_what_is_kept(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let server = node.pod("b", "10.0.0.3", "fd00::3")?;
    let _listener = server.run(|| TcpListener::bind("10.0.0.3:80"))??;
    node.run(async {
        let kept = pod.run(|| TcpStream::connect("10.0.0.3:80")).unwrap().unwrap();
        let wanted = [spec("a", &["10.0.0.2", "fd00::2"])];
        let running = Running::capturing(config(&node), &Log::default(), &wanted).await;
        until(&pod, 1, &MAIN[1..], "of the family of which none is kept").await;
        running.kill().await;
        change(&pod, |routing, _| {
            let of_v6 = routing
                .policies()
                .unwrap()
                .into_iter()
                .find(|p| p.table() == Some(SEGMENTS_TABLE))
                .unwrap();
            let by = there(&pod).1[0].protocol;
            let main = routing.routes(254).unwrap().into_iter().filter(|r| r.destination.addr().is_ipv4());
            for route in main.collect::<Vec<_>>() {
                let ours = Route {
                    table: SEGMENTS_TABLE,
                    mtu: Some(SEGMENTS_MTU),
                    protocol: by,
                    ..route
                };
                routing.add_route(&ours).unwrap();
            }
            routing.add_policy(&Policy { ipv6: false, ..of_v6 }).unwrap();
            // With which no capture of IPv4 can be proven.
            let elsewhere = Policy {
                priority: 7,
                leads_to: LeadsTo::Table(254),
                ..Policy::default()
            };
            routing.add_policy(&elsewhere).unwrap();
        });
        assert_eq!(there(&pod).0.len(), 2);
        let mut next = Running::start(config(&node), &Log::default());
        next.want(&wanted);
        next.until("that it cannot be proven", |states| {
            let refused = |pod: &PodState| matches!(&pod.state, State::Refused { error } if matches!(error.why, Cause::Diverted(_)));
            states.first().is_some_and(refused)
        })
        .await;
        assert!(there(&pod).0.iter().all(|policy| policy.ipv6), "{:#?}", there(&pod));
        assert_eq!(next.states.borrow()[0].kept.len(), 1);
        drop(kept);
        next.stop().await;
    })
}

/// Neither by a dry run nor of what is there.
fn a_family_that_is_switched_off_is_not_spoken_of(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let (plan, mark) = (Plan::new(&asked_for()), Mark::new(NAME, &"a".into()));
    pod.run(|| {
        for device in ["all", "default", "lo", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
        }
    })?;
    let mut inside = Inside::open(&pod)?;
    let would = inside.dry_run(&plan, &mark)?.to_string();
    assert!(would.contains("+ loopback segments, IPv4\n"), "{would}");
    assert!(!would.contains("segments, IPv6"), "{would}");
    inside.apply(&plan, &mark)?;
    assert_eq!(inside.segments(), [(IpFamily::V4, Segments::Loopback)]);
    let stands = inside.dry_run(&plan, &mark)?;
    assert!(stands.is_nothing() && !stands.to_string().contains("segments, IPv6"), "{stands}");
    Ok(())
}

/// What others have there is theirs, and what is done by hand is done whole.
fn segments_are_put_and_taken_by_hand(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let (plan, mark) = (Plan::new(&asked_for()), Mark::new("node-1", &"a".into()));
    let theirs = Route::to("192.0.2.0/24".parse()?)
        .via([10, 0, 0, 1].into())
        .onlink()
        .table(SEGMENTS_TABLE);
    let theirs = |device| theirs.clone().dev(device);
    node.run(async {
        change(&pod, |routing, device| routing.add_route(&theirs(device)).unwrap());
        let mut inside = Inside::open(&pod).unwrap();
        let would = inside.dry_run(&plan, &mark).unwrap().to_string();
        assert!(
            would.contains("+ loopback segments, IPv6") && would.contains("  no loopback segments, IPv4: somebody else uses table 65520"),
            "{would}"
        );
        inside.apply(&plan, &mark).unwrap();
        until(&pod, 1, &[&MAIN[1..], &["192.0.2.0/24"]].concat(), "beside somebody else's").await;
    })?;
    node.run(async {
        change(&pod, |routing, device| routing.delete_route(&theirs(device)).unwrap());
        let mut inside = Inside::open(&pod).unwrap();
        assert!(
            inside
                .verify(&plan, &mark)
                .unwrap()
                .iter()
                .all(|d| !d.to_string().contains("segments"))
        );
        until(&pod, 1, &MAIN[1..], "as verifying changes nothing").await;
        inside.apply(&plan, &mark).unwrap();
        until(&pod, 2, &MAIN, "put again").await;
        let without = Plan::new(&Options::default());
        assert_eq!(
            (&without.segments[..], &plan.segments[..]),
            (&[][..], &[IpFamily::V4, IpFamily::V6][..])
        );
        let would = inside.dry_run(&without, &mark).unwrap().to_string();
        assert_eq!(would.matches("- loopback segments").count(), 2, "{would}");
        inside.apply(&without, &mark).unwrap();
        until(&pod, 0, &[], "switched off").await;
        inside.apply(&plan, &mark).unwrap();
        until(&pod, 2, &MAIN, "and on").await;
        inside.clear().unwrap();
        until(&pod, 0, &[], "cleared").await;
    })
}

/// Rules of others have their say wherever they come to stand.
fn segments_leave_out_no_rule_of_somebody_elses(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        let theirs = |priority, table, ipv6| Policy {
            ipv6,
            priority,
            leads_to: LeadsTo::Table(table),
            ..Policy::default()
        };
        // The kernel's own first rule is put last, as is done for devices that have tables of their own.
        for ipv6 in [false, true] {
            change(&pod, |routing, _| {
                routing.add_policy(&theirs(SEGMENTS_PRIORITY, 255, ipv6)).unwrap();
                routing.delete_policy(&theirs(0, 255, ipv6)).unwrap();
            });
        }
        let is_last = |ipv6| {
            let mut policies = pod.run(|| Routing::open().unwrap().policies().unwrap()).unwrap();
            policies.retain(|policy| policy.ipv6 == ipv6);
            let at = |table| policies.iter().position(|policy| policy.table() == Some(table));
            at(255) < at(SEGMENTS_TABLE) && at(SEGMENTS_TABLE) < at(254)
        };
        for _ in 0..500 {
            if is_last(false) && is_last(true) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(
            is_last(false) && is_last(true),
            "the kernel's own before ours, and that for the main table after it"
        );
        for own in ["127.0.0.1:80", "[::1]:80", "10.0.0.2:80", "[fd00::2]:80"] {
            let own: SocketAddr = own.parse().unwrap();
            let connects = || {
                let listener = TcpListener::bind(own).unwrap();
                let stream = TcpStream::connect_timeout(&own, Duration::from_secs(1));
                drop(listener);
                stream.map(drop)
            };
            assert!(pod.run(connects).unwrap().is_ok(), "{own}");
        }
        until_told(&running, WELL).await;
        // Between ours and the one for the main table.
        let between = Policy {
            to: Some("192.0.2.0/24".parse().unwrap()),
            ..theirs(32_766, 77, false)
        };
        change(&pod, |routing, _| {
            routing.add_policy(&between).unwrap();
            routing.delete_policy(&theirs(32_766, 254, false)).unwrap();
            routing.add_policy(&theirs(32_766, 254, false)).unwrap();
        });
        until(&pod, 1, &MAIN[1..], "with a rule between").await;
        let aside = "routing rule 32766 of somebody else's comes after 32765 and before the one for the main table";
        until_told(&running, &format!("[the link's: {aside}, the loopback device's]")).await;
        change(&pod, |routing, _| routing.delete_policy(&between).unwrap());
        until(&pod, 2, &MAIN, "without it").await;
        // One that leads to our table, whose routes are none of its.
        let to_ours = Policy {
            from: Some("192.0.2.9/32".parse().unwrap()),
            ..theirs(1000, SEGMENTS_TABLE, false)
        };
        change(&pod, |routing, _| routing.add_policy(&to_ours).unwrap());
        until_told(&running, "[the link's: somebody else uses table 65520, the loopback device's]").await;
        change(&pod, |routing, _| routing.delete_policy(&to_ours).unwrap());
        until(&pod, 2, &MAIN, "without that").await;
        // One that comes before has what it asks for, and that is told.
        change(&pod, |routing, _| routing.add_policy(&theirs(1000, 254, true)).unwrap());
        until_told(
            &running,
            "[the loopback device's, the link's: what the pod sends does not go by table 65520: a routing rule of somebody else's comes before 32765, or there is no way]",
        )
        .await;
        running.stop().await;
    })
}

/// What the kernel has learned of the way to one host is no route that somebody has made.
fn segments_stay_where_a_narrow_link_is_met(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let far = node.pod("b", "10.0.0.3", "fd00::3")?;
    far.run(|| {
        let mut routing = Routing::open().unwrap();
        let device = routing.link("eth0").unwrap().index;
        routing.set_mtu(device, 1300).unwrap();
    })?;
    node.namespace.run(|| {
        let mut routing = Routing::open().unwrap();
        let device = routing.link("b").unwrap().index;
        routing.set_mtu(device, 1300).unwrap();
    })?;
    node.run(async {
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        for (from, to) in [("0.0.0.0:0", "10.0.0.3:9"), ("[::]:0", "[fd00::3]:9")] {
            let to: SocketAddr = to.parse().unwrap();
            let is_learned = || {
                let socket = std::net::UdpSocket::bind(from).unwrap();
                // Most systems let the kernel cut it, and learn.
                let _ = socket.send_to(&[0; 1400], to);
                std::thread::sleep(Duration::from_millis(10));
                let taken = Routing::open().unwrap().taken(&Packet::tcp(to.ip(), PROXY_MARK)).unwrap();
                taken.is_some_and(|route| route.mtu == Some(1300))
            };
            assert!((0..300).any(|_| pod.run(is_learned).unwrap()), "{to}");
        }
        let extra = |device| {
            Route::to("192.0.2.0/24".parse().unwrap())
                .via([10, 0, 0, 1].into())
                .dev(device)
                .onlink()
        };
        change(&pod, |routing, device| routing.add_route(&extra(device)).unwrap());
        until(&pod, 2, &[&MAIN[..], &["192.0.2.0/24"]].concat(), "with another route").await;
        until_told(&running, WELL).await;
        running.stop().await;
    })
}

/// What the kernel refuses once is put there when it would not be refused any more.
fn segments_that_are_refused_come_once_they_can(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        // The way to its gateway goes, and the route stays: it could not be made again.
        let net = |text: &str| text.parse().unwrap();
        let near = |device| Route::to(net("198.18.0.0/24")).dev(device);
        let far = |device| Route::to(net("192.0.2.0/24")).via([198, 18, 0, 1].into()).dev(device);
        let begin = || {
            change(&pod, |routing, device| {
                routing.add_route(&near(device)).unwrap();
                routing.add_route(&far(device)).unwrap();
                routing.delete_route(&near(device)).unwrap();
            });
        };
        begin();
        let refused = |state: &PodState| {
            state
                .segments
                .iter()
                .any(|(_, whose)| matches!(whose, Segments::Link(Aside::Refused(_))))
        };
        for look in 1..=500 {
            if refused(&running.states.borrow()[0]) {
                break;
            }
            // A look while both were there has made the same, which stays as the route does.
            if look % 50 == 0 {
                change(&pod, |routing, device| routing.delete_route(&far(device)).unwrap());
                begin();
            }
            // The kernel tells of what is tried, or of this.
            change(&pod, |routing, _| routing.set_loopback_up().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(refused(&running.states.borrow()[0]), "{:?}", running.states.borrow()[0].segments);
        // At once, or some would go by those that could be made.
        let is_left = || there(&pod).0.iter().any(|policy| !policy.ipv6);
        for _ in 0..500 {
            if !is_left() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!is_left(), "{:#?}", there(&pod));
        // Tried until it is left.
        let elsewhere = |device| near(device).table(77);
        for _ in 0..10 {
            change(&pod, |routing, device| routing.add_route(&elsewhere(device)).unwrap());
            change(&pod, |routing, device| routing.delete_route(&elsewhere(device)).unwrap());
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        until(&pod, 1, &MAIN[1..], "where one family's are refused, the other's").await;
        change(&pod, |routing, device| routing.delete_route(&far(device)).unwrap());
        until(&pod, 2, &MAIN, "without it").await;
        until_told(&running, WELL).await;
        running.stop().await;
    })
}

/// What changes while nobody looks is looked at by the next.
fn segments_follow_what_changed_meanwhile(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let namespace = world.namespace("a")?;
    let pod = node.join(&namespace, "10.0.0.2", "fd00::2")?;
    node.run(async {
        let wanted = [spec("a", &["10.0.0.2", "fd00::2"])];
        let running = Running::capturing(config(&node), &Log::default(), &wanted).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        running.kill().await;
        let every: IpNet = "0.0.0.0/0".parse().unwrap();
        let other = |device| Route::to(every).via([10, 0, 0, 9].into()).dev(device).onlink();
        change(&pod, |routing, device| {
            routing.add_route(&other(device)).unwrap();
            let of_v6 = routing
                .routes(254)
                .unwrap()
                .into_iter()
                .find(|r| r.destination.to_string() == "::/0")
                .unwrap();
            routing.delete_route(&of_v6).unwrap();
        });
        let next = Running::capturing(config(&node), &Log::default(), &wanted).await;
        until(&pod, 2, &["0.0.0.0/0", "fd00::2/128", "fe80::/64"], "by the next").await;
        assert!(there(&pod).1.iter().any(|route| route.gateway == Some([10, 0, 0, 9].into())));
        until_told(&next, WELL).await;
        // An address comes with a route that says it, and takes that along.
        let more: IpAddr = [10, 9, 0, 5].into();
        change(&pod, |routing, device| routing.add_address(device, more, 24).unwrap());
        let with_it = ["0.0.0.0/0", "10.9.0.0/24", "fd00::2/128", "fe80::/64"];
        until(&pod, 2, &with_it, "with another address").await;
        assert!(there(&pod).1.iter().any(|route| route.source == Some(more)));
        change(&pod, |routing, device| routing.delete_address(device, more, 24).unwrap());
        until(&pod, 2, &["0.0.0.0/0", "fd00::2/128", "fe80::/64"], "without it").await;
        // The device goes, and another comes in its place.
        change(&pod, |routing, device| routing.delete_link(device).unwrap());
        until(&pod, 0, &[], "without a device").await;
        until_told(
            &next,
            "[the link's: the main table has no route, the link's: the main table has no route]",
        )
        .await;
        node.join(&namespace, "10.0.0.2", "fd00::2").unwrap();
        until(&pod, 2, &MAIN, "with another device").await;
        until_told(&next, WELL).await;
        next.stop().await;
    })
}

/// Where nothing captures any more nothing is left that has large segments go out by the link.
fn segments_do_not_outlive_the_rules_that_capture(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        until(&pod, 2, &MAIN, "as it joins").await;
        running.stop().await;
        assert_eq!(there(&pod).0.len(), 2, "what captures stays, and so do they");
        let flush = || {
            let mut nftables = Nftables::open().unwrap();
            let mut batch = Batch::default();
            for table in nftables.tables().unwrap() {
                batch.delete_table(Family::Inet, &table.name);
            }
            nftables.commit(batch, None).unwrap();
        };
        pod.run(flush).unwrap();
        // The next process is not asked for the pod.
        let next = Running::start(config(&node), &Log::default());
        next.want(&[]);
        until(&pod, 0, &[], "found by the next").await;
        next.stop().await;
    })
}
