use serde_json::{Value, json};

use super::*;
use crate::{Conn, Peer, kubernetes::DRY_RUN};

fn resource(spec: &Value) -> AuthorizationPolicy {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": spec,
    }))
    .unwrap()
}

fn safely(spec: &Value) -> Result<Reading, ReadError> {
    read(&resource(spec), &Settings::default())
}

fn source(source: &Value) -> Value {
    json!({ "rules": [{ "from": [{ "source": source }] }] })
}

#[test]
fn a_value_that_cannot_be_read_refuses_the_policy_and_is_named() {
    let from = "spec.rules[0].from[0].source";
    let bad = [
        (
            source(&json!({ "ipBlocks": ["10.0.0.0/8", "10.0.0.0/33"] })),
            format!("{from}.ipBlocks[1]"),
        ),
        (
            source(&json!({ "notIpBlocks": ["fe80::1%eth0"] })),
            format!("{from}.notIpBlocks[0]"),
        ),
        (source(&json!({ "ipBlocks": ["10.0.0.0/+8"] })), format!("{from}.ipBlocks[0]")),
        (source(&json!({ "ipBlocks": [""] })), format!("{from}.ipBlocks[0]")),
        (source(&json!({ "principals": [""] })), format!("{from}.principals[0]")),
        (source(&json!({ "principals": ["spiffe://"] })), format!("{from}.principals[0]")),
        (source(&json!({ "namespaces": ["a", ""] })), format!("{from}.namespaces[1]")),
        (source(&json!({ "notPrincipals": ["*a*"] })), format!("{from}.notPrincipals[0]")),
        (
            source(&json!({ "serviceAccounts": ["shop/*"] })),
            format!("{from}.serviceAccounts[0]"),
        ),
        (
            source(&json!({ "serviceAccounts": ["a/b/c"] })),
            format!("{from}.serviceAccounts[0]"),
        ),
        (
            source(&json!({ "notServiceAccounts": ["/a"] })),
            format!("{from}.notServiceAccounts[0]"),
        ),
        (source(&json!({})), from.into()),
        (source(&json!({ "principals": [] })), from.into()),
        (source(&json!(null)), from.into()),
        (json!({ "rules": [{ "from": [] }] }), "spec.rules[0].from".into()),
        (json!({ "rules": [{}, { "to": [] }] }), "spec.rules[1].to".into()),
        (json!({ "rules": [{ "to": [{}] }] }), "spec.rules[0].to[0].operation".into()),
        (
            json!({ "rules": [{ "to": [{ "operation": { "ports": ["+80"] } }] }] }),
            "spec.rules[0].to[0].operation.ports[0]".into(),
        ),
        (
            json!({ "rules": [{ "when": [{ "key": "destination.port", "values": ["65536"] }] }] }),
            "spec.rules[0].when[0].values[0]".into(),
        ),
        (
            json!({ "rules": [{ "when": [{ "key": "source.ip" }] }] }),
            "spec.rules[0].when[0]".into(),
        ),
        (
            json!({ "rules": [{ "when": [{ "values": ["a"] }] }] }),
            "spec.rules[0].when[0].key".into(),
        ),
        (json!({ "action": "REFUSE" }), "spec.action".into()),
        (json!({ "action": "DENY", "rule": [{}] }), "spec.rule".into()),
        (
            json!({ "selector": { "matchExpressions": [] } }),
            "spec.selector.matchExpressions".into(),
        ),
        // Also in a rule that is for HTTP as well.
        (
            source(&json!({ "requestPrincipals": ["*"], "ipBlocks": ["nowhere"] })),
            format!("{from}.ipBlocks[0]"),
        ),
    ];
    for (spec, path) in bad {
        let error = safely(&spec).expect_err(&spec.to_string());
        assert_eq!(*error.path, *path, "{spec}");
        assert_eq!((error.key.as_str(), error.scope), ("shop/p", Scope::Namespace));
        assert!(error.unreadable().error.starts_with(&path), "{error}");
    }
}

