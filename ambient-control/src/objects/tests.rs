use std::{collections::BTreeMap, net::IpAddr};

use ambient_authz::{Action, Policies, policy, policy::Fallback};
use ambient_core::{Health, Mesh, NetworkMode, TunnelProtocol, WorkloadKind, mesh};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{versions::Told, *};
use crate::Change;

mod cost;
mod services;
mod waypoints;

/// What changes add up to.
#[derive(Default)]
struct Sum {
    mesh: Mesh,
    policies: BTreeMap<PolicyKey, Told>,
    engine: Policies,
}

impl Sum {
    fn add(&mut self, changes: Vec<Change>) {
        let mut known = self.policies.keys().cloned().collect::<BTreeSet<_>>();
        for change in changes {
            if let Change::Policy(update) = &change {
                self.engine = self.engine.apply([update.clone()]);
            }
            match change {
                Change::Mesh(update) => {
                    if let mesh::Update::Workload(workload) = &update {
                        assert!(
                            workload.policies.iter().all(|key| known.contains(key)),
                            "a policy comes before who lists it"
                        );
                    }
                    self.mesh = self.mesh.apply([update]);
                }
                Change::Policy(policy::Update::Set(p)) => {
                    known.insert(p.key.clone());
                    self.policies.insert(p.key.clone(), Told::Policy(p));
                }
                Change::Policy(policy::Update::Unreadable(u)) => {
                    known.insert(u.key.clone());
                    let before = self.policies.get(&u.key).and_then(Told::in_force).cloned();
                    let told = match before {
                        Some(policy) => Told::LastGood(policy, u.clone()),
                        None => Told::Unreadable(u.clone()),
                    };
                    self.policies.insert(u.key.clone(), told);
                }
                Change::Policy(policy::Update::Kept(u)) => {
                    self.policies.insert(u.key.clone(), Told::Kept(u));
                }
                Change::Policy(policy::Update::Remove(key)) => {
                    self.policies.remove(&key);
                }
                other => panic!("never said: {other:?}"),
            }
        }
        for (key, told) in &self.policies {
            let wanted = match told {
                Told::Policy(_) => None,
                Told::LastGood(..) | Told::Kept(_) => Some(Fallback::LastGood),
                Told::Unreadable(_) => Some(Fallback::Refusal),
            };
            assert_eq!(self.engine.fallback(key), wanted, "{key}");
            assert_eq!(self.engine.policy(key).as_ref(), told.in_force().map(AsRef::as_ref), "{key}");
        }
        assert_eq!(
            self.engine.unreadable().count(),
            self.policies.values().filter(|t| !matches!(t, Told::Policy(_))).count()
        );
        for workload in self.mesh.workloads() {
            assert!(workload.policies.iter().all(|key| self.policies.contains_key(key)));
        }
    }

    fn workloads(&self) -> BTreeMap<String, Workload> {
        self.mesh.workloads().map(|w| (w.uid.to_string(), Workload::clone(w))).collect()
    }

    fn services(&self) -> BTreeMap<String, Service> {
        self.mesh.services().map(|s| (s.name.to_string(), Service::clone(s))).collect()
    }
}

pub(crate) fn object(value: Value) -> Object {
    let kind = value["kind"].as_str().unwrap().to_owned();
    let object = match kind.as_str() {
        "Namespace" => Object::Namespace(serde_json::from_value(value).unwrap()),
        "Pod" => Object::Pod(serde_json::from_value(value).unwrap()),
        "Service" => Object::Service(serde_json::from_value(value).unwrap()),
        "Node" => Object::Node(serde_json::from_value(value).unwrap()),
        "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
        "ServiceEntry" => Object::ServiceEntry(serde_json::from_value(value).unwrap()),
        "WorkloadEntry" => Object::WorkloadEntry(serde_json::from_value(value).unwrap()),
        "Gateway" => Object::Gateway(serde_json::from_value(value).unwrap()),
        "GatewayClass" => Object::GatewayClass(serde_json::from_value(value).unwrap()),
        "AuthorizationPolicy" => Object::AuthorizationPolicy(serde_json::from_value(value).unwrap()),
        "PeerAuthentication" => Object::PeerAuthentication(serde_json::from_value(value).unwrap()),
        kind => panic!("{kind}"),
    };
    object.check().unwrap();
    object
}

