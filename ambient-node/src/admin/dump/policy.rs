use std::sync::Arc;

use ambient_authz::{
    Action, Match, Policies, Policy, Scope, StringMatch,
    policy::{Fallback, ServiceAccount},
};
use ipnet::IpNet;
use serde::Serialize;

/// A policy, as the wire form has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    name: String,
    namespace: Arc<str>,
    scope: &'static str,
    action: &'static str,
    rules: Vec<Vec<Vec<MatchView>>>,
    dry_run: bool,
}

impl From<&Policy> for View {
    fn from(p: &Policy) -> Self {
        let clauses = |rule: &ambient_authz::Rule| {
            rule.clauses
                .iter()
                .map(|c| c.matches.iter().map(MatchView::from).collect())
                .collect()
        };
        Self {
            name: name(p.key.as_str(), &p.namespace),
            namespace: p.namespace.clone(),
            scope: scope(p.scope),
            action: match p.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            rules: p.rules.iter().map(clauses).collect(),
            dry_run: p.dry_run,
        }
    }
}

/// The key without the namespace, which stands before it.
fn name(key: &str, namespace: &str) -> String {
    let rest = key.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/'));
    rest.unwrap_or(key).to_owned()
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Global => "Global",
        Scope::Namespace => "Namespace",
        Scope::Selector => "WorkloadSelector",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchView {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<Text>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<Text>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<Text>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<Text>,
    /// Ours: Istio's policies have none on the wire.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trust_domains: Vec<Text>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_trust_domains: Vec<Text>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<Account>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<Account>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_source_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ports: Vec<u16>,
}

impl From<&Match> for MatchView {
    fn from(m: &Match) -> Self {
        let texts = |list: &[StringMatch]| list.iter().map(Text::from).collect();
        let accounts = |list: &[ServiceAccount]| list.iter().map(Account::from).collect();
        Self {
            namespaces: texts(&m.namespaces),
            not_namespaces: texts(&m.not_namespaces),
            principals: texts(&m.principals),
            not_principals: texts(&m.not_principals),
            trust_domains: texts(&m.trust_domains),
            not_trust_domains: texts(&m.not_trust_domains),
            service_accounts: accounts(&m.service_accounts),
            not_service_accounts: accounts(&m.not_service_accounts),
            source_ips: m.source_ips.clone(),
            not_source_ips: m.not_source_ips.clone(),
            destination_ips: m.destination_ips.clone(),
            not_destination_ips: m.not_destination_ips.clone(),
            destination_ports: m.destination_ports.clone(),
            not_destination_ports: m.not_destination_ports.clone(),
        }
    }
}

/// `{"Exact": "x"}` and so on; `{"Presence": []}`.
#[derive(Serialize)]
enum Text {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Presence([u8; 0]),
}

impl From<&StringMatch> for Text {
    fn from(m: &StringMatch) -> Self {
        match m {
            StringMatch::Exact(text) => Self::Exact(text.clone()),
            StringMatch::Prefix(text) => Self::Prefix(text.clone()),
            StringMatch::Suffix(text) => Self::Suffix(text.clone()),
            StringMatch::Presence => Self::Presence([]),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl From<&ServiceAccount> for Account {
    fn from(account: &ServiceAccount) -> Self {
        Self {
            namespace: account.namespace.clone(),
            service_account: account.name.clone(),
        }
    }
}

/// A policy whose present version cannot be read.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnreadableView<'a> {
    key: &'a str,
    scope: &'static str,
    error: &'a str,
    in_force: &'static str,
}

pub(super) fn unreadable(policies: &Policies) -> impl Iterator<Item = UnreadableView<'_>> {
    policies.unreadable().map(|u| UnreadableView {
        key: u.key.as_str(),
        scope: scope(u.scope),
        error: &u.error,
        in_force: match policies.fallback(&u.key) {
            Some(Fallback::LastGood) => "LastGood",
            Some(Fallback::Refusal) | None => "Refusal",
            Some(Fallback::Nothing) => "Nothing",
        },
    })
}
