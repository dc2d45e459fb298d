//! What a pod's namespace must hold for its traffic to reach the proxy, as data.
//!
//! Marks, ports, priorities and the order of rules are those of Istio's ambient mode (its `istio-cni` node agent), so that
//! either proxy can serve the pod; the tables bear names of our own.
//!
//! How a connection runs through it: what the pod's processes send is redirected to the proxy's outbound port
//! (`nat output`), what comes to the pod by TCP to its inbound one (`nat prerouting`), unless it bears the proxy's mark
//! [`PROXY_MARK`]. The proxy connects to the pod's application from the client's own address; such packets bear the mark
//! when they come in by the loopback device, so the connection is marked with [`REPLY_MARK`] (`mangle prerouting`), the
//! application's replies get that mark back (`mangle output`) and a routing rule sends them to the loopback device, where
//! the proxy takes them, rather than out to the client. DNS queries of the proxy itself are tracked in a zone apart
//! (`raw`), or they would collide with the ones redirected to it.
//!
//! Only the packet that makes a conntrack entry is ever redirected. An entry can be there without a redirection: of a
//! connection from before the rules, whose later packets were tracked, and whose end was not. A new connection between the
//! same addresses and ports would match it and go around the proxy, so that such a one is refused with a reset (`guard`). Let
//! through is what opens a connection again that was being opened when the rules came: whose first packet, or the answer to
//! it, was lost. These chains are of our own.

mod life;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ambient_core::{Capture, InterfaceName, ports};

pub use life::KEPT_MARK;
pub(crate) use life::{CLOSED, NAT};

/// The mark of every socket of the proxy, under [`MARK_MASK`]: what bears it is not redirected.
pub const PROXY_MARK: u32 = 0x539;
/// The mark of replies that must go back to the proxy, under [`MARK_MASK`].
pub const REPLY_MARK: u32 = 0x111;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;
/// The routing table that takes replies back to the proxy.
pub const ROUTE_TABLE: u32 = 100;
/// The priority of the routing rule that leads to it.
pub const RULE_PRIORITY: u32 = 32764;
/// The routing table by which the pod's own TCP goes where [`Plan::segments`] has it so: a number in nobody's way; those just above
/// 100 are what network plugins and people take.
pub const SEGMENTS_TABLE: u32 = 65_520;
/// The priority of the routing rule that leads to it: after [`RULE_PRIORITY`], and before the kernel's own for the main table.
pub const SEGMENTS_PRIORITY: u32 = 32765;
/// The MTU of its routes, in bytes: the largest that the kernel gives a route, and little less than the loopback device's.
pub const SEGMENTS_MTU: u32 = 65_520;
/// The conntrack zone of the proxy's own DNS queries.
pub const DNS_ZONE: u16 = 1;
/// The source that Istio gives the probes of a node's kubelet, IPv4 and IPv6.
pub const PROBE_SOURCES: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(169, 254, 7, 127),
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff),
);
/// The names of every table that a plan may hold; one of them that is not in a plan must not be in the namespace.
pub const TABLES: [&str; 6] = [
    "ambient-nat",
    "ambient-mangle",
    "ambient-raw",
    "ambient-guard",
    "ambient-closed",
    "ambient-tracking",
];
/// The port to which the connections go that prove a capture: one of the proxy's own, for which no application's is meant.
pub(crate) const PROBE_PORT: u16 = ports::OUTBOUND;

/// What may differ from pod to pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Capture IPv6 as well. Without it an IPv6 connection goes around the proxy.
    pub ipv6: bool,
    /// Capture DNS queries.
    pub dns: bool,
    /// Let connections from [`PROBE_SOURCES`] through to the application. Only for nodes whose own namespace gives that
    /// address to the kubelet's probes and lets nobody else use it.
    pub probes: bool,
    /// Capture what comes to the pod. Without it only HBONE goes to the proxy, and all else to the application as it is.
    pub inbound: bool,
    /// What comes by TCP from these devices is captured as if the pod had sent it.
    pub virtual_interfaces: Vec<InterfaceName>,
    /// Let rules of others in the namespace have what they translate before ours do: it goes around the proxy. Without it such a
    /// connection is refused, unless it goes to a process of the pod's own.
    pub yields: bool,
    /// Connections that are captured have the segments of the loopback device, on which they stay, and not those of the pod's link:
    /// less is done for each byte of them. Only where nothing of the pod's goes around the proxy but what answers probes, of each family
    /// by itself where that is connections from before its capture: see [`Plan::segments`].
    ///
    /// A process that writes twice before it reads, and has left on that small segments wait for what was sent before
    /// (Nagle's algorithm, [RFC 9293 3.7.4]), waits for an acknowledgement of the first where the second is smaller than a segment;
    /// with this it is so up to 64 KiB instead of one and a half. The kernel delays acknowledgements by 40 ms: this is for a proxy
    /// that does not leave it at that, as `ambient-node` does not. What a process has the kernel hold back until a segment is full
    /// (`TCP_CORK`, `MSG_MORE`) is held back up to 64 KiB, for at most 200 ms.
    ///
    /// [RFC 9293 3.7.4]: https://www.rfc-editor.org/rfc/rfc9293#section-3.7.4
    pub loopback_segments: bool,
}