fn told(objects: impl IntoIterator<Item = Value>) -> Sum {
    let mut all = Objects::new(Settings::default());
    for value in objects {
        all.set(object(value));
    }
    let mut sum = Sum::default();
    sum.add(all.changes());
    sum
}

fn namespace(name: &str, mode: &str) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": { "istio.io/dataplane-mode": mode } } })
}

fn pod(name: &str) -> Value {
    json!({ "kind": "Pod", "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": name } },
            "spec": { "nodeName": "node-1", "serviceAccountName": "robot" },
            "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] } })
}

fn patched(mut value: Value, patch: &Value) -> Value {
    fn merge(value: &mut Value, patch: &Value) {
        match (value, patch) {
            (Value::Object(value), Value::Object(patch)) => {
                for (key, patch) in patch {
                    merge(value.entry(key.clone()).or_insert(Value::Null), patch);
                }
            }
            (value, patch) => *value = patch.clone(),
        }
    }
    merge(&mut value, patch);
    value
}

fn one(patch: &Value) -> Workload {
    let sum = told([namespace("shop", "ambient"), patched(pod("cart"), patch)]);
    let workloads = sum.workloads();
    assert_eq!(workloads.len(), 1);
    workloads.into_values().next().unwrap()
}

#[test]
fn a_pod_is_a_workload() {
    let workload = one(&json!({}));
    assert_eq!(workload.uid.as_str(), "Kubernetes//Pod/shop/cart");
    assert_eq!(workload.pod, Some("uid-cart".into()));
    assert_eq!(
        workload.addresses,
        ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
    );
    assert_eq!(workload.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/robot");
    assert_eq!((&*workload.node, &*workload.cluster), ("node-1", "Kubernetes"));
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("cart", "latest"));
    assert!(workload.ambient && workload.tunnel == TunnelProtocol::None && workload.health == Health::Healthy);
}

/// The table of the rule: namespace label, pod label, host network, sidecar, excluded namespace.
#[test]
fn who_is_meant_to_be_in_the_mesh() {
    for namespace_mode in ["ambient", "none", "other"] {
        for pod_mode in [None, Some("ambient"), Some("none"), Some("other")] {
            for bits in 0..8u8 {
                let (host, sidecar, excluded) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
                let space = if excluded { "kube-system" } else { "shop" };
                let mut value = patched(
                    pod("cart"),
                    &json!({ "metadata": { "namespace": space }, "spec": { "hostNetwork": host } }),
                );
                if let Some(mode) = pod_mode {
                    value["metadata"]["labels"]["istio.io/dataplane-mode"] = mode.into();
                }
                if sidecar {
                    value["metadata"]["annotations"] = json!({ "sidecar.istio.io/status": "" });
                }
                let sum = told([value, namespace(space, namespace_mode)]);
                let workload = sum.workloads().into_values().next().unwrap();
                let labelled = matches!((namespace_mode, pod_mode), (_, Some("ambient")) | ("ambient", None | Some("other")));
                assert_eq!(workload.ambient, labelled && !host && !sidecar && !excluded);
                assert_eq!(workload.network_mode == NetworkMode::HostNetwork, host);
            }
        }
    }
}

#[test]
fn owners_and_names() {
    let owned = |kind: &str, name: &str| {
        let owner = json!({ "kind": kind, "name": name, "controller": true });
        json!({ "generateName": format!("{name}-"), "ownerReferences": [owner] })
    };
    for (meta, kind, name) in [
        (json!({}), WorkloadKind::Pod, "cart"),
        (owned("ReplicaSet", "web-5d4f"), WorkloadKind::Pod, "web-5d4f"),
        (
            patched(
                owned("ReplicaSet", "web-api-5d4f"),
                &json!({ "labels": { "pod-template-hash": "5d4f" } }),
            ),
            WorkloadKind::Deployment,
            "web-api",
        ),
        (owned("Job", "nightly-28391234"), WorkloadKind::CronJob, "nightly"),
        (owned("Job", "once-7"), WorkloadKind::Job, "once-7"),
        (owned("DaemonSet", "agent"), WorkloadKind::Pod, "agent"),
        (owned("StatefulSet", "db"), WorkloadKind::Pod, "db"),
        // Its name was given: one that runs from a file of its node.
        (
            patched(owned("Node", "n1"), &json!({ "generateName": null })),
            WorkloadKind::Pod,
            "cart",
        ),
        (
            patched(
                owned("ReplicaSet", "web-77f"),
                &json!({ "labels": { "rollouts-pod-template-hash": "77f" } }),
            ),
            WorkloadKind::Pod,
            "web",
        ),
        (
            patched(
                owned("ReplicationController", "web-3"),
                &json!({ "labels": { "deploymentconfig": "web" } }),
            ),
            WorkloadKind::Pod,
            "web",
        ),
        (
            json!({ "labels": { "service.istio.io/workload-name": "named" } }),
            WorkloadKind::Pod,
            "named",
        ),
    ] {
        let workload = one(&json!({ "metadata": meta }));
        assert_eq!((workload.kind, &*workload.workload_name), (kind, name));
    }
    let labels = json!({ "app.kubernetes.io/name": "shown", "version": "v2" });
    let workload = one(&json!({ "metadata": { "labels": labels } }));
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("shown", "v2"));
}

