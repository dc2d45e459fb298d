//! rtnetlink: links, addresses, routes, rules.

#[cfg(test)]
pub(crate) mod kernel;
pub(super) mod policies;

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;

pub use self::policies::{LeadsTo, Policy};
use super::{
    Error,
    codec::{self, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Writer, fixed},
    socket::{Socket, Speaks},
};

/// Links, addresses, routes and rules of one network namespace.
#[derive(Debug)]
pub struct Routing(Socket);

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    /// Its other end is up as well, and packets pass: some time after both were set up, not at once.
    pub running: bool,
    pub loopback: bool,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub ip: IpAddr,
    pub prefix: u8,
}

/// A route, to be made or found; built with [`Route::to`] and the methods that follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub kind: RouteKind,
    pub gateway: Option<IpAddr>,
    /// The index of its device.
    pub link: Option<u32>,
    /// 254 is the main table.
    pub table: u32,
    /// The gateway is on the device whatever its addresses say.
    pub onlink: bool,
    /// The address that a socket takes which has none.
    pub source: Option<IpAddr>,
    /// Of routes to the same destination the kernel takes the lowest.
    pub metric: Option<u32>,
    /// The largest packet, in bytes, where it is not the device's.
    pub mtu: Option<u32>,
    /// Who made it, by number: 2 is the kernel.
    pub protocol: u8,
    /// It says more than this: several next hops, an end, another scope, or what a packet must be besides. Only found, never made.
    pub says_more: bool,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Takes it for this host.
    Local,
    /// Drops it without a word.
    Blackhole,
    /// Refuses it with an ICMP message.
    Unreachable,
    /// Refuses it as forbidden.
    Prohibited,
    /// Leaves it to the next table.
    Thrown,
    /// Another of the kernel's, by number; found in listings.
    Other(u8),
}

/// A rule that sends marked packets to a routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub ipv6: bool,
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
}

/// A packet of a local process, as far as routing looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: Option<IpAddr>,
    pub to: IpAddr,
    pub mark: u32,
    /// Its protocol, TCP or UDP.
    pub protocol: u8,
    /// 0 for one that no rule names.
    pub source_port: u16,
    /// 0 for one that no rule names.
    pub destination_port: u16,
    /// The owner of its socket, as the kernel asks for it.
    pub user: u32,
    /// The type of service.
    pub service: u8,
}

impl Packet {
    /// TCP of nobody in particular, with a mark.
    pub fn tcp(to: IpAddr, mark: u32) -> Self {
        Self {
            from: None,
            to,
            mark,
            protocol: TCP,
            source_port: 0,
            destination_port: 0,
            user: 0,
            service: 0,
        }
    }
}

impl Route {
    /// A unicast route in the main table.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            gateway: None,
            link: None,
            table: MAIN,
            onlink: false,
            source: None,
            metric: None,
            mtu: None,
            protocol: PROTOCOL_BOOT,
            says_more: false,
        }
    }

    /// `local DESTINATION dev lo table TABLE`: packets to it are this host's.
    pub fn local(destination: IpNet, table: u32) -> Self {
        Self {
            kind: RouteKind::Local,
            link: Some(LOOPBACK),
            table,
            ..Self::to(destination)
        }
    }

    #[must_use]
    pub fn via(self, gateway: IpAddr) -> Self {
        Self {
            gateway: Some(gateway),
            ..self
        }
    }

    #[must_use]
    pub fn dev(self, link: u32) -> Self {
        Self { link: Some(link), ..self }
    }

    #[must_use]
    pub fn onlink(self) -> Self {
        Self { onlink: true, ..self }
    }

    #[must_use]
    pub fn table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    #[must_use]
    pub fn kind(self, kind: RouteKind) -> Self {
        Self { kind, ..self }
    }
}

