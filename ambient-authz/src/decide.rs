//! The decision on a connection.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambient_core::{PolicyKey, Workload};

use crate::{
    Peer, Policies,
    index::{
        Begin, Entry, Place, Reader, Row,
        scan::{Address, Asked, Listed, Seeker},
    },
    policies::{Kind, Known},
    policy::Unreadable,
};

#[cfg(test)]
mod tests;

/// A connection, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Conn<'a> {
    /// Who the peer has proven to be; nobody, when it speaks in plaintext.
    pub peer: &'a Peer,
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
    /// What the policies in dry run would have done: the first hundred by key of each action.
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
    /// The workload lists a policy that is not known. Once nobody waits for it any more, one that comes from a
    /// PeerAuthentication refuses peers without an identity only; see [`Policies::stop_waiting`].
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
/// In this order: a DENY policy that matches refuses it; so does a policy that applies and could never be read, and one
/// that the workload lists and that has not come ([`Policies::missing`] says whom it refuses); it passes if no ALLOW policy applies, or any of them matches; else
/// it is refused. Of several policies that would decide the same it names the first by key, always the same.
///
/// It does not allocate, except to tell the verdicts of policies in dry run and the text of an unreadable one, where a
/// peer of many names is not resolved against these policies, and for a workload that lists more than 2,048 policies.
/// What a workload lists is looked up key by key, so a decision on its connections takes as much longer.
pub fn decide(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    judge(policies, workload, conn, false)
}

/// The same for a connection that was let in before: what refuses only new ones ([`Unreadable::only_new`]) is passed
/// over, and nothing else is.
pub fn decide_again(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    judge(policies, workload, conn, true)
}

/// What the policies in dry run would have done with a connection, also with one that is refused.
///
/// DENY policies are told always, ALLOW policies only where no enforced DENY policy refuses the connection; of each at
/// most the first hundred by key.
pub fn dry_run(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<DryRun> {
    with_question(policies, workload, conn, |question| {
        let verdict = question.enforced();
        question.dry_run(&verdict)
    })
}

fn judge(policies: &Policies, workload: &Workload, conn: &Conn<'_>, again: bool) -> Decision {
    with_question(policies, workload, conn, |question| {
        let verdict = question.enforced();
        if let Some(denial) = question.refusal(&verdict, again) {
            return Decision::Deny(denial);
        }
        if verdict.allow.is_none() && question.applies.any(Kind::Allow) {
            return Decision::Deny(Denial::NoneAllowed);
        }
        Decision::Allow(Allowed {
            by: verdict.allow.as_ref().map(|found| found.entry.key.clone()),
            dry_run: question.dry_run(&verdict),
        })
    })
}

/// A connection, the policies, and what of them applies.
struct Question<'a> {
    policies: &'a Policies,
    has_identity: bool,
    applies: Applies<'a>,
    asked: Asked<'a>,
}

/// The enforced policies that match, the first by key of each kind; no ALLOW policy where a DENY policy does.
struct Verdict<'a> {
    policies: &'a Policies,
    deny: Option<Found<'a>>,
    allow: Option<Found<'a>>,
}

/// A policy that matches, and where in its words the first rule that does begins.
struct Found<'a> {
    entry: &'a Entry,
    number: u32,
    rule: u32,
}

impl Found<'_> {
    fn stands_behind(&self, key: &PolicyKey, rule: u32) -> bool {
        (&self.entry.key, self.rule) > (key, rule)
    }
}

impl<'a> Verdict<'a> {
    fn of(&self, kind: Kind) -> Option<&Found<'a>> {
        match kind {
            Kind::Deny => self.deny.as_ref(),
            Kind::Allow => self.allow.as_ref(),
            Kind::DryDeny | Kind::DryAllow => None,
        }
    }
}

