//! Why a connection may pass or not, as data and as text, and what would turn the answer.
//!
//! [`explain()`] answers what [`decide()`] answers, and tells beside it the policies that it had to ask, the rules of
//! them with the fields that failed, and the smallest change that would make the answer another. It walks the policies
//! one by one and writes texts: it is for a person who asks, and [`decide()`] pays nothing for it. What it tells is a page,
//! however many policies there are; [`explain_all()`] leaves nothing out.
//!
//! ```
//! use ambient_authz::{explain::explain, policy::Update, Action, Conn, Match, Peer, Policies, Policy, Rule, Scope};
//! use ambient_core::Workload;
//!
//! let web_only = Match { destination_ports: vec![8080], ..Match::default() };
//! let policy = Policy {
//!     key: "shop/web-only".into(),
//!     namespace: "shop".into(),
//!     scope: Scope::Namespace,
//!     action: Action::Allow,
//!     rules: vec![Rule { clauses: vec![web_only.into()] }],
//!     dry_run: false,
//! };
//! let policies = Policies::default().apply([Update::Set(policy.into())]);
//! let stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
//! let nobody = Peer::plaintext();
//! let conn = Conn { peer: &nobody, source: "10.0.1.2".parse()?, destination: "10.0.2.2:9090".parse()? };
//!
//! let explanation = explain(&policies, &stock, &conn);
//! assert!(!explanation.allowed);
//! assert!(explanation.to_string().contains("destination port is 9090"));
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambient_core::{Identity, PolicyKey, Workload};
use serde::{Serialize, Serializer};

use crate::{Action, Conn, Decision, Denial, DryRun, Policies, Scope, decide, dry_run};

mod considered;
#[cfg(test)]
mod tests;
mod text;
mod trace;
mod turn;

use considered::Weighed;
pub use text::one_line;