impl Routing {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::Route, 0).map(Self)
    }

    /// Makes a pair of virtual Ethernet devices; the peer is born in `namespace`, else in this one.
    pub fn add_veth(&mut self, name: &str, peer: &str, namespace: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.0.request(
            &format!("making the link {name}"),
            veth(name, peer, namespace.map(|n| n.as_raw_fd() as u32)),
        )
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let what = "listing links";
        let mut message = Writer::default();
        message.begin(RTM_GETLINK, NLM_F_DUMP, &ifinfo(0, 0, 0));
        let all = self.list(what, &message, MOST)?;
        all.iter()
            .filter(|(kind, _)| *kind == RTM_NEWLINK)
            .map(|(_, payload)| read_link(payload))
            .collect()
    }

    /// The link of a name.
    ///
    /// # Errors
    /// [`Error::missing`] holds where there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let what = format!("looking up the link {name}");
        let mut message = Writer::default();
        message.begin(RTM_GETLINK, 0, &ifinfo(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        let (_, payload) = self.0.query(&what, message)?;
        read_link(&payload)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, link: u32) -> Result<(), Error> {
        self.set_link(&format!("setting link {link} up"), link, IFF_UP, |_| ())
    }

    /// Sets a link down.
    pub fn set_down(&mut self, link: u32) -> Result<(), Error> {
        self.set_link(&format!("setting link {link} down"), link, 0, |_| ())
    }

    /// Sets the loopback device up: index 1 in every namespace.
    pub fn set_loopback_up(&mut self) -> Result<(), Error> {
        self.set_up(LOOPBACK)
    }

    /// Gives a link, which must be down, another name.
    pub fn rename(&mut self, link: u32, name: &str) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(RTM_SETLINK, 0, &ifinfo(link, 0, 0));
        message.text(IFLA_IFNAME, name);
        self.0.request(&format!("renaming link {link} to {name}"), message)
    }

    /// Moves a link to another network namespace; it loses its addresses and is down there.
    pub fn move_to(&mut self, link: u32, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(RTM_SETLINK, 0, &ifinfo(link, 0, 0));
        message.ne32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
        self.0.request(&format!("moving link {link} to another namespace"), message)
    }

    /// Sets the largest packet of a link, in bytes.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(RTM_SETLINK, 0, &ifinfo(link, 0, 0));
        message.ne32(IFLA_MTU, mtu);
        self.0.request(&format!("setting the MTU of link {link} to {mtu}"), message)
    }

    /// Deletes a link; of a pair, both ends go.
    pub fn delete_link(&mut self, link: u32) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(RTM_DELLINK, 0, &ifinfo(link, 0, 0));
        self.0.request(&format!("deleting link {link}"), message)
    }

    /// Gives a link an address; an IPv6 one is usable at once, without duplicate address detection.
    pub fn add_address(&mut self, link: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
        self.0.request(
            &format!("giving link {link} the address {ip}/{prefix}"),
            address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, link, ip, prefix),
        )
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
        self.0.request(
            &format!("taking the address {ip}/{prefix} from link {link}"),
            address(RTM_DELADDR, 0, link, ip, prefix),
        )
    }

    /// All addresses of the namespace, IPv4 and IPv6.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let what = "listing addresses";
        let mut message = Writer::default();
        message.begin(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
        let all = self.list(what, &message, ADDRESSES)?;
        let mut addresses = Vec::new();
        for (_, payload) in all.iter().filter(|(kind, _)| *kind == RTM_NEWADDR) {
            addresses.extend(read_address(what, payload)?);
        }
        Ok(addresses)
    }

    /// Makes a route, or replaces the one to the same destination.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        self.0.request(
            &format!("making the route to {}", route.destination),
            route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route),
        )
    }

    /// Deletes a route.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        self.0.request(
            &format!("deleting the route to {}", route.destination),
            route_message(RTM_DELROUTE, 0, route),
        )
    }

    /// All routes of all tables, IPv4 and IPv6, that somebody has made; those with several next hops come without gateway and link.
    pub fn all_routes(&mut self) -> Result<Vec<Route>, Error> {
        let what = "listing routes";
        let mut routes = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut message = Writer::default();
            let mut header = [0; 12];
            header[0] = family;
            message.begin(RTM_GETROUTE, NLM_F_DUMP, &header);
            for (_, payload) in self.list(what, &message, MOST)?.iter().filter(|(kind, _)| *kind == RTM_NEWROUTE) {
                // What the kernel has learned of the way to one host, as the largest packet that comes through, is listed as well.
                let is_learned = codec::read_u32(payload, 8).is_some_and(|flags| flags & RTM_F_CLONED != 0);
                routes.extend(if is_learned { None } else { read_route(what, payload)? });
            }
        }
        Ok(routes)
    }

    /// All routes of one table, as [`Routing::all_routes`] has them.
    pub fn routes(&mut self, table: u32) -> Result<Vec<Route>, Error> {
        let mut routes = self.all_routes()?;
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// The route that a packet would take, by all rules and tables as the kernel reads them; `None` where it would be refused or lost.
    pub fn taken(&mut self, packet: &Packet) -> Result<Option<Route>, Error> {
        let what = format!("asking for the route to {} with mark {:#x}", packet.to, packet.mark);
        let bits = if packet.to.is_ipv4() { 32 } else { 128 };
        let mut header = [0; 12];
        [header[0], header[1], header[3]] = [family_of(packet.to), bits, packet.service];
        header[2] = if packet.from.is_some() { bits } else { 0 };
        let mut message = Writer::default();
        message.begin(RTM_GETROUTE, 0, &header);
        message.ip(RTA_DST, packet.to);
        if let Some(from) = packet.from {
            message.ip(RTA_SRC, from);
        }
        message.ne32(RTA_MARK, packet.mark);
        message.ne32(RTA_UID, packet.user);
        message.attribute(RTA_IP_PROTO, &[packet.protocol]);
        for (kind, port) in [(RTA_SPORT, packet.source_port), (RTA_DPORT, packet.destination_port)] {
            if port != 0 {
                message.attribute(kind, &port.to_be_bytes());
            }
        }
        match self.0.query(&what, message) {
            Ok((_, payload)) => read_route(&what, &payload),
            // A blackhole says EINVAL, and a prohibition EACCES.
            Err(e) if e.errno().is_some_and(|errno| NOWHERE.contains(&errno)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a rule.
    ///
    /// # Errors
    /// [`Error::exists`] holds where the same rule is there already.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.0.request(
            &format!("making the routing rule {}", rule.priority),
            policies::message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &Policy::from(*rule)),
        )
    }

    /// Deletes a rule.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.0.request(
            &format!("deleting the routing rule {}", rule.priority),
            policies::message(RTM_DELRULE, 0, &Policy::from(*rule)),
        )
    }

    /// All rules that send packets to a table by their mark alone or whatever they are, IPv4 and IPv6; `mark` and `mask` are 0
    /// where a rule looks at no mark. Those that ask for anything else besides are none of them.
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        Ok(self.policies()?.iter().filter_map(Policy::plain).collect())
    }

    /// All rules, IPv4 and IPv6, those of each in the order in which the kernel asks them.
    pub fn policies(&mut self) -> Result<Vec<Policy>, Error> {
        let what = "listing routing rules";
        let mut policies = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut message = Writer::default();
            let mut header = [0; 12];
            header[0] = family;
            message.begin(RTM_GETRULE, NLM_F_DUMP, &header);
            for (_, payload) in self.list(what, &message, RULES)?.iter().filter(|(kind, _)| *kind == RTM_NEWRULE) {
                policies.push(policies::read(what, payload)?);
            }
        }
        Ok(policies)
    }

    fn set_link(&mut self, what: &str, link: u32, flags: u32, fill: impl FnOnce(&mut Writer)) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(RTM_NEWLINK, 0, &ifinfo(link, flags, IFF_UP));
        fill(&mut message);
        self.0.request(what, message)
    }

    /// Lists so many bytes at most, again where a change came in between.
    fn list(&mut self, what: &str, message: &Writer, most: usize) -> Result<Vec<(u16, Vec<u8>)>, Error> {
        let mut tries = 0;
        loop {
            match self.0.list_within(what, message.clone(), most) {
                Err(e) if e.interrupted() && tries < LISTINGS => tries += 1,
                result => return result,
            }
        }
    }
}

