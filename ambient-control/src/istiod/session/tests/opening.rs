//! Of streams that begin with less than is held.

use super::*;

fn removed(changes: &[Change]) -> Vec<String> {
    let names = changes.iter().filter_map(|change| match change {
        Change::Mesh(Update::RemoveWorkload(uid)) => Some(uid.to_string()),
        Change::Mesh(Update::RemoveService(name)) => Some(name.to_string()),
        Change::Policy(ambient_authz::policy::Update::Remove(key)) => Some(key.to_string()),
        _ => None,
    });
    names.collect()
}

/// A session that holds some workloads, of which a new stream may name what fits into so many bytes less than all.
fn holding(workloads: usize, less: usize) -> (Session, Instant) {
    let (mut session, now) = (session(), now());
    session.handle_opened(now);
    let all = (0..workloads).map(|n| resource(n, 1)).collect();
    session.handle_whole(now, response(Kind::Address, "n", all, &[]));
    session.handle_opened(now);
    session.settings.longest_request = drain(&mut session)[0].encoded_len() - less;
    session.handle_opened(now);
    (session, now)
}

#[test]
fn a_first_request_names_all_that_is_held_or_is_as_short_as_can_be() {
    let (mut session, _) = holding(10, 0);
    let first = drain(&mut session);
    assert_eq!(first[0].initial_resource_versions.len(), 10);
    assert_eq!(first[0].encoded_len(), session.settings.longest_request);
    let (mut session, _) = holding(10, 1);
    let first = drain(&mut session);
    assert!(first[0].initial_resource_versions.is_empty(), "{first:?}");
    assert!(first[0].node.is_some() && first[0].resource_names_subscribe.is_empty());
    assert_eq!(first.len(), 2);
}

#[test]
fn what_a_stream_did_not_begin_with_and_is_not_told_is_missed_for_a_while() {
    let (mut session, now) = holding(10, 1);
    assert_eq!(session.timeout(), None, "nothing is missed before anything was told");
    assert!(session.faults().is_empty());
    let told = (2..10).map(|n| resource(n, 2)).collect();
    let received = session.handle_whole(now, response(Kind::Address, "n", told, &[]));
    assert_eq!((received.changes.len(), received.waiting), (8, 0));
    assert_eq!(removed(&received.changes), [""; 0], "what is there is there all the time");
    assert_eq!(session.timeout(), Some(now + GRACE));
    assert!(session.faults().is_empty(), "two of ten are nothing to tell of");
    // One is told late: it was never gone.
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![resource(1, 1)], &[]));
    assert_eq!(received.changes.len(), 1);
    assert_eq!(removed(&session.handle_timeout(now + GRACE).changes), [uid(0)]);
    assert_eq!((session.held()[0], session.timeout()), (9, None));
}

#[test]
fn much_that_is_missed_is_told_and_waits_once() {
    let (mut session, now) = holding(10, 1);
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![resource(0, 1)], &[]));
    assert_eq!(received.waiting, 9);
    assert!(session.faults()[0].what.contains("without 9 of 10"), "{:?}", session.faults());
    // Missed on the next stream too, it waits no longer for that.
    let later = now + GRACE / 2;
    session.handle_opened(later);
    session.handle_whole(later, response(Kind::Address, "n", vec![resource(0, 1)], &[]));
    assert_eq!(session.timeout(), Some(now + GRACE));
    assert_eq!(session.handle_timeout(now + GRACE).changes.len(), 9);
}

#[test]
fn what_is_missed_makes_room_for_what_comes_with_it() {
    let (mut session, now) = holding(10, 1);
    let mut told: Vec<_> = (1..10).map(|n| resource(n, 1)).collect();
    // A new one, at the address of one that is gone.
    told.insert(
        0,
        Resource {
            name: uid(20),
            ..named(
                &uid(20),
                1,
                Kind::Address,
                &address(workload::Workload {
                    uid: uid(20),
                    name: "w-20".into(),
                    namespace: "shop".into(),
                    addresses: vec![vec![10, 0, 0, 0]],
                    ..workload::Workload::default()
                }),
            )
        },
    );
    let received = session.handle_whole(now, response(Kind::Address, "n", told, &[]));
    assert_eq!(removed(&received.changes), [uid(0)]);
    assert_eq!((session.held()[0], session.timeout()), (10, None));
}

#[test]
fn what_was_refused_and_is_not_told_refuses_nobody_any_more() {
    let (mut session, now) = (session(), now());
    session.handle_opened(now);
    session.handle_whole(now, response(Kind::Authorization, "n", vec![policy("p", 7), policy("q", 0)], &[]));
    session.settings.longest_request = 0;
    session.handle_opened(now);
    assert!(drain(&mut session)[1].initial_resource_versions.is_empty());
    let received = session.handle_whole(now, response(Kind::Authorization, "n", vec![policy("q", 0)], &[]));
    assert_eq!(removed(&received.changes), [""; 0], "it refuses until it is known to be gone");
    assert_eq!(session.faults().len(), 1);
    let received = session.handle_timeout(now + GRACE);
    assert_eq!(removed(&received.changes), ["shop/p"]);
    assert!(session.faults().is_empty());
}

/// What is asked for by name is told in as many answers as there are requests, or in more: before the last nothing is missed.
#[test]
fn asked_one_by_one_nothing_is_missed_before_every_name_is_answered() {
    let mut session = session();
    session.settings.on_demand = true;
    let now = now();
    session.handle_opened(now);
    for n in 0..10 {
        session.ask(&format!("/10.0.0.{n}"));
    }
    let all = (0..10).map(|n| resource(n, 1)).collect();
    session.handle_whole(now, response(Kind::Address, "n", all, &[]));
    drain(&mut session);
    session.settings.longest_request = 150;
    session.handle_opened(now);
    let requests: Vec<_> = drain(&mut session)
        .into_iter()
        .filter(|r| r.type_url == Kind::Address.type_url())
        .collect();
    assert!(requests.len() > 1, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|r| r.encoded_len() <= 150 && r.initial_resource_versions.is_empty())
    );
    let asked: Vec<&String> = requests.iter().flat_map(|r| &r.resource_names_subscribe).collect();
    assert_eq!((asked.len(), asked[0].as_str()), (11, "*"));
    let some = (0..6).map(|n| resource(n, 1)).collect();
    let received = session.handle_whole(now, response(Kind::Address, "n", some, &[]));
    assert_eq!((removed(&received.changes), session.timeout()), (vec![], None));
    let some = (6..9).map(|n| resource(n, 1)).collect();
    let received = session.handle_whole(now, response(Kind::Address, "n", some, &["/10.0.0.9".into()]));
    assert_eq!((removed(&received.changes), session.timeout()), (vec![], Some(now + GRACE)));
    assert_eq!(removed(&session.handle_timeout(now + GRACE).changes), [uid(9)]);
}

#[test]
fn what_is_given_back_is_so_in_requests_that_are_taken() {
    let mut session = session();
    session.settings.on_demand = true;
    session.handle_opened(now());
    let names: Vec<String> = (0..50).map(|n| format!("/10.0.0.{n}")).collect();
    for name in &names {
        session.ask(name);
    }
    drain(&mut session);
    session.settings.longest_request = 150;
    session.give_back(&names);
    let requests = drain(&mut session);
    assert!(requests.len() > 2 && requests.iter().all(|r| r.encoded_len() <= 150));
    assert_eq!(requests.iter().flat_map(|r| &r.resource_names_unsubscribe).count(), 50);
}