#[test]
fn an_error_tells_whom_it_concerns() {
    let mut spec = source(&json!({ "ipBlocks": ["x"] }));
    spec["selector"] = json!({ "matchLabels": { "app": "a" } });
    let mut resource = resource(&spec);
    let error = read(&resource, &Settings::default()).unwrap_err();
    assert_eq!(error.scope, Scope::Selector);
    assert!(error.selector.unwrap().selects(&[("app".into(), "a".into())].into()));

    resource.metadata.namespace = Some("istio-system".into());
    resource.spec.as_mut().unwrap().selector = None;
    let error = read(&resource, &Settings::default()).unwrap_err();
    assert_eq!((error.scope, error.selector), (Scope::Global, None));
}

#[test]
fn heads_that_are_not_known() {
    let mut other = resource(&json!({}));
    other.api_version = "security.istio.io/v2".into();
    assert_eq!(&*read(&other, &Settings::default()).unwrap_err().path, "apiVersion");
    other.api_version = "security.istio.io/v1beta1".into();
    assert!(read(&other, &Settings::default()).is_ok());
    other.kind = "PeerAuthentication".into();
    assert_eq!(&*read(&other, &Settings::default()).unwrap_err().path, "kind");
    other.metadata.name.clear();
    other.kind = "AuthorizationPolicy".into();
    assert_eq!(&*read(&other, &Settings::default()).unwrap_err().path, "metadata.name");
}

#[test]
fn http_narrows_what_is_allowed_and_widens_what_is_denied() {
    let rule = json!([{
        "from": [{ "source": { "namespaces": ["a"] } }],
        "to": [{ "operation": { "methods": ["GET"], "ports": ["80"] } }, { "operation": { "paths": ["/x"] } }],
        "when": [{ "key": "request.headers[x]", "values": ["1"] }],
    }]);
    let allow = safely(&json!({ "rules": rule })).unwrap();
    assert!(allow.policy.unwrap().rules.is_empty());
    let paths: Vec<_> = allow.warnings.iter().map(|w| w.path.as_str()).collect();
    let to = "spec.rules[0].to";
    assert_eq!(
        paths,
        [
            format!("{to}[0].operation.methods"),
            format!("{to}[1].operation.paths"),
            "spec.rules[0].when[0]".into()
        ]
    );
    assert!(allow.warnings.iter().all(|w| w.text.contains("admits nobody")));

    let deny = safely(&json!({ "action": "DENY", "rules": rule })).unwrap();
    let policy = deny.policy.unwrap();
    // The second operation may be meant by any connection, so ports no longer matter; the namespace still does.
    assert_eq!(policy.rules[0].clauses.len(), 1);
    assert_eq!(policy.rules[0].clauses[0].matches[0].namespaces, [StringMatch::Exact("a".into())]);
    assert!(deny.warnings.iter().all(|w| w.text.contains("without asking for it")));
}

#[test]
fn unknown_fields_of_a_rule_never_open_it() {
    // `form` for `from`: read without it, the rule would admit everyone.
    let typo = json!([{ "form": [{ "source": { "namespaces": ["a"] } }] }]);
    let allow = safely(&json!({ "rules": typo })).unwrap();
    assert!(allow.policy.unwrap().rules.is_empty());
    assert_eq!(allow.warnings[0].path, "spec.rules[0].form");
    let deny = safely(&json!({ "action": "DENY", "rules": typo })).unwrap();
    assert_eq!(deny.policy.unwrap().rules, [Rule::default()]);

    let typo = source(&json!({ "ipBlock": ["10.0.0.0/8"], "namespaces": ["a"] }));
    let allow = safely(&typo).unwrap();
    assert!(allow.policy.unwrap().rules.is_empty());
    assert_eq!(allow.warnings[0].path, "spec.rules[0].from[0].source.ipBlock");
    let exact = read(&resource(&typo), &Settings::istio_exact()).unwrap();
    assert_eq!(exact.policy.unwrap().rules.len(), 1);
}

