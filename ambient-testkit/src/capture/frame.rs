//! Frames as they come off a wire: Ethernet, IP, TCP, UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What one frame is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Tcp(Segment<'a>),
    Udp(Datagram<'a>),
    /// Another protocol of IP, or a fragment: its payload as it is.
    Ip(&'a [u8]),
    /// Neither IPv4 nor IPv6, such as ARP.
    NotIp(&'a [u8]),
    /// Too short for what it claims to be.
    Damaged(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) syn: bool,
    pub(super) ack: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) payload: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads an Ethernet frame. Checksums are not looked at: on a veth they are left to a device that is not there.
    pub(super) fn parse(frame: &'a [u8]) -> Self {
        ethernet(frame).unwrap_or(Self::Damaged(frame))
    }
}

fn ethernet(frame: &[u8]) -> Option<Frame<'_>> {
    let (kind, rest) = (be16(frame, 12)?, &frame[14..]);
    match kind {
        0x0800 => ipv4(rest),
        0x86dd => ipv6(rest),
        _ => Some(Frame::NotIp(rest)),
    }
}

fn ipv4(packet: &[u8]) -> Option<Frame<'_>> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(be16(packet, 2)?);
    // A super-packet too long for the field has 0 there (BIG TCP).
    let packet = if total == 0 { packet } else { packet.get(..total)? };
    let body = packet.get(header.max(20)..)?;
    let fragment = be16(packet, 6)?;
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
    let (from, to) = (address(12)?, address(16)?);
    // More fragments follow, or this is not the first.
    if fragment & 0x3fff != 0 {
        return Some(Frame::Ip(body));
    }
    transport(packet[9], from, to, body)
}

fn ipv6(packet: &[u8]) -> Option<Frame<'_>> {
    let length = usize::from(be16(packet, 4)?);
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    let (from, to) = (address(8)?, address(24)?);
    let mut next = *packet.get(6)?;
    // A jumbogram has 0 there.
    let mut body = if length == 0 {
        packet.get(40..)?
    } else {
        packet.get(40..40 + length)?
    };
    loop {
        match next {
            // Hop-by-hop, routing and destination options: the next header, and a length in 8 bytes after the first 8.
            0 | 43 | 60 => {
                next = *body.first()?;
                body = body.get(8 + usize::from(*body.get(1)?) * 8..)?;
            }
            44 => return Some(Frame::Ip(body)),
            _ => return transport(next, from, to, body),
        }
    }
}

fn transport(protocol: u8, from: IpAddr, to: IpAddr, body: &[u8]) -> Option<Frame<'_>> {
    let ends = || Some((SocketAddr::new(from, be16(body, 0)?), SocketAddr::new(to, be16(body, 2)?)));
    match protocol {
        6 => {
            let (from, to) = ends()?;
            let sequence = u32::from_be_bytes(body.get(4..8)?.try_into().ok()?);
            let header = usize::from(body.get(12)? >> 4) * 4;
            let flags = *body.get(13)?;
            let payload = body.get(header.max(20)..)?;
            let (fin, syn, rst, ack) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
            Some(Frame::Tcp(Segment {
                from,
                to,
                sequence,
                syn,
                ack,
                fin,
                rst,
                payload,
            }))
        }
        17 => {
            let (from, to) = ends()?;
            Some(Frame::Udp(Datagram {
                from,
                to,
                payload: body.get(8..)?,
            }))
        }
        _ => Some(Frame::Ip(body)),
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
