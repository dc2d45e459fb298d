//! What only one resource can have, and what none can.

use super::*;

/// A workload that is a pod, at an address.
fn of_pod(name: &str, pod: &str, ip: [u8; 4]) -> Resource {
    let uid = format!("c1//Pod/shop/{name}");
    let pod = crate::wire::ambient::control::v1::Pod {
        uid: pod.into(),
        ..Default::default()
    };
    let extension = workload::Extension {
        name: read::POD.into(),
        config: Some(Any {
            type_url: String::new(),
            value: pod.encode_to_vec(),
        }),
    };
    let workload = workload::Workload {
        uid: uid.clone(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![ip.to_vec()],
        extensions: vec![extension],
        ..workload::Workload::default()
    };
    named(&uid, 1, Kind::Address, &address(workload))
}

#[test]
fn two_workloads_are_not_one_pod() {
    let mut session = session();
    session.handle_opened(now());
    drain(&mut session);
    let (first, second) = (of_pod("a", "uid-1", [10, 0, 0, 1]), of_pod("b", "uid-1", [10, 0, 0, 2]));
    let other = of_pod("c", "uid-2", [10, 0, 0, 3]);
    let received = session.handle_whole(now(), response(Kind::Address, "n", vec![first, second.clone(), other], &[]));
    assert_eq!((received.changes.len(), received.refused.len()), (2, 1), "{received:?}");
    let why = "c1//Pod/shop/b: extensions[ambient.control.v1.Pod].uid: uid-1 is the pod of c1//Pod/shop/a already";
    assert!(received.refused[0].starts_with(why), "{received:?}");
    let answer = drain(&mut session).remove(0).error_detail.unwrap();
    assert!(answer.message.starts_with(why), "{answer:?}");
    assert!(session.faults()[0].what.starts_with(why));
    // Once the first is another pod, or gone, it may be.
    let received = session.handle_whole(
        now(),
        response(Kind::Address, "n", vec![of_pod("a", "uid-3", [10, 0, 0, 1]), second.clone()], &[]),
    );
    assert_eq!((received.changes.len(), received.refused.len()), (2, 0), "{received:?}");
    assert!(session.faults().is_empty());
    let gone = ["c1//Pod/shop/b".to_owned()];
    let received = session.handle_whole(
        now(),
        response(Kind::Address, "n", vec![of_pod("d", "uid-1", [10, 0, 0, 4])], &gone),
    );
    assert_eq!((received.changes.len(), received.refused.len()), (2, 0), "{received:?}");
    assert_eq!(session.kinds[0].pods.len(), session.held()[0]);
}

#[test]
fn of_texts_without_end_little_is_told_and_kept() {
    let mut session = session();
    session.handle_opened(now());
    drain(&mut session);
    let endless = "ä".repeat(1 << 20);
    let unlike = Resource {
        name: endless.clone(),
        ..resource(1, 1)
    };
    let mut foreign = resource(2, 1);
    foreign.resource.as_mut().unwrap().type_url = endless.clone();
    let received = session.handle_whole(now(), response(Kind::Address, "n", vec![unlike, foreign, resource(3, 1)], &[]));
    assert_eq!((received.changes.len(), received.refused.len()), (1, 2));
    // A policy that cannot be named refuses all the same.
    let named = |name: String| Resource { name, ..policy("p", 0) };
    let received_too = session.handle_whole(
        now(),
        response(Kind::Authorization, "n", vec![named(format!("shop/{endless}"))], &[]),
    );
    let [Change::Policy(ambient_authz::policy::Update::Unreadable(unreadable))] = &received_too.changes[..] else {
        panic!("it is taken, or passed over")
    };
    assert_eq!((&*unreadable.namespace, unreadable.error.len() < 2_000), ("shop", true));
    let mut sent = response(Kind::Address, "n", vec![], &[]);
    sent.type_url = endless;
    let unasked = session.handle_whole(now(), sent);
    let told = [received, received_too, unasked].into_iter().flat_map(|received| received.refused);
    let kept = session.faults().into_iter().map(|fault| fault.what);
    assert!(told.chain(kept).all(|text| text.len() < 5_000));
}

#[test]
fn what_was_cut_short_is_taken_back_by_its_whole_name() {
    let [mut session, mut restarted] = [session(), session()];
    session.handle_opened(now());
    let endless = "ä".repeat(1 << 16);
    let names = ["one", "other"].map(|end| format!("shop/{endless}-{end}"));
    let sent = names.clone().map(|name| Resource { name, ..policy("p", 0) });
    let received = session.handle_whole(now(), response(Kind::Authorization, "n", sent.into(), &[]));
    let key = |change: &Change| match change {
        Change::Policy(update) => update.key().clone(),
        other => panic!("{other:?}"),
    };
    let keys: Vec<PolicyKey> = received.changes.iter().map(key).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1], "one is not the other");
    let put = |entry| match entry {
        Entry::Put(kind, name, kept) => ((kind, name.to_string()), kept),
        other => panic!("{other:?}"),
    };
    restarted.remember(Remembered {
        resources: received.entries.into_iter().map(put).collect(),
        heard: None,
    });
    for session in [&mut session, &mut restarted] {
        session.handle_opened(now());
        let begun_with = &drain(session)[1].initial_resource_versions;
        assert!(keys.iter().all(|key| begun_with.contains_key(key.as_str())));
        // By what a new stream says of it, too.
        let gone = [names[0].clone(), keys[1].as_str().to_owned()];
        for (at, name) in gone.into_iter().enumerate() {
            let received = session.handle_whole(now(), response(Kind::Authorization, "n", vec![], &[name]));
            let [Change::Policy(ambient_authz::policy::Update::Remove(removed))] = &received.changes[..] else {
                panic!("{received:?}")
            };
            let [Entry::Remove(Kind::Authorization, forgotten)] = &received.entries[..] else {
                panic!("{received:?}")
            };
            assert_eq!((removed, &**forgotten), (&keys[at], keys[at].as_str()));
            assert_eq!(session.faults().len(), 1 - at);
        }
    }
}

