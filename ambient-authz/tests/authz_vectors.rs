//! The cases of `tests/vectors/`, under the safe reading and under Istio's.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use ambient_authz::{
    Action, Conn, Decision, Denial, Peer, Policies, Policy, Rule, Scope, decide, dry_run,
    kubernetes::{self, AuthorizationPolicy, PeerAuthentication, Reading, Settings, peer_authentication},
    policy::Update,
    wire,
};
use ambient_core::{Identity, PolicyKey, Workload};
use serde_json::{Value, json};

#[path = "support/notation.rs"]
mod notation;

use notation::{list, rules, string_match, text, wire_policy};

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `td/ns/NS/sa/SA`; `=` cannot stand in a SPIFFE ID, and so not in an identity here.
fn identity(value: &Value) -> Option<Identity> {
    let principal = value.as_str()?.replace('=', "-");
    Some(format!("spiffe://{principal}").parse().unwrap())
}

fn ip_of(address: &str) -> std::net::SocketAddr {
    address.parse().unwrap()
}

fn one(rules: Vec<Rule>, action: Action) -> Policy {
    Policy {
        key: "ns/case".into(),
        namespace: "ns".into(),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

#[test]
fn eval_matches() {
    let vectors = vectors("eval-cases.yaml");
    let mut asked = 0;
    for case in list(&vectors["match_cases"]) {
        let policy = one(rules(&case["rules"]), Action::Deny);
        for (name, expected) in case["expect"].as_object().unwrap() {
            let connection = &vectors["connections"][name];
            let peer = identity(&connection["identity"]);
            let conn = Conn {
                peer: &peer.into(),
                source: ip_of(text(&connection["src"])).ip(),
                destination: ip_of(text(&connection["dst"])),
            };
            let matched = policy.matching_rule(&conn).is_some();
            assert_eq!(matched, expected.as_bool().unwrap(), "{} on {name}", case["id"]);
            asked += 1;
        }
    }
    assert!(asked > 80, "{asked} cases");
}

#[test]
fn eval_strings() {
    for case in list(&vectors("eval-cases.yaml")["string_cases"]) {
        let matched = string_match(&case["matcher"]).matches(text(&case["value"]));
        assert_eq!(matched, case["expect"].as_bool().unwrap(), "{case}");
    }
}

/// Under Istio's reading as the cases say; under the safe one each is refused, and its place is named.
#[test]
fn eval_wire_values() {
    let mut asked = 0;
    for case in list(&vectors("eval-cases.yaml")["wire_cases"]) {
        let block = |block: &Value| wire::Address {
            address: match block["ip"].as_str() {
                Some(ip) => ip.parse::<std::net::Ipv4Addr>().unwrap().octets().into(),
                None => vec![10; block["bytes"].as_u64().unwrap() as usize],
            },
            length: block["length"].as_u64().unwrap() as u32,
        };
        let found = wire::Match {
            source_ips: list(&case["match"]["source_ips"]).iter().map(block).collect(),
            destination_ports: list(&case["match"]["destination_ports"])
                .iter()
                .map(|port| port.as_u64().unwrap() as u32)
                .collect(),
            ..wire::Match::default()
        };
        let sent = wire::Authorization {
            name: "case".into(),
            namespace: "ns".into(),
            scope: case["resource"]["scope"].as_i64().unwrap_or(0) as i32,
            action: case["resource"]["action"].as_i64().unwrap_or(0) as i32,
            rules: vec![wire::Rule {
                clauses: vec![wire::Clause { matches: vec![found] }],
            }],
            dry_run: false,
        };
        // Of the block 192.0.2.1 only its length of 0 is left, which takes in every address.
        let conn = Conn {
            peer: &Peer::plaintext(),
            source: "127.0.0.1".parse().unwrap(),
            destination: "127.0.0.2:80".parse().unwrap(),
        };
        let exact = wire::read(&sent, &wire::Settings::istio_exact());
        match text(&case["expect"]) {
            "rejected" => assert!(exact.is_err(), "{case}"),
            expected => assert_eq!(exact.unwrap().matching_rule(&conn).is_some(), expected == "match", "{case}"),
        }
        let error = wire::read(&sent, &wire::Settings::default()).unwrap_err();
        let place = match &case["resource"] {
            Value::Object(fields) => fields.keys().next().unwrap().clone(),
            _ if case["match"]["source_ips"].is_array() => "rules[0].clauses[0].matches[0].source_ips[0]".into(),
            _ => "rules[0].clauses[0].matches[0].destination_ports[0]".into(),
        };
        assert_eq!(*error.path, *place, "{case}");
        asked += 1;
    }
    assert!(asked >= 6, "{asked} cases");
}

#[test]
fn eval_decisions() {
    for case in list(&vectors("eval-cases.yaml")["decision_cases"]) {
        for empty in [Policies::default(), Policies::istio_exact()] {
            let updates = case["policies"].as_object().unwrap().iter().map(|(key, policy)| {
                let namespace = text(&policy["namespace"]);
                let key = if key.contains('/') {
                    key.clone()
                } else {
                    format!("{namespace}/{key}")
                };
                Update::Set(Arc::new(neutral_policy(&key, policy)))
            });
            let policies = empty.apply(updates);
            for asked in list(&case["cases"]) {
                decision(&policies, &case["id"], asked);
            }
        }
    }
}

fn neutral_policy(key: &str, policy: &Value) -> Policy {
    Policy {
        key: key.into(),
        namespace: text(&policy["namespace"]).into(),
        scope: notation::scope(text(&policy["scope"])),
        action: if policy["action"] == "DENY" { Action::Deny } else { Action::Allow },
        rules: rules(&policy["rules"]),
        dry_run: policy["dry_run"] == true,
    }
}

fn decision(policies: &Policies, id: &Value, asked: &Value) {
    let mut workload = Workload::new("uid", text(&asked["workload"]["namespace"]), "w");
    let attached = asked["workload"]["attached"].as_array().into_iter().flatten();
    workload.policies = attached.map(|key| text(key).into()).collect();
    let peer = identity(&asked["identity"]);
    let conn = Conn {
        peer: &peer.into(),
        source: ip_of(asked["src"].as_str().unwrap_or("127.0.0.1:1234")).ip(),
        destination: ip_of(asked["dst"].as_str().unwrap_or("127.0.0.2:8080")),
    };
    let decision = decide(policies, &workload, &conn);
    if id == "unknown-attached-policy-is-skipped" && !policies.is_istio_exact() {
        assert_eq!(decision, Decision::Deny(Denial::NotArrived("ns1/not-delivered-yet".into())));
        return;
    }
    let (result, by) = match &decision {
        Decision::Allow(allowed) => ("allow", allowed.by.as_ref().map_or("no-allow-policies", PolicyKey::as_str)),
        Decision::Deny(Denial::ByPolicy(key, _)) => ("deny", key.as_str()),
        Decision::Deny(Denial::NoneAllowed) => ("deny", "no-allow-matched"),
        Decision::Deny(other) => panic!("{id}: {other}"),
    };
    assert_eq!((result, by), (text(&asked["result"]), text(&asked["by"])), "{id}: {asked}");
    if let Some(log) = asked["dry_run_log"].as_array() {
        let told: Vec<_> = dry_run(policies, &workload, &conn).iter().map(ToString::to_string).collect();
        let wanted: Vec<_> = log.iter().map(|line| format!("dry run: {}", text(line))).collect();
        assert_eq!(told, wanted, "{id}");
    }
}

fn resource(case: &Value) -> AuthorizationPolicy {
    let written = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": "case",
            "namespace": case["namespace"].as_str().unwrap_or("ns"),
            "annotations": case["annotations"],
        },
        "spec": case["spec"],
    });
    serde_json::from_value(written).unwrap()
}