fn veth(name: &str, peer: &str, namespace: Option<u32>) -> Writer {
    let mut message = Writer::default();
    message.begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0, 0));
    message.text(IFLA_IFNAME, name);
    message.nest(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, b"veth");
        info.nest(IFLA_INFO_DATA, |data| {
            data.nest_after(VETH_INFO_PEER, &ifinfo(0, 0, 0), |p| {
                p.text(IFLA_IFNAME, peer);
                if let Some(fd) = namespace {
                    p.ne32(IFLA_NET_NS_FD, fd);
                }
            });
        });
    });
    message
}

fn address(kind: u16, flags: u16, link: u32, ip: IpAddr, prefix: u8) -> Writer {
    let mut header = [0; 8];
    header[0] = family_of(ip);
    header[1] = prefix;
    header[2] = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    header[4..].copy_from_slice(&link.to_ne_bytes());
    let mut message = Writer::default();
    message.begin(kind, flags, &header);
    message.ip(IFA_LOCAL, ip);
    message.ip(IFA_ADDRESS, ip);
    message
}

pub(super) fn route_message(kind: u16, flags: u16, route: &Route) -> Writer {
    let mut header = [0; 12];
    header[0] = family_of(route.destination.addr());
    header[1] = route.destination.prefix_len();
    header[4] = u8::try_from(route.table).unwrap_or(0); // a larger number stands in the attribute only
    header[5] = route.protocol;
    header[6] = scope(route.kind, route.gateway, route.destination);
    header[7] = route.kind.number();
    header[8..].copy_from_slice(&(if route.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    let mut message = Writer::default();
    message.begin(kind, flags, &header);
    message.ne32(RTA_TABLE, route.table);
    if route.destination.prefix_len() > 0 {
        message.ip(RTA_DST, route.destination.network());
    }
    if let Some(gateway) = route.gateway {
        message.ip(RTA_GATEWAY, gateway);
    }
    if let Some(link) = route.link {
        message.ne32(RTA_OIF, link);
    }
    if let Some(source) = route.source {
        message.ip(RTA_PREFSRC, source);
    }
    if let Some(metric) = route.metric {
        message.ne32(RTA_PRIORITY, metric);
    }
    if let Some(mtu) = route.mtu {
        message.nest(RTA_METRICS, |metrics| metrics.ne32(RTAX_MTU, mtu));
    }
    message
}

pub(super) fn read_address(what: &str, payload: &[u8]) -> Result<Option<Address>, Error> {
    let (header, rest) = fixed(what, payload, 8)?;
    // Of a point-to-point device the local end is IFA_LOCAL; IPv6 has IFA_ADDRESS only.
    let ip = codec::find(rest, IFA_LOCAL)
        .or_else(|| codec::find(rest, IFA_ADDRESS))
        .and_then(codec::read_ip);
    Ok(ip.map(|ip| Address {
        link: codec::read_u32(header, 4).unwrap_or(0),
        ip,
        prefix: header[1],
    }))
}

pub(super) fn read_link(payload: &[u8]) -> Result<Link, Error> {
    let (header, rest) = fixed("reading a link", payload, 16)?;
    let flags = codec::read_u32(header, 8).unwrap_or(0);
    Ok(Link {
        index: codec::read_u32(header, 4).unwrap_or(0),
        name: codec::find(rest, IFLA_IFNAME).map(codec::read_text).unwrap_or_default(),
        up: flags & IFF_UP != 0,
        running: codec::find(rest, IFLA_OPERSTATE).is_some_and(|state| state.first() == Some(&IF_OPER_UP)),
        loopback: flags & IFF_LOOPBACK != 0,
    })
}

pub(super) fn read_route(what: &str, payload: &[u8]) -> Result<Option<Route>, Error> {
    let (header, rest) = fixed(what, payload, 12)?;
    let unspecified = match header[0] {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return Ok(None),
    };
    let flags = codec::read_u32(header, 8).unwrap_or(0);
    let ip = codec::find(rest, RTA_DST).and_then(codec::read_ip).unwrap_or(unspecified);
    let Ok(destination) = IpNet::new(ip, header[1]) else {
        return Ok(None);
    };
    let kind = RouteKind::from_number(header[7]);
    let gateway = codec::find(rest, RTA_GATEWAY).and_then(codec::read_ip);
    let asks_more = header[2] != 0 || header[3] != 0 || header[6] != scope(kind, gateway, destination);
    Ok(Some(Route {
        destination,
        kind,
        gateway,
        link: codec::find(rest, RTA_OIF).and_then(|b| codec::read_u32(b, 0)),
        table: codec::find(rest, RTA_TABLE)
            .and_then(|b| codec::read_u32(b, 0))
            .unwrap_or_else(|| u32::from(header[4])),
        onlink: flags & RTNH_F_ONLINK != 0,
        source: codec::find(rest, RTA_PREFSRC).and_then(codec::read_ip),
        metric: codec::find(rest, RTA_PRIORITY).and_then(|b| codec::read_u32(b, 0)),
        mtu: codec::find(rest, RTA_METRICS)
            .and_then(|metrics| codec::find(metrics, RTAX_MTU))
            .and_then(|b| codec::read_u32(b, 0)),
        protocol: header[5],
        says_more: asks_more || flags & !RTNH_F_ONLINK != 0 || codec::attributes(rest).any(says_more),
    }))
}

/// The scope that a route is made with.
fn scope(kind: RouteKind, gateway: Option<IpAddr>, destination: IpNet) -> u8 {
    match kind {
        RouteKind::Local => SCOPE_HOST,
        RouteKind::Unicast if gateway.is_none() && destination.addr().is_ipv4() => SCOPE_LINK,
        _ => SCOPE_UNIVERSE,
    }
}

/// Whether an attribute of a route says what [`Route`] has no place for.
fn says_more((kind, value): (u16, &[u8])) -> bool {
    match kind {
        RTA_DST | RTA_OIF | RTA_GATEWAY | RTA_PRIORITY | RTA_PREFSRC | RTA_TABLE => false,
        RTA_METRICS => codec::attributes(value).any(|(metric, _)| metric != RTAX_MTU),
        // `struct rta_cacheinfo`: when it ends is the third of its numbers.
        RTA_CACHEINFO => codec::read_u32(value, 8) != Some(0),
        // Of a router that is neither preferred nor avoided.
        RTA_PREF => value != [0],
        _ => true,
    }
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibited => 8,
            Self::Thrown => 9,
            Self::Other(n) => n,
        }
    }

    fn from_number(n: u8) -> Self {
        match n {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibited,
            9 => Self::Thrown,
            n => Self::Other(n),
        }
    }
}

fn family_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The protocol, as routing asks for it.
pub(crate) const TCP: u8 = 6;
/// The loopback device has index 1 in every namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// The main routing table.
pub(crate) const MAIN: u32 = 254;
/// Of addresses so many bytes are read, which are some fifteen hundred: a pod may give itself as many as it likes, and they are kept.
const ADDRESSES: usize = 128 << 10;
/// Of the rules of a family.
const RULES: usize = 256 << 10;
/// Of the routes of a family, which are some ten thousand, and of links.
const MOST: usize = 1 << 20;
/// Listings that changes overtook are asked for again so many times.
const LISTINGS: usize = 10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IF_OPER_UP: u8 = 6;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 0x02;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_PREF: u16 = 20;
const RTAX_MTU: u16 = 2;
const RTA_MARK: u16 = 16;
const RTA_UID: u16 = 25;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
const NOWHERE: [i32; 5] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EPERM, libc::EINVAL];
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TUN_ID: u16 = 12;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DSCP: u16 = 25;
const FRA_FLOWLABEL: u16 = 26;
const FIB_RULE_INVERT: u32 = 2;
const FR_ACT_TO_TBL: u8 = 1;

#[cfg(test)]
mod tests;