impl<'a> Seeker<'a> for Verdict<'a> {
    fn wants(&self, kind: Kind) -> bool {
        match kind {
            Kind::Deny => true,
            Kind::Allow => self.deny.is_none(),
            Kind::DryDeny | Kind::DryAllow => false,
        }
    }

    fn may_matter(&self, kind: Kind, from: &Begin) -> bool {
        self.of(kind).is_none_or(|best| best.stands_behind(&from.key, from.rule))
    }

    fn found(&mut self, row: &'a Row) {
        let best = match row.kind {
            Kind::Deny => &mut self.deny,
            _ => &mut self.allow,
        };
        match best {
            Some(best) if best.number == row.entry => best.rule = best.rule.min(row.rule),
            _ => {
                let Some(entry) = self.policies.entry(row.entry) else { return };
                if best.as_ref().is_none_or(|best| best.stands_behind(&entry.key, row.rule)) {
                    *best = Some(Found {
                        entry,
                        number: row.entry,
                        rule: row.rule,
                    });
                }
            }
        }
    }
}

/// The policies in dry run that match, the first so many by key.
struct Told<'a> {
    policies: &'a Policies,
    kind: Kind,
    keys: BTreeSet<&'a PolicyKey>,
}

impl<'a> Seeker<'a> for Told<'a> {
    fn wants(&self, kind: Kind) -> bool {
        kind == self.kind
    }

    fn may_matter(&self, _: Kind, from: &Begin) -> bool {
        self.keys.len() < MOST_TOLD || self.keys.last().is_some_and(|last| **last > from.key)
    }

    fn found(&mut self, row: &'a Row) {
        if let Some(entry) = self.policies.entry(row.entry) {
            self.keys.insert(&entry.key);
            if self.keys.len() > MOST_TOLD {
                self.keys.pop_last();
            }
        }
    }
}

fn with_question<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, answer: impl FnOnce(Question<'_>) -> T) -> T {
    // What is listed is looked up once; most workloads list a few.
    match workload.policies.len() {
        few if few <= FEW_LISTED => question(policies, workload, conn, &mut [0; FEW_LISTED], answer),
        many if many <= MANY_LISTED => with_many_listed(policies, workload, conn, answer),
        more => question(policies, workload, conn, &mut vec![0; more], answer),
    }
}

#[inline(never)] // its stack is large
fn with_many_listed<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, answer: impl FnOnce(Question<'_>) -> T) -> T {
    question(policies, workload, conn, &mut [0; MANY_LISTED], answer)
}

/// Asks with room for as many numbers as the workload lists policies.
fn question<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, room: &mut [u32], answer: impl FnOnce(Question<'_>) -> T) -> T {
    let (index, terms) = (policies.index(), &policies.index().terms);
    let fresh;
    let peer = if policies.knows(conn.peer) {
        conn.peer
    } else {
        fresh = policies.resolve(conn.peer.identity());
        &fresh
    };
    let port = conn.destination.port();
    let place = terms.place(&workload.namespace);
    let places = [Some(&*terms.mesh), place.and_then(|place| terms.places.value(place))];
    let mut listed = 0;
    let applies = Applies::new(policies, &workload.policies, places, |number| {
        if let Some(place) = room.get_mut(listed) {
            *place = number;
            listed += 1;
        }
    });
    let asked = Asked {
        index,
        names: peer.names(),
        source: Address::new(conn.source, &terms.sources),
        destination: Address::new(conn.destination.ip(), &terms.destinations),
        port: terms.ports.number(&port),
        place,
        listed: Listed::new(&room[..listed]),
        last_rule: Cell::new(None),
        words_left: Cell::new(0),
    };
    answer(Question {
        policies,
        has_identity: conn.peer.identity().is_some(),
        applies,
        asked,
    })
}

/// Of policies in dry run that match, so many of each action are told.
pub(crate) const MOST_TOLD: usize = 100;
/// A workload lists some policies.
const FEW_LISTED: usize = 16;
/// Room for these is 8 KiB of a stack.
const MANY_LISTED: usize = 2048;

