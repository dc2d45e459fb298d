//! What a change costs: how much is looked at for it, however much there is.

use super::*;

/// A namespace of pods on a hundred nodes, twenty to a service, each service with a policy.
fn cluster(pods: usize) -> Objects {
    let mut objects = Objects::new(Settings::default());
    objects.set(object(namespace("shop", "ambient")));
    for n in 0..pods {
        objects.set(object(one_of(n, "True")));
    }
    for n in 0..pods / 20 {
        let app = json!({ "app": format!("a{n}") });
        objects.set(object(
            json!({ "kind": "Service", "metadata": { "name": format!("s{n}"), "namespace": "shop" },
                    "spec": { "clusterIP": format!("10.96.{}.{}", n / 250, n % 250), "selector": app, "ports": [{ "port": 80 }] } }),
        ));
        objects.set(object(guard(&format!("a{n}"), "192.0.2.0/24")));
    }
    objects.changes();
    objects
}

fn one_of(n: usize, ready: &str) -> Value {
    let conditions = json!([{ "type": "Ready", "status": ready }]);
    patched(
        pod(&format!("p{n}")),
        &json!({ "metadata": { "labels": { "app": format!("a{}", n / 20) } },
                 "spec": { "nodeName": format!("node-{}", n % 100) },
                 "status": { "podIP": null, "podIPs": [{ "ip": format!("10.{}.{}.1", n / 250, n % 250) }], "conditions": conditions } }),
    )
}

fn guard(app: &str, block: &str) -> Value {
    json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": app, "namespace": "shop" },
            "spec": { "selector": { "matchLabels": { "app": app } }, "action": "DENY",
                      "rules": [{ "from": [{ "source": { "ipBlocks": [block] } }] }] } })
}

/// What is looked at for a change, and how many changes are told of it.
fn cost(objects: &mut Objects, change: impl FnOnce(&mut Objects)) -> (u64, usize) {
    let before = objects.looked_at();
    change(objects);
    let told = objects.changes().len();
    (objects.looked_at() - before, told)
}

#[test]
fn a_change_costs_what_it_changes() {
    type Change = fn(&mut Objects);
    let changes: [(&str, Change, (u64, usize)); 7] = [
        ("a pod", |o| o.set(object(one_of(7, "False"))), (1, 1)),
        ("the same pod again", |o| o.set(object(one_of(7, "False"))), (1, 0)),
        ("a policy's rules", |o| o.set(object(guard("a1", "198.51.100.0/24"))), (1, 1)),
        (
            "a policy's scope",
            |o| o.remove(&ObjectKey::new(Kind::AuthorizationPolicy, "shop", "a2")),
            (21, 21),
        ),
        (
            "a service's ports",
            |o| {
                let spec = json!({ "selector": { "app": "a3" }, "clusterIP": "10.96.0.3", "ports": [{ "port": 80, "targetPort": 8080 }] });
                let value = json!({ "kind": "Service", "metadata": { "name": "s3", "namespace": "shop" }, "spec": spec });
                o.set(object(value));
            },
            (21, 21),
        ),
        (
            "a report",
            |o| o.report("node-7", Report::Captured(["uid-p7".into()].into())),
            (1, 1),
        ),
        ("nothing", |_| {}, (0, 0)),
    ];
    // Of a hundred pods each is on a node of its own.
    let mut few = cluster(100);
    for (what, change, wanted) in changes {
        assert_eq!(cost(&mut few, change), wanted, "{what}");
    }
    let mut many = cluster(10_000);
    for (what, change, wanted) in changes {
        let wanted = if what == "a report" { (100, 1) } else { wanted };
        assert_eq!(cost(&mut many, change), wanted, "{what}: of ten thousand");
    }
    let whole = ["PERMISSIVE", "STRICT"].map(|mode| {
        json!({ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": { "name": "p", "namespace": "elsewhere" }, "spec": { "mtls": { "mode": mode } } })
    });
    let [loose, strict] = whole.map(object);
    many.set(loose);
    many.changes();
    // The policy that stands for all that are strict is there already.
    assert_eq!(cost(&mut many, |o| o.set(strict)), (0, 0), "another namespace's");
}

#[test]
fn a_waypoint_that_becomes_ready_costs_its_users() {
    let mut objects = cluster(1_000);
    let used = json!({ "metadata": { "labels": { "istio.io/use-waypoint": "wp" } } });
    let service = json!({ "kind": "Service", "metadata": { "name": "s0", "namespace": "shop" },
                          "spec": { "clusterIP": "10.96.0.0", "selector": { "app": "a0" }, "ports": [{ "port": 80 }] } });
    objects.set(object(patched(service, &used)));
    objects.set(object(
        json!({ "kind": "Service", "metadata": { "name": "wp", "namespace": "shop" },
                               "spec": { "clusterIP": "10.96.9.9", "ports": [{ "port": 15008 }] } }),
    ));
    objects.changes();
    assert_eq!(objects.problems().len(), 1);
    let gateway = |reached: Value| {
        object(json!({ "kind": "Gateway", "metadata": { "name": "wp", "namespace": "shop" },
                       "spec": { "gatewayClassName": "istio-waypoint" }, "status": { "addresses": reached } }))
    };
    let hostname = json!([{ "type": "Hostname", "value": "wp.shop.svc.cluster.local" }]);
    // The service, the gateway itself, and the service that it is.
    assert_eq!(cost(&mut objects, |o| o.set(gateway(hostname.clone()))), (3, 1));
    assert!(objects.problems().is_empty());
    assert_eq!(cost(&mut objects, |o| o.set(gateway(hostname))), (1, 0));
}
