//! Waypoints: who uses which, and who goes without.

use ambient_core::{ApplicationProtocol, GatewayTarget};

use super::*;

fn gateway(name: &str, patch: &Value) -> Value {
    let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE" });
    let value = json!({ "kind": "Gateway", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "gatewayClassName": "istio-waypoint", "listeners": [listener] },
        "status": { "addresses": [{ "type": "Hostname", "value": format!("{name}.shop.svc.cluster.local") }] } });
    patched(value, patch)
}

fn service(name: &str, labels: Value) -> Value {
    json!({ "kind": "Service", "metadata": { "name": name, "namespace": "shop", "labels": labels },
            "spec": { "clusterIP": "10.96.0.1", "selector": { "app": name }, "ports": [{ "port": 80 }] } })
}

fn labelled(name: &str, labels: Value) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

struct Told {
    sum: Sum,
    problems: Vec<String>,
}

/// With a service for each gateway that has none.
fn told(objects: impl IntoIterator<Item = Value>) -> Told {
    let mut objects: Vec<_> = objects.into_iter().collect();
    let is = |object: &Value, kind: &str, of: &Value| {
        let meta = |value: &Value, key: &str| value["metadata"][key].clone();
        object["kind"] == kind && ["name", "namespace"].iter().all(|key| meta(object, key) == meta(of, key))
    };
    let lacking: Vec<_> = objects
        .iter()
        .filter(|gateway| gateway["kind"] == "Gateway" && !objects.iter().any(|object| is(object, "Service", gateway)))
        .map(|gateway| {
            let meta = json!({ "name": gateway["metadata"]["name"], "namespace": gateway["metadata"]["namespace"] });
            json!({ "kind": "Service", "metadata": meta, "spec": { "clusterIP": "10.96.9.9", "ports": [{ "port": 15008 }] } })
        })
        .collect();
    objects.extend(lacking);
    alone(objects)
}

fn alone(objects: impl IntoIterator<Item = Value>) -> Told {
    let mut all = Objects::new(Settings::default());
    for value in objects {
        all.set(object(value));
    }
    let mut sum = Sum::default();
    sum.add(all.changes());
    let problems = all.problems().into_iter().map(|p| format!("{}: {}", p.object, p.what)).collect();
    Told { sum, problems }
}

impl Told {
    fn of_service(&self, name: &str) -> Option<String> {
        let service = &self.sum.services()[&format!("shop/{name}.shop.svc.cluster.local")];
        service.waypoint.as_ref().map(|w| format!("{}:{}", w.target, w.hbone_port))
    }

    fn of_pod(&self, name: &str) -> Option<String> {
        let workload = &self.sum.workloads()[&format!("Kubernetes//Pod/shop/{name}")];
        workload.waypoint.as_ref().map(|w| format!("{}:{}", w.target, w.hbone_port))
    }
}

const WP: &str = "shop/wp.shop.svc.cluster.local:15008";

#[test]
fn who_names_a_waypoint_uses_it() {
    let use_it = json!({ "istio.io/use-waypoint": "wp" });
    for (namespace, own, wanted) in [
        (json!({}), json!({}), None),
        (json!({}), use_it.clone(), Some(WP)),
        (use_it.clone(), json!({}), Some(WP)),
        (use_it.clone(), json!({ "istio.io/use-waypoint": "none" }), None),
        (json!({ "istio.io/use-waypoint": "none" }), use_it.clone(), Some(WP)),
        (
            use_it.clone(),
            json!({ "gateway.istio.io/managed": "istio.io-mesh-controller" }),
            None,
        ),
        (
            json!({}),
            json!({ "istio.io/use-waypoint": "wp", "istio.io/use-waypoint-namespace": "shop" }),
            Some(WP),
        ),
    ] {
        let told = told([
            labelled("shop", namespace.clone()),
            gateway("wp", &json!({})),
            service("web", own.clone()),
        ]);
        assert_eq!(told.of_service("web").as_deref(), wanted, "{namespace} {own}");
        assert!(told.problems.is_empty(), "{:?}", told.problems);
    }
    // By its address where it has no name.
    let ip = json!({ "status": { "addresses": [{ "type": "IPAddress", "value": "10.96.0.9" }] } });
    let by_ip = told([gateway("wp", &ip), service("web", use_it)]);
    assert_eq!(by_ip.of_service("web").as_deref(), Some("/10.96.0.9:15008"));
}