#[test]
fn convert_as_istio() {
    for case in list(&vectors("convert-cases.yaml")["cases"]) {
        let settings = Settings {
            dry_run: case["dry_run_feature"] == true,
            ..Settings::istio_exact()
        };
        let read = kubernetes::read(&resource(case), &settings);
        if case["panics"] == true {
            assert_eq!(&*read.unwrap_err().path, "spec.rules[0].to[0].operation");
            continue;
        }
        same_conversion(case, &read.unwrap());
    }
}

/// Compares with a case of the vectors, but for what the status text says beyond the attributes that L4 cannot check.
fn same_conversion(case: &Value, reading: &Reading) {
    let id = &case["id"];
    let status = text(&case["status"]);
    assert_eq!(reading.policy.is_none(), case["policy"] == "none", "{id}");
    assert_eq!(
        reading.policy.is_none(),
        matches!(status, "none" | "bad-action" | "dry-run-off"),
        "{id}"
    );
    for attribute in case["unsupported"].as_array().into_iter().flatten() {
        let named = |w: &kubernetes::Warning| w.path.ends_with(text(attribute)) || w.text.starts_with(text(attribute));
        assert!(reading.warnings.iter().any(named), "{id}: {attribute} in {:?}", reading.warnings);
    }
    let Some(policy) = &reading.policy else { return };
    assert_eq!(policy.rules, rules(&case["rules"]), "{id}");
    if let Some(scope) = case["scope"].as_str() {
        assert_eq!(policy.scope.to_string(), scope, "{id}");
    }
    assert_eq!(policy.dry_run, case["dry_run"] == true, "{id}");
}