#[test]
fn what_kubectl_prints_is_read_and_what_is_unknown_is_told() {
    let printed = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}\n" },
            "creationTimestamp": "2026-01-31T12:00:00Z", "generation": 2, "name": "p", "namespace": "shop",
            "resourceVersion": "1234", "uid": "2fb4a4b5-5a51-4a8e-8f3a-0a53a6b2a9f1", "managedFields": [{ "manager": "kubectl" }],
            "finalizers": [], "ownerReferences": [], "selfLink": "", "deletionTimestamp": null, "namepsace": "shop",
        },
        "spec": { "action": "ALLOW", "rules": [{}], "priority": 3 },
        "status": { "conditions": [{ "type": "ZtunnelAccepted", "status": "True" }] },
        "extra": { "a": [1, null, 2.5] },
    });
    let reading = read(&serde_json::from_value(printed.clone()).unwrap(), &Settings::default()).unwrap();
    let told: Vec<_> = reading.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "extra: no such field is known; it has no effect",
            "metadata.namepsace: no such field is known; it has no effect",
            "spec.priority: no such field is known; it cannot be checked at L4: the rule admits nobody (narrower than written)"
        ]
    );
    assert!(reading.policy.unwrap().rules.is_empty());
    let yaml: AuthorizationPolicy = serde_saphyr::from_str(&printed.to_string()).unwrap();
    assert_eq!(yaml.unknown.names().collect::<Vec<_>>(), ["extra"]);
}

/// Go reads the zone of a single IPv6 address, and istiod loses it; of anything else it is an error.
#[test]
fn zones_are_lost_as_istiod_loses_them() {
    for (written, kept) in [
        ("fe80::1%eth0", true),
        ("fe80::1%", false),
        ("fe80::1%eth0/64", false),
        ("10.0.0.1%eth0", false),
        ("%eth0", false),
    ] {
        let spec = source(&json!({ "namespaces": ["a"], "ipBlocks": [written] }));
        assert_eq!(
            &*safely(&spec).unwrap_err().path,
            "spec.rules[0].from[0].source.ipBlocks[0]",
            "{written}"
        );
        let exact = read(&resource(&spec), &Settings::istio_exact()).unwrap().policy.unwrap();
        let blocks = &exact.rules[0].clauses[0].matches[0].source_ips;
        let expected: Vec<IpNet> = if kept { vec!["fe80::1/128".parse().unwrap()] } else { vec![] };
        assert_eq!(*blocks, expected, "{written}");
    }
}

/// `selecter` for `selector`: read without it, what is meant for one workload would hold for all of the namespace.
#[test]
fn unknown_fields_of_a_spec_never_open_it() {
    let typo = json!({ "selecter": { "matchLabels": { "app": "a" } }, "rules": [{}] });
    let allow = safely(&typo).unwrap();
    assert_eq!(allow.warnings[0].path, "spec.selecter");
    assert!(allow.policy.unwrap().rules.is_empty());
    assert_eq!(
        read(&resource(&typo), &Settings::istio_exact())
            .unwrap()
            .policy
            .unwrap()
            .rules
            .len(),
        1
    );
    let mut deny = typo;
    deny["action"] = json!("DENY");
    assert_eq!(safely(&deny).unwrap().policy.unwrap().rules, [Rule::default()]);
}

#[test]
fn selectors_that_select_nothing() {
    for (name, value) in [("app", "*"), ("", "a"), ("ap*", "b")] {
        let spec = json!({ "selector": { "matchLabels": { name: value } }, "action": "DENY", "rules": [{}] });
        let error = safely(&spec).unwrap_err();
        assert_eq!(*error.path, format!("spec.selector.matchLabels[{name}]"));
        assert_eq!(error.scope, Scope::Namespace, "whatever it was meant to select");
        assert!(read(&resource(&spec), &Settings::istio_exact()).is_ok());
    }
    let unknown = json!({ "selector": { "matchExpressions": [] } });
    let exact = read(&resource(&unknown), &Settings::istio_exact()).unwrap();
    assert_eq!(exact.warnings[0].path, "spec.selector.matchExpressions");
}