#[test]
fn health_and_ends() {
    let ready = |status: &str| json!({ "conditions": [{ "type": "Ready", "status": status }] });
    for (patch, health) in [
        (json!({ "status": ready("True") }), Health::Healthy),
        (json!({ "status": ready("False") }), Health::Unhealthy),
        (json!({ "status": { "phase": "Pending" } }), Health::Unhealthy),
        (json!({ "status": { "phase": null } }), Health::Healthy),
        (
            json!({ "metadata": { "deletionTimestamp": "2026-11-23T20:00:00Z" } }),
            Health::Unhealthy,
        ),
    ] {
        assert_eq!(one(&patch).health, health, "{patch}");
    }
    for patch in [
        json!({ "status": { "phase": "Succeeded" } }),
        json!({ "status": { "phase": "Failed" } }),
        json!({ "status": { "podIP": null, "podIPs": null }, "spec": { "nodeName": null } }),
    ] {
        assert!(told([patched(pod("cart"), &patch)]).workloads().is_empty(), "{patch}");
    }
}

#[test]
fn a_pod_without_an_address_is_its_nodes_alone() {
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": {
        "clusterIP": "10.1.0.1", "selector": { "app": "cart" }, "ports": [{ "port": 80 }], "publishNotReadyAddresses": true } });
    let pod = patched(pod("cart"), &json!({ "metadata": { "labels": { "app": "cart" } } }));
    let bare = patched(pod.clone(), &json!({ "status": { "podIP": null, "podIPs": null } }));
    let one = |pod: Value| told([service.clone(), pod]).workloads().into_values().next().unwrap();
    assert_eq!(one(pod).services.len(), 1);
    let bare = one(bare);
    assert!(bare.addresses.is_empty() && bare.services.is_empty() && bare.health == Health::Unhealthy && !bare.node.is_empty());
}

#[test]
fn a_status_says_whether_anything_has_run() {
    let status = |phase: Option<&str>, container: Value| {
        json!({ "status": { "phase": phase, "containerStatuses": [{ "name": "app", "state": { "waiting": { "reason": "ContainerCreating" } } }],
            "initContainerStatuses": [container], "ephemeralContainerStatuses": null } })
    };
    let waits = || json!({ "name": "init", "started": false, "restartCount": 0, "state": { "waiting": {} }, "lastState": {} });
    assert!(one(&json!({})).has_run, "running");
    assert!(one(&status(None, waits())).has_run, "nobody keeps a status of it");
    assert!(one(&status(Some("Running"), waits())).has_run);
    assert!(!one(&status(Some("Pending"), waits())).has_run);
    assert!(!one(&json!({ "status": { "phase": "Pending" } })).has_run);
    for has in [
        json!({ "state": { "running": { "startedAt": "2026-11-23T20:00:00Z" } } }),
        json!({ "state": { "terminated": { "exitCode": 0 } } }),
        json!({ "lastState": { "terminated": { "exitCode": 1 } } }),
        json!({ "restartCount": 1 }),
        json!({ "started": true }),
    ] {
        assert!(one(&status(Some("Pending"), patched(waits(), &has))).has_run, "{has}");
    }
}

