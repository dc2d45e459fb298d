//! The wire form of a policy, `istio.security.Authorization`, as plain values, and its reading into a [`Policy`].
//!
//! Whatever decodes the protocol fills these types; this crate knows no protobuf. The names are those of ztunnel's copy
//! of the schema, with Istio's in each type's doc. [`read`] makes a policy of it, all of it or none: a value that cannot
//! be read refuses the whole policy and is named ([`ReadError`]). What the control plane has sent is the model: nothing
//! in it is taken to mean another thing, and an empty match is never true.
//!
//! [`Settings::istio_exact`] reads as ztunnel does instead, which drops such values one by one and so may widen what is
//! left.
//!
//! ```
//! use ambient_authz::wire::{self, Address, Authorization, Clause, Match, Rule, Settings};
//!
//! let from = |length| Match {
//!     source_ips: vec![Address { address: vec![10, 0, 0, 0], length }],
//!     ..Match::default()
//! };
//! let policy = |length| Authorization {
//!     name: "office".into(),
//!     namespace: "shop".into(),
//!     scope: 1,
//!     rules: vec![Rule { clauses: vec![Clause { matches: vec![from(length)] }] }],
//!     ..Authorization::default()
//! };
//! assert_eq!(wire::read(&policy(8), &Settings::default())?.key.as_str(), "shop/office");
//! let error = wire::read(&policy(33), &Settings::default()).unwrap_err();
//! assert_eq!(&*error.path, "rules[0].clauses[0].matches[0].source_ips[0]");
//! # Ok::<(), wire::ReadError>(())
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ambient_core::{PolicyKey, TrustDomain};
use ipnet::IpNet;

use crate::{
    Action, Policy, Scope, StringMatch as Text,
    policy::{self, Unreadable},
    trust::Names,
};

#[cfg(test)]
mod tests;

/// A policy as it is sent; on the wire its resource is named `NAMESPACE/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    /// Field 1.
    pub name: String,
    /// Field 2.
    pub namespace: String,
    /// Field 3: GLOBAL 0, NAMESPACE 1, WORKLOAD_SELECTOR 2.
    pub scope: i32,
    /// Field 4: ALLOW 0, DENY 1.
    pub action: i32,
    /// Field 5, `groups` in Istio's copy: the policy matches if any of these does.
    pub rules: Vec<Rule>,
    /// Field 6.
    pub dry_run: bool,
}

/// A rule, `Group` in Istio's copy: all of its clauses must be true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Field 1, `rules` in Istio's copy.
    pub clauses: Vec<Clause>,
}

/// A clause, `Rules` in Istio's copy: one of its matches must be true, if it has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// Field 2.
    pub matches: Vec<Match>,
}

/// A match: all of its fields must hold, and there must be one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Field 1.
    pub namespaces: Vec<StringMatch>,
    /// Field 2.
    pub not_namespaces: Vec<StringMatch>,
    /// Field 3, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Field 4.
    pub not_principals: Vec<StringMatch>,
    /// Field 5.
    pub source_ips: Vec<Address>,
    /// Field 6.
    pub not_source_ips: Vec<Address>,
    /// Field 7.
    pub destination_ips: Vec<Address>,
    /// Field 8.
    pub not_destination_ips: Vec<Address>,
    /// Field 9.
    pub destination_ports: Vec<u32>,
    /// Field 10.
    pub not_destination_ports: Vec<u32>,
    /// Field 11.
    pub service_accounts: Vec<ServiceAccount>,
    /// Field 12.
    pub not_service_accounts: Vec<ServiceAccount>,
}

/// How a text is compared: the cases of the message's one-of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StringMatch {
    /// None of the cases is set, or one that is not known here.
    #[default]
    Unset,
    /// The text is this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// It ends in this.
    Suffix(String),
    /// It is not empty.
    Presence,
}

/// A block of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Four bytes, or sixteen.
    pub address: Vec<u8>,
    /// How many of its first bits count.
    pub length: u32,
}

/// A service account of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Field 1.
    pub namespace: String,
    /// Field 2.
    pub service_account: String,
}

/// How the wire form is read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Read as ztunnel does: values that cannot be read are dropped one by one, ports and lengths lose their higher
    /// bits, and trust domains have no other names.
    pub istio_exact: bool,
    /// The namespace whose policies apply to the whole mesh, `istio-system` by default: what a policy of unknown scope
    /// there would apply to.
    pub root_namespace: Arc<str>,
    /// The mesh's own trust domain; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// Other names of the mesh's trust domain: a principal that names one of them, or the domain itself, means all. None
    /// by default.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether `cluster.local` in a principal means the mesh's own trust domain, whatever its name. Off by default: the
    /// control plane has sent what it means.
    pub cluster_local: bool,
}

