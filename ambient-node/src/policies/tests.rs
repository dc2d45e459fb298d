use ambient_authz::{Action, Policy, policy::Update};
use ambient_core::{Workload, mesh};

use super::*;

const CONVERTED: &str = "shop/converted_peer_authentication_ports";

fn good(key: &str) -> Update {
    Update::Set(Arc::new(Policy {
        key: key.into(),
        namespace: "shop".into(),
        scope: Scope::Selector,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    }))
}

fn bad(key: &str, scope: Scope) -> Update {
    Update::Unreadable(Arc::new(Unreadable {
        key: key.into(),
        namespace: "shop".into(),
        scope,
        only_new: false,
        dry_run: false,
        error: "spec.rules[0]: no\nat all".into(),
    }))
}

fn fault(what: &str, policy: Option<&str>) -> Fault {
    Fault {
        what: what.into(),
        policy: policy.map(PolicyKey::from),
    }
}

#[test]
fn one_policy_that_cannot_be_read_is_named_by_a_ready_node() {
    let policies = Policies::default().apply([
        good("shop/kept"),
        bad("shop/kept", Scope::Namespace),
        bad("shop/placed", Scope::Selector),
        bad("shop/other", Scope::Namespace),
    ]);
    let faults = [
        fault("a.yaml:7: spec.rules[0]: no", Some("shop/placed")),
        fault("b.yaml:1: metadata.name: stands twice", None),
    ];
    let refused = "everything in its scope is refused until it can be read or is withdrawn";
    let wanted = format!(
        "ready\na.yaml:7: spec.rules[0]: no: {refused}\nb.yaml:1: metadata.name: stands twice\n\
         policy shop/kept: spec.rules[0]: no at all: its last good version stays in force\n\
         policy shop/other: spec.rules[0]: no at all: {refused}\n"
    );
    assert_eq!(readiness(Some(&policies), &faults), (true, wanted));
    assert_eq!(readiness(Some(&Policies::default()), &[]), (true, "ready\n".into()));
}

#[test]
fn a_node_that_refuses_all_is_not_ready() {
    let (ready, text) = readiness(None, &[fault("c.yaml:1: no", None)]);
    assert!(
        !ready && text.starts_with("not ready, pending: the mesh's state") && text.contains("c.yaml:1"),
        "{text}"
    );
    let refusing = Policies::default().apply([bad("root/all", Scope::Global)]);
    let (ready, text) = readiness(Some(&refusing), &[]);
    assert!(!ready && text.starts_with("not ready, pending: root/all "), "{text}");
    let odd = Policies::default().apply([bad("root/a\nready\n", Scope::Global)]);
    let (ready, text) = readiness(Some(&odd), &[]);
    assert!(!ready && text.lines().all(|line| line != "ready"), "{text}");
    let (ready, text) = readiness(Some(&refusing.letting_unreadable_go()), &[fault("c.yaml:1: no", Some("root/all"))]);
    assert!(
        ready && text.ends_with("c.yaml:1: no: it is in dry run or let go, and refuses nothing\n"),
        "{text}"
    );
    let good = Policies::default().apply([good("root/all"), bad("root/all", Scope::Global)]);
    assert!(readiness(Some(&good), &[]).0);
}

#[test]
fn what_is_wrong_is_counted() {
    let workload = |uid: &str, node: &str, policies: &[&str]| {
        mesh::Update::Workload(Arc::new(Workload {
            node: node.into(),
            policies: policies.iter().map(|key| PolicyKey::from(*key)).collect(),
            ..Workload::new(uid, "shop", uid)
        }))
    };
    let mut now = Snapshot::default();
    now.mesh = now.mesh.apply([
        workload("cart", "node-1", &[CONVERTED, "shop/late", "shop/kept"]),
        workload("stock", "node-1", &["shop/late"]),
        workload("elsewhere", "node-2", &["shop/never"]),
    ]);
    now.policies = now.policies.apply([
        good("shop/kept"),
        bad("shop/kept", Scope::Selector),
        bad("shop/other", Scope::Namespace),
    ]);
    let (mut oversight, metrics) = (Oversight::default(), Metrics::default());
    let mut counted = |now: &Snapshot| {
        oversight.look("node-1", now, &metrics);
        let text = metrics.text().unwrap();
        let value = |series: &str| -> u64 {
            let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
            value.unwrap_or_else(|| panic!("{series}: {text}"))
        };
        let unreadable = ["last_good", "refusal", "nothing"].map(|i| value(&format!("ambient_policies_unreadable{{instead=\"{i}\"}}")));
        let missing = ["everybody", "plaintext", "nobody"].map(|r| value(&format!("ambient_policies_missing{{refuses=\"{r}\"}}")));
        let told = (oversight.unreadable.len(), oversight.missing.len());
        (unreadable, missing, told)
    };
    assert_eq!(
        counted(&now),
        ([1, 1, 0], [2, 0, 0], (2, 0)),
        "while it may come it is counted only"
    );
    now.policies = now.policies.stop_waiting().0;
    assert_eq!(counted(&now), ([1, 1, 0], [1, 1, 0], (2, 2)));
    now.policies = now.policies.letting_unreadable_go().apply([good("shop/late"), good(CONVERTED)]);
    assert_eq!(counted(&now), ([1, 0, 1], [0, 0, 0], (2, 0)));
    now.policies = now.policies.apply([Update::Remove("shop/other".into()), good("shop/kept")]);
    assert_eq!(counted(&now), ([0, 0, 0], [0, 0, 0], (0, 0)));
    now.policies = Policies::istio_exact();
    assert_eq!(counted(&now).1, [0, 0, 3]);
}
