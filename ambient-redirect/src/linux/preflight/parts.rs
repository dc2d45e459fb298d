//! What a pod's capture asks of the kernel, part by part, so that it can be said which one is missing.

use std::fmt;

use super::super::rules::{route, routing_rule};
use crate::{
    netlink::{BaseChain, Batch, ChainKind, Conntrack, CtKey, Error, Expr, Family, Hook, MetaKey, Nftables, Routing, Sockets, Transport},
    plan::IpFamily,
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// The module that brings it, or the kernel's option where it is no module.
    pub from: &'static str,
    ask: Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ask {
    Table,
    Chain(ChainKind),
    Rule(Kind),
    RoutingRule(IpFamily),
    Route(IpFamily),
    Sockets(Transport),
    Conntrack,
}

/// What a rule of a probe is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Compare,
    Count,
    Redirect,
    Track,
    Zone,
    Reset,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (Linux {} and later; {})", self.name, self.since, self.from)
    }
}

impl Part {
    /// Asks the kernel for it, in the calling thread's namespace, which is made for the question.
    fn is_there(self) -> Result<(), Error> {
        match self.ask {
            Ask::Table => chain(None, &[]),
            Ask::Chain(kind) => chain(Some(kind), &[]),
            Ask::Rule(kind) => chain(Some(kind.chain()), &kind.rule()),
            Ask::RoutingRule(family) => Routing::open()?.add_rule(&routing_rule(family)),
            Ask::Route(family) => Routing::open()?.add_route(&route(family)),
            Ask::Sockets(transport) => Sockets::open()?.gather_listeners(transport, (), |(), _| ()),
            Ask::Conntrack => Conntrack::open()?.gather_connections(|| (), |(), _| ()),
        }
    }
}

/// Those that the kernel does not have, each with its words for it. Of IPv6 only where it is asked for.
pub(super) fn missing(ipv6: bool) -> Vec<(Part, Error)> {
    let asked = PARTS
        .into_iter()
        .filter(|part| ipv6 || !matches!(part.ask, Ask::RoutingRule(IpFamily::V6) | Ask::Route(IpFamily::V6)));
    let mut missing = Vec::new();
    for part in asked {
        match part.is_there() {
            Err(e) if !e.exists() => missing.push((part, e)),
            _ => (),
        }
    }
    missing
}

/// Makes a table with a chain and a rule, and lets it go again.
fn chain(kind: Option<ChainKind>, rule: &[Expr]) -> Result<(), Error> {
    let mut nftables = Nftables::open()?;
    let mut batch = Batch::default();
    batch.add_table(Family::Inet, PROBE, COMMENT);
    if let Some(kind) = kind {
        let base = BaseChain {
            kind,
            hook: Hook::Output,
            priority: 0,
        };
        batch.add_base_chain(Family::Inet, PROBE, "output", &base);
        batch.add_rule(Family::Inet, PROBE, "output", rule);
    }
    nftables.commit(batch, None)?;
    let mut batch = Batch::default();
    batch.delete_table(Family::Inet, PROBE);
    nftables.commit(batch, None)
}

impl Kind {
    fn chain(self) -> ChainKind {
        match self {
            Self::Redirect => ChainKind::Nat,
            _ => ChainKind::Filter,
        }
    }

    fn rule(self) -> Vec<Expr> {
        let tcp = || Expr::to(6, [127, 0, 0, 1].into(), 1);
        let load = |key| Expr::Ct { key, reg: 1 };
        match self {
            Self::Compare => {
                let mark = Expr::Meta {
                    key: MetaKey::Mark,
                    reg: 1,
                };
                let masked = Expr::Bitwise {
                    reg: 1,
                    mask: vec![0xff; 4],
                    xor: vec![0; 4],
                };
                [tcp(), vec![mark, masked]].concat()
            }
            Self::Count => vec![Expr::Counter],
            Self::Redirect => {
                let port = Expr::Immediate { reg: 1, data: vec![0, 1] };
                [tcp(), vec![port, Expr::Redirect { port_reg: 1 }]].concat()
            }
            Self::Track => vec![load(CtKey::Status), load(CtKey::Mark), Expr::CtSet { key: CtKey::Mark, reg: 1 }],
            Self::Zone => {
                let zone = Expr::Immediate {
                    reg: 1,
                    data: 1u16.to_ne_bytes().to_vec(),
                };
                vec![zone, Expr::CtSet { key: CtKey::Zone, reg: 1 }]
            }
            Self::Reset => [tcp(), vec![Expr::RejectReset]].concat(),
        }
    }
}