impl Settings {
    /// What ztunnel does.
    pub fn istio_exact() -> Self {
        Self {
            istio_exact: true,
            ..Self::default()
        }
    }

    fn names(&self) -> Names<'_> {
        Names {
            own: &self.trust_domain,
            aliases: &self.trust_domain_aliases,
            cluster_local: self.cluster_local,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            istio_exact: false,
            root_namespace: "istio-system".into(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            cluster_local: false,
        }
    }
}

/// A policy that cannot be read, and what it would apply to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ReadError {
    /// Its name.
    pub key: PolicyKey,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// What it would apply to; where that is what cannot be read, its namespace, or the mesh for the root namespace.
    pub scope: Scope,
    /// Whether it is in dry run, and so refuses nothing.
    pub dry_run: bool,
    /// Where, such as `rules[0].clauses[1].matches[0].source_ips[2]`.
    pub path: Box<str>,
    /// Why.
    pub why: Box<str>,
}

impl ReadError {
    /// The value that tells it to [`Policies::apply`](crate::Policies::apply).
    pub fn unreadable(&self) -> Unreadable {
        Unreadable {
            key: self.key.clone(),
            namespace: self.namespace.clone(),
            scope: self.scope,
            only_new: false,
            dry_run: self.dry_run,
            error: self.to_string(),
        }
    }
}

/// Reads a policy, all of it or none.
///
/// # Errors
/// At the first value that cannot be read; with [`Settings::istio_exact`] only where scope or action is not known.
pub fn read(sent: &Authorization, settings: &Settings) -> Result<Policy, ReadError> {
    let key = PolicyKey::new(&sent.namespace, &sent.name);
    let namespace: Arc<str> = sent.namespace.as_str().into();
    let scope = match sent.scope {
        0 => Some(Scope::Global),
        // In ztunnel what has no namespace stands where the policies of the whole mesh do.
        1 if namespace.is_empty() => Some(Scope::Global),
        1 => Some(Scope::Namespace),
        2 => Some(Scope::Selector),
        _ => None,
    };
    let of_mesh = namespace.is_empty() || *namespace == *settings.root_namespace;
    let widest = if of_mesh { Scope::Global } else { Scope::Namespace };
    let reader = Reader { settings };
    reader.policy(sent, &key, &namespace, scope).map_err(|fault| ReadError {
        key: key.clone(),
        namespace: namespace.clone(),
        scope: scope.unwrap_or(widest),
        dry_run: sent.dry_run,
        path: fault.path.into(),
        why: fault.why.into(),
    })
}

/// Where the matches of a policy stand that hold nothing, such as `rules[0].clauses[1].matches[0]`, and so are never true.
///
/// Istiod leaves one where an attribute stood that is not for L4: of a DENY policy such a rule denies less than was
/// written, or nothing. What it was cannot be known here, so it cannot be restored; it is to be told.
pub fn empty_matches(policy: &Policy) -> impl Iterator<Item = String> {
    let rules = policy.rules.iter().enumerate();
    let clauses = rules.flat_map(|(rule, of)| of.clauses.iter().enumerate().map(move |(clause, of)| (rule, clause, of)));
    let matches = clauses.flat_map(|(rule, clause, of)| of.matches.iter().enumerate().map(move |(at, of)| (rule, clause, at, of)));
    matches
        .filter(|(.., found)| found.is_empty())
        .map(|(rule, clause, at, _)| format!("rules[{rule}].clauses[{clause}].matches[{at}]"))
}

struct Reader<'a> {
    settings: &'a Settings,
}

struct Fault {
    path: String,
    why: String,
}

