use std::sync::Arc;

use super::*;
use crate::{
    Action, Match, Policy, Rule, Scope, StringMatch,
    policy::{Fallback, Refuses, Update},
};

fn policy(key: &str, scope: Scope, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: key.into(),
        namespace: key.split_once('/').unwrap().0.into(),
        scope,
        action,
        rules,
        dry_run: false,
    }
}

fn always() -> Vec<Rule> {
    vec![Rule::default()]
}

fn from_namespace(namespace: &str) -> Vec<Rule> {
    let found = Match {
        namespaces: vec![StringMatch::Exact(namespace.into())],
        ..Match::default()
    };
    vec![Rule {
        clauses: vec![found.into()],
    }]
}

fn unreadable(key: &str, scope: Scope) -> Update {
    Update::Unreadable(Arc::new(Unreadable {
        only_new: false,
        dry_run: false,
        key: key.into(),
        namespace: key.split_once('/').unwrap().0.into(),
        scope,
        error: "spec.rules[0]: no".into(),
    }))
}

fn set(policy: Policy) -> Update {
    Update::Set(policy.into())
}

fn workload(attached: &[&str]) -> Workload {
    let mut workload = Workload::new("uid", "shop", "stock");
    workload.policies = attached.iter().map(|key| (*key).into()).collect();
    workload
}

fn ask(policies: &Policies, attached: &[&str]) -> String {
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    decide(policies, &workload(attached), &conn).to_string()
}

#[test]
fn texts_are_those_of_ztunnel() {
    let none = Policies::default().apply([set(policy("shop/nobody", Scope::Namespace, Action::Allow, vec![]))]);
    assert_eq!(ask(&none, &[]), "allow policies exist, but none allowed");
    let deny = none.apply([set(policy("shop/closed", Scope::Namespace, Action::Deny, always()))]);
    assert_eq!(ask(&deny, &[]), "explicitly denied by: shop/closed");
    assert_eq!(
        ask(&Policies::default(), &["shop/late"]),
        "policy shop/late is attached to the workload and has not arrived"
    );
}

#[test]
fn without_a_good_version_the_whole_scope_is_refused() {
    let refused = "policy shop/p cannot be read: spec.rules[0]: no";
    for (scope, attached) in [(Scope::Global, &[][..]), (Scope::Namespace, &[]), (Scope::Selector, &["shop/p"])] {
        let policies = Policies::default().apply([unreadable("shop/p", scope)]);
        assert_eq!(ask(&policies, attached), refused, "{scope}");
        assert_eq!((policies.unreadable().count(), policies.len()), (1, 0));
    }
    // Outside its scope nothing is refused.
    for policies in [unreadable("shop/p", Scope::Selector), unreadable("other/p", Scope::Namespace)] {
        assert_eq!(
            ask(&Policies::default().apply([policies]), &[]),
            "allowed, as no allow policy applies"
        );
    }
}

#[test]
fn the_last_good_version_stays_in_force() {
    let good = set(policy("shop/p", Scope::Namespace, Action::Allow, always()));
    let policies = Policies::default().apply([good.clone(), unreadable("shop/p", Scope::Global)]);
    assert_eq!(ask(&policies, &[]), "allowed by: shop/p");
    assert_eq!(policies.unreadable().count(), 1);
    // A second bad version changes nothing; a good one ends it; so does withdrawal.
    let policies = policies.apply([unreadable("shop/p", Scope::Namespace)]);
    assert_eq!(ask(&policies, &[]), "allowed by: shop/p");
    assert_eq!(policies.apply([good]).unreadable().count(), 0);
    let gone = policies.apply([Update::Remove("shop/p".into())]);
    assert_eq!((gone.unreadable().count(), gone.len()), (0, 0));
    assert_eq!(ask(&gone, &[]), "allowed, as no allow policy applies");
}

#[test]
fn what_is_let_go_refuses_nothing() {
    let good = set(policy("shop/good", Scope::Namespace, Action::Allow, always()));
    let refusing = Policies::default().apply([good, unreadable("shop/good", Scope::Namespace), unreadable("shop/p", Scope::Global)]);
    let fallbacks = |policies: &Policies| ["shop/good", "shop/p", "shop/none"].map(|key| policies.fallback(&key.into()));
    assert_eq!(fallbacks(&refusing), [Some(Fallback::LastGood), Some(Fallback::Refusal), None]);
    assert!(ask(&refusing, &[]).contains("shop/p cannot be read"));
    let letting_go = refusing.letting_unreadable_go();
    assert_eq!(fallbacks(&letting_go), [Some(Fallback::LastGood), Some(Fallback::Nothing), None]);
    assert_eq!(ask(&letting_go, &[]), "allowed by: shop/good");
    // It is for what cannot be read alone, and for all that comes later.
    let later = letting_go.apply([unreadable("shop/q", Scope::Namespace)]);
    assert_eq!(ask(&later, &["shop/q"]), "allowed by: shop/good");
    assert!(ask(&later, &["shop/late"]).contains("has not arrived"));
}

