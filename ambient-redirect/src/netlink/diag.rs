//! sock_diag: which sockets listen.

use std::net::{IpAddr, SocketAddr};

use super::{
    Error,
    codec::{self, NLM_F_DUMP, Writer, fixed},
    socket::{Socket, Speaks},
};

/// The sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets(Socket);

/// By which protocol a socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A socket that listens: for UDP, one that is bound and not connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub transport: Transport,
    pub local: SocketAddr,
    /// Takes IPv6 only; `false` for an IPv6 wildcard socket means that it takes IPv4 as well.
    pub only_v6: bool,
    pub inode: u32,
    /// SO_MARK; `None` where the kernel does not tell it (no CAP_NET_ADMIN).
    pub mark: Option<u32>,
}

impl Listener {
    /// Whether what comes to any address of a family reaches it.
    pub fn takes(&self, ipv6: bool) -> bool {
        self.local.ip().is_unspecified() && (self.local.is_ipv6() == ipv6 || (self.local.is_ipv6() && !self.only_v6))
    }
}

impl Sockets {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::SockDiag, 0).map(Self)
    }

    /// All sockets that listen by a protocol, IPv4 and IPv6.
    ///
    /// Costs some microseconds: the kernel walks its table of listeners, never that of connections.
    pub fn listeners(&mut self, transport: Transport) -> Result<Vec<Listener>, Error> {
        let what = "listing sockets";
        let mut listeners = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut tries = 0;
            let all = loop {
                match self.0.list(what, request(family, transport)) {
                    Err(e) if e.interrupted() && tries < LISTINGS => tries += 1,
                    // A kernel without IPv6 has no such sockets.
                    Err(e) if family == AF_INET6 && e.missing() => break Vec::new(),
                    result => break result?,
                }
            };
            for (_, payload) in all.iter().filter(|(kind, _)| *kind == SOCK_DIAG_BY_FAMILY) {
                listeners.extend(read(what, transport, payload)?);
            }
        }
        Ok(listeners)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, transport: Transport) -> Writer {
    let (protocol, states) = match transport {
        Transport::Tcp => (IPPROTO_TCP, 1u32 << TCP_LISTEN),
        Transport::Udp => (IPPROTO_UDP, 1u32 << TCP_CLOSE),
    };
    let mut header = [0; 56];
    header[0] = family;
    header[1] = protocol;
    header[4..8].copy_from_slice(&states.to_ne_bytes());
    // The cookie of no socket in particular.
    header[48..56].copy_from_slice(&[0xff; 8]);
    let mut message = Writer::default();
    message.begin(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &header);
    message
}

/// `struct inet_diag_msg`.
fn read(what: &str, transport: Transport, payload: &[u8]) -> Result<Option<Listener>, Error> {
    let (header, rest) = fixed(what, payload, 72)?;
    let address = match header[0] {
        AF_INET => &header[8..12],
        AF_INET6 => &header[8..24],
        _ => return Ok(None),
    };
    let Some(ip): Option<IpAddr> = codec::read_ip(address) else {
        return Ok(None);
    };
    Ok(Some(Listener {
        transport,
        local: SocketAddr::new(ip, u16::from_be_bytes([header[4], header[5]])),
        only_v6: codec::find(rest, INET_DIAG_SKV6ONLY).is_some_and(|b| b.first().is_some_and(|b| *b != 0)),
        inode: codec::read_u32(header, 68).unwrap_or(0),
        mark: codec::find(rest, INET_DIAG_MARK).and_then(|b| codec::read_u32(b, 0)),
    }))
}

const LISTINGS: usize = 10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_MARK: u16 = 15;
