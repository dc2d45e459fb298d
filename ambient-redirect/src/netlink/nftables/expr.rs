//! The expressions of a rule.

use std::net::{IpAddr, SocketAddr};

use super::super::codec::{self, Writer};

/// One step of a rule. Numbers called `reg` are registers: 1 to 4, 16 bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads something known of the packet.
    Meta { key: MetaKey, reg: u32 },
    /// Sets it.
    MetaSet { key: MetaKey, reg: u32 },
    /// Loads something known of the connection.
    Ct { key: CtKey, reg: u32 },
    /// Sets it.
    CtSet { key: CtKey, reg: u32 },
    /// Loads bytes of the packet.
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
        reg: u32,
    },
    /// Ends the rule unless the register compares so.
    Cmp { op: Cmp, reg: u32, data: Vec<u8> },
    /// `reg = (reg & mask) ^ xor`.
    Bitwise { reg: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// Loads a value.
    Immediate { reg: u32, data: Vec<u8> },
    /// Decides.
    Verdict(Verdict),
    /// Counts packets and bytes.
    Counter,
    /// Changes the destination to this host, and to the port in a register.
    Redirect { port_reg: u32 },
    /// Changes the destination to the address and port in two registers.
    Dnat { ipv6: bool, addr_reg: u32, port_reg: u32 },
    /// Changes the source to the address in a register.
    Snat { ipv6: bool, addr_reg: u32 },
    /// Ends the rule unless the register is in a set of the same table.
    Lookup { set: String, reg: u32 },
    /// Changes the source to the address of the device that the packet leaves by.
    Masquerade,
    /// Ends the packet's way and answers with a TCP reset.
    RejectReset,
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// The mark, 4 bytes in the machine's order.
    Mark,
    /// The device it came by, 16 bytes, zeros at the end.
    InputName,
    /// The device it leaves by, 16 bytes, zeros at the end.
    OutputName,
    /// The user whose socket sent it.
    SocketUid,
    /// IPv4 (2) or IPv6 (10), 1 byte.
    NetworkProtocol,
    /// TCP (6), UDP (17) and so on, 1 byte.
    TransportProtocol,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// The state, 4 bytes, bits in the machine's order.
    State,
    /// What became of it so far, 4 bytes, bits in the machine's order.
    Status,
    /// The mark, 4 bytes in the machine's order.
    Mark,
    /// The zone, 2 bytes in the machine's order.
    Zone,
}

/// Where in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    Network,
    Transport,
}

/// How a register compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cmp {
    Equal,
    NotEqual,
    /// As bytes, the first the weightiest.
    NotLess,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Return,
}

impl Expr {
    /// Expressions for: to this address, by this transport protocol (6 TCP, 17 UDP), to this port.
    pub fn to(transport: u8, ip: IpAddr, port: u16) -> Vec<Self> {
        let (family, offset, bytes) = match ip {
            IpAddr::V4(ip) => (2, 16, ip.octets().to_vec()),
            IpAddr::V6(ip) => (10, 24, ip.octets().to_vec()),
        };
        let equal = |data| Self::Cmp {
            op: Cmp::Equal,
            reg: 1,
            data,
        };
        vec![
            Self::Meta {
                key: MetaKey::NetworkProtocol,
                reg: 1,
            },
            equal(vec![family]),
            Self::Payload {
                base: PayloadBase::Network,
                offset,
                len: bytes.len() as u32,
                reg: 1,
            },
            equal(bytes),
            Self::Meta {
                key: MetaKey::TransportProtocol,
                reg: 1,
            },
            equal(vec![transport]),
            Self::Payload {
                base: PayloadBase::Transport,
                offset: 2,
                len: 2,
                reg: 1,
            },
            equal(port.to_be_bytes().to_vec()),
        ]
    }

    /// Expressions for: TCP to this address and port.
    pub fn tcp_to(ip: IpAddr, port: u16) -> Vec<Self> {
        Self::to(6, ip, port)
    }

    /// Expressions for: UDP to this address and port.
    pub fn udp_to(ip: IpAddr, port: u16) -> Vec<Self> {
        Self::to(17, ip, port)
    }

