use serde_json::{Value, json};

use super::*;
use crate::kubernetes::peer_authentication;

fn resource(spec: &Value) -> AuthorizationPolicy {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": spec,
    }))
    .unwrap()
}

/// What is told of it, as where and the beginning of what.
fn told(spec: &Value, settings: &Settings) -> Vec<(String, String)> {
    let found = traps(&resource(spec), settings);
    found.into_iter().map(|w| (w.path, w.text)).collect()
}

fn from(action: &str, source: &Value) -> Value {
    json!({ "action": action, "rules": [{ "from": [{ "source": source }] }] })
}

/// Every one of these is told of at the path, in these words; and nothing else of it.
#[track_caller]
fn tells(settings: &Settings, spec: &Value, path: &str, words: &str) {
    let told = told(spec, settings);
    let [(at, text)] = &told[..] else { panic!("{spec}: {told:?}") };
    assert_eq!(at, path, "{spec}: {text}");
    assert!(text.contains(words), "{spec}: {text}");
}

#[track_caller]
fn is_silent(settings: &Settings, spec: &Value) {
    assert_eq!(told(spec, settings), [], "{spec}");
}

#[test]
fn plaintext_passes_what_only_says_who_is_not_meant() {
    let safe = Settings::default();
    let at = |field: &str| format!("spec.rules[0].from[0].source.{field}");
    for (field, value, remedy) in [
        ("notNamespaces", "bad", "namespaces: [\"*\"]"),
        ("notPrincipals", "td/ns/bad/sa/x", "principals: [\"*\"]"),
        ("notServiceAccounts", "bad/x", "source.principal"),
        ("notTrustDomains", "td", "trustDomains: [\"*\"]"),
    ] {
        let spec = |action| from(action, &json!({ field: [value] }));
        tells(&safe, &spec("ALLOW"), &at(field), "they are admitted as well");
        tells(&safe, &spec("ALLOW"), &at(field), remedy);
        tells(&safe, &spec("DENY"), &at(field), "they are denied as well");
    }
    let condition = json!({ "rules": [{ "when": [{ "key": "source.namespace", "notValues": ["bad"] }] }] });
    tells(&safe, &condition, "spec.rules[0].when[0].notValues", "values: [\"*\"] beside it");
    // Addresses beside it do not prove who speaks.
    let beside = from("ALLOW", &json!({ "notNamespaces": ["bad"], "ipBlocks": ["10.0.0.0/8"] }));
    tells(&safe, &beside, &at("notNamespaces"), "they are admitted as well");
    // One of two sources is enough, and it is the one that is told.
    let second = json!({ "rules": [{ "from": [
        { "source": { "principals": ["td/ns/a/sa/b"], "notNamespaces": ["bad"] } },
        { "source": { "notNamespaces": ["bad"] } },
    ] }] });
    tells(
        &safe,
        &second,
        "spec.rules[0].from[1].source.notNamespaces",
        "they are admitted as well",
    );
}

#[test]
fn who_must_have_an_identity_is_not_in_plaintext() {
    let safe = Settings::default();
    let not_bad = json!({ "notNamespaces": ["bad"] });
    for beside in [
        json!({ "principals": ["*"] }),
        json!({ "namespaces": ["a"] }),
        json!({ "trustDomains": ["td"] }),
    ] {
        let mut source = beside;
        source["notNamespaces"] = json!(["bad"]);
        is_silent(&safe, &from("ALLOW", &source));
        is_silent(&safe, &from("DENY", &source));
    }
    let when = json!([{ "key": "source.principal", "values": ["*"] }]);
    is_silent(&safe, &json!({ "rules": [{ "from": [{ "source": not_bad }], "when": when }] }));
    let from_other = json!([{ "source": { "principals": ["td/ns/a/sa/b"] } }]);
    let when = json!([{ "key": "source.namespace", "notValues": ["bad"] }]);
    is_silent(&safe, &json!({ "rules": [{ "from": from_other, "when": when }] }));
}

#[test]
fn to_refuse_plaintext_is_no_trap() {
    let safe = Settings::default();
    is_silent(&safe, &from("DENY", &json!({ "notPrincipals": ["*"] })));
    let at = "spec.rules[0].from[0].source.notPrincipals";
    tells(&safe, &from("ALLOW", &json!({ "notPrincipals": ["*"] })), at, "plaintext alone");
}

