//! A session against a server that knows the truth, over streams that break anywhere.

use std::collections::{BTreeMap, BTreeSet};

use ambient_core::{Mesh, mesh::Update};
use proptest::prelude::*;
use prost::Message;
use prost_types::Any;

use super::*;
use crate::wire::istio::{security, workload};

const GRACE: Duration = Duration::from_secs(30);
const SETTLING: Duration = Duration::from_secs(10);

mod claims;
mod opening;
mod refused;
mod trust;
mod truth;

#[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
fn now() -> Instant {
    Instant::now()
}

fn session() -> Session {
    Session::new(Settings {
        node: Node {
            id: "ztunnel~192.0.2.1~z.istio-system~istio-system.svc.cluster.local".into(),
            ..Node::default()
        },
        on_demand: false,
        trust: false,
        policies: ambient_authz::wire::Settings::default(),
        settling: SETTLING,
        grace: GRACE,
        longest_request: usize::MAX,
        remembers: true,
    })
}

fn uid(number: usize) -> String {
    format!("c1//Pod/shop/w-{number}")
}

/// A workload; one of the version 13 is unreadable.
fn resource(number: usize, version: u32) -> Resource {
    let workload = workload::Workload {
        uid: uid(number),
        name: format!("w-{number}"),
        namespace: "shop".into(),
        canonical_revision: version.to_string(),
        addresses: vec![
            vec![10, 0, 0, u8::try_from(number).unwrap()],
            vec![0; if version == 13 { 5 } else { 4 }],
        ],
        ..workload::Workload::default()
    };
    named(&uid(number), version, Kind::Address, &address(workload))
}

fn address(workload: workload::Workload) -> workload::Address {
    workload::Address {
        r#type: Some(workload::address::Type::Workload(workload)),
    }
}

fn policy(name: &str, action: i32) -> Resource {
    let body = security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: 1,
        action,
        ..security::Authorization::default()
    };
    named(&format!("shop/{name}"), 1, Kind::Authorization, &body)
}

