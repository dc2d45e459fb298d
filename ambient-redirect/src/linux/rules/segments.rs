//! What is captured has the loopback device's segments, not the link's.
//!
//! A socket takes the size of its segments, and the one that it announces to the other end, from the route to whom it wants. What is
//! captured goes no further than to the proxy in the same namespace, and would yet be cut as the link has it, forty times smaller:
//! more to acknowledge, and less done with each acknowledgement. So what the pod's processes send by TCP is routed by a table
//! of ours. It has the routes of the main table, each to the same hop by the same device, with an MTU as the loopback device's.
//!
//! Nothing is captured by this, and nothing is lost without it: it is for speed alone. It stands aside wherever it might do harm,
//! which is where something of the pod's leaves it around the proxy (whose other end may take larger segments than the link does),
//! where the main table says more of a route than whereto it leads, or where rules of others have their say between ours and the
//! one for the main table, which ours would leave out; what answers probes goes by the main table.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use super::{ApplyError, Change, Inside, Lists, Sought, absent_is_fine, routed};
use crate::{
    netlink::{LOOPBACK, LeadsTo, MAIN, Packet, Policy, Route, RouteKind, Rule, TCP},
    plan::{IpFamily, MARK_MASK, SEGMENTS_MTU, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
};

/// Whose segments what is captured of one family has, where those of the loopback device are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segments {
    /// The loopback device's. Connections that were captured before that have those of the link.
    Loopback,
    /// The link's, for this reason.
    Link(Aside),
    /// The loopback device's still, although they are not to be any more, or not by these routes: why the kernel does not take them
    /// away. It is asked again at each look.
    Left(String),
}

/// Why what is captured has the segments of the pod's link although those of the loopback device are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aside {
    /// Something of the pod's goes around the proxy as is asked for: what.
    Around(&'static str),
    /// So many connections from before the capture go around the proxy.
    Kept(usize),
    /// There is no route in the main table.
    NoRoute,
    /// There are more routes in the main table than a pod has.
    ManyRoutes,
    /// The main table says more of the route to there than whereto it leads, or sends nobody there.
    Route(IpNet),
    /// The main table has several routes to there, none of them before the others.
    SameRoutes(IpNet),
    /// Somebody else has routes in the table, or a routing rule that leads to it.
    TableTaken,
    /// The routing rule of somebody else's with this priority comes before the kernel's own for the main table, and after ours.
    RuleBetween(u32),
    /// The kernel's own routing rule for the main table is not there.
    NoMainRule,
    /// It is put in force, and what the pod sends goes by other routes, as where rules of others come before ours, or has no way.
    RoutedBefore,
    /// It is not put in force yet.
    Underway,
    /// They did not come about: why.
    Refused(String),
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("the loopback device's"),
            Self::Link(why) => write!(f, "the link's: {why}"),
            Self::Left(why) => write!(f, "the loopback device's still: they cannot be taken away: {why}"),
        }
    }
}

impl fmt::Display for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Around(what) => write!(f, "{what} goes around the proxy"),
            Self::Kept(1) => f.write_str("a connection from before the capture goes around the proxy"),
            Self::Kept(count) => write!(f, "{count} connections from before the capture go around the proxy"),
            Self::NoRoute => f.write_str("the main table has no route"),
            Self::ManyRoutes => write!(f, "the main table has more than {ROUTES} routes"),
            Self::Route(net) => write!(f, "the main table says more of the route to {net} than whereto it leads"),
            Self::SameRoutes(net) => write!(f, "the main table has several routes to {net} of the same metric"),
            Self::TableTaken => write!(f, "somebody else uses table {SEGMENTS_TABLE}"),
            Self::RuleBetween(priority) => write!(
                f,
                "routing rule {priority} of somebody else's comes after {SEGMENTS_PRIORITY} and before the one for the main table"
            ),
            Self::NoMainRule => f.write_str("there is no routing rule for the main table"),
            Self::RoutedBefore => write!(
                f,
                "what the pod sends does not go by table {SEGMENTS_TABLE}: a routing rule of somebody else's comes before {SEGMENTS_PRIORITY}, or there is no way"
            ),
            Self::Underway => f.write_str("the loopback device's are not put in force yet"),
            Self::Refused(why) => write!(f, "the loopback device's do not come about: {why}"),
        }
    }
}