#[test]
fn a_name_that_stands_twice_in_a_response_counts_once() {
    let mut session = session();
    session.handle_opened(now());
    let sent = vec![resource(1, 1), resource(2, 1), resource(1, 2), resource(2, 1), resource(3, 1)];
    let received = session.handle_whole(now(), response(Kind::Address, "n", sent, &[]));
    assert_eq!((received.changes.len(), received.refused.len()), (3, 1), "{received:?}");
    assert!(
        received.refused[0].starts_with("c1//Pod/shop/w-1: it came twice in one response"),
        "{received:?}"
    );
    let mesh = apply(&Mesh::default(), received.changes);
    assert_eq!(&*mesh.workload(&uid(1).as_str().into()).unwrap().canonical_revision, "1");
    assert!(session.faults()[0].what.ends_with("; its last good version stays in force"));
    // Sent again by itself it is as good as any.
    session.handle_whole(now(), response(Kind::Address, "n", vec![resource(1, 2)], &[]));
    assert!(session.faults().is_empty());
}

/// The control plane may come back with other names for all, as where its cluster was given one: what is reached at the same
/// addresses is not to stand beside what was there before.
#[test]
fn what_waits_to_be_removed_gives_way_to_whoever_has_its_address_or_is_its_pod() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    let vip = |name: &str| {
        let service = workload::Service {
            name: name.into(),
            namespace: "shop".into(),
            hostname: name.into(),
            addresses: vec![workload::NetworkAddress {
                address: vec![10, 9, 0, 1],
                ..workload::NetworkAddress::default()
            }],
            ..workload::Service::default()
        };
        let body = workload::Address {
            r#type: Some(workload::address::Type::Service(service)),
        };
        named(&format!("shop/{name}"), 1, Kind::Address, &body)
    };
    let all: Vec<_> = (1..9)
        .map(|n| of_pod(&n.to_string(), &format!("uid-{n}"), [10, 0, 0, n]))
        .chain([vip("old"), vip("older")])
        .collect();
    let names: Vec<String> = all.iter().map(|resource| resource.name.clone()).collect();
    session.handle_whole(now, response(Kind::Address, "n", all, &[]));
    session.handle_opened(now);
    let come = vec![of_pod("x", "uid-x", [10, 0, 0, 1]), of_pod("y", "uid-2", [10, 0, 1, 2]), vip("new")];
    let received = session.handle_whole(now, response(Kind::Address, "n", come, &names));
    assert_eq!(received.refused, [""; 0]);
    let removed: BTreeSet<String> = received
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Mesh(Update::RemoveWorkload(uid)) => Some(uid.to_string()),
            Change::Mesh(Update::RemoveService(name)) => Some(name.to_string()),
            _ => None,
        })
        .collect();
    let wanted = ["c1//Pod/shop/1", "c1//Pod/shop/2", "shop/old", "shop/older"].map(str::to_owned);
    assert_eq!(removed, BTreeSet::from(wanted));
    assert!(session.faults()[0].what.contains("without 6 of 10"), "{:?}", session.faults());
    assert_eq!(session.handle_timeout(now + GRACE).changes.len(), 6);
}

#[test]
fn whoever_is_refused_takes_nobodys_place() {
    let mut session = session();
    let now = now();
    session.handle_opened(now);
    let all: Vec<_> = (1..9).map(|n| of_pod(&n.to_string(), &format!("uid-{n}"), [10, 0, 0, n])).collect();
    let gone: Vec<String> = all[1..].iter().map(|resource| resource.name.clone()).collect();
    session.handle_whole(now, response(Kind::Address, "n", all, &[]));
    session.handle_opened(now);
    // It says to be the pod of one that stays, at the address of one that waits.
    let come = vec![of_pod("x", "uid-1", [10, 0, 0, 2])];
    let received = session.handle_whole(now, response(Kind::Address, "n", come, &gone));
    assert!(received.changes.is_empty() && received.refused.len() == 1, "{received:?}");
    assert_eq!(received.waiting, 7);
    // Whoever says rightly what it is has that place still.
    let come = vec![of_pod("x", "uid-x", [10, 0, 0, 2])];
    let received = session.handle_whole(now, response(Kind::Address, "n", come, &[]));
    assert!(
        matches!(&received.changes[..], [Change::Mesh(Update::RemoveWorkload(uid)), Change::Mesh(Update::Workload(_))] if *uid.as_str() == *gone[0]),
        "{received:?}"
    );
    assert_eq!(session.handle_timeout(now + GRACE).changes.len(), 6);
}