#[test]
fn a_waypoint_speaks_for_services_or_workloads() {
    let use_it = json!({ "istio.io/use-waypoint": "wp" });
    for (traffic, of_service, of_pod) in [
        (None, true, false),
        (Some("service"), true, false),
        (Some("workload"), false, true),
        (Some("all"), true, true),
        (Some("none"), false, false),
    ] {
        let labels = json!({ "metadata": { "labels": { "istio.io/waypoint-for": traffic } } });
        let labels = if traffic.is_none() { json!({}) } else { labels };
        let pod = patched(pod("cart"), &json!({ "metadata": { "labels": use_it } }));
        let told = told([gateway("wp", &labels), service("web", use_it.clone()), pod]);
        assert_eq!(told.of_service("web").is_some(), of_service, "{traffic:?}");
        assert_eq!(told.of_pod("cart").is_some(), of_pod, "{traffic:?}");
        // Whoever asks for it by a label of its own is told that it goes without.
        assert_eq!(
            told.problems.len(),
            usize::from(!of_service) + usize::from(!of_pod),
            "{:?}",
            told.problems
        );
    }
    // A namespace's label is meant for those that can have it.
    let told = told([
        labelled("shop", use_it),
        gateway("wp", &json!({})),
        pod("cart"),
        service("web", json!({})),
    ]);
    assert!(told.of_pod("cart").is_none() && told.of_service("web").is_some() && told.problems.is_empty());
    // The class says it where the gateway does not.
    let class = json!({ "kind": "GatewayClass", "metadata": { "name": "istio-waypoint", "labels": { "istio.io/waypoint-for": "all" } } });
    let use_it = json!({ "metadata": { "labels": { "istio.io/use-waypoint": "wp" } } });
    let told = self::told([gateway("wp", &json!({})), patched(pod("cart"), &use_it), class]);
    assert_eq!(told.of_pod("cart").as_deref(), Some(WP));
}

#[test]
fn who_cannot_have_its_waypoint_is_told() {
    let use_it = json!({ "istio.io/use-waypoint": "wp" });
    let other = json!({ "istio.io/use-waypoint": "wp", "istio.io/use-waypoint-namespace": "bank" });
    let of_bank = |from: Value| {
        let listener = json!({ "port": 15008, "protocol": "HBONE", "allowedRoutes": { "namespaces": from } });
        gateway(
            "wp",
            &json!({ "metadata": { "namespace": "bank" }, "spec": { "listeners": [listener] },
                     "status": { "addresses": [{ "type": "Hostname", "value": "wp.bank.svc.cluster.local" }] } }),
        )
    };
    let selector = json!({ "matchLabels": { "team": "a" } });
    let team = |name: &str| labelled("shop", json!({ "team": name }));
    for (objects, wanted) in [
        (vec![service("web", use_it.clone())], Some("there is no Gateway shop/wp")),
        (
            vec![
                service("web", use_it.clone()),
                gateway("wp", &json!({ "status": { "addresses": [] } })),
            ],
            Some("the Gateway shop/wp is not ready: it has no status.addresses"),
        ),
        (
            vec![service("web", other.clone()), of_bank(json!({}))],
            Some("the Gateway bank/wp admits nobody of this namespace"),
        ),
        (vec![service("web", other.clone()), of_bank(json!({ "from": "All" }))], None),
        (
            vec![
                service("web", other.clone()),
                of_bank(json!({ "from": "Selector", "selector": selector })),
                team("a"),
            ],
            None,
        ),
        (
            vec![
                service("web", other),
                of_bank(json!({ "from": "Selector", "selector": selector })),
                team("b"),
            ],
            Some("admits nobody"),
        ),
    ] {
        let told = told(objects.clone());
        assert_eq!(told.of_service("web").is_none(), wanted.is_some(), "{objects:?}");
        match wanted {
            Some(wanted) => {
                let [problem] = &told.problems[..] else {
                    panic!("{:?}", told.problems)
                };
                assert!(
                    problem.starts_with("Service shop/web: metadata.labels[istio.io/use-waypoint]: "),
                    "{problem}"
                );
                assert!(problem.contains(wanted) && problem.ends_with("it goes without"), "{problem}");
            }
            None => assert!(told.problems.is_empty(), "{:?}", told.problems),
        }
    }
}