fn named(name: &str, version: u32, kind: Kind, body: &impl Message) -> Resource {
    Resource {
        name: name.into(),
        version: version.to_string(),
        resource: Some(Any {
            type_url: kind.type_url().into(),
            value: body.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

fn response(kind: Kind, nonce: &str, resources: Vec<Resource>, removed: &[String]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.to_vec(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn drain(session: &mut Session) -> Vec<DeltaDiscoveryRequest> {
    std::iter::from_fn(|| session.poll_request()).collect()
}

#[test]
fn a_stream_begins_with_who_asks_and_for_what_and_answers_by_nonce() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    let first = drain(&mut session);
    let urls: Vec<&str> = first.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(urls, [Kind::Address, Kind::Authorization].map(Kind::type_url));
    for request in &first {
        assert!(request.node.as_ref().unwrap().id.starts_with("ztunnel~"));
        assert!(request.resource_names_subscribe.is_empty() && request.response_nonce.is_empty());
    }
    let received = session.handle_whole(now, response(Kind::Address, "n1", vec![resource(1, 1)], &[]));
    assert_eq!(received.changes.len(), 1);
    assert!(!session.is_synced(), "policies have not come");
    session.handle_whole(now, response(Kind::Authorization, "n2", vec![], &[]));
    assert!(session.is_synced());
    let answers = drain(&mut session);
    let said: Vec<_> = answers.iter().map(|r| (&*r.type_url, &*r.response_nonce)).collect();
    assert_eq!(said, [(Kind::Address.type_url(), "n1"), (Kind::Authorization.type_url(), "n2")]);
    assert!(answers.iter().all(|r| r.error_detail.is_none() && r.node.is_none()));
}

#[test]
fn what_cannot_be_read_is_refused_by_name_and_the_rest_counts() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    session.handle_whole(now, response(Kind::Address, "n0", vec![resource(2, 1)], &[]));
    drain(&mut session);
    let mixed = vec![resource(1, 1), resource(2, 13), resource(3, 1)];
    let received = session.handle_whole(now, response(Kind::Address, "n1", mixed, &[]));
    assert_eq!(received.changes.len(), 2);
    let [answer] = &drain(&mut session)[..] else { panic!() };
    let why = &answer.error_detail.as_ref().unwrap().message;
    assert_eq!(*why, format!("{}: addresses[1]: 5 bytes are no IP address: 4 or 16 are", uid(2)));
    let told = |session: &Session| session.faults().iter().map(ToString::to_string).collect::<Vec<_>>();
    let [fault] = &told(&session)[..] else {
        panic!("{:?}", session.faults())
    };
    assert!(
        fault.starts_with(&uid(2)) && fault.ends_with("; its last good version stays in force"),
        "{fault}"
    );
    // Of what was never good nothing can.
    session.handle_whole(now, response(Kind::Address, "n2", vec![resource(4, 13)], &[]));
    assert!(
        told(&session)[1].ends_with("; it does not count until it is mended"),
        "{:?}",
        session.faults()
    );
    session.handle_whole(now, response(Kind::Address, "n3", vec![resource(4, 1)], &[]));
    drain(&mut session);
    // On the next stream its version is not one that was accepted; it comes again, and all is well.
    session.handle_opened(now);
    assert_eq!(drain(&mut session)[0].initial_resource_versions[&uid(2)], "");
    session.handle_whole(now, response(Kind::Address, "n1", vec![resource(2, 2)], &[]));
    assert!(session.faults().is_empty());
}

#[test]
fn a_policy_that_cannot_be_read_refuses_what_it_would_apply_to() {
    let mut session = session();
    session.handle_opened(now());
    for (sent, why) in [
        (policy("p", 7), "action: 7 is not known"),
        (
            Resource {
                resource: Some(Any {
                    type_url: Kind::Authorization.type_url().into(),
                    value: vec![0xff; 3],
                }),
                ..policy("p", 0)
            },
            "no istio.security.Authorization",
        ),
        (
            Resource {
                name: "shop/other".into(),
                ..policy("p", 0)
            },
            "it is shop/p by what it says of itself",
        ),
    ] {
        let key = sent.name.clone();
        let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![sent], &[]));
        let [Change::Policy(ambient_authz::policy::Update::Unreadable(unreadable))] = &received.changes[..] else {
            panic!("{received:?}")
        };
        assert_eq!(unreadable.key.as_str(), key);
        assert_eq!(unreadable.scope, ambient_authz::Scope::Namespace);
        assert!(received.refused[0].contains(why), "{received:?}");
        let fault = session.faults();
        assert!(
            fault[0].what.ends_with("; everything in its scope is refused until it is mended"),
            "{fault:?}"
        );
        assert_eq!(fault[0].policy.as_ref().unwrap().as_str(), key);
        // Taken back, it refuses nothing any more.
        let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![], &[key]));
        assert!(
            matches!(&received.changes[..], [Change::Policy(ambient_authz::policy::Update::Remove(_))]),
            "{received:?}"
        );
        assert!(session.faults().is_empty());
    }
}

#[test]
fn a_control_plane_that_comes_back_empty_is_not_believed_at_once() {
    let mut session = session();
    let start = now();
    let all: Vec<usize> = (0..10).collect();
    session.handle_opened(start);
    session.handle_whole(
        start,
        response(Kind::Address, "n", all.iter().map(|n| resource(*n, 1)).collect(), &[]),
    );
    // Long after the stream was opened they go at once, however many they are.
    let later = start + SETTLING;
    let names: Vec<String> = [0, 1].map(uid).into();
    assert_eq!(
        session
            .handle_whole(later, response(Kind::Address, "n", vec![], &names))
            .changes
            .len(),
        2
    );

    session.handle_closed();
    session.handle_opened(later);
    let names: Vec<String> = (2..10).map(uid).collect();
    let received = session.handle_whole(later, response(Kind::Address, "n", vec![], &names));
    assert!(received.changes.is_empty() && received.waiting == 8, "{received:?}");
    assert!(session.faults()[0].what.contains("without 8 of 8"), "{:?}", session.faults());
    // One comes again: it was never gone.
    session.handle_whole(later, response(Kind::Address, "n", vec![resource(5, 2)], &[]));
    assert_eq!(session.timeout(), Some(later + GRACE));
    assert!(session.handle_timeout(later + GRACE - Duration::from_millis(1)).changes.is_empty());
    assert_eq!(session.handle_timeout(later + GRACE).changes.len(), 7);
    assert_eq!(session.held()[0], 1);
    assert!(session.faults().is_empty() && session.timeout().is_none());
}

