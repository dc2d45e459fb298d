//! Where things are: addresses in a named network, and the target that a CONNECT names.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// The name of a network in which addresses are unique; empty for the mesh's one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network(pub(crate) Arc<str>);

impl Network {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Network {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address and the network in which it means something.
///
/// It is made by [`NetworkAddress::new`] or [`local`](NetworkAddress::local) alone, as what is looked up by it is found by
/// its canonical address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NetworkAddress {
    /// The network.
    pub network: Network,
    /// The address, never an IPv4 one in IPv6 clothes.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// An address in a network; an IPv4-mapped IPv6 address becomes the IPv4 address that it is.
    pub fn new(network: Network, ip: IpAddr) -> Self {
        Self {
            network,
            ip: ip.to_canonical(),
        }
    }

    /// An address in the unnamed network.
    pub fn local(ip: IpAddr) -> Self {
        Self::new(Network::default(), ip)
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl FromStr for NetworkAddress {
    type Err = NetworkAddressError;

    /// Reads `NETWORK/ADDRESS`, the network empty for the unnamed one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.rsplit_once('/').and_then(|(network, ip)| Some((network, ip.parse().ok()?)));
        let (network, ip) = parts.ok_or_else(|| NetworkAddressError::new(text, "NETWORK/ADDRESS"))?;
        Ok(Self::new(network.into(), ip))
    }
}

/// A text that is no [`NetworkAddress`] or [`NetworkBlock`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct NetworkAddressError {
    text: String,
    wanted: &'static str,
}

impl NetworkAddressError {
    fn new(text: &str, wanted: &'static str) -> Self {
        Self {
            text: text.chars().take(300).collect(),
            wanted,
        }
    }
}

/// A block of addresses in a network, such as a service has as its virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkBlock {
    network: Network,
    first: IpAddr,
    length: u8,
}

impl NetworkBlock {
    /// The block that an address is in, by the length of its prefix; `None` for a length that the family has not. Bits beyond
    /// the prefix do not count.
    ///
    /// One of IPv4-mapped IPv6 addresses alone (`::ffff:10.0.0.0/104`) is the block of IPv4 addresses that they are.
    pub fn new(network: Network, ip: IpAddr, length: u8) -> Option<Self> {
        let (ip, length) = match ip.to_canonical() {
            v4 @ IpAddr::V4(_) if ip.is_ipv6() && length >= MAPPED => (v4, length - MAPPED),
            _ => (ip, length),
        };
        let first = first(ip, length)?;
        Some(Self { network, first, length })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Its first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The length of its prefix, in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: &NetworkAddress) -> bool {
        let same = address.network == self.network && address.ip.is_ipv4() == self.first.is_ipv4();
        same && first(address.ip, self.length) == Some(self.first)
    }
}

impl fmt::Display for NetworkBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.first, self.length)
    }
}

impl FromStr for NetworkBlock {
    type Err = NetworkAddressError;

    /// Reads `NETWORK/ADDRESS/LENGTH`, the network empty for the unnamed one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let block = || {
            let (address, length) = text.rsplit_once('/')?;
            let (network, ip) = address.rsplit_once('/')?;
            // Digits alone: `parse` would take a sign.
            let digits = length.bytes().all(|b| b.is_ascii_digit());
            Self::new(network.into(), ip.parse().ok()?, length.parse().ok().filter(|_| digits)?)
        };
        block().ok_or_else(|| NetworkAddressError::new(text, "NETWORK/ADDRESS/LENGTH"))
    }
}

/// The length of `::ffff:0:0/96`, in which all IPv4-mapped addresses are.
const MAPPED: u8 = 96;

fn first(ip: IpAddr, length: u8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) => {
            let beyond = 32_u8.checked_sub(length)?;
            let mask = u32::MAX.checked_shl(u32::from(beyond)).unwrap_or(0);
            Some(Ipv4Addr::from_bits(v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let beyond = 128_u8.checked_sub(length)?;
            let mask = u128::MAX.checked_shl(u32::from(beyond)).unwrap_or(0);
            Some(Ipv6Addr::from_bits(v6.to_bits() & mask).into())
        }
    }
}

/// The target of a CONNECT: `ip:port`, `[ip]:port` or `hostname:port` ([RFC 9113 8.5]).
///
/// [RFC 9113 8.5]: https://www.rfc-editor.org/rfc/rfc9113#section-8.5
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address and a port.
    Address(SocketAddr),
    /// A name and a port: made by [`Authority::host`], or read.
    #[non_exhaustive]
    Host {
        /// The DNS name in lower case, without a dot at its end.
        name: Arc<str>,
        /// The port.
        port: u16,
    },
}

