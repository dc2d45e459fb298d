//! How large the segments are of what is captured, and of what is not.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use ambient_core::Capture;
use ambient_redirect::{
    Config, PodSpec,
    linux::{Inside, Mark, Netns},
    netlink::{Packet, Policy, Route, RouteKind, Routing},
    plan::{IpFamily, Options, PROBE_SOURCES, Plan, SEGMENTS_MTU, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
};
use ambient_testkit::{World, harness::Outcome};
use socket2::SockRef;

use crate::{
    mesh::{Log, Running},
    node::{Node, spec},
};

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

pub(crate) fn what_is_captured_has_the_loopbacks_segments(world: &World) -> Outcome {
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
        // A route of which more is said is not said again: that family's are the link's.
        let narrow = |device| Route {
            mtu: Some(1280),
            ..extra(device)
        };
        change(&pod, |routing, device| routing.add_route(&narrow(device)).unwrap());
        until(&pod, 1, &MAIN[1..], "with a route that says more").await;
        assert!(segment(&pod, "198.51.100.7:80") <= 1460);
        assert!(segment(&pod, "[2001:db8::7]:80") > 30_000);
        change(&pod, |routing, device| routing.delete_route(&narrow(device)).unwrap());
        until(&pod, 2, &MAIN, "without that").await;
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

pub(crate) fn what_goes_around_has_the_links_segments(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let server = node.pod("b", "10.0.0.3", "fd00::3")?;
    let listener = server.run(|| std::net::TcpListener::bind("10.0.0.3:80"))??;
    node.run(async {
        let kept = pod.run(|| TcpStream::connect("10.0.0.3:80")).unwrap().unwrap();
        let running = Running::capturing(config(&node), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert_eq!(running.states.borrow()[0].kept.len(), 1);
        let segment_then = segment(&pod, "198.51.100.7:80");
        assert!(
            segment_then <= 1460 && there(&pod).0.is_empty(),
            "{segment_then} bytes beside one that is kept"
        );
        assert!(SockRef::from(&kept).tcp_mss().unwrap() <= 1460);
        drop((kept, listener));
        until(&pod, 2, &MAIN, "once it has ended").await;
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
        running.stop().await;
    })
}

/// What others have there is theirs, and what is done by hand is done whole.
pub(crate) fn segments_are_put_and_taken_by_hand(world: &World) -> Outcome {
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
            would.contains("+ loopback segments, IPv6") && !would.contains("loopback segments, IPv4"),
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
