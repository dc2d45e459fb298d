use super::*;
use crate::{Conn, Decision, Denial, Policies, decide, policy::Update};
use ambient_core::Workload;

fn policy(found: Match) -> Authorization {
    Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 1,
        action: 1,
        rules: vec![
            Rule::default(),
            Rule {
                clauses: vec![Clause::default(), Clause { matches: vec![found] }],
            },
        ],
        dry_run: false,
    }
}

fn safely(sent: &Authorization) -> Result<Policy, ReadError> {
    read(sent, &Settings::default())
}

fn address(address: &[u8], length: u32) -> Address {
    Address {
        address: address.into(),
        length,
    }
}

#[test]
fn what_cannot_be_read_is_named_and_refuses_the_whole_policy() {
    let fine = || address(&[10, 0, 0, 0], 8);
    let exact = |text: &str| StringMatch::Exact(text.into());
    let bad: [(Match, &str); 9] = [
        (
            Match {
                source_ips: vec![fine(), fine(), address(&[1, 2, 3], 8)],
                ..Match::default()
            },
            "source_ips[2]",
        ),
        (
            Match {
                not_source_ips: vec![address(&[], 0)],
                ..Match::default()
            },
            "not_source_ips[0]",
        ),
        (
            Match {
                destination_ips: vec![address(&[0; 16], 129)],
                ..Match::default()
            },
            "destination_ips[0]",
        ),
        (
            Match {
                not_destination_ips: vec![address(&[0; 4], u32::MAX)],
                ..Match::default()
            },
            "not_destination_ips[0]",
        ),
        (
            Match {
                destination_ports: vec![65535, 65536],
                ..Match::default()
            },
            "destination_ports[1]",
        ),
        (
            Match {
                not_destination_ports: vec![65616],
                ..Match::default()
            },
            "not_destination_ports[0]",
        ),
        (
            Match {
                namespaces: vec![exact("a"), StringMatch::Unset],
                ..Match::default()
            },
            "namespaces[1]",
        ),
        (
            Match {
                not_principals: vec![StringMatch::Unset],
                ..Match::default()
            },
            "not_principals[0]",
        ),
        (
            Match {
                principals: vec![StringMatch::default()],
                namespaces: vec![StringMatch::Presence],
                ..Match::default()
            },
            "principals[0]",
        ),
    ];
    for (found, place) in bad {
        let sent = policy(found);
        let error = safely(&sent).unwrap_err();
        assert_eq!(*error.path, format!("rules[1].clauses[1].matches[0].{place}"));
        assert_eq!((error.key.as_str(), error.scope), ("shop/p", Scope::Namespace));
        assert!(error.unreadable().error.starts_with(&*error.path));
        assert!(read(&sent, &Settings::istio_exact()).is_ok(), "{place}");
    }
}

#[test]
fn istio_exact_drops_and_truncates() {
    let sent = policy(Match {
        source_ips: vec![address(&[1, 2, 3], 8), address(&[192, 0, 2, 1], 256), address(&[192, 0, 2, 1], 33)],
        destination_ports: vec![65616],
        principals: vec![StringMatch::Unset],
        ..Match::default()
    });
    let read = read(&sent, &Settings::istio_exact()).unwrap();
    let expected = policy::Match {
        source_ips: vec!["192.0.2.1/0".parse().unwrap()],
        destination_ports: vec![80],
        ..policy::Match::default()
    };
    assert_eq!(read.rules[1].clauses[1].matches, [expected]);

    // Where nothing is left the match is empty, and so never true.
    let sent = policy(Match {
        not_namespaces: vec![StringMatch::Unset],
        ..Match::default()
    });
    let exact = super::read(&sent, &Settings::istio_exact()).unwrap();
    assert!(exact.rules[1].clauses[1].matches[0].is_empty());
}