#[test]
fn everybody_else_is_admitted_by_what_excludes_addresses_alone() {
    let safe = Settings::default();
    let at = "spec.rules[0].from[0].source.notIpBlocks";
    let outside = json!({ "notIpBlocks": ["10.0.0.0/8"] });
    tells(&safe, &from("ALLOW", &outside), at, "also in plaintext");
    // To deny all that come from elsewhere is the usual way to say it.
    is_silent(&safe, &from("DENY", &outside));
    let within = json!({ "ipBlocks": ["10.0.0.0/8"], "notIpBlocks": ["10.1.0.0/16"] });
    is_silent(&safe, &from("ALLOW", &within));
}

#[test]
fn all_of_one_ip_family_is_not_everybody() {
    let safe = Settings::default();
    let at = |field: &str, i| format!("spec.rules[0].from[0].source.{field}[{i}]");
    let v4 = json!(["10.0.0.0/8", "0.0.0.0/0"]);
    tells(
        &safe,
        &from("ALLOW", &json!({ "ipBlocks": v4 })),
        &at("ipBlocks", 1),
        "over IPv6 it admits nobody",
    );
    tells(
        &safe,
        &from("DENY", &json!({ "ipBlocks": v4 })),
        &at("ipBlocks", 1),
        "over IPv6 it denies nobody",
    );
    let excluded = json!({ "notIpBlocks": ["::/0"] });
    tells(
        &safe,
        &from("DENY", &excluded),
        &at("notIpBlocks", 0),
        "over IPv4 it denies everybody",
    );
    let excluded = json!({ "namespaces": ["a"], "notIpBlocks": ["0.0.0.0/0"] });
    tells(
        &safe,
        &from("ALLOW", &excluded),
        &at("notIpBlocks", 0),
        "over IPv6 it admits everybody",
    );
    is_silent(&safe, &from("ALLOW", &json!({ "ipBlocks": ["0.0.0.0/0", "::/0"] })));
    // Whoever writes blocks of both has thought of both.
    is_silent(&safe, &from("ALLOW", &json!({ "ipBlocks": ["0.0.0.0/0", "2001:db8::/32"] })));
    let condition = json!({ "rules": [{ "when": [{ "key": "destination.ip", "values": ["0.0.0.0/0"] }] }] });
    tells(&safe, &condition, "spec.rules[0].when[0].values[0]", "over IPv6");
}

#[test]
fn a_wildcard_knows_no_steps() {
    let safe = Settings::default();
    let at = |field: &str| format!("spec.rules[0].from[0].source.{field}[0]");
    let principal = |action, value: &str| from(action, &json!({ "principals": [value] }));
    tells(
        &safe,
        &principal("ALLOW", "td/ns/prod*"),
        &at("principals"),
        "td/ns/prod/* is for prod alone",
    );
    tells(
        &safe,
        &principal("ALLOW", "*admin"),
        &at("principals"),
        "*/admin is for admin alone",
    );
    let excepted = from("DENY", &json!({ "principals": ["*"], "notPrincipals": ["td/ns/prod*"] }));
    tells(&safe, &excepted, &at("notPrincipals"), "also a longer one");
    // To deny more than is meant lets nobody through.
    is_silent(&safe, &principal("DENY", "td/ns/prod*"));
    for whole in [
        "td/ns/prod/*",
        "*/sa/admin",
        "td/ns/prod/sa/web-*",
        "td/ns/prod/sa/web*",
        "*",
        "td/ns/team-*",
    ] {
        is_silent(&safe, &principal("ALLOW", whole));
    }
}

#[test]
fn an_allow_policy_without_rules_in_force_admits_nobody() {
    let safe = Settings::default();
    let http = json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] });
    tells(&safe, &http, "spec.rules", "none of its rules is in force");
    tells(&safe, &json!({ "rules": [] }), "spec.rules", "it has no rules");
    // That is how it is written on purpose.
    is_silent(&safe, &json!({}));
    let denying = json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] });
    is_silent(&safe, &denying);
}