impl<'a> Question<'a> {
    fn enforced(&self) -> Verdict<'a> {
        let mut verdict = Verdict {
            policies: self.policies,
            deny: None,
            allow: None,
        };
        self.asked.seek(&mut verdict);
        verdict
    }

    fn refusal(&self, verdict: &Verdict<'_>, again: bool) -> Option<Denial> {
        if let Some(found) = &verdict.deny {
            let rule = Reader::rules_before(&found.entry.words, found.rule);
            return Some(Denial::ByPolicy(found.entry.key.clone(), rule));
        }
        if self.policies.unreadable_refuses()
            && let Some(unreadable) = self.applies.unreadable(self.policies, again)
        {
            return Some(Denial::Unreadable {
                key: unreadable.key.clone(),
                error: unreadable.error.clone(),
            });
        }
        if !self.applies.any_missing {
            return None;
        }
        let missing = self.policies.missing(self.applies.listed);
        let refusing = missing.filter(|(_, refuses)| refuses.concerns(self.has_identity));
        refusing.map(|(key, _)| key).min().map(|key| Denial::NotArrived(key.clone()))
    }

    fn dry_run(&self, verdict: &Verdict<'_>) -> Vec<DryRun> {
        let mut verdicts: Vec<_> = self.keys_matching(Kind::DryDeny).into_iter().map(DryRun::WouldDeny).collect();
        if !self.applies.any(Kind::DryAllow) || verdict.deny.is_some() {
            return verdicts;
        }
        let allowing = self.keys_matching(Kind::DryAllow);
        if allowing.is_empty() && !self.applies.any(Kind::Allow) {
            verdicts.push(DryRun::NoneWouldAllow);
        }
        verdicts.extend(allowing.into_iter().map(DryRun::WouldAllow));
        verdicts
    }

    fn keys_matching(&self, kind: Kind) -> Vec<PolicyKey> {
        if !self.applies.any(kind) {
            return Vec::new();
        }
        let mut told = Told {
            policies: self.policies,
            kind,
            keys: BTreeSet::new(),
        };
        self.asked.seek(&mut told);
        told.keys.into_iter().cloned().collect()
    }
}

/// What applies to one workload, whatever connects to it.
struct Applies<'a> {
    /// The mesh, and the workload's namespace.
    places: [Option<&'a Place>; 2],
    listed: &'a [PolicyKey],
    /// Of what kinds there are policies.
    kinds: [bool; 4],
    /// Whether one is listed that is not known.
    any_missing: bool,
}

impl<'a> Applies<'a> {
    /// Calls for each policy that is listed and in force.
    fn new(policies: &Policies, listed: &'a [PolicyKey], places: [Option<&'a Place>; 2], mut in_force: impl FnMut(u32)) -> Self {
        let mut new = Self {
            places,
            listed,
            kinds: [false; 4],
            any_missing: false,
        };
        for place in places.into_iter().flatten() {
            new.kinds.iter_mut().zip(place.kinds).for_each(|(is, count)| *is |= count > 0);
        }
        for key in listed {
            match policies.known(key) {
                Some(known) => {
                    let Some(number) = known.in_force() else { continue };
                    in_force(number);
                    if let Some(entry) = policies.entry(number) {
                        new.kinds[entry.kind as usize] = true;
                    }
                }
                None => new.any_missing = true,
            }
        }
        new
    }

    fn any(&self, kind: Kind) -> bool {
        self.kinds[kind as usize]
    }

    /// The first by key that has no version that could be read.
    fn unreadable(&self, policies: &'a Policies, again: bool) -> Option<&'a Arc<Unreadable>> {
        let refuses = |unreadable: &&Arc<Unreadable>| !(again && unreadable.only_new);
        // A place's stand in order, so its first is its least; the listed stand as they were listed.
        let of_places = self
            .places
            .iter()
            .flatten()
            .filter_map(|place| place.unreadable.values().find(refuses));
        let of_workload = self.listed.iter().filter_map(|key| match policies.known(key) {
            Some(Known::Unreadable(unreadable)) => Some(unreadable),
            _ => None,
        });
        of_places
            .chain(of_workload.filter(refuses))
            .min_by_key(|unreadable| &unreadable.key)
    }
}
