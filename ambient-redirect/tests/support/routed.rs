//! What others do to the routes of a pod.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use ambient_redirect::{
    linux::{Inside, Mark, Netns, Sockets},
    netlink::{LeadsTo, Policy, Route, RouteKind, Routing, Rule},
    plan::{Options, Plan},
    pods::{PodState, State},
};
use ambient_testkit::{World, harness::Outcome};
use ipnet::IpNet;
use rustix::{process::Uid, thread::set_thread_res_uid};
use tokio::time::sleep;

use crate::{
    heard::ask,
    mesh::{Log, Running},
    node::{Node, spec},
    stands, until_repaired, untimed,
};

pub(crate) fn routing_taken_by_hand_comes_back(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        // Each by itself: of each the kernel tells apart, and no timer helps.
        for (round, (what, ipv6)) in [("rule", false), ("rule", true), ("route", false), ("route", true)]
            .into_iter()
            .enumerate()
        {
            sleep(Duration::from_millis(120)).await;
            pod.run(|| {
                let mut routing = Routing::open().unwrap();
                if what == "rule" {
                    let is_ours = |rule: &&Rule| rule.table == 100 && rule.ipv6 == ipv6;
                    let rules = routing.rules().unwrap();
                    routing.delete_rule(rules.iter().find(is_ours).unwrap()).unwrap();
                } else {
                    let is_ours = |route: &&Route| route.destination.addr().is_ipv6() == ipv6;
                    let routes = routing.routes(100).unwrap();
                    routing.delete_route(routes.iter().find(is_ours).unwrap()).unwrap();
                }
            })
            .unwrap();
            let took = until_repaired(&running, round + 1, what).await;
            assert!(took < Duration::from_secs(1), "{what}: {took:?}");
            assert!(stands(&pod), "{what}, IPv6: {ipv6}");
        }
        assert_eq!(running.log.count("withdrawn"), 0);
        running.stop().await;
    })
}

/// Rule and route stand, and the replies of applications go elsewhere all the same.
pub(crate) fn replies_that_others_route_elsewhere_are_no_capture(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let before = |ipv6, priority, mark| Rule {
        ipv6,
        priority,
        mark,
        mask: if mark == 0 { 0 } else { 0xfff },
        table: 200,
    };
    let everything = |ipv6: bool| if ipv6 { "::/0" } else { "0.0.0.0/0" }.parse::<IpNet>().unwrap();
    node.run(async {
        let mut running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let is_refused = |family: &str, states: &[PodState]| {
            let error = states.iter().find_map(|s| match &s.state {
                State::Refused { error } if s.closed => Some(error.clone()),
                _ => None,
            });
            error.is_some_and(|e| e.code() == "replies-diverted" && e.to_string().contains(&format!("{family} replies")))
        };
        for (family, rule, kind) in [
            // As by who takes ours away and makes one of his own in its place.
            ("IPv4", before(false, 32764, 0x111), RouteKind::Blackhole),
            ("IPv6", before(true, 100, 0), RouteKind::Unreachable),
        ] {
            pod.run(|| {
                let mut routing = Routing::open().unwrap();
                routing.add_route(&Route::to(everything(rule.ipv6)).kind(kind).table(200)).unwrap();
                if rule.priority == 32764 {
                    for ours in routing.rules().unwrap().iter().filter(|r| r.table == 100 && r.ipv6 == rule.ipv6) {
                        routing.delete_rule(ours).unwrap();
                    }
                }
                routing.add_rule(&rule).unwrap();
            })
            .unwrap();
            running.until("a refusal", |states| is_refused(family, states)).await;
            assert!(ask(&pod, "198.51.100.7:80").await.is_err(), "what cannot be proven is refused");
            assert!(
                pod.run(|| Routing::open().unwrap().rules().unwrap().contains(&rule)).unwrap(),
                "it is not ours"
            );
            pod.run(|| Routing::open().unwrap().delete_rule(&rule).unwrap()).unwrap();
            running.until_in(&["a"]).await;
            ask(&pod, "198.51.100.7:80").await.unwrap();
        }
        running.stop().await;
    })
}

/// With the loopback device, once down, the route of IPv6 is gone.
pub(crate) fn what_goes_with_its_device_comes_back(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        sleep(Duration::from_millis(120)).await;
        pod.run(|| {
            let mut routing = Routing::open().unwrap();
            let loopback = routing.link("lo").unwrap().index;
            routing.set_down(loopback).unwrap();
            routing.set_up(loopback).unwrap();
            assert!(routing.routes(100).unwrap().len() < 2, "one went with the device");
        })
        .unwrap();
        let took = until_repaired(&running, 1, "the route").await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(stands(&pod));
        running.stop().await;
    })
}

