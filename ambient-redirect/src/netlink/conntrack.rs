//! ctnetlink: the connections that the kernel tracks.

use std::net::{IpAddr, SocketAddr};

use super::{
    Error, Progress,
    codec::{self, NLM_F_CREATE, NLM_F_DUMP, Writer, fixed},
    socket::{Socket, Speaks},
};

/// The tracked TCP connections of one network namespace.
#[derive(Debug)]
pub struct Conntrack(Socket);

/// What the kernel remembers of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Whence its first packet came, as far as [is known](Self::known_by).
    pub source: SocketAddr,
    /// Whereto that went, before anything was translated.
    pub destination: SocketAddr,
    /// The connection's status; see [`STATUS_DNAT`].
    pub status: u32,
    pub mark: u32,
    /// Which entry it is. The kernel makes it from the entry's place in its memory and its addresses ([nf_ct_get_id]): one that
    /// comes after it with the same addresses may get the same place, and bear the same.
    ///
    /// [nf_ct_get_id]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/net/netfilter/nf_conntrack_core.c
    pub id: u32,
    /// The kernel has seen it end: the first packet of another with the same addresses does not match this entry, and gets one of
    /// its own ([nf_conntrack_tcp_packet]).
    ///
    /// [nf_conntrack_tcp_packet]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/net/netfilter/nf_conntrack_proto_tcp.c
    pub ended: bool,
    /// What is known of its beginning.
    pub known_by: KnownBy,
}

/// By what the kernel knows a TCP connection, and so whether it knows who opened it. It says so by the flags that it keeps of either
/// end ([tcp_new]): what it takes up in the middle it gives leave to be out of its window, and to acknowledge selectively.
///
/// [tcp_new]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/net/netfilter/nf_conntrack_proto_tcp.c
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KnownBy {
    /// It has seen the first packet.
    Beginning,
    /// It was told ([`Conntrack::remember`]).
    Word,
    /// It has seen a packet in the middle: the source is who spoke next.
    Middle,
}

/// A connection that is to be remembered as if it had been tracked from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// How far it is.
    pub progress: Progress,
    /// The other end has opened it.
    pub inbound: bool,
}