#[test]
fn what_never_comes_refuses_plaintext_or_everybody() {
    let (converted, other) = ("shop/converted_peer_authentication_ports", "shop/late");
    let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse::<Identity>().unwrap();
    let passes = |policies: &Policies, peer: &Peer, listed: &[&str]| {
        let conn = Conn {
            peer,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
        };
        decide(policies, &workload(listed), &conn).is_allow()
    };
    let (nobody, somebody) = (Peer::plaintext(), Peer::from(identity));
    let waiting = Policies::default();
    let (waited, affected) = waiting.stop_waiting();
    for (policies, listed, refuses) in [
        (&waiting, vec![converted], Refuses::Everybody),
        (&waiting, vec![other], Refuses::Everybody),
        (&waited, vec![converted], Refuses::Plaintext),
        (&waited, vec![converted, other], Refuses::Everybody),
        (&waited, vec![other], Refuses::Everybody),
        (&Policies::istio_exact().stop_waiting().0, vec![converted, other], Refuses::Nobody),
    ] {
        let refused = [&nobody, &somebody].map(|peer| !passes(policies, peer, &listed));
        assert_eq!(refused, [false, true].map(|id| refuses.concerns(id)), "{listed:?}");
        let keys = workload(&listed).policies;
        assert_eq!(policies.missing(&keys).last().map(|(_, refuses)| refuses), Some(refuses));
    }
    let concerned = [&[converted][..], &[other], &[]].map(|listed| affected.concerns(&workload(listed)));
    assert_eq!(concerned, [true, false, false]);
    // Once it has come it counts as it is, whenever that is; once it is gone again it is missing again.
    let come = waited.apply([set(policy(converted, Scope::Selector, Action::Deny, vec![]))]);
    assert!(passes(&come, &nobody, &[converted]));
    assert!(!passes(&come.apply([Update::Remove(converted.into())]), &nobody, &[converted]));
}

#[test]
fn istio_exact_skips_what_it_does_not_know() {
    let policies = Policies::istio_exact().apply([unreadable("shop/p", Scope::Namespace)]);
    assert_eq!(ask(&policies, &["shop/late"]), "allowed, as no allow policy applies");
    assert!(policies.is_istio_exact());
}

#[test]
fn the_first_by_key_is_named_whatever_its_scope() {
    let of = |key, scope| set(policy(key, scope, Action::Deny, always()));
    let policies = Policies::default().apply([
        of("shop/c", Scope::Selector),
        of("shop/b", Scope::Namespace),
        of("mesh/x", Scope::Global),
        of("shop/a", Scope::Selector),
    ]);
    assert_eq!(ask(&policies, &["shop/c", "shop/a"]), "explicitly denied by: mesh/x");
    let policies = policies.apply([Update::Remove("mesh/x".into())]);
    assert_eq!(ask(&policies, &["shop/c", "shop/a"]), "explicitly denied by: shop/a");
    assert_eq!(ask(&policies, &["shop/c"]), "explicitly denied by: shop/b");
}

#[test]
fn a_denial_names_the_rule() {
    let rules = vec![from_namespace("a").remove(0), Rule::default()];
    let policies = Policies::default().apply([set(policy("shop/p", Scope::Namespace, Action::Deny, rules))]);
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let denial = decide(&policies, &workload(&[]), &conn);
    assert_eq!(denial, Decision::Deny(Denial::ByPolicy("shop/p".into(), 1)));
}

#[test]
fn mapped_peers_are_ipv4() {
    let found = Match {
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    };
    let rules = vec![Rule {
        clauses: vec![found.into()],
    }];
    let policies = Policies::default().apply([set(policy("shop/p", Scope::Namespace, Action::Deny, rules))]);
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "::ffff:10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    assert!(!decide(&policies, &workload(&[]), &conn).is_allow());
}

#[test]
fn dry_run_tells_and_does_not_decide() {
    let dry = |key, action, rules| {
        set(Policy {
            dry_run: true,
            ..policy(key, Scope::Namespace, action, rules)
        })
    };
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let stock = workload(&["shop/deny"]);
    let policies = Policies::default().apply([
        dry("shop/deny", Action::Deny, always()),
        dry("shop/allow", Action::Allow, from_namespace("a")),
    ]);
    let Decision::Allow(allowed) = decide(&policies, &stock, &conn) else {
        panic!("nothing is enforced")
    };
    assert_eq!(allowed.dry_run, [DryRun::WouldDeny("shop/deny".into()), DryRun::NoneWouldAllow]);
    let policies = policies.apply([
        dry("shop/open", Action::Allow, always()),
        set(policy("shop/some", Scope::Namespace, Action::Allow, vec![])),
    ]);
    let told = [DryRun::WouldDeny("shop/deny".into()), DryRun::WouldAllow("shop/open".into())];
    assert_eq!(dry_run(&policies, &stock, &conn), told);
    assert_eq!(decide(&policies, &stock, &conn), Decision::Deny(Denial::NoneAllowed));
}

