//! A plan as text: what `nft` and `ip` would be told. For people and dry runs; nothing reads it back.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use crate::plan::{
    Action, ChainKind, IpFamily, MARK_MASK, Match, Plan, Protocol, REPLY_MARK, ROUTE_TABLE, RULE_PRIORITY, Rule, SEGMENTS_MTU,
    SEGMENTS_PRIORITY, SEGMENTS_TABLE, Table,
};

/// What `nft -f` and a shell would take, in the order in which it is done: the listeners first, as a comment.
impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("# the proxy listens first:")?;
        for listener in &self.listeners {
            write!(f, " {listener}")?;
        }
        f.write_str("\n\n# then, in one transaction of nftables:\n")?;
        for table in &self.tables {
            write!(f, "{table}")?;
        }
        f.write_str("\n# and the way back to the proxy:\n")?;
        for family in &self.rules {
            let flag = family.flag();
            writeln!(
                f,
                "# ip {flag} rule add fwmark {REPLY_MARK:#x}/{MARK_MASK:#x} pref {RULE_PRIORITY} lookup {ROUTE_TABLE}"
            )?;
        }
        for family in &self.routes {
            writeln!(
                f,
                "# ip {} route replace local default dev lo scope host table {ROUTE_TABLE}",
                family.flag()
            )?;
        }
        if !self.segments.is_empty() {
            writeln!(
                f,
                "\n# and the loopback device's segments, where the routes of the main table go to table {SEGMENTS_TABLE} with mtu {SEGMENTS_MTU}:"
            )?;
        }
        for family in &self.segments {
            let flag = family.flag();
            writeln!(
                f,
                "# ip {flag} rule add iif lo fwmark 0/{MARK_MASK:#x} ipproto tcp pref {SEGMENTS_PRIORITY} lookup {SEGMENTS_TABLE}"
            )?;
        }
        Ok(())
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for set in &self.sets {
            let kind = match set.family {
                IpFamily::V4 => "ipv4_addr",
                IpFamily::V6 => "ipv6_addr",
            };
            write!(f, "  set {} {{\n    type {kind};\n", set.name)?;
            for (n, address) in set.addresses.iter().enumerate() {
                write!(f, "{}{address}", if n == 0 { "    elements = { " } else { ", " })?;
            }
            writeln!(f, "{}  }}", if set.addresses.is_empty() { "" } else { " }\n" })?;
        }
        for chain in &self.chains {
            let (name, kind, priority) = (chain.hook.name(), chain.kind, chain.priority);
            writeln!(f, "  chain {name} {{")?;
            writeln!(f, "    type {kind} hook {name} priority {priority}; policy accept;")?;
            for rule in &chain.rules {
                writeln!(f, "    # {}", rule.why)?;
                writeln!(f, "    {rule}")?;
            }
            f.write_str("  }\n")?;
        }
        f.write_str("}\n")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for test in &self.matches {
            write!(f, "{test} ")?;
        }
        write!(f, "counter {}", self.action)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(IpFamily::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(IpFamily::V6) => f.write_str("meta nfproto ipv6"),
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::Source(ip) => write!(f, "{} saddr {ip}", keyword(ip)),
            Self::Destination(ip) => write!(f, "{} daddr {ip}", keyword(ip)),
            Self::NotDestination(ip) => write!(f, "{} daddr != {ip}", keyword(ip)),
            Self::DestinationIn(set, IpFamily::V4) => write!(f, "ip daddr @{set}"),
            Self::DestinationIn(set, IpFamily::V6) => write!(f, "ip6 daddr @{set}"),
            Self::OfOwnSocket => f.write_str("meta skuid >= 0"),
            Self::SourcePort(port) => write!(f, "th sport {port}"),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::NotDestinationPort(port) => write!(f, "th dport != {port}"),
            Self::Mark(mark) => write!(f, "meta mark & {MARK_MASK:#x} == {mark:#x}"),
            Self::NotMark(mark) => write!(f, "meta mark & {MARK_MASK:#x} != {mark:#x}"),
            Self::ConnectionMark(mark) => write!(f, "ct mark & {MARK_MASK:#x} == {mark:#x}"),
            Self::Redirected => f.write_str("ct status & dnat == dnat"),
            Self::Unassured => f.write_str("ct status & assured == 0"),
            Self::Opens => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
            Self::NotReset => f.write_str("tcp flags & rst == 0"),
            Self::NotFromLoopback => f.write_str("iifname != lo"),
            Self::From(name) => write!(f, "iifname \"{name}\""),
            Self::ToLoopback => f.write_str("oifname lo"),
            Self::NotToLoopback => f.write_str("oifname != lo"),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::MarkConnection(mark) => write!(f, "ct mark set ct mark & {:#x} | {mark:#x}", !MARK_MASK),
            Self::RestoreMark => f.write_str("meta mark set ct mark"),
            Self::Zone(zone) => write!(f, "ct zone set {zone}"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Drop => f.write_str("drop"),
            Self::SourceNat(ip) => write!(f, "snat {} to {ip}", keyword(ip)),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Display for ChainKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        })
    }
}

impl IpFamily {
    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

fn keyword(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

impl Display for IpFamily {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Display for crate::plan::Port {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.port)
    }
}