/// Policies that PeerAuthentications become have names that no resource has.
#[test]
fn names_that_are_none() {
    for name in [
        "a/b",
        "istio_converted_static_strict",
        "converted_peer_authentication_x",
        "a b",
        "a\n",
        "\u{1b}[2J",
    ] {
        let mut resource = resource(&json!({}));
        resource.metadata.name = name.into();
        for settings in [Settings::default(), Settings::istio_exact()] {
            assert_eq!(&*read(&resource, &settings).unwrap_err().path, "metadata.name");
        }
        resource.metadata.name = "p".into();
        for namespace in ["a/b", " ", "a\t"] {
            resource.metadata.namespace = Some(namespace.into());
            assert_eq!(&*read(&resource, &Settings::default()).unwrap_err().path, "metadata.namespace");
        }
        // As `kubectl` takes it.
        resource.metadata.namespace = Some(String::new());
        let policy = read(&resource, &Settings::default()).unwrap().policy.unwrap();
        assert_eq!((policy.key.as_str(), &*policy.namespace), ("default/p", "default"));
    }
}

#[test]
fn identities_that_nobody_has_are_told_or_refused() {
    let reading = safely(&source(
        &json!({ "principals": ["shop/cart", "cluster.local/ns/shop/sa/cart", "a*"] }),
    ))
    .unwrap();
    let told: Vec<_> = reading.warnings.iter().map(|w| w.path.as_str()).collect();
    assert_eq!(told, ["spec.rules[0].from[0].source.principals[0]"]);
    for domain in ["spiffe://td", "td/ns/*", "TD", "*/td"] {
        let error = safely(&source(&json!({ "trustDomains": [domain] }))).unwrap_err();
        assert_eq!(&*error.path, "spec.rules[0].from[0].source.trustDomains[0]", "{domain}");
        let condition = json!({ "rules": [{ "when": [{ "key": "source.trustDomain", "notValues": [domain] }] }] });
        assert_eq!(
            &*safely(&condition).unwrap_err().path,
            "spec.rules[0].when[0].notValues[0]",
            "{domain}"
        );
    }
}

#[test]
fn empty_lists_ask_for_nothing_and_say_so() {
    let reading = safely(&source(&json!({ "principals": [], "namespaces": ["a"] }))).unwrap();
    assert_eq!(reading.warnings[0].path, "spec.rules[0].from[0].source.principals");
    assert_eq!(reading.policy.unwrap().rules.len(), 1);
}

#[test]
fn no_spec_admits_nobody() {
    for text in [
        "{}",
        r#"{ "spec": null }"#,
        r#"{ "spec": {} }"#,
        r#"{ "spec": { "rules": null, "selector": null } }"#,
    ] {
        let mut resource: AuthorizationPolicy = serde_json::from_str(text).unwrap();
        resource.metadata.name = "p".into();
        resource.kind = "AuthorizationPolicy".into();
        resource.api_version = "security.istio.io/v1".into();
        let policy = read(&resource, &Settings::default()).unwrap().policy.unwrap();
        assert_eq!(
            (policy.key.as_str(), policy.action, policy.rules.len()),
            ("default/p", Action::Allow, 0),
            "{text}"
        );
    }
}

#[test]
fn not_for_l4() {
    for spec in [
        json!({ "targetRefs": [{ "kind": "Service", "name": "a" }], "rules": [{ "to": [{}] }] }),
        json!({ "targetRef": { "kind": "Gateway", "name": "a" } }),
        json!({ "action": "CUSTOM", "provider": { "name": "x" }, "rules": [{}] }),
        json!({ "action": "AUDIT", "rules": [{}] }),
    ] {
        let reading = safely(&spec).unwrap();
        assert_eq!((reading.policy, reading.warnings.len()), (None, 1), "{spec}");
    }
}