impl Options {
    /// These, with what a pod asks of its own capture.
    pub fn of(&self, pod: &Capture) -> Self {
        let mut options = self.clone();
        options.inbound &= !pod.bypass_inbound;
        options.dns = pod.dns.unwrap_or(self.dns);
        for name in &pod.virtual_interfaces {
            if !options.virtual_interfaces.contains(name) {
                options.virtual_interfaces.push(*name);
            }
        }
        options
    }

    /// What goes around the proxy by these, if anything does but what answers probes: its other end may take larger segments than the
    /// pod's link does.
    pub(crate) fn goes_around(&self) -> Option<&'static str> {
        if !self.inbound {
            return Some("what comes to the pod");
        }
        if self.yields {
            return Some("what rules of others translate");
        }
        (!self.virtual_interfaces.is_empty()).then_some("what comes to a machine inside the pod")
    }
}

impl Default for Options {
    /// IPv6 and DNS, what comes and what goes, and no way around for probes nor for what others translate.
    fn default() -> Self {
        Self {
            ipv6: true,
            dns: true,
            probes: false,
            inbound: true,
            virtual_interfaces: Vec::new(),
            yields: false,
            loopback_segments: false,
        }
    }
}

/// Everything that a pod's namespace must hold.
///
/// ```
/// use ambient_redirect::plan::{Options, Plan};
///
/// let plan = Plan::new(&Options { ipv6: false, ..Options::default() });
/// assert_eq!(plan.tables.len(), 4);
/// assert!(plan.listeners.iter().any(|l| l.port == 15001));
/// println!("{plan}"); // as text for nft and ip
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Tables of nftables, family `inet`.
    pub tables: Vec<Table>,
    /// Routing rules: `fwmark REPLY_MARK/MARK_MASK pref RULE_PRIORITY lookup ROUTE_TABLE`.
    pub rules: Vec<IpFamily>,
    /// Routes: `local default dev lo table ROUTE_TABLE`.
    pub routes: Vec<IpFamily>,
    /// Of which families what the pod's processes send by TCP is routed by [`SEGMENTS_TABLE`]: `iif lo fwmark 0/MARK_MASK ipproto tcp
    /// pref SEGMENTS_PRIORITY lookup SEGMENTS_TABLE`, with the routes of the main table, each with [`SEGMENTS_MTU`], but for what goes to
    /// [`PROBE_SOURCES`]. It is for speed alone, and no part of what captures: it is not proven, and left out where the main table has
    /// other routes than plain ones, where somebody else uses that table, where rules of others stand between that rule and the one for
    /// the main table, and where connections of that family go around the proxy: [`linux::Aside`](crate::linux::Aside).
    pub segments: Vec<IpFamily>,
    /// What the proxy must listen on before the tables come.
    pub listeners: Vec<Port>,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port that the proxy listens on in the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// By which protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// A table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name, one of [`TABLES`].
    pub name: &'static str,
    /// Its sets of addresses.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A set of addresses, which rules ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Of which addresses.
    pub family: IpFamily,
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A chain that the kernel calls for every packet at one place; it accepts what no rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The place.
    pub hook: Hook,
    /// What it may do.
    pub kind: ChainKind,
    /// Its place among others at the same hook.
    pub priority: i32,
    /// Its rules; the first that decides ends the chain.
    pub rules: Vec<Rule>,
}

