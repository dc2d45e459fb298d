//! ctnetlink: the connections that the kernel tracks.

use std::net::{IpAddr, SocketAddr};

use super::{
    Error,
    codec::{self, NLM_F_CREATE, NLM_F_DUMP, Writer, fixed},
    socket::{Socket, Speaks},
};

/// The tracked TCP connections of one network namespace.
#[derive(Debug)]
pub struct Conntrack(Socket);

/// What the kernel remembers of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Whence its first packet came, as far as is known.
    pub source: SocketAddr,
    /// Whereto that went, before anything was translated.
    pub destination: SocketAddr,
    /// The connection's status; see [`STATUS_DNAT`].
    pub status: u32,
    pub mark: u32,
}

/// A connection that is to be remembered as if it had been tracked from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Whether the other end has answered; else only the packet that opens it was sent.
    pub answered: bool,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::Netfilter, 0).map(Self)
    }

    /// Has connections remembered as untranslated ones, whatever is known of them so far. What is translated for later ones
    /// does not concern these; their windows are not looked at, as nobody knows them. Gives how many were refused, and why
    /// the first was.
    ///
    /// # Errors
    /// Where nothing can be said at all.
    pub fn remember(&mut self, entries: &[Entry]) -> Result<Refused, Error> {
        self.each("remembering connections", entries.iter().map(remembered))
    }

    /// Sets the bits of `mask` in the marks of connections, where they are known. Gives how many were refused: those that are
    /// not known.
    ///
    /// # Errors
    /// Where nothing can be said at all.
    pub fn mark(&mut self, connections: &[(SocketAddr, SocketAddr)], mark: u32, mask: u32) -> Result<Refused, Error> {
        let marked = connections.iter().map(|(source, destination)| {
            let mut message = begin(IPCTNL_MSG_CT_NEW, 0, *source);
            tuple(&mut message, CTA_TUPLE_ORIG, *source, *destination);
            message.be32(CTA_MARK, mark);
            message.be32(CTA_MARK_MASK, mask);
            message
        });
        self.each("marking connections", marked)
    }

    /// Forgets a connection, so that its next packet is one of a new connection.
    pub fn forget(&mut self, source: SocketAddr, destination: SocketAddr) -> Result<(), Error> {
        let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, source);
        tuple(&mut message, CTA_TUPLE_ORIG, source, destination);
        self.0.request("forgetting a connection", message)
    }

    /// What is remembered of a connection.
    pub fn connection(&mut self, source: SocketAddr, destination: SocketAddr) -> Result<Option<Tracked>, Error> {
        let what = "looking for a tracked connection";
        let mut message = begin(IPCTNL_MSG_CT_GET, 0, source);
        tuple(&mut message, CTA_TUPLE_ORIG, source, destination);
        match self.0.query(what, message) {
            Ok((_, payload)) => Ok(read(fixed(what, &payload, 4)?.1)),
            Err(e) if e.missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All TCP connections that are remembered. The kernel walks its table of all namespaces for it.
    pub fn connections(&mut self) -> Result<Vec<Tracked>, Error> {
        let what = "listing tracked connections";
        let mut connections = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut tries = 0;
            let all = loop {
                let mut message = Writer::default();
                message.begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NLM_F_DUMP, &[family, 0, 0, 0]);
                match self.0.list(what, message) {
                    Err(e) if e.interrupted() && tries < LISTINGS => tries += 1,
                    result => break result?,
                }
            };
            for (_, payload) in &all {
                let (_, rest) = fixed(what, payload, 4)?;
                connections.extend(read(rest));
            }
        }
        Ok(connections)
    }

    /// Sends messages many at a time.
    fn each(&mut self, what: &str, messages: impl Iterator<Item = Writer>) -> Result<Refused, Error> {
        let mut refused = Refused::default();
        let mut chunk = Writer::default();
        let mut send = |chunk: Writer| -> Result<(), Error> {
            let some = self.0.many(what, chunk)?;
            refused.count += some.len();
            if refused.why.is_none() {
                refused.why = some.into_iter().next();
            }
            Ok(())
        };
        for message in messages {
            chunk.append(message);
            if chunk.messages() >= CHUNK {
                send(std::mem::take(&mut chunk))?;
            }
        }
        if chunk.messages() > 0 {
            send(chunk)?;
        }
        Ok(refused)
    }
}

/// How much of many things the kernel refused.
#[derive(Debug, Default)]
pub struct Refused {
    pub count: usize,
    /// Why it refused the first.
    pub why: Option<Error>,
}

