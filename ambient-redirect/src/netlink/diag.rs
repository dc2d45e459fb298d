//! sock_diag: which sockets listen, and which connections are open.

use std::net::{IpAddr, SocketAddr};

use ambient_core::ports;

use super::{
    Error,
    codec::{self, NLM_F_DUMP, Writer, fixed},
    socket::{Socket, Speaks},
};
use crate::plan::{IpFamily, Port, Protocol};

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

    /// Whether it is on a port.
    pub(crate) fn is_at(&self, port: Port) -> bool {
        let transport = match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        self.transport == transport && self.local.port() == port.port
    }

    /// Whether what is redirected to its port reaches it: connections of the pod's own processes come to the loopback address.
    pub(crate) fn serves(&self, family: IpFamily) -> bool {
        self.takes(family == IpFamily::V6) || (self.local.port() == ports::DNS && self.local.ip() == family.loopback())
    }
}

/// How far a TCP connection is ([RFC 9293 3.3.2]).
///
/// [RFC 9293 3.3.2]: https://www.rfc-editor.org/rfc/rfc9293#section-3.3.2
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// This end has sent the first packet of it, and heard nothing.
    Sent,
    /// This end has answered the first packet of the other.
    Received,
    /// Both ends may speak.
    Established,
    /// This end has said that it will say no more, and that is not acknowledged.
    Closing,
    /// One end may speak.
    HalfClosed,
    /// Both have said that they will say no more; the last acknowledgement is missing.
    LastAck,
}

/// A TCP connection that is open, or being opened. Addresses are never IPv4 ones in IPv6 clothes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// How far it is.
    pub progress: Progress,
    /// SO_MARK; `None` where the kernel does not tell it (no CAP_NET_ADMIN).
    pub mark: Option<u32>,
    /// Whether this end has opened it, as far as its socket tells.
    pub opened_here: Option<bool>,
    /// The device that it is bound to, or 0.
    pub device: u32,
    /// Which socket it is: one after it with the same addresses has another.
    pub cookie: u64,
}

/// What is asked of each connection of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Its ends, its mark, how far it is.
    Ends,
    /// Who has opened it as well: for that the kernel tells what each socket has counted, which is more than all else.
    Opener,
}