impl Entry {
    /// Source and destination of its first packet.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        // Of what is being opened the kernel asks who sends what.
        let inbound = match self.progress {
            Progress::Received => true,
            Progress::Sent => false,
            _ => self.inbound,
        };
        match inbound {
            true => (self.remote, self.local),
            false => (self.local, self.remote),
        }
    }
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::Netfilter, 0).map(Self)
    }

    /// Has connections remembered as untranslated ones with a mark, whatever is known of them so far. What is translated for
    /// later ones does not concern these; their windows are not looked at, as nobody knows them. Gives how many were refused, and
    /// why the first was.
    ///
    /// # Errors
    /// Where nothing can be said at all.
    pub fn remember(&mut self, entries: &[Entry], mark: u32) -> Result<Refused, Error> {
        self.each("remembering connections", entries.iter().map(|entry| remembered(entry, mark)))
    }

    /// Sets the bits of `mask` in the marks of connections, where they are known. Gives how many were refused: those that are
    /// not known.
    ///
    /// # Errors
    /// Where nothing can be said at all.
    pub fn mark(&mut self, connections: &[(SocketAddr, SocketAddr)], mark: u32, mask: u32) -> Result<Refused, Error> {
        let marked = connections.iter().map(|(source, destination)| {
            let mut message = begin(IPCTNL_MSG_CT_NEW, 0, *source);
            tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, *source, *destination);
            message.be32(CTA_MARK, mark);
            message.be32(CTA_MARK_MASK, mask);
            message
        });
        self.each("marking connections", marked)
    }

    /// Forgets a connection, so that its next packet is one of a new connection.
    pub fn forget(&mut self, source: SocketAddr, destination: SocketAddr) -> Result<(), Error> {
        let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, source);
        tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, source, destination);
        self.0.request("forgetting a connection", message)
    }

    /// Forgets an entry, so that its connection's next packet is one of a new connection; no other with its addresses is, unless
    /// it bears the same [identifier](Tracked::id).
    pub fn forget_entry(&mut self, entry: &Tracked) -> Result<(), Error> {
        let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, entry.source);
        tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, entry.source, entry.destination);
        message.be32(CTA_ID, entry.id);
        self.0.request("forgetting a connection", message)
    }

    /// Forgets everything that is remembered in the namespace; what lives on is tracked anew.
    pub fn forget_all(&mut self) -> Result<(), Error> {
        let mut message = Writer::default();
        message.begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, 0, &[0; 4]);
        self.0.request("emptying conntrack", message)
    }

    /// How much is remembered in the namespace, of whatever protocol.
    pub fn count(&mut self) -> Result<u32, Error> {
        let what = "counting what is tracked";
        let mut message = Writer::default();
        message.begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS, 0, &[0; 4]);
        let (_, payload) = self.0.query(what, message)?;
        let count = codec::find(fixed(what, &payload, 4)?.1, CTA_STATS_GLOBAL_ENTRIES).and_then(codec::read_be32);
        count.ok_or_else(|| Error::malformed(what))
    }

    /// What is remembered of a connection.
    pub fn connection(&mut self, source: SocketAddr, destination: SocketAddr) -> Result<Option<Tracked>, Error> {
        let what = "looking for a tracked connection";
        let mut message = begin(IPCTNL_MSG_CT_GET, 0, source);
        tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, source, destination);
        match self.0.query(what, message) {
            Ok((_, payload)) => Ok(read(fixed(what, &payload, 4)?.1)),
            Err(e) if e.missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All TCP connections that are remembered. For a namespace that is known to have few.
    pub fn connections(&mut self) -> Result<Vec<Tracked>, Error> {
        self.gather_connections(Vec::new, Vec::push)
    }

    /// Shows each TCP connection that is remembered, and gives what was made of them, from what `begin` gives on: there may be as many
    /// as the kernel tracks on the whole machine, of which no more is held. It walks its table of all namespaces for it.
    pub(crate) fn gather_connections<T>(&mut self, begin: impl Fn() -> T, mut take: impl FnMut(&mut T, Tracked)) -> Result<T, Error> {
        self.gather("listing tracked connections", begin, |gathered, attributes| {
            read(attributes).into_iter().for_each(|tracked| take(gathered, tracked));
        })
    }

    /// As [`Conntrack::gather_connections`], with source and destination of what is remembered of UDP, of what nobody translates; of no
    /// zone in particular.
    pub(crate) fn gather_datagrams<T>(
        &mut self,
        begin: impl Fn() -> T,
        mut take: impl FnMut(&mut T, (SocketAddr, SocketAddr)),
    ) -> Result<T, Error> {
        self.gather("listing tracked datagrams", begin, |gathered, attributes| {
            read_datagrams(attributes).into_iter().for_each(|ends| take(gathered, ends));
        })
    }

    /// Forgets what is remembered of UDP, so that the next datagram is the first of its kind. Gives how many were refused: those that are
    /// not known any more.
    ///
    /// # Errors
    /// Where nothing can be said at all.
    pub fn forget_datagrams(&mut self, ends: &[(SocketAddr, SocketAddr)]) -> Result<Refused, Error> {
        let forgotten = ends.iter().map(|(source, destination)| {
            let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, *source);
            tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_UDP, *source, *destination);
            message
        });
        self.each("forgetting datagrams", forgotten)
    }

    /// Lists all that is remembered, of both families in one walk, and shows the attributes of each.
    fn gather<T>(&mut self, what: &str, begin: impl Fn() -> T, mut take: impl FnMut(&mut T, &[u8])) -> Result<T, Error> {
        let ask = || {
            let mut message = Writer::default();
            message.begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NLM_F_DUMP, &[AF_UNSPEC, 0, 0, 0]);
            message
        };
        self.0.gather(what, ask, begin, |gathered, _, payload| {
            take(gathered, fixed(what, payload, 4)?.1);
            Ok(())
        })
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