/// Where a chain stands; the chain is named after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before it is known whether a packet is for this host.
    Prerouting,
    /// Where packets for this host come in.
    Input,
    /// Where packets that are for others come through.
    Forward,
    /// Where packets of local processes leave.
    Output,
    /// Where all packets leave, whoever sent them.
    Postrouting,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Decide and mark.
    Filter,
    /// Change addresses, once for each connection.
    Nat,
    /// Mark, with a packet routed again if its mark changes.
    Route,
}

/// A rule: if all of this holds, then that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What must hold, tested in this order.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
    /// Why the rule is there.
    pub why: &'static str,
}

/// A test of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// It is of this family.
    Family(IpFamily),
    /// It is of this protocol.
    Protocol(Protocol),
    /// It comes from this address; asks for the family as well.
    Source(IpAddr),
    /// It goes to this address; asks for the family as well.
    Destination(IpAddr),
    /// It goes to any other address of the same family.
    NotDestination(IpAddr),
    /// It goes to an address in this set, which is of this family; asks for the family as well.
    DestinationIn(&'static str, IpFamily),
    /// A socket of this namespace sends it: it is not one that only comes through.
    OfOwnSocket,
    /// It comes from this port.
    SourcePort(u16),
    /// It goes to this port.
    DestinationPort(u16),
    /// It goes to any other port.
    NotDestinationPort(u16),
    /// It bears this mark, under [`MARK_MASK`].
    Mark(u32),
    /// It does not.
    NotMark(u32),
    /// Its connection bears this mark, under [`MARK_MASK`].
    ConnectionMark(u32),
    /// Its connection's destination was changed, as a redirection does; asks whether it is tracked as well.
    Redirected,
    /// The handshake of its connection has not ended, as far as it was seen; asks whether it is tracked as well.
    Unassured,
    /// It opens a TCP connection: of FIN, SYN, RST and ACK it has SYN alone ([RFC 9293 3.5]); asks for TCP before.
    ///
    /// [RFC 9293 3.5]: https://www.rfc-editor.org/rfc/rfc9293#section-3.5
    Opens,
    /// It is no TCP reset; asks for TCP before.
    NotReset,
    /// It came by another device than the loopback one.
    NotFromLoopback,
    /// It came by this device.
    From(InterfaceName),
    /// It leaves by the loopback device.
    ToLoopback,
    /// It leaves by another.
    NotToLoopback,
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes on as it is.
    Accept,
    /// It goes to this port of this host.
    Redirect(u16),
    /// Its connection is marked, under [`MARK_MASK`].
    MarkConnection(u32),
    /// It gets its connection's mark.
    RestoreMark,
    /// Its connection is looked for, and made, in this conntrack zone.
    Zone(u16),
    /// It goes no further, and its sender gets a TCP reset.
    Reset,
    /// It goes no further.
    Drop,
    /// It leaves as if from this address.
    SourceNat(IpAddr),
}

impl Plan {
    /// The plan for a pod.
    pub fn new(options: &Options) -> Self {
        let families: &[IpFamily] = if options.ipv6 {
            &[IpFamily::V4, IpFamily::V6]
        } else {
            &[IpFamily::V4]
        };
        let mut tables = vec![nat(options, families), mangle()];
        if options.dns {
            tables.push(raw());
        }
        tables.push(guard(options, families));
        let mut listeners: Vec<Port> = [ports::HBONE, ports::INBOUND_PLAINTEXT, ports::OUTBOUND].map(Port::tcp).to_vec();
        if options.dns {
            listeners.push(Port::tcp(ports::DNS));
            listeners.push(Port {
                protocol: Protocol::Udp,
                port: ports::DNS,
            });
        }
        Self {
            tables,
            rules: families.to_vec(),
            routes: families.to_vec(),
            segments: families
                .iter()
                .copied()
                .filter(|_| options.loopback_segments && options.goes_around().is_none())
                .collect(),
            listeners,
        }
    }
}

impl Port {
    fn tcp(port: u16) -> Self {
        Self {
            protocol: Protocol::Tcp,
            port,
        }
    }
}

