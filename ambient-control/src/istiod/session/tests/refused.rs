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

/// What was refused is told of for as long as it is asked for, by whichever of its names.
#[test]
fn what_was_refused_goes_with_the_last_that_it_was_asked_for_by() {
    let mut session = session();
    session.settings.on_demand = true;
    let now = now();
    session.handle_opened(now);
    let (by_address, by_name) = ("n1/10.0.0.1".to_owned(), uid(1));
    for name in [&by_address, &by_name, &uid(2)] {
        session.ask(name);
    }
    let bad = |number: usize, alias: &str| Resource {
        aliases: vec![alias.into()],
        ..resource(number, 13)
    };
    // One that nobody has asked for, as one of this node's own is sent, stays for as long as it is wrong.
    let sent = vec![bad(1, &by_address), resource(2, 1), bad(3, "n1/10.0.0.3")];
    session.handle_whole(now, response(Kind::Address, "n1", sent, &[]));
    session.handle_whole(now, response(Kind::Address, "n2", vec![bad(2, "n1/10.0.0.2")], &[]));
    let of = |session: &Session| -> Vec<String> {
        let faults = session.faults();
        faults
            .iter()
            .filter_map(|fault| Some(fault.what.split_once(": ")?.0.to_owned()))
            .collect()
    };
    assert_eq!(of(&session), [uid(1), uid(2), uid(3)]);
    drain(&mut session);
    session.give_back(std::slice::from_ref(&by_address));
    assert_eq!(of(&session), [uid(1), uid(2), uid(3)]);
    drain(&mut session);
    session.give_back(std::slice::from_ref(&by_name));
    assert_eq!(of(&session), [uid(2), uid(3)]);
    assert!(drain(&mut session)[0].resource_names_unsubscribe.contains(&by_name));
    // What stood for one that was held goes with it.
    assert_eq!(session.give_back(&[uid(2)]).changes.len(), 1);
    assert_eq!(of(&session), [uid(3)]);
}

/// An endpoint comes along with its service, and what is wrong with it goes with that, also where nobody says any more what becomes of it.
#[test]
fn what_was_refused_and_came_along_with_a_service_goes_with_that() {
    let mut session = session();
    session.settings.on_demand = true;
    session.settings.node.metadata = Some(node_name("here"));
    let now = now();
    session.handle_opened(now);
    for name in ["/10.9.0.1", "shop/other"] {
        session.ask(name);
    }
    let bad = |number: usize, service: &str, node: &str| {
        let workload = workload::Workload {
            uid: uid(number),
            node: node.into(),
            addresses: vec![vec![1, 2, 3]],
            services: [(service.to_owned(), workload::PortList::default())].into(),
            ..workload::Workload::default()
        };
        named(&uid(number), 1, Kind::Address, &address(workload))
    };
    let sent = vec![
        service("web", "/10.9.0.1"),
        service("other", "/10.9.0.2"),
        bad(1, "shop/web", "there"),
        bad(2, "shop/web", "here"),
        bad(3, "shop/other", "there"),
        bad(4, "shop/web", "there"),
    ];
    session.handle_whole(now, response(Kind::Address, "n", sent, &[]));
    assert_eq!(session.faults().len(), 4);
    // Who is told of them clears them by itself: by its end, or by what is good.
    session.handle_whole(now, response(Kind::Address, "n2", vec![], &[uid(4)]));
    assert_eq!(session.faults().len(), 3);
    drain(&mut session);
    session.give_back(&["/10.9.0.1".into()]);
    let told: Vec<_> = session
        .faults()
        .iter()
        .map(|fault| fault.what.split_once(": ").unwrap().0.to_owned())
        .collect();
    assert_eq!(told, [uid(2), uid(3)], "this node's own, and that of a service that is needed");
    assert!(drain(&mut session)[0].resource_names_unsubscribe.contains(&uid(1)));
    session.handle_whole(now, response(Kind::Address, "n3", vec![endpoint(3, "shop/other", "there")], &[]));
    assert_eq!(session.faults().len(), 1);
}