fn remembered(entry: &Entry, mark: u32) -> Writer {
    // The times are those that the kernel gives by itself.
    let (first, second) = entry.ends();
    let mut message = begin(IPCTNL_MSG_CT_NEW, NLM_F_CREATE, first);
    tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, first, second);
    tuple(&mut message, CTA_TUPLE_REPLY, IPPROTO_TCP, second, first);
    // Without the first bit the kernel calls a known entry busy.
    let (answered, stood) = (IPS_CONFIRMED | IPS_SEEN_REPLY, IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED);
    let (status, timeout, state) = match entry.progress {
        Progress::Sent => (IPS_CONFIRMED, 120, TCP_CONNTRACK_SYN_SENT),
        Progress::Received => (answered, 60, TCP_CONNTRACK_SYN_RECV),
        Progress::Established => (stood, 432_000, TCP_CONNTRACK_ESTABLISHED),
        Progress::Closing => (stood, 120, TCP_CONNTRACK_FIN_WAIT),
        Progress::HalfClosed => (stood, 60, TCP_CONNTRACK_CLOSE_WAIT),
        Progress::LastAck => (stood, 30, TCP_CONNTRACK_LAST_ACK),
    };
    // Of one that has begun to end the kernel must know that, or it lets nobody have its addresses and ports afterwards.
    let ends = matches!(entry.progress, Progress::Closing | Progress::HalfClosed | Progress::LastAck);
    let flags = if ends { BE_LIBERAL | CLOSE_INIT } else { BE_LIBERAL };
    message.be32(CTA_STATUS, status);
    message.be32(CTA_TIMEOUT, timeout);
    message.be32(CTA_MARK, mark);
    message.nest(CTA_PROTOINFO, |info| {
        info.nest(CTA_PROTOINFO_TCP, |tcp| {
            tcp.attribute(CTA_PROTOINFO_TCP_STATE, &[state]);
            tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[flags, flags]);
            tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[flags, flags]);
        });
    });
    message
}

pub(super) fn begin(kind: u16, flags: u16, of: SocketAddr) -> Writer {
    let family = if of.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut message = Writer::default();
    message.begin(NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, &[family, 0, 0, 0]);
    message
}

pub(super) fn tuple(message: &mut Writer, kind: u16, protocol: u8, source: SocketAddr, destination: SocketAddr) {
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
            proto.attribute(CTA_PROTO_NUM, &[protocol]);
            proto.attribute(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
            proto.attribute(CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
        });
    });
}

/// What a tuple says: protocol, source, destination.
pub(super) fn read_tuple(attributes: &[u8], kind: u16) -> Option<(u8, SocketAddr, SocketAddr)> {
    let tuple = codec::find(attributes, kind)?;
    let (ip, proto) = (codec::find(tuple, CTA_TUPLE_IP)?, codec::find(tuple, CTA_TUPLE_PROTO)?);
    let address = |v4, v6| -> Option<IpAddr> { codec::read_ip(codec::find(ip, v4).or_else(|| codec::find(ip, v6))?) };
    let port = |kind| -> Option<u16> { Some(u16::from_be_bytes(codec::find(proto, kind)?.try_into().ok()?)) };
    Some((
        *codec::find(proto, CTA_PROTO_NUM)?.first()?,
        SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    ))
}

/// A TCP connection; `None` for another.
pub(super) fn read(attributes: &[u8]) -> Option<Tracked> {
    let (protocol, source, destination) = read_tuple(attributes, CTA_TUPLE_ORIG)?;
    let number = |kind| codec::find(attributes, kind).and_then(codec::read_be32).unwrap_or(0);
    let tcp = codec::find(attributes, CTA_PROTOINFO).and_then(|info| codec::find(info, CTA_PROTOINFO_TCP));
    (protocol == IPPROTO_TCP).then(|| Tracked {
        source,
        destination,
        status: number(CTA_STATUS),
        mark: number(CTA_MARK),
        id: number(CTA_ID),
        ended: tcp.is_some_and(is_seen_to_end),
        known_by: tcp.map_or(KnownBy::Middle, known_by),
    })
}

/// The ends of UDP that nobody translates and that is in no zone; `None` for another.
fn read_datagrams(attributes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (protocol, source, destination) = read_tuple(attributes, CTA_TUPLE_ORIG)?;
    let status = codec::find(attributes, CTA_STATUS).and_then(codec::read_be32).unwrap_or(0);
    let is_plain = status & (STATUS_DNAT | STATUS_SNAT) == 0 && codec::find(attributes, CTA_ZONE).is_none();
    (protocol == IPPROTO_UDP && is_plain).then_some((source, destination))
}

