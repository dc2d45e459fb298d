//! Decisions against a plain evaluator, and what must hold of any policies.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_authz::{
    Action, Clause, Conn, Decision, Denial, Match, Policies, Policy, Rule, Scope, ServiceAccount, StringMatch, decide,
    policy::{Unreadable, Update},
};
use ambient_core::{Identity, PolicyKey, Workload};
use proptest::{collection::vec, prelude::*, sample::select};

/// The rules of a decision, read off one by one, with no thought of speed.
mod plain {
    use super::*;

    pub(super) fn decide(history: &[Update], workload: &Workload, conn: &Conn<'_>) -> Decision {
        let mut good: BTreeMap<&PolicyKey, &Policy> = BTreeMap::new();
        let mut bad: BTreeMap<&PolicyKey, &Unreadable> = BTreeMap::new();
        for update in history {
            match update {
                Update::Set(policy) => {
                    bad.remove(&policy.key);
                    good.insert(&policy.key, policy);
                }
                Update::Unreadable(unreadable) => {
                    bad.insert(&unreadable.key, unreadable);
                }
                Update::Remove(key) => {
                    bad.remove(key);
                    good.remove(key);
                }
                Update::Kept(_) => unreachable!("not made here"),
            }
        }
        let applies = |key: &PolicyKey, scope, namespace: &str| match scope {
            Scope::Global => true,
            Scope::Namespace => *namespace == *workload.namespace,
            Scope::Selector => false,
        } || workload.policies.contains(key);
        let enforced: Vec<_> = good
            .values()
            .filter(|p| applies(&p.key, p.scope, &p.namespace) && !p.dry_run)
            .collect();

        for policy in enforced.iter().filter(|p| p.action == Action::Deny) {
            if let Some(rule) = policy.rules.iter().position(|r| rule_matches(r, conn)) {
                return Decision::Deny(Denial::ByPolicy(policy.key.clone(), rule));
            }
        }
        for (key, unreadable) in &bad {
            if !good.contains_key(key) && applies(key, unreadable.scope, &unreadable.namespace) {
                return Decision::Deny(Denial::Unreadable {
                    key: (*key).clone(),
                    error: unreadable.error.clone(),
                });
            }
        }
        let mut attached = workload.policies.clone();
        attached.sort();
        for key in attached {
            if !good.contains_key(&key) && !bad.contains_key(&key) {
                return Decision::Deny(Denial::NotArrived(key));
            }
        }
        let mut by = None;
        let mut any_allow = false;
        for policy in enforced.iter().filter(|p| p.action == Action::Allow) {
            any_allow = true;
            if by.is_none() && policy.rules.iter().any(|r| rule_matches(r, conn)) {
                by = Some(policy.key.clone());
            }
        }
        if any_allow && by.is_none() {
            return Decision::Deny(Denial::NoneAllowed);
        }
        Decision::Allow(ambient_authz::Allowed { by, dry_run: vec![] })
    }

    fn rule_matches(rule: &Rule, conn: &Conn<'_>) -> bool {
        let clause_true = |c: &Clause| c.matches.is_empty() || c.matches.iter().any(|m| match_true(m, conn));
        rule.clauses.iter().all(clause_true)
    }

    fn match_true(m: &Match, conn: &Conn<'_>) -> bool {
        let parts: Option<Vec<String>> = conn.peer.map(|p| p.principal().split('/').map(str::to_owned).collect());
        let principal = parts.as_ref().map(|p| p.join("/"));
        let namespace = parts.as_ref().map_or(String::new(), |p| p[2].clone());
        let text = |list: &[StringMatch], value: Option<&str>| value.is_some_and(|v| list.iter().any(|s| string_hits(s, v)));
        let account = |list: &[ServiceAccount]| {
            let Some(p) = &parts else { return false };
            list.iter().any(|a| *a.namespace == *p[2] && *a.name == *p[4])
        };
        let ip = |list: &[ipnet::IpNet], ip: IpAddr| list.iter().any(|net| block_hits(net, ip));
        let domain = parts.as_ref().map(|p| p[0].as_str());
        let (src, dst) = (conn.source, conn.destination.ip());

        let fields = [
            (
                m.namespaces.is_empty(),
                text(&m.namespaces, Some(&namespace)),
                text(&m.not_namespaces, Some(&namespace)),
            ),
            (
                m.principals.is_empty(),
                text(&m.principals, principal.as_deref()),
                text(&m.not_principals, principal.as_deref()),
            ),
            (
                m.trust_domains.is_empty(),
                text(&m.trust_domains, domain),
                text(&m.not_trust_domains, domain),
            ),
            (
                m.service_accounts.is_empty(),
                account(&m.service_accounts),
                account(&m.not_service_accounts),
            ),
            (m.source_ips.is_empty(), ip(&m.source_ips, src), ip(&m.not_source_ips, src)),
            (
                m.destination_ips.is_empty(),
                ip(&m.destination_ips, dst),
                ip(&m.not_destination_ips, dst),
            ),
            (
                m.destination_ports.is_empty(),
                m.destination_ports.contains(&conn.destination.port()),
                m.not_destination_ports.contains(&conn.destination.port()),
            ),
        ];
        *m != Match::default() && fields.iter().all(|(none, hit, not)| (*none || *hit) && !not)
    }