/// As where certificates are renewed more often than that, and a stream with each.
#[test]
fn what_is_missed_on_one_stream_after_the_other_waits_once() {
    let mut session = session();
    let start = now();
    session.handle_opened(start);
    session.handle_whole(start, response(Kind::Address, "n", (0..4).map(|n| resource(n, 1)).collect(), &[]));
    let names: Vec<String> = (0..4).map(uid).collect();
    let missed = |session: &mut Session, now| {
        session.handle_closed();
        session.handle_opened(now);
        let received = session.handle_whole(now, response(Kind::Address, "n", vec![], &names));
        assert!(received.changes.is_empty() && received.waiting == 4, "{received:?}");
    };
    let first = start + SETTLING;
    for stream in 0..3 {
        let now = first + stream * GRACE / 3;
        missed(&mut session, now);
        assert_eq!(session.timeout(), Some(first + GRACE), "{stream}");
    }
    // It is over while there is no stream.
    let late = first + GRACE + Duration::from_secs(1);
    missed(&mut session, late);
    assert_eq!(session.handle_timeout(late).changes.len(), 4);
    // Another time it waits anew: where they were there again, and where it is long ago.
    session.handle_whole(late, response(Kind::Address, "n", (0..4).map(|n| resource(n, 2)).collect(), &[]));
    missed(&mut session, late);
    assert_eq!(session.timeout(), Some(late + GRACE));
    session.handle_whole(late, response(Kind::Address, "n", (0..4).map(|n| resource(n, 3)).collect(), &[]));
    missed(&mut session, late + Duration::from_secs(1));
    assert_eq!(session.timeout(), Some(late + Duration::from_secs(1) + GRACE));
    missed(&mut session, late + 4 * GRACE);
    assert_eq!(session.timeout(), Some(late + 5 * GRACE));
}

/// As of a control plane that starts again and again, or of two of which one has lost its memory.
#[test]
fn what_was_there_again_on_a_stream_between_waits_anew_when_it_is_missed() {
    let all = |version| (0..4).map(|n| resource(n, version)).collect::<Vec<_>>();
    let names: Vec<String> = (0..4).map(uid).collect();
    // It is told again, or not at all where its versions are right.
    for between in [all(2), Vec::new()] {
        let mut session = session();
        let start = now();
        session.handle_opened(start);
        session.handle_whole(start, response(Kind::Address, "n", all(1), &[]));
        for (at, told) in [
            (SETTLING, None),
            (SETTLING + GRACE / 3, Some(between)),
            (SETTLING + GRACE * 7 / 6, None),
        ] {
            let now = start + at;
            session.handle_closed();
            session.handle_opened(now);
            let is_missed = told.is_none();
            let gone = if is_missed { &*names } else { &[] };
            let received = session.handle_whole(now, response(Kind::Address, "n", told.unwrap_or_default(), gone));
            assert_eq!(received.waiting, if is_missed { 4 } else { 0 });
            assert_eq!(session.timeout(), is_missed.then_some(now + GRACE));
        }
    }
}

#[test]
fn what_the_first_stream_takes_back_is_gone_at_once() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    session.handle_whole(now, response(Kind::Address, "n", (0..4).map(|n| resource(n, 1)).collect(), &[]));
    let names: Vec<String> = (0..4).map(uid).collect();
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![], &names));
    assert_eq!((received.changes.len(), received.waiting), (4, 0));
}

#[test]
fn all_services_are_many_however_many_workloads_stay() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    let mut all: Vec<Resource> = (0..20).map(|n| resource(n, 1)).collect();
    all.extend((0..3).map(|n| service(&format!("s{n}.shop"), "")));
    session.handle_whole(now, response(Kind::Address, "n", all, &[]));
    session.handle_opened(now);
    let names: Vec<String> = (0..3).map(|n| format!("shop/s{n}.shop")).chain([uid(1)]).collect();
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![], &names));
    assert_eq!((received.changes.len(), received.waiting), (1, 3), "the one workload goes at once");
}