/// What is known of a namespace's segments.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of which they were wanted then.
    wanted: Vec<IpFamily>,
    /// Of which families routing was otherwise than that has it when it was listed last.
    differs: Vec<IpFamily>,
    /// What was put there last and did not come about.
    tried: BTreeMap<IpFamily, Tried>,
    /// Why that is still there which is not to be.
    left: BTreeMap<IpFamily, String>,
    /// Whose segments there are, of the families that the plan names and of those of which some are left.
    whose: Vec<(IpFamily, Segments)>,
}

#[derive(Debug)]
struct Tried {
    what: Vec<Route>,
    why: String,
    /// How often: a device may have gone down while it was. After [`TRIES`] more nothing is put there until it would be something else.
    times: u8,
}

impl Known {
    /// What is to be there of a family, of which this is wanted: nothing where it was tried too often. What is there and is not to be is
    /// never given up: by it what goes around the proxy would be lost on the link.
    fn target(&self, family: IpFamily, mirrored: Vec<Route>) -> Vec<Route> {
        match self.is_given_up(family) {
            true => Vec::new(),
            false => mirrored,
        }
    }

    fn is_given_up(&self, family: IpFamily) -> bool {
        self.tried.get(&family).is_some_and(|tried| tried.times > TRIES)
    }

    /// Takes note of what did not come about, and why.
    fn tried(&mut self, family: IpFamily, what: Vec<Route>, why: String) {
        let before = self.tried.get(&family).map_or(0, |tried| tried.times);
        let times = before.saturating_add(1);
        self.tried.insert(family, Tried { what, why, times });
    }

    fn say(&mut self, family: IpFamily, whose: Segments) {
        self.whose.retain(|(of, _)| *of != family);
        self.whose.push((family, whose));
        self.whose.sort_unstable_by_key(|(of, _)| *of);
    }
}

/// How much goes around the proxy, of each family of which anything does.
type Around = BTreeMap<IpFamily, usize>;

/// What would become of a family's, or why nothing would.
pub(super) type Would = (IpFamily, Result<Change, Aside>);

impl Inside {
    /// Whose segments what is captured has, as it was when a plan was verified or applied last: of each family that the namespace has and
    /// for which the plan asks for the loopback device's ([`Plan::segments`](crate::plan::Plan::segments)), and of each of which they are left.
    pub fn segments(&self) -> &[(IpFamily, Segments)] {
        &self.segments.whose
    }

    /// Whether something was otherwise than the plan has it when all was listed last.
    pub(crate) fn segments_differ(&self) -> bool {
        !self.segments.differs.is_empty()
    }

    /// Has what is captured take the loopback device's segments where that is wanted, and nowhere else. Where the kernel refuses, it has
    /// the link's: it is for speed alone, so that no error of it counts. All must have been listed just before, as `lists` has it.
    pub(crate) fn keep_segments(&mut self, wanted: &[IpFamily], lists: Lists) {
        self.keep(wanted, lists, Self::newly_around);
    }

    /// As [`Inside::keep_segments`], where it is known that nothing of these families goes around the proxy: sockets need not be listed
    /// for that.
    pub(crate) fn keep_segments_alone(&mut self, wanted: &[IpFamily], lists: Lists) {
        self.keep(wanted, lists, |_, _, _| Ok(BTreeMap::new()));
    }

    fn keep(
        &mut self,
        wanted: &[IpFamily],
        lists: Lists,
        around: impl FnOnce(&mut Self, &[IpFamily], &Lists) -> Result<Around, ApplyError>,
    ) {
        let wanted = lists.families(wanted);
        // What was wanted when it was listed need not be what is now.
        if self.segments.wanted != wanted {
            self.look_at_segments(&wanted, &lists);
        }
        if self.segments_differ() {
            // What cannot be listed is looked at again.
            let _ = self.put_right(&wanted, lists, around);
        }
    }