#[test]
fn a_service_and_its_endpoints() {
    let service = json!({ "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": {
        "clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1", "fd01::1"], "selector": { "app": "cart" },
        "ports": [{ "port": 80, "targetPort": "http" }, { "port": 81, "targetPort": 8081 }, { "port": 82 }, { "port": 53, "protocol": "UDP" }] } });
    let named = patched(
        pod("cart"),
        &json!({ "spec": { "containers": [{}, { "ports": [{ "name": "http", "containerPort": 8080 }] }] } }),
    );
    let unready = patched(
        pod("late"),
        &json!({ "metadata": { "labels": { "app": "cart" } }, "status": { "phase": "Pending" } }),
    );
    let sum = told([service.clone(), named.clone(), unready.clone(), pod("other")]);
    let services = sum.services();
    let web = &services["shop/web.shop.svc.cluster.local"];
    assert_eq!(
        web.vips.iter().map(|v| v.ip.to_string()).collect::<Vec<_>>(),
        ["10.1.0.1", "fd01::1"]
    );
    assert_eq!(
        web.ports.iter().map(|p| (p.port, p.target)).collect::<Vec<_>>(),
        [(80, 0), (81, 8081), (82, 82)]
    );
    let endpoints = |sum: &Sum| -> Vec<(String, Option<u16>, Health)> {
        let name = NamespacedHostname::new("shop", "web.shop.svc.cluster.local");
        let all = sum.mesh.endpoints(&name).unwrap().iter();
        let mut all: Vec<_> = all.map(|(uid, e)| (uid.to_string(), e.ports.get(80), e.health)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let both = [
        ("Kubernetes//Pod/shop/cart".to_owned(), Some(8080), Health::Healthy),
        ("Kubernetes//Pod/shop/late".to_owned(), None, Health::Unhealthy),
    ];
    assert_eq!(endpoints(&sum), both);
    let headless = json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": true } });
    let sum = told([patched(service.clone(), &headless), named, unready]);
    let services = sum.services();
    let web = services.values().next().unwrap();
    let balancer = web.load_balancer.as_ref().unwrap();
    assert!(web.vips.is_empty() && balancer.health_policy == ambient_core::HealthPolicy::AllowAll);
    assert_eq!(endpoints(&sum), both, "who asks is told of all");
    assert!(
        told([patched(service, &json!({ "spec": { "type": "ExternalName" } }))])
            .services()
            .is_empty()
    );
}

#[test]
fn what_a_kind_requires() {
    let invalid = |object: Object| object.check().unwrap_err();
    let bad_pod = |patch: Value| Object::Pod(serde_json::from_value(patched(pod("cart"), &patch)).unwrap());
    for (patch, path) in [
        (json!({ "metadata": { "name": "a/b" } }), "metadata.name"),
        (json!({ "metadata": { "name": "" } }), "metadata.name"),
        (json!({ "metadata": { "namespace": ".." } }), "metadata.namespace"),
        (json!({ "metadata": { "uid": "" } }), "metadata.uid"),
        (json!({ "spec": { "serviceAccountName": "a b" } }), "spec.serviceAccountName"),
        (json!({ "status": { "podIP": "x" } }), "status.podIP"),
    ] {
        assert_eq!(invalid(bad_pod(patch)).path, path);
    }
    for (spec, path) in [
        (json!({ "clusterIP": "x" }), "spec.clusterIP"),
        (json!({ "ports": [{ "port": 0 }] }), "spec.ports[0].port"),
        (json!({ "ports": [{ "port": 1, "targetPort": "80" }] }), "spec.ports[0].targetPort"),
    ] {
        let service = json!({ "metadata": { "name": "web" }, "spec": spec });
        assert_eq!(invalid(Object::Service(serde_json::from_value(service).unwrap())).path, path);
    }
    for port in [json!(-1), json!(65_536), json!(1.5), json!(true)] {
        let service = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 1, "targetPort": port }] } });
        assert!(serde_json::from_value::<ServiceObject>(service).is_err());
    }
}

