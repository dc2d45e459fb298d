//! PeerAuthentication: the cases of `tests/vectors/`, and every combination of modes against the plain rule.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::path::Path;

use ambient_authz::{
    Conn, Decision, Denial, Policies, decide,
    kubernetes::{
        Labels, PeerAuthentication, Settings,
        peer_authentication::{self, Mode, Object, Set, effective, keys},
    },
    policy::Update,
};
use ambient_core::{Identity, PolicyKey, Workload};
use serde_json::{Value, json};

const STATIC: &str = "istio-system/istio_converted_static_strict";
const CONVERTED: &str = "ns1/converted_peer_authentication_workload";

fn object(name: &str, namespace: &str, selector: bool, mode: &Value, ports: &Value) -> Object {
    let written = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "selector": selector.then(|| json!({ "matchLabels": { "app": "a" } })),
            "mtls": mode.is_string().then(|| json!({ "mode": mode })),
            "portLevelMtls": ports.as_object().map(|ports| {
                ports.iter().map(|(port, mode)| (port.clone(), json!({ "mode": mode }))).collect::<Value>()
            }),
        },
    });
    let resource: PeerAuthentication = serde_json::from_value(written).unwrap();
    peer_authentication::read(&resource, &Settings::default()).unwrap().object
}

fn labels(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

/// Whether a workload of `ns1` refuses a peer on a port, with the policies that are published and the keys it lists.
fn refuses(set: &Set, labels: &Labels, peer: Option<&Identity>, port: u16) -> bool {
    refuses_in(Policies::default(), set, labels, peer, port)
}

fn refuses_in(empty: Policies, set: &Set, labels: &Labels, peer: Option<&Identity>, port: u16) -> bool {
    let updates = peer_authentication::policies(set).into_iter().map(|p| Update::Set(p.into()));
    let policies = empty.apply(updates);
    let mut workload = Workload::new("uid", "ns1", "w");
    workload.policies = keys(set, "ns1", labels);
    let conn = Conn {
        peer: &policies.resolve(peer),
        source: "10.0.0.1".parse().unwrap(),
        destination: ([10, 0, 0, 2], port).into(),
    };
    match decide(&policies, &workload, &conn) {
        Decision::Allow(_) => false,
        Decision::Deny(Denial::ByPolicy(..)) => true,
        Decision::Deny(other) => panic!("{other}"),
    }
}

#[test]
fn attach_cases() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/attach-cases.yaml");
    let vectors: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = 0;
    for case in vectors["peer_authentication"].as_array().unwrap() {
        let Some(listed) = case["keys"].as_array() else { continue };
        let mut objects = Vec::new();
        for (level, namespace) in [("mesh", "istio-system"), ("namespace", "ns1")] {
            if let Some(mode) = case.get(level) {
                objects.push(object(level, namespace, false, mode, &Value::Null));
            }
        }
        if let Some(workload) = case.get("workload") {
            objects.push(object("workload", "ns1", true, &workload["mode"], &workload["ports"]));
        }
        let pod = labels(case["pod_labels"]["app"].as_str().unwrap_or("a"));
        let listed: Vec<&str> = listed.iter().map(|k| if k == "STATIC" { STATIC } else { CONVERTED }).collect();

        let exact = Set::new(&Settings::istio_exact(), objects.clone());
        assert_eq!(texts(&keys(&exact, "ns1", &pod)), listed, "{case}");
        if case["converted_exists"] == false {
            assert!(
                peer_authentication::policies(&exact).iter().all(|p| p.key.as_str() != CONVERTED),
                "{case}"
            );
        }
        let refuses_exactly = |port| refuses_in(Policies::istio_exact(), &exact, &pod, None, port);
        denied_ports(case, "plaintext_denied_ports_actual", refuses_exactly);

        let set = Set::new(&Settings::default(), objects);
        let found = keys(&set, "ns1", &pod);
        if case["id"] == "D3-disable-port-not-exempt" {
            assert_eq!(texts(&found), [CONVERTED], "only the object's own policy can exempt a port");
        } else {
            assert_eq!(texts(&found), listed, "{case}");
        }
        for key in &found {
            let published = peer_authentication::policies(&set).iter().any(|p| p.key == *key);
            assert!(published, "{key} is listed and not published: {case}");
        }
        denied_ports(case, "plaintext_denied_ports_expected", |port| refuses(&set, &pod, None, port));
        asked += 1;
    }
    assert!(asked >= 15, "{asked} cases");
}

fn texts(keys: &[PolicyKey]) -> Vec<&str> {
    keys.iter().map(PolicyKey::as_str).collect()
}