    fn put_right(
        &mut self,
        wanted: &[IpFamily],
        mut lists: Lists,
        around: impl FnOnce(&mut Self, &[IpFamily], &Lists) -> Result<Around, ApplyError>,
    ) -> Result<(), ApplyError> {
        let around = around(self, wanted, &lists).map_err(|error| error.to_string());
        let (mut failed, mut tried) = (BTreeMap::new(), Vec::new());
        for family in self.segments.differs.clone() {
            let mirrored = self.segments.target(family, lists.wanted(family, wanted));
            let is_new = !mirrored.is_empty() && !lists.policies.contains(&rule(family));
            tried.extend((!mirrored.is_empty()).then_some(family));
            match &around {
                Err(why) if is_new => drop(failed.insert(family, why.clone())),
                Ok(around) if around.contains_key(&family) => (),
                _ => drop(
                    self.put_family(family, &mirrored, &lists)
                        .map_err(|e| failed.insert(family, e.to_string())),
                ),
            }
        }
        let around = around.unwrap_or_default();
        self.list_again(wanted, &mut lists)?;
        let mut differs = self.segments.differs.clone();
        differs.retain(|family| !around.contains_key(family));
        for family in &differs {
            self.put_in_vain(*family, wanted, &lists, failed.remove(family), tried.contains(family));
        }
        if !differs.is_empty() {
            self.list_again(wanted, &mut lists)?;
        }
        for (family, count) in around {
            if self.segments.differs.contains(&family) {
                self.segments.say(family, Segments::Link(Aside::Kept(count)));
            }
        }
        Ok(())
    }

    /// Takes note of what did not come about of a family, and why, where the kernel has said it. Takes all of it away where that is
    /// due and was not tried just now: `was_to_be` says that something was to be there then.
    fn put_in_vain(&mut self, family: IpFamily, wanted: &[IpFamily], lists: &Lists, why: Option<String>, was_to_be: bool) {
        let mirrored = self.segments.target(family, lists.wanted(family, wanted));
        let is_to_be = !mirrored.is_empty();
        if is_to_be {
            let why = why.clone().unwrap_or_else(|| "other routes are listed than were made".into());
            self.segments.tried(family, mirrored, why);
        }
        let is_given_up = is_to_be && self.segments.is_given_up(family);
        let left = match why {
            Some(why) if !was_to_be => Err(why),
            // Its rule has been taken away, or could not be.
            Some(_) if is_to_be && !is_given_up => return,
            // What changes while it is put there may leave it with routes that are none of the main table's any more.
            _ => self.put_family(family, &[], lists).map_err(|error| error.to_string()),
        };
        if let Err(why) = left {
            self.segments.left.insert(family, why);
        }
    }

    fn list_again(&mut self, wanted: &[IpFamily], lists: &mut Lists) -> Result<(), ApplyError> {
        (lists.policies, lists.routes) = (self.routing.policies()?, self.routing.all_routes()?);
        self.look_at_segments(wanted, lists);
        Ok(())
    }

    /// The families that are to have other segments than the link's, which they have until now.
    fn are_new(&self, wanted: &[IpFamily], lists: &Lists) -> Vec<IpFamily> {
        let mut new = self.segments.differs.clone();
        new.retain(|family| {
            let target = self.segments.target(*family, lists.wanted(*family, wanted));
            !target.is_empty() && !lists.policies.contains(&rule(*family))
        });
        new
    }

    /// How much goes around the proxy, of each of these of which anything does.
    fn newly_around(&mut self, wanted: &[IpFamily], lists: &Lists) -> Result<Around, ApplyError> {
        let (new, mut around) = (self.are_new(wanted, lists), BTreeMap::new());
        if new.is_empty() {
            return Ok(around);
        }
        around.extend(self.count_around(&lists.own(), Sought::Tracked)?);
        around.retain(|family, _| new.contains(family));
        Ok(around)
    }

