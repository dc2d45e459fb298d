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

/// How many DENY policies apply to all of a namespace; `None` where nothing is known of it.
fn listed(policies: &Policies, namespace: &str) -> Option<u32> {
    let terms = &policies.index().terms;
    Some(terms.places.value(terms.place(namespace)?)?.kinds[Kind::Deny as usize])
}

fn of_mesh(policies: &Policies) -> u32 {
    policies.index().terms.mesh.kinds[Kind::Deny as usize]
}

#[test]
fn a_change_of_scope_leaves_the_namespace() {
    let policies = Policies::default().apply([policy("default/p", "default", Scope::Namespace)]);
    assert_eq!(listed(&policies, "default"), Some(1));
    let policies = policies.apply([policy("default/p", "default", Scope::Selector)]);
    assert_eq!(
        (listed(&policies, "default"), policies.len()),
        (None, 1),
        "an empty namespace is forgotten"
    );
    let policies = policies.apply([policy("default/p", "elsewhere", Scope::Namespace)]);
    assert_eq!(listed(&policies, "elsewhere"), Some(1));
    let policies = policies.apply([policy("default/p", "default", Scope::Global)]);
    assert_eq!((listed(&policies, "elsewhere"), of_mesh(&policies)), (None, 1));
}

#[test]
fn snapshots_are_apart() {
    let one = Policies::default().apply([policy("a/p", "a", Scope::Namespace), policy("b/p", "b", Scope::Namespace)]);
    let two = one.apply([policy("a/q", "a", Scope::Namespace)]);
    assert_eq!((one.len(), two.len()), (2, 3));
    assert_eq!(
        (listed(&one, "a"), listed(&two, "a"), listed(&two, "b")),
        (Some(1), Some(2), Some(1))
    );
}

/// A target fits until something changes under what its workload lists, or in its namespace.
#[test]
fn a_target_fits_until_a_change_concerns_its_workload() {
    let mut stock = Workload::new("uid", "shop", "stock");
    stock.policies = vec!["shop/listed".into(), "shop/late".into()];
    let stock = Arc::new(stock);
    let before = Policies::default().apply([policy("shop/listed", "shop", Scope::Selector)]);
    let target = before.target(&stock);
    let unreadable = |key: &str, scope| {
        Update::Unreadable(Arc::new(Unreadable {
            key: key.into(),
            namespace: "shop".into(),
            scope,
            only_new: false,
            dry_run: false,
            error: "no".into(),
        }))
    };
    for (update, fits) in [
        (policy("shop/listed", "shop", Scope::Selector), true),
        (policy("shop/other", "shop", Scope::Selector), true),
        (policy("mesh/all", "mesh", Scope::Global), true),
        (policy("office/all", "office", Scope::Namespace), true),
        (Update::Remove("shop/none".into()), true),
        // Its last good version stays.
        (unreadable("shop/listed", Scope::Selector), true),
        (policy("shop/all", "shop", Scope::Namespace), false),
        (policy("shop/late", "shop", Scope::Selector), false),
        (policy("shop/listed", "shop", Scope::Namespace), false),
        (Update::Remove("shop/listed".into()), false),
        (unreadable("shop/late", Scope::Selector), false),
        (unreadable("shop/all", Scope::Namespace), false),
    ] {
        let (after, affected) = before.advance([update.clone()]);
        assert_eq!(after.fits(&target), fits, "{update:?}");
        assert!(fits || affected.concerns(&stock));
        assert!(after.fits(&after.target(&stock)) && before.fits(&target));
        // What changed and came back is another, and so is what changed in the same way elsewhere.
        assert_eq!(before.apply([update]).fits(&after.target(&stock)), fits);
    }
    assert!(before.letting_unreadable_go().stop_waiting().0.fits(&target));
}

#[test]
fn order_is_by_key_however_they_came() {
    let keys = ["b/z", "a/z", "c/a", "a/b", "b/a"];
    let policies = keys
        .iter()
        .fold(Policies::default(), |p, key| p.apply([policy(key, "ns", Scope::Namespace)]));
    let listed: Vec<_> = policies.iter().map(|p| p.key).collect();
    assert_eq!(listed, ["a/b", "a/z", "b/a", "b/z", "c/a"].map(PolicyKey::from));
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
        assert_eq!((listed(&policies, "a"), policies.len(), of_mesh(&policies)), (Some(2), 2, 0));
    }
}
