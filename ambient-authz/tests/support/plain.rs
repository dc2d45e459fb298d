//! The rules of a decision, read off one by one, with no thought of speed: what the engine is compared with.
//!
//! It shares no code with the engine, only the types that both speak of.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_authz::{
    Action, Allowed, Clause, Conn, Decision, Denial, DryRun, Match, Policy, Rule, Scope, ServiceAccount, StringMatch,
    policy::{Unreadable, Update},
};
use ambient_core::{PolicyKey, Workload};
use ipnet::IpNet;

/// What is known of all policies.
#[derive(Clone, Default)]
pub(crate) struct Plain {
    istio_exact: bool,
    /// Whether what could never be read refuses nothing.
    pub(crate) lets_unreadable_go: bool,
    /// Whether what has not come counts as never coming.
    pub(crate) waited: bool,
    good: BTreeMap<PolicyKey, Arc<Policy>>,
    /// What cannot be read, and whether it is in force under other keys.
    bad: BTreeMap<PolicyKey, (Arc<Unreadable>, bool)>,
}

/// For each policy in force the first rule that matches a connection.
pub(crate) type Matching = BTreeMap<PolicyKey, Option<usize>>;

impl Plain {
    pub(crate) fn new(istio_exact: bool) -> Self {
        Self {
            istio_exact,
            ..Self::default()
        }
    }

    pub(crate) fn take(&mut self, update: &Update) {
        match update {
            Update::Set(policy) => {
                self.bad.remove(&policy.key);
                self.good.insert(policy.key.clone(), policy.clone());
            }
            Update::Unreadable(unreadable) => {
                self.bad.insert(unreadable.key.clone(), (unreadable.clone(), false));
            }
            Update::Kept(unreadable) => {
                self.bad.insert(unreadable.key.clone(), (unreadable.clone(), true));
            }
            Update::Remove(key) => {
                self.bad.remove(key);
                self.good.remove(key);
            }
        }
    }

    pub(crate) fn matching(&self, conn: &Conn<'_>) -> Matching {
        let all = self.good.values();
        all.map(|policy| (policy.key.clone(), policy.rules.iter().position(|rule| rule_matches(rule, conn))))
            .collect()
    }

    /// The decision on the connection that was matched; of one that was let in before, if it is asked again.
    pub(crate) fn decide(&self, workload: &Workload, conn: &Conn<'_>, matching: &Matching, again: bool) -> Decision {
        let applying = |action, dry_run| {
            let all = self.good.values();
            all.filter(move |p| p.action == action && p.dry_run == dry_run && applies(p.scope, &p.namespace, &p.key, workload))
        };
        let matches = |policy: &&Arc<Policy>| matching[&policy.key].is_some();
        let mut told: Vec<_> = applying(Action::Deny, true)
            .filter(matches)
            .take(MOST_TOLD)
            .map(|p| DryRun::WouldDeny(p.key.clone()))
            .collect();

        if let Some(policy) = applying(Action::Deny, false).find(matches) {
            return Decision::Deny(Denial::ByPolicy(policy.key.clone(), matching[&policy.key].unwrap_or_default()));
        }
        let has_identity = conn.peer.identity().is_some();
        if let Some(denial) = self.unknown(workload, has_identity, again).filter(|_| !self.istio_exact) {
            return Decision::Deny(denial);
        }
        let enforced = applying(Action::Allow, false).next().is_some();
        let allowing: Vec<_> = applying(Action::Allow, true)
            .filter(matches)
            .take(MOST_TOLD)
            .map(|p| DryRun::WouldAllow(p.key.clone()))
            .collect();
        if allowing.is_empty() && !enforced && applying(Action::Allow, true).next().is_some() {
            told.push(DryRun::NoneWouldAllow);
        }
        told.extend(allowing);

        let by = applying(Action::Allow, false).find(matches).map(|policy| policy.key.clone());
        if enforced && by.is_none() {
            return Decision::Deny(Denial::NoneAllowed);
        }
        Decision::Allow(Allowed { by, dry_run: told })
    }

