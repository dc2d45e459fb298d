//! Routing of others that takes from the proxy some of what is captured.
//!
//! A rule of somebody else's that comes before the proxy's may be narrowed to ports, users, protocols or addresses, and its table may
//! have routes to few. Each is read, and the kernel is asked for the way of a packet that the rule names and that a capture has: so
//! nothing is told of a rule that takes none, and nothing here has to know how the kernel reads them.
//!
//! Whoever may change a pod's network decides how much there is of that: what is listed is gone through once, and of rules, of each
//! table's routes and of questions to the kernel there is a bound. What lies beyond them is not told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    is_routed, route, routing_rule,
    strangers::{RulePlace, STRANGERS, Stranger},
};
use crate::{
    netlink::{Error, LeadsTo, Packet, Policy, Route, RouteKind, Routing, TCP},
    plan::{IpFamily, PROXY_MARK, REPLY_MARK, ROUTE_TABLE},
    pods::Direction,
};

/// What of a capture is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// What an application answers to the proxy: it bears a mark, and goes to the client's address.
    Answers,
    /// What the pod sends, and is redirected to the proxy.
    Redirected,
    /// What the proxy sends to the application.
    ToApplication,
    /// What the proxy sends out of the pod, wherever what the pod sends would go.
    Out,
}

/// Of one family, as it was listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub(super) family: IpFamily,
    /// As [`own_of`] gives them.
    pub(super) own: &'a BTreeSet<IpAddr>,
    pub(super) policies: &'a [Policy],
    /// As [`tables_of`] gives them.
    pub(super) tables: &'a BTreeMap<u32, Vec<IpNet>>,
}

/// Those of a namespace's own addresses that are routed.
pub(super) fn own_of(family: IpFamily, own: &[IpAddr]) -> BTreeSet<IpAddr> {
    let of_family = |ip: &&IpAddr| ip.is_ipv6() == (family == IpFamily::V6) && is_routed(ip);
    own.iter().filter(of_family).copied().collect()
}

/// Where the first [`ROUTES_READ`] routes to few of each table lead to.
pub(super) fn tables_of(family: IpFamily, routes: &[Route]) -> BTreeMap<u32, Vec<IpNet>> {
    let mut tables = BTreeMap::<u32, Vec<IpNet>>::new();
    for route in routes {
        let net = route.destination;
        if net.addr().is_ipv6() != (family == IpFamily::V6) || net.prefix_len() == 0 || !leads(route.kind) {
            continue;
        }
        let table = tables.entry(route.table).or_default();
        if table.len() < ROUTES_READ {
            table.push(net);
        }
    }
    tables
}

/// A packet that is asked for, and of which part of what is captured it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Example {
    way: Way,
    packet: Packet,
    /// The route of the rule's table that it would take; `None` where it is the rule alone that names it.
    route: Option<IpNet>,
}

/// Looks for rules of others by which something of a capture goes elsewhere that goes well as a whole.
pub(super) fn look(routing: &mut Routing, listed: Listed<'_>) -> Result<Vec<Stranger>, Error> {
    let mut strangers = Vec::new();
    let mut asked = 0;
    for (policy, ways) in listed.before() {
        for example in ways.into_iter().flat_map(|way| listed.examples(way, policy)) {
            asked += 1;
            if asked > PACKETS {
                return Ok(strangers);
            }
            if !is_well(routing, &example, listed.family)? && is_still_there(routing, example.packet.from)? {
                strangers.push(told(policy, &example));
                if strangers.len() >= STRANGERS {
                    return Ok(strangers);
                }
                break;
            }
        }
    }
    Ok(strangers)
}

impl<'a> Listed<'a> {
    /// The first [`RULES`] rules that come before what the proxy's packets need, and which those are. The proxy's own is the last of them,
    /// as its table may have more than the proxy's route.
    fn before(self) -> impl Iterator<Item = (&'a Policy, Vec<Way>)> {
        let is_ipv6 = self.family == IpFamily::V6;
        let mut is_local = true;
        let mut of_family = self.policies.iter().filter(move |p| p.ipv6 == is_ipv6);
        let ours = routing_rule(self.family);
        let mut is_over = false;
        let before = std::iter::from_fn(move || {
            loop {
                let policy = of_family.next().filter(|_| !is_over)?;
                is_over = policy.plain() == Some(ours);
                if policy.table() == Some(LOCAL) && policy.plain().is_some_and(|p| p.mask == 0) {
                    is_local = false;
                    continue;
                }
                let mut ways = vec![Way::Answers];
                if is_local {
                    ways.extend([Way::Redirected, Way::ToApplication]);
                }
                if !policy.inverted && policy.mask != 0 && has_mark(policy, PROXY_MARK) && !has_mark(policy, 0) {
                    ways.push(Way::Out);
                }
                return Some((policy, ways));
            }
        });
        before.take(RULES)
    }