    fn string_hits(m: &StringMatch, value: &str) -> bool {
        match m {
            StringMatch::Exact(s) => **s == *value,
            StringMatch::Prefix(s) => value.len() >= s.len() && value.as_bytes()[..s.len()] == *s.as_bytes(),
            StringMatch::Suffix(s) => value.len() >= s.len() && value.as_bytes()[value.len() - s.len()..] == *s.as_bytes(),
            StringMatch::Presence => !value.is_empty(),
        }
    }

    fn block_hits(net: &ipnet::IpNet, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => format!("4{:032b}", u32::from(v4)),
            IpAddr::V6(v6) => format!("6{:0128b}", u128::from(v6)),
        };
        let length = 1 + usize::from(net.prefix_len());
        bits(ip).starts_with(&bits(net.addr())[..length])
    }
}

fn string() -> impl Strategy<Value = StringMatch> {
    let texts = select(vec![
        "",
        "a",
        "prod",
        "production",
        "td",
        "td2",
        "td/ns/a/sa/x",
        "td2/ns/prod/sa/x",
        "td/ns/prod",
        "/sa/x",
        "x",
        "uction/sa/y",
    ]);
    (texts, 0..7u8).prop_map(|(text, kind)| match kind {
        0..=2 => StringMatch::Exact(text.into()),
        3 | 4 => StringMatch::Prefix(text.into()),
        5 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn few<T: std::fmt::Debug + Clone + 'static>(of: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Vec<T>> {
    prop_oneof![5 => Just(Vec::new()), 1 => vec(of, 1..3)].boxed()
}

fn block() -> impl Strategy<Value = ipnet::IpNet> {
    select(vec![
        "10.0.0.0/8",
        "10.0.0.1/32",
        "10.9.9.9/24",
        "0.0.0.0/0",
        "::/0",
        "fd00::/8",
        "::ffff:10.0.0.0/104",
    ])
    .prop_map(|text| text.parse().unwrap())
}

fn one_match() -> impl Strategy<Value = Match> {
    let strings = || (few(string()), few(string()));
    let blocks = || (few(block()), few(block()));
    let port = || few(select(vec![80u16, 8080, 0]));
    let account = || {
        let parts = (select(vec!["a", "prod"]), select(vec!["x", "y"]));
        few(parts.prop_map(|(namespace, name)| ServiceAccount {
            namespace: namespace.into(),
            name: name.into(),
        }))
    };
    let texts = (strings(), strings(), strings());
    (texts, (account(), account()), (blocks(), blocks()), (port(), port())).prop_map(|(texts, accounts, blocks, ports)| Match {
        namespaces: texts.0.0,
        not_namespaces: texts.0.1,
        principals: texts.1.0,
        not_principals: texts.1.1,
        trust_domains: texts.2.0,
        not_trust_domains: texts.2.1,
        service_accounts: accounts.0,
        not_service_accounts: accounts.1,
        source_ips: blocks.0.0,
        not_source_ips: blocks.0.1,
        destination_ips: blocks.1.0,
        not_destination_ips: blocks.1.1,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
    })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let clause = vec(one_match(), 0..3).prop_map(|matches| Clause { matches });
    vec(vec(clause, 0..3).prop_map(|clauses| Rule { clauses }), 0..3)
}

const KEYS: [&str; 6] = ["a/p", "a/q", "prod/p", "prod/q", "root/p", "root/q"];

fn key() -> impl Strategy<Value = PolicyKey> {
    select(&KEYS[..]).prop_map(PolicyKey::from)
}

fn namespace_of(key: &PolicyKey) -> Arc<str> {
    key.as_str().split('/').next().unwrap().into()
}

fn scope() -> impl Strategy<Value = Scope> {
    select(vec![Scope::Global, Scope::Namespace, Scope::Selector])
}

fn update() -> impl Strategy<Value = Update> {
    let set = (key(), scope(), any::<bool>(), rules()).prop_map(|(key, scope, deny, rules)| {
        Update::Set(Arc::new(Policy {
            namespace: namespace_of(&key),
            key,
            scope,
            action: if deny { Action::Deny } else { Action::Allow },
            rules,
            dry_run: false,
        }))
    });
    prop_oneof![6 => set, 1 => (key(), scope()).prop_map(|(key, scope)| unreadable(key, scope)), 1 => key().prop_map(Update::Remove)]
}

fn unreadable(key: PolicyKey, scope: Scope) -> Update {
    Update::Unreadable(Arc::new(Unreadable {
        only_new: false,
        namespace: namespace_of(&key),
        key,
        scope,
        error: "no".into(),
    }))
}

fn workload() -> impl Strategy<Value = Workload> {
    (select(vec!["a", "prod", "other"]), vec(key(), 0..3)).prop_map(|(namespace, policies)| {
        let mut workload = Workload::new("uid", namespace, "w");
        workload.policies = policies;
        workload
    })
}

type Ends = (Option<Identity>, IpAddr, IpAddr, u16);

fn connection() -> impl Strategy<Value = Ends> {
    let peer = select(vec![
        "td/ns/a/sa/x",
        "td/ns/production/sa/y",
        "td2/ns/prod/sa/x",
        "td2/ns/a/sa/y",
        "",
    ]);
    let peer = peer.prop_map(|principal| format!("spiffe://{principal}").parse().ok());
    let ip = || select(vec!["10.0.0.1", "10.9.9.1", "192.0.2.1", "fd00::1"]).prop_map(|ip| ip.parse().unwrap());
    (peer, ip(), ip(), select(vec![80u16, 8080, 9090]))
}

fn conn(ends: &Ends) -> Conn<'_> {
    Conn {
        peer: ends.0.as_ref(),
        source: ends.1,
        destination: (ends.2, ends.3).into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the updates are cut into batches, decisions are those of the plain evaluator, to the policy and the rule.
    #[test]
    fn decisions_are_those_of_the_plain_evaluator(
        history in vec(update(), 0..8),
        cut in 0..8usize,
        workloads in vec(workload(), 1..4),
        connections in vec(connection(), 1..8),
    ) {
        let (first, second) = history.split_at(cut.min(history.len()));
        let policies = Policies::default().apply(first.to_vec()).apply(second.to_vec());
        for workload in &workloads {
            for ends in &connections {
                let conn = conn(ends);
                prop_assert_eq!(decide(&policies, workload, &conn), plain::decide(&history, workload, &conn));
            }
        }
    }

    /// A policy that no version of could be read refuses everything in its scope, whatever else there is.
    #[test]
    fn unreadable_never_opens(
        before in vec(update(), 0..8),
        after in vec(update(), 0..4),
        key in key(),
        scope in scope(),
        mut workload in workload(),
        ends in connection(),
    ) {
        let policies = Policies::default().apply(before).apply([Update::Remove(key.clone()), unreadable(key.clone(), scope)]);
        let policies = policies.apply(after.into_iter().filter(|u| *u.key() != key));
        match scope {
            Scope::Global => {}
            Scope::Namespace => workload.namespace = namespace_of(&key),
            Scope::Selector => workload.policies.push(key.clone()),
        }
        prop_assert!(!decide(&policies, &workload, &conn(&ends)).is_allow());
        prop_assert!(policies.unreadable().any(|u| u.key == key));
    }

    /// A key that is listed and not known refuses everything.
    #[test]
    fn missing_never_opens(history in vec(update(), 0..8), mut workload in workload(), ends in connection()) {
        workload.policies.push("never/sent".into());
        let policies = Policies::default().apply(history);
        prop_assert!(!decide(&policies, &workload, &conn(&ends)).is_allow());
    }
}