    /// The refusal of what applies and is not known.
    fn unknown(&self, workload: &Workload, has_identity: bool, again: bool) -> Option<Denial> {
        for (key, (unreadable, kept)) in &self.bad {
            let passed_over =
                self.lets_unreadable_go || unreadable.dry_run || *kept || self.good.contains_key(key) || (again && unreadable.only_new);
            if !passed_over && applies(unreadable.scope, &unreadable.namespace, key, workload) {
                return Some(Denial::Unreadable(unreadable.clone()));
            }
        }
        let mut listed = workload.policies.clone();
        listed.sort();
        let missing = listed
            .into_iter()
            .filter(|key| !self.good.contains_key(key) && !self.bad.contains_key(key))
            // Once waited for, what comes from a PeerAuthentication could refuse plaintext only.
            .find(|key| !(self.waited && has_identity && key.as_str().contains("/converted_peer_authentication_")));
        missing.map(Denial::NotArrived)
    }
}

/// More policies in dry run are not told.
const MOST_TOLD: usize = 100;

fn applies(scope: Scope, namespace: &str, key: &PolicyKey, workload: &Workload) -> bool {
    let by_scope = match scope {
        Scope::Global => true,
        Scope::Namespace => *namespace == *workload.namespace,
        Scope::Selector => false,
    };
    by_scope || workload.policies.contains(key)
}

/// No clauses: always. Else all of them.
fn rule_matches(rule: &Rule, conn: &Conn<'_>) -> bool {
    rule.clauses.iter().all(|clause| clause_true(clause, conn))
}

/// No matches: true. Else any of them.
fn clause_true(clause: &Clause, conn: &Conn<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| match_true(m, conn))
}

/// Nothing in it: never. Else every field must hold.
fn match_true(m: &Match, conn: &Conn<'_>) -> bool {
    let principal = conn.peer.identity().map(|peer| peer.principal());
    let parts: Option<Vec<&str>> = principal.map(|p| p.split('/').collect());
    let domain = parts.as_ref().map(|p| p[0]);
    let namespace = parts.as_ref().map_or("", |p| p[2]);
    let (source, destination, port) = (conn.source, conn.destination.ip(), conn.destination.port());

    let text = |list: &[StringMatch], value: Option<&str>| value.is_some_and(|value| list.iter().any(|one| string_hits(one, value)));
    let account = |list: &[ServiceAccount]| {
        let hit = |p: &Vec<&str>| list.iter().any(|one| *one.namespace == *p[2] && *one.name == *p[4]);
        parts.as_ref().is_some_and(hit)
    };
    let ip = |list: &[IpNet], ip: IpAddr| list.iter().any(|block| block_hits(block, ip));
    let holds = |positive_is_empty: bool, positive_hits: bool, negative_hits: bool| (positive_is_empty || positive_hits) && !negative_hits;

    *m != Match::default()
        && holds(
            m.namespaces.is_empty(),
            text(&m.namespaces, Some(namespace)),
            text(&m.not_namespaces, Some(namespace)),
        )
        && holds(
            m.principals.is_empty(),
            text(&m.principals, principal),
            text(&m.not_principals, principal),
        )
        && holds(
            m.trust_domains.is_empty(),
            text(&m.trust_domains, domain),
            text(&m.not_trust_domains, domain),
        )
        && holds(
            m.service_accounts.is_empty(),
            account(&m.service_accounts),
            account(&m.not_service_accounts),
        )
        && holds(m.source_ips.is_empty(), ip(&m.source_ips, source), ip(&m.not_source_ips, source))
        && holds(
            m.destination_ips.is_empty(),
            ip(&m.destination_ips, destination),
            ip(&m.not_destination_ips, destination),
        )
        && holds(
            m.destination_ports.is_empty(),
            m.destination_ports.contains(&port),
            m.not_destination_ports.contains(&port),
        )
}

fn string_hits(one: &StringMatch, value: &str) -> bool {
    let (value, length) = (value.as_bytes(), value.len());
    match one {
        StringMatch::Exact(text) => value == text.as_bytes(),
        StringMatch::Prefix(text) => length >= text.len() && value[..text.len()] == *text.as_bytes(),
        StringMatch::Suffix(text) => length >= text.len() && value[length - text.len()..] == *text.as_bytes(),
        StringMatch::Presence => length > 0,
    }
}

/// A peer that is IPv4 mapped into IPv6 is IPv4; a block is what it is written as.
fn block_hits(block: &IpNet, ip: IpAddr) -> bool {
    let (a, b, width) = match (block.addr(), ip.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let ignored = u32::from(width - block.prefix_len());
    a.checked_shr(ignored).unwrap_or(0) == b.checked_shr(ignored).unwrap_or(0)
}