impl Sockets {
    /// All TCP connections that are open or being opened, IPv4 and IPv6. For a namespace that is known to have few.
    pub fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        self.gather_connections(Asked::Opener, Vec::new, |all, connection| {
            all.push(connection);
            Ok(())
        })
    }

    /// Shows each TCP connection that is open or being opened, IPv4 and IPv6, and gives what was made of them, from what `begin` gives
    /// on: a pod may have as many as it likes, of which no more is held.
    ///
    /// The kernel walks its table of all namespaces: some hundred microseconds on a quiet host, milliseconds on a busy one.
    pub(crate) fn gather_connections<T>(
        &mut self,
        asked: Asked,
        begin: impl Fn() -> T,
        mut take: impl FnMut(&mut T, Connection) -> Result<(), Error>,
    ) -> Result<T, Error> {
        let what = "listing connections";
        let ask = || ask_of_all_families(LIVE, asked);
        self.0.gather(what, ask, begin, |gathered, kind, payload| {
            match (kind == TCPDIAG_GETSOCK).then(|| read_connection(what, payload)).transpose()? {
                Some(Some(connection)) => take(gathered, connection),
                _ => Ok(()),
            }
        })
    }

    /// Whether a connection, told by its socket, is still open.
    pub fn is_open(&mut self, connection: &Connection) -> Result<bool, Error> {
        let what = "looking for a connection";
        let (family, id) = id_of(connection);
        match self.0.query(what, ask(family, IPPROTO_TCP, LIVE, &id, 0, SOCK_DIAG_BY_FAMILY)) {
            Ok((_, payload)) => Ok(read_connection(what, &payload)?.is_some_and(|c| c.cookie == connection.cookie)),
            Err(e) if e.missing() || e.errno() == Some(libc::ESTALE) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a socket of no device in particular has these ends, of a connection that is open or being opened.
    pub(crate) fn holds(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<bool, Error> {
        let what = "looking for a connection";
        let any = Connection {
            local,
            remote,
            progress: Progress::Established,
            mark: None,
            opened_here: None,
            device: 0,
            cookie: u64::MAX,
        };
        let (family, id) = id_of(&any);
        match self.0.query(what, ask(family, IPPROTO_TCP, LIVE, &id, 0, SOCK_DIAG_BY_FAMILY)) {
            Ok((_, payload)) => Ok(read_connection(what, &payload)?.is_some()),
            Err(e) if e.missing() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Closes a connection, told by its socket, with a reset to the other end; its process is told that it was aborted.
    /// Gives whether it was still there.
    ///
    /// Needs CAP_NET_ADMIN, and a kernel built with INET_DIAG_DESTROY.
    pub fn destroy(&mut self, connection: &Connection) -> Result<bool, Error> {
        let what = "closing a connection";
        let (family, id) = id_of(connection);
        match self.0.request(what, ask(family, IPPROTO_TCP, LIVE, &id, 0, SOCK_DESTROY)) {
            Ok(()) => Ok(true),
            Err(e) if e.missing() || e.errno() == Some(libc::ESTALE) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::SockDiag, 0).map(Self)
    }

    /// All sockets that listen by a protocol, IPv4 and IPv6. For a namespace that is known to have few.
    pub fn listeners(&mut self, transport: Transport) -> Result<Vec<Listener>, Error> {
        self.gather_listeners(transport, Vec::new(), |all, listener| all.push(listener))
    }

    /// Shows each socket that listens by a protocol, IPv4 and IPv6, and gives what was made of them, from `begin` on: a pod may have as
    /// many as it likes, of which no more is held.
    ///
    /// Costs some microseconds: the kernel walks its table of listeners, never that of connections.
    pub(crate) fn gather_listeners<T: Clone>(
        &mut self,
        transport: Transport,
        begin: T,
        mut take: impl FnMut(&mut T, Listener),
    ) -> Result<T, Error> {
        let what = "listing sockets";
        let mut gathered = begin;
        for family in [AF_INET, AF_INET6] {
            let ask = || request(family, transport);
            let of_family = self.0.gather(
                what,
                ask,
                || gathered.clone(),
                |gathered, kind, payload| {
                    let listener = (kind == SOCK_DIAG_BY_FAMILY).then(|| read(what, transport, payload)).transpose()?;
                    listener.flatten().into_iter().for_each(|listener| take(gathered, listener));
                    Ok(())
                },
            );
            gathered = match of_family {
                // A kernel without IPv6 has no such sockets.
                Err(e) if family == AF_INET6 && e.missing() => return Ok(gathered),
                of_family => of_family?,
            };
        }
        Ok(gathered)
    }
}

fn request(family: u8, transport: Transport) -> Writer {
    let (protocol, states) = match transport {
        Transport::Tcp => (IPPROTO_TCP, 1u32 << TCP_LISTEN),
        Transport::Udp => (IPPROTO_UDP, 1u32 << TCP_CLOSE),
    };
    ask(family, protocol, states, &ANY, NLM_F_DUMP, SOCK_DIAG_BY_FAMILY)
}

/// `struct inet_diag_req_v2`.
fn ask(family: u8, protocol: u8, states: u32, id: &SocketId, flags: u16, kind: u16) -> Writer {
    let mut header = [0; 56];
    header[0] = family;
    header[1] = protocol;
    header[4..8].copy_from_slice(&states.to_ne_bytes());
    header[8..].copy_from_slice(id);
    let mut message = Writer::default();
    message.begin(kind, flags, &header);
    message
}

/// `struct inet_diag_req`: the older question, to which IPv4 and IPv6 are listed in one walk of the kernel's.
fn ask_of_all_families(states: u32, asked: Asked) -> Writer {
    let mut header = [0; 60];
    header[3] = match asked {
        Asked::Ends => 0,
        Asked::Opener => 1 << (INET_DIAG_INFO - 1),
    };
    header[4..52].copy_from_slice(&ANY);
    header[52..56].copy_from_slice(&states.to_ne_bytes());
    let mut message = Writer::default();
    message.begin(TCPDIAG_GETSOCK, NLM_F_DUMP, &header);
    message
}

/// `struct inet_diag_sockid`: ports, addresses, device, cookie.
type SocketId = [u8; 48];

/// The cookie of no socket in particular.
const ANY: SocketId = {
    let mut id = [0; 48];
    let mut at = 40;
    while at < 48 {
        id[at] = 0xff;
        at += 1;
    }
    id
};

fn id_of(connection: &Connection) -> (u8, SocketId) {
    let mut id = [0; 48];
    id[0..2].copy_from_slice(&connection.local.port().to_be_bytes());
    id[2..4].copy_from_slice(&connection.remote.port().to_be_bytes());
    let mut put = |at: usize, ip: IpAddr| match ip {
        IpAddr::V4(ip) => id[at..at + 4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => id[at..at + 16].copy_from_slice(&ip.octets()),
    };
    put(4, connection.local.ip());
    put(20, connection.remote.ip());
    id[36..40].copy_from_slice(&connection.device.to_ne_bytes());
    // Two halves, the lower first, each in the machine's order.
    id[40..44].copy_from_slice(&(connection.cookie as u32).to_ne_bytes());
    id[44..48].copy_from_slice(&((connection.cookie >> 32) as u32).to_ne_bytes());
    // A socket of IPv6 that speaks IPv4 is found as one of IPv4.
    (if connection.local.is_ipv4() { AF_INET } else { AF_INET6 }, id)
}

/// `struct inet_diag_msg` of a connection; `None` of one that only waits for late packets.
pub(super) fn read_connection(what: &str, payload: &[u8]) -> Result<Option<Connection>, Error> {
    let (header, rest) = fixed(what, payload, 72)?;
    // Asked for one socket, the kernel does not look at its state.
    if LIVE & 1u32.checked_shl(u32::from(header[1])).unwrap_or(0) == 0 {
        return Ok(None);
    }
    let length = match header[0] {
        AF_INET => 4,
        AF_INET6 => 16,
        _ => return Ok(None),
    };
    let end = |address: usize, port: usize| -> Option<SocketAddr> {
        let ip = codec::read_ip(header.get(address..address + length)?)?.to_canonical();
        Some(SocketAddr::new(ip, u16::from_be_bytes([header[port], header[port + 1]])))
    };
    let (Some(local), Some(remote)) = (end(8, 4), end(24, 6)) else {
        return Ok(None);
    };
    let half = |at| u64::from(codec::read_u32(header, at).unwrap_or(0));
    Ok(Some(Connection {
        local,
        remote,
        progress: match header[1] {
            TCP_SYN_SENT => Progress::Sent,
            TCP_SYN_RECV | TCP_NEW_SYN_RECV => Progress::Received,
            TCP_FIN_WAIT1 => Progress::Closing,
            TCP_FIN_WAIT2 | TCP_CLOSE_WAIT => Progress::HalfClosed,
            TCP_LAST_ACK | TCP_CLOSING => Progress::LastAck,
            _ => Progress::Established,
        },
        mark: codec::find(rest, INET_DIAG_MARK).and_then(|b| codec::read_u32(b, 0)),
        opened_here: opened_here(
            header[1],
            codec::read_u32(header, 60).unwrap_or(0),
            codec::find(rest, INET_DIAG_INFO),
        ),
        device: half(40) as u32,
        cookie: half(44) | half(48) << 32,
    }))
}

/// Who has opened a connection, by what its socket has counted (`struct tcp_info`): the first packet of who opens one takes a number
/// of its sequence, as a byte does, and its acknowledgement is counted with those of bytes. Who was called begins to count after
/// that. So the acknowledged and those under way are one more than what was sent, or just as many.
///
/// `None` where the kernel does not tell, or tells of two moments.
fn opened_here(state: u8, waiting: u32, info: Option<&[u8]>) -> Option<bool> {
    // The end of what this end says takes a number as well.
    let end = match state {
        TCP_SYN_SENT => return Some(true),
        TCP_SYN_RECV | TCP_NEW_SYN_RECV => return Some(false),
        TCP_ESTABLISHED | TCP_CLOSE_WAIT => 0,
        TCP_FIN_WAIT2 => 1,
        // Whether that is under way is not told.
        _ => return None,
    };
    let info = info?;
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let (acknowledged, sent, again) = (number(120)?, number(200)?, number(208)?);
    let under_way = match codec::read_u32(info, 24)? {
        0 => 0,
        // What waits to be acknowledged without what was not sent yet.
        _ => waiting.wrapping_sub(codec::read_u32(info, 144)?),
    };
    let counted = acknowledged.wrapping_add(under_way.into());
    match counted.wrapping_sub(sent.wrapping_sub(again)).wrapping_sub(end) {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// `struct inet_diag_msg`.
pub(super) fn read(what: &str, transport: Transport, payload: &[u8]) -> Result<Option<Listener>, Error> {
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

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING; and SYN_RECV before it is accepted.
const LIVE: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;
const TCP_NEW_SYN_RECV: u8 = 12;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_MARK: u16 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket's counters: acknowledged, sent, of that again, packets and bytes under way, bytes that wait to be sent.
    fn info(acknowledged: u64, sent: u64, again: u64, packets: u32, unsent: u32) -> Vec<u8> {
        let mut info = vec![0; 240];
        info[24..28].copy_from_slice(&packets.to_ne_bytes());
        info[120..128].copy_from_slice(&acknowledged.to_ne_bytes());
        info[144..148].copy_from_slice(&unsent.to_ne_bytes());
        info[200..208].copy_from_slice(&sent.to_ne_bytes());
        info[208..216].copy_from_slice(&again.to_ne_bytes());
        info
    }

    #[test]
    fn who_opened_a_connection_is_told_by_what_its_socket_has_counted() {
        let (caller, called, unknown) = (Some(true), Some(false), None);
        for (state, waiting, info, who) in [
            (TCP_ESTABLISHED, 0, info(1, 0, 0, 0, 0), caller),
            (TCP_ESTABLISHED, 0, info(0, 0, 0, 0, 0), called),
            (TCP_ESTABLISHED, 0, info(1001, 1000, 0, 0, 0), caller),
            (TCP_ESTABLISHED, 0, info(1000, 1000, 0, 0, 0), called),
            // Of 1500 some were sent twice, and 200 are on their way; 300 wait behind them.
            (TCP_ESTABLISHED, 500, info(1001, 1500, 300, 2, 300), caller),
            (TCP_ESTABLISHED, 500, info(1000, 1500, 300, 2, 300), called),
            // Nothing is on its way, and the other end takes nothing.
            (TCP_ESTABLISHED, 300, info(1000, 1000, 0, 0, 300), called),
            (TCP_CLOSE_WAIT, 0, info(11, 10, 0, 0, 0), caller),
            (TCP_FIN_WAIT2, 0, info(12, 10, 0, 0, 0), caller),
            (TCP_FIN_WAIT2, 0, info(11, 10, 0, 0, 0), called),
            // Of two moments, or of one that was taken over from another machine.
            (TCP_ESTABLISHED, 500, info(900, 1500, 300, 2, 300), unknown),
            (TCP_ESTABLISHED, 0, info(7, 0, 0, 0, 0), unknown),
            (TCP_FIN_WAIT1, 0, info(11, 10, 0, 0, 0), unknown),
        ] {
            assert_eq!(opened_here(state, waiting, Some(&info)), who, "{state} {waiting} {info:?}");
            // A kernel before 4.19 does not tell all of it.
            assert_eq!(opened_here(state, waiting, Some(&info[..200])), unknown);
            assert_eq!(opened_here(state, waiting, None), unknown);
        }
        assert_eq!(opened_here(TCP_SYN_SENT, 0, None), caller);
        assert_eq!(opened_here(TCP_NEW_SYN_RECV, 0, None), called);
    }
}