    /// Takes away what was put there for segments.
    pub(super) fn clear_segments(&mut self) -> Result<(), ApplyError> {
        let lists = Lists {
            // What is taken away hangs on none.
            addresses: Vec::new(),
            policies: self.routing.policies()?,
            routes: self.routing.all_routes()?,
        };
        // Of the one whatever becomes of the other.
        let cleared = BOTH.map(|family| self.put_family(family, &[], &lists));
        cleared.into_iter().collect()
    }

    /// Takes away what was put there for segments, if anything was. For a namespace that holds no table of ours: nothing is captured
    /// there, and what is sent goes out by the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn clear_stray_segments(&mut self) -> Result<(), ApplyError> {
        let policies = self.routing.policies()?;
        match BOTH.into_iter().any(|family| policies.contains(&rule(family))) {
            true => self.clear_segments(),
            false => Ok(()),
        }
    }

    /// Takes note of whether it stands as is wanted.
    pub(super) fn look_at_segments(&mut self, wanted: &[IpFamily], lists: &Lists) {
        let wanted = lists.families(wanted);
        let mut known = std::mem::take(&mut self.segments);
        (known.differs, known.whose) = (Vec::new(), Vec::new());
        for family in BOTH {
            let mirrored = lists.wanted(family, &wanted);
            let is_other = |tried: &Tried| tried.what != mirrored;
            if lists.holds(family, &mirrored) || known.tried.get(&family).is_some_and(is_other) {
                known.tried.remove(&family);
            }
            let target = known.target(family, mirrored);
            let stands = lists.holds(family, &target);
            match stands {
                true => drop(known.left.remove(&family)),
                false => known.differs.push(family),
            }
            // What failed has taken its rule away, or that has failed as well.
            let left = match target.is_empty() {
                true => known.left.get(&family),
                false => known.tried.get(&family).map(|tried| &tried.why),
            };
            if let Some(why) = left.filter(|_| lists.policies.contains(&rule(family))) {
                known.whose.push((family, Segments::Left(why.clone())));
                continue;
            }
            if !wanted.contains(&family) {
                continue;
            }
            let whose = match (lists.mirrored(family), known.tried.get(&family)) {
                (Err(aside), _) => Segments::Link(aside),
                (Ok(_), Some(tried)) => Segments::Link(Aside::Refused(tried.why.clone())),
                (Ok(_), None) if !stands => Segments::Link(Aside::Underway),
                (Ok(mirrored), None) => match self.is_taken_by(&mirrored, &lists.addresses) {
                    Ok(false) => Segments::Link(Aside::RoutedBefore),
                    _ => Segments::Loopback,
                },
            };
            known.whose.push((family, whose));
        }
        known.wanted = wanted;
        self.segments = known;
    }

    /// Whether the kernel sends somewhere by these routes, as a socket asks it: for a source first, and then with that.
    fn is_taken_by(&mut self, mirrored: &[Route], addresses: &[IpAddr]) -> Result<bool, ApplyError> {
        let by_length = mirrored.iter().filter(|route| route.kind == RouteKind::Unicast);
        let Some(widest) = by_length.min_by_key(|route| route.destination.prefix_len()) else {
            return Ok(false);
        };
        let own = routed::own_of(family_of(&widest.destination), addresses);
        let Some(to) = routed::somebody(widest.destination, &own) else {
            return Ok(true);
        };
        let packet = Packet::tcp(to, 0);
        let Some(first) = self.routing.taken(&packet)? else {
            return Ok(false);
        };
        let taken = match first.source {
            Some(_) => self.routing.taken(&Packet {
                from: first.source,
                ..packet
            })?,
            None => Some(first),
        };
        Ok(taken.is_some_and(|taken| taken.mtu == Some(SEGMENTS_MTU)))
    }

    /// What would become of it, and where nothing would be put why that is.
    pub(super) fn segments_would_change(&mut self, wanted: &[IpFamily], lists: &Lists) -> Result<Vec<Would>, ApplyError> {
        let wanted = lists.families(wanted);
        // Also what the kernel does not track yet.
        let around = match wanted.is_empty() {
            true => HashMap::new(),
            false => self.count_around(&lists.own(), Sought::All)?,
        };
        let mut would = Vec::new();
        for family in BOTH {
            let is_wanted = wanted.contains(&family);
            let count = around.get(&family).copied().unwrap_or(0);
            let aside = match lists.mirrored(family) {
                Err(aside) => Some(aside),
                Ok(_) if count > 0 && !lists.policies.contains(&rule(family)) => Some(Aside::Kept(count)),
                Ok(_) => None,
            };
            let change = match aside {
                None if is_wanted && lists.holds(family, &lists.wanted(family, &wanted)) => Some(Change::Stays),
                None if is_wanted => Some(Change::Added),
                _ => lists.is_put(family).then_some(Change::Removed),
            };
            would.extend(change.map(|change| (family, Ok(change))));
            would.extend(aside.filter(|_| is_wanted).map(|aside| (family, Err(aside))));
        }
        Ok(would)
    }

    fn put_family(&mut self, family: IpFamily, mirrored: &[Route], lists: &Lists) -> Result<(), ApplyError> {
        let (rule, there) = (rule(family), lists.ours(family));
        let is_there = lists.policies.contains(&rule);
        let stays = is_there && !mirrored.is_empty() && lists.is_last(&rule);
        if is_there && !stays {
            // Before its routes, or some would go by those that are left.
            absent_is_fine(self.routing.delete_policy(&rule))?;
        }
        let put = self.put_routes(mirrored, &there);
        if put.is_err() && stays {
            // Or some would go by one that is none of the main table's any more, or by a wider one. That it stays is the worse of the two.
            absent_is_fine(self.routing.delete_policy(&rule))?;
        }
        put?;
        if !mirrored.is_empty() && !stays {
            match self.routing.add_policy(&rule) {
                Err(e) if !e.exists() => return Err(e.into()),
                _ => (),
            }
        }
        Ok(())
    }

    fn put_routes(&mut self, mirrored: &[Route], there: &[Route]) -> Result<(), ApplyError> {
        // Before new ones are made: of IPv6 the kernel takes for the same what differs by MTU or source alone.
        for route in there.iter().filter(|route| !mirrored.contains(route)) {
            absent_is_fine(self.routing.delete_route(route))?;
        }
        for route in mirrored.iter().filter(|route| !there.contains(route)) {
            self.routing.add_route(route)?;
        }
        Ok(())
    }
}