/// Explains the decision on a connection, in a page: of many policies, rules and keys it tells the first ten, those that
/// decided and came closest among them, and how many more there are.
///
/// The answer, the policy and the rule are those of [`decide()`]. It costs a walk over all policies.
pub fn explain(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Explanation {
    told(policies, workload, conn, MOST_TOLD)
}

/// Explains the decision on a connection as [`explain()`] does, with all policies, rules and keys, however many they are.
pub fn explain_all(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Explanation {
    told(policies, workload, conn, usize::MAX)
}

fn told(policies: &Policies, workload: &Workload, conn: &Conn<'_>, most: usize) -> Explanation {
    let decision = decide(policies, workload, conn);
    let weighed = considered::policies(policies, workload, conn);
    let mut refusals = considered::refusals(policies, workload, conn);
    let (policy, rule) = decided_by(&decision, &weighed);
    let closest = turn::closest(&decision, &weighed).map(|(of, rule)| considered::closest(policies, of, rule, conn));
    let turn = turn::of(&decision, &weighed, &refusals, closest, most);
    let named = [policy.as_ref(), turn.closest().map(|closest| &closest.policy)];
    let chosen = considered::chosen(&weighed, named, most);
    let traces: Vec<_> = chosen.iter().map(|of| considered::trace(policies, of, conn, most)).collect();
    let mut dry_run: Vec<_> = dry_run(policies, workload, conn).iter().map(DryRun::to_string).collect();
    Explanation {
        allowed: decision.is_allow(),
        reason: decision.to_string(),
        policy,
        rule,
        place: None,
        connection: Connection {
            identity: conn.peer.identity().cloned(),
            source: conn.source,
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            destination: conn.destination,
        },
        notes: Vec::new(),
        turn,
        more_policies: weighed.len() - traces.len(),
        policies: traces,
        more_refusals: cut(&mut refusals, most),
        refusals,
        more_dry_run: cut(&mut dry_run, most),
        dry_run,
        decision,
    }
}

/// Leaves the first few, and says how many are gone.
fn cut<T>(list: &mut Vec<T>, most: usize) -> usize {
    let more = list.len().saturating_sub(most);
    list.truncate(most);
    more
}

fn decided_by(decision: &Decision, weighed: &[Weighed<'_>]) -> (Option<PolicyKey>, Option<usize>) {
    match decision {
        Decision::Allow(allowed) => {
            let by = allowed.by.as_ref().and_then(|key| weighed.iter().find(|of| of.entry.key == *key));
            (allowed.by.clone(), by.and_then(|of| of.matching))
        }
        Decision::Deny(Denial::ByPolicy(key, rule)) => (Some(key.clone()), Some(*rule)),
        Decision::Deny(Denial::Unreadable(unreadable)) => (Some(unreadable.key.clone()), None),
        Decision::Deny(Denial::NotArrived(key)) => (Some(key.clone()), None),
        Decision::Deny(Denial::NoneAllowed) => (None, None),
    }
}

/// A decision with its reasons. Its text puts what decided first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether the connection may pass.
    pub allowed: bool,
    /// Why, in one sentence: the text of the decision, as it stands in the log.
    pub reason: String,
    /// The policy that decided, the first by key of several that would have decided the same; none where none did.
    pub policy: Option<PolicyKey>,
    /// The rule of it that matches, from 0; none where it is no rule that decided.
    pub rule: Option<usize>,
    /// Where that stands, as an [`Origin`] tells.
    pub place: Option<String>,
    /// What was asked.
    pub connection: Connection,
    /// What whoever asks should know as well; empty until somebody puts it in.
    pub notes: Vec<String>,
    /// What would turn the answer.
    pub turn: Turn,
    /// Policies that apply to the workload: DENY before ALLOW, those in dry run last, each by key.
    pub policies: Vec<PolicyTrace>,
    /// How many more apply.
    pub more_policies: usize,
    /// What applies to the workload and is no policy that could be asked, by key.
    pub refusals: Vec<Refusal>,
    /// How many more there are.
    pub more_refusals: usize,
    /// What the policies in dry run would have done.
    pub dry_run: Vec<String>,
    /// How many more such verdicts there are.
    pub more_dry_run: usize,
    /// The decision itself.
    #[serde(skip)]
    pub decision: Decision,
}

/// What is known of policies where they were written, beyond what is in force of them.
pub trait Origin {
    /// The number of a rule there: a reading may have left some out (see `kubernetes::Reading::rules`).
    fn rule(&self, policy: &PolicyKey, rule: usize) -> usize;

    /// Where a policy stands, or a rule of it, such as `shop.yaml:27`.
    fn place(&self, policy: &PolicyKey, rule: Option<usize>) -> Option<String>;

    /// The resource of another kind that a policy was made of, such as `PeerAuthentication shop/strict`, where its name
    /// does not tell.
    fn made_from(&self, policy: &PolicyKey) -> Option<String>;
}

impl Explanation {
    /// Puts in where things were written, and numbers rules as they are there. To be asked for once.
    pub fn trace_to(&mut self, origin: &impl Origin) {
        if let Some(key) = &self.policy {
            self.place = origin.place(key, self.rule);
            self.rule = self.rule.map(|rule| origin.rule(key, rule));
        }
        for policy in &mut self.policies {
            policy.place = origin.place(&policy.key, None);
            policy.made_from = origin.made_from(&policy.key).or_else(|| policy.made_from.take());
            for rule in &mut policy.rules {
                rule.rule = origin.rule(&policy.key, rule.rule);
            }
        }
        for refusal in &mut self.refusals {
            refusal.place = origin.place(&refusal.key, None);
        }
        if let Some(closest) = self.turn.closest_mut() {
            closest.place = origin.place(&closest.policy, Some(closest.rule));
            closest.rule = origin.rule(&closest.policy, closest.rule);
        }
    }
}

/// The connection that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Who the peer has proven to be; none in plaintext.
    pub identity: Option<Identity>,
    /// The address that it comes from.
    pub source: IpAddr,
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// The workload's name.
    pub name: Arc<str>,
    /// The pod's address, and the port in the pod.
    pub destination: SocketAddr,
}

/// A policy that applies to the workload, and what became of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTrace {
    /// Its name.
    pub key: PolicyKey,
    /// What it does with a connection that it matches.
    #[serde(serialize_with = "as_text")]
    pub action: Action,
    /// What it applies to.
    #[serde(serialize_with = "as_text")]
    pub scope: Scope,
    /// Why it applies to this workload.
    pub applies: Applies,
    /// Whether its verdict is only told.
    pub dry_run: bool,
    /// The PeerAuthentication that it comes from, as its name tells.
    pub made_from: Option<String>,
    /// Where it stands, as an [`Origin`] tells.
    pub place: Option<String>,
    /// What is wrong with its present version: then this is the last good one.
    pub unreadable: Option<String>,
    /// Rules of it in their order.
    pub rules: Vec<RuleTrace>,
    /// How many more it has.
    pub more_rules: usize,
}

impl PolicyTrace {
    /// The number of the first rule that matches.
    pub fn matching_rule(&self) -> Option<usize> {
        self.rules.iter().find(|rule| rule.matches).map(|rule| rule.rule)
    }
}

/// Why a policy applies to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Applies {
    /// It is for the whole mesh.
    Mesh,
    /// It is for all of the workload's namespace.
    Namespace,
    /// The workload lists it: its selector selects the workload.
    Listed,
}

impl fmt::Display for Applies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "for the whole mesh",
            Self::Namespace => "for its namespace",
            Self::Listed => "attached to the workload",
        })
    }
}

/// A rule, and why it matches or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTrace {
    /// Its number in the policy, from 0.
    pub rule: usize,
    /// Whether it matches.
    pub matches: bool,
    /// Of a rule that matches, what it was by; empty for one without clauses, which always matches.
    pub hits: Vec<Hit>,
    /// Of a rule that does not, what failed, in the order of the clauses; of a clause with several matches the one that
    /// came closest. The first of these is the first field that failed.
    pub failures: Vec<Failure>,
}

/// A field that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hit {
    /// The number of the clause, from 0.
    pub clause: usize,
    /// The number of the match in the clause, from 0.
    pub alternative: usize,
    /// The field.
    pub field: Field,
    /// The connection's value; none where the peer has no identity.
    pub compared: Option<String>,
    /// The value that it hit; none where the field only excludes values.
    pub by: Option<String>,
    /// The values that are excluded, none of which hit.
    pub none_of: Option<Values>,
}