impl IpFamily {
    /// The family of an address; one of IPv4 may be written as one of IPv6, as a socket of both lists it.
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The loopback address that applications use.
    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// Whereto the connection goes that proves a capture: [RFC 1112 4] (240/4) and [RFC 6666] (100::/64), where nobody is.
    ///
    /// [RFC 1112 4]: https://www.rfc-editor.org/rfc/rfc1112#section-4
    /// [RFC 6666]: https://www.rfc-editor.org/rfc/rfc6666
    pub(crate) fn probe(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(240, 0, 0, 1).into(),
            Self::V6 => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    pub(crate) fn probe_source(self) -> IpAddr {
        match self {
            Self::V4 => PROBE_SOURCES.0.into(),
            Self::V6 => PROBE_SOURCES.1.into(),
        }
    }
}

fn nat(options: &Options, families: &[IpFamily]) -> Table {
    use Match as M;
    let tcp = M::Protocol(Protocol::Tcp);
    let not_proxy = M::NotMark(PROXY_MARK);
    let twins = |rule: &dyn Fn(IpFamily) -> Rule| families.iter().map(|f| rule(*f)).collect::<Vec<_>>();

    let mut prerouting = Vec::new();
    let mut output = Vec::new();
    for name in &options.virtual_interfaces {
        // Without IPv6 nothing of it reaches the proxy.
        let family = (!options.ipv6).then_some(M::Family(IpFamily::V4));
        prerouting.push(Rule::new(
            [M::From(*name)].into_iter().chain(family).chain([tcp]).collect::<Vec<_>>(),
            Action::Redirect(ports::OUTBOUND),
            "what a machine inside the pod sends",
        ));
    }
    if options.probes && options.inbound {
        prerouting.extend(twins(&|f| {
            Rule::new([tcp, M::Source(f.probe_source())], Action::Accept, "the kubelet's probes")
        }));
    }
    if options.probes {
        output.extend(twins(&|f| {
            Rule::new(
                [tcp, M::Destination(f.probe_source())],
                Action::Accept,
                "replies to the kubelet's probes",
            )
        }));
    }
    if options.inbound {
        prerouting.extend(twins(&|f| {
            Rule::new(
                [M::NotDestination(f.loopback()), tcp, M::NotDestinationPort(ports::HBONE), not_proxy],
                Action::Redirect(ports::INBOUND_PLAINTEXT),
                "what comes to the pod, except by HBONE or from the proxy",
            )
        }));
    }
    if options.dns {
        let mut udp = vec![M::NotToLoopback, not_proxy, M::Protocol(Protocol::Udp), M::DestinationPort(53)];
        if !options.ipv6 {
            udp.insert(0, M::Family(IpFamily::V4));
        }
        output.push(Rule {
            matches: udp,
            action: Action::Redirect(ports::DNS),
            why: "DNS queries by UDP",
        });
        output.extend(twins(&|f| {
            Rule::new(
                [M::NotDestination(f.loopback()), tcp, M::DestinationPort(53), not_proxy],
                Action::Redirect(ports::DNS),
                "DNS queries by TCP",
            )
        }));
    }
    output.push(Rule::new(
        [tcp, M::Mark(REPLY_MARK)],
        Action::Accept,
        "replies that go back to the proxy",
    ));
    output.extend(twins(&|f| {
        Rule::new(
            [M::ToLoopback, M::NotDestination(f.loopback())],
            Action::Accept,
            "the pod calling itself by its own address",
        )
    }));
    output.extend(twins(&|f| {
        Rule::new(
            [tcp, M::NotDestination(f.loopback()), not_proxy],
            Action::Redirect(ports::OUTBOUND),
            "what the pod sends",
        )
    }));
    Table {
        name: TABLES[0],
        sets: Vec::new(),
        chains: vec![
            Chain::new(Hook::Prerouting, ChainKind::Nat, -100, prerouting),
            Chain::new(Hook::Output, ChainKind::Nat, -100, output),
        ],
    }
}

fn mangle() -> Table {
    let mark = Rule::new(
        [Match::Mark(PROXY_MARK)],
        Action::MarkConnection(REPLY_MARK),
        "connections that the proxy makes to the application",
    );
    let restore = Rule::new([Match::ConnectionMark(REPLY_MARK)], Action::RestoreMark, "replies to the proxy");
    Table {
        name: TABLES[1],
        sets: Vec::new(),
        chains: vec![
            Chain::new(Hook::Prerouting, ChainKind::Filter, -150, vec![mark]),
            Chain::new(Hook::Output, ChainKind::Route, -150, vec![restore]),
        ],
    }
}

fn raw() -> Table {
    let udp = Match::Protocol(Protocol::Udp);
    let queries = Rule::new(
        [udp, Match::DestinationPort(53), Match::Mark(PROXY_MARK)],
        Action::Zone(DNS_ZONE),
        "the proxy's own DNS queries, apart from the redirected ones",
    );
    let answers = Rule::new(
        [udp, Match::SourcePort(53), Match::NotMark(PROXY_MARK)],
        Action::Zone(DNS_ZONE),
        "the answers to them",
    );
    Table {
        name: TABLES[2],
        sets: Vec::new(),
        chains: vec![
            Chain::new(Hook::Prerouting, ChainKind::Filter, -300, vec![answers]),
            Chain::new(Hook::Output, ChainKind::Filter, -300, vec![queries]),
        ],
    }
}

/// What opens a connection is redirected or exempt, or it is refused. The packet that conntrack takes for part of something
/// else, or cannot place at all, sees no `nat` chain; therefore what is redirected is let through, and not what is known to
/// be unredirected refused: the untracked is neither.
///
/// Rules of others may have translated it, whose chain stands before ours, or has come later and stands at the same priority: so
/// it counts as redirected only where it goes to the proxy, or does not leave.
fn guard(options: &Options, families: &[IpFamily]) -> Table {
    use Match as M;
    let tcp = M::Protocol(Protocol::Tcp);
    // Without IPv6 nothing redirects it, and it goes around the proxy.
    let family = (!options.ipv6).then_some(M::Family(IpFamily::V4));
    let refusal = |tests: &[M], why| {
        let matches: Vec<M> = family.into_iter().chain([tcp, M::Opens]).chain(tests.iter().copied()).collect();
        Rule::new(matches, Action::Reset, why)
    };
    let redirected = Rule::new([M::Redirected], Action::Accept, "what is redirected");
    let to_proxy = |port| Rule::new([tcp, M::Redirected, M::DestinationPort(port)], Action::Accept, "what is redirected");
    let within = |f: &IpFamily| {
        let matches = [M::Redirected, M::Destination(f.loopback())];
        Rule::new(matches, Action::Accept, "what is redirected and stays here")
    };
    // Its first packet may have been lost.
    let opening = Rule::new(
        [M::ConnectionMark(KEPT_MARK), M::Unassured],
        Action::Accept,
        "what was being opened before",
    );

    let mut input = Vec::new();
    if options.inbound {
        let probes = |f: &IpFamily| Rule::new([tcp, M::Source(f.probe_source())], Action::Accept, "the kubelet's probes");
        input.extend(families.iter().filter(|_| options.probes).map(probes));
        match options.yields {
            true => input.push(redirected.clone()),
            false => {
                input.push(to_proxy(ports::INBOUND_PLAINTEXT));
                let machines = !options.virtual_interfaces.is_empty();
                input.extend(machines.then(|| to_proxy(ports::OUTBOUND)));
            }
        }
        input.push(opening.clone());
        input.push(refusal(
            &[M::NotFromLoopback, M::NotDestinationPort(ports::HBONE), M::NotMark(PROXY_MARK)],
            "what would come to the pod around the proxy",
        ));
    }
    // What answers probes opens nothing. Whoever would call where they come from is captured by nobody: he goes around the proxy.
    let mut output = Vec::new();
    match options.yields {
        true => output.push(redirected),
        false => output.extend(families.iter().map(within)),
    }
    output.push(opening);
    output.push(refusal(
        &[M::NotToLoopback, M::NotMark(PROXY_MARK), M::NotMark(REPLY_MARK)],
        "what the pod would send around the proxy",
    ));
    Table {
        name: TABLES[3],
        sets: Vec::new(),
        chains: vec![
            // After every change of destinations.
            Chain::new(Hook::Input, ChainKind::Filter, 10, input),
            Chain::new(Hook::Output, ChainKind::Filter, 10, output),
        ],
    }
}

impl Rule {
    pub(crate) fn new(matches: impl Into<Vec<Match>>, action: Action, why: &'static str) -> Self {
        Self {
            matches: matches.into(),
            action,
            why,
        }
    }
}

impl Chain {
    pub(crate) fn new(hook: Hook, kind: ChainKind, priority: i32, rules: Vec<Rule>) -> Self {
        Self {
            hook,
            kind,
            priority,
            rules,
        }
    }
}

impl Hook {
    /// The kernel's name of it, and the name of our chain there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

#[cfg(test)]
mod tests;
