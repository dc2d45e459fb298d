//! What is captured has the loopback device's segments, not the link's.
//!
//! A socket takes the size of its segments, and the one that it announces to the other end, from the route to whom it wants. What is
//! captured goes no further than to the proxy in the same namespace, and would yet be cut as the link has it, forty times smaller:
//! more to acknowledge, and less done with each acknowledgement. So what the pod's processes send by TCP is routed by a table
//! of ours. It has the routes of the main table, each to the same hop by the same device, with an MTU as the loopback device's.
//!
//! Nothing is captured by this, and nothing is lost without it: it is for speed alone. It stands aside wherever it might do harm,
//! which is where something of the pod's leaves it around the proxy (whose other end may take larger segments than the link does),
//! or where the main table says more of a route than whereto it leads; what answers probes goes by the main table.

use super::{ApplyError, Change, Inside, absent_is_fine};
use crate::{
    netlink::{LOOPBACK, LeadsTo, MAIN, Policy, Route, RouteKind, TCP},
    plan::{IpFamily, MARK_MASK, SEGMENTS_MTU, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
};

/// Whether routing stands as the plan has it, as far as segments are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segments {
    /// It does, or nothing has been looked at.
    Stand,
    /// It does not. How often it has been tried in vain: routes may change while they are listed.
    Differ(u8),
    /// The kernel does not have it so; it is not tried again.
    Refused,
}

impl Inside {
    /// Whether something was otherwise than the plan has it when all was listed last.
    pub(crate) fn segments_differ(&self) -> bool {
        matches!(self.segments, Segments::Differ(_))
    }

    /// Has what is captured take the loopback device's segments where that is wanted, and nowhere else. What the kernel refuses is
    /// left as it was: it is for speed alone, so that no error of it counts. All must have been listed before.
    pub(crate) fn keep_segments(&mut self, wanted: &[IpFamily]) {
        let tries = match self.segments {
            Segments::Refused => return,
            // Nothing is there.
            Segments::Stand if wanted.is_empty() => return,
            Segments::Stand => 0,
            Segments::Differ(tries) => tries,
        };
        self.segments = match self.put_segments(wanted).and_then(|()| self.segments_stand(wanted)) {
            Ok(true) => Segments::Stand,
            Ok(false) if tries < TRIES => Segments::Differ(tries + 1),
            _ => Segments::Refused,
        };
        if self.segments == Segments::Refused {
            let _ = self.put_segments(&[]);
        }
    }

    /// Takes away what was put there for segments.
    pub(super) fn clear_segments(&mut self) -> Result<(), ApplyError> {
        self.put_segments(&[])
    }

    /// Takes note of whether it stands as is wanted.
    pub(super) fn look_at_segments(&mut self, wanted: &[IpFamily], policies: &[Policy], routes: &[Route]) {
        self.segments = match (self.segments, stand(wanted, policies, routes)) {
            (Segments::Refused, _) => Segments::Refused,
            (_, true) => Segments::Stand,
            (Segments::Differ(tries), false) => Segments::Differ(tries),
            (Segments::Stand, false) => Segments::Differ(0),
        };
    }

    /// What would become of it.
    pub(super) fn segments_would_change(&mut self, wanted: &[IpFamily]) -> Result<Vec<(IpFamily, Change)>, ApplyError> {
        let (policies, routes) = (self.routing.policies()?, self.routing.all_routes()?);
        let change = |family| {
            let is_wanted = wanted.contains(&family) && mirrored(family, &routes).is_some();
            let is_there = policies.contains(&rule(family)) || !ours(family, &routes).is_empty();
            match (is_wanted, is_there) {
                (true, _) if stand_of(family, wanted, &policies, &routes) => Some((family, Change::Stays)),
                (true, _) => Some((family, Change::Added)),
                (false, true) => Some((family, Change::Removed)),
                (false, false) => None,
            }
        };
        Ok([IpFamily::V4, IpFamily::V6].into_iter().filter_map(change).collect())
    }