impl Authority {
    /// A DNS name and a port; case and a dot at the end do not matter.
    ///
    /// # Errors
    /// When it is no DNS name: also where it is an address, which [`Authority::from`] takes. Port 0 is nobody's.
    pub fn host(name: &str, port: u16) -> Result<Self, AuthorityError> {
        let refuse = |why| AuthorityError::new(&format!("{name}:{port}"), why);
        if port == 0 {
            return Err(refuse(NO_PORT));
        }
        let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let name = name.strip_suffix('.').unwrap_or(name);
        // All digits and dots would be an address, or one that did not parse.
        if name.len() > 253 || !name.split('.').all(label) || name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(refuse("the host is neither an address nor a DNS name"));
        }
        let name = name.to_ascii_lowercase().into();
        Ok(Self::Host { name, port })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| AuthorityError::new(text, why);
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("a port is missing"))?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse("the port is not a number"));
        }
        let port: u16 = port.parse().map_err(|_| refuse("the port is over 65535"))?;
        if port == 0 {
            return Err(refuse(NO_PORT));
        }
        if let Some(inner) = host.strip_prefix('[') {
            let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
            let ip = ip.ok_or_else(|| refuse("what stands in brackets is not an IPv6 address"))?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip), port)));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        Self::host(host, port)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

/// A text that no CONNECT can name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not host:port: {why}")]
pub struct AuthorityError {
    text: String,
    why: &'static str,
}

impl AuthorityError {
    fn new(text: &str, why: &'static str) -> Self {
        Self {
            text: text.chars().take(300).collect(),
            why,
        }
    }
}

const NO_PORT: &str = "port 0 is nobody's";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_come_back_as_written() {
        for text in ["10.0.0.1:80", "[fd00::1]:15008", "web.shop.svc.cluster.local:8080", "a:1"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        assert_eq!("WEB.shop.:80".parse::<Authority>().unwrap().to_string(), "web.shop:80");
        assert_eq!(Authority::host("WEB.shop.", 80), "web.shop:80".parse());
        for (name, port) in [("web.shop", 0), ("10.0.0.1", 80), ("fd00::1", 80), ("a..b", 80), ("", 80)] {
            assert!(Authority::host(name, port).is_err(), "{name}");
        }
    }

    #[test]
    fn blocks_hold_what_shares_their_prefix_in_their_network() {
        let block = |ip: &str, length| NetworkBlock::new("n".into(), ip.parse().unwrap(), length).unwrap();
        let at = |network: &str, ip: &str| NetworkAddress::new(network.into(), ip.parse().unwrap());
        for (block, inside, outside) in [
            (block("10.1.2.3", 24), "10.1.2.255", "10.1.3.0"),
            (block("10.1.2.3", 32), "10.1.2.3", "10.1.2.2"),
            (block("fd00::1", 64), "fd00::ffff", "fd00:0:0:1::"),
            (block("fd00::1", 128), "fd00::1", "fd00::"),
        ] {
            assert!(block.contains(&at("n", inside)), "{block}");
            assert!(!block.contains(&at("n", outside)) && !block.contains(&at("m", inside)), "{block}");
        }
        assert!(block("10.0.0.0", 0).contains(&at("n", "203.0.113.1")) && !block("10.0.0.0", 0).contains(&at("n", "::1")));
        assert_eq!(block("10.1.2.3", 8).to_string(), "n/10.0.0.0/8");
        assert_eq!(block("::ffff:10.1.2.3", 104), block("10.0.0.0", 8));
        assert_eq!(block("::ffff:10.1.2.3", 96), block("0.0.0.0", 0));
        // What holds others as well stays what it is.
        assert_eq!(block("::ffff:10.1.2.3", 95).to_string(), "n/::fffe:0:0/95");
        assert!(NetworkBlock::new("n".into(), "::ffff:10.0.0.0".parse().unwrap(), 129).is_none());
        assert!(NetworkBlock::new("n".into(), "10.0.0.0".parse().unwrap(), 33).is_none());
        assert!(NetworkBlock::new("n".into(), "::".parse().unwrap(), 129).is_none());
    }

    #[test]
    fn addresses_and_blocks_are_read_as_they_are_written() {
        for text in ["/10.0.0.1", "n/10.0.0.1", "n/fd00::1", "a/b/10.0.0.1"] {
            assert_eq!(text.parse::<NetworkAddress>().unwrap().to_string(), text);
        }
        assert_eq!("/::ffff:10.0.0.1".parse::<NetworkAddress>().unwrap().to_string(), "/10.0.0.1");
        for text in ["/10.0.0.0/8", "n/fd00::/64", "n/0.0.0.0/0"] {
            assert_eq!(text.parse::<NetworkBlock>().unwrap().to_string(), text);
        }
        for text in ["", "/", "10.0.0.1", "n/10.0.0.1/8", "n/x", "n/[fd00::1]"] {
            let error = text.parse::<NetworkAddress>().unwrap_err();
            assert_eq!(error.to_string(), format!("{text:?} is not NETWORK/ADDRESS"));
        }
        for text in [
            "",
            "/10.0.0.0",
            "10.0.0.0/8",
            "n/10.0.0.0/33",
            "n/10.0.0.0/+8",
            "n/10.0.0.0/",
            "n/fd00::/129",
        ] {
            assert!(text.parse::<NetworkBlock>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        for text in [
            "",
            ":",
            ":80",
            "a",
            "a:",
            "a:x",
            "a:0",
            "a:65536",
            "a:+1",
            "fd00::1:80",
            "[fd00::1]",
            "[10.0.0.1]:80",
            "[fd00::1:80",
            "10.0.0:80",
            "1.2.3.4.5:80",
            "a..b:80",
            "a b:80",
            "ä:80",
            "user@a:80",
            "a/b:80",
            "[fd00::1%eth0]:80",
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }
}