#[test]
fn what_hits_nothing_where_istio_is_followed_exactly() {
    let exact = Settings {
        trust_domain: "prod.example".parse().unwrap(),
        ..Settings::istio_exact()
    };
    let safe = Settings {
        istio_exact: false,
        cluster_local: true,
        ..exact.clone()
    };
    let at = |field: &str| format!("spec.rules[0].from[0].source.{field}");
    let scheme = from("DENY", &json!({ "principals": ["spiffe://prod.example/ns/a/sa/b"] }));
    tells(&exact, &scheme, &at("principals[0]"), "it hits nothing");
    let domain = from("DENY", &json!({ "principals": ["cluster.local/ns/a/sa/b"] }));
    tells(&exact, &domain, &at("principals[0]"), "it hits no peer of the mesh");
    let ports = json!({ "rules": [{ "from": [{ "source": { "namespaces": ["a"] } }], "to": [{ "operation": { "ports": ["http"] } }] }] });
    tells(
        &exact,
        &ports,
        "spec.rules[0].to[0].operation.ports",
        "none of its values can be read",
    );
    let blocks = from("ALLOW", &json!({ "namespaces": ["a"], "ipBlocks": ["10.0.0.0/33"] }));
    tells(&exact, &blocks, &at("ipBlocks"), "none of its values can be read");
    let some = from("ALLOW", &json!({ "namespaces": ["a"], "ipBlocks": ["10.0.0.0/33", "10.0.0.0/8"] }));
    is_silent(&exact, &some);
    for fine in [scheme, domain] {
        is_silent(&safe, &fine);
    }
    // Trust domains are not asked for there, and what is dropped denies nobody.
    is_silent(&exact, &from("ALLOW", &json!({ "notTrustDomains": ["td"], "namespaces": ["a"] })));
    let dropped = json!([{ "key": "source.serviceAccount", "values": ["x"] }]);
    is_silent(
        &exact,
        &json!({ "action": "DENY", "rules": [{ "from": [{ "source": { "notNamespaces": ["a"] } }], "when": dropped }] }),
    );
}

#[test]
fn what_is_not_in_force_here_has_no_traps() {
    let safe = Settings::default();
    let not_bad = json!([{ "from": [{ "source": { "notNamespaces": ["bad"] } }] }]);
    is_silent(&safe, &json!({ "action": "AUDIT", "rules": not_bad }));
    is_silent(
        &safe,
        &json!({ "targetRefs": [{ "kind": "Service", "name": "s" }], "rules": not_bad }),
    );
    let mut unread = json!({ "rules": not_bad });
    unread["rules"][0]["to"] = json!([{ "operation": { "ports": ["http"] } }]);
    is_silent(&safe, &unread);
}

#[test]
fn a_mode_that_is_none_at_l4_and_a_selector_without_labels_are_told() {
    let told = |namespace: &str, spec: &Value, settings: &Settings| -> Vec<String> {
        let resource: PeerAuthentication = serde_json::from_value(json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "p", "namespace": namespace },
            "spec": spec,
        }))
        .unwrap();
        peer_authentication::traps(&resource, settings)
            .iter()
            .map(Warning::to_string)
            .collect()
    };
    let (safe, exact) = (Settings::default(), Settings::istio_exact());
    let spec = json!({
        "selector": { "matchLabels": { "app": "a" } },
        "mtls": { "mode": "DISABLE" },
        "portLevelMtls": { "80": { "mode": "STRICT" }, "90": { "mode": "DISABLE" } },
    });
    let found = told("shop", &spec, &safe);
    let [all, port] = &found[..] else { panic!("{found:?}") };
    assert!(all.starts_with("spec.mtls.mode: at L4 it is the same as PERMISSIVE"), "{all}");
    assert!(port.starts_with("spec.portLevelMtls[90].mode: "), "{port}");
    let spec = json!({ "selector": {}, "mtls": { "mode": "STRICT" } });
    for (namespace, settings, words) in [
        ("shop", &safe, "for all of its namespace"),
        ("istio-system", &safe, "for the whole mesh"),
        ("istio-system", &exact, "of the root namespace alone"),
    ] {
        let found = told(namespace, &spec, settings);
        assert!(matches!(&found[..], [one] if one.contains(words)), "{namespace}: {found:?}");
    }
    assert_eq!(told("shop", &json!({ "mtls": { "mode": "STRICT" } }), &safe), [""; 0]);
}
