//! Roots and revocations.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;
use crate::wire::ambient::control::v1 as own;

fn root() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn domain(name: &str, version: u32, roots: &[Vec<u8>]) -> Resource {
    let body = own::Trust {
        roots: roots.to_vec(),
        crls: Vec::new(),
    };
    named(name, version, Kind::Trust, &body)
}

fn asking() -> Session {
    let mut settings = session().settings;
    settings.trust = true;
    let mut session = Session::new(settings);
    session.handle_opened(now());
    session
}

/// The roots of each domain by the last change.
fn trusted(received: &Received) -> Vec<(String, usize)> {
    let last = received.changes.iter().rev().find_map(|change| match change {
        Change::Trust(trust) => Some(trust),
        _ => None,
    });
    let of = |trust: &Arc<TrustBundles>| trust.domains().map(|one| (one.to_string(), trust.roots(one).len())).collect();
    last.map(of).unwrap_or_default()
}

#[test]
fn they_are_asked_for_where_that_is_wanted_and_are_part_of_the_whole() {
    let mut session = asking();
    let urls: Vec<_> = drain(&mut session).into_iter().map(|request| request.type_url).collect();
    assert_eq!(urls, Kind::ALL.map(Kind::type_url));
    for kind in [Kind::Address, Kind::Authorization] {
        session.handle_whole(now(), response(kind, "n", vec![], &[]));
    }
    assert!(!session.is_synced(), "whom to trust has not come");
    let both = [domain("a.example", 1, &[root(), root()]), domain("b.example", 1, &[root()])];
    let received = session.handle_whole(now(), response(Kind::Trust, "n", both.into(), &[]));
    assert!(session.is_synced());
    assert_eq!(trusted(&received), [("a.example".into(), 2), ("b.example".into(), 1)]);
    // What is said of one leaves the other.
    let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![domain("a.example", 2, &[root()])], &[]));
    assert_eq!(trusted(&received), [("a.example".into(), 1), ("b.example".into(), 1)]);
    let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![], &["b.example".into()]));
    assert_eq!(trusted(&received), [("a.example".into(), 1)]);
    // The next stream begins with what is known.
    session.handle_opened(now());
    let last = drain(&mut session).pop().unwrap();
    assert_eq!(last.initial_resource_versions, [("a.example".to_owned(), "2".to_owned())].into());
}

#[test]
fn the_only_domain_may_give_way_to_another_in_one_response() {
    let mut session = asking();
    session.handle_whole(now(), response(Kind::Trust, "n", vec![domain("a.example", 1, &[root()])], &[]));
    drain(&mut session);
    let other = vec![domain("b.example", 1, &[root()])];
    let received = session.handle_whole(now(), response(Kind::Trust, "m", other, &["a.example".into()]));
    assert_eq!(trusted(&received), [("b.example".into(), 1)]);
    assert!(received.refused.is_empty(), "{:?}", received.refused);
    assert_eq!(drain(&mut session).pop().unwrap().error_detail, None);
    // One that comes and goes at once is there.
    let both = vec![domain("b.example", 2, &[root(), root()])];
    let received = session.handle_whole(now(), response(Kind::Trust, "o", both, &["b.example".into()]));
    assert_eq!(trusted(&received), [("b.example".into(), 2)]);
}

#[test]
fn what_is_garbage_or_would_leave_nobody_changes_nothing() {
    let mut session = asking();
    session.handle_whole(now(), response(Kind::Trust, "n", vec![domain("a.example", 1, &[root()])], &[]));
    drain(&mut session);
    let bad_crl = own::Trust {
        roots: vec![root()],
        crls: vec![vec![0x30, 0]],
    };
    let leaf = CertificateParams::default();
    let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let cases = [
        (domain("a.example", 2, &[]), "roots: there is none"),
        (domain("a.example", 2, &[root(), vec![1]]), "roots[1]: "),
        (
            domain("a.example", 2, &[leaf]),
            "roots[0]: it is not the certificate of an authority",
        ),
        (domain("A b", 2, &[root()]), "its name: "),
        (named("a.example", 2, Kind::Trust, &bad_crl), "crls[0]: "),
    ];
    for (resource, why) in cases {
        let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![resource], &[]));
        assert!(received.changes.is_empty(), "{why}");
        let refused = &received.refused;
        assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}, and not {why}");
        let answer = drain(&mut session).pop().unwrap();
        assert!(answer.error_detail.unwrap().message.contains(why));
    }
    let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![], &["a.example".into()]));
    assert!(received.changes.is_empty() && received.refused[0].contains("nobody would be trusted"));
    assert!(drain(&mut session).pop().unwrap().error_detail.is_some());
    assert_eq!(session.held(), [0, 0, 1]);
}

#[test]
fn what_was_refused_of_a_domain_goes_with_it() {
    let mut session = asking();
    let both = [domain("a.example", 1, &[root()]), domain("b.example", 1, &[root()])];
    session.handle_whole(now(), response(Kind::Trust, "n", both.into(), &[]));
    // Of one that was never good, and of one that was.
    let bad = ["b.example", "c.example"].map(|name| domain(name, 2, &[]));
    session.handle_whole(now(), response(Kind::Trust, "n", bad.into(), &[]));
    assert_eq!(session.faults().len(), 2);
    let gone = ["b.example", "c.example"].map(String::from);
    let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![], &gone));
    assert_eq!(trusted(&received), [("a.example".into(), 1)]);
    assert!(session.faults().is_empty(), "{:?}", session.faults());
    session.handle_opened(now());
    let last = drain(&mut session).pop().unwrap();
    assert_eq!(last.initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a.example"]);
}

#[test]
fn whoever_did_not_ask_takes_none() {
    let mut session = session();
    session.handle_opened(now());
    drain(&mut session);
    let received = session.handle_whole(now(), response(Kind::Trust, "n", vec![domain("a.example", 1, &[root()])], &[]));
    assert!(received.changes.is_empty() && received.refused[0].contains("which were not asked for"));
    assert!(drain(&mut session).is_empty(), "an answer would ask for it");
}
