use ambient_core::{Workload, mesh::Update};

use super::*;
use crate::clock;

fn batch(changes: Vec<Change>, synced: bool) -> Batch {
    Batch {
        changes,
        synced,
        faults: Arc::from([]),
        ..Batch::default()
    }
}

fn workload(tunnel: TunnelProtocol) -> Change {
    Change::Mesh(Update::Workload(Arc::new(Workload {
        tunnel,
        ..Workload::new("u", "shop", "cart")
    })))
}

#[test]
fn nothing_is_published_before_the_first_whole_state() {
    let state = State::default();
    let now = clock::steady();
    state.apply(batch(vec![workload(TunnelProtocol::None)], false), now);
    assert!(state.current().is_none());
    let changed = state.apply(batch(vec![], true), now);
    assert_eq!(changed.workloads, ["u".into()], "told once it is published");
    assert!(
        state.current().unwrap().mesh.workload(&"u".into()).is_some(),
        "what came before the sync is part of it"
    );
}

#[tokio::test]
async fn a_large_batch_leaves_turns_to_others_and_is_seen_as_a_whole() {
    let named = |n: usize| format!("c//Pod/shop/{n}");
    let told = |n: usize| Change::Mesh(Update::Workload(Workload::new(&named(n), "shop", &n.to_string()).into()));
    let knows = |state: &State, n: usize| state.current().unwrap().mesh.workload(&named(n).as_str().into()).is_some();
    let (state, now) = (State::default(), clock::steady());
    state.apply(batch(vec![told(0)], true), now);
    let parts = 5;
    let count = AT_ONCE * parts;
    let (mut turns, mut applying) = (0, Box::pin(state.apply_in_turns(batch((1..=count).map(told).collect(), true), now)));
    let changed = std::future::poll_fn(|context| {
        let polled = applying.as_mut().poll(context);
        if polled.is_pending() {
            turns += 1;
            // Whoever has this turn sees nothing of it, not even by a pod that comes meanwhile.
            state.serve(named(0).as_str().into(), &"one".into(), &account());
            state.serve(named(1).as_str().into(), &"two".into(), &account());
            assert!(knows(&state, 0) && !knows(&state, 1) && !knows(&state, count), "turn {turns}");
        }
        polled
    })
    .await;
    assert_eq!(turns, parts - 1);
    let uids: Vec<WorkloadUid> = (1..=count).map(|n| named(n).as_str().into()).collect();
    assert_eq!(changed.workloads, uids);
    assert!(uids.iter().all(|uid| state.current().unwrap().mesh.workload(uid).is_some()));
    for (pod, n) in [("one", 0), ("two", 1)] {
        let published = state.current().unwrap();
        let workload = published.mesh.workload_by_pod(&pod.into()).unwrap();
        assert_eq!(workload.uid, named(n).as_str().into());
    }
    // And whoever comes after it is published at once.
    state.serve(named(2).as_str().into(), &"three".into(), &account());
    assert!(state.current().unwrap().mesh.workload_by_pod(&"three".into()).is_some());
}

/// Of a workload of which nothing else is told.
fn account() -> Arc<str> {
    Workload::new("u", "shop", "cart").service_account
}

#[test]
fn a_pod_is_no_former_one_of_its_name_with_another_account() {
    let told = |account: &str| {
        let mut workload = Workload::new("c//Pod/shop/cart", "shop", "cart");
        workload.service_account = account.into();
        Change::Mesh(Update::Workload(workload.into()))
    };
    let by = |state: &State, pod: &str| state.current().unwrap().mesh.workload_by_pod(&pod.into()).is_some();
    let (state, now) = (State::default(), clock::steady());
    state.apply(batch(vec![told("old")], true), now);
    state.serve("c//Pod/shop/cart".into(), &"one".into(), &"old".into());
    state.serve("c//Pod/shop/cart".into(), &"two".into(), &"new".into());
    assert!(by(&state, "one") && !by(&state, "two"), "it is not told of yet");
    state.apply(batch(vec![told("old")], true), now);
    assert!(!by(&state, "two"));
    state.apply(batch(vec![told("new")], true), now);
    assert!(by(&state, "two") && !by(&state, "one"));
}

