//! A rule of a plan as expressions of nf_tables, in the order in which `nft` would write them.

use std::net::IpAddr;

use crate::{
    netlink::{BaseChain, Cmp, CtKey, Expr, Hook, MetaKey, PayloadBase, Verdict},
    plan::{self, Action, IpFamily, MARK_MASK, Match, Protocol, Rule},
};

pub(in crate::linux) fn compile(rule: &Rule) -> Vec<Expr> {
    let mut expressions = Vec::new();
    for test in &rule.matches {
        push_match(&mut expressions, test);
    }
    expressions.push(Expr::Counter);
    push_action(&mut expressions, rule.action);
    expressions
}

pub(in crate::linux) fn base_chain(chain: &plan::Chain) -> BaseChain {
    let kind = match chain.kind {
        plan::ChainKind::Filter => crate::netlink::ChainKind::Filter,
        plan::ChainKind::Nat => crate::netlink::ChainKind::Nat,
        plan::ChainKind::Route => crate::netlink::ChainKind::Route,
    };
    let hook = match chain.hook {
        plan::Hook::Prerouting => Hook::Prerouting,
        plan::Hook::Input => Hook::Input,
        plan::Hook::Forward => Hook::Forward,
        plan::Hook::Output => Hook::Output,
        plan::Hook::Postrouting => Hook::Postrouting,
    };
    BaseChain {
        kind,
        hook,
        priority: chain.priority,
    }
}

fn push_match(list: &mut Vec<Expr>, test: &Match) {
    match *test {
        Match::Family(family) => push_family(list, family),
        Match::Protocol(protocol) => {
            list.push(Expr::Meta {
                key: MetaKey::TransportProtocol,
                reg: 1,
            });
            list.push(compare(Cmp::Equal, vec![if protocol == Protocol::Tcp { 6 } else { 17 }]));
        }
        Match::Source(ip) => push_address(list, ip, Side::Source, Cmp::Equal),
        Match::Destination(ip) => push_address(list, ip, Side::Destination, Cmp::Equal),
        Match::NotDestination(ip) => push_address(list, ip, Side::Destination, Cmp::NotEqual),
        Match::DestinationIn(set, family) => {
            push_payload(list, family, Side::Destination);
            list.push(Expr::Lookup { set: set.into(), reg: 1 });
        }
        Match::OfOwnSocket => {
            // A packet without a socket ends the rule when its owner is asked for; any owner will do.
            list.push(Expr::Meta {
                key: MetaKey::SocketUid,
                reg: 1,
            });
            list.push(compare(Cmp::NotLess, vec![0; 4]));
        }
        Match::SourcePort(port) => push_port(list, port, Side::Source, Cmp::Equal),
        Match::DestinationPort(port) => push_port(list, port, Side::Destination, Cmp::Equal),
        Match::NotDestinationPort(port) => push_port(list, port, Side::Destination, Cmp::NotEqual),
        Match::Mark(mark) => push_mark(
            list,
            Expr::Meta {
                key: MetaKey::Mark,
                reg: 1,
            },
            mark,
            Cmp::Equal,
        ),
        Match::NotMark(mark) => push_mark(
            list,
            Expr::Meta {
                key: MetaKey::Mark,
                reg: 1,
            },
            mark,
            Cmp::NotEqual,
        ),
        Match::ConnectionMark(mark) => push_mark(list, Expr::Ct { key: CtKey::Mark, reg: 1 }, mark, Cmp::Equal),
        Match::Redirected => {
            list.push(Expr::Ct {
                key: CtKey::Status,
                reg: 1,
            });
            list.push(Expr::Bitwise {
                reg: 1,
                mask: IPS_DST_NAT.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            });
            list.push(compare(Cmp::Equal, IPS_DST_NAT.to_ne_bytes().to_vec()));
        }
        Match::Unassured => {
            list.push(Expr::Ct {
                key: CtKey::Status,
                reg: 1,
            });
            list.push(Expr::Bitwise {
                reg: 1,
                mask: IPS_ASSURED.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            });
            list.push(compare(Cmp::Equal, vec![0; 4]));
        }
        Match::Opens => push_flags(list, FIN | SYN | RST | ACK, SYN),
        Match::NotReset => push_flags(list, RST, 0),
        Match::From(name) => {
            list.push(Expr::Meta {
                key: MetaKey::InputName,
                reg: 1,
            });
            list.push(compare(Cmp::Equal, name.padded().to_vec()));
        }
        Match::ToLoopback => push_loopback(list, MetaKey::OutputName, Cmp::Equal),
        Match::NotToLoopback => push_loopback(list, MetaKey::OutputName, Cmp::NotEqual),
        Match::NotFromLoopback => push_loopback(list, MetaKey::InputName, Cmp::NotEqual),
    }
}