/// More changes than the kernel keeps for whoever does not listen, and the one that counts is the last.
pub(crate) fn what_changes_unheard_is_put_right(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        sleep(Duration::from_millis(120)).await;
        // Nothing here gives the enrolment a turn.
        pod.run(|| {
            let mut routing = Routing::open().unwrap();
            let device = routing.link("eth0").unwrap().index;
            let route = Route::to("192.0.2.0/24".parse().unwrap()).dev(device);
            for _ in 0..2000 {
                routing.add_route(&route).unwrap();
                routing.delete_route(&route).unwrap();
            }
            for rule in routing.rules().unwrap().iter().filter(|r| r.table == 100) {
                routing.delete_rule(rule).unwrap();
            }
        })
        .unwrap();
        until_repaired(&running, 1, "the routing rule").await;
        assert!(stands(&pod));
        running.stop().await;
    })
}

/// A default route of somebody else's in the table of ours makes room, as it does for `ip route replace`, and is told.
pub(crate) fn a_route_of_somebody_elses_makes_room_and_is_told(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        pod.run(|| {
            let mut routing = Routing::open().unwrap();
            let device = routing.link("eth0").unwrap().index;
            for everything in ["0.0.0.0/0", "::/0"] {
                let theirs = Route::to(everything.parse().unwrap()).dev(device).table(100);
                routing.add_route(&theirs).unwrap();
            }
        })
        .unwrap();
        let running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert!(stands(&pod));
        let said = running.states.borrow()[0].said.clone().unwrap_or_default();
        for family in ["IPv4", "IPv6"] {
            let told = format!("instead: somebody else's {family} route to everywhere is in table 100");
            assert!(said.contains(&told), "{said}");
        }
        running.stop().await;
    })
}

/// A rule of somebody else's, what is said of it, and from which client and to which port of an application it keeps the proxy.
struct Narrowed {
    policy: Policy,
    said: Option<&'static str>,
    from: &'static str,
    to: u16,
}

/// What others send elsewhere of a capture that goes well as a whole, each by itself: what is told is so, and of what takes nothing from
/// it nothing is told.
pub(crate) fn what_others_route_elsewhere_in_part_is_told(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let (plan, mark) = (Plan::new(&Options::default()), Mark::new("node-1", &"a".into()));
    let mut inside = Inside::open(&pod)?;
    inside.apply(&plan, &mark)?;
    for port in [8080, 8081] {
        let listener = pod.run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    }
    pod.run(|| {
        let mut routing = Routing::open().unwrap();
        for everything in ["0.0.0.0/0", "::/0"] {
            let nowhere = Route::to(everything.parse().unwrap()).kind(RouteKind::Blackhole).table(200);
            routing.add_route(&nowhere).unwrap();
        }
        let device = routing.link("eth0").unwrap().index;
        for (to, table) in [("203.0.113.0/24", 201), ("2001:db8:7::/64", 201), ("0.0.0.0/0", 202), ("::/0", 202)] {
            routing.add_route(&Route::to(to.parse().unwrap()).dev(device).table(table)).unwrap();
        }
    })
    .unwrap();
    let has_users = of_another_user(&pod, 8082);
    node.run(async {
        let sockets = Sockets::new().unwrap();
        for ipv6 in [false, true] {
            for Narrowed { policy, said, from, to } in narrowed(ipv6) {
                if policy.users.is_some() && !has_users {
                    ambient_testkit::skipped("a rule for a user: there is none but root");
                    continue;
                }
                let what = format!("{policy:?}");
                pod.run(|| Routing::open().unwrap().add_policy(&policy).unwrap()).unwrap();
                inside.verify(&plan, &mark).unwrap();
                let told: Vec<String> = inside.strangers().iter().map(ToString::to_string).collect();
                let place = format!("{} routing rule 100: ", if ipv6 { "IPv6" } else { "IPv4" });
                let wanted: Vec<String> = said.iter().map(|said| format!("{place}{said}")).collect();
                assert_eq!(told, wanted, "{what}");
                let from: IpAddr = from.parse().unwrap();
                let aim = SocketAddr::new(if ipv6 { "fd00::2" } else { "10.0.0.2" }.parse().unwrap(), to);
                let patience = Duration::from_millis(if said.is_some() { 300 } else { 3000 });
                let answered = sockets.tcp_connect(&pod, Some(from), aim, patience).await;
                let is_answered = said.is_none_or(|said| said.starts_with("of what goes out"));
                assert_eq!(answered.is_ok(), is_answered, "{what}: {answered:?}");
                pod.run(|| Routing::open().unwrap().delete_policy(&policy).unwrap()).unwrap();
            }
        }
        inside.verify(&plan, &mark).unwrap();
        assert!(inside.strangers().is_empty());
    })
}

/// An application of user 1000; `false` where there is no such user.
fn of_another_user(pod: &Netns, port: u16) -> bool {
    let listener = pod.run(|| {
        // Of this thread alone, which ends with the visit.
        let user = Uid::from_raw(1000);
        set_thread_res_uid(user, user, user).ok()?;
        Some(TcpListener::bind(("::", port)).unwrap())
    });
    let listener = listener.unwrap();
    let is_there = listener.is_some();
    std::thread::spawn(move || listener.iter().flat_map(TcpListener::incoming).flatten().for_each(drop));
    is_there
}