    /// Expressions for: its destination becomes this.
    pub fn dnat(to: SocketAddr) -> Vec<Self> {
        let address = match to.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        vec![
            Self::Immediate { reg: 1, data: address },
            Self::Immediate {
                reg: 2,
                data: to.port().to_be_bytes().to_vec(),
            },
            Self::Dnat {
                ipv6: to.is_ipv6(),
                addr_reg: 1,
                port_reg: 2,
            },
        ]
    }

    /// Writes the expression as an element of a rule's list.
    pub(crate) fn write(&self, list: &mut Writer) {
        list.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, self.name());
            element.nest(NFTA_EXPR_DATA, |w| self.write_data(w));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::Redirect { .. } => "redir",
            Self::Dnat { .. } | Self::Snat { .. } => "nat",
            Self::Lookup { .. } => "lookup",
            Self::Masquerade => "masq",
            Self::RejectReset => "reject",
        }
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Self::Meta { key, reg } => {
                w.be32(NFTA_META_KEY, key.number());
                w.be32(NFTA_META_DREG, *reg);
            }
            Self::MetaSet { key, reg } => {
                w.be32(NFTA_META_KEY, key.number());
                w.be32(NFTA_META_SREG, *reg);
            }
            Self::Ct { key, reg } => {
                w.be32(NFTA_CT_KEY, key.number());
                w.be32(NFTA_CT_DREG, *reg);
            }
            Self::CtSet { key, reg } => {
                w.be32(NFTA_CT_KEY, key.number());
                w.be32(NFTA_CT_SREG, *reg);
            }
            Self::Payload { base, offset, len, reg } => {
                w.be32(NFTA_PAYLOAD_DREG, *reg);
                w.be32(NFTA_PAYLOAD_BASE, base.number());
                w.be32(NFTA_PAYLOAD_OFFSET, *offset);
                w.be32(NFTA_PAYLOAD_LEN, *len);
            }
            Self::Cmp { op, reg, data } => {
                w.be32(NFTA_CMP_SREG, *reg);
                w.be32(NFTA_CMP_OP, op.number());
                w.nest(NFTA_CMP_DATA, |d| d.attribute(NFTA_DATA_VALUE, data));
            }
            Self::Bitwise { reg, mask, xor } => {
                w.be32(NFTA_BITWISE_SREG, *reg);
                w.be32(NFTA_BITWISE_DREG, *reg);
                w.be32(NFTA_BITWISE_LEN, mask.len() as u32);
                w.nest(NFTA_BITWISE_MASK, |d| d.attribute(NFTA_DATA_VALUE, mask));
                w.nest(NFTA_BITWISE_XOR, |d| d.attribute(NFTA_DATA_VALUE, xor));
            }
            Self::Immediate { reg, data } => {
                w.be32(NFTA_IMMEDIATE_DREG, *reg);
                w.nest(NFTA_IMMEDIATE_DATA, |d| d.attribute(NFTA_DATA_VALUE, data));
            }
            Self::Verdict(verdict) => {
                w.be32(NFTA_IMMEDIATE_DREG, VERDICT_REGISTER);
                w.nest(NFTA_IMMEDIATE_DATA, |d| {
                    d.nest(NFTA_DATA_VERDICT, |v| {
                        v.be32(NFTA_VERDICT_CODE, verdict.code() as u32);
                        if let Verdict::Jump(chain) = verdict {
                            v.text(NFTA_VERDICT_CHAIN, chain);
                        }
                    });
                });
            }
            Self::Counter | Self::Masquerade => (),
            Self::RejectReset => w.be32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST),
            Self::Redirect { port_reg } => {
                w.be32(NFTA_REDIR_REG_PROTO_MIN, *port_reg);
                w.be32(NFTA_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED);
            }
            Self::Snat { ipv6, addr_reg } => {
                w.be32(NFTA_NAT_TYPE, NFT_NAT_SNAT);
                w.be32(NFTA_NAT_FAMILY, if *ipv6 { 10 } else { 2 });
                w.be32(NFTA_NAT_REG_ADDR_MIN, *addr_reg);
            }
            Self::Lookup { set, reg } => {
                w.text(NFTA_LOOKUP_SET, set);
                w.be32(NFTA_LOOKUP_SREG, *reg);
            }
            Self::Dnat { ipv6, addr_reg, port_reg } => {
                w.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT);
                w.be32(NFTA_NAT_FAMILY, if *ipv6 { 10 } else { 2 });
                w.be32(NFTA_NAT_REG_ADDR_MIN, *addr_reg);
                w.be32(NFTA_NAT_REG_PROTO_MIN, *port_reg);
            }
        }
    }
}