/// What makes a resource none for L4 is looked at before what is in it, in istiod's order: dry run, target, action.
#[test]
fn what_is_not_for_l4_is_not_read_further() {
    let target = json!([{ "kind": "Service", "name": "a" }]);
    let bad_rules = json!([{ "from": [{ "source": { "ipBlocks": ["x"] } }] }]);
    for spec in [
        json!({ "targetRefs": target, "action": "REFUSE" }),
        json!({ "targetRefs": target, "rules": bad_rules }),
        json!({ "action": "AUDIT", "rules": bad_rules }),
    ] {
        for settings in [Settings::default(), Settings::istio_exact()] {
            assert_eq!(read(&resource(&spec), &settings).unwrap().policy, None, "{spec}");
        }
    }
    let mut dry = resource(&json!({ "action": "REFUSE" }));
    dry.metadata.annotations = Some([(DRY_RUN.to_owned(), "true".to_owned())].into());
    assert!(read(&dry, &Settings::default()).is_err(), "in dry run it is read");
    let off = read(&dry, &Settings::istio_exact()).unwrap();
    assert_eq!((off.policy, off.warnings[0].path.as_str()), (None, DRY_RUN_PATH));
}

/// The annotation is read as Go's `ParseBool` reads it; what is neither true nor false enforces the policy, and is told.
#[test]
fn words_of_dry_run() {
    for (word, dry, told) in [
        ("1", true, false),
        ("t", true, false),
        ("T", true, false),
        ("TRUE", true, false),
        ("true", true, false),
        ("True", true, false),
        ("0", false, false),
        ("f", false, false),
        ("False", false, false),
        ("", false, true),
        ("yes", false, true),
        ("tRUE", false, true),
        (" true", false, true),
    ] {
        let mut resource = resource(&json!({ "rules": [{}] }));
        resource.metadata.annotations = Some([(DRY_RUN.to_owned(), word.to_owned())].into());
        let reading = read(&resource, &Settings::default()).unwrap();
        assert_eq!(
            (reading.policy.unwrap().dry_run, !reading.warnings.is_empty()),
            (dry, told),
            "{word:?}"
        );
    }
}

#[test]
fn ports_are_decimal_and_may_begin_with_zeros() {
    let of = |port: &str, settings: &Settings| {
        let spec = json!({ "rules": [{ "to": [{ "operation": { "ports": ["1", port] } }] }] });
        let reading = read(&resource(&spec), settings).map_err(|error| error.path.to_string())?;
        Ok(reading.policy.unwrap().rules[0].clauses[0].matches[0].destination_ports.clone())
    };
    for (port, number) in [("0", 0), ("0080", 80), ("65535", 65535)] {
        for settings in [Settings::default(), Settings::istio_exact()] {
            assert_eq!(of(port, &settings), Ok(vec![1, number]), "{port}");
        }
    }
    for port in ["", "http", "-1", "+80", "65536", "8 0", "0x50", "8_0", "80.0", "٨٠"] {
        let path = "spec.rules[0].to[0].operation.ports[1]".to_owned();
        assert_eq!(of(port, &Settings::default()), Err(path), "{port}");
        assert_eq!(
            of(port, &Settings::istio_exact()),
            Ok(vec![1]),
            "{port}: dropped, as istiod drops it"
        );
    }
}

