//! What others do to the routes of a pod.

use std::time::Duration;

use ambient_redirect::{
    netlink::{Route, RouteKind, Routing, Rule},
    pods::{PodState, State},
};
use ambient_testkit::{World, harness::Outcome};
use ipnet::IpNet;
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
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        type Hand = fn(&mut Routing);
        let hands: [(&str, Hand); 2] = [
            ("routing rule", |routing| {
                for rule in routing.rules().unwrap().iter().filter(|r| r.table == 100) {
                    routing.delete_rule(rule).unwrap();
                }
            }),
            ("route", |routing| {
                for route in routing.routes(100).unwrap() {
                    routing.delete_route(&route).unwrap();
                }
            }),
        ];
        for (round, (what, hand)) in hands.into_iter().enumerate() {
            sleep(Duration::from_millis(120)).await;
            pod.run(|| hand(&mut Routing::open().unwrap())).unwrap();
            let took = until_repaired(&running, round + 1, what).await;
            assert!(took < Duration::from_secs(1), "{what}: {took:?}");
            assert!(stands(&pod), "{what}");
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
