//! The model of a policy: what the wire form (`istio.security.Authorization`) and the Kubernetes resources both become.
//!
//! The levels, outermost first: a [`Policy`] matches if any of its rules does; a [`Rule`] if all of its clauses do; a
//! [`Clause`] if any of its matches does; a [`Match`] if it holds anything and every field of it holds. So no rules
//! never match, no clauses always do, and an empty match never does: the order and the edges are those of Istio.

use std::{fmt, net::IpAddr, sync::Arc};

use ambient_core::{Identity, PolicyKey};
use ipnet::IpNet;

use crate::Conn;

/// One change of the policies. It is exhaustive on purpose: whoever passes changes on must know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A policy is new or has changed; it replaces the one of the same key.
    Set(Arc<Policy>),
    /// A policy has come that cannot be read. Its last good version stays in force, where it was; where there is none,
    /// everything in its scope is refused.
    ///
    /// Whoever attaches policies to workloads keeps a last good version attached by the selector that it had.
    Unreadable(Arc<Unreadable>),
    /// A resource has come that cannot be read, and whose last good version is in force through policies with other
    /// keys, as a PeerAuthentication is: it is listed and refuses nothing.
    Kept(Arc<Unreadable>),
    /// A policy is gone, readable or not.
    Remove(PolicyKey),
}

impl Update {
    /// The policy concerned.
    pub fn key(&self) -> &PolicyKey {
        match self {
            Self::Set(policy) => &policy.key,
            Self::Unreadable(unreadable) | Self::Kept(unreadable) => &unreadable.key,
            Self::Remove(key) => key,
        }
    }
}

/// What is in force in the place of a policy whose present version cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fallback {
    /// Its last good version.
    LastGood,
    /// No version of it could be read: everything in its scope is refused.
    Refusal,
    /// No version of it could be read, and it is in dry run, or let go: nothing.
    Nothing,
}

/// Whom a policy refuses that a workload lists and that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refuses {
    /// Every connection.
    Everybody,
    /// Connections of peers without an identity.
    Plaintext,
    /// None: it is skipped.
    Nobody,
}

impl Refuses {
    pub(crate) fn concerns(self, has_identity: bool) -> bool {
        match self {
            Self::Everybody => true,
            Self::Plaintext => !has_identity,
            Self::Nobody => false,
        }
    }
}

/// A policy that cannot be read: all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy {key} cannot be read: {error}")]
pub struct Unreadable {
    /// Its name.
    pub key: PolicyKey,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// What it would apply to.
    pub scope: Scope,
    /// Whether it refuses only what begins from now on. So it is where not even that it is a policy is known, as of a
    /// file of whatever kinds that cannot be read at all: what was let in before goes on.
    pub only_new: bool,
    /// Whether it says of itself that its verdict is told and not enforced: then it refuses nothing. A last good version stays
    /// in force all the same.
    pub dry_run: bool,
    /// Where it cannot be read and why, such as `spec.rules[1].from[0].source.ipBlocks[2]: …`.
    pub error: String,
}

/// An L4 policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, unique among policies.
    pub key: PolicyKey,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// What it applies to.
    pub scope: Scope,
    /// What it does with a connection that it matches.
    pub action: Action,
    /// It matches if any of these does; without rules it never matches.
    pub rules: Vec<Rule>,
    /// Whether its verdict is only told, never enforced.
    pub dry_run: bool,
}

impl Policy {
    /// A policy that is enforced, and has no rules yet.
    pub fn new(key: impl Into<PolicyKey>, namespace: impl Into<Arc<str>>, scope: Scope, action: Action) -> Self {
        Self {
            key: key.into(),
            namespace: namespace.into(),
            scope,
            action,
            rules: Vec::new(),
            dry_run: false,
        }
    }

    /// The index of the first rule that matches a connection: asked one after the other, value after value.
    pub fn matching_rule(&self, conn: &Conn<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(conn))
    }
}

/// What a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Every workload of the mesh; `GLOBAL` on the wire.
    Global,
    /// Every workload of its namespace; `NAMESPACE` on the wire.
    Namespace,
    /// The workloads that list it in [`Workload::policies`](ambient_core::Workload::policies); `WORKLOAD_SELECTOR` on
    /// the wire.
    Selector,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "GLOBAL",
            Self::Namespace => "NAMESPACE",
            Self::Selector => "WORKLOAD_SELECTOR",
        })
    }
}

/// What a policy does with a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It admits it; where any such policy applies, what none of them admits is refused.
    Allow,
    /// It refuses it, whatever else admits it.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}

/// A rule: matches if all of its clauses do, so always if it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All must be true.
    pub clauses: Vec<Clause>,
}