#[test]
fn identities_under_every_name_of_the_mesh() {
    let settings = Settings {
        trust_domain: "mesh.example".parse().unwrap(),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        ..Settings::default()
    };
    let values = |spec: &Value, settings: &Settings| {
        let policy = read(&resource(spec), settings).unwrap().policy.unwrap();
        let found = &policy.rules[0].clauses[0].matches[0];
        found
            .principals
            .iter()
            .chain(&found.trust_domains)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let cases = [
        (
            json!({ "principals": ["cluster.local/ns/a/sa/b"] }),
            vec!["mesh.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
        ),
        (
            json!({ "principals": ["spiffe://old.example/ns/a/*"] }),
            vec!["mesh.example/ns/a/*", "old.example/ns/a/*"],
        ),
        (
            json!({ "principals": ["foreign/ns/a/sa/b", "*/ns/a/sa/b", "*"] }),
            vec!["foreign/ns/a/sa/b", "*/ns/a/sa/b", "*"],
        ),
        (
            json!({ "trustDomains": ["mesh.example", "foreign*"] }),
            vec!["mesh.example", "old.example", "foreign*"],
        ),
        (
            json!({ "trustDomains": ["old*"], "principals": ["cluster.local*", "f*"] }),
            vec![
                "cluster.local*",
                "mesh.example/*",
                "old.example/*",
                "f*",
                "old*",
                "mesh.example",
                "old.example",
            ],
        ),
        // The end of a trust domain is one of an own name here, so the others go with it.
        (
            json!({ "principals": ["*d.example/ns/a/sa/b"] }),
            vec!["*d.example/ns/a/sa/b", "mesh.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
        ),
    ];
    for (written, expected) in cases {
        assert_eq!(values(&source(&written), &settings), expected, "{written}");
    }
    let literal = Settings {
        cluster_local: false,
        ..settings
    };
    let written = source(&json!({ "principals": ["cluster.local/ns/a/sa/b"] }));
    assert_eq!(values(&written, &literal), ["cluster.local/ns/a/sa/b"]);
}

#[test]
fn mapped_blocks_mean_ipv4() {
    let spec = source(&json!({ "ipBlocks": ["::ffff:10.0.0.0/104"] }));
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "10.1.2.3".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let matches = |settings: &Settings| {
        read(&resource(&spec), settings)
            .unwrap()
            .policy
            .unwrap()
            .matching_rule(&conn)
            .is_some()
    };
    assert!(matches(&Settings::default()));
    assert!(!matches(&Settings::istio_exact()));
}

#[test]
fn a_star_that_hits_nothing_is_told_where_it_is_safe() {
    let reading = safely(&source(&json!({ "principals": ["*/ns/a/*"], "notNamespaces": ["b*"] }))).unwrap();
    assert_eq!(reading.warnings[0].path, "spec.rules[0].from[0].source.principals[0]");
    let mut deny = source(&json!({ "principals": ["*/ns/a/*"] }));
    deny["action"] = json!("DENY");
    assert_eq!(&*safely(&deny).unwrap_err().path, "spec.rules[0].from[0].source.principals[0]");
}

/// Istio's admission refuses it, so nothing says what it would mean there; here all must hold.
#[test]
fn accounts_beside_names_in_one_source_are_told() {
    let path = "spec.rules[0].from[0].source";
    let many: Vec<_> = (0..17).map(|i| format!("shop/a{i}")).collect();
    let cases = [
        (
            json!({ "serviceAccounts": ["shop/a"], "principals": ["cluster.local/*"] }),
            Some(("serviceAccounts", "principals")),
        ),
        (
            json!({ "serviceAccounts": ["shop/a"], "notNamespaces": ["b"] }),
            Some(("serviceAccounts", "notNamespaces")),
        ),
        (
            json!({ "notServiceAccounts": ["shop/a"], "namespaces": ["b"], "notPrincipals": ["*/ns/b/sa/x"] }),
            Some(("notServiceAccounts", "notPrincipals and namespaces")),
        ),
        (json!({ "serviceAccounts": many }), Some(("serviceAccounts", "more than 16"))),
        (json!({ "serviceAccounts": many[..16] }), None),
        (
            json!({ "serviceAccounts": ["shop/a"], "notServiceAccounts": ["shop/b"], "ipBlocks": ["10.0.0.0/8"] }),
            None,
        ),
        (json!({ "serviceAccounts": ["shop/a"], "trustDomains": ["cluster.local"] }), None),
        (json!({ "principals": ["cluster.local/*"], "namespaces": ["b"] }), None),
    ];
    for (written, told) in cases {
        for settings in [Settings::default(), Settings::istio_exact()] {
            let reading = read(&resource(&source(&written)), &settings).unwrap();
            let of_istio: Vec<_> = reading
                .warnings
                .iter()
                .filter(|warning| warning.text.contains("Istio refuses"))
                .collect();
            match (told, &of_istio[..]) {
                (None, []) => {}
                (Some((field, word)), [warning]) => {
                    assert_eq!(warning.path, format!("{path}.{field}"));
                    assert!(warning.text.contains(word), "{warning}");
                }
                _ => panic!("{written}: {of_istio:?}"),
            }
        }
    }
    // In sources beside each other it is no combination, and together they are read as all of them.
    let apart = json!({ "rules": [{ "from": [
        { "source": { "serviceAccounts": ["shop/a"] } },
        { "source": { "principals": ["cluster.local/ns/b/sa/x"] } },
    ] }] });
    assert_eq!(safely(&apart).unwrap().warnings, []);
    let both = source(&json!({ "serviceAccounts": ["shop/a"], "namespaces": ["b"] }));
    let policy = safely(&both).unwrap().policy.unwrap();
    let peer = Peer::from("spiffe://cluster.local/ns/shop/sa/a".parse::<ambient_core::Identity>().ok());
    let conn = Conn {
        peer: &peer,
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    assert_eq!(policy.matching_rule(&conn), None);
}

/// Of attributes that both readings know, the safe one never admits what Istio's refuses.
#[test]
fn the_safe_reading_is_never_wider() {
    use proptest::{collection::vec, prelude::*, sample::subsequence};

    fn fields(names: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Value> {
        let picked = subsequence(names.to_vec(), 1..=2).prop_flat_map(|fields| {
            let of_field = |(name, values): (&'static str, &'static [&'static str])| {
                subsequence(values.to_vec(), 1..=values.len().min(2)).prop_map(move |values| (name, values))
            };
            fields.into_iter().map(of_field).collect::<Vec<_>>()
        });
        picked.prop_map(|fields| fields.into_iter().map(|(name, values)| (name.to_owned(), json!(values))).collect())
    }
    let source = fields(&[
        ("principals", &["cluster.local/ns/a/sa/x", "*", "cluster.local/*", "*x", "*a*", ""]),
        ("notPrincipals", &["cluster.local/ns/a/sa/x", "*y"]),
        ("namespaces", &["a", "b*", "*"]),
        ("notNamespaces", &["a", "*b"]),
        ("serviceAccounts", &["a/x", "x", "a/*"]),
        ("ipBlocks", &["10.0.0.0/8", "10.0.0.0/33", "::/0"]),
        ("notIpBlocks", &["10.0.0.0/8", "nowhere"]),
        ("requestPrincipals", &["*"]),
        ("typo", &["a"]),
    ]);
    let operation = fields(&[
        ("ports", &["80", "http", "65616"]),
        ("notPorts", &["80", "-1"]),
        ("methods", &["GET"]),
        ("notPaths", &["/a"]),
    ]);
    let condition = (
        prop::sample::select(vec![
            "source.ip",
            "destination.port",
            "source.namespace",
            "request.headers[a]",
            "typo",
        ]),
        fields(&[("values", &["10.0.0.0/8", "80", "a"]), ("notValues", &["80", "b"])]),
    );
    let condition = condition.prop_map(|(key, mut values)| {
        values["key"] = json!(key);
        values
    });
    let rule = (
        vec(source.prop_map(|s| json!({ "source": s })), 0..3),
        vec(operation.prop_map(|o| json!({ "operation": o })), 0..3),
        vec(condition, 0..2),
    );
    let rule = rule.prop_map(|(from, to, when)| {
        let list = |items: Vec<Value>| if items.is_empty() { Value::Null } else { items.into() };
        json!({ "from": list(from), "to": list(to), "when": list(when) })
    });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&(any::<bool>(), vec(rule, 0..3)), |(deny, rules)| {
        let resource = resource(&json!({ "action": if deny { "DENY" } else { "ALLOW" }, "rules": rules }));
        let Ok(safe) = read(&resource, &Settings::default()) else {
            return Ok(());
        };
        let exact = read(&resource, &Settings::istio_exact()).unwrap().policy.unwrap();
        let safe = safe.policy.unwrap();
        for peer in ["spiffe://cluster.local/ns/a/sa/x", "spiffe://cluster.local/ns/b/sa/y", "none"] {
            let peer = Peer::from(peer.parse::<ambient_core::Identity>().ok());
            for (ip, port) in [("10.0.0.1", 80), ("192.0.2.1", 8080), ("fd00::1", 80)] {
                let conn = Conn {
                    peer: &peer,
                    source: ip.parse().unwrap(),
                    destination: ([10, 0, 0, 2], port).into(),
                };
                let [safe, exact] = [&safe, &exact].map(|p| p.matching_rule(&conn).is_some());
                prop_assert!(if deny { safe >= exact } else { safe <= exact }, "{:?}", conn);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