#[test]
fn single_removals_never_wait() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    session.handle_whole(now, response(Kind::Address, "n", vec![resource(1, 1)], &[]));
    session.handle_opened(now);
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![], &[uid(1)]));
    assert_eq!(received.changes.len(), 1);
}

#[test]
fn removals_that_wait_are_forgotten_with_their_stream_and_said_again_by_the_next() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    session.handle_whole(now, response(Kind::Address, "n", (0..4).map(|n| resource(n, 1)).collect(), &[]));
    session.handle_opened(now);
    let names: Vec<String> = (0..4).map(uid).collect();
    session.handle_whole(now, response(Kind::Address, "n", vec![], &names));
    session.handle_opened(now);
    assert!(session.timeout().is_none());
    assert_eq!(drain(&mut session)[0].initial_resource_versions.len(), 4);
}

#[test]
fn asked_one_by_one_names_are_answered_by_resource_alias_or_absence() {
    let mut session = session();
    session.settings.on_demand = true;
    let now = now();
    assert_eq!(session.ask("n1/10.0.0.1"), Ask::Asked);
    session.handle_opened(now);
    let first = drain(&mut session);
    assert_eq!(first[0].resource_names_subscribe, ["*", "n1/10.0.0.1"]);
    assert_eq!(first[0].resource_names_unsubscribe, ["*"]);
    assert_eq!(first[0].initial_resource_versions["n1/10.0.0.1"], "");
    assert!(first[1].resource_names_subscribe.is_empty(), "policies are sent whole");
    session.ask("n1/10.0.0.2");
    session.ask("n1/10.0.0.2");
    let asked = drain(&mut session);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].resource_names_subscribe, ["n1/10.0.0.2"]);
    let found = Resource {
        aliases: vec!["n1/10.0.0.1".into()],
        ..resource(1, 1)
    };
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![found], &["n1/10.0.0.2".into()]));
    assert_eq!(received.answered, ["n1/10.0.0.2", "n1/10.0.0.1"]);
    assert_eq!(session.ask("n1/10.0.0.1"), Ask::Answered);
    drain(&mut session);
    // The next stream begins with all that is subscribed to, and says what is known of it.
    session.handle_opened(now);
    let first = &drain(&mut session)[0];
    assert_eq!(first.resource_names_subscribe, ["*", "n1/10.0.0.1", "n1/10.0.0.2"]);
    let versions = &first.initial_resource_versions;
    let known = [(&*uid(1), "1"), ("n1/10.0.0.1", "1"), ("n1/10.0.0.2", "")];
    assert_eq!(versions.len(), known.len());
    assert!(known.iter().all(|(name, version)| versions[*name] == *version), "{versions:?}");
}

/// Control planes send nothing of what they are told is known in its present version, also to who asks for it by another name.
#[test]
fn what_is_known_and_asked_for_by_another_name_is_answered_on_the_next_stream() {
    let mut session = session();
    session.settings.on_demand = true;
    let now = now();
    session.handle_opened(now);
    session.handle_whole(
        now,
        response(Kind::Address, "n", vec![endpoint(1, "shop/a", ""), endpoint(2, "shop/a", "")], &[]),
    );
    assert_eq!(session.ask("/10.0.0.1"), Ask::Asked);
    session.handle_opened(now);
    let versions = &drain(&mut session)[0].initial_resource_versions;
    let known = [(&*uid(1), ""), ("/10.0.0.1", ""), (&*uid(2), "1")];
    assert_eq!(versions.len(), known.len());
    assert!(known.iter().all(|(name, version)| versions[*name] == *version), "{versions:?}");
    let received = session.handle_whole(now, response(Kind::Address, "n", vec![endpoint(1, "shop/a", "")], &[]));
    assert_eq!(received.answered, ["/10.0.0.1"]);
    session.handle_opened(now);
    assert_eq!(drain(&mut session)[0].initial_resource_versions[&uid(1)], "1");
}

