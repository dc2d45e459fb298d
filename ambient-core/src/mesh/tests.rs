use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;

use super::*;
use crate::{Health, Membership, ServicePort, Visibility};

/// What is drawn of a workload.
type Draw = (u8, u8, bool, bool, Vec<u8>);

fn pod((name, address, tunnel, host_network, services): Draw) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/ns/{name}"), "ns", &name.to_string());
    workload.addresses = vec![ip(address)];
    workload.pod = Some(format!("pod-{name}").into());
    workload.tunnel = if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None };
    workload.health = if tunnel { Health::Healthy } else { Health::Unhealthy };
    workload.network_mode = if host_network {
        NetworkMode::HostNetwork
    } else {
        NetworkMode::Standard
    };
    workload.node = ["", "n1", "n2", "n1"][usize::from(address)].into();
    workload.capacity = 1 + u32::from(address == 3);
    workload.hostname = if address == 0 { "named.mesh".into() } else { "".into() };
    workload.services = services.into_iter().map(|n| membership(&name_of_service(n), address)).collect();
    Arc::new(workload)
}

/// Of each row: the port at the workload, and the service that it is taken for.
#[test]
fn a_port_says_which_service_it_is_of() {
    let named = |host: &str, ports: &[(u16, u16)]| Service {
        ports: ports.iter().map(|&(port, target)| ServicePort { port, target }).collect(),
        ..Service::new("shop", host)
    };
    let all = [
        named("numbered.mesh", &[(80, 8080), (81, 8081)]),
        named("named.mesh", &[(80, 0), (443, 0)]),
        named("mapped.mesh", &[(80, 7070)]),
        named("others.mesh", &[(80, 6060)]),
    ];
    let of = |host: &str, ports: &[(u16, u16)]| Membership {
        service: NamespacedHostname::new("shop", host),
        ports: ports.iter().copied().collect(),
    };
    let mut pod = Workload::new("c//Pod/shop/a", "shop", "a");
    pod.services = vec![
        of("gone.mesh", &[(80, 1)]),
        of("numbered.mesh", &[]),
        of("named.mesh", &[(80, 9090), (443, 8080)]),
        of("mapped.mesh", &[(80, 7171)]),
    ];
    let mesh = Mesh::default().apply(all.into_iter().map(|service| Update::Service(service.into())));
    for (port, expected) in [
        (8080, Some("numbered.mesh")),
        (8081, Some("numbered.mesh")),
        (9090, Some("named.mesh")),
        (7171, Some("mapped.mesh")),
        // Its own port counts before the service's, it is no endpoint of this, and nobody knows that one.
        (7070, None),
        (6060, None),
        (1, None),
        (80, None),
        (0, None),
    ] {
        let found = mesh.service_at(&pod, port).map(|service| &*service.name.hostname);
        assert_eq!(found, expected, "{port}");
    }
}

fn membership(service: &NamespacedHostname, port: u8) -> Membership {
    Membership {
        service: service.clone(),
        ports: [(80, u16::from(port))].into_iter().collect(),
    }
}

fn name_of_service(name: u8) -> NamespacedHostname {
    NamespacedHostname::new(if name.is_multiple_of(2) { "even" } else { "odd" }, &format!("s{}.mesh", name % 4))
}

fn service(name: u8, vip: u8, block: Option<u8>, private: bool, listed: &[u8]) -> Arc<Service> {
    let id = name_of_service(name);
    let mut service = Service::new(&id.namespace, &id.hostname);
    service.vips = vec![NetworkAddress::local(ip(vip))];
    service.vip_blocks = block
        .into_iter()
        .filter_map(|length| NetworkBlock::new("".into(), ip(vip), length))
        .collect();
    service.visibility = if private { Visibility::Namespace } else { Visibility::Public };
    service.canonical = name == 2;
    let endpoint = || Endpoint {
        ports: [(80, 9)].into_iter().collect(),
        ..Endpoint::default()
    };
    service.endpoints = Arc::new(listed.iter().map(|n| (uid(*n), endpoint())).collect());
    Arc::new(service)
}

fn uid(name: u8) -> WorkloadUid {
    format!("c//Pod/ns/{name}").into()
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn updates() -> impl Strategy<Value = Vec<Update>> {
    let few = || proptest::collection::vec(0..6u8, 0..3);
    let one = prop_oneof![
        (0..6u8, 0..4u8, any::<bool>(), any::<bool>(), few()).prop_map(|draw| Update::Workload(pod(draw))),
        (0..6u8).prop_map(|n| Update::RemoveWorkload(uid(n))),
        (0..6u8, 0..4u8, proptest::option::of(29..33u8), any::<bool>(), few())
            .prop_map(|(n, v, block, private, listed)| Update::Service(service(n, v, block, private, &listed))),
        (0..6u8).prop_map(|n| Update::RemoveService(name_of_service(n))),
    ];
    proptest::collection::vec(one, 0..40)
}

/// Of services in the order of their names the one that Istio takes, by a search.
fn nearest_of<'a>(services: impl Iterator<Item = &'a Arc<Service>>, namespace: &str) -> Option<&'a Arc<Service>> {
    let mut seen: Vec<_> = services.filter(|s| s.is_visible_from(namespace)).collect();
    seen.sort_by_key(|s| (*s.name.namespace != *namespace, !s.canonical));
    seen.first().copied()
}