impl Lists {
    /// Whether this, and nothing else of ours, is there of a family.
    fn holds(&self, family: IpFamily, mirrored: &[Route]) -> bool {
        let there = self.ours(family);
        let same = there.len() == mirrored.len() && mirrored.iter().all(|route| there.contains(route));
        let rule = rule(family);
        same && match mirrored.is_empty() {
            true => !self.policies.contains(&rule),
            false => self.policies.contains(&rule) && self.is_last(&rule),
        }
    }

    /// Whether anything of ours is there.
    fn is_put(&self, family: IpFamily) -> bool {
        self.policies.contains(&rule(family)) || !self.ours(family).is_empty()
    }

    /// The routes of ours that are there.
    fn ours(&self, family: IpFamily) -> Vec<Route> {
        let of_family = of_table(family, SEGMENTS_TABLE, &self.routes);
        of_family.filter(|route| route.protocol == PROTOCOL).cloned().collect()
    }

    /// The routes that are to be there.
    fn wanted(&self, family: IpFamily, wanted: &[IpFamily]) -> Vec<Route> {
        let mirrored = wanted.contains(&family).then(|| self.mirrored(family).ok());
        mirrored.flatten().unwrap_or_default()
    }

    /// Whether no other of its priority comes after a rule of ours: one would be left out by it.
    fn is_last(&self, rule: &Policy) -> bool {
        let mut after = self
            .policies
            .iter()
            .filter(|p| p.ipv6 == rule.ipv6)
            .skip_while(|p| *p != rule)
            .skip(1);
        after.next().is_none_or(|next| next.priority > rule.priority)
    }

