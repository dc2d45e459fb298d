//! Where things are: addresses in a named network, and the target that a CONNECT names.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// The name of a network in which addresses are unique; empty for the mesh's one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network(Arc<str>);

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

/// An address and the network in which it means something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
        write!(f, "{}/{}", self.network.as_str(), self.ip)
    }
}

/// The target of a CONNECT: `ip:port`, `[ip]:port` or `hostname:port` ([RFC 9113 8.5]).
///
/// [RFC 9113 8.5]: https://www.rfc-editor.org/rfc/rfc9113#section-8.5
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address and a port.
    Address(SocketAddr),
    /// A name and a port.
    Host(Arc<str>, u16),
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host(_, port) => *port,
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
        let refuse = |why| AuthorityError {
            text: text.chars().take(300).collect(),
            why,
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("a port is missing"))?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse("the port is not a number"));
        }
        let port: u16 = port.parse().map_err(|_| refuse("the port is over 65535"))?;
        if port == 0 {
            return Err(refuse("port 0 is nobody's"));
        }
        if let Some(inner) = host.strip_prefix('[') {
            let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
            let ip = ip.ok_or_else(|| refuse("what stands in brackets is not an IPv6 address"))?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip), port)));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let name = host.strip_suffix('.').unwrap_or(host);
        // All digits and dots would be an address that did not parse.
        if name.len() > 253 || !name.split('.').all(label) || name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(refuse("the host is neither an address nor a DNS name"));
        }
        Ok(Self::Host(name.to_ascii_lowercase().into(), port))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_come_back_as_written() {
        for text in ["10.0.0.1:80", "[fd00::1]:15008", "web.shop.svc.cluster.local:8080", "a:1"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        assert_eq!("WEB.shop.:80".parse::<Authority>().unwrap().to_string(), "web.shop:80");
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