    /// Packets of that kind that a rule takes: one that it names itself, and one to each of the routes of its table.
    fn examples(self, way: Way, policy: &'a Policy) -> Vec<Example> {
        let everywhere = |packet| Example { way, packet, route: None };
        // To everywhere that table leads to the proxy.
        let of_all = match policy.table() {
            Some(ROUTE_TABLE) => None,
            _ => self.example(way, policy, None).map(everywhere),
        };
        let is_to_others = matches!(way, Way::Answers | Way::Out);
        let table = policy.table().filter(|_| is_to_others).and_then(|table| self.tables.get(&table));
        let to_routes = table.into_iter().flatten().filter_map(|net| {
            let net = *net;
            Some(Example {
                way,
                packet: self.example(way, policy, Some(net))?,
                route: Some(net),
            })
        });
        of_all.into_iter().chain(to_routes.take(ROUTES)).collect()
    }

    /// A packet of that kind which a rule takes, within `net` where one is given.
    fn example(self, way: Way, policy: &Policy, net: Option<IpNet>) -> Option<Packet> {
        let loopback = self.family.loopback();
        let own = |within: Option<IpNet>| match within {
            None => self.own.first().copied(),
            Some(net) => self.own.range(net.network()..=net.broadcast()).next().copied(),
        };
        // What is not inverted must be met; what is inverted is met by most, and what it leaves out is what it names.
        let asked = match policy.inverted {
            true => Policy {
                mark: 0,
                mask: 0,
                leads_to: policy.leads_to,
                ipv6: policy.ipv6,
                ..Policy::default()
            },
            false => policy.clone(),
        };
        let is_sent_here = asked.input.as_deref().is_none_or(|device| device == "lo");
        let of_tcp = [0, TCP].contains(&asked.protocol);
        let mark = match way {
            Way::Answers => REPLY_MARK,
            Way::Redirected => 0,
            Way::ToApplication | Way::Out => PROXY_MARK,
        };
        if policy.asks_more || !is_sent_here || !of_tcp || !has_mark(&asked, mark) {
            return None;
        }
        let from = match way {
            Way::Answers | Way::Redirected => Some(own(asked.from)?),
            // From another's address, of which the kernel is not asked: a rule that names one is another's.
            Way::ToApplication | Way::Out if asked.from.is_some() => return None,
            Way::ToApplication | Way::Out => None,
        };
        let to = match way {
            Way::Redirected => Some(loopback).filter(|ip| asked.to.is_none_or(|net| net.contains(ip))),
            Way::ToApplication => own(asked.to),
            Way::Answers | Way::Out => match common(net, asked.to)? {
                None => Some(self.family.probe()),
                Some(net) => somebody(net, self.own),
            },
        }?;
        let any = (1, u16::MAX);
        let proxys = (PROXYS_PORTS, u16::MAX);
        let (sources, destinations) = match way {
            Way::Answers => (any, proxys),
            Way::Redirected => (any, (ambient_core::ports::OUTBOUND, ambient_core::ports::OUTBOUND)),
            Way::ToApplication => (proxys, any),
            Way::Out => (any, any),
        };
        Some(Packet {
            from,
            service: asked.service,
            source_port: port(asked.source_ports, sources)?,
            destination_port: port(asked.destination_ports, destinations)?,
            user: user(&asked, way, self.family)?,
            ..Packet::tcp(to, mark)
        })
    }
}

/// Whether the kernel sends a packet where it is to go.
fn is_well(routing: &mut Routing, example: &Example, family: IpFamily) -> Result<bool, Error> {
    let wanted = route(family);
    let taken = routing.taken(&example.packet)?;
    Ok(match example.way {
        Way::Answers => taken.is_some_and(|taken| taken.kind == wanted.kind && taken.link == wanted.link),
        Way::Redirected | Way::ToApplication => taken.is_some_and(|taken| taken.kind == RouteKind::Local),
        Way::Out => {
            let unmarked = routing.taken(&Packet { mark: 0, ..example.packet })?;
            let hop = |route: Option<Route>| route.map(|route| (route.kind, route.gateway, route.link));
            hop(taken) == hop(unmarked)
        }
    })
}

/// From an address that has gone since it was listed the kernel refuses a packet as a blackhole does.
fn is_still_there(routing: &mut Routing, from: Option<IpAddr>) -> Result<bool, Error> {
    let Some(from) = from else { return Ok(true) };
    Ok(routing.addresses()?.iter().any(|address| address.ip == from))
}

fn told(policy: &Policy, example: &Example) -> Stranger {
    let (direction, what) = match example.way {
        Way::Answers => (Direction::Inbound, "answers of applications do not go back to the proxy"),
        Way::ToApplication => (Direction::Inbound, "what the proxy sends to applications does not reach them"),
        Way::Redirected => (Direction::Outbound, "what is redirected does not reach the proxy"),
        Way::Out => (
            Direction::Outbound,
            "what the proxy sends is routed otherwise than what the pod sends",
        ),
    };
    let route = match (example.route, policy.leads_to) {
        (Some(net), LeadsTo::Table(table)) => format!(", by the route to {net} in table {table}"),
        _ => String::new(),
    };
    Stranger {
        place: RulePlace::RoutingRule {
            priority: policy.priority,
            ipv6: policy.ipv6,
        },
        direction,
        does: format!("{what}{}{route}", named(policy)),
    }
}