fn narrowed(ipv6: bool) -> Vec<Narrowed> {
    let of = |v4: &'static str, v6: &'static str| if ipv6 { v6 } else { v4 };
    let rule = || Policy {
        ipv6,
        priority: 100,
        leads_to: LeadsTo::Table(200),
        ..Policy::default()
    };
    let (afar, some) = (of("198.51.100.7", "2001:db8::7"), of("203.0.113.9", "2001:db8:7::9"));
    let takes = |policy, said, from| Narrowed {
        policy,
        said: Some(said),
        from,
        to: 8080,
    };
    let takes_nothing = |policy| Narrowed {
        policy,
        said: None,
        from: afar,
        to: 8080,
    };
    let answers = "of what comes in, answers of applications do not go back to the proxy";
    let said = |more: &str| -> &'static str { format!("{answers}{more}").leak() };
    let net = |net: &str| Some(net.parse::<IpNet>().unwrap());
    let some_net = of("203.0.113.0/24", "2001:db8:7::/64");
    let from_8080 = Policy {
        protocol: 6,
        source_ports: Some((8080, 8080)),
        ..rule()
    };
    let to_proxys = Policy {
        destination_ports: Some((30_000, 65_534)),
        ..rule()
    };
    let nowhere = Policy {
        leads_to: LeadsTo::Other(6),
        to: net(some_net),
        ..rule()
    };
    let to_few = Policy {
        leads_to: LeadsTo::Table(201),
        ..rule()
    };
    let proxys = Policy {
        mark: 0x539,
        mask: 0xfff,
        ..rule()
    };
    // Of IPv4 the kernel asks for no user when it routes again.
    let of_user = Policy {
        users: Some((1000, 1000)),
        leads_to: LeadsTo::Table(202),
        ..rule()
    };
    let mut all = vec![
        Narrowed {
            policy: of_user,
            said: ipv6.then(|| said(", those of user 1000")),
            from: afar,
            to: 8082,
        },
        takes(from_8080.clone(), said(", those from port 8080"), afar),
        Narrowed {
            to: 8081,
            ..takes_nothing(Policy {
                source_ports: Some((8082, 8090)),
                destination_ports: Some((1, 1000)),
                ..from_8080
            })
        },
        takes(to_proxys, said(", those to port 30000 to 65534"), afar),
        takes(nowhere, said(format!(", those to {some_net}").as_str()), some),
        takes(to_few, said(format!(", by the route to {some_net} in table 201").as_str()), some),
        takes(
            proxys,
            "of what goes out, what the proxy sends is routed otherwise than what the pod sends",
            afar,
        ),
    ];
    all.extend(of_no_answers(ipv6).map(takes_nothing));
    all
}

/// Rules that take no answer of an application to the proxy, whatever else they are for.
fn of_no_answers(ipv6: bool) -> [Policy; 6] {
    let rule = || Policy {
        ipv6,
        priority: 100,
        leads_to: LeadsTo::Table(200),
        ..Policy::default()
    };
    let others = if ipv6 { "fd99::/64" } else { "172.16.0.0/12" };
    [
        Policy { protocol: 17, ..rule() },
        Policy {
            destination_ports: Some((443, 443)),
            ..rule()
        },
        Policy {
            source_ports: Some((15_008, 15_008)),
            ..rule()
        },
        Policy {
            mark: 0x80_000,
            mask: 0xff_0000,
            ..rule()
        },
        Policy {
            input: Some("eth0".into()),
            ..rule()
        },
        Policy {
            from: Some(others.parse().unwrap()),
            ..rule()
        },
    ]
}

/// A route in the table of the proxy's own, as by who takes the number for free, and it is seen when it comes.
pub(crate) fn a_route_beside_the_proxys_is_told(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::capturing(untimed(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        for some in ["203.0.113.0/24", "2001:db8:7::/64"] {
            let theirs = pod.run(|| {
                let mut routing = Routing::open().unwrap();
                let device = routing.link("eth0").unwrap().index;
                let theirs = Route::to(some.parse().unwrap()).dev(device).table(100);
                routing.add_route(&theirs).unwrap();
                theirs
            });
            running.until("it to be told", |states| states[0].strangers.len() == 1).await;
            let told = running.states.borrow()[0].strangers[0].to_string();
            assert!(
                told.ends_with(&format!("to the proxy, by the route to {some} in table 100")),
                "{told}"
            );
            pod.run(|| Routing::open().unwrap().delete_route(&theirs.unwrap()).unwrap())
                .unwrap();
            running.until("it to be forgotten", |states| states[0].strangers.is_empty()).await;
        }
        ask(&pod, "198.51.100.7:80").await.unwrap();
        let log = running.stop().await;
        assert_eq!((log.count("refused"), log.count("withdrawn")), (0, 0), "{:#?}", log.lines());
    })
}