    fn segments_stand(&mut self, wanted: &[IpFamily]) -> Result<bool, ApplyError> {
        Ok(stand(wanted, &self.routing.policies()?, &self.routing.all_routes()?))
    }

    fn put_segments(&mut self, wanted: &[IpFamily]) -> Result<(), ApplyError> {
        let (policies, routes) = (self.routing.policies()?, self.routing.all_routes()?);
        for family in [IpFamily::V4, IpFamily::V6] {
            let mirrored = mirrored(family, &routes).filter(|_| wanted.contains(&family)).unwrap_or_default();
            let (rule, there) = (rule(family), ours(family, &routes));
            if mirrored.is_empty() && policies.contains(&rule) {
                // Before its routes, or some would go by those that are left.
                absent_is_fine(self.routing.delete_policy(&rule))?;
            }
            // Before new ones are made: of IPv6 the kernel takes for the same what differs by MTU or source alone.
            for route in there.iter().filter(|route| !mirrored.contains(route)) {
                absent_is_fine(self.routing.delete_route(route))?;
            }
            for route in mirrored.iter().filter(|route| !there.contains(route)) {
                self.routing.add_route(route)?;
            }
            if !mirrored.is_empty() && !policies.contains(&rule) {
                match self.routing.add_policy(&rule) {
                    Err(e) if !e.exists() => return Err(e.into()),
                    _ => (),
                }
            }
        }
        Ok(())
    }
}

fn stand(wanted: &[IpFamily], policies: &[Policy], routes: &[Route]) -> bool {
    let both = [IpFamily::V4, IpFamily::V6];
    both.into_iter().all(|family| stand_of(family, wanted, policies, routes))
}

fn stand_of(family: IpFamily, wanted: &[IpFamily], policies: &[Policy], routes: &[Route]) -> bool {
    let mirrored = mirrored(family, routes).filter(|_| wanted.contains(&family)).unwrap_or_default();
    let there = ours(family, routes);
    let same = there.len() == mirrored.len() && mirrored.iter().all(|route| there.contains(route));
    same && policies.contains(&rule(family)) != mirrored.is_empty()
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

/// The routes of ours that are there.
fn ours(family: IpFamily, routes: &[Route]) -> Vec<Route> {
    let of_family = of_table(family, SEGMENTS_TABLE, routes);
    of_family.filter(|route| route.protocol == PROTOCOL).cloned().collect()
}

/// The main table's routes as ours has them, each after those by which its gateway is reached, and none for what goes to probes;
/// `None` where the main table says more than can be said again, or somebody else has routes in ours.
fn mirrored(family: IpFamily, routes: &[Route]) -> Option<Vec<Route>> {
    let simple = |route: &Route| route.kind == RouteKind::Unicast && route.mtu.is_none() && !route.says_more;
    let main: Vec<&Route> = of_table(family, MAIN, routes).collect();
    let is_taken = of_table(family, SEGMENTS_TABLE, routes).any(|route| route.protocol != PROTOCOL);
    // One would take the place of the other, as of two devices with the same network.
    let same = |route: &Route, other: &Route| (route.destination, route.metric) == (other.destination, other.metric);
    let is_twice = |(n, route): (usize, &&Route)| main[..n].iter().any(|other| same(route, other));
    let is_plain = main.len() <= ROUTES && main.iter().all(|route| simple(route)) && !main.iter().enumerate().any(is_twice);
    if main.is_empty() || is_taken || !is_plain {
        return None;
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
    Some(mirrored)
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
    let is_ipv6 = family == IpFamily::V6;
    routes
        .iter()
        .filter(move |route| route.table == table && route.destination.addr().is_ipv6() == is_ipv6)
}

/// How often that is tried which does not stand then.
const TRIES: u8 = 3;
/// By which our routes are told from those of others in the same table: a number that nobody has
/// (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 151;
/// A pod has a handful.
const ROUTES: usize = 64;