fn push_action(list: &mut Vec<Expr>, action: Action) {
    match action {
        Action::Accept => list.push(Expr::Verdict(Verdict::Accept)),
        Action::Redirect(port) => {
            list.push(Expr::Immediate {
                reg: 1,
                data: port.to_be_bytes().to_vec(),
            });
            list.push(Expr::Redirect { port_reg: 1 });
        }
        Action::MarkConnection(mark) => {
            list.push(Expr::Ct { key: CtKey::Mark, reg: 1 });
            list.push(Expr::Bitwise {
                reg: 1,
                mask: (!MARK_MASK).to_ne_bytes().to_vec(),
                xor: mark.to_ne_bytes().to_vec(),
            });
            list.push(Expr::CtSet { key: CtKey::Mark, reg: 1 });
        }
        Action::RestoreMark => {
            list.push(Expr::Ct { key: CtKey::Mark, reg: 1 });
            list.push(Expr::MetaSet {
                key: MetaKey::Mark,
                reg: 1,
            });
        }
        Action::Zone(zone) => {
            list.push(Expr::Immediate {
                reg: 1,
                data: zone.to_ne_bytes().to_vec(),
            });
            list.push(Expr::CtSet { key: CtKey::Zone, reg: 1 });
        }
        Action::Reset => list.push(Expr::RejectReset),
        Action::Drop => list.push(Expr::Verdict(Verdict::Drop)),
        Action::SourceNat(ip) => {
            let data = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            list.push(Expr::Immediate { reg: 1, data });
            list.push(Expr::Snat {
                ipv6: ip.is_ipv6(),
                addr_reg: 1,
            });
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn push_family(list: &mut Vec<Expr>, family: IpFamily) {
    list.push(Expr::Meta {
        key: MetaKey::NetworkProtocol,
        reg: 1,
    });
    list.push(compare(Cmp::Equal, vec![if family == IpFamily::V4 { 2 } else { 10 }]));
}

fn push_address(list: &mut Vec<Expr>, ip: IpAddr, side: Side, op: Cmp) {
    let (family, bytes) = match ip {
        IpAddr::V4(ip) => (IpFamily::V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (IpFamily::V6, ip.octets().to_vec()),
    };
    push_payload(list, family, side);
    list.push(compare(op, bytes));
}

/// Loads an address of the packet.
fn push_payload(list: &mut Vec<Expr>, family: IpFamily, side: Side) {
    let (offset, len) = match (family, side) {
        (IpFamily::V4, Side::Source) => (12, 4),
        (IpFamily::V4, Side::Destination) => (16, 4),
        (IpFamily::V6, Side::Source) => (8, 16),
        (IpFamily::V6, Side::Destination) => (24, 16),
    };
    // In a table for both families the header's layout is known only after this.
    push_family(list, family);
    list.push(Expr::Payload {
        base: PayloadBase::Network,
        offset,
        len,
        reg: 1,
    });
}

fn push_port(list: &mut Vec<Expr>, port: u16, side: Side, op: Cmp) {
    let offset = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    list.push(Expr::Payload {
        base: PayloadBase::Transport,
        offset,
        len: 2,
        reg: 1,
    });
    list.push(compare(op, port.to_be_bytes().to_vec()));
}

fn push_flags(list: &mut Vec<Expr>, mask: u8, flags: u8) {
    list.push(Expr::Payload {
        base: PayloadBase::Transport,
        offset: TCP_FLAGS,
        len: 1,
        reg: 1,
    });
    list.push(Expr::Bitwise {
        reg: 1,
        mask: vec![mask],
        xor: vec![0],
    });
    list.push(compare(Cmp::Equal, vec![flags]));
}

fn push_mark(list: &mut Vec<Expr>, load: Expr, mark: u32, op: Cmp) {
    list.push(load);
    list.push(Expr::Bitwise {
        reg: 1,
        mask: MARK_MASK.to_ne_bytes().to_vec(),
        xor: vec![0; 4],
    });
    list.push(compare(op, mark.to_ne_bytes().to_vec()));
}

fn push_loopback(list: &mut Vec<Expr>, key: MetaKey, op: Cmp) {
    let mut name = vec![0; 16];
    name[..2].copy_from_slice(b"lo");
    list.push(Expr::Meta { key, reg: 1 });
    list.push(compare(op, name));
}

fn compare(op: Cmp, data: Vec<u8>) -> Expr {
    Expr::Cmp { op, reg: 1, data }
}

/// Of a connection's status in conntrack: its destination was changed.
const IPS_DST_NAT: u32 = 1 << 5;
/// Of the same: its handshake has ended.
const IPS_ASSURED: u32 = 1 << 2;

/// Where in its header TCP's flags are, and those that say what a segment is for.
const TCP_FLAGS: u32 = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