proptest! {
    /// Every index says the same as a search through plain maps of what was last announced.
    #[test]
    fn indexes_agree_with_a_search(batches in proptest::collection::vec(updates(), 1..4)) {
        let mut mesh = Mesh::default();
        let (mut workloads, mut services) = (BTreeMap::new(), BTreeMap::new());
        for batch in batches {
            let before = mesh.clone();
            let count = (before.workloads().count(), before.services().count());
            if batch.len() % 2 == 0 {
                mesh = mesh.apply(batch.clone());
            } else {
                let (first, second) = batch.split_at(batch.len() / 2);
                mesh.update(first.iter().cloned());
                mesh.update(second.iter().cloned());
            }
            prop_assert_eq!(count, (before.workloads().count(), before.services().count()), "an old snapshot has changed");
            for update in batch {
                match update {
                    Update::Workload(w) => drop(workloads.insert(w.uid.clone(), w)),
                    Update::RemoveWorkload(uid) => drop(workloads.remove(&uid)),
                    Update::Service(s) => drop(services.insert(s.name.clone(), s)),
                    Update::RemoveService(name) => drop(services.remove(&name)),
                }
            }
        }
        prop_assert_eq!(mesh.workloads().count(), workloads.len());
        prop_assert_eq!(mesh.services().count(), services.len());
        for n in 0..6 {
            let uid = uid(n);
            prop_assert_eq!(mesh.workload(&uid), workloads.get(&uid));
            prop_assert_eq!(mesh.workload_by_pod(&format!("pod-{n}").into()), workloads.get(&uid));
            let name = &name_of_service(n);
            prop_assert_eq!(mesh.service(name), services.get(name));
            for namespace in ["even", "odd", "other"] {
                let expected = nearest_of(services.values().filter(|s| s.name.hostname == name.hostname), namespace);
                prop_assert_eq!(mesh.service_by_hostname(&name.hostname, namespace), expected);
            }
            for workload in 0..6 {
                let uid = format!("c//Pod/ns/{workload}").into();
                let named = workloads.get(&uid).and_then(|w: &Arc<Workload>| {
                    let membership = w.services.iter().rfind(|m| m.service == *name)?;
                    Some(Endpoint { ports: membership.ports.clone(), health: w.health, capacity: w.capacity })
                });
                let listed = services.get(name).and_then(|s: &Arc<Service>| s.endpoints.get(&uid).cloned());
                prop_assert_eq!(mesh.endpoint(name, &uid).cloned(), listed.or(named));
            }
            let equal = mesh.endpoints(name).is_none_or(|all| all.values().all(|e| e.capacity == 1));
            prop_assert_eq!(mesh.members(name).is_none_or(Members::are_equal), equal);
            prop_assert!(mesh.endpoints(name).is_none_or(|endpoints| !endpoints.is_empty()));
        }
        for node in ["", "n1", "n2"] {
            let mut found: Vec<_> = mesh.workloads_of_node(node).cloned().collect();
            found.sort_by_key(|w| w.uid.clone());
            let expected: Vec<_> = workloads.values().filter(|w| *w.node == *node && !node.is_empty()).cloned().collect();
            prop_assert_eq!(found, expected);
        }
        let tunnelled_first = |mut found: Vec<Arc<Workload>>| {
            found.sort_by_key(|w| w.tunnel != TunnelProtocol::Hbone);
            found.first().cloned()
        };
        let named = workloads.values().filter(|w| *w.hostname == *"named.mesh").cloned().collect();
        prop_assert_eq!(mesh.workload_by_hostname(&NamespacedHostname::new("ns", "named.mesh")).cloned(), tunnelled_first(named));
        for last in 0..6 {
            let at = NetworkAddress::local(ip(last));
            let expected: Vec<_> = workloads
                .values()
                .filter(|w| w.network_mode == NetworkMode::Standard && w.has_address(at.ip))
                .cloned()
                .collect();
            prop_assert_eq!(mesh.workloads_by_address(&at).cloned().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(mesh.workload_by_address(&at).cloned(), tunnelled_first(expected));
            for namespace in ["even", "odd", "other"] {
                let exact = nearest_of(services.values().filter(|s| s.vips.contains(&at)), namespace);
                let mut blocks: Vec<_> = services
                    .values()
                    .filter(|s| s.is_visible_from(namespace))
                    .flat_map(|s| s.vip_blocks.iter().filter(|block| block.contains(&at)).map(move |block| (block.length(), s)))
                    .collect();
                blocks.sort_by_key(|(length, s)| (*s.name.namespace != *namespace, std::cmp::Reverse(*length), !s.canonical));
                let expected = exact.or_else(|| blocks.first().map(|(_, s)| *s));
                prop_assert_eq!(mesh.service_by_vip(&at, namespace), expected);
            }
        }
    }
}

#[test]
fn addresses_mean_something_in_their_network_only() {
    let mesh = Mesh::default().apply([Update::Workload(pod((1, 1, false, false, vec![])))]);
    assert!(mesh.workload_by_address(&NetworkAddress::local(ip(1))).is_some());
    assert!(mesh.workload_by_address(&NetworkAddress::new("other".into(), ip(1))).is_none());
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    assert!(mesh.workload_by_address(&NetworkAddress::local(mapped)).is_some());
}