    /// The main table's routes as ours has them, each after those by which its gateway is reached, and none for what goes to probes;
    /// or why there are to be none.
    fn mirrored(&self, family: IpFamily) -> Result<Vec<Route>, Aside> {
        let rule = rule(family);
        let mut others = self.policies.iter().filter(|p| p.ipv6 == rule.ipv6 && **p != rule);
        if others.clone().any(|p| p.table() == Some(SEGMENTS_TABLE)) {
            return Err(Aside::TableTaken);
        }
        // Where ours stands, or is to stand: after all of its priority.
        let next = others.find(|p| p.priority > SEGMENTS_PRIORITY);
        let is_main = |rule: &Rule| rule.table == MAIN && rule.mask == 0;
        match next {
            None => return Err(Aside::NoMainRule),
            Some(next) if next.plain().filter(is_main).is_none() => return Err(Aside::RuleBetween(next.priority)),
            Some(_) => (),
        }
        self.mirrored_routes(family)
    }

    fn mirrored_routes(&self, family: IpFamily) -> Result<Vec<Route>, Aside> {
        // Their own MTU is the link's as well, and is none of what stays in the pod.
        let is_simple = |route: &&Route| route.kind == RouteKind::Unicast && !route.says_more;
        let main: Vec<&Route> = of_table(family, MAIN, &self.routes).take(ROUTES + 1).collect();
        if main.is_empty() {
            return Err(Aside::NoRoute);
        }
        if main.len() > ROUTES {
            return Err(Aside::ManyRoutes);
        }
        if of_table(family, SEGMENTS_TABLE, &self.routes).any(|route| route.protocol != PROTOCOL) {
            return Err(Aside::TableTaken);
        }
        if let Some(more) = main.iter().find(|route| !is_simple(route)) {
            return Err(Aside::Route(more.destination));
        }
        // One would take the place of the other, as of two devices with the same network.
        let same = |route: &Route, other: &Route| (route.destination, route.metric) == (other.destination, other.metric);
        let is_twice = |(n, route): &(usize, &&Route)| main[..*n].iter().any(|other| same(route, other));
        if let Some((_, twice)) = main.iter().enumerate().find(is_twice) {
            return Err(Aside::SameRoutes(twice.destination));
        }
        let mut mirrored: Vec<Route> = main
            .into_iter()
            .map(|route| Route {
                table: SEGMENTS_TABLE,
                protocol: PROTOCOL,
                mtu: Some(SEGMENTS_MTU),
                ..route.clone()
            })
            .collect();
        mirrored.push(to_probes(family));
        mirrored.sort_by_key(|route| route.gateway.is_some());
        Ok(mirrored)
    }
}

/// What the pod sends by TCP, and is no packet of the proxy's nor goes back to it.
fn rule(family: IpFamily) -> Policy {
    Policy {
        ipv6: family == IpFamily::V6,
        priority: SEGMENTS_PRIORITY,
        leads_to: LeadsTo::Table(SEGMENTS_TABLE),
        mask: MARK_MASK,
        input: Some(String::from("lo")),
        protocol: TCP,
        ..Policy::default()
    }
}

/// What goes there goes around the proxy, by the main table.
fn to_probes(family: IpFamily) -> Route {
    let route = Route {
        protocol: PROTOCOL,
        ..Route::to(family.probe_source().into())
            .kind(RouteKind::Thrown)
            .table(SEGMENTS_TABLE)
    };
    match family {
        IpFamily::V4 => route,
        // As the kernel lists them.
        IpFamily::V6 => Route {
            metric: Some(1024),
            ..route.dev(LOOPBACK)
        },
    }
}

fn of_table(family: IpFamily, table: u32, routes: &[Route]) -> impl Iterator<Item = &Route> {
    routes
        .iter()
        .filter(move |route| route.table == table && family_of(&route.destination) == family)
}

fn family_of(net: &IpNet) -> IpFamily {
    match net {
        IpNet::V4(_) => IpFamily::V4,
        IpNet::V6(_) => IpFamily::V6,
    }
}

const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
/// How often that is tried anew which has not come about.
const TRIES: u8 = 3;
/// By which our routes are told from those of others in the same table: a number that nobody has
/// (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 151;
/// A pod has a handful.
const ROUTES: usize = 64;

#[cfg(test)]
mod tests;