#[test]
fn what_is_too_old_to_go_by_is_published_no_more() {
    let state = State::default();
    let now = clock::steady();
    state.apply(batch(vec![workload(TunnelProtocol::None)], true), now);
    state.apply(batch(vec![], false), now);
    assert!(state.current().is_none());
    state.apply(batch(vec![], true), now);
    assert!(state.current().unwrap().mesh.workload(&"u".into()).is_some());
}

#[test]
fn a_pod_is_known_by_its_name_where_its_source_does_not_tell_its_uid() {
    let told = |pod: Option<&str>| {
        let mut workload = Workload::new("c//Pod/shop/cart", "shop", "cart");
        workload.pod = pod.map(Into::into);
        Change::Mesh(Update::Workload(workload.into()))
    };
    let by = |state: &State, pod: &str| state.current().unwrap().mesh.workload_by_pod(&pod.into()).is_some();
    let now = clock::steady();
    // Whichever comes first.
    let state = State::default();
    state.apply(batch(vec![told(None)], true), now);
    state.serve("c//Pod/shop/cart".into(), &"one".into(), &account());
    assert!(by(&state, "one"));
    state.apply(batch(vec![told(None)], true), now);
    assert!(by(&state, "one"), "a change of it keeps that");
    // A new pod of the same name.
    state.let_go(&"one".into());
    state.serve("c//Pod/shop/cart".into(), &"two".into(), &account());
    state.apply(batch(vec![told(None)], true), now);
    assert!(by(&state, "two") && !by(&state, "one"));
    // A source that does tell it is believed.
    let state = State::default();
    state.apply(batch(vec![told(Some("one"))], true), now);
    state.serve("c//Pod/shop/cart".into(), &"other".into(), &account());
    assert!(by(&state, "one") && !by(&state, "other"));
    state.apply(batch(vec![told(Some("one"))], true), now);
    assert!(by(&state, "one") && !by(&state, "other"));
}

#[test]
fn a_published_version_never_changes() {
    let state = State::default();
    let now = clock::steady();
    state.apply(batch(vec![], true), now);
    let before = state.current().unwrap();
    let changed = state.apply(batch(vec![workload(TunnelProtocol::None)], true), now);
    assert_eq!(changed.workloads, ["u".into()]);
    assert!(changed.policies.is_empty() && before.mesh.workload(&"u".into()).is_none());
}

#[test]
fn a_change_of_the_way_settles_after_a_while() {
    let state = State::default();
    let start = clock::steady();
    let uid = "u".into();
    state.apply(batch(vec![workload(TunnelProtocol::None)], true), start);
    assert_eq!(
        state.settles_at(&uid),
        None,
        "a new workload that is not captured has changed nothing"
    );
    state.apply(batch(vec![workload(TunnelProtocol::Hbone)], true), start);
    assert_eq!(state.settles_at(&uid), Some(start + SETTLING));
    state.apply(batch(vec![workload(TunnelProtocol::Hbone)], true), start + SETTLING);
    assert_eq!(state.settles_at(&uid), None);
}

#[test]
fn what_never_comes_is_published_as_such_and_concerns_who_lists_it() {
    let state = State::default();
    let now = clock::steady();
    let lists = |uid: &str, key: &str| {
        Change::Mesh(Update::Workload(Arc::new(Workload {
            policies: vec![key.into()],
            ..Workload::new(uid, "shop", uid)
        })))
    };
    let changes = vec![lists("ports", "shop/converted_peer_authentication_p"), lists("late", "shop/late")];
    state.apply(batch(changes, true), now);
    assert!(state.current().unwrap().policies.is_waiting());
    let changed = state.stop_waiting();
    let published = state.current().unwrap();
    assert!(!published.policies.is_waiting());
    let concerned = ["ports", "late"].map(|uid| changed.policies.concerns(published.mesh.workload(&uid.into()).unwrap()));
    assert_eq!((concerned, changed.workloads.len()), ([true, false], 0));
    state.apply(batch(vec![], true), now);
    assert!(!state.current().unwrap().policies.is_waiting(), "it stays so");
}

