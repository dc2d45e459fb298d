//! A rule against a connection, field by field.

use std::net::IpAddr;

use ambient_core::Identity;
use ipnet::IpNet;

use super::{Failure, Field, Hit, Mismatch, RuleTrace, Values};
use crate::{Clause, Conn, Match, Rule, ServiceAccount, StringMatch};

/// How far a rule is from matching: how many fields fail, after whether a match of it holds nothing. Then it is further
/// away than any other: no connection could make it match.
pub(super) type Distance = (bool, usize);

/// How far a rule is from matching; none where it does.
pub(super) fn distance(rule: &Rule, conn: &Conn<'_>) -> Option<Distance> {
    let clauses = rule.clauses.iter().filter(|clause| !clause.matches.is_empty());
    let failing = clauses.filter_map(|clause| of_clause(clause, conn).1.err());
    failing.map(|failing| distance_of(&failing)).reduce(|a, b| (a.0 | b.0, a.1 + b.1))
}

/// A rule with all that hits, or all that fails.
pub(super) fn of_rule(number: usize, rule: &Rule, conn: &Conn<'_>) -> RuleTrace {
    let mut trace = RuleTrace {
        rule: number,
        matches: true,
        hits: Vec::new(),
        failures: Vec::new(),
    };
    for (at, clause) in rule.clauses.iter().enumerate().filter(|(_, clause)| !clause.matches.is_empty()) {
        match of_clause(clause, conn) {
            (alternative, Ok(())) => trace.hits.extend(hits(at, alternative, &clause.matches[alternative], conn)),
            (alternative, Err(failing)) => {
                let others = clause.matches.len() - 1;
                let found = &clause.matches[alternative];
                let failures = failing.into_iter().map(|what| Failure {
                    clause: at,
                    alternative,
                    others,
                    mismatch: mismatch(found, what, conn),
                });
                trace.failures.extend(failures);
            }
        }
    }
    trace.matches = trace.failures.is_empty();
    if !trace.matches {
        trace.hits.clear();
    }
    trace
}

/// A field and a list of it that fails; `None` for a match that holds nothing.
type Failing = Option<(Field, Side)>;

/// The first match that is true, else the one that came closest and what of it fails.
fn of_clause(clause: &Clause, conn: &Conn<'_>) -> (usize, Result<(), Vec<Failing>>) {
    let mut closest: Option<(usize, Vec<Failing>)> = None;
    for (at, found) in clause.matches.iter().enumerate() {
        let failing = failing(found, conn);
        if failing.is_empty() {
            return (at, Ok(()));
        }
        if closest.as_ref().is_none_or(|(_, best)| distance_of(&failing) < distance_of(best)) {
            closest = Some((at, failing));
        }
    }
    let (at, failing) = closest.unwrap_or_default();
    (at, Err(failing))
}

fn distance_of(failing: &[Failing]) -> Distance {
    (failing.contains(&None), failing.len())
}

fn failing(found: &Match, conn: &Conn<'_>) -> Vec<Failing> {
    if found.is_empty() {
        return vec![None];
    }
    let mut failing = Vec::new();
    for field in FIELDS {
        let wanted = List::of(found, field, Side::Wanted, conn);
        if !wanted.is_empty() && wanted.hit().is_none() {
            failing.push(Some((field, Side::Wanted)));
        }
        if List::of(found, field, Side::Excluded, conn).hit().is_some() {
            failing.push(Some((field, Side::Excluded)));
        }
    }
    failing
}

fn mismatch(found: &Match, what: Failing, conn: &Conn<'_>) -> Mismatch {
    let Some((field, side)) = what else { return Mismatch::Empty };
    let list = List::of(found, field, side, conn);
    let compared = compared(field, conn);
    match (side, list.hit()) {
        (Side::Excluded, Some(at)) => Mismatch::Excluded {
            field,
            compared,
            by: list.text(at),
        },
        _ => Mismatch::NoneHits {
            field,
            compared,
            wanted: list.values(),
        },
    }
}

fn hits(clause: usize, alternative: usize, found: &Match, conn: &Conn<'_>) -> Vec<Hit> {
    let of_field = |field| {
        let wanted = List::of(found, field, Side::Wanted, conn);
        let excluded = List::of(found, field, Side::Excluded, conn);
        let used = !wanted.is_empty() || !excluded.is_empty();
        used.then(|| Hit {
            clause,
            alternative,
            field,
            compared: compared(field, conn),
            by: wanted.hit().map(|at| wanted.text(at)),
            none_of: (!excluded.is_empty()).then(|| excluded.values()),
        })
    };
    FIELDS.into_iter().filter_map(of_field).collect()
}