const PROBE: &str = "ambient-preflight";
/// As a comment is written, in `nft`'s way.
const COMMENT: &[u8] = b"\0\x06probe\0";

/// All of them; the crate's documentation lists the same.
pub(super) const PARTS: [Part; 17] = [
    part("tables of family inet", "3.14", "nf_tables, CONFIG_NF_TABLES_INET", Ask::Table),
    part("filter chains", "3.13", "nf_tables", Ask::Chain(ChainKind::Filter)),
    part(
        "nat chains in tables of family inet",
        "5.2",
        "nft_chain_nat",
        Ask::Chain(ChainKind::Nat),
    ),
    part(
        "route chains in tables of family inet",
        "5.2",
        "nf_tables",
        Ask::Chain(ChainKind::Route),
    ),
    part("meta, payload, bitwise and cmp", "3.14", "nf_tables", Ask::Rule(Kind::Compare)),
    part("counter", "3.13", "nft_counter, later nf_tables", Ask::Rule(Kind::Count)),
    part("redir in tables of family inet", "5.2", "nft_redir", Ask::Rule(Kind::Redirect)),
    part("ct status and ct mark", "3.14", "nft_ct, nf_conntrack", Ask::Rule(Kind::Track)),
    part("ct zone", "4.12", "nft_ct, CONFIG_NF_CONNTRACK_ZONES", Ask::Rule(Kind::Zone)),
    part("reject with a TCP reset", "3.14", "nft_reject_inet", Ask::Rule(Kind::Reset)),
    part(
        "IPv4 routing rules by masked mark",
        "2.6.19",
        "CONFIG_IP_MULTIPLE_TABLES",
        Ask::RoutingRule(IpFamily::V4),
    ),
    part(
        "IPv6 routing rules by masked mark",
        "2.6.19",
        "CONFIG_IPV6_MULTIPLE_TABLES",
        Ask::RoutingRule(IpFamily::V6),
    ),
    part(
        "IPv4 routes in tables of their own",
        "2.6.19",
        "CONFIG_IP_MULTIPLE_TABLES",
        Ask::Route(IpFamily::V4),
    ),
    part(
        "IPv6 routes in tables of their own",
        "2.6.19",
        "CONFIG_IPV6_MULTIPLE_TABLES",
        Ask::Route(IpFamily::V6),
    ),
    part("listings of what conntrack knows", "2.6.14", "nf_conntrack_netlink", Ask::Conntrack),
    part(
        "listings of TCP sockets with marks",
        "4.10",
        "inet_diag, tcp_diag",
        Ask::Sockets(Transport::Tcp),
    ),
    part(
        "listings of UDP sockets with marks",
        "4.10",
        "inet_diag, udp_diag",
        Ask::Sockets(Transport::Udp),
    ),
];

const fn part(name: &'static str, since: &'static str, from: &'static str, ask: Ask) -> Part {
    Part { name, since, from, ask }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_newer_than_promised_and_all_are_documented() {
        let documented = include_str!("../../lib.rs");
        for part in PARTS {
            let mut numbers = part.since.split('.').map(|n| n.parse::<u32>().unwrap());
            let since = (numbers.next().unwrap(), numbers.next().unwrap());
            assert!(since <= (5, 10), "{part}");
            let row = format!("//! | {} | {} | {} |", part.name, part.since, part.from);
            assert!(documented.contains(&row), "the crate's documentation lacks {row}");
        }
    }
}