/// An empty match is never true, in either mode, and its place is told: what stood there is not known.
#[test]
fn empty_matches_are_never_true_and_are_told() {
    let port = Match {
        destination_ports: vec![81],
        ..Match::default()
    };
    let mut sent = policy(Match::default());
    sent.rules.remove(0);
    sent.rules.push(Rule {
        clauses: vec![Clause {
            matches: vec![port, Match::default()],
        }],
    });
    for settings in [Settings::default(), Settings::istio_exact()] {
        let policy = read(&sent, &settings).unwrap();
        let places: Vec<_> = empty_matches(&policy).collect();
        assert_eq!(places, ["rules[0].clauses[1].matches[0]", "rules[1].clauses[0].matches[1]"]);
        for (port, denied) in [(80, false), (81, true)] {
            let conn = Conn {
                peer: &crate::Peer::plaintext(),
                source: "10.0.0.1".parse().unwrap(),
                destination: ([10, 0, 0, 2], port).into(),
            };
            let policies = Policies::default().apply([Update::Set(policy.clone().into())]);
            let decision = decide(&policies, &Workload::new("uid", "shop", "stock"), &conn);
            assert_eq!(decision.is_allow(), !denied, "{port}");
        }
    }
    assert_eq!(
        empty_matches(
            &safely(&policy(Match {
                destination_ports: vec![1],
                ..Match::default()
            }))
            .unwrap()
        )
        .count(),
        0
    );
}

#[test]
fn enumerations_that_are_not_known() {
    let mut sent = policy(Match::default());
    sent.scope = 3;
    for settings in [Settings::default(), Settings::istio_exact()] {
        let error = read(&sent, &settings).unwrap_err();
        assert_eq!((&*error.path, error.scope), ("scope", Scope::Namespace));
    }
    sent.namespace = "istio-system".into();
    assert_eq!(safely(&sent).unwrap_err().scope, Scope::Global);
    sent.scope = 2;
    sent.action = -1;
    for settings in [Settings::default(), Settings::istio_exact()] {
        let error = read(&sent, &settings).unwrap_err();
        assert_eq!((&*error.path, error.scope), ("action", Scope::Selector));
    }
    sent.action = 0;
    sent.name.clear();
    assert_eq!(&*safely(&sent).unwrap_err().path, "name");
}

#[test]
fn a_scope_without_a_namespace() {
    let mut sent = policy(Match::default());
    sent.namespace.clear();
    let error = safely(&sent).unwrap_err();
    assert_eq!((&*error.path, error.scope), ("namespace", Scope::Global));
    assert_eq!(read(&sent, &Settings::istio_exact()).unwrap().scope, Scope::Global);
    sent.scope = 0;
    assert_eq!(safely(&sent).unwrap().scope, Scope::Global);
}

#[test]
fn other_names_of_the_trust_domain_are_a_setting() {
    let sent = policy(Match {
        principals: vec![StringMatch::Exact("cluster.local/ns/a/sa/b".into())],
        ..Match::default()
    });
    let mut settings = Settings {
        trust_domain: "mesh.example".parse().unwrap(),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        ..Settings::default()
    };
    let names = |settings: &Settings| {
        let policy = read(&sent, settings).unwrap();
        let found = policy.rules[1].clauses[1].matches[0].principals.iter();
        found.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&settings), ["cluster.local/ns/a/sa/b"]);
    settings.cluster_local = true;
    assert_eq!(names(&settings), ["mesh.example/ns/a/sa/b", "old.example/ns/a/sa/b"]);
    settings.istio_exact = true;
    assert_eq!(names(&settings), ["cluster.local/ns/a/sa/b"]);
}

#[test]
fn a_refused_policy_refuses_its_scope_and_its_last_good_version_stays() {
    let good = policy(Match::default());
    let bad = policy(Match {
        destination_ports: vec![70000],
        ..Match::default()
    });
    let error = safely(&bad).unwrap_err();
    let refused = Policies::default().apply([Update::Unreadable(error.unreadable().into())]);
    let stock = Workload::new("uid", "shop", "stock");
    let conn = Conn {
        peer: &crate::Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    assert!(matches!(decide(&refused, &stock, &conn), Decision::Deny(Denial::Unreadable { .. })));

    let tried = safely(&Authorization { dry_run: true, ..bad }).unwrap_err();
    let told = Policies::default().apply([Update::Unreadable(tried.unreadable().into())]);
    assert!(
        decide(&told, &stock, &conn).is_allow() && told.unreadable().count() == 1,
        "in dry run it is told alone"
    );

    let good = safely(&good).unwrap();
    let kept = Policies::default().apply([Update::Set(good.into()), Update::Unreadable(error.unreadable().into())]);
    assert_eq!(
        decide(&kept, &stock, &conn),
        Decision::Deny(Denial::ByPolicy("shop/p".into(), 0)),
        "its first rule matches everything"
    );
}
