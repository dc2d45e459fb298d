//! What is behind services, and where it stands.

use ambient_core::{BalancerMode, Endpoint};

use super::*;

fn entry(name: &str, spec: Value) -> Value {
    json!({ "kind": "ServiceEntry", "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

fn outside(name: &str, spec: Value) -> Value {
    json!({ "kind": "WorkloadEntry", "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

/// The endpoints of a service of the namespace, by the end of their UIDs.
fn endpoints(sum: &Sum, host: &str) -> BTreeMap<String, Endpoint> {
    endpoints_of(sum, &NamespacedHostname::new("shop", host))
}

fn endpoints_of(sum: &Sum, service: &NamespacedHostname) -> BTreeMap<String, Endpoint> {
    let all = sum.mesh.endpoints(service);
    let all = all.into_iter().flat_map(|all| all.iter());
    all.map(|(uid, endpoint)| (uid.as_str().strip_prefix("Kubernetes/").unwrap().to_owned(), endpoint.clone()))
        .collect()
}

fn addresses(service: &Service) -> Vec<String> {
    let vips = service.vips.iter().map(|vip| vip.ip.to_string());
    vips.chain(service.vip_blocks.iter().map(ToString::to_string)).collect()
}

#[test]
fn a_workload_entry_is_a_workload() {
    let value = outside(
        "vm",
        json!({ "address": "10.9.0.1", "labels": { "app": "db", "version": "v1" }, "serviceAccount": "db", "network": "n2",
                "locality": "r/z/s", "weight": 7 }),
    );
    let value = patched(value, &json!({ "metadata": { "labels": { "version": "v2" } } }));
    let sum = told([value.clone()]);
    let workloads = sum.workloads();
    let vm = &workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"];
    assert_eq!(vm.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/db");
    assert_eq!(vm.addresses, ["10.9.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((vm.network.as_str(), vm.capacity), ("n2", 7));
    assert_eq!(vm.locality.each_ref().map(|part| &**part), ["r", "z", "s"]);
    assert_eq!(
        (&*vm.canonical_name, &*vm.canonical_revision, &*vm.workload_name),
        ("db", "v2", "vm")
    );
    assert!(vm.tunnel == TunnelProtocol::None && !vm.ambient && vm.pod.is_none());

    // It is dialled by tunnel only where it says itself that it speaks HBONE; an annotation says nothing.
    let said = |patch: Value| {
        let sum = told([patched(value.clone(), &patch)]);
        sum.workloads().into_values().next().unwrap()
    };
    let redirected = json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } });
    assert_eq!(said(redirected).tunnel, TunnelProtocol::None);
    for (protocols, tunnel) in [
        ("http", TunnelProtocol::Hbone),
        ("x,http", TunnelProtocol::Hbone),
        ("https", TunnelProtocol::None),
    ] {
        let vm = said(json!({ "metadata": { "labels": { "networking.istio.io/tunnel": protocols } } }));
        assert_eq!(
            (vm.tunnel, vm.native_tunnel),
            (tunnel, tunnel == TunnelProtocol::Hbone),
            "{protocols}"
        );
    }
    let sick = said(json!({ "status": { "conditions": [{ "type": "Healthy", "status": "False" }] } }));
    assert_eq!(sick.health, Health::Unhealthy);
    let named = said(json!({ "spec": { "address": "VM.example" } }));
    assert!(named.addresses.is_empty() && &*named.hostname == "vm.example");
}

#[test]
fn a_pod_is_dialled_by_tunnel_only_by_its_nodes_report() {
    let redirected = json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } });
    assert_eq!(one(&redirected).tunnel, TunnelProtocol::None);
    let native = one(&json!({ "metadata": { "labels": { "networking.istio.io/tunnel": "http" } } }));
    assert!(
        native.tunnel == TunnelProtocol::Hbone && native.native_tunnel,
        "it says itself that it speaks HBONE"
    );
    let of_entry = entry(
        "e",
        json!({ "hosts": ["a.example"], "resolution": "STATIC", "endpoints": [{ "address": "192.0.2.1" }] }),
    );
    let slice = json!({ "kind": "EndpointSlice", "metadata": { "name": "s", "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
                        "addressType": "IPv4", "endpoints": [{ "addresses": ["192.0.2.2"] }] });
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": {} });
    let all = [of_entry, slice, service].map(|value| patched(value, &redirected));
    let workloads = told(all).workloads();
    assert_eq!(workloads.len(), 2);
    assert!(workloads.values().all(|w| w.tunnel == TunnelProtocol::None));
}

#[test]
fn services_select_pods_and_workload_entries_by_their_ports() {
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": {
        "selector": { "app": "cart" }, "ports": [{ "name": "a", "port": 80, "targetPort": "http" },
                                                 { "name": "b", "port": 81, "targetPort": 8081 }, { "name": "c", "port": 82 }] } });
    let selector = json!({ "labels": { "app": "cart" } });
    let ports = json!([{ "number": 90, "name": "http" }, { "number": 91, "name": "b", "targetPort": 9091 }, { "number": 92, "name": "x" }]);
    let chosen = entry(
        "e",
        json!({ "hosts": ["*.a.example", "B.example"], "resolution": "STATIC", "ports": ports, "workloadSelector": selector }),
    );
    let containers =
        json!([{ "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "http", "containerPort": 1, "protocol": "UDP" }] }]);
    let lasting = json!([{ "ports": [{ "name": "x", "containerPort": 7 }] },
                         { "restartPolicy": "Always", "ports": [{ "name": "x", "containerPort": 8 }] }]);
    let pod = patched(
        pod("cart"),
        &json!({ "spec": { "containers": containers, "initContainers": lasting } }),
    );
    let vm = outside(
        "vm",
        json!({ "address": "10.9.0.1", "labels": { "app": "cart" }, "ports": { "b": 1234, "http": 5678 } }),
    );
    let sum = told([service, chosen, pod, vm]);
    let of = |host: &str, uid: &str| -> Vec<(u16, u16)> { endpoints(&sum, host)[uid].ports.iter().collect() };
    let (cart, vm) = ("/Pod/shop/cart", "networking.istio.io/WorkloadEntry/shop/vm");
    let web = "web.shop.svc.cluster.local";
    assert_eq!(of(web, cart), [(80, 8080), (81, 8081), (82, 82)]);
    assert_eq!(of(web, vm), [(80, 5678), (81, 1234), (82, 82)]);
    for host in ["*.a.example", "b.example"] {
        assert_eq!(of(host, cart), [(90, 8080), (91, 9091), (92, 8)]);
        assert_eq!(of(host, vm), [(90, 5678), (91, 1234), (92, 92)]);
    }
}

#[test]
fn a_service_entry_is_a_service_for_each_host() {
    let sum = told([entry(
        "e",
        json!({ "hosts": ["a.example", "b.example"], "addresses": ["198.51.100.1", "203.0.113.7/24", "fd00::/8", "192.0.2.9/32"],
                "ports": [{ "number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443 }, { "number": 80, "name": "http" }],
                "location": "MESH_EXTERNAL", "resolution": "STATIC",
                "subjectAltNames": ["spiffe://cluster.local/ns/x/sa/y", "a.example"],
                "endpoints": [{ "address": "192.0.2.1", "weight": 3, "locality": "r", "ports": { "tls": 9443 } },
                              { "address": "192.0.2.2", "network": "n2" }, { "address": "192.0.2.1" }] }),
    )]);
    let services = sum.services();
    assert_eq!(services.len(), 2);
    let a = &services["shop/a.example"];
    assert_eq!(addresses(a), ["198.51.100.1", "192.0.2.9", "/203.0.113.0/24", "/fd00::/8"]);
    assert_eq!(
        a.ports.iter().map(|p| (p.port, p.target)).collect::<Vec<_>>(),
        [(443, 8443), (80, 80)]
    );
    assert_eq!(a.subject_alt_names.len(), 1);
    assert!(a.canonical && &*a.resource == "e" && a.load_balancer.is_none());
    for host in ["a.example", "b.example"] {
        let all = endpoints(&sum, host);
        assert_eq!(all.len(), 2, "the same address twice is one");
        let first = &all["networking.istio.io/ServiceEntry/shop/e/192.0.2.1"];
        assert_eq!(
            (first.capacity, first.ports.get(443), first.ports.get(80)),
            (3, Some(9443), Some(80))
        );
    }
    let second = &sum.workloads()["Kubernetes/networking.istio.io/ServiceEntry/shop/e/192.0.2.2"];
    assert_eq!((second.network.as_str(), second.services.len()), ("n2", 2));

    let none = told([entry("e", json!({ "hosts": ["a.example"], "addresses": ["198.51.100.1"] }))]);
    let service = none.services().into_values().next().unwrap();
    assert_eq!(service.load_balancer.unwrap().mode, BalancerMode::Passthrough);

    let dns = told([entry(
        "e",
        json!({ "hosts": ["a.example", "b.example"], "resolution": "DNS", "ports": [{ "number": 80 }] }),
    )]);
    let workload = &dns.workloads()["Kubernetes/networking.istio.io/ServiceEntry/shop/e/b.example"];
    assert_eq!((&*workload.hostname, workload.services.len()), ("b.example", 1));
    assert_eq!(endpoints(&dns, "b.example").len(), 1);
}

#[test]
fn one_of_several_is_who_a_host_is() {
    let of = |space: &str, name: &str, host: &str, made: &str| {
        let endpoint = json!([{ "address": "192.0.2.1" }]);
        let spec = json!({ "hosts": [host], "resolution": "STATIC", "endpoints": endpoint });
        json!({ "kind": "ServiceEntry", "metadata": { "name": name, "namespace": space, "creationTimestamp": made }, "spec": spec })
    };
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": { "clusterIP": "10.96.0.1" } });
    let web = "web.shop.svc.cluster.local";
    let sum = told([
        of("shop", "old", "a.example", "2026-01-01T00:00:00Z"),
        of("shop", "new", "a.example", "2026-01-02T00:00:00Z"),
        of("bank", "older", "a.example", "2025-01-01T00:00:00Z"),
        of("shop", "mine", web, "2025-01-01T00:00:00Z"),
        of("bank", "theirs", web, "2025-01-01T00:00:00Z"),
        service,
    ]);
    let services = sum.services();
    let who: Vec<_> = services.iter().map(|(name, s)| (&**name, &*s.resource, s.canonical)).collect();
    let (of_bank, of_shop) = (format!("bank/{web}"), format!("shop/{web}"));
    let wanted = [
        ("bank/a.example", "older", true),
        (&*of_bank, "theirs", false),
        ("shop/a.example", "old", false),
        (&*of_shop, "", true),
    ];
    assert_eq!(who, wanted);
    // Who is not taken has no endpoints.
    let mut owners: Vec<_> = sum.workloads().into_values().map(|w| w.name.to_string()).collect();
    owners.sort();
    assert_eq!(owners, ["old", "older", "theirs"]);
}

#[test]
fn hosts_without_addresses_are_given_some() {
    let service = |patch: Value| {
        let value = entry("e", json!({ "hosts": ["a.example"], "resolution": "DNS" }));
        told([patched(value, &patch)]).services().into_values().next().unwrap()
    };
    let given = addresses(&service(json!({})));
    assert!(
        given.len() == 2 && given[0].starts_with("240.240.") && given[1].starts_with("2001:2:"),
        "{given:?}"
    );
    assert_eq!(given, addresses(&service(json!({}))), "the same everywhere");
    let written =
        json!({ "status": { "addresses": [{ "host": "a.example", "value": "240.240.0.9" }, { "host": "x", "value": "240.240.0.8" }] } });
    assert_eq!(addresses(&service(written.clone())), ["240.240.0.9"]);
    // However it is written, of the entry and of its status.
    for host in ["a.example", "A.Example"] {
        let mut capitals = patched(written.clone(), &json!({ "spec": { "hosts": [host] } }));
        for written in ["A.Example", "a.example"] {
            capitals["status"]["addresses"][0]["host"] = written.into();
            assert_eq!(addresses(&service(capitals.clone())), ["240.240.0.9"], "{host} {written}");
        }
    }
    for patch in [
        json!({ "metadata": { "labels": { "networking.istio.io/enable-autoallocate-ip": "False" } } }),
        json!({ "spec": { "resolution": "NONE" } }),
        json!({ "spec": { "hosts": ["*.example"] } }),
    ] {
        assert!(addresses(&service(patch.clone())).is_empty(), "{patch}");
    }
    assert_eq!(
        addresses(&service(json!({ "spec": { "hosts": ["*.example"], "resolution": "DYNAMIC_DNS" } }))).len(),
        2
    );
    // Of many hosts some share what would be their IPv4 address: one has it, the others are told.
    let hosts: Vec<_> = (0..2_000).map(|n| format!("h{n}.example")).collect();
    let mut objects = Objects::new(Settings::default());
    objects.set(object(entry("e", json!({ "hosts": hosts, "resolution": "DNS" }))));
    let mut sum = Sum::default();
    sum.add(objects.changes());
    let all: Vec<String> = sum.services().values().flat_map(addresses).collect();
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    let without = 4_000 - all.len();
    assert!(without > 0 && without == objects.problems().len(), "{without}");
}

#[test]
fn slices_name_endpoints_of_services_without_a_selector() {
    let service = |selector: Value| {
        json!({ "kind": "Service", "metadata": { "name": "db", "namespace": "shop" },
                "spec": { "clusterIP": "10.96.0.1", "selector": selector, "ports": [{ "name": "a", "port": 80, "targetPort": 8080 }, { "name": "b", "port": 81 }] } })
    };
    let slice = json!({ "kind": "EndpointSlice",
        "metadata": { "name": "db-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "db" } },
        "addressType": "IPv4", "ports": [{ "name": "a", "port": 9000, "protocol": "TCP" }, { "name": "b", "port": 1, "protocol": "UDP" }],
        "endpoints": [{ "addresses": ["192.0.2.1"] },
                      { "addresses": ["192.0.2.2"], "conditions": { "ready": false } },
                      { "addresses": ["192.0.2.3"], "conditions": { "ready": true, "serving": true, "terminating": true } },
                      { "addresses": ["192.0.2.1"] },
                      { "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "cart", "namespace": "shop" } }] });
    let sum = told([service(json!({})), slice.clone(), pod("cart")]);
    let all = endpoints(&sum, "db.shop.svc.cluster.local");
    let uid = |ip: &str| format!("discovery.k8s.io/EndpointSlice/shop/db-1/{ip}");
    let health: Vec<_> = all.iter().map(|(uid, e)| (uid.clone(), e.health)).collect();
    let wanted = [
        ("/Pod/shop/cart".to_owned(), Health::Healthy),
        (uid("192.0.2.1"), Health::Healthy),
        (uid("192.0.2.2"), Health::Unhealthy),
        (uid("192.0.2.3"), Health::Unhealthy),
    ];
    assert_eq!(health, wanted);
    assert_eq!(all[&uid("192.0.2.1")].ports.iter().collect::<Vec<_>>(), [(80, 9000)]);
    assert_eq!(all["/Pod/shop/cart"].ports.iter().collect::<Vec<_>>(), [(80, 8080), (81, 81)]);
    let first = &sum.workloads()["Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1"];
    assert_eq!(first.network_mode, NetworkMode::HostNetwork, "an address that may be anybody's");
    // A slice of nothing, of another kind of address, or of what is only a name has no endpoints.
    for patch in [json!({ "metadata": { "labels": null } }), json!({ "addressType": "FQDN" })] {
        assert_eq!(
            told([service(json!({})), patched(slice.clone(), &patch)]).workloads().len(),
            0,
            "{patch}"
        );
    }
    let external = patched(service(json!({})), &json!({ "spec": { "type": "ExternalName" } }));
    assert!(told([external, slice]).workloads().is_empty());
}

/// The next pod of a name is not what a slice means that was written for the one before, until the slice says so.
#[test]
fn a_slice_means_the_pod_with_its_uid() {
    let service = json!({ "kind": "Service", "metadata": { "name": "db", "namespace": "shop" },
                          "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] } });
    let slice = |uid: Option<&str>| {
        json!({ "kind": "EndpointSlice",
            "metadata": { "name": "db-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "db" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80 }],
            "endpoints": [{ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "cart", "namespace": "shop", "uid": uid } }] })
    };
    let mut objects = Objects::new(Settings::default());
    let mut sum = Sum::default();
    let mut count = |value: Value| {
        objects.set(object(value));
        sum.add(objects.changes());
        endpoints(&sum, "db.shop.svc.cluster.local").len()
    };
    count(service);
    count(pod("cart"));
    let steps = [
        slice(Some("uid-of-old")),
        slice(Some("uid-cart")),
        slice(Some("uid-next")),
        slice(None),
    ];
    assert_eq!(steps.map(&mut count), [0, 1, 0, 1]);
    count(slice(Some("uid-next")));
    let next = patched(pod("cart"), &json!({ "metadata": { "uid": "uid-next" } }));
    assert_eq!(count(next), 1);
}

/// Whoever may write slices says whose pods they mean.
#[test]
fn a_slice_may_mean_a_pod_of_another_namespace() {
    let service = json!({ "kind": "Service", "metadata": { "name": "db", "namespace": "bank" },
                          "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] } });
    let slice = |pod: &str| {
        json!({ "kind": "EndpointSlice",
            "metadata": { "name": "db-1", "namespace": "bank", "labels": { "kubernetes.io/service-name": "db" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80 }],
            "endpoints": [{ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": pod, "namespace": "shop" } }] })
    };
    let mut objects = Objects::new(Settings::default());
    let mut sum = Sum::default();
    let mut names = |change: &mut dyn FnMut(&mut Objects)| {
        change(&mut objects);
        sum.add(objects.changes());
        let all = endpoints_of(&sum, &NamespacedHostname::new("bank", "db.bank.svc.cluster.local"));
        all.into_keys().collect::<Vec<_>>().join(" ")
    };
    let mut set = |value: &Value| names(&mut |objects| objects.set(object(value.clone())));
    let own = patched(pod("cart"), &json!({ "metadata": { "namespace": "bank", "uid": "uid-own" } }));
    let steps = [
        own,
        pod("cart"),
        service.clone(),
        slice("cart"),
        slice("other"),
        pod("other"),
        slice("cart"),
    ];
    let (cart, other) = ("/Pod/shop/cart", "/Pod/shop/other");
    assert_eq!(steps.each_ref().map(&mut set), ["", "", "", cart, "", other, cart]);
    let gone = patched(service.clone(), &json!({ "spec": { "type": "ExternalName" } }));
    assert_eq!([&gone, &service].map(&mut set), ["", cart]);
    let mut remove = |value: &Value| names(&mut |objects| objects.remove(&object(value.clone()).key()));
    assert_eq!([&slice("cart"), &pod("cart")].map(&mut remove), ["", ""]);
}

#[test]
fn pods_stand_where_their_node_stands() {
    let node = |labels: Value| json!({ "kind": "Node", "metadata": { "name": "node-1", "labels": labels } });
    let mut objects = Objects::new(Settings::default());
    let mut sum = Sum::default();
    objects.set(object(pod("cart")));
    let labels = json!({ "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z", "topology.istio.io/subzone": "s" });
    for (labels, wanted) in [
        (labels, ["r", "z", "s"]),
        (json!({ "topology.kubernetes.io/zone": "z" }), ["", "z", ""]),
        (json!({}), [""; 3]),
    ] {
        objects.set(object(node(labels)));
        sum.add(objects.changes());
        let workload = sum.workloads().into_values().next().unwrap();
        assert_eq!(workload.locality.each_ref().map(|part| &**part), wanted);
    }
}

#[test]
fn a_network_is_the_root_namespaces() {
    let root = json!({ "kind": "Namespace", "metadata": { "name": "istio-system", "labels": { "topology.istio.io/network": "n1" } } });
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": { "clusterIP": "10.96.0.1" } });
    let far = outside("vm", json!({ "address": "10.9.0.1", "network": "n2" }));
    let gateway = |name: &str, network: &str| {
        let listener = json!({ "port": 15443, "protocol": "HBONE" });
        let labels = json!({ "topology.istio.io/network": network });
        json!({ "kind": "Gateway", "metadata": { "name": name, "namespace": "istio-gateways", "labels": labels },
                "spec": { "gatewayClassName": "istio-remote", "listeners": [listener] },
                "status": { "addresses": [{ "type": "IPAddress", "value": "203.0.113.1" }] } })
    };
    let sum = told([
        pod("cart"),
        service.clone(),
        far,
        gateway("east", "n2"),
        gateway("east-too", "n2"),
        root,
    ]);
    let workloads = sum.workloads();
    assert_eq!(workloads["Kubernetes//Pod/shop/cart"].network.as_str(), "n1");
    assert_eq!(sum.services().into_values().next().unwrap().vips[0].network.as_str(), "n1");
    let vm = &workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"];
    let through = vm.network_gateway.as_ref().unwrap();
    assert_eq!((through.target.to_string(), through.hbone_port), ("n2/203.0.113.1".into(), 15443));
    let east = &workloads["NetworkGateway/n2/203.0.113.1/15443"];
    assert_eq!(
        east.identity().unwrap().as_str(),
        "spiffe://cluster.local/ns/istio-gateways/sa/east-istio-remote"
    );
    assert_eq!(workloads.len(), 3, "the same gateway twice is one");
    // It has its place's name, and neither the one nor the other object's: of which it is, there it stays.
    for (before, after) in [("m", "a"), ("m", "z")] {
        let mut objects = Objects::new(Settings::default());
        objects.set(object(gateway(before, "n2")));
        let mut sum = Sum::default();
        sum.add(objects.changes());
        objects.remove(&ObjectKey::new(Kind::Gateway, "istio-gateways", before));
        objects.set(object(gateway(after, "n2")));
        sum.add(objects.changes());
        let account = format!("{after}-istio-remote");
        assert_eq!(
            &*sum.workloads()["NetworkGateway/n2/203.0.113.1/15443"].service_account,
            account,
            "{before}"
        );
    }

    // What was set counts before the label.
    let mut objects = Objects::new(Settings {
        network: Some("mine".into()),
        ..Settings::default()
    });
    objects.set(object(service));
    objects.set(object(
        json!({ "kind": "Namespace", "metadata": { "name": "istio-system", "labels": { "topology.istio.io/network": "n1" } } }),
    ));
    let mut sum = Sum::default();
    sum.add(objects.changes());
    assert_eq!(sum.services().into_values().next().unwrap().vips[0].network.as_str(), "mine");
}

#[test]
fn what_the_new_kinds_require() {
    let base = |kind: &str| match kind {
        "ServiceEntry" => entry("e", json!({ "hosts": ["a.example"] })),
        "WorkloadEntry" => outside("v", json!({ "address": "10.0.0.1" })),
        "EndpointSlice" => json!({ "kind": kind, "metadata": { "name": "s" }, "addressType": "IPv4" }),
        _ => json!({ "kind": "Gateway", "metadata": { "name": "g" }, "spec": { "gatewayClassName": "istio-waypoint" } }),
    };
    let endpoint = |spec: Value| json!({ "spec": { "resolution": "STATIC", "endpoints": [spec] } });
    for (kind, patch, path) in [
        ("ServiceEntry", json!({ "spec": { "hosts": [] } }), "spec.hosts"),
        ("ServiceEntry", json!({ "spec": { "hosts": ["a b"] } }), "spec.hosts[0]"),
        ("ServiceEntry", json!({ "spec": { "hosts": ["10.0.0.1"] } }), "spec.hosts[0]"),
        (
            "ServiceEntry",
            json!({ "spec": { "addresses": ["10.0.0.0/33"] } }),
            "spec.addresses[0]",
        ),
        ("ServiceEntry", json!({ "spec": { "addresses": ["x"] } }), "spec.addresses[0]"),
        (
            "ServiceEntry",
            json!({ "spec": { "ports": [{ "number": 0 }] } }),
            "spec.ports[0].number",
        ),
        ("ServiceEntry", json!({ "spec": { "location": "MOON" } }), "spec.location"),
        ("ServiceEntry", json!({ "spec": { "resolution": "MAYBE" } }), "spec.resolution"),
        (
            "ServiceEntry",
            endpoint(json!({ "address": "vm.example" })),
            "spec.endpoints[0].address",
        ),
        (
            "ServiceEntry",
            endpoint(json!({ "address": "unix:///x" })),
            "spec.endpoints[0].address",
        ),
        (
            "ServiceEntry",
            endpoint(json!({ "address": "10.0.0.1", "ports": { "a": 0 } })),
            "spec.endpoints[0].ports.a",
        ),
        ("WorkloadEntry", json!({ "spec": { "address": "" } }), "spec.address"),
        ("WorkloadEntry", json!({ "spec": { "address": "a..b" } }), "spec.address"),
        (
            "WorkloadEntry",
            json!({ "spec": { "serviceAccount": "a b" } }),
            "spec.serviceAccount",
        ),
        ("EndpointSlice", json!({ "addressType": "IPX" }), "addressType"),
        ("EndpointSlice", json!({ "ports": [{ "port": 0 }] }), "ports[0].port"),
        (
            "EndpointSlice",
            json!({ "endpoints": [{ "addresses": ["x"] }] }),
            "endpoints[0].addresses[0]",
        ),
        (
            "Gateway",
            json!({ "spec": { "listeners": [{ "port": 0 }] } }),
            "spec.listeners[0].port",
        ),
        (
            "Gateway",
            json!({ "spec": { "listeners": [{ "port": 1, "allowedRoutes": { "namespaces": { "from": "Few" } } }] } }),
            "spec.listeners[0].allowedRoutes.namespaces.from",
        ),
        (
            "Gateway",
            json!({ "status": { "addresses": [{ "value": "x y" }] } }),
            "status.addresses[0].value",
        ),
    ] {
        let value = patched(base(kind), &patch);
        let object = match kind {
            "ServiceEntry" => Object::ServiceEntry(serde_json::from_value(value).unwrap()),
            "WorkloadEntry" => Object::WorkloadEntry(serde_json::from_value(value).unwrap()),
            "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
            _ => Object::Gateway(serde_json::from_value(value).unwrap()),
        };
        assert_eq!(object.check().map_err(|e| e.path), Err(path.to_owned()), "{kind} {patch}");
    }
    for number in [json!(-1), json!(65_536), json!("80")] {
        let spec = json!({ "hosts": ["a"], "ports": [{ "number": number }] });
        assert!(serde_json::from_value::<ServiceEntry>(entry("e", spec)).is_err());
    }
}

#[test]
fn a_service_says_which_endpoints_it_prefers() {
    use ambient_core::{BalancerMode, HealthPolicy, IpFamilies, Scope};
    let read = |spec: Value, annotations: Value| {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "shop", "annotations": annotations },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        });
        value["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        told([value]).services().into_values().next().unwrap()
    };
    let none = json!({});
    let plain = read(json!({}), none.clone());
    assert!(plain.canonical && plain.load_balancer.is_none() && plain.ip_families == IpFamilies::Automatic);
    let zone = [Scope::Network, Scope::Region, Scope::Zone];
    let node = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let legacy = |text: &str| json!({ "networking.istio.io/traffic-distribution": text });
    for (spec, annotations, preferences, mode) in [
        (
            json!({ "trafficDistribution": "PreferClose" }),
            none.clone(),
            &zone[..],
            BalancerMode::Failover,
        ),
        (
            json!({ "trafficDistribution": "PreferSameZone" }),
            none.clone(),
            &zone,
            BalancerMode::Failover,
        ),
        (
            json!({ "trafficDistribution": "PreferSameNode" }),
            none.clone(),
            &node,
            BalancerMode::Failover,
        ),
        (json!({}), legacy("prefersamenode"), &node, BalancerMode::Failover),
        (
            json!({ "trafficDistribution": "PreferClose" }),
            legacy("PreferSameNode"),
            &zone,
            BalancerMode::Failover,
        ),
        (
            json!({ "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose" }),
            none.clone(),
            &node[4..],
            BalancerMode::Strict,
        ),
    ] {
        let balancer = read(spec.clone(), annotations).load_balancer.unwrap();
        assert_eq!((&balancer.preferences[..], balancer.mode), (preferences, mode), "{spec}");
    }
    assert!(
        read(
            json!({ "internalTrafficPolicy": "Cluster", "trafficDistribution": "Nearest" }),
            none.clone()
        )
        .load_balancer
        .is_none()
    );
    let unready = read(json!({ "publishNotReadyAddresses": true }), none.clone())
        .load_balancer
        .unwrap();
    assert_eq!(
        (unready.mode, unready.health_policy),
        (BalancerMode::Standard, HealthPolicy::AllowAll)
    );
    for (families, wanted) in [
        (json!(["IPv4"]), IpFamilies::Ipv4Only),
        (json!(["IPv6"]), IpFamilies::Ipv6Only),
        (json!(["IPv6", "IPv4"]), IpFamilies::Dual),
    ] {
        assert_eq!(read(json!({ "ipFamilies": families }), none.clone()).ip_families, wanted);
    }
}