/// The value of a connection in a field.
fn compared(field: Field, conn: &Conn<'_>) -> Option<String> {
    let peer = conn.peer.identity();
    match field {
        Field::Namespaces => peer.map(|p| p.namespace().to_owned()),
        Field::Principals => peer.map(|p| p.principal().to_owned()),
        Field::TrustDomains => peer.map(|p| p.trust_domain().to_string()),
        Field::ServiceAccounts => peer.map(|p| format!("{}/{}", p.namespace(), p.service_account())),
        Field::SourceIps => Some(conn.source.to_canonical().to_string()),
        Field::DestinationIps => Some(conn.destination.ip().to_canonical().to_string()),
        Field::DestinationPorts => Some(conn.destination.port().to_string()),
    }
}

/// The list of what is wanted, or of what is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Wanted,
    Excluded,
}

/// A list of a match beside the connection's value that it is compared with.
enum List<'a> {
    Texts(&'a [StringMatch], Option<&'a str>),
    Accounts(&'a [ServiceAccount], Option<&'a Identity>),
    Blocks(&'a [IpNet], IpAddr),
    Ports(&'a [u16], u16),
}

impl<'a> List<'a> {
    fn of(m: &'a Match, field: Field, side: Side, conn: &Conn<'a>) -> Self {
        let is = side == Side::Wanted;
        let peer = conn.peer.identity();
        match field {
            // The one field in which a peer without an identity has a value.
            Field::Namespaces => Self::Texts(
                if is { &m.namespaces } else { &m.not_namespaces },
                Some(peer.map_or("", Identity::namespace)),
            ),
            Field::Principals => Self::Texts(if is { &m.principals } else { &m.not_principals }, peer.map(Identity::principal)),
            Field::TrustDomains => Self::Texts(
                if is { &m.trust_domains } else { &m.not_trust_domains },
                peer.map(|p| p.trust_domain().as_str()),
            ),
            Field::ServiceAccounts => Self::Accounts(if is { &m.service_accounts } else { &m.not_service_accounts }, peer),
            Field::SourceIps => Self::Blocks(if is { &m.source_ips } else { &m.not_source_ips }, conn.source),
            Field::DestinationIps => Self::Blocks(if is { &m.destination_ips } else { &m.not_destination_ips }, conn.destination.ip()),
            Field::DestinationPorts => Self::Ports(
                if is { &m.destination_ports } else { &m.not_destination_ports },
                conn.destination.port(),
            ),
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(list, _) => list.len(),
            Self::Accounts(list, _) => list.len(),
            Self::Blocks(list, _) => list.len(),
            Self::Ports(list, _) => list.len(),
        }
    }

    /// The first value that hits.
    fn hit(&self) -> Option<usize> {
        match *self {
            Self::Texts(list, value) => value.and_then(|value| list.iter().position(|m| m.matches(value))),
            Self::Accounts(list, peer) => peer.and_then(|peer| {
                let is = |a: &ServiceAccount| *a.namespace == *peer.namespace() && *a.name == *peer.service_account();
                list.iter().position(is)
            }),
            Self::Blocks(list, ip) => list.iter().position(|block| block.contains(&ip.to_canonical())),
            Self::Ports(list, port) => list.iter().position(|p| *p == port),
        }
    }

    fn text(&self, at: usize) -> String {
        match self {
            Self::Texts(list, _) => list[at].to_string(),
            Self::Accounts(list, _) => format!("{}/{}", list[at].namespace, list[at].name),
            Self::Blocks(list, _) => list[at].to_string(),
            Self::Ports(list, _) => list[at].to_string(),
        }
    }

    fn values(&self) -> Values {
        let told = self.len().min(MAX_VALUES);
        Values {
            values: (0..told).map(|at| self.text(at)).collect(),
            more: self.len() - told,
        }
    }
}

const FIELDS: [Field; 7] = [
    Field::Principals,
    Field::Namespaces,
    Field::ServiceAccounts,
    Field::TrustDomains,
    Field::SourceIps,
    Field::DestinationIps,
    Field::DestinationPorts,
];

/// A list may hold tens of thousands of values; a reader takes in a few.
const MAX_VALUES: usize = 16;