#[test]
fn what_is_kept_under_other_keys_is_listed_and_refuses_nothing() {
    let Update::Unreadable(bad) = unreadable("shop/peer_authentication_p", Scope::Global) else {
        unreachable!()
    };
    let policies = Policies::default().apply([Update::Kept(bad.clone())]);
    assert_eq!((policies.unreadable().count(), policies.len()), (1, 0));
    assert_eq!(
        ask(&policies, &["shop/peer_authentication_p"]),
        "allowed, as no allow policy applies"
    );
    let policies = policies.apply([Update::Unreadable(bad)]);
    assert!(ask(&policies, &[]).contains("cannot be read"));
}

#[test]
fn what_refuses_only_new_connections_ends_no_standing_one() {
    let unknown = Update::Unreadable(Arc::new(Unreadable {
        key: "files/x".into(),
        namespace: "istio-system".into(),
        scope: Scope::Global,
        only_new: true,
        dry_run: false,
        error: "no".into(),
    }));
    let policies = Policies::default().apply([unknown]);
    let conn = Conn {
        peer: &Peer::plaintext(),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    assert!(!decide(&policies, &workload(&[]), &conn).is_allow());
    assert!(decide_again(&policies, &workload(&[]), &conn).is_allow());
    // What else refuses it does so before and beside it.
    let closed = policies.apply([unreadable("shop/p", Scope::Namespace)]);
    let Decision::Deny(Denial::Unreadable(refusing)) = decide_again(&closed, &workload(&[]), &conn) else {
        panic!("an unreadable policy ends what it applies to")
    };
    assert_eq!(refusing.key.as_str(), "shop/p");
}

/// However many policies match: the first by key, by the first of its rules, and of those in dry run a hundred.
#[test]
fn of_very_many_that_match_the_first_is_named() {
    let rule = |ports: &[u16]| Rule {
        clauses: vec![
            Match {
                destination_ports: ports.to_vec(),
                ..Match::default()
            }
            .into(),
        ],
    };
    let policy = |number: usize, action, dry_run| Policy {
        key: format!("a/{action}-{dry_run}-{number:04}").as_str().into(),
        namespace: "a".into(),
        scope: Scope::Global,
        action,
        rules: vec![rule(&[7000 + (number % 7) as u16]), rule(&[9, 80]), rule(&[80])],
        dry_run,
    };
    // They come in no order, and some go and come again.
    let numbers = (0..3000).map(|i| i * 1999 % 3000);
    let all = numbers.flat_map(|number| {
        [
            policy(number, Action::Deny, false),
            policy(number, Action::Allow, false),
            policy(number, Action::Deny, true),
            policy(number, Action::Allow, true),
        ]
    });
    let mut policies = Policies::default();
    let all: Vec<_> = all.collect();
    for batch in all.chunks(500) {
        policies = policies.apply(batch.iter().map(|policy| Update::Set(Arc::new(policy.clone()))));
    }
    let peer = Peer::plaintext();
    let conn = Conn {
        peer: &peer,
        source: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], 80).into(),
    };
    let stock = Workload::new("uid", "b", "stock");
    for gone in 0..3 {
        let decision = decide(&policies, &stock, &conn);
        assert_eq!(
            decision,
            Decision::Deny(Denial::ByPolicy(format!("a/DENY-false-{gone:04}").as_str().into(), 1))
        );
        let told: Vec<_> = (gone..gone + 100)
            .map(|number| DryRun::WouldDeny(format!("a/DENY-true-{number:04}").as_str().into()))
            .collect();
        assert_eq!(dry_run(&policies, &stock, &conn), told);
        policies = policies.apply([false, true].map(|dry_run| Update::Remove(format!("a/DENY-{dry_run}-{gone:04}").as_str().into())));
    }
    let denying = all.iter().filter(|policy| policy.action == Action::Deny);
    policies = policies.apply(denying.map(|policy| Update::Remove(policy.key.clone())));
    let Decision::Allow(allowed) = decide(&policies, &stock, &conn) else {
        panic!()
    };
    assert_eq!(allowed.by, Some("a/ALLOW-false-0000".into()));
    let told: Vec<_> = (0..100)
        .map(|number| DryRun::WouldAllow(format!("a/ALLOW-true-{number:04}").as_str().into()))
        .collect();
    assert_eq!(allowed.dry_run, told);
}