/// A control plane that sends a service by its address has subscribed the client to it by its name, and never says it again.
#[test]
fn what_came_by_another_name_is_known_by_its_own() {
    let mut session = session();
    session.settings.on_demand = true;
    let now = now();
    session.handle_opened(now);
    session.ask("/10.96.0.1");
    let came = Resource {
        aliases: vec!["/10.96.0.1".into()],
        ..service("a", "10.96.0.1")
    };
    session.handle_whole(now, response(Kind::Address, "n", vec![came], &[]));
    drain(&mut session);
    assert_eq!(session.ask("shop/a"), Ask::Answered);
    assert_eq!(
        drain(&mut session)[0].resource_names_subscribe,
        ["shop/a"],
        "for others, who keep the two apart"
    );
    // It is held for its own name too.
    let received = session.give_back(&["/10.96.0.1".into()]);
    assert!(received.changes.is_empty());
    assert!(!session.give_back(&["shop/a".into()]).changes.is_empty());
}

/// An endpoint of a service, on a node.
fn endpoint(number: usize, service: &str, node: &str) -> Resource {
    let workload = workload::Workload {
        uid: uid(number),
        name: format!("w-{number}"),
        namespace: "shop".into(),
        node: node.into(),
        addresses: vec![vec![10, 0, 0, u8::try_from(number).unwrap()]],
        services: [(service.to_owned(), workload::PortList::default())].into(),
        ..workload::Workload::default()
    };
    Resource {
        aliases: vec![format!("/10.0.0.{number}")],
        ..named(&uid(number), 1, Kind::Address, &address(workload))
    }
}

fn service(hostname: &str, vip: &str) -> Resource {
    let service = workload::Service {
        name: hostname.into(),
        namespace: "shop".into(),
        hostname: hostname.into(),
        ..workload::Service::default()
    };
    let body = workload::Address {
        r#type: Some(workload::address::Type::Service(service)),
    };
    Resource {
        aliases: vec![vip.into()],
        ..named(&format!("shop/{hostname}"), 1, Kind::Address, &body)
    }
}

#[test]
fn what_is_given_back_goes_with_what_only_it_was_held_for() {
    let mut session = session();
    session.settings.on_demand = true;
    session.settings.node.metadata = Some(node_name("here"));
    let now = now();
    session.handle_opened(now);
    for name in ["/10.9.0.1", "/10.0.0.2", "/10.0.0.9"] {
        session.ask(name);
    }
    drain(&mut session);
    let sent = vec![
        service("web", "/10.9.0.1"),
        endpoint(1, "shop/web", "there"),
        endpoint(2, "shop/web", "there"),
        endpoint(3, "shop/web", "here"),
    ];
    session.handle_whole(now, response(Kind::Address, "n", sent, &["/10.0.0.9".into()]));
    assert_eq!(session.held()[0], 4);
    drain(&mut session);
    let gone = |received: Received| -> Vec<String> {
        let mut names: Vec<_> = received
            .entries
            .iter()
            .map(|entry| match entry {
                Entry::Remove(_, name) => name.to_string(),
                Entry::Put(..) => panic!("{entry:?}"),
            })
            .collect();
        assert_eq!(received.changes.len(), names.len());
        names.sort();
        names
    };
    // An absence is given back like anything else, and what was never asked for is not.
    assert!(gone(session.give_back(&["/10.0.0.9".into(), "/10.0.0.8".into()])).is_empty());
    assert_eq!(drain(&mut session)[0].resource_names_unsubscribe, ["/10.0.0.9"]);
    // With the service goes its endpoint, but not the one that was asked for itself, nor this node's own.
    let received = session.give_back(&["/10.9.0.1".into()]);
    assert_eq!(gone(received), [&*uid(1), "shop/web"]);
    let mut unsubscribed = drain(&mut session).remove(0).resource_names_unsubscribe;
    unsubscribed.sort();
    assert_eq!(unsubscribed, ["/10.9.0.1", &*uid(1), "shop/web"]);
    let received = session.give_back(&["/10.0.0.2".into()]);
    assert_eq!(gone(received), [uid(2)]);
    assert_eq!(session.held()[0], 1);
    assert_eq!(session.ask("/10.9.0.1"), Ask::Asked, "it may be asked for again");
}

fn node_name(name: &str) -> prost_types::Struct {
    let value = prost_types::value::Kind::StringValue(name.into());
    prost_types::Struct {
        fields: [("NODE_NAME".to_owned(), prost_types::Value { kind: Some(value) })].into(),
    }
}

