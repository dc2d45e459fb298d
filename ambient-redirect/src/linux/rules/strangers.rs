//! Rules of others in a pod's namespace that come before those of the capture.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use crate::{
    netlink::{Chain, Does, Error, Family, NftRule, Nftables, TCP},
    plan::{self, Action, IpFamily, MARK_MASK, PROXY_MARK, Plan, Protocol, REPLY_MARK, TABLES},
    pods::Direction,
};

/// A rule of somebody else's in a pod's namespace that decides of what is to be captured, before the rules that capture it, or
/// beside them: of chains at the same priority the kernel asks first the one that has come last.
///
/// It is never touched. What a rule of a table sends elsewhere is refused ([`Options::yields`](plan::Options::yields)), or stays in the
/// pod; what a routing rule takes of a capture that goes well as a whole is lost. Not seen are rules of the older tables of
/// `iptables-legacy`, and what BPF does; what they translate is refused all the same. Nor are routing rules for a device by which
/// something comes in or is to leave, or for bits of a packet's mark that are not the proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stranger {
    /// Where it stands.
    pub place: RulePlace,
    /// Whether it decides of what comes to the pod or of what the pod sends.
    pub direction: Direction,
    /// What it does, in words for people.
    pub does: String,
}

/// Where a rule of somebody else's stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RulePlace {
    /// In a chain of nftables.
    Chain {
        /// Its table, with its family, as `nft list table` takes them.
        table: String,
        /// Its name.
        chain: String,
    },
    /// Among the rules of routing, as `ip rule` lists them.
    RoutingRule {
        /// Its priority.
        priority: u32,
        /// Whether it is one of IPv6.
        ipv6: bool,
    },
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain { table, chain } => write!(f, "table {table}, chain {chain}"),
            Self::RoutingRule { priority, ipv6: true } => write!(f, "IPv6 routing rule {priority}"),
            Self::RoutingRule { priority, ipv6: false } => write!(f, "IPv4 routing rule {priority}"),
        }
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Inbound => "what comes in",
            Direction::Outbound => "what goes out",
        };
        write!(f, "{}: of {way}, {}", self.place, self.does)
    }
}

/// What of a plan can be come before.
#[derive(Clone, Copy, Debug)]
struct Captured {
    ipv6: bool,
    dns: bool,
    inbound: bool,
}

impl Captured {
    fn by(plan: &Plan) -> Self {
        let redirects = |hook, protocol: Option<Protocol>| {
            let chains = plan
                .tables
                .iter()
                .flat_map(|table| &table.chains)
                .filter(move |chain| chain.hook == hook);
            chains.flat_map(|chain| &chain.rules).any(|rule| {
                let of = protocol.is_none_or(|protocol| rule.matches.contains(&plan::Match::Protocol(protocol)));
                of && matches!(rule.action, Action::Redirect(_))
            })
        };
        Self {
            ipv6: plan.rules.contains(&IpFamily::V6),
            dns: redirects(plan::Hook::Output, Some(Protocol::Udp)),
            inbound: redirects(plan::Hook::Prerouting, None),
        }
    }

    /// Where a chain stands so that its rules come before ours.
    fn place(self, chain: &Chain) -> Option<Direction> {
        let family = match chain.family {
            Family::Inet | Family::Ip => true,
            Family::Ip6 => self.ipv6,
            Family::Other(_) => false,
        };
        let direction = match chain.hook {
            Some((PREROUTING, priority)) if priority <= NAT && self.inbound => Direction::Inbound,
            Some((OUTPUT, priority)) if priority <= NAT => Direction::Outbound,
            _ => return None,
        };
        let ours = chain.family == Family::Inet && TABLES.contains(&chain.table.as_str());
        (family && !ours).then_some(direction)
    }
}

/// Looks for them; nothing is asked where others have no chain at such a place. For [`Nftables::steadily`].
pub(super) fn look(nftables: &mut Nftables, plan: &Plan, chains: &[Chain]) -> Result<Vec<Stranger>, Error> {
    let captured = Captured::by(plan);
    let mut tables: Vec<(Family, &str)> = chains
        .iter()
        .filter(|chain| captured.place(chain).is_some())
        .map(|chain| (chain.family, chain.table.as_str()))
        .collect();
    tables.dedup();
    let mut strangers = Vec::new();
    for (family, table) in tables.into_iter().take(TABLES_READ) {
        let (rules, more) = nftables.rules_of_others(family, table, RULES_READ)?;
        let chains: Vec<&Chain> = chains.iter().filter(|c| c.family == family && c.table == table).collect();
        strangers.extend(of_table(captured, &chains, &rules));
        if more {
            let based = chains.iter().find_map(|chain| Some((chain, captured.place(chain)?)));
            strangers.extend(based.map(|(chain, direction)| Stranger {
                direction,
                does: format!("there are more than {RULES_READ} rules, which are not all read"),
                ..named(chain, &chain.name)
            }));
        }
    }
    strangers.sort_unstable();
    strangers.dedup();
    strangers.truncate(STRANGERS);
    Ok(strangers)
}