impl Rule {
    fn matches(&self, conn: &Conn<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.matches(conn))
    }
}

/// A clause: true if any of its matches is, or if it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// One must be true.
    pub matches: Vec<Match>,
}

impl Clause {
    fn matches(&self, conn: &Conn<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(conn))
    }
}

impl From<Match> for Clause {
    fn from(one: Match) -> Self {
        Self { matches: vec![one] }
    }
}

/// A match: true if it holds any value at all and each of its fields holds.
///
/// A field is a list of values and a list of negated ones: it holds if the first is empty or any value of it hits, and
/// no value of the second does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The namespace of the peer's identity; empty text for a peer without one.
    pub namespaces: Vec<StringMatch>,
    /// None of these may be: the negative of [`namespaces`](Self::namespaces).
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity without `spiffe://`; none of it hits a peer without one.
    pub principals: Vec<StringMatch>,
    /// None of these may be: the negative of [`principals`](Self::principals).
    pub not_principals: Vec<StringMatch>,
    /// The trust domain of the peer's identity; none of it hits a peer without one. Never on the wire: istiod drops it.
    pub trust_domains: Vec<StringMatch>,
    /// None of these may be: the negative of [`trust_domains`](Self::trust_domains).
    pub not_trust_domains: Vec<StringMatch>,
    /// Namespace and account of the peer's identity, in any trust domain; none of it hits a peer without one.
    pub service_accounts: Vec<ServiceAccount>,
    /// None of these may be: the negative of [`service_accounts`](Self::service_accounts).
    pub not_service_accounts: Vec<ServiceAccount>,
    /// The address that the connection comes from. IPv4 and IPv6 never hit each other.
    pub source_ips: Vec<IpNet>,
    /// None of these may be: the negative of [`source_ips`](Self::source_ips).
    pub not_source_ips: Vec<IpNet>,
    /// The address of the pod, never that of a service.
    pub destination_ips: Vec<IpNet>,
    /// None of these may be: the negative of [`destination_ips`](Self::destination_ips).
    pub not_destination_ips: Vec<IpNet>,
    /// The port in the pod, never that of a service.
    pub destination_ports: Vec<u16>,
    /// None of these may be: the negative of [`destination_ports`](Self::destination_ports).
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it holds no value at all, and so is never true.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, conn: &Conn<'_>) -> bool {
        // The cheap fields go first; a field that is empty on both sides costs two comparisons.
        let port = conn.destination.port();
        let peer = conn.peer.identity();
        let namespace = peer.map_or("", Identity::namespace);
        field(&self.destination_ports, &self.not_destination_ports, |p| *p == port)
            && field(&self.namespaces, &self.not_namespaces, |m| m.matches(namespace))
            && field(&self.service_accounts, &self.not_service_accounts, |a| {
                peer.is_some_and(|peer| a.matches(peer))
            })
            && field(&self.trust_domains, &self.not_trust_domains, |m| {
                peer.is_some_and(|peer| m.matches(peer.trust_domain().as_str()))
            })
            && field(&self.principals, &self.not_principals, |m| {
                peer.is_some_and(|peer| m.matches(peer.principal()))
            })
            && field(&self.source_ips, &self.not_source_ips, |net| covers(net, conn.source))
            && field(&self.destination_ips, &self.not_destination_ips, |net| {
                covers(net, conn.destination.ip())
            })
            && !self.is_empty()
    }
}

fn field<T>(values: &[T], negated: &[T], hits: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&hits)) && !negated.iter().any(hits)
}

fn covers(net: &IpNet, ip: IpAddr) -> bool {
    // Sockets that listen on both families see IPv4 peers as mapped addresses.
    net.contains(&ip.to_canonical())
}

/// How a text is compared: case counts, and prefix and suffix know nothing of segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    /// The text is this.
    Exact(Arc<str>),
    /// It begins with this.
    Prefix(Arc<str>),
    /// It ends in this.
    Suffix(Arc<str>),
    /// It is not empty.
    Presence,
}

impl StringMatch {
    /// Whether it hits a text.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => text == &**wanted,
            Self::Prefix(start) => text.starts_with(&**start),
            Self::Suffix(end) => text.ends_with(&**end),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl fmt::Display for StringMatch {
    /// As a resource writes it: `a`, `a*`, `*a`, `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

/// A service account of a namespace, whatever its trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The account.
    pub name: Arc<str>,
}

impl ServiceAccount {
    fn matches(&self, peer: &Identity) -> bool {
        peer.namespace() == &*self.namespace && peer.service_account() == &*self.name
    }
}
