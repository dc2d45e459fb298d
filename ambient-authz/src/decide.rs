//! The decision on a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambient_core::{Identity, PolicyKey, Workload};

use crate::{
    Policies, Policy,
    policies::{Bucket, Kind, Known},
    policy::Unreadable,
};

#[cfg(test)]
mod tests;

/// A connection, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Conn<'a> {
    /// Who the peer has proven to be; nobody, when it speaks in plaintext.
    pub peer: Option<&'a Identity>,
    /// The address that the TCP connection comes from: of the peer, its waypoint or its gateway.
    pub source: IpAddr,
    /// The pod's address and the port in the pod, after any service port was mapped to it.
    pub destination: SocketAddr,
}

/// What becomes of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass.
    Allow(Allowed),
    /// It may not.
    Deny(Denial),
}

impl Decision {
    /// Whether it may pass.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(allowed) => allowed.fmt(f),
            Self::Deny(denial) => denial.fmt(f),
        }
    }
}

/// Why a connection may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The ALLOW policy that admits it (the first by key); none where no ALLOW policy applies to the workload at all.
    pub by: Option<PolicyKey>,
    /// What the policies in dry run would have done.
    pub dry_run: Vec<DryRun>,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some(key) => write!(f, "allowed by: {key}"),
            None => f.write_str("allowed, as no allow policy applies"),
        }
    }
}

/// Why a connection may not pass. Where ztunnel has a text for it in its log, that is the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY policy matches (the first by key), by its first rule that does.
    #[error("explicitly denied by: {0}")]
    ByPolicy(PolicyKey, usize),
    /// ALLOW policies apply to the workload, and none admits it.
    #[error("allow policies exist, but none allowed")]
    NoneAllowed,
    /// A policy that applies to the workload cannot be read, and no version of it ever could.
    #[error("policy {key} cannot be read: {error}")]
    Unreadable {
        /// The policy.
        key: PolicyKey,
        /// Where it cannot be read and why.
        error: String,
    },
    /// The workload lists a policy that is not known.
    #[error("policy {0} is attached to the workload and has not arrived")]
    NotArrived(PolicyKey),
}

/// What a policy in dry run would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// This DENY policy would have refused the connection.
    WouldDeny(PolicyKey),
    /// This ALLOW policy would have admitted it.
    WouldAllow(PolicyKey),
    /// There are ALLOW policies in dry run and none enforced: enforced, they would have refused the connection.
    NoneWouldAllow,
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeny(key) => write!(f, "dry run: would be denied by: {key}"),
            Self::WouldAllow(key) => write!(f, "dry run: would be allowed by: {key}"),
            Self::NoneWouldAllow => f.write_str("dry run: no allow policies match"),
        }
    }
}

/// Whether a connection to a workload may pass, and which policy says so.
///
/// In this order: a DENY policy that matches refuses it; so does a policy that applies and cannot be read, and one
/// that the workload lists and that has not come; it passes if no ALLOW policy applies, or any of them matches; else
/// it is refused. Of several policies that would decide the same it names the first by key, always the same.
///
/// It does not allocate, except to tell the verdicts of policies in dry run and the text of an unreadable one.
pub fn decide(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    judge(policies, workload, conn, false)
}

/// The same for a connection that was let in before: what refuses only new ones ([`Unreadable::only_new`]) is passed
/// over, and nothing else is.
pub fn decide_again(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    judge(policies, workload, conn, true)
}

fn judge(policies: &Policies, workload: &Workload, conn: &Conn<'_>, again: bool) -> Decision {
    let applies = Applies::new(policies, workload);
    if let Some(denial) = applies.refusal(conn, again) {
        return Decision::Deny(denial);
    }
    let by = match applies.allowing(conn) {
        Allowing::By(key) => Some(key.clone()),
        Allowing::NoneApplies => None,
        Allowing::NoneMatches => return Decision::Deny(Denial::NoneAllowed),
    };
    Decision::Allow(Allowed {
        by,
        dry_run: applies.dry_run(conn),
    })
}