#[test]
fn a_gateway_that_is_ready_where_no_service_is_is_told() {
    let use_it = json!({ "istio.io/use-waypoint": "wp" });
    let told = alone([gateway("wp", &json!({})), service("web", use_it.clone())]);
    let missing = "Gateway shop/wp: status.addresses: it is ready, and there is no service shop/wp.shop.svc.cluster.local: \
                   what is to go by it is refused until there is one";
    assert_eq!(told.problems, [missing]);
    assert_eq!(told.of_service("web").as_deref(), Some(WP), "it is not gone around");
    // Also where it comes and goes later, and where a ServiceEntry is what is there.
    let entry = json!({ "kind": "ServiceEntry", "metadata": { "name": "any", "namespace": "shop" }, "spec": {
        "hosts": ["wp.shop.svc.cluster.local"], "addresses": ["10.96.0.3"], "ports": [{ "number": 15008, "name": "tcp" }],
        "resolution": "STATIC", "endpoints": [{ "address": "10.0.0.9" }] } });
    let mut all = Objects::new(Settings::default());
    all.set(object(gateway("wp", &json!({}))));
    for there in [service("wp", json!({})), entry] {
        let there = object(there);
        let key = there.key();
        let problems = |all: &mut Objects| {
            all.changes();
            all.problems().len()
        };
        assert_eq!(problems(&mut all), 1);
        all.set(there);
        assert_eq!(problems(&mut all), 0, "{key}");
        all.remove(&key);
    }
    // Another name than the cluster's may be found elsewhere: an ingress has its load balancer's.
    let elsewhere = |class: &str| {
        let value = "lb.example";
        let patch = json!({ "spec": { "gatewayClassName": class }, "status": { "addresses": [{ "type": "Hostname", "value": value }] } });
        alone([gateway("wp", &patch)]).problems.len()
    };
    assert_eq!((elsewhere("istio"), elsewhere("istio-waypoint")), (0, 1));
}

#[test]
fn a_waypoint_that_would_go_in_a_circle_is_refused() {
    let use_of = |name: &str| json!({ "istio.io/use-waypoint": name });
    let all = json!({ "metadata": { "labels": { "istio.io/waypoint-for": "all" } } });
    let behind = |app: &str, labels: Value| patched(pod(app), &json!({ "metadata": { "labels": labels } }));
    // One that names itself, and two that name each other; and the pods behind them.
    for [one, other] in [["wp", "wp"], ["wp", "two"]] {
        let objects = [
            gateway("wp", &all),
            gateway("two", &all),
            service("wp", use_of(one)),
            service("two", use_of(other)),
            behind("wp", use_of(one)),
            service("web", use_of("wp")),
        ];
        let told = told(objects);
        assert!(told.of_service("wp").is_none() && told.of_service("two").is_none() && told.of_pod("wp").is_none());
        assert_eq!(told.of_service("web").as_deref(), Some(WP), "nothing else is affected");
        let circles = told.problems.iter().filter(|p| p.contains("would go in a circle")).count();
        assert_eq!((circles, told.problems.len()), (3, 3), "{:?}", told.problems);
    }
    // By its address too; and where the namespace asks for it, nobody is told.
    let ip = json!({ "status": { "addresses": [{ "type": "IPAddress", "value": "10.96.0.1" }] } });
    let told = told([gateway("wp", &ip), service("own", use_of("wp"))]);
    assert!(told.of_service("own").is_none() && told.problems.len() == 1);
    let told = self::told([
        labelled("shop", use_of("wp")),
        gateway("wp", &all),
        service("wp", json!({})),
        behind("wp", json!({})),
    ]);
    assert!(told.of_service("wp").is_none() && told.of_pod("wp").is_none() && told.problems.is_empty());
}

