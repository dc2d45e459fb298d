//! Routing rules, whoever made them, with what they ask.

use ipnet::IpNet;
use std::net::IpAddr;

use super::{
    AF_INET, AF_INET6, FIB_RULE_INVERT, FR_ACT_TO_TBL, FRA_DPORT_RANGE, FRA_DSCP, FRA_FLOWLABEL, FRA_FWMARK, FRA_FWMASK, FRA_IIFNAME,
    FRA_IP_PROTO, FRA_L3MDEV, FRA_OIFNAME, FRA_PRIORITY, FRA_SPORT_RANGE, FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE,
    FRA_TUN_ID, FRA_UID_RANGE, RTM_NEWRULE, Routing, Rule,
};
use crate::netlink::{
    Error,
    codec::{self, NLM_F_CREATE, NLM_F_EXCL, Writer, fixed},
};

/// A routing rule: what a packet must be, and whereto it leads then. What it does not ask for is 0 or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub ipv6: bool,
    pub priority: u32,
    pub leads_to: LeadsTo,
    /// It takes all but those packets that are what it asks.
    pub inverted: bool,
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    pub mark: u32,
    pub mask: u32,
    /// The type of service.
    pub service: u8,
    /// The device by which it came; `lo` for what is sent here.
    pub input: Option<String>,
    /// The first and the last.
    pub users: Option<(u32, u32)>,
    pub protocol: u8,
    /// The first and the last.
    pub source_ports: Option<(u16, u16)>,
    /// The first and the last.
    pub destination_ports: Option<(u16, u16)>,
    /// Of its table's routes it leaves some out.
    pub suppresses: bool,
    /// It asks for more than can be said here.
    pub asks_more: bool,
}

/// Whereto a routing rule leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeadsTo {
    /// To a routing table.
    Table(u32),
    /// Another of the kernel's actions, by number: to another rule, on to the next, or nowhere.
    Other(u8),
}

impl Default for LeadsTo {
    fn default() -> Self {
        Self::Table(0)
    }
}

impl Policy {
    /// As one that looks at a mark, or at nothing, if it is such a one.
    pub fn plain(&self) -> Option<Rule> {
        let LeadsTo::Table(table) = self.leads_to else { return None };
        let rule = Rule {
            ipv6: self.ipv6,
            priority: self.priority,
            mark: self.mark,
            mask: self.mask,
            table,
        };
        (Self::from(rule) == *self).then_some(rule)
    }

    /// Its table.
    pub fn table(&self) -> Option<u32> {
        match self.leads_to {
            LeadsTo::Table(table) => Some(table),
            LeadsTo::Other(_) => None,
        }
    }
}

impl From<Rule> for Policy {
    fn from(rule: Rule) -> Self {
        Self {
            ipv6: rule.ipv6,
            priority: rule.priority,
            leads_to: LeadsTo::Table(rule.table),
            mark: rule.mark,
            mask: rule.mask,
            ..Self::default()
        }
    }
}

impl Routing {
    /// Makes a rule of any kind.
    ///
    /// # Errors
    /// [`Error::exists`] holds where the same rule is there already.
    pub fn add_policy(&mut self, policy: &Policy) -> Result<(), Error> {
        self.0.request(
            &format!("making the routing rule {}", policy.priority),
            message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, policy),
        )
    }

    /// Deletes a rule of any kind.
    pub fn delete_policy(&mut self, policy: &Policy) -> Result<(), Error> {
        self.0.request(
            &format!("deleting the routing rule {}", policy.priority),
            message(super::RTM_DELRULE, 0, policy),
        )
    }
}