/// Where the safe reading departs from the vectors: other rules, or the place of the fault.
const SAFE: &str = r#"
named-port-is-dropped-silently: spec.rules[0].to[0].operation.ports[0]
operation-missing: spec.rules[0].to[0].operation
bad-ip-removes-whole-constraint: spec.rules[0].from[0].source.ipBlocks[0]
deny-http-only: [[]]
deny-everything-rule-beside-http-rule: [[], []]
deny-l4-from-and-http-when: [[[{principals: [{exact: cluster.local/ns/foo/sa/bar}]}]]]
deny-trust-domains-only: [[[{trust_domains: [{exact: td1}]}]]]
allow-trust-domains-with-namespace: [[[{namespaces: [{exact: a}], trust_domains: [{exact: td1}]}]]]
deny-when-service-account: [[[{service_accounts: [{namespace: ns, name: sa}]}]]]
allow-when-trust-domain: [[[{trust_domains: [{exact: td1}]}]]]
deny-http-operation-beside-port-operation: [[]]
"#;

#[test]
fn convert_safely() {
    let mut departures: BTreeMap<String, Value> = serde_saphyr::from_str(SAFE).unwrap();
    for case in list(&vectors("convert-cases.yaml")["cases"]) {
        let id = text(&case["id"]);
        let read = kubernetes::read(&resource(case), &Settings::default());
        match departures.remove(id) {
            Some(Value::String(path)) => assert_eq!(*read.unwrap_err().path, *path, "{id}"),
            Some(expected) => assert_eq!(read.unwrap().policy.unwrap().rules, rules(&expected), "{id}"),
            None if id == "selector-without-labels" => {
                let reading = read.unwrap();
                assert_eq!(reading.policy.unwrap().scope, Scope::Namespace);
                assert_eq!((reading.selector, reading.warnings.len()), (None, 1));
            }
            None => same_conversion(case, &read.unwrap()),
        }
    }
    assert!(departures.is_empty(), "no such case: {departures:?}");
}

#[test]
fn convert_under_another_trust_domain() {
    let settings = Settings {
        trust_domain: "td1".parse().unwrap(),
        trust_domain_aliases: vec!["old-td".parse().unwrap()],
        ..Settings::default()
    };
    let vectors = vectors("convert-cases.yaml");
    let case = list(&vectors["cases"])
        .iter()
        .find(|c| c["id"] == "trust-domain-is-literal")
        .unwrap();
    let expected = json!([[[{ "principals": [{ "exact": "td1/ns/a/sa/b" }, { "exact": "old-td/ns/a/sa/b" }] }]]]);
    assert_eq!(
        kubernetes::read(&resource(case), &settings).unwrap().policy.unwrap().rules,
        rules(&expected)
    );
    let exact = Settings {
        trust_domain: settings.trust_domain.clone(),
        trust_domain_aliases: settings.trust_domain_aliases.clone(),
        ..Settings::istio_exact()
    };
    assert_eq!(
        kubernetes::read(&resource(case), &exact).unwrap().policy.unwrap().rules,
        rules(&case["rules"])
    );
}