/// What a rule is narrowed to.
fn named(policy: &Policy) -> String {
    let range = |what: &str, range: Option<(u32, u32)>| match range {
        None => String::new(),
        Some((first, last)) if first == last => format!(" {what} {first}"),
        Some((first, last)) => format!(" {what} {first} to {last}"),
    };
    let ports = |ports: Option<(u16, u16)>| ports.map(|(first, last)| (u32::from(first), u32::from(last)));
    let net = |what: &str, net: Option<IpNet>| net.map_or_else(String::new, |net| format!(" {what} {net}"));
    let all = [
        net("from", policy.from),
        net("to", policy.to),
        range("from port", ports(policy.source_ports)),
        range("to port", ports(policy.destination_ports)),
        range("of user", policy.users),
    ];
    match (all.concat(), policy.inverted) {
        (none, _) if none.is_empty() => none,
        (some, true) => format!(", but those{some}"),
        (some, false) => format!(", those{some}"),
    }
}

/// Whether what is sent to somebody may take such a route, and goes nowhere else then.
fn leads(kind: RouteKind) -> bool {
    matches!(
        kind,
        RouteKind::Unicast | RouteKind::Local | RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibited
    )
}

fn has_mark(policy: &Policy, mark: u32) -> bool {
    (mark ^ policy.mark) & policy.mask == 0
}

/// What is in both; `None` within for everything, and without for nothing.
#[expect(clippy::option_option, reason = "nothing in common is not the same as no bound")]
fn common(one: Option<IpNet>, other: Option<IpNet>) -> Option<Option<IpNet>> {
    match (one, other) {
        (Some(one), Some(other)) if one.contains(&other) => Some(Some(other)),
        (Some(one), Some(other)) if other.contains(&one) => Some(Some(one)),
        (Some(_), Some(_)) => None,
        (one, other) => Some(one.or(other)),
    }
}

/// An address of a network that may be a client's.
pub(super) fn somebody(net: IpNet, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    // The first is the network's own, and some of the next may be this pod's.
    let first = if net.prefix_len() + 1 < net.max_prefix_len() { 1 } else { 0 };
    let (low, many) = match net.network() {
        // Nobody has one of 0.0.0.0/8.
        IpAddr::V4(ip) if ip.octets()[0] == 0 && net.prefix_len() < 8 => (IpAddr::from([1, 0, 0, 0]), true),
        ip => (ip, false),
    };
    let offset = |n: u32| match low {
        IpAddr::V4(ip) => IpAddr::from(u32::from(ip).wrapping_add(n).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from(u128::from(ip).wrapping_add(u128::from(n)).to_be_bytes()),
    };
    let last = |ip: &IpAddr| !many && first == 1 && *ip == net.broadcast();
    let is_clients = |ip: &IpAddr| {
        let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let special = ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || is_link_local;
        net.contains(ip) && !special && !last(ip) && !own.contains(ip)
    };
    (first..first + NEIGHBOURS).map(offset).find(is_clients)
}

/// A port that a rule takes, of those that there are; 0 where it takes any.
fn port(taken: Option<(u16, u16)>, (first, last): (u16, u16)) -> Option<u16> {
    let Some((from, to)) = taken else { return Some(0) };
    (from.max(first)..=to.min(last)).find(|port| first == last || !ambient_core::ports::is_proxys_own(*port))
}

/// A user that a rule takes. When the kernel routes a packet of IPv4 again, as its mark or its destination has changed, it does not ask
/// whose it is, and takes it for root's.
fn user(policy: &Policy, way: Way, family: IpFamily) -> Option<u32> {
    let Some((first, last)) = policy.users else { return Some(0) };
    let is_roots = family == IpFamily::V4 && matches!(way, Way::Answers | Way::Redirected);
    match is_roots {
        true => (first == 0).then_some(0),
        false => (first <= last).then_some(first),
    }
}

/// The kernel's own table of local addresses.
const LOCAL: u32 = 255;
/// From here on are the ports of connections that a proxy makes to applications.
const PROXYS_PORTS: u16 = 32_768;
/// Packets of which the kernel is asked at a time, of each family.
const PACKETS: usize = 256;
/// Rules that are read, whether they name a packet or none.
const RULES: usize = 256;
/// Routes of one table that are read, whether a rule has a packet to them or none.
const ROUTES_READ: usize = 64;
/// Routes that are asked for of one rule.
const ROUTES: usize = 32;
/// Addresses that are looked at for one that is not the pod's own.
const NEIGHBOURS: u32 = 8;

#[cfg(test)]
mod tests;