pub(in crate::netlink) fn message(kind: u16, flags: u16, policy: &Policy) -> Writer {
    let length = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
    let mut header = [0; 12];
    header[0] = if policy.ipv6 { AF_INET6 } else { AF_INET };
    header[1] = length(policy.to);
    header[2] = length(policy.from);
    header[3] = policy.service;
    (header[4], header[7]) = match policy.leads_to {
        // A larger number stands in the attribute only.
        LeadsTo::Table(table) => (u8::try_from(table).unwrap_or(0), FR_ACT_TO_TBL),
        LeadsTo::Other(action) => (0, action),
    };
    header[8..].copy_from_slice(&(if policy.inverted { FIB_RULE_INVERT } else { 0 }).to_ne_bytes());
    let mut message = Writer::default();
    message.begin(kind, flags, &header);
    message.ne32(FRA_PRIORITY, policy.priority);
    message.ne32(FRA_FWMARK, policy.mark);
    message.ne32(FRA_FWMASK, policy.mask);
    if let LeadsTo::Table(table) = policy.leads_to {
        message.ne32(FRA_TABLE, table);
    }
    for (kind, net) in [(FRA_DST, policy.to), (FRA_SRC, policy.from)] {
        if let Some(net) = net {
            message.ip(kind, net.network());
        }
    }
    if let Some(device) = &policy.input {
        message.text(FRA_IIFNAME, device);
    }
    if let Some((first, last)) = policy.users {
        message.attribute(FRA_UID_RANGE, &[first.to_ne_bytes(), last.to_ne_bytes()].concat());
    }
    if policy.protocol != 0 {
        message.attribute(FRA_IP_PROTO, &[policy.protocol]);
    }
    for (kind, ports) in [(FRA_SPORT_RANGE, policy.source_ports), (FRA_DPORT_RANGE, policy.destination_ports)] {
        if let Some((first, last)) = ports {
            message.attribute(kind, &[first.to_ne_bytes(), last.to_ne_bytes()].concat());
        }
    }
    if policy.suppresses {
        // As `suppress_prefixlength 0`: all but the default route.
        message.ne32(FRA_SUPPRESS_PREFIXLEN, 0);
    }
    message
}

pub(in crate::netlink) fn read(what: &str, payload: &[u8]) -> Result<Policy, Error> {
    let (header, rest) = fixed(what, payload, 12)?;
    let number = |kind| codec::find(rest, kind).and_then(|b| codec::read_u32(b, 0));
    let byte = |kind| codec::find(rest, kind).and_then(|b| b.first().copied());
    let net = |kind, length: u8| {
        let unspecified = if header[0] == AF_INET6 {
            IpAddr::from([0; 16])
        } else {
            IpAddr::from([0; 4])
        };
        let ip = codec::find(rest, kind).and_then(codec::read_ip).unwrap_or(unspecified);
        (length > 0).then(|| IpNet::new(ip, length)).transpose()
    };
    let (to, from) = (net(FRA_DST, header[1]), net(FRA_SRC, header[2]));
    let mark = number(FRA_FWMARK);
    let users = codec::find(rest, FRA_UID_RANGE).and_then(|b| Some((codec::read_u32(b, 0)?, codec::read_u32(b, 4)?)));
    let ports = |kind| codec::find(rest, kind).and_then(|b| Some((codec::read_u16(b, 0)?, codec::read_u16(b, 2)?)));
    let dscp = byte(FRA_DSCP).filter(|dscp| *dscp < 64);
    let asks_more = |(kind, value): (u16, &[u8])| match kind {
        FRA_OIFNAME | FRA_FLOWLABEL | FRA_FLOWLABEL_MASK => true,
        FRA_L3MDEV | FRA_TUN_ID => value.iter().any(|b| *b != 0),
        // All of the port, or of the type of service, and so no more than is asked without it.
        FRA_SPORT_MASK | FRA_DPORT_MASK => value != [0xff; 2],
        FRA_DSCP_MASK => value != [0x3f],
        _ => false,
    };
    // All ones, or not there: routes of any length and any group will do.
    let suppresses =
        |(kind, value): (u16, &[u8])| matches!(kind, FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN) && value.iter().any(|b| *b != 0xff);
    Ok(Policy {
        ipv6: header[0] == AF_INET6,
        priority: number(FRA_PRIORITY).unwrap_or(0),
        leads_to: match header[7] {
            FR_ACT_TO_TBL => LeadsTo::Table(number(FRA_TABLE).unwrap_or_else(|| u32::from(header[4]))),
            other => LeadsTo::Other(other),
        },
        inverted: codec::read_u32(header, 8).unwrap_or(0) & FIB_RULE_INVERT != 0,
        asks_more: from.is_err() || to.is_err() || codec::attributes(rest).any(asks_more),
        from: from.ok().flatten(),
        to: to.ok().flatten(),
        mark: mark.unwrap_or(0),
        mask: number(FRA_FWMASK).unwrap_or_else(|| if mark.is_some() { u32::MAX } else { 0 }),
        service: dscp.map_or(header[3], |dscp| dscp << 2),
        input: codec::find(rest, FRA_IIFNAME).map(codec::read_text),
        users,
        protocol: byte(FRA_IP_PROTO).unwrap_or(0),
        source_ports: ports(FRA_SPORT_RANGE),
        destination_ports: ports(FRA_DPORT_RANGE),
        suppresses: codec::attributes(rest).any(suppresses),
    })
}

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_FLOWLABEL_MASK: u16 = 27;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
const FRA_DSCP_MASK: u16 = 30;
