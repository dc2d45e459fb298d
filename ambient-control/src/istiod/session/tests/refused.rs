//! Policies that refuse as they cannot be read, here or where they come from.

use ambient_authz::policy::Update;

use super::*;

/// A policy that says of itself to be another may be either, and is refused wherever one of them would apply.
#[test]
fn a_policy_of_another_name_refuses_wherever_either_would_apply() {
    use ambient_authz::Scope::{Global, Namespace};
    let of = |namespace: &str, scope| security::Authorization {
        name: "p".into(),
        namespace: namespace.into(),
        scope,
        ..security::Authorization::default()
    };
    for (name, body, scope) in [
        ("shop/q", of("shop", 1), Namespace),
        ("shop/q", of("shop", 2), Namespace),
        ("shop/q", of("shop", 0), Global),
        ("shop/p", of("yard", 1), Global),
        ("files//p", of("istio-system", 0), Global),
    ] {
        let mut session = session();
        session.handle_opened(now());
        let sent = named(name, 1, Kind::Authorization, &body);
        let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![sent], &[]));
        let [Change::Policy(Update::Unreadable(unreadable))] = &received.changes[..] else {
            panic!("{received:?}")
        };
        assert_eq!(
            (&*unreadable.namespace, unreadable.scope),
            (name.split_once('/').unwrap().0, scope),
            "{name}"
        );
    }
}

/// What the control plane refuses, as it knows no good version, was accepted: it is taken back like what is held, and what was
/// good before it here is in force no longer.
#[test]
fn what_the_control_plane_refuses_itself_is_held_and_falls_back_on_nothing() {
    let mut session = session();
    session.handle_opened(now());
    session.handle_whole(now(), response(Kind::Authorization, "n1", vec![policy("p", 0)], &[]));
    let refusal = crate::wire::ambient::control::v1::Refusal {
        error: "p.yaml:3: no".into(),
        only_new: true,
    };
    let body = security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 1,
        action: 1,
        rules: vec![security::Rule::default()],
        extensions: vec![security::Extension {
            name: read::REFUSAL.into(),
            config: Some(Any {
                type_url: String::new(),
                value: refusal.encode_to_vec(),
            }),
        }],
        ..security::Authorization::default()
    };
    let sent = named("shop/p", 2, Kind::Authorization, &body);
    let received = session.handle_whole(now(), response(Kind::Authorization, "n2", vec![sent], &[]));
    let [Change::Policy(Update::Remove(_)), Change::Policy(Update::Unreadable(told))] = &received.changes[..] else {
        panic!("{received:?}")
    };
    assert_eq!(
        (&*told.error, told.only_new, told.scope),
        ("p.yaml:3: no", true, ambient_authz::Scope::Namespace)
    );
    assert!(received.refused.is_empty() && session.faults().is_empty());
    session.handle_opened(now());
    assert_eq!(drain(&mut session)[1].initial_resource_versions["shop/p"], "2");
    let received = session.handle_whole(now(), response(Kind::Authorization, "n1", vec![], &["shop/p".into()]));
    assert!(matches!(&received.changes[..], [Change::Policy(Update::Remove(_))]), "{received:?}");
}
