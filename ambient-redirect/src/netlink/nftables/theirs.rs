//! What a rule of somebody else's does with packets, as far as its expressions tell: written by `nft`, or by an `iptables` that
//! speaks to nf_tables.

use std::collections::HashMap;

use super::super::codec;

/// A rule, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// It takes this IP protocol alone.
    pub protocol: Option<u8>,
    /// It takes what goes to this port alone.
    pub port: Option<u16>,
    /// It takes nothing but what goes to a loopback address, or by the loopback device.
    pub within: bool,
    /// It takes nothing but what goes to an address of the namespace itself.
    pub to_own: bool,
    /// What it does, of what sends packets elsewhere.
    pub does: Option<Does>,
    /// The chains where it is gone on.
    pub leads_to: Vec<String>,
    /// It is gone on in chains that a map names.
    pub leads_anywhere: bool,
}

/// What a rule does with a packet or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Does {
    /// Its destination becomes this host; the port where it is told.
    Redirects(Option<u16>),
    /// Its destination becomes another; the port where it is told.
    Translates(Option<u16>),
    /// A socket gets it that waits for something else.
    Diverts,
    /// Its connection is not tracked, so that it cannot be redirected.
    Untracks,
    /// It gets this mark.
    Marks(u32),
}

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Protocol,
    /// The name of the device that it comes or leaves by, or its number.
    Device,
    DeviceIndex,
    /// Of the destination's address, from its first byte on.
    Destination,
    Port,
    KindOfDestination,
    Value(Vec<u8>),
}

/// Reads the expressions of a rule as the kernel lists them.
pub(crate) fn read(expressions: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let mut registers: HashMap<u32, Held> = HashMap::new();
    for (_, element) in codec::attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEM) {
        let name = codec::find(element, EXPR_NAME).map(codec::read_text).unwrap_or_default();
        let data = codec::find(element, EXPR_DATA).unwrap_or(&[]);
        match name.as_str() {
            "meta" | "payload" | "fib" | "bitwise" | "immediate" => load(&name, data, &mut registers, &mut reading),
            "cmp" => compare(data, &registers, &mut reading),
            "lookup" => reading.leads_anywhere |= number(data, LOOKUP_DREG) == Some(VERDICT),
            "redir" => reading.does = Some(Does::Redirects(port_in(data, REDIR_PORT, &registers))),
            "nat" if number(data, NAT_TYPE) == Some(NAT_DESTINATION) => {
                reading.does = Some(Does::Translates(port_in(data, NAT_PORT, &registers)));
            }
            "tproxy" => reading.does = Some(Does::Diverts),
            "notrack" => reading.does = Some(Does::Untracks),
            "match" => tables_match(data, &mut reading),
            "target" => reading.does = tables_target(data).or(reading.does),
            _ => (),
        }
    }
    reading
}

/// What puts something into a register, or sets it.
fn load(name: &str, data: &[u8], registers: &mut HashMap<u32, Held>, reading: &mut Reading) {
    let (register, held) = match name {
        "meta" => {
            let key = number(data, META_KEY);
            if let Some(from) = number(data, META_SREG) {
                if key == Some(META_MARK)
                    && let Some(Held::Value(mark)) = registers.get(&from)
                    && let Some(mark) = codec::read_u32(mark, 0)
                {
                    reading.does = Some(Does::Marks(mark));
                }
                return;
            }
            let held = match key {
                Some(META_L4PROTO) => Some(Held::Protocol),
                Some(META_IIFNAME | META_OIFNAME) => Some(Held::Device),
                Some(META_IIF | META_OIF) => Some(Held::DeviceIndex),
                _ => None,
            };
            (number(data, META_DREG), held)
        }
        "payload" => {
            let (offset, length) = (number(data, PAYLOAD_OFFSET), number(data, PAYLOAD_LEN));
            let held = match (number(data, PAYLOAD_BASE), offset, length) {
                (Some(NETWORK), Some(16), Some(1..=4)) | (Some(NETWORK), Some(24), Some(16)) => Some(Held::Destination),
                (Some(NETWORK), Some(9), Some(1)) | (Some(NETWORK), Some(6), Some(1)) => Some(Held::Protocol),
                (Some(TRANSPORT), Some(2), Some(2)) => Some(Held::Port),
                _ => None,
            };
            (number(data, PAYLOAD_DREG), held)
        }
        "fib" => {
            let of_destination = number(data, FIB_FLAGS).is_some_and(|flags| flags & FIB_DESTINATION != 0);
            let kind = number(data, FIB_RESULT) == Some(FIB_ADDRESS_TYPE) && of_destination;
            (number(data, FIB_DREG), kind.then_some(Held::KindOfDestination))
        }
        "bitwise" => {
            let mask = codec::find(data, BITWISE_MASK).and_then(|mask| codec::find(mask, DATA_VALUE));
            let held = number(data, BITWISE_SREG).and_then(|from| registers.get(&from).cloned());
            let whole = |held: &Held| match (held, mask) {
                // A network of loopback addresses is one whatever its length.
                (Held::Destination, Some(mask)) => mask.first() == Some(&0xff),
                (_, Some(mask)) => mask.iter().all(|byte| *byte == 0xff),
                (_, None) => false,
            };
            (number(data, BITWISE_DREG), held.filter(whole))
        }
        _ => {
            let value = codec::find(data, IMMEDIATE_DATA);
            let verdict = value.and_then(|value| codec::find(value, DATA_VERDICT));
            let code = verdict.and_then(|verdict| number(verdict, VERDICT_CODE));
            if let (Some(JUMP | GOTO), Some(chain)) = (code, verdict.and_then(|verdict| codec::find(verdict, VERDICT_CHAIN))) {
                reading.leads_to.push(codec::read_text(chain));
            }
            let value = value.and_then(|value| codec::find(value, DATA_VALUE));
            (number(data, IMMEDIATE_DREG), value.map(|value| Held::Value(value.to_vec())))
        }
    };
    let Some(register) = register else { return };
    match held {
        Some(held) => drop(registers.insert(register, held)),
        None => drop(registers.remove(&register)),
    }
}