#[test]
fn policies_are_attached_by_their_selectors() {
    let policy = |kind: &str, space: &str, name: &str, spec: Value| json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": { "name": name, "namespace": space }, "spec": spec });
    let selector = json!({ "matchLabels": { "app": "cart" } });
    let base = [
        pod("cart"),
        pod("other"),
        policy("AuthorizationPolicy", "shop", "own", json!({ "selector": selector })),
        policy("AuthorizationPolicy", "istio-system", "all", json!({ "selector": selector })),
        policy("AuthorizationPolicy", "elsewhere", "no", json!({ "selector": selector })),
        policy("AuthorizationPolicy", "shop", "whole", json!({})),
        policy(
            "AuthorizationPolicy",
            "shop",
            "bad",
            json!({ "selector": selector, "action": "MAYBE" }),
        ),
        policy("PeerAuthentication", "shop", "strict", json!({ "mtls": { "mode": "STRICT" } })),
        policy(
            "PeerAuthentication",
            "shop",
            "odd",
            json!({ "selector": selector, "mtls": { "mode": "ODD" } }),
        ),
    ];
    let sum = told(base);
    let keys = |name: &str| {
        sum.workloads()[&format!("Kubernetes//Pod/shop/{name}")]
            .policies
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        keys("cart"),
        [
            "istio-system/all",
            "shop/bad",
            "shop/own",
            "istio-system/istio_converted_static_strict",
            "shop/peer_authentication_odd"
        ]
    );
    assert_eq!(keys("other"), ["istio-system/istio_converted_static_strict"]);
    let unreadable = sum.policies.iter().filter(|(_, told)| matches!(told, Told::Unreadable(_)));
    assert_eq!(
        unreadable.map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        ["shop/bad", "shop/peer_authentication_odd"]
    );
}

#[test]
fn what_was_good_last_stays_in_force() {
    let policy = |kind: &str, app: &str, spec: Value| {
        let spec = patched(spec, &json!({ "selector": { "matchLabels": { "app": app } } }));
        object(json!({ "apiVersion": "security.istio.io/v1", "kind": kind,
                       "metadata": { "name": "p", "namespace": "shop" }, "spec": spec }))
    };
    let authorization = |app: &str, action: &str| policy("AuthorizationPolicy", app, json!({ "action": action }));
    let ports = |app: &str, mode: &str| policy("PeerAuthentication", app, json!({ "portLevelMtls": { "80": { "mode": mode } } }));
    let mut objects = Objects::new(Settings::default());
    let mut sum = Sum::default();
    let keys = |sum: &Sum| sum.workloads()["Kubernetes//Pod/shop/cart"].policies.clone();
    objects.set(object(pod("cart")));
    objects.set(authorization("cart", "DENY"));
    objects.set(ports("cart", "STRICT"));
    sum.add(objects.changes());
    let good = ["shop/p", "shop/converted_peer_authentication_p"].map(PolicyKey::from);
    assert_eq!(keys(&sum), good);

    // Whatever a version that cannot be read selects, the last good one goes on as it was.
    objects.set(authorization("other", "MAYBE"));
    objects.set(ports("other", "ODD"));
    let changes = objects.changes();
    assert!(
        matches!(
            &changes[..],
            [
                Change::Policy(policy::Update::Kept(_) | policy::Update::Unreadable(_)),
                Change::Policy(_)
            ]
        ),
        "{changes:?}"
    );
    sum.add(changes);
    assert_eq!(keys(&sum), good);
    assert!(objects.unread().count() == 2 && objects.unread().all(|unread| unread.last_good));
    // So it does where it was mended and broken again before anybody was told.
    objects.set(authorization("cart", "ALLOW"));
    objects.set(authorization("cart", "MAYBE"));
    sum.add(objects.changes());
    assert!(matches!(&sum.policies[&good[0]], Told::LastGood(p, _) if p.action == Action::Allow));

    // What is withdrawn has no last good version, also where nobody was told meanwhile.
    for kind in [Kind::AuthorizationPolicy, Kind::PeerAuthentication] {
        objects.remove(&ObjectKey::new(kind, "shop", "p"));
    }
    objects.set(authorization("cart", "MAYBE"));
    objects.set(ports("cart", "ODD"));
    sum.add(objects.changes());
    assert_eq!(keys(&sum), ["shop/p", "shop/peer_authentication_p"].map(PolicyKey::from));
    assert!(sum.policies.values().all(|told| matches!(told, Told::Unreadable(_))));
    assert!(objects.unread().all(|unread| !unread.last_good));

    // A last good version that is not for L4 is nothing, and refuses nothing.
    objects.set(authorization("cart", "AUDIT"));
    sum.add(objects.changes());
    objects.set(authorization("cart", "MAYBE"));
    sum.add(objects.changes());
    assert!(matches!(sum.policies[&good[0]], Told::Kept(_)));
    assert_eq!(keys(&sum), ["shop/peer_authentication_p".into()]);
}

