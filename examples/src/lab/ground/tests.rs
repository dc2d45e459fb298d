use ambient_testkit::cluster::Object;
use serde_json::json;

use super::*;

#[test]
fn the_manifests_are_objects_and_fit_together() {
    let all = [
        manifests::NAMESPACES,
        manifests::ACCOUNTS,
        manifests::SERVICES,
        manifests::PODS,
        manifests::IMPOSTOR,
        manifests::ALLOW_NOTHING,
        manifests::ALLOW_CHAIN,
        manifests::ALLOW_GATEWAY_ONLY,
        manifests::STRICT,
    ];
    let objects: Vec<Object> = all.iter().flat_map(|text| Object::parse_all(text).unwrap()).collect();
    let has = |kind: &str, namespace: &str, name: &str| objects.iter().any(|o| o.key() == &Key::new(kind, namespace, name));
    for object in &objects {
        assert!(object.text("/apiVersion").is_some(), "{}", object.key());
        let namespace = &object.key().namespace;
        assert!(
            object.key().kind == "Namespace" || has("Namespace", "", namespace),
            "{}",
            object.key()
        );
        if let Some(account) = object.text("/spec/serviceAccountName") {
            assert!(has("ServiceAccount", namespace, account), "{}", object.key());
        }
        if let Some(selector) = object.value().pointer("/spec/selector").filter(|_| object.key().kind == "Service") {
            let pods = objects
                .iter()
                .filter(|o| o.key().kind == "Pod" && o.matches(selector.as_object()))
                .count();
            assert_eq!(pods, 1, "{}", object.key());
        }
    }
    // A step replaces the one by the other.
    assert_eq!(
        Object::parse_all(manifests::ALLOW_GATEWAY_ONLY).unwrap()[0].key(),
        Object::parse_all(manifests::ALLOW_CHAIN).unwrap()[0].key()
    );
}

#[test]
fn chains_are_read_from_the_answer() {
    let body = json!({"name": "web-api", "upstream_calls": {"http://r": {"name": "recommendation", "upstream_calls": {
        "http://p": {"name": "purchase-history", "upstream_calls": {}}}}}});
    let outcome = Outcome {
        status: Some(200),
        body,
        ..Outcome::default()
    };
    assert!(is_whole(&outcome));
    assert_eq!(described(&outcome), "status 200 from web-api -> recommendation -> purchase-history");
    let failed = Outcome {
        failure: Some(app::Failure::Empty),
        detail: "d".into(),
        ..Outcome::default()
    };
    assert_eq!(described(&failed), "empty reply (d)");
    assert!(!is_whole(&failed));
}

#[test]
fn waiting_ends() {
    let mut looks = 0;
    let found = until(Duration::from_secs(5), || {
        looks += 1;
        Ok((looks == 3).then_some(looks))
    });
    assert_eq!(found.unwrap(), Some(3));
    assert_eq!(until::<()>(Duration::ZERO, || Ok(None)).unwrap(), None);
}