#[test]
fn asked_one_by_one_all_is_known_once_policies_are() {
    let mut session = session();
    session.settings.on_demand = true;
    session.handle_opened(now());
    assert!(!session.is_synced());
    session.handle_whole(now(), response(Kind::Authorization, "n", vec![], &[]));
    assert!(session.is_synced());
}

#[test]
fn too_much_is_neither_asked_for_nor_remembered_nor_said() {
    let mut session = session();
    for n in 0..needed::ASKED {
        assert_eq!(session.ask(&n.to_string()), Ask::Asked);
    }
    assert_eq!(session.ask("one more"), Ask::TooMany);
    session.handle_opened(now());
    drain(&mut session);
    let bad = |n: usize| Resource {
        name: format!("bad-{n}"),
        ..Resource::default()
    };
    let many: Vec<Resource> = (0..REFUSED + 10).map(bad).collect();
    session.handle_whole(now(), response(Kind::Address, "n", many, &[]));
    assert_eq!(session.faults().len(), REFUSED);
    let message = &drain(&mut session)[0].error_detail.clone().unwrap().message;
    assert!(message.len() < MESSAGE + 100 && message.ends_with(" more"), "{message}");
}

/// What was refused in place of a policy refuses others: it is taken back by its name, however many there are.
#[test]
fn a_refused_policy_is_taken_back_however_many_there_are() {
    let mut session = session();
    session.handle_opened(now());
    let name = |n: usize| format!("shop/p-{n}");
    let many = (0..REFUSED + 10).map(|n| policy(&format!("p-{n}"), 7)).collect();
    let received = session.handle_whole(now(), response(Kind::Authorization, "n", many, &[]));
    assert_eq!(received.changes.len(), REFUSED + 10);
    let faults = session.faults();
    assert_eq!(faults.len(), REFUSED + 1);
    let rest = "10 more authorization policies were refused: everything in their scopes is refused until they are mended";
    assert!(faults.iter().any(|fault| fault.what == rest), "{:?}", faults[0]);
    // The next stream begins with all of them: it would not say otherwise that one is gone.
    drain(&mut session);
    session.handle_opened(now());
    let first = drain(&mut session).pop().unwrap();
    assert_eq!(first.initial_resource_versions.len(), REFUSED + 10);
    for n in [0, REFUSED + 9, REFUSED] {
        let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![], &[name(n)]));
        let [Change::Policy(ambient_authz::policy::Update::Remove(key))] = &received.changes[..] else {
            panic!("{n}: {:?}", received.changes)
        };
        assert_eq!(key.as_str(), name(n));
        assert!(matches!(&received.entries[..], [Entry::Remove(Kind::Authorization, _)]), "{n}");
    }
    // One that is mended is none of them any more.
    session.handle_whole(now(), response(Kind::Authorization, "n", vec![policy("p-10005", 0)], &[]));
    assert!(session.faults().iter().any(|fault| fault.what.starts_with("7 more ")));
}

/// Whatever comes next under the name of a refused policy: what stands in its place goes with that name.
#[test]
fn a_refused_policy_is_taken_back_after_what_is_no_policy() {
    let mut session = session();
    session.handle_opened(now());
    session.handle_whole(now(), response(Kind::Authorization, "n", vec![policy("p", 7)], &[]));
    let empty = Resource {
        resource: None,
        version: "2".into(),
        ..policy("p", 7)
    };
    session.handle_whole(now(), response(Kind::Authorization, "n", vec![empty], &[]));
    let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![], &["shop/p".into()]));
    assert!(
        matches!(&received.changes[..], [Change::Policy(ambient_authz::policy::Update::Remove(_))]),
        "{received:?}"
    );
    assert!(session.faults().is_empty());
}

#[test]
fn what_was_not_asked_for_changes_nothing() {
    let mut session = session();
    session.handle_opened(now());
    drain(&mut session);
    let mut sent = response(Kind::Address, "n", vec![resource(1, 1)], &[]);
    sent.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    let received = session.handle_whole(now(), sent);
    assert!(received.changes.is_empty() && received.refused.len() == 1);
    // An ACK or a NACK would be the first request of its type on this stream: it would subscribe to all of it.
    assert!(drain(&mut session).is_empty());
    // Nor what is another thing than it was announced as.
    let mut sent = resource(1, 1);
    sent.resource.as_mut().unwrap().type_url = Kind::Authorization.type_url().into();
    let received = session.handle_whole(now(), response(Kind::Address, "n", vec![sent], &[]));
    assert!(received.changes.is_empty() && received.refused.len() == 1);
}

