use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;

use super::*;
use crate::TunnelProtocol;

fn pod(name: u8, address: u8, tunnel: bool, host_network: bool) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/ns/{name}"), "ns", &name.to_string());
    workload.addresses = vec![ip(address)];
    workload.pod = Some(format!("pod-{name}").into());
    workload.tunnel = if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None };
    workload.network_mode = if host_network {
        NetworkMode::HostNetwork
    } else {
        NetworkMode::Standard
    };
    Arc::new(workload)
}

fn service(name: u8, vip: u8) -> Arc<Service> {
    let mut service = Service::new(if name.is_multiple_of(2) { "even" } else { "odd" }, &format!("s{}.mesh", name % 4));
    service.vips = vec![NetworkAddress::local(ip(vip))];
    Arc::new(service)
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn updates() -> impl Strategy<Value = Vec<Update>> {
    let one = prop_oneof![
        (0..6u8, 0..4u8, any::<bool>(), any::<bool>()).prop_map(|(n, a, t, h)| Update::Workload(pod(n, a, t, h))),
        (0..6u8).prop_map(|n| Update::RemoveWorkload(pod(n, 0, false, false).uid.clone())),
        (0..6u8, 0..4u8).prop_map(|(n, v)| Update::Service(service(n, v))),
        (0..6u8).prop_map(|n| Update::RemoveService(service(n, 0).name.clone())),
    ];
    proptest::collection::vec(one, 0..40)
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
            mesh = mesh.apply(batch.clone());
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
            let uid = pod(n, 0, false, false).uid.clone();
            prop_assert_eq!(mesh.workload(&uid), workloads.get(&uid));
            prop_assert_eq!(mesh.workload_by_pod(&format!("pod-{n}").into()), workloads.get(&uid));
            let name = &service(n, 0).name;
            prop_assert_eq!(mesh.service(name), services.get(name));
            for namespace in ["even", "odd", "other"] {
                let mut found = services.values().filter(|s| s.name.hostname == name.hostname);
                let expected = found.clone().find(|s| &*s.name.namespace == namespace).or_else(|| found.next());
                prop_assert_eq!(mesh.service_by_hostname(&name.hostname, namespace), expected);
            }
        }
        for last in 0..4 {
            let at = NetworkAddress::local(ip(last));
            let expected: Vec<_> = workloads
                .values()
                .filter(|w| w.network_mode == NetworkMode::Standard && w.has_address(at.ip))
                .collect();
            prop_assert_eq!(mesh.workloads_by_address(&at).collect::<Vec<_>>(), expected.clone());
            let tunnelled = expected.iter().find(|w| w.tunnel == TunnelProtocol::Hbone);
            prop_assert_eq!(mesh.workload_by_address(&at), tunnelled.or_else(|| expected.first()).copied());
            for namespace in ["even", "odd", "other"] {
                let mut found = services.values().filter(|s| s.vips.contains(&at));
                let expected = found.clone().find(|s| &*s.name.namespace == namespace).or_else(|| found.next());
                prop_assert_eq!(mesh.service_by_vip(&at, namespace), expected);
            }
        }
    }
}

#[test]
fn addresses_mean_something_in_their_network_only() {
    let mesh = Mesh::default().apply([Update::Workload(pod(1, 1, false, false))]);
    assert!(mesh.workload_by_address(&NetworkAddress::local(ip(1))).is_some());
    assert!(mesh.workload_by_address(&NetworkAddress::new("other".into(), ip(1))).is_none());
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    assert!(mesh.workload_by_address(&NetworkAddress::local(mapped)).is_some());
}