/// Which of two ports refuse plaintext, as a case words it.
fn denied_ports(case: &Value, field: &str, refuses: impl Fn(u16) -> bool) {
    let Some(ports) = case[field].as_array() else { return };
    let expected = match ports.first().and_then(Value::as_str) {
        Some("every port") => [true, true],
        Some("every port except 9090") => [false, true],
        Some(other) => panic!("{other}"),
        None => [9090, 80].map(|port| ports.contains(&json!(port))),
    };
    assert_eq!([9090, 80].map(refuses), expected, "{field}: {case}");
}

/// What Istio documents: the port's mode, else the workload's, else the namespace's, else the mesh's, else permissive.
fn documented(levels: &[Option<&str>]) -> Mode {
    match levels.iter().flatten().find(|mode| **mode != "UNSET") {
        Some(&"STRICT") => Mode::Strict,
        Some(&"DISABLE") => Mode::Disable,
        _ => Mode::Permissive,
    }
}

type Modes = [Option<&'static str>; 5];

/// Every combination of modes of mesh, namespace, workload and two ports; none means no object or no mode at all.
fn combinations() -> impl Iterator<Item = Modes> {
    const MODES: Modes = [None, Some("UNSET"), Some("DISABLE"), Some("PERMISSIVE"), Some("STRICT")];
    (0..3125usize).map(|n| [1, 5, 25, 125, 625].map(|place| MODES[n / place % 5]))
}

fn objects([mesh, namespace, workload, first, second]: Modes) -> Vec<Object> {
    let mut objects = Vec::new();
    for (level, name, mode) in [("mesh", "istio-system", mesh), ("namespace", "ns1", namespace)] {
        objects.extend(mode.map(|mode| object(level, name, false, &json!(mode), &Value::Null)));
    }
    let mut ports = serde_json::Map::new();
    for (port, mode) in [("8080", first), ("9090", second)] {
        ports.extend(mode.map(|mode| (port.to_owned(), json!(mode))));
    }
    objects.push(object("workload", "ns1", true, &json!(workload), &Value::Object(ports)));
    objects
}

#[test]
fn every_combination_of_modes() {
    let peer: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let pod = labels("a");
    for modes in combinations() {
        let [mesh, namespace, workload, first, second] = modes;
        let set = Set::new(&Settings::default(), objects(modes));
        assert!(
            keys(&set, "ns1", &pod).len() <= 1,
            "an exemption beside the static policy would be void"
        );
        for (port, own) in [(8080, first), (9090, second), (7070, None)] {
            let expected = documented(&[own, workload, namespace, mesh]);
            let at = format!("mesh, namespace, workload, ports {modes:?}: {port}");
            assert_eq!(effective(&set, "ns1", &pod, port), expected, "{at}");
            assert_eq!(refuses(&set, &pod, None, port), expected == Mode::Strict, "{at}");
            assert!(!refuses(&set, &pod, Some(&peer), port), "{at}");
        }
    }
}

#[test]
fn istio_exact_departs_where_istio_does() {
    let pod = labels("a");
    let peer: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let unset = |mode: Option<&str>| matches!(mode, None | Some("UNSET"));
    let lax = |mode: Option<&str>| matches!(mode, Some("PERMISSIVE" | "DISABLE"));
    let mut departures = 0;
    for modes in combinations() {
        let [mesh, namespace, workload, first, second] = modes;
        let set = Set::new(&Settings::istio_exact(), objects(modes));
        let ports = [first, second];
        let refuses = |peer, port| refuses_in(Policies::istio_exact(), &set, &pod, peer, port);
        let asked = [(8080, first), (9090, second), (7070, None)];
        let departs = asked
            .iter()
            .any(|(port, own)| refuses(None, *port) != (documented(&[*own, workload, namespace, mesh]) == Mode::Strict));
        assert!(asked.iter().all(|(port, _)| !refuses(Some(&peer), *port)));
        if departs {
            let mesh_strict = mesh == Some("STRICT");
            let parent_strict = namespace == Some("STRICT") || (unset(namespace) && mesh_strict);
            let d1 = mesh_strict && unset(namespace) && lax(workload) && ports.contains(&Some("STRICT"));
            let d2 = mesh_strict && namespace == Some("UNSET") && unset(workload) && ports.contains(&Some("PERMISSIVE"));
            let d3 = parent_strict && unset(workload) && ports.contains(&Some("DISABLE")) && !ports.contains(&Some("PERMISSIVE"));
            assert!(d1 || d2 || d3, "{modes:?}");
            departures += 1;
        }
    }
    assert_eq!(departures, 152);
}
