use std::sync::Arc;

use super::*;

fn policy(key: &str, namespace: &str, scope: Scope) -> Update {
    Update::Set(Arc::new(Policy {
        key: key.into(),
        namespace: namespace.into(),
        scope,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    }))
}

fn listed(policies: &Policies, namespace: &str) -> usize {
    policies.scopes(namespace)[1].map_or(0, |b| b.of(Kind::Deny).len())
}

#[test]
fn a_change_of_scope_leaves_the_namespace() {
    let policies = Policies::default().apply([policy("default/p", "default", Scope::Namespace)]);
    assert_eq!(listed(&policies, "default"), 1);
    let policies = policies.apply([policy("default/p", "default", Scope::Selector)]);
    assert_eq!((listed(&policies, "default"), policies.len()), (0, 1));
    assert!(policies.scopes("default")[1].is_none(), "an empty namespace is forgotten");
    let policies = policies.apply([policy("default/p", "elsewhere", Scope::Namespace)]);
    assert_eq!(listed(&policies, "elsewhere"), 1);
    let policies = policies.apply([policy("default/p", "default", Scope::Global)]);
    assert_eq!(listed(&policies, "elsewhere"), 0);
    assert_eq!(policies.scopes("any")[0].unwrap().of(Kind::Deny).len(), 1);
}

#[test]
fn snapshots_are_apart_and_share_what_did_not_change() {
    let one = Policies::default().apply([policy("a/p", "a", Scope::Namespace), policy("b/p", "b", Scope::Namespace)]);
    let two = one.apply([policy("a/q", "a", Scope::Namespace)]);
    assert_eq!((one.len(), two.len()), (2, 3));
    assert!(std::ptr::eq(one.scopes("b")[1].unwrap(), two.scopes("b")[1].unwrap()));
    assert!(Arc::ptr_eq(&one.0.global, &two.0.global));
}

#[test]
fn order_is_by_key_however_they_came() {
    let keys = ["b/z", "a/z", "c/a", "a/b", "b/a"];
    let policies = keys
        .iter()
        .fold(Policies::default(), |p, key| p.apply([policy(key, "ns", Scope::Namespace)]));
    let listed: Vec<_> = policies.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(listed, ["a/b", "a/z", "b/a", "b/z", "c/a"]);
    let in_scope: Vec<_> = policies.scopes("ns")[1]
        .unwrap()
        .of(Kind::Deny)
        .iter()
        .map(|p| p.key.as_str())
        .collect();
    assert_eq!(in_scope, listed);
}

#[test]
fn one_batch_is_the_same_as_many() {
    let steps = [
        policy("a/p", "a", Scope::Namespace),
        Update::Remove("a/p".into()),
        policy("a/p", "a", Scope::Global),
        policy("a/q", "a", Scope::Namespace),
        policy("a/p", "a", Scope::Namespace),
        Update::Remove("a/none".into()),
    ];
    let batch = Policies::default().apply(steps.clone());
    let single = steps.into_iter().fold(Policies::default(), |p, step| p.apply([step]));
    for policies in [batch, single] {
        assert_eq!((listed(&policies, "a"), policies.len()), (2, 2));
        assert!(policies.scopes("a")[0].unwrap().of(Kind::Deny).is_empty());
    }
}
