//! Reading of resources that nobody meant to write: it ends in a policy or in an error that names its place.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use ambient_authz::{
    Conn, Peer,
    kubernetes::{self, AuthorizationPolicy, Envelope, PeerAuthentication, ReadError, Settings, peer_authentication},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

const SOURCE: [&str; 15] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "else",
];
const OPERATION: [&str; 9] = [
    "hosts",
    "notHosts",
    "ports",
    "notPorts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "else",
];
const KEYS: [&str; 11] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "remote.ip",
    "request.headers[a]",
    "connection.sni",
    "",
];

fn value() -> impl Strategy<Value = String> {
    let likely = select(vec![
        "80",
        "10.0.0.0/8",
        "::/0",
        "td/ns/a/sa/b",
        "spiffe://td/*",
        "*",
        "**",
        "a/b",
        "cluster.local/ns/a/sa/b",
    ]);
    prop_oneof![3 => likely.prop_map(str::to_owned), 1 => "[0-9a-f*/.:%+é -]{0,9}"]
}

fn fields(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    vec((select(names), vec(value(), 0..3)), 0..3)
        .prop_map(|fields| fields.into_iter().map(|(name, values)| (name.to_owned(), json!(values))).collect())
}

fn resource() -> impl Strategy<Value = Value> {
    let source = option::weighted(0.95, fields(&SOURCE)).prop_map(|s| json!({ "source": s }));
    let operation = option::weighted(0.95, fields(&OPERATION)).prop_map(|o| json!({ "operation": o }));
    let condition = (select(&KEYS[..]), fields(&["values", "notValues"])).prop_map(|(key, mut condition)| {
        condition["key"] = json!(key);
        condition
    });
    let list = |item: BoxedStrategy<Value>| option::of(vec(item, 0..3));
    let rule = (list(source.boxed()), list(operation.boxed()), list(condition.boxed()));
    let rule = rule.prop_map(|(from, to, when)| json!({ "from": from, "to": to, "when": when }));
    let selector = select(vec![
        Value::Null,
        json!({}),
        json!({ "matchLabels": { "app": "a" } }),
        json!({ "matchExpressions": [] }),
    ]);
    let action = select(vec![Value::Null, json!("ALLOW"), json!("DENY"), json!("AUDIT"), json!("NONE")]);
    (rule_list(rule.boxed()), selector, action, select(vec!["shop", "istio-system"])).prop_map(|(rules, selector, action, namespace)| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": namespace, "annotations": null },
            "spec": { "selector": selector, "action": action, "rules": rules },
        })
    })
}

fn rule_list(rule: BoxedStrategy<Value>) -> impl Strategy<Value = Option<Vec<Value>>> {
    option::of(vec(rule, 0..3))
}

fn settings() -> impl Strategy<Value = Settings> {
    (any::<bool>(), any::<bool>()).prop_map(|(exact, renamed)| {
        let mut settings = if exact { Settings::istio_exact() } else { Settings::default() };
        if renamed {
            settings.trust_domain = "td".parse().unwrap();
            settings.trust_domain_aliases = vec!["old.td".parse().unwrap()];
        }
        settings
    })
}

/// The value at a path such as `spec.rules[1].to`, or whatever of it there is.
fn deepest<'a>(value: &'a Value, path: &str) -> (&'a Value, usize) {
    let steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
    let mut found = (value, 0);
    for step in steps {
        let next = match step.parse::<usize>() {
            Ok(index) => found.0.get(index),
            Err(_) => found.0.get(step),
        };
        let Some(next) = next else { break };
        found = (next, found.1 + 1);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_or_a_place(written in resource(), settings in settings()) {
        let resource: AuthorizationPolicy = serde_json::from_value(written.clone()).unwrap();
        let again = kubernetes::read(&resource, &settings);
        match kubernetes::read(&resource, &settings) {
            Ok(reading) => {
                let conn = Conn {
                    peer: &Peer::plaintext(),
                    source: "fd00::1".parse().unwrap(),
                    destination: "10.0.0.1:80".parse().unwrap(),
                };
                let written = resource.spec.as_ref().unwrap().rules.as_deref().unwrap_or_default();
                if let Some(policy) = &reading.policy {
                    prop_assert!(policy.rules.len() <= written.len());
                    prop_assert!(policy.matching_rule(&conn).is_none_or(|rule| rule < policy.rules.len()));
                }
                prop_assert_eq!(Ok(reading), again);
            }
            Err(error) => {
                // It names something that stands there, or the place where something is missing.
                let steps = error.path.split(['.', '[']).count();
                prop_assert!(deepest(&written, &error.path).1 + 1 >= steps, "{}", error);
                prop_assert_eq!(Err(error), again);
            }
        }
    }

    /// Bytes changed anywhere in a resource end in a reading or an error, never in a panic.
    #[test]
    fn damaged_text(at in 0..600usize, cut in 0..4usize, put in "[\\PC\n]{0,3}", settings in settings()) {
        let text = concat!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n",
            "  selector:\n    matchLabels:\n      app: a\n  action: DENY\n  rules:\n  - from:\n    - source:\n",
            "        principals: [\"cluster.local/ns/a/sa/b\", \"*\"]\n        ipBlocks: [10.0.0.0/8]\n",
            "    to:\n    - operation:\n        ports: [\"80\"]\n    when:\n    - key: source.ip\n      values: [\"::/0\"]\n",
        );
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        let damaged = format!("{}{put}{}", &text[..at], &text[end..]);
        if let Ok(resource) = serde_saphyr::from_str::<AuthorizationPolicy>(&damaged) {
            let _ = kubernetes::read(&resource, &settings);
        } else if let Ok(envelope) = serde_saphyr::from_str::<Envelope>(&damaged) {
            let error = ReadError::of_shape(&envelope, &"it is none", &settings);
            prop_assert!(error.selector.is_none());
        }
    }

    #[test]
    fn peer_authentications(
        mode in select(vec!["STRICT", "PERMISSIVE", "UNSET", "", "ON"]),
        ports in vec(("[0-9]{1,6}|http", select(vec!["STRICT", "DISABLE", "x"])), 0..3),
        created in option::of("[0-9TZ:.+-]{0,25}"),
        selects in any::<bool>(),
    ) {
        let ports: Map<String, Value> = ports.into_iter().map(|(port, mode)| (port, json!({ "mode": mode }))).collect();
        let written = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "p", "namespace": "shop", "creationTimestamp": created },
            "spec": {
                "selector": selects.then(|| json!({ "matchLabels": { "app": "a" } })),
                "mtls": { "mode": mode },
                "portLevelMtls": ports,
            },
        });
        let resource: PeerAuthentication = serde_json::from_value(written).unwrap();
        if let Ok(reading) = peer_authentication::read(&resource, &Settings::default()) {
            prop_assert!(mode != "ON");
            let set = peer_authentication::Set::new(&Settings::default(), [reading.object]);
            let labels = [("app".to_owned(), "a".to_owned())].into();
            let keys = peer_authentication::keys(&set, "shop", &labels);
            let published = peer_authentication::policies(&set);
            prop_assert!(keys.iter().all(|key| published.iter().any(|p| p.key == *key)));
        }
    }
}