fn compare(data: &[u8], registers: &HashMap<u32, Held>, reading: &mut Reading) {
    let value = codec::find(data, CMP_DATA).and_then(|data| codec::find(data, DATA_VALUE));
    let held = number(data, CMP_SREG).and_then(|from| registers.get(&from));
    let (Some(EQUAL), Some(value), Some(held)) = (number(data, CMP_OP), value, held) else {
        return;
    };
    match held {
        Held::Protocol => reading.protocol = value.first().copied(),
        Held::Port => reading.port = value.get(..2).map(|port| u16::from_be_bytes([port[0], port[1]])),
        Held::Device => reading.within |= value.starts_with(b"lo\0"),
        // The loopback device is the first of every namespace.
        Held::DeviceIndex => reading.within |= codec::read_u32(value, 0) == Some(1),
        Held::Destination => {
            let v6 = value.len() == 16 && value[..15].iter().all(|byte| *byte == 0) && value[15] == 1;
            reading.within |= v6 || value.len() <= 4 && value.first() == Some(&127);
        }
        Held::KindOfDestination => reading.to_own |= codec::read_u32(value, 0) == Some(LOCAL),
        Held::Value(_) => (),
    }
}

/// A test of `iptables`' own, in the layout of its kernel module.
fn tables_match(data: &[u8], reading: &mut Reading) {
    let name = codec::find(data, TABLES_NAME).map(codec::read_text).unwrap_or_default();
    let info = codec::find(data, TABLES_INFO).unwrap_or(&[]);
    let half = |at| codec::read_u16(info, at);
    match name.as_str() {
        "tcp" | "udp" => {
            reading.protocol = Some(if name == "tcp" { 6 } else { 17 });
            // The ports from and to which it goes, two and two, then what of it is negated.
            let inverted = info.get(if name == "tcp" { 11 } else { 8 }).is_none_or(|flags| flags & 2 != 0);
            reading.port = half(4).filter(|port| half(6) == Some(*port) && !inverted).or(reading.port);
        }
        "addrtype" => {
            // Kinds of source and destination, then what of it is negated, or besides.
            let inverted = codec::read_u32(info, 4).is_none_or(|flags| flags & 2 != 0);
            reading.to_own |= half(2) == Some(1 << LOCAL) && !inverted;
        }
        _ => (),
    }
}

fn tables_target(data: &[u8]) -> Option<Does> {
    let info = codec::find(data, TABLES_INFO).unwrap_or(&[]);
    match codec::find(data, TABLES_NAME).map(codec::read_text)?.as_str() {
        "REDIRECT" => Some(Does::Redirects(None)),
        "DNAT" | "NETMAP" => Some(Does::Translates(None)),
        "TPROXY" => Some(Does::Diverts),
        "NOTRACK" => Some(Does::Untracks),
        "CT" => codec::read_u16(info, 0).filter(|flags| flags & 1 != 0).map(|_| Does::Untracks),
        "MARK" => codec::read_u32(info, 0).map(Does::Marks),
        _ => None,
    }
}

fn port_in(data: &[u8], kind: u16, registers: &HashMap<u32, Held>) -> Option<u16> {
    match registers.get(&number(data, kind)?)? {
        Held::Value(value) => value.get(..2).map(|port| u16::from_be_bytes([port[0], port[1]])),
        _ => None,
    }
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    codec::find(data, kind).and_then(codec::read_be32)
}

const VERDICT: u32 = 0;
const JUMP: u32 = -3_i32 as u32;
const GOTO: u32 = -4_i32 as u32;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const EQUAL: u32 = 0;
const NAT_DESTINATION: u32 = 1;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const META_SREG: u16 = 3;
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const FIB_DREG: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_MASK: u16 = 4;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const LOOKUP_DREG: u16 = 3;
const REDIR_PORT: u16 = 1;
const NAT_TYPE: u16 = 1;
const NAT_PORT: u16 = 5;
const TABLES_NAME: u16 = 1;
const TABLES_INFO: u16 = 3;
