use ambient_authz::{Conn, Peer, policy::Clause, wire};
use ambient_core::{
    ApplicationTunnel, Identity, LoadBalancer, Membership, NamespacedHostname, NetworkBlock, ServicePort, WeightedWaypoint,
};
use proptest::prelude::*;

use super::*;
use crate::{Change, istiod::read};

fn everything() -> Workload {
    let gateway = GatewayAddress {
        target: GatewayTarget::Hostname(NamespacedHostname::new("shop", "wp.shop")),
        hbone_port: 15008,
    };
    let mut of = Workload::new("c1//Pod/shop/cart-0", "shop", "cart-0");
    of.pod = Some("uid-1".into());
    let annotations = [
        ("ambient.istio.io/dns-capture", "false"),
        ("istio.io/reroute-virtual-interfaces", "tap0,tap1"),
    ];
    let annotation = |key: &str| annotations.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    of.capture = Some(ambient_core::Capture::read(annotation).into());
    of.has_run = false;
    of.addresses = vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()];
    of.network = "n1".into();
    of.tunnel = TunnelProtocol::Hbone;
    of.trust_domain = "td".parse().unwrap();
    of.service_account = "cart".into();
    of.waypoint = Some(gateway.clone());
    of.node = "node-a".into();
    of.kind = WorkloadKind::Job;
    of.native_tunnel = true;
    of.ambient = true;
    of.policies = vec!["shop/p".into()];
    of.health = Health::Unhealthy;
    of.cluster = "c1".into();
    of.network_gateway = Some(gateway);
    of.hostname = "cart.example".into();
    of.services = vec![Membership {
        service: NamespacedHostname::new("shop", "cart.shop"),
        ports: [(80, 8080)].into_iter().collect(),
    }];
    of.application_tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    of.locality = ["r".into(), "z".into(), "".into()];
    of.network_mode = NetworkMode::HostNetwork;
    of.capacity = 3;
    of
}

#[test]
fn the_same_contents_are_the_same_bytes() {
    let mut of = everything();
    let of_service = |n: u16| Membership {
        service: NamespacedHostname::new("shop", &format!("s{n}.shop")),
        ports: (0..9).map(|port| (80 + port, 8080 + n)).collect(),
    };
    of.services = (0..9).map(of_service).collect();
    let once = workload(&of);
    for _ in 0..20 {
        assert_eq!(workload(&of), once);
    }
}

#[test]
fn a_workload_comes_back_as_it_was() {
    for of in [Workload::new("c1//Pod/shop/cart-0", "shop", "cart-0"), everything()] {
        let (aliases, body) = workload(&of);
        assert_eq!(aliases.len(), of.addresses.len());
        match read::address(of.uid.as_str(), &body).unwrap().change {
            Change::Mesh(ambient_core::mesh::Update::Workload(read)) => assert_eq!(*read, of),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_service_comes_back_as_it_was() {
    let mut of = Service::new("shop", "cart.shop.svc.cluster.local");
    of.resource = "cart".into();
    let vip = NetworkAddress::new("n1".into(), "10.96.0.7".parse().unwrap());
    of.vips = vec![vip.clone()];
    of.vip_blocks = vec![NetworkBlock::new("n1".into(), "fd00::".parse().unwrap(), 64).unwrap()];
    of.ports = vec![ServicePort { port: 80, target: 0 }];
    of.subject_alt_names = vec!["spiffe://td/ns/shop/sa/cart".parse().unwrap()];
    of.weighted_waypoints = vec![WeightedWaypoint {
        destination: GatewayAddress {
            target: GatewayTarget::Address(vip),
            hbone_port: 15008,
        },
        weight: 7,
    }];
    of.load_balancer = Some(LoadBalancer {
        preferences: vec![
            Shared::Network,
            Shared::Region,
            Shared::Zone,
            Shared::Subzone,
            Shared::Node,
            Shared::Cluster,
        ],
        mode: BalancerMode::Failover,
        health_policy: HealthPolicy::AllowAll,
    });
    of.ip_families = IpFamilies::Dual;
    of.canonical = true;
    of.ingress_use_waypoint = true;
    of.visibility = Visibility::Namespace;
    let (aliases, body) = service(&of);
    assert_eq!(aliases, ["n1/10.96.0.7"]);
    match read::address(&of.name.to_string(), &body).unwrap().change {
        Change::Mesh(ambient_core::mesh::Update::Service(read)) => assert_eq!(*read, of),
        other => panic!("{other:?}"),
    }
}

fn some_text() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        prop::sample::select(vec!["a", "b", "ab"]).prop_map(|t| StringMatch::Exact(t.into())),
        prop::sample::select(vec!["a", "b", "ab", "a/"]).prop_map(|t| StringMatch::Prefix(t.into())),
        prop::sample::select(vec!["a", "b"]).prop_map(|t| StringMatch::Suffix(t.into())),
        Just(StringMatch::Presence),
    ]
}

fn some_texts() -> impl Strategy<Value = Vec<StringMatch>> {
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(some_text(), 1..3)]
}