#[test]
fn only_differences_are_told() {
    let mut objects = Objects::new(Settings::default());
    objects.set(object(namespace("shop", "ambient")));
    objects.set(object(pod("cart")));
    assert_eq!(objects.changes().len(), 1);
    objects.set(object(pod("cart")));
    assert!(objects.changes().is_empty());
    // Changed and changed back between two calls is no change.
    objects.remove(&ObjectKey::new(Kind::Pod, "shop", "cart"));
    objects.set(object(pod("cart")));
    assert!(objects.changes().is_empty());
    objects.remove(&ObjectKey::new(Kind::Namespace, "", "shop"));
    let changes = objects.changes();
    assert!(matches!(&changes[..], [Change::Mesh(mesh::Update::Workload(w))] if !w.ambient));
    objects.remove(&ObjectKey::new(Kind::Pod, "shop", "cart"));
    assert!(matches!(&objects.changes()[..], [Change::Mesh(mesh::Update::RemoveWorkload(_))]));
    objects.remove(&ObjectKey::new(Kind::Pod, "shop", "cart"));
    assert!(objects.changes().is_empty());
}

/// One step of a cluster's life.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Set(Value),
    Remove(ObjectKey),
    Report(&'static str, Vec<usize>),
    Tell,
}

const TRAFFIC: [&str; 3] = ["service", "workload", "all"];
const SPACES: [&str; 3] = ["shop", "bank", "istio-system"];

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let space = || proptest::sample::select(&SPACES[..]);
    let app = || proptest::sample::select(&["a", "b"][..]);
    let mode = || proptest::sample::select(&["ambient", "none", "x"][..]);
    let pod = (space(), 0..4usize, app(), mode(), 0..3u8, 0..5u8, used()).prop_map(|(space, n, app, mode, kind, status, used)| {
        let conditions = json!([{ "type": "Ready", "status": if status == 1 { "False" } else { "True" } }]);
        let value = json!({ "kind": "Pod",
            "metadata": { "name": format!("p{n}"), "namespace": space, "uid": format!("{space}-{n}"),
                          "labels": { "app": app, "istio.io/dataplane-mode": mode } },
            "spec": { "nodeName": format!("n{}", n % 2), "hostNetwork": kind == 2,
                      "containers": [{ "ports": [{ "name": "http", "containerPort": 8000 + n }] }] },
            "status": { "phase": if status == 2 { "Failed" } else { "Running" }, "conditions": conditions,
                        "podIP": if status == 3 { Value::Null } else { format!("10.0.0.{n}").into() } } });
        using(value, used)
    });
    let service = (space(), 0..2usize, app(), 0..4u8, used()).prop_map(|(space, n, app, kind, used)| {
        let selector = if kind == 3 { json!({}) } else { json!({ "app": app }) };
        let value = json!({ "kind": "Service", "metadata": { "name": format!("s{n}"), "namespace": space },
            "spec": { "selector": selector, "clusterIP": format!("10.1.0.{n}"),
                      "type": if kind == 0 { "ExternalName" } else { "ClusterIP" },
                      "ports": [{ "name": "web", "port": 80, "targetPort": if kind == 1 { json!("http") } else { json!(8080) } }] } });
        using(value, used)
    });
    let policy = (space(), 0..3usize, proptest::option::of(app()), 0..4u8, any::<bool>()).prop_map(|(space, n, app, kind, peer)| {
        let selector = app.map(|app| json!({ "matchLabels": { "app": app } }));
        let spec = match (peer, kind) {
            (true, 0) => json!({ "mtls": { "mode": "ODD" } }),
            (true, 1) => json!({ "mtls": { "mode": "STRICT" } }),
            (true, 2) if selector.is_some() => json!({ "portLevelMtls": { "80": { "mode": "STRICT" } } }),
            (true, _) => json!({ "mtls": { "mode": "PERMISSIVE" } }),
            (false, 0) => json!({ "action": "MAYBE" }),
            (false, 1) => json!({ "action": "AUDIT" }),
            (false, _) => json!({ "action": "DENY", "rules": [{ "from": [{ "source": { "namespaces": [format!("n{kind}")] } }] }] }),
        };
        let spec = patched(spec, &json!({ "selector": selector }));
        let kind = if peer { "PeerAuthentication" } else { "AuthorizationPolicy" };
        json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": { "name": format!("q{n}"), "namespace": space }, "spec": spec })
    });
    let label = (space(), mode(), used(), 0..3u8).prop_map(|(name, mode, used, network)| {
        let labels = match network {
            2 => json!({ "topology.istio.io/network": "n1" }),
            _ => json!({}),
        };
        let value = patched(namespace(name, mode), &json!({ "metadata": { "labels": labels } }));
        using(value, used)
    });
    let set = prop_oneof![4 => pod, 2 => service, 3 => policy, 2 => label, 6 => more_kinds()].boxed();
    let remove = set.clone().prop_map(|value| Step::Remove(object(value).key()));
    let report = (
        proptest::sample::select(&["n0", "n1"][..]),
        proptest::collection::vec(0..12usize, 0..6),
    );
    let step = prop_oneof![
        6 => set.prop_map(Step::Set),
        3 => remove,
        2 => report.prop_map(|(node, pods)| Step::Report(node, pods)),
        3 => Just(Step::Tell),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The label that asks for a waypoint: none, `none`, one of its own namespace, or one of another.
fn used() -> impl Strategy<Value = u8> + Clone {
    0..6u8
}

fn using(value: Value, used: u8) -> Value {
    let labels = match used {
        0 => json!({ "istio.io/use-waypoint": "none" }),
        1 => json!({ "istio.io/use-waypoint": "w0" }),
        2 => json!({ "istio.io/use-waypoint": "w1", "istio.io/use-waypoint-namespace": "bank" }),
        3 => json!({ "gateway.networking.k8s.io/gateway-name": "w0" }),
        _ => json!({}),
    };
    patched(value, &json!({ "metadata": { "labels": labels } }))
}

fn more_kinds() -> impl Strategy<Value = Value> {
    let space = || proptest::sample::select(&SPACES[..]);
    let app = || proptest::sample::select(&["a", "b"][..]);
    let node = (0..2usize, 0..3u8).prop_map(|(n, zone)| {
        let labels = json!({ "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("z{zone}") });
        json!({ "kind": "Node", "metadata": { "name": format!("n{n}"), "labels": if zone == 2 { json!({}) } else { labels } } })
    });
    let outside = (space(), 0..2usize, app(), 0..4u8, used()).prop_map(|(space, n, app, kind, used)| {
        let value = json!({ "kind": "WorkloadEntry", "metadata": { "name": format!("v{n}"), "namespace": space },
            "spec": { "address": if kind == 0 { "vm.example" } else { "10.2.0.1" }, "labels": { "app": app }, "weight": kind,
                      "network": if kind == 1 { "n2" } else { "" }, "locality": "r/z1", "ports": { "web": 9000 } } });
        using(value, used)
    });
    let entry = (space(), 0..2usize, 0..6u8, app(), used()).prop_map(|(space, n, kind, app, used)| {
        let host = ["a.example", "b.example", "s0.shop.svc.cluster.local"][usize::from(kind % 3)];
        let endpoints = json!([{ "address": "192.0.2.1" }, { "address": format!("192.0.2.{kind}") }]);
        let spec = match kind {
            0 => json!({ "resolution": "DNS" }),
            1 => json!({ "resolution": "STATIC", "endpoints": endpoints }),
            2 => json!({ "addresses": ["198.51.100.0/24"] }),
            _ => json!({ "resolution": "STATIC", "workloadSelector": { "labels": { "app": app } } }),
        };
        let spec = patched(
            spec,
            &json!({ "hosts": ["c.example", host], "ports": [{ "number": 80, "name": "http" }] }),
        );
        let made = format!("2026-01-0{}T00:00:00Z", kind + 1);
        let meta = json!({ "name": format!("e{n}"), "namespace": space, "creationTimestamp": made });
        using(json!({ "kind": "ServiceEntry", "metadata": meta, "spec": spec }), used)
    });
    let slice = (space(), 0..2usize, 0..2usize, 0..4usize, 0..4u8, space()).prop_map(|(space, n, service, pod, kind, other)| {
        let target = match kind {
            0 => Value::Null,
            3 => json!({ "kind": "Pod", "name": format!("p{pod}"), "namespace": other, "uid": format!("{other}-{pod}") }),
            _ => json!({ "kind": "Pod", "name": format!("p{pod}") }),
        };
        let endpoints = json!([{ "addresses": ["192.0.2.9"], "conditions": { "ready": pod > 0 } },
                               { "addresses": [format!("10.0.0.{pod}")], "targetRef": target }]);
        let labels = if kind == 2 {
            json!({})
        } else {
            json!({ "kubernetes.io/service-name": format!("s{service}") })
        };
        json!({ "kind": "EndpointSlice", "metadata": { "name": format!("l{n}"), "namespace": space, "labels": labels },
                "addressType": "IPv4", "ports": [{ "name": "web", "port": 8000 + pod }], "endpoints": endpoints })
    });
    let gateway = (space(), 0..2usize, 0..5u8, 0..3u8).prop_map(|(space, n, place, traffic)| {
        let addresses = match place {
            0 => json!([]),
            1 => json!([{ "type": "IPAddress", "value": "10.1.0.1" }]),
            _ => json!([{ "type": "Hostname", "value": format!("s{n}.{space}.svc.cluster.local") }]),
        };
        let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE",
                               "allowedRoutes": { "namespaces": { "from": if place == 2 { "Same" } else { "All" } } } });
        let remote = place == 4;
        json!({ "kind": "Gateway",
            "metadata": { "name": format!("w{n}"), "namespace": space,
                          "labels": { "istio.io/waypoint-for": TRAFFIC[usize::from(traffic)],
                                      "topology.istio.io/network": if traffic == 2 { "n1" } else { "n2" } } },
            "spec": { "gatewayClassName": if remote { "istio-remote" } else { "istio-waypoint" }, "listeners": [listener] },
            "status": { "addresses": addresses } })
    });
    let class = (0..3u8).prop_map(|kind| {
        let labels = if kind == 0 {
            json!({})
        } else {
            json!({ "istio.io/waypoint-for": "all" })
        };
        json!({ "kind": "GatewayClass", "metadata": { "name": "istio-waypoint", "labels": labels } })
    });
    prop_oneof![1 => node, 3 => outside, 4 => entry, 3 => slice, 4 => gateway, 1 => class]
}

/// Whether it holds neither of the values above that cannot be read.
fn readable(value: &Value) -> bool {
    value["spec"]["mtls"]["mode"] != "ODD" && value["spec"]["action"] != "MAYBE"
}

pub(crate) fn report(pods: &[usize]) -> Report {
    Report::Captured(pods.iter().map(|p| PodUid::from(format!("{}-{}", SPACES[p / 4], p % 4))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Told step by step or at once, in whatever order: the same mesh and the same policies.
    #[test]
    fn differences_add_up_to_the_whole(steps in steps()) {
        let mut objects = Objects::new(Settings::default());
        let mut sum = Sum::default();
        // What is, and what was good of it last.
        let mut alive: BTreeMap<ObjectKey, (Value, Option<Value>)> = BTreeMap::new();
        let mut reports = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(value) => {
                    let object = object(value.clone());
                    let before = alive.remove(&object.key()).and_then(|(_, good)| good);
                    let good = if readable(&value) { Some(value.clone()) } else { before };
                    alive.insert(object.key(), (value, good));
                    objects.set(object);
                }
                Step::Remove(key) => {
                    alive.remove(&key);
                    objects.remove(&key);
                }
                Step::Report(node, pods) => {
                    objects.report(node, report(&pods));
                    reports.insert(node, pods);
                }
                Step::Tell => sum.add(objects.changes()),
            }
        }
        sum.add(objects.changes());
        prop_assert!(objects.changes().is_empty());

        let mut fresh = Objects::new(Settings::default());
        let keys: Vec<ObjectKey> = alive.keys().cloned().collect();
        for (value, good) in alive.into_values().rev() {
            good.into_iter().for_each(|good| fresh.set(object(good)));
            fresh.set(object(value));
        }
        for (node, pods) in reports {
            fresh.report(node, report(&pods));
        }
        let mut whole = Sum::default();
        whole.add(fresh.changes());
        prop_assert_eq!(sum.workloads(), whole.workloads());
        prop_assert_eq!(sum.services(), whole.services());
        prop_assert_eq!(&sum.policies, &whole.policies);
        prop_assert_eq!(objects.problems(), fresh.problems());

        // Where nothing is any more, nothing is kept.
        for key in keys {
            objects.remove(&key);
        }
        sum.add(objects.changes());
        prop_assert!(sum.workloads().is_empty() && sum.services().is_empty() && sum.policies.is_empty());
        prop_assert!(objects.is_empty(), "{objects:?}");
    }
}