#[test]
fn a_waypoint_that_leads_in_a_circle_is_told_and_refused_and_nothing_else_is() {
    let (state, now) = (State::default(), clock::steady());
    let named = |name: &str, ip: &str, waypoint: Option<&str>| {
        let mut workload = Workload::new(name, "shop", name);
        workload.addresses = vec![ip.parse().unwrap()];
        workload.tunnel = TunnelProtocol::Hbone;
        workload.waypoint = waypoint.map(|ip| ambient_core::GatewayAddress {
            target: ambient_core::GatewayTarget::Address(ambient_core::NetworkAddress::local(ip.parse().unwrap())),
            hbone_port: 15008,
        });
        Change::Mesh(Update::Workload(workload.into()))
    };
    let told = || -> Vec<String> { state.faults().iter().map(ToString::to_string).collect() };
    let user = named("user", "10.0.0.9", Some("10.0.0.1"));
    let (a, b) = (named("a", "10.0.0.1", Some("10.0.0.2")), named("b", "10.0.0.2", Some("10.0.0.1")));
    state.apply(batch(vec![named("client", "10.0.0.8", None), user, a.clone()], true), now);
    assert!(told().is_empty());
    state.apply(batch(vec![b.clone()], true), now);
    let faults = told();
    assert_eq!(faults.len(), 2, "each of the two is named, and not who only uses one: {faults:?}");
    assert!(faults[0].starts_with("a: waypoint: it leads back to a by b: "), "{faults:?}");
    assert!(faults[1].starts_with("b: waypoint: it leads back to b by a: "), "{faults:?}");
    // All is known still, and whoever uses one of the two goes by it.
    let current = state.current().unwrap();
    assert_eq!(current.mesh.workloads().count(), 4);
    let source = current.mesh.workload(&"client".into()).unwrap();
    let route = |to: &str| {
        let connection = ambient_core::route::Outbound {
            source,
            destination: to.parse().unwrap(),
        };
        ambient_core::route::outbound(&current.mesh, &connection, &ambient_core::route::Hints::default())
    };
    let ambient_core::route::Route::Refuse(refusal) = route("10.0.0.1:80") else {
        panic!("a is not refused")
    };
    assert_eq!(refusal.to_string(), "waypoint of a leads back to it by b");
    let ambient_core::route::Route::Go(ambient_core::route::Plan::Tunnel(tunnel)) = route("10.0.0.9:80") else {
        panic!("user is not reached")
    };
    assert_eq!(tunnel.peer, "10.0.0.1:15008".parse().unwrap());
    // What its source says is wrong stands beside it, and it goes with one of the two.
    let other = Batch {
        faults: Arc::from([Fault::from("else".to_owned())]),
        ..batch(vec![], true)
    };
    state.apply(other, now);
    assert_eq!((told().len(), &*told()[0]), (3, "else"));
    state.apply(batch(vec![Change::Mesh(Update::RemoveWorkload("b".into()))], true), now);
    assert!(told().is_empty());
    // Two that change places within one batch are never seen half way.
    state.apply(batch(vec![b, named("a", "10.0.0.1", None)], true), now);
    assert!(told().is_empty());
    let own = named("own", "10.0.0.3", Some("10.0.0.3"));
    state.apply(batch(vec![own], true), now);
    assert!(told()[0].starts_with("own: waypoint: it is its own: "), "{:?}", told());
}