prop_compose! {
    fn some_match()(
        namespaces in some_texts(),
        not_namespaces in some_texts(),
        trust_domains in some_texts(),
        not_trust_domains in some_texts(),
        principals in some_texts(),
        ports in prop::collection::vec(0..3u16, 0..2),
    ) -> Match {
        let principals = principals.into_iter().map(|p| match p {
            StringMatch::Exact(domain) => StringMatch::Exact(format!("{domain}/ns/a/sa/b").into()),
            other => other,
        });
        Match {
            namespaces,
            not_namespaces,
            trust_domains,
            not_trust_domains,
            principals: principals.collect(),
            destination_ports: ports,
            ..Match::default()
        }
    }
}

prop_compose! {
    fn some_policy()(
        deny in any::<bool>(),
        rules in prop::collection::vec(prop::collection::vec(prop::collection::vec(some_match(), 0..3), 0..3), 0..3),
    ) -> Policy {
        let clause = |matches: Vec<Match>| Clause { matches };
        let rule = |clauses: Vec<Vec<Match>>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Policy {
            key: "shop/p".into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            action: if deny { Action::Deny } else { Action::Allow },
            rules: rules.into_iter().map(rule).collect(),
            dry_run: false,
        }
    }
}

fn peers() -> Vec<Option<Identity>> {
    let mut peers = vec![None];
    for domain in ["a", "b", "ab", "ba", "c"] {
        for namespace in ["a", "b", "ab"] {
            peers.push(Some(format!("spiffe://{domain}/ns/{namespace}/sa/b").parse().unwrap()));
        }
    }
    peers
}

/// Whether the wire has words for all of it.
fn is_sayable(policy: &Policy) -> bool {
    let domains = |texts: &[StringMatch]| {
        texts.iter().all(|text| match text {
            StringMatch::Exact(_) | StringMatch::Presence => true,
            StringMatch::Prefix(start) => !start.contains('/'),
            StringMatch::Suffix(_) => false,
        })
    };
    let one_or_the_other = |m: &Match| m.trust_domains.is_empty() || m.principals.is_empty();
    policy.rules.iter().flat_map(|r| &r.clauses).all(|clause| {
        let matches = &clause.matches;
        matches.iter().all(|m| domains(&m.trust_domains) && domains(&m.not_trust_domains))
            && (matches.len() == 1 || matches.iter().all(one_or_the_other))
    })
}

proptest! {
    /// What cannot be said is said more narrowly by an ALLOW policy, more widely by a DENY policy; all else is the same.
    #[test]
    fn no_policy_lets_more_through_on_the_wire_than_it_does_here(policy in some_policy()) {
        let body = super::policy(&policy);
        let read = match read::authorization("shop/p", &body, &wire::Settings::default()).unwrap().change {
            Change::Policy(ambient_authz::policy::Update::Set(read)) => read,
            other => panic!("{other:?}"),
        };
        let sayable = is_sayable(&policy);
        for peer in peers() {
            for port in 0..3 {
                let conn = Conn {
                    peer: &Peer::from(peer.clone()),
                    source: "10.0.0.1".parse().unwrap(),
                    destination: std::net::SocketAddr::new("10.0.0.2".parse().unwrap(), port),
                };
                let (here, there) = (policy.matching_rule(&conn).is_some(), read.matching_rule(&conn).is_some());
                match policy.action {
                    _ if sayable => prop_assert_eq!(here, there, "{:?} {:?} {}", read, peer, port),
                    Action::Allow => prop_assert!(here || !there, "{:?} {:?} {}", read, peer, port),
                    Action::Deny => prop_assert!(!here || there, "{:?} {:?} {}", read, peer, port),
                }
            }
        }
    }
}