/// Both of it are asked for by the kernel before it lets go of an entry for a packet that opens a connection.
fn is_seen_to_end(tcp: &[u8]) -> bool {
    let [original, reply] = flags(tcp);
    matches!(first(tcp, CTA_PROTOINFO_TCP_STATE), TCP_CONNTRACK_TIME_WAIT | TCP_CONNTRACK_CLOSE) && (original | reply) & CLOSE_INIT != 0
}

fn known_by(tcp: &[u8]) -> KnownBy {
    let [original, reply] = flags(tcp);
    match original & reply & (BE_LIBERAL | SACK_PERM) {
        BE_LIBERAL => KnownBy::Word,
        both if both & BE_LIBERAL != 0 => KnownBy::Middle,
        _ => KnownBy::Beginning,
    }
}

/// Of both ends.
fn flags(tcp: &[u8]) -> [u8; 2] {
    [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY].map(|kind| first(tcp, kind))
}

/// The first byte of an attribute.
fn first(tcp: &[u8], kind: u16) -> u8 {
    codec::find(tcp, kind).and_then(|value| value.first().copied()).unwrap_or(0)
}

/// Of a connection's status: something was heard of the other end.
pub const STATUS_ANSWERED: u32 = IPS_SEEN_REPLY;
/// Of a connection's status: its source was changed.
pub const STATUS_SNAT: u32 = 1 << 4;
/// Of a connection's status: its destination was changed.
pub const STATUS_DNAT: u32 = 1 << 5;

/// Messages in one datagram: some kilobytes.
const CHUNK: u32 = 64;

