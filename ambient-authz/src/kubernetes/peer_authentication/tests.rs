use serde_json::{Value, json};

use super::*;

fn resource(namespace: &str, name: &str, created: Option<&str>, spec: &Value) -> PeerAuthentication {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace, "creationTimestamp": created },
        "spec": spec,
    }))
    .unwrap()
}

fn set(resources: impl IntoIterator<Item = PeerAuthentication>) -> Set {
    let settings = Settings::default();
    let read = |resource| read(&resource, &settings).unwrap().object;
    Set::new(&settings, resources.into_iter().map(read))
}

fn labels(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

fn mode(mode: &str) -> Value {
    json!({ "mtls": { "mode": mode } })
}

#[test]
fn what_cannot_be_read_is_named() {
    let selector = json!({ "matchLabels": { "app": "a" } });
    for (spec, path) in [
        (mode("MUTUAL"), "spec.mtls.mode"),
        (mode("strict"), "spec.mtls.mode"),
        (
            json!({ "selector": selector, "portLevelMtls": { "http": {} } }),
            "spec.portLevelMtls[http]",
        ),
        (
            json!({ "selector": selector, "portLevelMtls": { "0": {} } }),
            "spec.portLevelMtls[0]",
        ),
        (
            json!({ "selector": selector, "portLevelMtls": { "65536": {} } }),
            "spec.portLevelMtls[65536]",
        ),
        (
            json!({ "selector": selector, "portLevelMtls": { "080": {}, "80": {} } }),
            "spec.portLevelMtls[80]",
        ),
        (
            json!({ "selector": selector, "portLevelMtls": { "80": { "mode": "ON" } } }),
            "spec.portLevelMtls[80].mode",
        ),
        (json!({ "portLevelMtls": { "80": { "mode": "STRICT" } } }), "spec.portLevelMtls"),
        (json!({ "selector": { "matchExpressions": [] } }), "spec.selector.matchExpressions"),
    ] {
        let error = read(&resource("shop", "p", None, &spec), &Settings::default()).expect_err(path);
        assert_eq!((&*error.path, error.key.as_str()), (path, "shop/peer_authentication_p"));
        let selects = spec["selector"]["matchLabels"].is_object();
        assert_eq!((error.scope == Scope::Selector, error.selector.is_some()), (selects, selects));
    }
    let error = read(&resource("istio-system", "p", None, &mode("?")), &Settings::default()).unwrap_err();
    assert_eq!(error.scope, Scope::Global);
}

/// A typing error in `mtls` would leave the mode to wider levels, which may be permissive.
#[test]
fn unknown_fields_never_open_a_port() {
    let selector = json!({ "matchLabels": { "app": "a" } });
    for (spec, path) in [
        (json!({ "mTLS": { "mode": "STRICT" } }), "spec.mTLS"),
        (json!({ "mtls": { "mod": "STRICT" } }), "spec.mtls.mod"),
        (json!({ "mtls": { "mode": "PERMISSIVE" }, "selecter": selector }), "spec.selecter"),
        (
            json!({ "selector": selector, "portLevelMtls": { "80": { "mod": "STRICT" } } }),
            "spec.portLevelMtls[80].mod",
        ),
        (
            json!({ "selector": selector, "mtls": { "mode": "STRICT" }, "portLevelMtls": { "80": { "mode": "DISABLE", "x": 1 } } }),
            "spec.portLevelMtls[80].x",
        ),
    ] {
        let resource = resource("shop", "p", None, &spec);
        assert_eq!(&*read(&resource, &Settings::default()).unwrap_err().path, path);
        let exact = read(&resource, &Settings::istio_exact()).unwrap();
        assert!(exact.warnings.iter().any(|w| w.path == path), "{spec}");
    }
    // `Spec` for `spec`: read without it, nothing would be strict.
    let mut written = resource("shop", "p", None, &Value::Null);
    written.unknown = serde_json::from_value(json!({ "Spec": mode("STRICT") })).unwrap();
    assert_eq!(&*read(&written, &Settings::default()).unwrap_err().path, "Spec");
    assert_eq!(read(&written, &Settings::istio_exact()).unwrap().warnings[0].path, "Spec");
    written.spec = serde_json::from_value(mode("PERMISSIVE")).unwrap();
    assert_eq!(read(&written, &Settings::default()).unwrap().warnings[0].path, "Spec");
    // What is strict all over could not be asked for more.
    let spec = json!({ "mtls": { "mode": "STRICT" }, "portLevelMTLS": { "80": { "mode": "DISABLE" } } });
    let strict = read(&resource("shop", "p", None, &spec), &Settings::default()).unwrap();
    assert_eq!(strict.warnings[0].path, "spec.portLevelMTLS");
    assert_eq!(strict.object.mode, Mode::Strict);
}

#[test]
fn modes_of_ports_without_a_selector() {
    let spec = json!({ "mtls": { "mode": "STRICT" }, "portLevelMtls": { "80": { "mode": "DISABLE" } } });
    let resource = resource("shop", "p", None, &spec);
    assert!(read(&resource, &Settings::default()).is_err());
    let exact = read(&resource, &Settings::istio_exact()).unwrap();
    assert_eq!((exact.object.ports.len(), exact.object.mode), (0, Mode::Strict));
    assert_eq!(exact.warnings[0].path, "spec.portLevelMtls");
}

#[test]
fn objects_come_and_go() {
    let settings = Settings::default();
    let object = |name, created, word| read(&resource("shop", name, created, &mode(word)), &settings).unwrap().object;
    let mut set = Set::new(&settings, [object("b", Some("2026-01-01T00:00:00Z"), "PERMISSIVE")]);
    set.insert(object("c", None, "STRICT"));
    let now = |set: &Set| effective(set, "shop", &labels("a"), 80);
    assert_eq!(now(&set), Mode::Strict);
    set.insert(object("c", Some("2026-01-02T00:00:00Z"), "STRICT"));
    assert_eq!(now(&set), Mode::Permissive);
    set.remove("shop", "b");
    assert_eq!(now(&set), Mode::Strict);
    set.remove("shop", "c");
    assert!(set.is_empty());
}

#[test]
fn the_oldest_counts_at_each_level() {
    let at = |name, created, word| resource("shop", name, created, &mode(word));
    let effective_of = |set: &Set| effective(set, "shop", &labels("a"), 80);
    let old = Some("2026-01-31T12:00:00Z");
    let new = Some("2026-02-01T00:00:00Z");
    assert_eq!(
        effective_of(&set([at("a", new, "PERMISSIVE"), at("b", old, "STRICT")])),
        Mode::Strict
    );
    assert_eq!(
        effective_of(&set([at("a", old, "PERMISSIVE"), at("b", old, "STRICT")])),
        Mode::Permissive
    );
    assert_eq!(
        effective_of(&set([at("a", old, "PERMISSIVE"), at("b", None, "STRICT")])),
        Mode::Strict
    );
    // An oldest object that is silent is still the one that counts, and inherits.
    let mesh = resource("istio-system", "mesh", None, &mode("STRICT"));
    assert_eq!(
        effective_of(&set([at("a", old, "UNSET"), at("b", new, "DISABLE"), mesh])),
        Mode::Strict
    );
}

/// Who asks why plaintext is refused is told which object says so.
#[test]
fn the_object_that_makes_strict_is_named() {
    let of_app = |mtls: &str, ports: Value| json!({ "selector": { "matchLabels": { "app": "a" } }, "mtls": { "mode": mtls }, "portLevelMtls": ports });
    let mesh = || resource("istio-system", "mesh", None, &mode("STRICT"));
    let name = |set: &Set, app, port| strict_by(set, "shop", &labels(app), port).map(|o| format!("{}/{}", o.namespace(), o.name()));
    let own = || {
        let ports = json!({ "80": { "mode": "STRICT" }, "81": { "mode": "DISABLE" } });
        resource("shop", "own", None, &of_app("UNSET", ports))
    };
    let (of_mesh, of_own) = (Some("istio-system/mesh".to_owned()), Some("shop/own".to_owned()));
    let all = set([mesh(), own()]);
    assert_eq!(
        [80, 81, 82].map(|port| name(&all, "a", Some(port))),
        [of_own.clone(), None, of_mesh.clone()]
    );
    assert_eq!([name(&all, "a", None), name(&all, "b", Some(81))], [of_mesh.clone(), of_mesh]);
    let lax = set([mesh(), own(), resource("shop", "lax", None, &mode("PERMISSIVE"))]);
    assert_eq!([80, 82].map(|port| name(&lax, "a", Some(port))), [of_own, None]);
    // It is there if and only if the port is strict.
    let none = set([]);
    for set in [&all, &lax, &none] {
        for port in [80, 81, 82] {
            let strict = effective(set, "shop", &labels("a"), port) == Mode::Strict;
            assert_eq!(strict_by(set, "shop", &labels("a"), Some(port)).is_some(), strict);
        }
    }
}

#[test]
fn a_selector_in_the_root_namespace_selects_nothing() {
    let spec = json!({ "selector": { "matchLabels": { "app": "a" } }, "mtls": { "mode": "STRICT" } });
    let read = read(&resource("istio-system", "p", None, &spec), &Settings::default()).unwrap();
    assert_eq!(read.warnings.len(), 1);
    let set = Set::new(&Settings::default(), [read.object]);
    for namespace in ["istio-system", "shop"] {
        assert_eq!(effective(&set, namespace, &labels("a"), 80), Mode::Permissive);
        assert!(keys(&set, namespace, &labels("a")).is_empty());
    }
    assert_eq!(policies(&set).len(), 1, "the static policy is there while any object is");
    assert!(policies(&Set::new(&Settings::default(), [])).is_empty());
}

#[test]
fn a_selector_without_labels_is_none() {
    for selector in [json!({}), json!({ "matchLabels": {} }), json!({ "matchLabels": null }), Value::Null] {
        let spec = json!({ "selector": selector, "mtls": { "mode": "STRICT" } });
        let set = set([resource("shop", "p", None, &spec)]);
        let listed = keys(&set, "shop", &labels("b"));
        assert_eq!(listed, [PolicyKey::from("istio-system/istio_converted_static_strict")]);
        assert!(keys(&set, "other", &labels("b")).is_empty());
    }
}

#[test]
fn yaml_keys_that_are_numbers_are_ports() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop, uid: x}\n\
                spec:\n  selector: {matchLabels: {app: a}}\n  portLevelMtls:\n    9090:\n      mode: STRICT\n";
    let direct: PeerAuthentication = serde_saphyr::from_str(text).unwrap();
    let value: Value = serde_saphyr::from_str(text).unwrap();
    for resource in [direct, serde_json::from_value(value).unwrap()] {
        let set = set([resource]);
        assert_eq!(effective(&set, "shop", &labels("a"), 9090), Mode::Strict);
        assert_eq!(effective(&set, "shop", &labels("a"), 80), Mode::Permissive);
        assert_eq!(effective(&set, "shop", &labels("b"), 9090), Mode::Permissive);
    }
}