/// The name of an expression and its attributes, sorted.
type Comparable = (String, Vec<(u16, Vec<u8>)>);

/// The expressions of a rule as the kernel lists them, one value each, made comparable: what counters have counted and
/// what the kernel adds by itself is left out.
pub(crate) fn comparable(expressions: &[u8]) -> Vec<Comparable> {
    codec::attributes(expressions)
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, element)| {
            let name = codec::find(element, NFTA_EXPR_NAME).map(codec::read_text).unwrap_or_default();
            let data = codec::find(element, NFTA_EXPR_DATA).unwrap_or(&[]);
            let mut attributes: Vec<(u16, Vec<u8>)> = codec::attributes(data)
                .filter(|(kind, value)| !filled_in(&name, *kind, value))
                .map(|(kind, value)| (kind, plain(&name, kind, value)))
                .collect();
            attributes.sort();
            (name, attributes)
        })
        .collect()
}

/// What the kernel adds when it lists: counts, the upper end of a range of one, the default operation.
fn filled_in(name: &str, kind: u16, value: &[u8]) -> bool {
    match name {
        "counter" => true,
        "redir" => kind == NFTA_REDIR_REG_PROTO_MAX,
        "nat" => matches!(kind, NFTA_NAT_REG_ADDR_MAX | NFTA_NAT_REG_PROTO_MAX | NFTA_NAT_FLAGS),
        "lookup" => kind == NFTA_LOOKUP_FLAGS && value == [0; 4],
        "bitwise" => kind == NFTA_BITWISE_OP && value == [0; 4],
        _ => false,
    }
}

/// A value with the flags of nested attributes left out: the kernel sets none where others set them.
fn plain(name: &str, kind: u16, value: &[u8]) -> Vec<u8> {
    let holds_data = match name {
        "immediate" => kind == NFTA_IMMEDIATE_DATA,
        "cmp" => kind == NFTA_CMP_DATA,
        "bitwise" => matches!(kind, NFTA_BITWISE_MASK | NFTA_BITWISE_XOR),
        _ => false,
    };
    if !holds_data {
        return value.to_vec();
    }
    let mut flat = Vec::new();
    for (kind, value) in codec::attributes(value) {
        flat.extend_from_slice(&kind.to_ne_bytes());
        if kind == NFTA_DATA_VERDICT {
            for (kind, value) in codec::attributes(value) {
                flat.extend_from_slice(&kind.to_ne_bytes());
                flat.extend_from_slice(value);
            }
        } else {
            flat.extend_from_slice(value);
        }
    }
    flat
}

impl MetaKey {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::InputName => 6,
            Self::OutputName => 7,
            Self::SocketUid => 10,
            Self::NetworkProtocol => 15,
            Self::TransportProtocol => 16,
        }
    }
}

impl CtKey {
    fn number(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Status => 2,
            Self::Mark => 3,
            Self::Zone => 17,
        }
    }
}

impl PayloadBase {
    fn number(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Transport => 2,
        }
    }
}

impl Cmp {
    fn number(self) -> u32 {
        match self {
            Self::Equal => 0,
            Self::NotEqual => 1,
            Self::NotLess => 5,
        }
    }
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Return => -5,
        }
    }
}

const VERDICT_REGISTER: u32 = 0;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFT_REJECT_TCP_RST: u32 = 1;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
const NFTA_REDIR_REG_PROTO_MAX: u16 = 2;
const NFTA_REDIR_FLAGS: u16 = 3;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFTA_NAT_FLAGS: u16 = 7;
