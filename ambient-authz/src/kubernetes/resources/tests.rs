use ambient_core::Workload;
use serde_json::{Value, json};

use super::*;
use crate::{Conn, Decision, Denial, Policies, decide, kubernetes::Envelope, policy::Fallback};

fn authorization(namespace: &str, name: &str, spec: &Value) -> AuthorizationPolicy {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    }))
    .unwrap()
}

fn peer_authentication(namespace: &str, name: &str, spec: &Value) -> PeerAuthentication {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    }))
    .unwrap()
}

fn labels(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

fn for_app(app: &str) -> Value {
    json!({ "selector": { "matchLabels": { "app": app } } })
}

fn texts(keys: &[PolicyKey]) -> Vec<&str> {
    keys.iter().map(PolicyKey::as_str).collect()
}

fn ask(resources: &Resources, namespace: &str, labels: &Labels) -> Decision {
    let mut workload = Workload::new("uid", namespace, "w");
    workload.policies = resources.attached(namespace, labels);
    let conn = Conn {
        peer: &crate::Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    decide(&resources.policies(), &workload, &conn)
}

#[test]
fn selectors_reach_their_namespace_and_those_of_the_root_reach_all() {
    let mut resources = Resources::new(Settings::default());
    for (namespace, name) in [("shop", "z"), ("shop", "a"), ("istio-system", "m"), ("ops", "x")] {
        resources.authorization(&authorization(namespace, name, &for_app("a"))).unwrap();
    }
    resources.authorization(&authorization("shop", "all", &json!({}))).unwrap();
    let strict = json!({ "mtls": { "mode": "STRICT" } });
    resources.peer_authentication(&peer_authentication("shop", "p", &strict)).unwrap();
    let of_shop = resources.attached("shop", &labels("a"));
    let expected = ["istio-system/m", "shop/a", "shop/z", "istio-system/istio_converted_static_strict"];
    assert_eq!(texts(&of_shop), expected);
    assert_eq!(texts(&resources.attached("istio-system", &labels("a"))), ["istio-system/m"]);
    assert_eq!(texts(&resources.attached("shop", &labels("b"))).len(), 1);
    let unlabelled = resources.attached("ops", &Labels::new());
    assert!(unlabelled.is_empty());
}

/// Istiod takes a workload without labels for one that every selector selects.
#[test]
fn without_labels_istio_selects_all() {
    let mut resources = Resources::new(Settings::istio_exact());
    resources.authorization(&authorization("shop", "a", &for_app("a"))).unwrap();
    resources
        .authorization(&authorization("shop", "none", &json!({ "selector": {} })))
        .unwrap();
    assert_eq!(texts(&resources.attached("shop", &Labels::new())), ["shop/a"]);
    assert!(resources.attached("shop", &labels("b")).is_empty());
}

#[test]
fn what_cannot_be_read_refuses_those_whom_it_selects() {
    let mut resources = Resources::new(Settings::default());
    let mut spec = for_app("a");
    spec["rules"] = json!([{ "from": [{ "source": { "ipBlocks": ["x"] } }] }]);
    let error = resources.authorization(&authorization("shop", "bad", &spec)).unwrap_err();
    assert_eq!(&*error.path, "spec.rules[0].from[0].source.ipBlocks[0]");
    let unreadable = |decision| matches!(decision, Decision::Deny(Denial::Unreadable { .. }));
    assert!(unreadable(ask(&resources, "shop", &labels("a"))));
    assert!(ask(&resources, "shop", &labels("b")).is_allow());

    let mut spec = for_app("b");
    spec["mtls"] = json!({ "mode": "ON" });
    assert!(resources.peer_authentication(&peer_authentication("shop", "bad", &spec)).is_err());
    assert!(unreadable(ask(&resources, "shop", &labels("b"))));
    // Mended, both are as if they had never been.
    spec["mtls"] = json!({ "mode": "PERMISSIVE" });
    resources.peer_authentication(&peer_authentication("shop", "bad", &spec)).unwrap();
    assert!(ask(&resources, "shop", &labels("b")).is_allow());

    let envelope: Envelope = serde_json::from_value(json!({
        "kind": "AuthorizationPolicy", "metadata": { "name": "shapeless", "namespace": "ops" },
    }))
    .unwrap();
    resources.misshapen(&envelope, "spec", &"it is none").unwrap_err();
    assert!(unreadable(ask(&resources, "ops", &Labels::new())));
}

/// It is told, and refuses nobody: enforced it would not be either. A last good version stays.
#[test]
fn what_cannot_be_read_in_dry_run_refuses_nobody() {
    let bad = json!([{ "from": [{ "source": { "ipBlocks": ["x"] } }] }]);
    let mut selecting = for_app("a");
    selecting["rules"] = bad.clone();
    let unknown_selector = json!({ "selector": { "matchLabel": { "app": "a" } } });
    for spec in [json!({ "rules": bad }), selecting, unknown_selector, json!({ "action": "REFUSE" })] {
        for (namespace, word) in [("shop", "true"), ("istio-system", "T")] {
            let mut resource = authorization(namespace, "tried", &spec);
            resource.metadata.annotations = Some([("istio.io/dry-run".to_owned(), word.to_owned())].into());
            let mut resources = Resources::new(Settings::default());
            let error = resources.authorization(&resource).unwrap_err();
            assert!(error.dry_run && error.unreadable().dry_run);
            assert!(ask(&resources, "shop", &labels("a")).is_allow(), "{spec}");
            assert!(resources.attached("shop", &labels("a")).is_empty());
            let policies = Policies::default().apply(resources.updates());
            assert_eq!(policies.unreadable().count(), 1, "it is told");
            assert_eq!(policies.fallback(&error.key), Some(Fallback::Nothing));
            // Enforced, it refuses.
            resource.metadata.annotations = None;
            assert!(!resources.authorization(&resource).unwrap_err().dry_run);
            assert!(!ask(&resources, "shop", &labels("a")).is_allow(), "{spec}");
        }
    }
    let envelope: Envelope = serde_json::from_value(json!({
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "shapeless", "namespace": "ops", "annotations": { "istio.io/dry-run": "true" } },
    }))
    .unwrap();
    let mut resources = Resources::new(Settings::default());
    resources.misshapen(&envelope, "spec", &"it is none").unwrap_err();
    assert!(ask(&resources, "ops", &Labels::new()).is_allow());
}

#[test]
fn rules_are_numbered_as_they_are_written() {
    let mut resources = Resources::new(Settings::default());
    let http = json!({ "to": [{ "operation": { "methods": ["GET"] } }] });
    let spec = json!({ "rules": [http, {}, http, { "to": [{ "operation": { "ports": ["1"] } }] }] });
    let warnings = resources.authorization(&authorization("shop", "p", &spec)).unwrap();
    assert_eq!(warnings.len(), 2);
    let key = PolicyKey::from("shop/p");
    assert_eq!([0, 1].map(|rule| resources.written_rule(&key, rule)), [1, 3]);
    assert_eq!(resources.written_rule(&"shop/other".into(), 7), 7);
}

/// Resources of another revision do nothing, whatever is in them; without a revision of one's own all count.
#[test]
fn another_revisions_resources_have_no_effect() {
    let closed = |revision: Option<&str>| {
        let mut resource = authorization("shop", "closed", &json!({}));
        resource.metadata.labels = revision.map(|revision| [("istio.io/rev".to_owned(), revision.to_owned())].into());
        resource
    };
    let modes = [Settings::default(), Settings::istio_exact()];
    for (mode, own) in modes
        .iter()
        .flat_map(|mode| [None, Some(""), Some("canary")].map(|own| (mode, own)))
    {
        let settings = Settings {
            revision: own.map(Into::into),
            ..mode.clone()
        };
        for (revision, counts) in [(None, true), (Some("canary"), true), (Some("stable"), own != Some("canary"))] {
            let mut resources = Resources::new(settings.clone());
            let warnings = resources.authorization(&closed(revision)).unwrap();
            assert_eq!(ask(&resources, "shop", &labels("a")).is_allow(), !counts, "{own:?} {revision:?}");
            assert_eq!(warnings.iter().any(|w| w.path == "metadata.labels[istio.io/rev]"), !counts);
        }
    }

    let mut resources = Resources::new(Settings {
        revision: Some("canary".into()),
        ..Settings::default()
    });
    let mut unread = authorization("shop", "bad", &json!({ "action": "REFUSE" }));
    unread.metadata.labels = closed(Some("stable")).metadata.labels;
    assert_eq!(resources.authorization(&unread).unwrap().len(), 1);
    let mut strict = peer_authentication("shop", "p", &json!({ "mtls": { "mode": "STRICT" } }));
    resources.peer_authentication(&strict).unwrap();
    assert!(!ask(&resources, "shop", &labels("a")).is_allow());
    strict.metadata.labels = unread.metadata.labels;
    assert_eq!(resources.peer_authentication(&strict).unwrap().len(), 1);
    assert!(ask(&resources, "shop", &labels("a")).is_allow(), "it is of another revision now");
}

#[test]
fn what_selects_by_labels_is_told_and_left_out_for_a_workload_that_nothing_selects() {
    for settings in [Settings::default(), Settings::istio_exact()] {
        let mut resources = Resources::new(settings);
        for (namespace, name) in [("shop", "z"), ("istio-system", "m"), ("ops", "x")] {
            resources.authorization(&authorization(namespace, name, &for_app("a"))).unwrap();
        }
        resources.authorization(&authorization("shop", "all", &json!({}))).unwrap();
        let strict = json!({ "mtls": { "mode": "STRICT" } });
        resources.peer_authentication(&peer_authentication("shop", "p", &strict)).unwrap();
        let mut open = for_app("b");
        open["mtls"] = json!({ "mode": "PERMISSIVE" });
        for namespace in ["shop", "istio-system"] {
            resources
                .peer_authentication(&peer_authentication(namespace, "open", &open))
                .unwrap();
        }
        open["mtls"] = json!({ "mode": "OPEN" });
        resources
            .peer_authentication(&peer_authentication("shop", "bad", &open))
            .unwrap_err();

        let selecting = resources.selecting("shop");
        let told: Vec<_> = selecting.iter().map(|s| (s.key.as_str(), s.kind)).collect();
        let policy = SelectingKind::Policy {
            action: Action::Allow,
            dry_run: false,
        };
        let expected = [
            ("shop/z", policy),
            ("istio-system/m", policy),
            ("shop/peer_authentication_open", SelectingKind::PeerAuthentication),
            ("shop/peer_authentication_bad", SelectingKind::Unreadable),
        ];
        assert_eq!(told, expected);
        assert_eq!(*selecting[2].selector.labels(), labels("b"));
        // Also where a workload without labels is one that every selector selects.
        assert_eq!(
            texts(&resources.attached_unselected("shop")),
            ["istio-system/istio_converted_static_strict"]
        );
        let all = resources.attached("shop", &Labels::new()).len();
        assert_eq!(all, if resources.settings().istio_exact { 3 } else { 1 });
    }
}