#[test]
fn times_are_compared_as_moments() {
    let parse = |text: &str| text.parse::<Timestamp>();
    for (earlier, later) in [
        ("2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"),
        ("2024-02-29T12:00:00Z", "2024-03-01T00:00:00Z"),
        ("2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000001Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:30:00Z"),
        ("2026-01-31T10:30:00Z", "2026-01-31T10:00:00-01:00"),
    ] {
        assert!(parse(earlier).unwrap() < parse(later).unwrap(), "{earlier} {later}");
    }
    assert_eq!(parse("2026-01-31T12:00:00+02:00"), parse("2026-01-31t10:00:00.0z"));
    for bad in [
        "",
        "yesterday",
        "2026-01-31",
        "2026-1-31T12:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00:00.Z",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_shape_that_is_none_refuses_the_namespace() {
    let text = r#"{ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                    "metadata": { "name": "p", "namespace": "shop" }, "spec": { "mtls": ["STRICT"] } }"#;
    let why = serde_json::from_str::<PeerAuthentication>(text).unwrap_err();
    let envelope = serde_json::from_str(text).unwrap();
    let error = ReadError::of_shape(&envelope, &why, &Settings::default());
    assert_eq!((error.key.as_str(), error.scope), ("shop/peer_authentication_p", Scope::Namespace));
    assert!(error.unreadable().error.starts_with("spec: "));
}
