//! What is captured has the loopback device's segments, not the link's.
//!
//! A socket takes the size of its segments, and the one that it announces to the other end, from the route to whom it wants. What is
//! captured goes no further than to the proxy in the same namespace, and would yet be cut as the link has it, forty times smaller:
//! more to acknowledge, and less done with each acknowledgement. So what the pod's processes send by TCP is routed by a table
//! of ours. It has the routes of the main table, each to the same hop by the same device, with an MTU as the loopback device's.
//!
//! Nothing is captured by this, and nothing is lost without it: it is for speed alone. It stands aside wherever it might do harm,
//! which is where something of the pod's leaves it around the proxy (whose other end may take larger segments than the link does),
//! or where the main table says more of a route than whereto it leads.

use super::{ApplyError, Change, Inside, absent_is_fine};
use crate::{
    netlink::{Error, LeadsTo, Policy, Route, RouteKind},
    plan::{IpFamily, MARK_MASK, Plan, SEGMENTS_MTU, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
};

/// Whether routing stands as the plan has it, as far as segments are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Segments {
    /// It does, or nothing has been looked at.
    #[default]
    Stand,
    /// It does not.
    Differ,
    /// The kernel does not have it so; it is not tried again.
    Refused,
}

impl Inside {
    /// Has what is captured take the loopback device's segments where the plan asks for it, and nowhere else, if that was not so when
    /// all was listed last. What the kernel refuses is left as it was: it is for speed alone.
    ///
    /// # Errors
    /// When the kernel does not list its routes.
    pub(crate) fn keep_segments(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        if self.segments != Segments::Differ {
            return Ok(());
        }
        let put = self.put_segments(&plan.segments);
        let stand = put.is_ok() && self.segments_stand(&plan.segments)?;
        self.segments = match stand {
            true => Segments::Stand,
            false => Segments::Refused,
        };
        // Routes may have changed meanwhile, which is told and looked at again; what the kernel refuses it refuses once.
        if !stand {
            self.put_segments(&[])?;
        }
        Ok(())
    }

    /// Takes away what was put there for segments.
    pub(super) fn clear_segments(&mut self) -> Result<(), ApplyError> {
        self.put_segments(&[])
    }

    /// Takes note of whether it stands as is wanted.
    pub(super) fn look_at_segments(&mut self, wanted: &[IpFamily], policies: &[Policy], routes: &[Route]) {
        if self.segments != Segments::Refused {
            self.segments = match stand(wanted, policies, routes) {
                true => Segments::Stand,
                false => Segments::Differ,
            };
        }
    }

    /// What would become of it.
    pub(super) fn segments_would_change(&mut self, wanted: &[IpFamily]) -> Result<Vec<(IpFamily, Change)>, ApplyError> {
        let (policies, routes) = (self.routing.policies()?, self.routing.all_routes()?);
        let change = |family| {
            let is_wanted = wanted.contains(&family) && mirrored(family, &routes).is_some_and(|mirrored| !mirrored.is_empty());
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

    fn segments_stand(&mut self, wanted: &[IpFamily]) -> Result<bool, Error> {
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
            for route in mirrored.iter().filter(|route| !there.contains(route)) {
                self.routing.add_route(route)?;
            }
            for route in there.iter().filter(|route| !mirrored.contains(route)) {
                absent_is_fine(self.routing.delete_route(route))?;
            }
            if !mirrored.is_empty() && !policies.contains(&rule) {
                self.routing.add_policy(&rule)?;
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

/// The main table's routes as ours has them, each after those by which its gateway is reached; `None` where the main table says more than
/// can be said again, or somebody else has routes in ours.
fn mirrored(family: IpFamily, routes: &[Route]) -> Option<Vec<Route>> {
    let simple = |route: &Route| route.kind == RouteKind::Unicast && route.mtu.is_none() && !route.says_more;
    let main: Vec<&Route> = of_table(family, MAIN, routes).collect();
    let is_taken = of_table(family, SEGMENTS_TABLE, routes).any(|route| route.protocol != PROTOCOL);
    if is_taken || main.len() > ROUTES || !main.iter().all(|route| simple(route)) {
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
    mirrored.sort_by_key(|route| route.gateway.is_some());
    Some(mirrored)
}

fn of_table(family: IpFamily, table: u32, routes: &[Route]) -> impl Iterator<Item = &Route> {
    let is_ipv6 = family == IpFamily::V6;
    routes
        .iter()
        .filter(move |route| route.table == table && route.destination.addr().is_ipv6() == is_ipv6)
}

const MAIN: u32 = 254;
const TCP: u8 = 6;
/// By which our routes are told from those of others in the same table: a number that nobody has
/// (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 151;
/// A pod has a handful.
const ROUTES: usize = 64;