/// A field that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The number of the clause, from 0.
    pub clause: usize,
    /// The number of the match in the clause, from 0: the one that came closest.
    pub alternative: usize,
    /// How many other matches of the clause failed as well; any of them would have done.
    pub others: usize,
    /// What failed.
    #[serde(flatten)]
    pub mismatch: Mismatch,
}

/// How a field fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Mismatch {
    /// No value that is wanted hits.
    NoneHits {
        /// The field.
        field: Field,
        /// The connection's value; none where the peer has no identity.
        compared: Option<String>,
        /// The values, one of which would have done.
        wanted: Values,
    },
    /// A value that is excluded hits.
    Excluded {
        /// The field.
        field: Field,
        /// The connection's value; none where the peer has no identity.
        compared: Option<String>,
        /// The value that is excluded.
        by: String,
    },
    /// The match holds no value at all, so it is never true.
    Empty,
}

/// The first few values of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Values {
    /// At most 16, as a resource writes them.
    pub values: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

/// What of a connection is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Field {
    /// The namespace of the peer's identity.
    Namespaces,
    /// The peer's identity without `spiffe://`.
    Principals,
    /// The trust domain of the peer's identity.
    TrustDomains,
    /// Namespace and account of the peer's identity.
    ServiceAccounts,
    /// The address that the connection comes from.
    SourceIps,
    /// The pod's address.
    DestinationIps,
    /// The port in the pod.
    DestinationPorts,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "source namespace",
            Self::Principals => "source principal",
            Self::TrustDomains => "source trust domain",
            Self::ServiceAccounts => "source service account",
            Self::SourceIps => "source IP",
            Self::DestinationIps => "destination IP",
            Self::DestinationPorts => "destination port",
        })
    }
}

/// Something that applies to the workload and that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The policy.
    pub key: PolicyKey,
    /// Why it applies to this workload.
    pub applies: Applies,
    /// Where it stands, as an [`Origin`] tells.
    pub place: Option<String>,
    /// What is the matter with it.
    #[serde(flatten)]
    pub why: RefusalReason,
    /// Whether it refuses this connection; else it is passed over.
    pub refuses: bool,
}

/// What is the matter with a policy that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum RefusalReason {
    /// No version of it could be read.
    Unreadable {
        /// Where it cannot be read and why.
        error: String,
    },
    /// The workload lists it, and it has not come.
    NotArrived {
        /// Whether it is no longer waited for, and so refuses peers without an identity only.
        plaintext_only: bool,
    },
}

/// The first keys of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// These, in order.
    pub keys: Vec<PolicyKey>,
    /// How many more there are.
    pub more: usize,
}

impl Keys {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are, with those that are not told.
    pub fn len(&self) -> usize {
        self.keys.len() + self.more
    }
}

/// The smallest change that would turn the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "to")]
pub enum Turn {
    /// To allow it all of these would have to be, as each refuses on its own.
    Allow {
        /// DENY policies that match: they would have to go, or not to match.
        deny: Keys,
        /// Policies that cannot be read: they would have to be mended or withdrawn.
        unreadable: Keys,
        /// Policies that the workload lists and that have not come: they would have to come.
        missing: Keys,
        /// That ALLOW policies apply and none admits the connection.
        not_allowed: Option<NotAllowed>,
    },
    /// To refuse it, any of these.
    Refuse {
        /// The ALLOW policies that admit it: all of them would have to go.
        admitting: Keys,
        /// Whether another ALLOW policy applies; if not, the connection would pass without those too, as where no
        /// ALLOW policy applies everything may.
        others_apply: bool,
        /// The DENY rule that came closest.
        closest: Option<Closest>,
    },
}

impl Turn {
    /// The rule that came closest.
    pub fn closest(&self) -> Option<&Closest> {
        match self {
            Self::Allow { not_allowed, .. } => not_allowed.as_ref()?.closest.as_ref(),
            Self::Refuse { closest, .. } => closest.as_ref(),
        }
    }

    fn closest_mut(&mut self) -> Option<&mut Closest> {
        match self {
            Self::Allow { not_allowed, .. } => not_allowed.as_mut()?.closest.as_mut(),
            Self::Refuse { closest, .. } => closest.as_mut(),
        }
    }
}

/// That ALLOW policies apply and none admits the connection: the closest rule would have to, or another one, or all of
/// the policies would have to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotAllowed {
    /// The ALLOW policies that apply.
    pub policies: Keys,
    /// The rule that came closest; none where they have no rules.
    pub closest: Option<Closest>,
}

/// A rule that came closest to matching: the fewest fields of it failed, and of several such it is the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Closest {
    /// The policy.
    pub policy: PolicyKey,
    /// The number of the rule in it, from 0.
    pub rule: usize,
    /// Where that stands, as an [`Origin`] tells.
    pub place: Option<String>,
    /// What failed.
    pub failures: Vec<Failure>,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Of policies, of a policy's rules and of keys so many are told.
const MOST_TOLD: usize = 10;