fn remembered(entry: &Entry) -> Writer {
    let mut message = begin(IPCTNL_MSG_CT_NEW, NLM_F_CREATE, entry.local);
    tuple(&mut message, CTA_TUPLE_ORIG, entry.local, entry.remote);
    tuple(&mut message, CTA_TUPLE_REPLY, entry.remote, entry.local);
    let (status, timeout, state) = match entry.answered {
        // Without the first bit the kernel calls a known entry busy.
        true => (
            IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED,
            ESTABLISHED_SECONDS,
            TCP_CONNTRACK_ESTABLISHED,
        ),
        false => (IPS_CONFIRMED, SYN_SENT_SECONDS, TCP_CONNTRACK_SYN_SENT),
    };
    message.be32(CTA_STATUS, status);
    message.be32(CTA_TIMEOUT, timeout);
    message.nest(CTA_PROTOINFO, |info| {
        info.nest(CTA_PROTOINFO_TCP, |tcp| {
            tcp.attribute(CTA_PROTOINFO_TCP_STATE, &[state]);
            tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[BE_LIBERAL, BE_LIBERAL]);
            tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[BE_LIBERAL, BE_LIBERAL]);
        });
    });
    message
}

fn begin(kind: u16, flags: u16, of: SocketAddr) -> Writer {
    let family = if of.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut message = Writer::default();
    message.begin(NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, &[family, 0, 0, 0]);
    message
}

fn tuple(message: &mut Writer, kind: u16, source: SocketAddr, destination: SocketAddr) {
    let (from, to) = if source.is_ipv4() {
        (CTA_IP_V4_SRC, CTA_IP_V4_DST)
    } else {
        (CTA_IP_V6_SRC, CTA_IP_V6_DST)
    };
    message.nest(kind, |tuple| {
        tuple.nest(CTA_TUPLE_IP, |ip| {
            ip.ip(from, source.ip());
            ip.ip(to, destination.ip());
        });
        tuple.nest(CTA_TUPLE_PROTO, |proto| {
            proto.attribute(CTA_PROTO_NUM, &[IPPROTO_TCP]);
            proto.attribute(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
            proto.attribute(CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
        });
    });
}

/// A TCP connection; `None` for another.
fn read(attributes: &[u8]) -> Option<Tracked> {
    let tuple = codec::find(attributes, CTA_TUPLE_ORIG)?;
    let (ip, proto) = (codec::find(tuple, CTA_TUPLE_IP)?, codec::find(tuple, CTA_TUPLE_PROTO)?);
    if codec::find(proto, CTA_PROTO_NUM)?.first() != Some(&IPPROTO_TCP) {
        return None;
    }
    let address = |v4, v6| -> Option<IpAddr> { codec::read_ip(codec::find(ip, v4).or_else(|| codec::find(ip, v6))?) };
    let port = |kind| -> Option<u16> { Some(u16::from_be_bytes(codec::find(proto, kind)?.try_into().ok()?)) };
    let number = |kind| codec::find(attributes, kind).and_then(codec::read_be32).unwrap_or(0);
    Some(Tracked {
        source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
        status: number(CTA_STATUS),
        mark: number(CTA_MARK),
    })
}

/// Of a connection's status: its destination was changed.
pub const STATUS_DNAT: u32 = 1 << 5;

/// Messages in one datagram: some kilobytes.
const CHUNK: u32 = 64;
const LISTINGS: usize = 10;
/// As the kernel gives them by itself.
const ESTABLISHED_SECONDS: u32 = 432_000;
const SYN_SENT_SECONDS: u32 = 120;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_CONFIRMED: u32 = 1 << 3;
const TCP_CONNTRACK_SYN_SENT: u8 = 1;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
const BE_LIBERAL: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(answered: bool) -> Entry {
        Entry {
            local: "10.0.0.2:40000".parse().unwrap(),
            remote: "10.0.0.1:80".parse().unwrap(),
            answered,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for answered in [true, false] {
            let bytes = remembered(&entry(answered)).bytes().to_vec();
            let tracked = read(&bytes[codec::HEADER + 4..]).unwrap();
            assert_eq!(tracked.source, entry(answered).local);
            assert_eq!(tracked.destination, entry(answered).remote);
            assert_eq!(tracked.status, if answered { 0xe } else { 0x8 });
        }
    }

    /// As a trace of `conntrack -U`'s own kind of message shows it: family, tuple, ports in network order.
    #[test]
    fn a_tuple_is_laid_out_as_the_kernel_reads_it() {
        let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, entry(true).local);
        tuple(&mut message, CTA_TUPLE_ORIG, entry(true).local, entry(true).remote);
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, // family, version, resource
            52, 0, 1, 0x80, // the tuple
            20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 2, 8, 0, 2, 0, 10, 0, 0, 1,
            28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 80, 0, 0,
        ];
        assert_eq!(&message.bytes()[codec::HEADER..], expected);
    }

    #[test]
    fn what_is_cut_short_is_no_connection() {
        let bytes = remembered(&entry(true)).bytes()[codec::HEADER + 4..].to_vec();
        for length in 0..bytes.len() {
            let _ = read(&bytes[..length]);
        }
        assert_eq!(read(&bytes[..40]), None);
    }
}