/// What the policies in dry run would have done with a connection, also with one that is refused.
///
/// DENY policies are told always, ALLOW policies only where no enforced DENY policy refuses the connection.
pub fn dry_run(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<DryRun> {
    Applies::new(policies, workload).dry_run(conn)
}

/// The policies that apply to one workload.
struct Applies<'a> {
    policies: &'a Policies,
    /// Of the mesh, and of the workload's namespace.
    scopes: [Option<&'a Bucket>; 2],
    attached: &'a [PolicyKey],
}

enum Allowing<'a> {
    By(&'a PolicyKey),
    NoneApplies,
    NoneMatches,
}

impl<'a> Applies<'a> {
    fn new(policies: &'a Policies, workload: &'a Workload) -> Self {
        Self {
            policies,
            scopes: policies.scopes(&workload.namespace),
            attached: &workload.policies,
        }
    }

    fn refusal(&self, conn: &Conn<'_>, again: bool) -> Option<Denial> {
        if let Some((policy, rule)) = self.first(Kind::Deny, conn) {
            return Some(Denial::ByPolicy(policy.key.clone(), rule));
        }
        if self.policies.is_istio_exact() {
            return None;
        }
        if let Some(unreadable) = self.unreadable(again) {
            return Some(Denial::Unreadable {
                key: unreadable.key.clone(),
                error: unreadable.error.clone(),
            });
        }
        let missing = self.attached.iter().filter(|key| self.policies.known(key).is_none()).min();
        missing.map(|key| Denial::NotArrived(key.clone()))
    }

    fn allowing(&self, conn: &Conn<'_>) -> Allowing<'a> {
        match self.first(Kind::Allow, conn) {
            Some((policy, _)) => Allowing::By(&policy.key),
            None if self.all(Kind::Allow).next().is_some() => Allowing::NoneMatches,
            None => Allowing::NoneApplies,
        }
    }

    fn dry_run(&self, conn: &Conn<'_>) -> Vec<DryRun> {
        let mut verdicts: Vec<_> = self.keys_matching(Kind::DryDeny, conn).into_iter().map(DryRun::WouldDeny).collect();
        let asked = self.all(Kind::DryAllow).next().is_some();
        if !asked || self.first(Kind::Deny, conn).is_some() {
            return verdicts;
        }
        let allowing = self.keys_matching(Kind::DryAllow, conn);
        if allowing.is_empty() && self.all(Kind::Allow).next().is_none() {
            verdicts.push(DryRun::NoneWouldAllow);
        }
        verdicts.extend(allowing.into_iter().map(DryRun::WouldAllow));
        verdicts
    }

    /// The first policy by key that matches, and its first rule that does.
    fn first(&self, kind: Kind, conn: &Conn<'_>) -> Option<(&'a Policy, usize)> {
        let matching = |policy: &'a Arc<Policy>| Some((&**policy, policy.matching_rule(conn)?));
        // A scope's policies stand in order, so its first match is its least; the attached stand as they were listed.
        let of_scopes = self.scopes.iter().flatten().filter_map(|b| b.of(kind).iter().find_map(matching));
        let of_workload = self.attached(kind).filter_map(matching);
        of_scopes.chain(of_workload).min_by_key(|(policy, _)| &policy.key)
    }

    fn keys_matching(&self, kind: Kind, conn: &Conn<'_>) -> Vec<PolicyKey> {
        let matching = self.all(kind).filter(|policy| policy.matching_rule(conn).is_some());
        let mut keys: Vec<_> = matching.map(|policy| policy.key.clone()).collect();
        keys.sort_unstable();
        keys.dedup(); // a policy of the namespace may be attached as well
        keys
    }

    fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Arc<Policy>> {
        let of_scopes = self.scopes.into_iter().flatten().flat_map(move |b| b.of(kind));
        of_scopes.chain(self.attached(kind))
    }

    fn attached(&self, kind: Kind) -> impl Iterator<Item = &'a Arc<Policy>> {
        let policies = self.policies;
        let known = self.attached.iter().filter_map(|key| policies.known(key));
        known.filter_map(Known::in_force).filter(move |policy| Kind::of(policy) == kind)
    }

    /// The first by key that applies and has no version that could be read.
    fn unreadable(&self, again: bool) -> Option<&'a Unreadable> {
        let of_scopes = self.scopes.iter().flatten().flat_map(|b| b.unreadable());
        let of_workload = self.attached.iter().filter_map(|key| match self.policies.known(key) {
            Some(Known::Unreadable(unreadable)) => Some(unreadable),
            _ => None,
        });
        let all = of_scopes.chain(of_workload).map(|u| &**u);
        all.filter(|u| !(again && u.only_new)).min_by_key(|u| &u.key)
    }
}
