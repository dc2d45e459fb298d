//! The decision on a connection.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambient_core::{Identity, PolicyKey, Workload};

use crate::{
    Peer, Policies,
    index::{
        Begin, Entry, Listed, Passing, Place, Reader, Row,
        scan::{Address, Asked, Seeker},
    },
    policies::{Kind, Known, is_converted},
    policy::{Refuses, Unreadable},
    target::Target,
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

/// What becomes of a connection, and why. It is exhaustive on purpose: whoever enforces it must know each.
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
    #[error("{0}")]
    Unreadable(Arc<Unreadable>),
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
/// How long it takes is bounded for a peer that was resolved ([`Policies::resolve`]), and in plaintext; for one that was not resolved
/// it may take some three times as long where hundreds of thousands of rules nearly match.
///
/// It does not allocate, except to tell the verdicts of policies in dry run, and for a workload that lists more than 2,048
/// policies and is no [`Target`].
/// What a workload lists is looked up key by key each time; whoever decides on many connections to it has that done once, by
/// a [`Target`].
pub fn decide(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    to(policies, workload, conn, |question| question.decide(false))
}

/// Whether a connection that was let in before may stay, and which policy says so.
///
/// It is decided as [`decide()`] does for a new one, but what refuses only new ones ([`Unreadable::only_new`]) is passed over.
/// For which connections that is to be asked after a change, [`Policies::advance`] tells.
pub fn decide_again(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Decision {
    to(policies, workload, conn, |question| question.decide(true))
}

/// What the policies in dry run would have done with a connection, also with one that is refused.
///
/// DENY policies are told always, ALLOW policies only where no enforced DENY policy refuses the connection; of each at
/// most the first hundred by key.
pub fn dry_run(policies: &Policies, workload: &Workload, conn: &Conn<'_>) -> Vec<DryRun> {
    to(policies, workload, conn, |question| question.dry_run())
}

/// A connection, the policies, and what of them applies.
pub(crate) struct Question<'a> {
    policies: &'a Policies,
    has_identity: bool,
    /// The mesh, and the workload's namespace.
    places: [Option<&'a Place>; 2],
    attached: Attached<'a>,
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

/// Asks about a connection to a workload.
fn to<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, answer: impl FnOnce(&Question<'_>) -> T) -> T {
    // What is listed is looked up once; most workloads list a few.
    match workload.policies.len() {
        few if few <= FEW_LISTED => look_up(policies, workload, conn, &mut [0; FEW_LISTED], answer),
        many if many <= MANY_LISTED => look_up_many(policies, workload, conn, answer),
        more => look_up(policies, workload, conn, &mut vec![0; more], answer),
    }
}

/// The same where that is looked up already.
pub(crate) fn at<T>(policies: &Policies, target: &Target, conn: &Conn<'_>, answer: impl FnOnce(&Question<'_>) -> T) -> T {
    if !policies.fits(target) {
        return to(policies, target.workload(), conn, answer);
    }
    ask(policies, target.place(), (target.attached(), target.listed()), conn, answer)
}

#[inline(never)] // its stack is large
fn look_up_many<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, answer: impl FnOnce(&Question<'_>) -> T) -> T {
    look_up(policies, workload, conn, &mut [0; MANY_LISTED], answer)
}

/// Asks with room for as many numbers as the workload lists policies.
fn look_up<T>(policies: &Policies, workload: &Workload, conn: &Conn<'_>, room: &mut [u32], answer: impl FnOnce(&Question<'_>) -> T) -> T {
    let mut listed = 0;
    let attached = Attached::new(policies, &workload.policies, |number| {
        if let Some(place) = room.get_mut(listed) {
            *place = number;
            listed += 1;
        }
    });
    let place = policies.index().terms.place(&workload.namespace);
    ask(policies, place, (attached, Listed::new(&mut room[..listed])), conn, answer)
}

fn ask<'a, T>(
    policies: &'a Policies,
    place: Option<u32>,
    (attached, listed): (Attached<'a>, Listed<'a>),
    conn: &Conn<'_>,
    answer: impl FnOnce(&Question<'_>) -> T,
) -> T {
    let mut room = [0; FEW_NAMES];
    let (names, passing) = match conn.peer.identity() {
        // Whatever it was resolved against, if it was.
        None => (policies.nobody().names(), policies.nobody().passing()),
        Some(_) if policies.knows_names(conn.peer) => (conn.peer.names(), conn.peer.passing()),
        Some(identity) => match policies.index().terms.names.numbers(identity, &mut room) {
            Some(names) => (names, conn.peer.passing()),
            None => {
                return with_many_names(policies, identity, |names| {
                    ask_of(policies, place, (attached, listed), conn, (names, conn.peer.passing()), answer)
                });
            }
        },
    };
    ask_of(policies, place, (attached, listed), conn, (names, passing), answer)
}

/// Looks the names of a peer up that has more than a few. Identities are of 2,048 bytes at most, says SPIFFE, and have no more
/// than there is room for.
#[inline(never)] // its stack is large
fn with_many_names<T>(policies: &Policies, identity: &Identity, ask: impl FnOnce(&[u32]) -> T) -> T {
    let mut room = [0; MANY_NAMES];
    match policies.index().terms.names.numbers(identity, &mut room) {
        Some(names) => ask(names),
        None => ask(policies.names_of(Some(identity)).names()),
    }
}

fn ask_of<'a, T>(
    policies: &'a Policies,
    place: Option<u32>,
    (attached, listed): (Attached<'a>, Listed<'a>),
    conn: &Conn<'_>,
    (names, passing): (&'a [u32], Option<&'a Passing>),
    answer: impl FnOnce(&Question<'_>) -> T,
) -> T {
    let (index, terms) = (policies.index(), &policies.index().terms);
    let port = conn.destination.port();
    let asked = Asked {
        index,
        names,
        source: Address::new(conn.source, &terms.sources),
        destination: Address::new(conn.destination.ip(), &terms.destinations),
        port: terms.ports.number(&port),
        place,
        listed,
        passing,
        last_rule: Cell::new(None),
        words_left: Cell::new(0),
    };
    answer(&Question {
        policies,
        has_identity: conn.peer.identity().is_some(),
        places: [Some(&*terms.mesh), place.and_then(|place| terms.places.value(place))],
        attached,
        asked,
    })
}

impl<'a> Question<'a> {
    /// The decision; on one that was let in before, if it is asked again.
    pub(crate) fn decide(&self, again: bool) -> Decision {
        let verdict = self.enforced();
        if let Some(denial) = self.refusal(&verdict, again) {
            return Decision::Deny(denial);
        }
        if verdict.allow.is_none() && self.any(Kind::Allow) {
            return Decision::Deny(Denial::NoneAllowed);
        }
        Decision::Allow(Allowed {
            by: verdict.allow.as_ref().map(|found| found.entry.key.clone()),
            dry_run: self.told(&verdict),
        })
    }

    /// What policies in dry run would have done.
    pub(crate) fn dry_run(&self) -> Vec<DryRun> {
        self.told(&self.enforced())
    }

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
            && let Some(unreadable) = self.unreadable(again)
        {
            return Some(Denial::Unreadable(unreadable.clone()));
        }
        self.missing().map(|key| Denial::NotArrived(key.clone()))
    }

    fn told(&self, verdict: &Verdict<'_>) -> Vec<DryRun> {
        let mut verdicts: Vec<_> = self.keys_matching(Kind::DryDeny).into_iter().map(DryRun::WouldDeny).collect();
        if !self.any(Kind::DryAllow) || verdict.deny.is_some() {
            return verdicts;
        }
        let allowing = self.keys_matching(Kind::DryAllow);
        if allowing.is_empty() && !self.any(Kind::Allow) {
            verdicts.push(DryRun::NoneWouldAllow);
        }
        verdicts.extend(allowing.into_iter().map(DryRun::WouldAllow));
        verdicts
    }

    fn keys_matching(&self, kind: Kind) -> Vec<PolicyKey> {
        if !self.any(kind) {
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

    /// Whether any policy of a kind applies.
    fn any(&self, kind: Kind) -> bool {
        let of_places = self.places.iter().flatten().any(|place| place.kinds[kind as usize] > 0);
        of_places || self.attached.kinds[kind as usize]
    }

    /// The first by key that has no version that could be read.
    fn unreadable(&self, again: bool) -> Option<&Arc<Unreadable>> {
        // A place's stand in order, so its first is its least.
        let refuses = |unreadable: &&Arc<Unreadable>| !(again && unreadable.only_new);
        let of_places = self.places.iter().flatten();
        let of_places = of_places.filter_map(|place| place.unreadable.values().find(refuses));
        of_places
            .chain(self.attached.unreadable[usize::from(again)])
            .min_by_key(|unreadable| &unreadable.key)
    }

    /// The first by key that is listed, not known, and refuses the peer.
    fn missing(&self) -> Option<&PolicyKey> {
        let [any, not_converted] = self.attached.missing;
        match self.policies.refuses_missing() {
            Refuses::Nobody => None,
            Refuses::Plaintext if self.has_identity => not_converted,
            Refuses::Plaintext | Refuses::Everybody => any,
        }
    }
}

/// What is known of the policies that a workload lists, whatever connects to it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Attached<'a> {
    /// Of what kinds there are policies in force.
    pub(crate) kinds: [bool; 4],
    /// Of those that are not known the first by key, and the first that no PeerAuthentication was made into.
    pub(crate) missing: [Option<&'a PolicyKey>; 2],
    /// Of those that have no version that could be read the first by key, and the first that refuses standing connections
    /// as well.
    pub(crate) unreadable: [Option<&'a Arc<Unreadable>>; 2],
}

impl<'a> Attached<'a> {
    /// Calls for the number of each that is in force.
    pub(crate) fn new(policies: &'a Policies, listed: &'a [PolicyKey], mut in_force: impl FnMut(u32)) -> Self {
        let mut new = Self::default();
        for key in listed {
            match policies.known(key) {
                Some(Known::Good(number) | Known::LastGood(number)) => {
                    in_force(*number);
                    if let Some(entry) = policies.entry(*number) {
                        new.kinds[entry.kind as usize] = true;
                    }
                }
                Some(Known::Unreadable(unreadable)) if unreadable.dry_run => {}
                Some(Known::Unreadable(unreadable)) => {
                    let of_standing = !unreadable.only_new;
                    least(&mut new.unreadable, unreadable, |one| &one.key, of_standing);
                }
                Some(Known::Kept) => {}
                None => least(&mut new.missing, key, |key| key, !is_converted(key)),
            }
        }
        new
    }
}

/// Keeps the first of all, and of some of them.
fn least<'a, T, K: Ord>(firsts: &mut [Option<&'a T>; 2], one: &'a T, key: impl Fn(&T) -> &K, is_of_some: bool) {
    for (first, _) in firsts.iter_mut().zip([true, is_of_some]).filter(|(_, counts)| *counts) {
        if first.is_none_or(|first| key(one) < key(first)) {
            *first = Some(one);
        }
    }
}

/// Of policies in dry run that match, so many of each action are told.
pub(crate) const MOST_TOLD: usize = 100;
/// A workload lists some policies.
const FEW_LISTED: usize = 16;
/// Room for these is 8 KiB of a stack.
const MANY_LISTED: usize = 2048;
/// A whole name, its namespace, account and trust domain, and some beginnings and ends.
const FEW_NAMES: usize = 32;
/// All beginnings and all ends of a principal, and once more of what it consists of, at 2,048 bytes; 32 KiB of a stack.
const MANY_NAMES: usize = 8208;