/// Also where its slices say so, and whichever comes first; but who writes in another namespace takes no waypoint from anybody.
#[test]
fn who_is_behind_a_waypoint_by_a_slice_goes_without() {
    let bare = |name: &str, namespace: &str| {
        json!({ "kind": "Service", "metadata": { "name": name, "namespace": namespace },
                "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] } })
    };
    let slice = |namespace: &str| {
        json!({ "kind": "EndpointSlice",
            "metadata": { "name": "l", "namespace": namespace, "labels": { "kubernetes.io/service-name": "itself" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80 }],
            "endpoints": [{ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "cart", "namespace": "shop" } }] })
    };
    let user = patched(pod("cart"), &json!({ "metadata": { "labels": { "istio.io/use-waypoint": "wp" } } }));
    let wp = gateway("wp", &json!({ "metadata": { "labels": { "istio.io/waypoint-for": "all" } } }));
    let behind = Some("shop/wp.shop.svc.cluster.local");
    for (namespace, kind, value) in [
        ("shop", "Hostname", "itself.shop.svc.cluster.local"),
        ("bank", "Hostname", "itself.bank.svc.cluster.local"),
        ("shop", "IPAddress", "10.96.0.7"),
        ("bank", "IPAddress", "10.96.0.7"),
    ] {
        let itself = patched(
            gateway("itself", &json!({ "metadata": { "namespace": namespace } })),
            &json!({ "status": { "addresses": [{ "type": kind, "value": value }] } }),
        );
        let mut objects = Objects::new(Settings::default());
        let mut sum = Sum::default();
        let mut set = |value: Value| {
            objects.set(object(value));
            sum.add(objects.changes());
            let cart = sum.workloads().remove("Kubernetes//Pod/shop/cart");
            let waypoint = cart.and_then(|cart| cart.waypoint).map(|waypoint| waypoint.target.to_string());
            (waypoint, objects.problems().len())
        };
        for value in [bare("wp", "shop"), wp.clone(), bare("itself", namespace), slice(namespace)] {
            set(value);
        }
        let (before, _) = set(user.clone());
        assert_eq!(before.as_deref(), behind, "{namespace} {kind}");
        let (after, problems) = set(itself.clone());
        let (wanted, told) = match namespace {
            "shop" => (None, 1),
            _ => (behind, 0),
        };
        assert_eq!(after.as_deref(), wanted, "{namespace} {kind}");
        assert_eq!(problems, told, "{namespace} {kind}");
        // The slice last.
        let mut objects = Objects::new(Settings::default());
        for value in [
            bare("wp", "shop"),
            wp.clone(),
            user.clone(),
            bare("itself", namespace),
            itself,
            slice(namespace),
        ] {
            objects.set(object(value));
        }
        let mut sum = Sum::default();
        sum.add(objects.changes());
        let cart = sum.workloads().remove("Kubernetes//Pod/shop/cart").unwrap();
        let waypoint = cart.waypoint.as_ref().map(|waypoint| waypoint.target.to_string());
        assert_eq!(waypoint.as_deref(), wanted, "{namespace} {kind}");
        let host = format!("itself.{namespace}.svc.cluster.local");
        assert!(
            cart.services.iter().any(|of| *of.service.hostname == *host),
            "{namespace} {kind}: it is an endpoint all the same"
        );
    }
}

#[test]
fn an_instance_of_a_waypoint_is_handed_what_it_is_bound_to() {
    let bound = |text: &str| {
        gateway(
            "wp",
            &json!({ "metadata": { "annotations": { "ambient.istio.io/waypoint-inbound-binding": text } } }),
        )
    };
    let instance = patched(
        pod("wp-0"),
        &json!({ "metadata": { "labels": { "gateway.networking.k8s.io/gateway-name": "wp", "istio.io/use-waypoint": "wp" } } }),
    );
    let tunnel = |text: &str| {
        let told = told([bound(text), instance.clone()]);
        let workload = told.sum.workloads().into_values().next().unwrap();
        assert!(workload.waypoint.is_none());
        (workload.application_tunnel.map(|t| (t.protocol, t.port)), told.problems.len())
    };
    assert_eq!(tunnel("PROXY/15088"), (Some((ApplicationProtocol::Proxy, Some(15088))), 0));
    assert_eq!(tunnel("PROXY"), (Some((ApplicationProtocol::Proxy, None)), 0));
    assert_eq!(tunnel("NONE"), (Some((ApplicationProtocol::None, None)), 0));
    for wrong in ["HTTP", "PROXY/0x1", "PROXY/65536"] {
        assert_eq!(tunnel(wrong), (None, 1), "{wrong}");
    }
}

#[test]
fn a_waypoint_on_trial_has_its_share() {
    let labels = json!({ "istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary": "two" });
    let told_with = |weight: Value| {
        let annotations = json!({ "metadata": { "annotations": { "istio.io/use-waypoint-canary-weight": weight } } });
        let service = patched(service("web", labels.clone()), &annotations);
        told([gateway("wp", &json!({})), gateway("two", &json!({})), service])
    };
    let shares = |told: &Told| -> Vec<(String, u32)> {
        let service = &told.sum.services()["shop/web.shop.svc.cluster.local"];
        let shares = service.weighted_waypoints.iter();
        shares
            .map(|w| match &w.destination.target {
                GatewayTarget::Hostname(name) => (name.hostname.to_string(), w.weight),
                other => panic!("{other}"),
            })
            .collect()
    };
    let told = told_with(json!("30"));
    let both = [
        ("wp.shop.svc.cluster.local".to_owned(), 70),
        ("two.shop.svc.cluster.local".to_owned(), 30),
    ];
    assert_eq!(shares(&told), both);
    for wrong in ["101", "-1", "much"] {
        let told = told_with(json!(wrong));
        assert!(shares(&told).is_empty() && told.problems.len() == 1, "{wrong}");
        assert!(told.of_service("web").is_some());
    }
}

#[test]
fn the_ingress_goes_through_the_waypoint_where_it_is_said() {
    for (namespace, own, wanted) in [
        (json!({}), json!({}), false),
        (json!({}), json!("true"), true),
        (json!("true"), json!({}), true),
        (json!("true"), json!("false"), false),
    ] {
        let labels = |value: &Value| match value {
            Value::String(text) => json!({ "istio.io/ingress-use-waypoint": text, "istio.io/use-waypoint": "wp" }),
            _ => json!({ "istio.io/use-waypoint": "wp" }),
        };
        let told = told([
            labelled("shop", labels(&namespace)),
            gateway("wp", &json!({})),
            service("web", labels(&own)),
        ]);
        let service = &told.sum.services()["shop/web.shop.svc.cluster.local"];
        assert_eq!(service.ingress_use_waypoint, wanted, "{namespace} {own}");
    }
}
