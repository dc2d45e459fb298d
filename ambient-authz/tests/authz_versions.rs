//! Resources that change, as a watch tells of them.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::collections::BTreeMap;

use ambient_authz::{
    Conn, Decision, Peer, Policies, decide,
    kubernetes::{AuthorizationPolicy, Labels, PeerAuthentication, Resources, Settings},
    policy::{Fallback, Update},
};
use ambient_core::{Identity, Workload};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

const AUTHORIZATION: &str = "AuthorizationPolicy";
const PEER_AUTHENTICATION: &str = "PeerAuthentication";

/// Kind, namespace and name.
type Name = (&'static str, &'static str, &'static str);

const NAMES: [Name; 7] = [
    (AUTHORIZATION, "shop", "a"),
    (AUTHORIZATION, "shop", "b"),
    (AUTHORIZATION, "shop", "c"),
    (AUTHORIZATION, "istio-system", "a"),
    (PEER_AUTHENTICATION, "shop", "a"),
    (PEER_AUTHENTICATION, "shop", "b"),
    (PEER_AUTHENTICATION, "istio-system", "a"),
];

/// What a resource of a kind may say, and whether that can be read.
fn specs(kind: &str) -> Vec<(Value, bool)> {
    let stock = json!({ "matchLabels": { "app": "stock" } });
    let port = |port: &str| json!([{ "to": [{ "operation": { "ports": [port] } }] }]);
    match kind {
        AUTHORIZATION => vec![
            (json!({}), true),
            (json!({ "rules": port("80") }), true),
            (json!({ "selector": stock, "rules": [{}] }), true),
            (json!({ "selector": stock, "action": "DENY", "rules": [{}] }), true),
            (json!({ "selector": stock, "action": "DENY", "rules": port("80") }), true),
            (json!({ "action": "DENY", "rules": port("8080") }), true),
            (json!({ "action": "CUSTOM", "rules": [{}] }), true),
            (json!({ "action": "DENY", "rules": port("x") }), false),
            (json!({ "selector": stock, "action": "DENY", "rules": port("x") }), false),
            (
                json!({ "selector": { "matchLabel": { "app": "stock" } }, "action": "DENY", "rules": [{}] }),
                false,
            ),
            (json!({ "selector": stock, "action": "DENY", "rules": "nonsense" }), false),
        ],
        _ => vec![
            (json!({ "mtls": { "mode": "STRICT" } }), true),
            (json!({ "mtls": { "mode": "PERMISSIVE" } }), true),
            (json!({ "selector": stock, "mtls": { "mode": "STRICT" } }), true),
            (json!({ "selector": stock, "portLevelMtls": { "80": { "mode": "STRICT" } } }), true),
            (json!({ "selector": stock, "mtls": { "mode": "CLOSED" } }), false),
            (json!({ "mtls": { "mode": "CLOSED" } }), false),
            (json!({ "mtls": "CLOSED" }), false),
        ],
    }
}

fn resource((kind, namespace, name): Name, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

/// A version has come.
fn put(resources: &mut Resources, name: Name, spec: &Value) -> bool {
    let written = resource(name, spec);
    let misshapen = |resources: &mut Resources, why: serde_json::Error| {
        let envelope = serde_json::from_value(written.clone()).unwrap();
        resources.misshapen(&envelope, "spec", &why)
    };
    let told = match name.0 {
        AUTHORIZATION => match serde_json::from_value::<AuthorizationPolicy>(written.clone()) {
            Ok(resource) => resources.authorization(&resource),
            Err(why) => misshapen(resources, why),
        },
        _ => match serde_json::from_value::<PeerAuthentication>(written.clone()) {
            Ok(resource) => resources.peer_authentication(&resource),
            Err(why) => misshapen(resources, why),
        },
    };
    told.is_ok()
}

fn remove(resources: &mut Resources, (kind, namespace, name): Name) -> bool {
    match kind {
        AUTHORIZATION => resources.remove_authorization(namespace, name),
        _ => resources.remove_peer_authentication(namespace, name),
    }
}

fn labels(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

/// Workloads of some namespaces, some of which selectors select.
const WORKLOADS: [(&str, &str); 4] = [("shop", "stock"), ("shop", "cart"), ("ops", "stock"), ("istio-system", "stock")];

fn workload(resources: &Resources, (namespace, app): (&str, &str)) -> Workload {
    let mut workload = Workload::new("uid", namespace, app);
    workload.policies = resources.attached(namespace, &labels(app));
    workload
}

fn ask(policies: &Policies, workload: &Workload) -> Vec<Decision> {
    let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let peers = [Peer::plaintext(), policies.resolve(Some(&cart))];
    let connections = peers.iter().flat_map(|peer| [80, 8080].map(|port| (peer, port)));
    let decisions = connections.map(|(peer, port)| {
        let conn = Conn {
            peer,
            source: [10, 0, 0, 1].into(),
            destination: ([10, 0, 0, 2], port).into(),
        };
        decide(policies, workload, &conn)
    });
    decisions.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever versions there were, what is decided is what the last good versions say by themselves.
    #[test]
    fn no_sequence_of_versions_decides_otherwise_than_the_last_good_ones(
        steps in vec((select(&NAMES[..]), prop_oneof![1 => Just(None), 3 => (0..32_usize).prop_map(Some)]), 1..24),
        istio_exact in any::<bool>(),
        skipped in vec(any::<bool>(), 24),
    ) {
        let settings = if istio_exact { Settings::istio_exact() } else { Settings::default() };
        let mut watched = Resources::new(settings.clone());
        let mut policies = watched.policies();
        let mut versions: BTreeMap<Name, (Option<usize>, Option<usize>)> = BTreeMap::new();
        for ((name, version), skip) in steps.into_iter().zip(skipped) {
            match version {
                Some(version) => {
                    let specs = specs(name.0);
                    let version = version % specs.len();
                    let (spec, readable) = &specs[version];
                    // Istiod reads more of it than this reading does.
                    let readable = put(&mut watched, name, spec) || *readable;
                    let counts = versions.entry(name).or_default();
                    *counts = if readable { (Some(version), None) } else { (counts.0, Some(version)) };
                }
                None => {
                    let was_there = remove(&mut watched, name);
                    prop_assert_eq!(was_there, versions.remove(&name).is_some());
                }
            }
            // Several changes may go into the snapshot at once.
            if skip {
                continue;
            }
            let before = std::mem::take(&mut policies);
            let (now, affected) = before.advance(watched.updates_from(&before));
            policies = now;
            prop_assert_eq!(watched.updates_from(&policies), []);

            let mut anew = Resources::new(settings.clone());
            for (name, (good, bad)) in &versions {
                let version = good.or(*bad).unwrap();
                put(&mut anew, *name, &specs(name.0)[version].0);
            }
            for of in WORKLOADS {
                let (stock, expected) = (workload(&watched, of), workload(&anew, of));
                prop_assert_eq!(&stock.policies, &expected.policies);
                let decisions = ask(&policies, &stock);
                prop_assert_eq!(&decisions, &ask(&anew.policies(), &expected));
                prop_assert_eq!(&decisions, &ask(&watched.policies(), &stock));
                // Whom it turns is told.
                prop_assert!(affected.concerns(&stock) || decisions == ask(&before, &stock));
            }
        }
    }
}

#[test]
fn a_version_that_cannot_be_read_leaves_the_last_good_one_in_force_where_it_was() {
    let specs = specs(AUTHORIZATION);
    let (closed, name) = (&specs[3], NAMES[0]);
    for (bad, _) in &specs[7..] {
        let mut resources = Resources::new(Settings::default());
        assert!(put(&mut resources, name, &closed.0));
        let before = resources.policies();
        assert!(!put(&mut resources, name, bad));
        let (after, affected) = before.advance(resources.updates_from(&before));
        assert_eq!(after.fallback(&"shop/a".into()), Some(Fallback::LastGood));
        let stock = workload(&resources, ("shop", "stock"));
        assert!(ask(&after, &stock).iter().all(|decision| !decision.is_allow()), "{bad}");
        assert!(
            ask(&after, &workload(&resources, ("shop", "cart"))).iter().all(Decision::is_allow),
            "{bad}"
        );
        assert!(affected.is_empty());
        let selecting = resources.selecting("shop");
        assert_eq!(selecting.len(), 1);
        assert_eq!(*selecting[0].selector.labels(), labels("stock"));
    }
}

#[test]
fn what_is_deleted_admits_nobody_any_more() {
    let mut resources = Resources::new(Settings::default());
    let [open, narrow] = [
        json!({ "rules": [{}] }),
        json!({ "rules": [{ "to": [{ "operation": { "ports": ["1"] } }] }] }),
    ];
    assert!(put(&mut resources, NAMES[0], &open) && put(&mut resources, NAMES[1], &narrow));
    let before = resources.policies();
    let stock = workload(&resources, ("shop", "stock"));
    assert!(ask(&before, &stock).iter().all(Decision::is_allow));
    assert!(remove(&mut resources, NAMES[0]) && !remove(&mut resources, NAMES[0]));
    let steps = resources.updates_from(&before);
    assert_eq!(steps, [Update::Remove("shop/a".into())]);
    assert!(ask(&before.apply(steps), &stock).iter().all(|decision| !decision.is_allow()));
}

/// What was deleted in between, as a watch that was away may have it, is no last good version of what has its name now.
#[test]
fn what_begins_anew_under_a_name_falls_back_on_nothing_of_before() {
    let specs = specs(AUTHORIZATION);
    let mut resources = Resources::new(Settings::default());
    put(&mut resources, NAMES[0], &json!({ "rules": [{}] }));
    let before = resources.policies();
    remove(&mut resources, NAMES[0]);
    put(&mut resources, NAMES[0], &specs[7].0);
    let after = before.apply(resources.updates_from(&before));
    assert_eq!(after.fallback(&"shop/a".into()), Some(Fallback::Refusal));
    assert!(
        ask(&after, &workload(&resources, ("shop", "stock")))
            .iter()
            .all(|decision| !decision.is_allow())
    );
}