fn of_table(captured: Captured, chains: &[&Chain], rules: &[NftRule]) -> Vec<Stranger> {
    let mut by_chain: HashMap<&str, Vec<&NftRule>> = HashMap::new();
    for rule in rules {
        by_chain.entry(&rule.chain).or_default().push(rule);
    }
    let mut strangers = Vec::new();
    for base in chains {
        let Some(direction) = captured.place(base) else { continue };
        let mut to_read = vec![(base.name.as_str(), Taken::default())];
        let mut read: HashSet<(String, Taken)> = HashSet::new();
        while let Some((name, taken)) = to_read.pop() {
            if read.len() >= RULES_READ || !read.insert((name.to_owned(), taken)) {
                continue;
            }
            for rule in by_chain.get(name).into_iter().flatten() {
                let reading = rule.reading();
                let taken = taken.and(reading.protocol, reading.port);
                // What a pod says to its own addresses is not captured.
                let within = reading.within || reading.to_own && direction == Direction::Outbound;
                if within || !taken.concerns(captured, direction) {
                    continue;
                }
                strangers.extend(reading.does.and_then(|does| said(does, base, taken)).map(|does| Stranger {
                    direction,
                    does,
                    ..named(base, name)
                }));
                let known = |chain: &str| by_chain.get_key_value(chain).map(|(name, _)| *name);
                to_read.extend(reading.leads_to.iter().filter_map(|chain| Some((known(chain)?, taken))));
                if reading.leads_anywhere {
                    let others = chains.iter().filter(|chain| chain.hook.is_none());
                    to_read.extend(others.map(|chain| (chain.name.as_str(), taken)));
                }
            }
        }
    }
    strangers
}

/// What a rule takes, with what leads to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Taken {
    protocol: Option<u8>,
    port: Option<u16>,
}

impl Taken {
    fn and(self, protocol: Option<u8>, port: Option<u16>) -> Self {
        Self {
            protocol: protocol.or(self.protocol),
            port: port.or(self.port),
        }
    }

    /// Whether any of it is to be captured.
    fn concerns(self, captured: Captured, direction: Direction) -> bool {
        match self.protocol {
            None | Some(TCP) => true,
            Some(UDP) => captured.dns && direction == Direction::Outbound && self.port.is_none_or(|port| port == DNS),
            Some(_) => false,
        }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Some(UDP) => "UDP",
            _ => "TCP",
        };
        match self.port {
            Some(port) => write!(f, "{protocol} to port {port}"),
            None => write!(f, "{protocol}"),
        }
    }
}

/// What a rule does, where that keeps something from being captured.
fn said(does: Does, base: &Chain, taken: Taken) -> Option<String> {
    let translates = base.kind.as_deref() == Some("nat");
    let to = |port: Option<u16>| port.map_or_else(String::new, |port| format!(", port {port}"));
    match does {
        Does::Redirects(port) if translates => Some(format!("{taken} is redirected to the pod itself{}", to(port))),
        Does::Translates(port) if translates => Some(format!("{taken} gets another destination{}", to(port))),
        Does::Diverts => Some(format!("{taken} is given to another socket")),
        Does::Untracks => Some(format!("{taken} is not tracked")),
        Does::Marks(mark) if [PROXY_MARK, REPLY_MARK].contains(&(mark & MARK_MASK)) => {
            Some(format!("{taken} gets the mark {mark:#x}, which is the proxy's"))
        }
        _ => None,
    }
}

fn named(base: &Chain, chain: &str) -> Stranger {
    let family = match base.family {
        Family::Ip => "ip",
        Family::Ip6 => "ip6",
        _ => "inet",
    };
    Stranger {
        place: RulePlace::Chain {
            table: format!("{family} {}", printable(&base.table)),
            chain: printable(chain),
        },
        direction: Direction::Outbound,
        does: String::new(),
    }
}

/// A name that others have chosen, for people's eyes.
fn printable(name: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(shown).take(NAME).collect()
}

/// The priority of the chains that redirect.
const NAT: i32 = -100;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const UDP: u8 = 17;
const DNS: u16 = 53;
/// Tables that are read of those that others have.
const TABLES_READ: usize = 16;
/// Rules that are read of each.
const RULES_READ: usize = 4096;
/// What is told of one pod.
pub(super) const STRANGERS: usize = 32;
/// What is shown of a name.
const NAME: usize = 64;

#[cfg(test)]
mod tests;