#[test]
fn two_names_of_one_workload_are_not_both_taken() {
    let mut session = session();
    session.handle_opened(now());
    let shouted = Resource {
        name: uid(1).to_uppercase(),
        ..resource(1, 1)
    };
    let received = session.handle_whole(now(), response(Kind::Address, "n", vec![resource(1, 1), shouted], &[]));
    assert_eq!((received.changes.len(), received.refused.len()), (1, 1), "{received:?}");
    let received = session.handle_whole(now(), response(Kind::Address, "n", vec![], &[uid(1).to_uppercase()]));
    assert!(received.changes.is_empty(), "the one that was taken stays");
}

#[test]
fn what_is_refused_and_sent_again_for_ever_costs_one_answer_each() {
    let mut session = session();
    session.handle_opened(now());
    session.handle_whole(now(), response(Kind::Address, "n", vec![resource(1, 1)], &[]));
    drain(&mut session);
    for n in 0..1000 {
        let nonce = n.to_string();
        let received = session.handle_whole(now(), response(Kind::Address, &nonce, vec![resource(1, 13)], &[]));
        assert!(received.changes.is_empty() && received.entries.is_empty());
        let [answer] = &drain(&mut session)[..] else { panic!("one answer") };
        assert_eq!((&*answer.response_nonce, answer.error_detail.is_some()), (&*nonce, true));
    }
    assert_eq!((session.faults().len(), session.held()[0]), (1, 1));
}

proptest! {
    /// Responses may come twice, and those of one type before or after those of the other: what is known in the end is what
    /// the last word of each was.
    #[test]
    fn doubles_and_the_order_between_types_change_nothing(said in prop::collection::vec((0..6usize, prop::option::of(1..9u32), any::<bool>(), any::<bool>()), 0..60)) {
        let mut session = session();
        session.handle_opened(now());
        let (mut truth, mut policies) = (BTreeMap::new(), BTreeSet::new());
        let (mut mesh, mut set) = (Mesh::default(), BTreeSet::new());
        for (at, (n, version, is_policy, twice)) in said.into_iter().enumerate() {
            let (kind, sent) = match is_policy {
                true => (Kind::Authorization, policy(&n.to_string(), 0)),
                false => (Kind::Address, resource(n, version.unwrap_or_default())),
            };
            let sent = match version {
                Some(_) => response(kind, &at.to_string(), vec![sent], &[]),
                None => response(kind, &at.to_string(), vec![], &[sent.name]),
            };
            match (is_policy, version) {
                (true, Some(_)) => drop(policies.insert(format!("shop/{n}"))),
                (true, None) => drop(policies.remove(&format!("shop/{n}"))),
                (false, Some(version)) => drop(truth.insert(uid(n), version.to_string())),
                (false, None) => drop(truth.remove(&uid(n))),
            }
            for _ in 0..if twice { 2 } else { 1 } {
                for change in session.handle_whole(now(), sent.clone()).changes {
                    match change {
                        Change::Mesh(update) => mesh = mesh.apply([update]),
                        Change::Policy(ambient_authz::policy::Update::Set(policy)) => drop(set.insert(policy.key.to_string())),
                        Change::Policy(ambient_authz::policy::Update::Remove(key)) => drop(set.remove(key.as_str())),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        let held: BTreeMap<_, _> = mesh.workloads().map(|w| (w.uid.to_string(), w.canonical_revision.to_string())).collect();
        prop_assert_eq!(held, truth);
        prop_assert_eq!(set, policies);
    }
}

fn apply(mesh: &Mesh, changes: Vec<Change>) -> Mesh {
    mesh.apply(changes.into_iter().filter_map(|change| match change {
        Change::Mesh(update @ (Update::Workload(_) | Update::RemoveWorkload(_))) => Some(update),
        _ => None,
    }))
}