impl Reader<'_> {
    fn policy(&self, sent: &Authorization, key: &PolicyKey, namespace: &Arc<str>, scope: Option<Scope>) -> Result<Policy, Fault> {
        let unknown = |path: &str, number| Fault {
            path: path.into(),
            why: format!("{number} is not known"),
        };
        let scope = scope.ok_or_else(|| unknown("scope", sent.scope))?;
        let action = match sent.action {
            0 => Action::Allow,
            1 => Action::Deny,
            other => return Err(unknown("action", other)),
        };
        for (path, missing) in [
            ("name", sent.name.is_empty()),
            ("namespace", sent.namespace.is_empty() && sent.scope == 1),
        ] {
            if missing && !self.settings.istio_exact {
                return Err(Fault {
                    path: path.into(),
                    why: "it is missing".into(),
                });
            }
        }
        Ok(Policy {
            key: key.clone(),
            namespace: namespace.clone(),
            scope,
            action,
            rules: each(&sent.rules, "rules", |rule, path| self.rule(rule, path))?,
            dry_run: sent.dry_run,
        })
    }

    fn rule(&self, sent: &Rule, path: &str) -> Result<policy::Rule, Fault> {
        let clause = |clause: &Clause, path: &str| {
            let matches = each(&clause.matches, &format!("{path}.matches"), |m, path| self.one_match(m, path))?;
            Ok(policy::Clause { matches })
        };
        let clauses = each(&sent.clauses, &format!("{path}.clauses"), clause)?;
        Ok(policy::Rule { clauses })
    }

    fn one_match(&self, sent: &Match, path: &str) -> Result<policy::Match, Fault> {
        let texts = |list: &[StringMatch], name| self.list(list, path, name, |text| Ok(vec![string(text)?]));
        let principals = |list: &[StringMatch], name| {
            self.list(list, path, name, |text| {
                let found = string(text)?;
                Ok(match self.settings.istio_exact {
                    true => vec![found],
                    false => self.settings.names().principals(found),
                })
            })
        };
        let blocks = |list: &[Address], name| self.list(list, path, name, |a| Ok(vec![self.block(a)?]));
        let ports = |list: &[u32], name| self.list(list, path, name, |p| Ok(vec![self.port(*p)?]));
        let accounts = |list: &[ServiceAccount], name| self.list(list, path, name, |a| Ok(vec![account(a)]));
        Ok(policy::Match {
            namespaces: texts(&sent.namespaces, "namespaces")?,
            not_namespaces: texts(&sent.not_namespaces, "not_namespaces")?,
            principals: principals(&sent.principals, "principals")?,
            not_principals: principals(&sent.not_principals, "not_principals")?,
            service_accounts: accounts(&sent.service_accounts, "service_accounts")?,
            not_service_accounts: accounts(&sent.not_service_accounts, "not_service_accounts")?,
            source_ips: blocks(&sent.source_ips, "source_ips")?,
            not_source_ips: blocks(&sent.not_source_ips, "not_source_ips")?,
            destination_ips: blocks(&sent.destination_ips, "destination_ips")?,
            not_destination_ips: blocks(&sent.not_destination_ips, "not_destination_ips")?,
            destination_ports: ports(&sent.destination_ports, "destination_ports")?,
            not_destination_ports: ports(&sent.not_destination_ports, "not_destination_ports")?,
            ..policy::Match::default()
        })
    }

    fn list<S, T>(&self, sent: &[S], path: &str, name: &str, read: impl Fn(&S) -> Result<Vec<T>, String>) -> Result<Vec<T>, Fault> {
        let mut found = Vec::with_capacity(sent.len());
        for (at, value) in sent.iter().enumerate() {
            match read(value) {
                Ok(values) => found.extend(values),
                Err(_) if self.settings.istio_exact => {}
                Err(why) => {
                    let path = format!("{path}.{name}[{at}]");
                    return Err(Fault { path, why });
                }
            }
        }
        Ok(found)
    }

    fn block(&self, sent: &Address) -> Result<IpNet, String> {
        let address = match *sent.address {
            [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            ref bytes => match <[u8; 16]>::try_from(bytes) {
                Ok(bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
                Err(_) => return Err(format!("{} bytes are no IP address: 4 or 16 are", bytes.len())),
            },
        };
        let length = match self.settings.istio_exact {
            true => Some(low_byte(sent.length)),
            false => u8::try_from(sent.length).ok(),
        };
        let block = length.and_then(|length| IpNet::new(address, length).ok());
        block.ok_or_else(|| format!("{} is no prefix length of {address}", sent.length))
    }

    fn port(&self, sent: u32) -> Result<u16, String> {
        match (u16::try_from(sent), self.settings.istio_exact) {
            (Ok(port), _) => Ok(port),
            (Err(_), true) => Ok(low_bits(sent)),
            (Err(_), false) => Err(format!("{sent} is not a port: 0 to 65535 are")),
        }
    }
}

fn each<S, T>(sent: &[S], path: &str, read: impl Fn(&S, &str) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    sent.iter()
        .enumerate()
        .map(|(at, one)| read(one, &format!("{path}[{at}]")))
        .collect()
}

fn string(sent: &StringMatch) -> Result<Text, String> {
    Ok(match sent {
        StringMatch::Unset => return Err("neither exact, prefix, suffix nor presence is set".into()),
        StringMatch::Exact(text) => Text::Exact(text.as_str().into()),
        StringMatch::Prefix(text) => Text::Prefix(text.as_str().into()),
        StringMatch::Suffix(text) => Text::Suffix(text.as_str().into()),
        StringMatch::Presence => Text::Presence,
    })
}

fn account(sent: &ServiceAccount) -> policy::ServiceAccount {
    policy::ServiceAccount {
        namespace: sent.namespace.as_str().into(),
        name: sent.service_account.as_str().into(),
    }
}

fn low_byte(number: u32) -> u8 {
    number.to_le_bytes()[0]
}

fn low_bits(number: u32) -> u16 {
    let [low, high, ..] = number.to_le_bytes();
    u16::from_le_bytes([low, high])
}