/// Of whatever family.
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
pub(super) const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
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
const TCP_CONNTRACK_SYN_RECV: u8 = 2;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
const TCP_CONNTRACK_FIN_WAIT: u8 = 4;
const TCP_CONNTRACK_CLOSE_WAIT: u8 = 5;
const TCP_CONNTRACK_LAST_ACK: u8 = 6;
const TCP_CONNTRACK_TIME_WAIT: u8 = 7;
const TCP_CONNTRACK_CLOSE: u8 = 8;
const SACK_PERM: u8 = 0x02;
const CLOSE_INIT: u8 = 0x04;
const BE_LIBERAL: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(progress: Progress) -> Entry {
        Entry {
            local: "10.0.0.2:40000".parse().unwrap(),
            remote: "10.0.0.1:80".parse().unwrap(),
            progress,
            inbound: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let Entry { local, remote, .. } = entry(Progress::Established);
        for (progress, ends, status) in [
            (Progress::Established, (local, remote), 0xe),
            (Progress::HalfClosed, (local, remote), 0xe),
            (Progress::Received, (remote, local), 0xa),
            (Progress::Sent, (local, remote), 0x8),
        ] {
            let bytes = remembered(&entry(progress), 0x6b7).bytes().to_vec();
            let tracked = read(&bytes[codec::HEADER + 4..]).unwrap();
            assert_eq!((tracked.source, tracked.destination, tracked.status), (ends.0, ends.1, status));
            assert_eq!((tracked.mark, tracked.ended, tracked.known_by), (0x6b7, false, KnownBy::Word));
            // What is being opened tells by itself who opens it.
            let inbound = Entry {
                inbound: true,
                ..entry(progress)
            };
            let tracked = read(&remembered(&inbound, 0).bytes()[codec::HEADER + 4..]).unwrap();
            assert_eq!(tracked.source == remote, progress != Progress::Sent);
        }
    }

    #[test]
    fn what_was_taken_up_in_the_middle_does_not_say_who_opened_it() {
        let known = |original: u8, reply: u8| {
            let mut message = Writer::default();
            message.begin(0, 0, &[0; 4]);
            message.attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[original, 0]);
            message.attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[reply, 0]);
            known_by(&message.bytes()[codec::HEADER + 4..])
        };
        // As the kernel lists them: with and without scaled windows and selective acknowledgements, told, taken up.
        for (original, reply) in [(0, 0), (0x03, 0x03), (0x23, 0x21), (0x03, 0)] {
            assert_eq!(known(original, reply), KnownBy::Beginning);
        }
        assert_eq!(known(BE_LIBERAL, BE_LIBERAL), KnownBy::Word);
        assert_eq!(known(BE_LIBERAL | CLOSE_INIT, BE_LIBERAL), KnownBy::Word);
        assert_eq!(known(BE_LIBERAL | SACK_PERM, BE_LIBERAL | SACK_PERM), KnownBy::Middle);
        // Of TCP it says nothing.
        let Entry { local, remote, .. } = entry(Progress::Established);
        let mut message = begin(IPCTNL_MSG_CT_NEW, 0, local);
        tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, local, remote);
        assert_eq!(read(&message.bytes()[codec::HEADER + 4..]).unwrap().known_by, KnownBy::Middle);
    }

    #[test]
    fn what_is_seen_to_end_has_closed_in_order() {
        let ended = |state, original, reply| {
            let mut message = begin(IPCTNL_MSG_CT_NEW, 0, entry(Progress::Established).local);
            let Entry { local, remote, .. } = entry(Progress::Established);
            tuple(&mut message, CTA_TUPLE_ORIG, IPPROTO_TCP, local, remote);
            message.nest(CTA_PROTOINFO, |info| {
                info.nest(CTA_PROTOINFO_TCP, |tcp| {
                    tcp.attribute(CTA_PROTOINFO_TCP_STATE, &[state]);
                    tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[original, 0]);
                    tcp.attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[reply, 0]);
                });
            });
            read(&message.bytes()[codec::HEADER + 4..]).unwrap().ended
        };
        assert!(ended(7, CLOSE_INIT, 0) && ended(7, 0, CLOSE_INIT | BE_LIBERAL) && ended(8, CLOSE_INIT, 0));
        // Cut by a reset, and underway.
        assert!(!ended(8, 0, 0) && !ended(6, CLOSE_INIT, 0) && !ended(3, BE_LIBERAL, BE_LIBERAL));
    }

    /// As a trace of `conntrack -U`'s own kind of message shows it: family, tuple, ports in network order.
    #[test]
    fn a_tuple_is_laid_out_as_the_kernel_reads_it() {
        let mut message = begin(IPCTNL_MSG_CT_DELETE, 0, entry(Progress::Established).local);
        tuple(
            &mut message,
            CTA_TUPLE_ORIG,
            IPPROTO_TCP,
            entry(Progress::Established).local,
            entry(Progress::Established).remote,
        );
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
    fn datagrams_are_told_from_what_others_translate_and_from_the_proxys() {
        let (from, to): (SocketAddr, SocketAddr) = ("10.0.0.2:40000".parse().unwrap(), "10.0.0.1:53".parse().unwrap());
        let listed = |protocol: u8, status: u32, zone: Option<u16>| {
            let mut message = begin(IPCTNL_MSG_CT_NEW, 0, from);
            tuple(&mut message, CTA_TUPLE_ORIG, protocol, from, to);
            message.be32(CTA_STATUS, status);
            if let Some(zone) = zone {
                message.attribute(CTA_ZONE, &zone.to_be_bytes());
            }
            read_datagrams(&message.bytes()[codec::HEADER + 4..])
        };
        assert_eq!(listed(IPPROTO_UDP, IPS_CONFIRMED, None), Some((from, to)));
        for (protocol, status, zone) in [
            (IPPROTO_TCP, IPS_CONFIRMED, None),
            (IPPROTO_UDP, STATUS_DNAT, None),
            (IPPROTO_UDP, STATUS_SNAT, None),
            (IPPROTO_UDP, IPS_CONFIRMED, Some(1)),
        ] {
            assert_eq!(listed(protocol, status, zone), None);
        }
    }

    #[test]
    fn what_is_cut_short_is_no_connection() {
        let bytes = remembered(&entry(Progress::Established), 0).bytes()[codec::HEADER + 4..].to_vec();
        for length in 0..bytes.len() {
            let _ = read(&bytes[..length]);
        }
        assert_eq!(read(&bytes[..40]), None);
    }
}
