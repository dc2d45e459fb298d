use ambient_core::Identity;

use super::*;
use crate::{Match, Peer, Policy, Rule, ServiceAccount, StringMatch, policy::Update};

fn policy(key: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: key.into(),
        namespace: key.split('/').next().unwrap().into(),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn rule(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule {
        clauses: matches.into_iter().map(Into::into).collect(),
    }
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn ports(ports: &[u16]) -> Match {
    Match {
        destination_ports: ports.into(),
        ..Match::default()
    }
}

fn set(policies: impl IntoIterator<Item = Policy>) -> Policies {
    Policies::default().apply(policies.into_iter().map(|p| Update::Set(p.into())))
}

fn cart() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

fn ask(policies: &Policies, peer: Option<&Identity>, port: u16) -> Explanation {
    ask_of(policies, &Workload::new("uid", "shop", "stock-0"), peer, port)
}

fn ask_of(policies: &Policies, workload: &Workload, peer: Option<&Identity>, port: u16) -> Explanation {
    let peer = peer.cloned().into();
    let conn = Conn {
        peer: &peer,
        source: "10.0.1.2".parse().unwrap(),
        destination: ([10, 0, 2, 2], port).into(),
    };
    explain(policies, workload, &conn)
}

#[test]
fn the_allow_rule_that_came_closest() {
    let far = Match {
        namespaces: exact("ops"),
        destination_ports: vec![22],
        ..Match::default()
    };
    let near = Match {
        service_accounts: vec![ServiceAccount {
            namespace: "shop".into(),
            name: "billing".into(),
        }],
        destination_ports: vec![8080],
        ..Match::default()
    };
    let policies = set([
        policy("shop/a", Action::Allow, vec![rule([far])]),
        policy("shop/b", Action::Allow, vec![rule([ports(&[1]), ports(&[2])]), rule([near])]),
    ]);
    let told = ask(&policies, Some(&cart()), 8080);
    assert_eq!((told.allowed, &told.policy, told.policies.len()), (false, &None, 2));
    let closest = told.turn.closest().unwrap();
    assert_eq!((closest.policy.as_str(), closest.rule), ("shop/b", 1));
    let wanted = Values {
        values: vec!["shop/billing".into()],
        more: 0,
    };
    assert_eq!(
        closest.failures[0].mismatch,
        Mismatch::NoneHits {
            field: Field::ServiceAccounts,
            compared: Some("shop/cart".into()),
            wanted
        }
    );
    let text = told.to_string();
    let expected = "\
DENIED: no ALLOW rule matches; closest: shop/b, rule 1 (source service account)
  from  spiffe://cluster.local/ns/shop/sa/cart, 10.0.1.2
  to    shop/stock-0, 10.0.2.2:8080
  log   allow policies exist, but none allowed

to be allowed, the ALLOW rule that came closest has to match, or another:
  shop/b, rule 1: 1 field fails
    source service account is shop/cart
      wanted: shop/billing
or both ALLOW policies that apply have to go

2 policies apply:
  ALLOW shop/a  (for its namespace)
    rule 0: no, source namespace is not ops
  ALLOW shop/b  (for its namespace)
    rule 0: no, destination port is not 1
    rule 1: no, source service account is not shop/billing
";
    assert_eq!(text, expected);
}

#[test]
fn the_deny_policies_that_would_have_to_go() {
    let plaintext = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let policies = set([
        policy("shop/z", Action::Deny, vec![Rule::default()]),
        policy("shop/a", Action::Deny, vec![rule([ports(&[1])]), rule([plaintext])]),
        policy("shop/other", Action::Deny, vec![rule([ports(&[1])])]),
        policy("shop/allow", Action::Allow, vec![]),
    ]);
    let told = ask(&policies, None, 80);
    assert_eq!((told.policy.as_ref().map(PolicyKey::as_str), told.rule), (Some("shop/a"), Some(1)));
    let Turn::Allow { deny, not_allowed, .. } = &told.turn else {
        panic!("{told}")
    };
    assert_eq!(deny.keys.iter().map(PolicyKey::as_str).collect::<Vec<_>>(), ["shop/a", "shop/z"]);
    assert_eq!(not_allowed.as_ref().unwrap().closest, None, "it has no rules");
    let text = told.to_string();
    assert!(
        text.starts_with("DENIED: by shop/a, rule 1: source principal is none (plaintext)\n  from  plaintext (no identity), 10.0.1.2\n"),
        "{text}"
    );
    assert!(
        text.contains("\nshop/a, rule 1 matches:\n    source principal is none (plaintext)\n")
            && text
                .contains("no longer denied by:\n  shop/a\n  shop/z\nto be allowed, an ALLOW policy needs a rule that matches\nor the one"),
        "{text}"
    );
}

#[test]
fn what_is_missing_or_cannot_be_read() {
    let unreadable = crate::policy::Unreadable {
        key: "shop/broken".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        only_new: false,
        dry_run: false,
        error: "spec.rules[0]: no".into(),
    };
    let updates = || {
        let kept = crate::policy::Unreadable {
            key: "shop/kept".into(),
            ..unreadable.clone()
        };
        [Update::Unreadable(unreadable.clone().into()), Update::Kept(kept.into())]
    };
    let mut workload = Workload::new("uid", "shop", "stock-0");
    workload.policies = vec!["shop/late".into(), "shop/kept".into()];
    let told = ask_of(&Policies::default().apply(updates()), &workload, None, 80);
    assert_eq!(told.policy.as_ref().map(PolicyKey::as_str), Some("shop/broken"));
    let Turn::Allow { unreadable, missing, .. } = &told.turn else {
        panic!("{told}")
    };
    assert_eq!((unreadable.len(), missing.keys[0].as_str()), (1, "shop/late"));
    assert_eq!(told.refusals.len(), 2, "what is kept under other keys refuses nothing");
    let text = told.to_string();
    assert!(
        text.contains("shop/late  (attached to the workload; refuses)\n    has not arrived"),
        "{text}"
    );

    workload.policies = vec!["shop/converted_peer_authentication_ports".into()];
    let waited = Policies::default().stop_waiting().0;
    let plaintext = ask_of(&waited, &workload, None, 80);
    assert!(!plaintext.allowed && plaintext.policy.as_ref() == workload.policies.first());
    assert!(matches!(&plaintext.turn, Turn::Allow { missing, .. } if missing.keys == workload.policies));
    let text = plaintext.to_string();
    assert!(
        text.contains("; refuses)\n    has not arrived, and is not waited for: it refuses plaintext only"),
        "{text}"
    );
    let cart = ask_of(&waited, &workload, Some(&cart()), 80);
    assert!(cart.allowed && cart.to_string().contains("; passed over)"), "{cart}");

    let exact = ask_of(&Policies::istio_exact().apply(updates()), &workload, None, 80);
    assert!(exact.allowed && exact.refusals.iter().all(|r| !r.refuses));
    assert!(exact.to_string().contains("passed over"), "{exact}");
}

#[test]
fn dry_run_is_shown_as_such_and_decides_nothing() {
    let mut deny = policy("shop/try", Action::Deny, vec![Rule::default()]);
    deny.dry_run = true;
    let told = ask(&set([deny]), None, 80);
    assert!(told.allowed);
    assert_eq!(told.dry_run, ["dry run: would be denied by: shop/try"]);
    let text = told.to_string();
    assert!(
        text.contains("DENY shop/try  (for its namespace; dry run)\n    rule 0: matches"),
        "{text}"
    );
    assert!(matches!(told.turn, Turn::Refuse { closest: None, .. }));
}

#[test]
fn what_would_refuse_what_is_allowed() {
    let policies = set([
        policy("shop/a", Action::Allow, vec![rule([ports(&[80])])]),
        policy("shop/d", Action::Deny, vec![rule([ports(&[22])])]),
    ]);
    let told = ask(&policies, None, 80);
    let Turn::Refuse {
        admitting,
        others_apply,
        closest,
    } = &told.turn
    else {
        panic!("{told}")
    };
    assert_eq!((admitting.keys[0].as_str(), *others_apply), ("shop/a", false));
    assert_eq!(closest.as_ref().unwrap().policy.as_str(), "shop/d");
    assert!(told.to_string().contains("would leave no ALLOW policy"), "{told}");
}

#[test]
fn a_peer_authentication_is_named() {
    let mut strict = policy("istio-system/istio_converted_static_strict", Action::Deny, vec![Rule::default()]);
    strict.scope = Scope::Selector;
    let mut workload = Workload::new("uid", "shop", "stock-0");
    workload.policies = vec![strict.key.clone()];
    let told = ask_of(&set([strict]), &workload, None, 80);
    let text = told.to_string();
    assert!(
        text.starts_with("DENIED: by a PeerAuthentication in mode STRICT, as the peer speaks plaintext\n") && text.contains("PERMISSIVE"),
        "{text}"
    );
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let many: Vec<u16> = (1000..2000).collect();
    let all = (0..30).map(|n| policy(&format!("shop/p{n:02}"), Action::Allow, vec![rule([ports(&many)]); 20]));
    let all = set(all);
    let told = ask(&all, None, 80);
    let Mismatch::NoneHits { wanted, .. } = &told.turn.closest().unwrap().failures[0].mismatch else {
        panic!("{told}")
    };
    assert_eq!((wanted.values.len(), wanted.more), (16, 984));
    assert_eq!((told.policies.len(), told.more_policies), (10, 20));
    assert!(told.policies.iter().all(|p| (p.rules.len(), p.more_rules) == (10, 10)));
    let Turn::Allow { not_allowed, .. } = &told.turn else {
        panic!("{told}")
    };
    let applying = &not_allowed.as_ref().unwrap().policies;
    assert_eq!((applying.keys.len(), applying.len()), (10, 30));
    let text = told.to_string();
    assert!(
        text.contains("or: … 996 more") && text.contains("… and 20 more\n") && text.contains("… and 10 more rules"),
        "{text}"
    );
    assert!(text.lines().count() < 150);
    let workload = Workload::new("uid", "shop", "stock-0");
    let peer = Peer::plaintext();
    let conn = Conn {
        peer: &peer,
        source: "10.0.1.2".parse().unwrap(),
        destination: ([10, 0, 2, 2], 80).into(),
    };
    let whole = explain_all(&all, &workload, &conn);
    assert_eq!((whole.policies.len(), whole.more_policies), (30, 0));
    assert_eq!(whole.to_string().matches("rule 19").count(), 30);
}

/// Among very many, those that decide and that come closest are told, whatever they are called.
#[test]
fn what_counts_is_told_among_very_many() {
    let far = |n: usize| policy(&format!("shop/a{n:03}"), Action::Allow, vec![rule([ports(&[1]), ports(&[2])])]);
    let mut near = policy("shop/z", Action::Allow, vec![rule([ports(&[1]), ports(&[2])]); 40]);
    near.rules[30] = rule([ports(&[1])]);
    let all = set((0..300).map(far).chain([near]));
    let told = ask(&all, None, 80);
    let closest = told.turn.closest().unwrap();
    assert_eq!((closest.policy.as_str(), closest.rule), ("shop/z", 30));
    let last = told.policies.last().unwrap();
    assert_eq!(
        (last.key.as_str(), last.rules.last().unwrap().rule, last.more_rules),
        ("shop/z", 30, 30)
    );
    assert_eq!((told.policies.len(), told.more_policies), (10, 291));

    let some = |n: usize, port| policy(&format!("shop/d{n:03}"), Action::Deny, vec![rule([ports(&[port])])]);
    let denying = all.apply((0..300).map(|n| Update::Set(some(n, if n % 100 == 99 { 80 } else { 1 }).into())));
    let told = ask(&denying, None, 80);
    assert_eq!(told.policy.as_ref().map(PolicyKey::as_str), Some("shop/d099"));
    let matching: Vec<_> = told
        .policies
        .iter()
        .filter(|p| p.matching_rule().is_some())
        .map(|p| p.key.as_str())
        .collect();
    assert_eq!(matching, ["shop/d099", "shop/d199", "shop/d299"]);
    assert!(
        told.to_string()
            .starts_with("DENIED: by shop/d099, rule 0: destination port is 80\n"),
        "{told}"
    );
}

/// A policy may be written by whoever may write in one namespace, and is read by others on their terminals.
#[test]
fn no_value_breaks_a_line_or_commands_a_terminal() {
    let bad = "cluster.local/ns/a\u{1b}[2J/sa/b\nALLOWED: by nobody\u{202e}";
    let found = Match {
        principals: exact(bad),
        ..Match::default()
    };
    let told = ask(&set([policy("shop/\u{1b}[1m", Action::Allow, vec![rule([found])])]), None, 80);
    let text = told.to_string();
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.contains("\nALLOWED"), "{text}");
    assert!(text.contains("\\u{1b}[2J/sa/b\\u{a}ALLOWED"), "{text}");
}

struct Elsewhere;

impl Origin for Elsewhere {
    fn rule(&self, _: &PolicyKey, rule: usize) -> usize {
        rule + 5
    }

    fn place(&self, policy: &PolicyKey, rule: Option<usize>) -> Option<String> {
        Some(format!("{policy}.yaml:{}", rule.map_or(1, |rule| rule + 10)))
    }

    fn made_from(&self, _: &PolicyKey) -> Option<String> {
        None
    }
}

#[test]
fn as_data() {
    let policies = set([policy(
        "shop/a",
        Action::Allow,
        vec![rule([ports(&[8080])]), rule([Match::default()])],
    )]);
    let mut told = ask(&policies, Some(&cart()), 80);
    told.trace_to(&Elsewhere);
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!(json["connection"]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(json["policies"][0]["action"], "ALLOW");
    assert_eq!(json["policies"][0]["applies"], "namespace");
    let first = &json["policies"][0]["rules"][0]["failures"][0];
    assert_eq!(
        (first["kind"].as_str(), first["field"].as_str()),
        (Some("noneHits"), Some("destinationPorts"))
    );
    assert_eq!((&first["compared"], &first["wanted"]["values"][0]), (&"80".into(), &"8080".into()));
    assert_eq!(json["policies"][0]["rules"][1]["failures"][0]["kind"], "empty");
    assert_eq!(json["turn"]["to"], "allow");
    assert_eq!(json["turn"]["notAllowed"]["closest"]["rule"], 5);
    assert_eq!(json["turn"]["notAllowed"]["closest"]["place"], "shop/a.yaml:10");
    assert_eq!(
        json["turn"]["notAllowed"]["policies"],
        serde_json::json!({ "keys": ["shop/a"], "more": 0 })
    );
    assert_eq!(
        (&json["policies"][0]["place"], &json["morePolicies"]),
        (&"shop/a.yaml:1".into(), &0.into())
    );
}