#[test]
fn attach_authorization_policies() {
    for case in list(&vectors("attach-cases.yaml")["authorization_policy"]) {
        let Some(listed) = case["keys"].as_array() else { continue };
        let labels = serde_json::from_value(case["pod_labels"].clone()).unwrap();
        let mut keys = Vec::new();
        for policy in list(&case["policies"]) {
            let key = policy["key"].as_str().or(policy.as_str()).unwrap();
            let (namespace, name) = key.split_once('/').unwrap();
            let selector = policy.get("labels").map(|labels| json!({ "matchLabels": labels }));
            let written = json!({ "namespace": namespace, "spec": { "selector": selector } });
            let mut resource = resource(&written);
            resource.metadata.name = name.into();
            for settings in [Settings::default(), Settings::istio_exact()] {
                let reading = kubernetes::read(&resource, &settings).unwrap();
                if reading.selector.is_some_and(|s| s.selects(&labels)) {
                    keys.push(reading.policy.unwrap().key.as_str().to_owned());
                }
            }
        }
        keys.sort();
        keys.dedup();
        assert_eq!(Value::from(keys), Value::from(listed.clone()), "{case}");
    }
}

#[test]
fn upstream_pairs() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/authz");
    let Ok(directory) = std::fs::read_dir(&shared) else {
        ambient_testkit::skipped(format_args!("the reference pairs: they are not at {}", shared.display()));
        return;
    };
    let mut pairs = 0;
    for entry in directory {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix("-in.yaml")) else {
            continue;
        };
        let expected = std::fs::read_to_string(shared.join(format!("{name}.yaml"))).unwrap();
        let expected = (!expected.trim().is_empty()).then(|| wire_policy(&serde_saphyr::from_str(&expected).unwrap()));
        let written = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = written.split("\n---\n").map(|doc| serde_saphyr::from_str(doc).unwrap()).collect();
        if documents[0]["kind"] == "AuthorizationPolicy" {
            let resource: AuthorizationPolicy = serde_json::from_value(documents[0].clone()).unwrap();
            for settings in [Settings::default(), Settings::istio_exact()] {
                assert_eq!(kubernetes::read(&resource, &settings).unwrap().policy, expected, "{name}");
            }
        } else {
            same_strictness(name, documents, expected);
        }
        pairs += 1;
    }
    assert!(pairs >= 15, "{pairs} pairs");
}

/// By meaning: the same ports refuse the same peers.
fn same_strictness(name: &str, documents: Vec<Value>, expected: Option<Policy>) {
    let settings = Settings::default();
    let objects = documents.into_iter().map(|document| {
        let resource: PeerAuthentication = serde_json::from_value(document).unwrap();
        peer_authentication::read(&resource, &settings).unwrap().object
    });
    let set = peer_authentication::Set::new(&settings, objects);
    let published = peer_authentication::policies(&set);
    let converted = published.iter().find(|p| p.key.as_str().contains("/converted_"));
    let (Some(converted), Some(expected)) = (converted, &expected) else {
        assert_eq!(converted.is_some(), expected.is_some(), "{name}");
        return;
    };
    assert_eq!((converted.scope, converted.action), (expected.scope, expected.action), "{name}");
    let peer: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
    for port in [1, 8080, 9090, 7070, 65535] {
        for peer in [Peer::plaintext(), peer.clone().into()] {
            let conn = Conn {
                peer: &peer,
                source: "10.0.0.1".parse().unwrap(),
                destination: ([10, 0, 0, 2], port).into(),
            };
            let refused = |policy: &Policy| policy.matching_rule(&conn).is_some();
            assert_eq!(refused(converted), refused(expected), "{name}: {peer:?} on {port}");
        }
    }
}
