//! The PROXY protocol header, version 2: what an application is told of a connection before its bytes.
//!
//! Only written, never read: nobody is believed who says by it who he is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::Identity;

/// What every header begins with ([PROXY protocol 2.2]).
///
/// [PROXY protocol 2.2]: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and a connection that is made for somebody else.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The type of value in which Istio's ambient proxies tell the verified SPIFFE ID of the source.
const SPIFFE_ID: u8 = 0xd0;

/// The header of a connection over TCP from a source to a destination; with the SPIFFE ID that the source has proven, where it
/// has.
///
/// Where the two are of different families the IPv4 one is written in its IPv6 form, as the format has one family for both.
pub fn write(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let mut body = Vec::with_capacity(128);
    let family = if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        body.extend_from_slice(&from.octets());
        body.extend_from_slice(&to.octets());
        TCP_OVER_IPV4
    } else {
        body.extend_from_slice(&as_v6(from).octets());
        body.extend_from_slice(&as_v6(to).octets());
        TCP_OVER_IPV6
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    // A SPIFFE ID has 2048 bytes at most, which is far from what the length can say.
    let id = identity.map(Identity::as_str).unwrap_or_default();
    if let (false, Ok(length)) = (id.is_empty(), u16::try_from(id.len())) {
        body.push(SPIFFE_ID);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(id.as_bytes());
    }
    let mut header = Vec::with_capacity(16 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&u16::try_from(body.len()).unwrap_or_default().to_be_bytes());
    header.extend_from_slice(&body);
    header
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn of_ipv4_without_an_identity() {
        let header = write(at("10.0.0.1:1000"), at("[::ffff:10.0.0.2]:80"), None);
        let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x03\xe8\0\x50";
        assert_eq!(header, expected);
    }

    #[test]
    fn of_ipv6_with_an_identity() {
        let identity = Identity::new(&crate::TrustDomain::default(), "a", "b").unwrap();
        let header = write(at("[fd00::1]:1"), at("[fd00::2]:2"), Some(&identity));
        let id = b"spiffe://cluster.local/ns/a/sa/b";
        let length = id.len() as u8;
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36 + 3 + length]);
        assert_eq!(header[16..18], [0xfd, 0]);
        assert_eq!(header[16 + 32..16 + 36], [0, 1, 0, 2]);
        assert_eq!(header[16 + 36..16 + 39], [0xd0, 0, length]);
        assert_eq!(header[16 + 39..], id[..]);
    }

    #[test]
    fn of_two_families() {
        let header = write(at("10.0.0.1:1"), at("[fd00::2]:2"), None);
        assert_eq!(header[13], 0x21);
        assert_eq!(header[26..32], [0xff, 0xff, 10, 0, 0, 1]);
    }
}
