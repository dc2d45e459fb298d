//! Messages and attributes: nothing here knows what they mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;

/// One message after another, each a header, a fixed part and attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    message: usize,
    messages: u32,
}

impl Writer {
    /// Begins a message; its sequence number is given by the socket when it is sent.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, fixed: &[u8]) {
        self.message = self.bytes.len();
        self.messages += 1;
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(fixed);
        self.close_message();
    }

    /// Adds an attribute to the message begun last.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.push_attribute(kind, value);
        self.close_message();
    }

    /// Adds an attribute that holds others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest_after(kind, &[], fill);
    }

    /// Adds an attribute that holds a fixed part and then others.
    pub(crate) fn nest_after(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.push_attribute(kind | NLA_F_NESTED, fixed);
        fill(self);
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute's length has 16 bits");
        self.put(start, &(length as u16).to_ne_bytes());
        self.close_message();
    }

    /// A string attribute with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// A number in network order, as nf_tables has them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A number in the machine's order, as rtnetlink has them.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(crate) fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    /// Asks for an answer to the message begun last.
    pub(crate) fn ask_ack(&mut self) {
        let at = self.message + 6;
        if let Some(&[low, high]) = self.bytes.get(at..at + 2) {
            let flags = u16::from_ne_bytes([low, high]) | NLM_F_ACK;
            self.put(at, &flags.to_ne_bytes());
        }
    }

    /// Puts other messages after these.
    pub(crate) fn append(&mut self, other: Self) {
        self.message = self.bytes.len() + other.message;
        self.messages += other.messages;
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Numbers the messages from `first` on and gives the bytes and the number of the last.
    pub(crate) fn finish(mut self, first: u32) -> (Vec<u8>, u32) {
        let (mut at, mut sequence) = (0, first);
        let mut last = first;
        while let Some(length) = read_u32(&self.bytes, at).filter(|l| *l as usize >= HEADER) {
            self.put(at + 8, &sequence.to_ne_bytes());
            last = sequence;
            sequence = sequence.wrapping_add(1);
            at += align(length as usize);
        }
        (self.bytes, last)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn messages(&self) -> u32 {
        self.messages
    }

    fn push_attribute(&mut self, kind: u16, value: &[u8]) {
        let length = value.len() + 4;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute's length has 16 bits");
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// Attributes alone, with no message around them, have no header to keep right.
    fn close_message(&mut self) {
        if self.messages == 0 {
            return;
        }
        let length = (self.bytes.len() - self.message) as u32;
        self.put(self.message, &length.to_ne_bytes());
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// A message that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram; ends at the first one that is cut short.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = read_u32(rest, 0)? as usize;
        let payload = rest.get(HEADER..length)?;
        let message = Message {
            kind: read_u16(rest, 4)?,
            flags: read_u16(rest, 6)?,
            sequence: read_u32(rest, 8)?,
            payload,
        };
        rest = rest.get(align(length)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in some bytes, without the flags in their kinds; ends at the first one that is cut short.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        let kind = read_u16(rest, 2)? & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER);
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn read_be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

pub(crate) fn read_be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

pub(crate) fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(crate) fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(v4)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::V6(Ipv6Addr::from(v6)))
}

pub(crate) fn fixed<'a>(what: &str, payload: &'a [u8], length: usize) -> Result<(&'a [u8], &'a [u8]), Error> {
    payload.split_at_checked(length).ok_or_else(|| Error::malformed(what))
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(crate) const HEADER: usize = 16;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_MULTI: u16 = 0x2;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;

#[cfg(test)]
mod tests;
