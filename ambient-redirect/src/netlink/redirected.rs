//! ctnetlink: where a datagram was going before it was redirected.

use std::net::{IpAddr, SocketAddr};

use super::{
    Error,
    codec::{self, Writer, fixed},
    socket::{Socket, Speaks},
};

/// The redirected datagrams of one network namespace, as its connection tracking remembers them.
#[derive(Debug)]
pub struct Redirected(Socket);

impl Redirected {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::Netfilter, 0).map(Self)
    }

    /// Where a datagram from `client` was going that has come to a local socket's address `at`; `None` where nothing is
    /// remembered of it.
    ///
    /// One look into the kernel's hash table: some microseconds, and the answer is there when the question is sent.
    pub fn origin(&mut self, client: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        let what = "looking up a datagram's destination";
        match self.0.query(what, question(client, at)) {
            Ok((_, payload)) => {
                let (_, attributes) = fixed(what, &payload, 4)?;
                Ok(Some(destination(attributes).ok_or_else(|| Error::malformed(what))?))
            }
            Err(error) if error.missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The connection is looked for by its other direction: from the socket that the datagram has come to.
fn question(client: SocketAddr, at: SocketAddr) -> Writer {
    let (family, from, to) = if at.is_ipv4() {
        (AF_INET, CTA_IP_V4_SRC, CTA_IP_V4_DST)
    } else {
        (AF_INET6, CTA_IP_V6_SRC, CTA_IP_V6_DST)
    };
    let mut message = Writer::default();
    message.begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, 0, &[family, 0, 0, 0]);
    message.nest(CTA_TUPLE_REPLY, |tuple| {
        tuple.nest(CTA_TUPLE_IP, |ip| {
            ip.ip(from, at.ip());
            ip.ip(to, client.ip());
        });
        tuple.nest(CTA_TUPLE_PROTO, |protocol| {
            protocol.attribute(CTA_PROTO_NUM, &[IPPROTO_UDP]);
            protocol.attribute(CTA_PROTO_SRC_PORT, &at.port().to_be_bytes());
            protocol.attribute(CTA_PROTO_DST_PORT, &client.port().to_be_bytes());
        });
    });
    message
}

/// Where the first datagram of a connection was sent to.
fn destination(attributes: &[u8]) -> Option<SocketAddr> {
    let tuple = codec::find(attributes, CTA_TUPLE_ORIG)?;
    let ip = codec::find(tuple, CTA_TUPLE_IP)?;
    let ip: IpAddr = codec::read_ip(codec::find(ip, CTA_IP_V4_DST).or_else(|| codec::find(ip, CTA_IP_V6_DST))?)?;
    let port = codec::find(codec::find(tuple, CTA_TUPLE_PROTO)?, CTA_PROTO_DST_PORT)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_kernel_reads_it() {
        let message = question("10.0.0.2:40000".parse().unwrap(), "127.0.0.1:15053".parse().unwrap());
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, // family, version, resource
            52, 0, 2, 0x80, // the tuple of the other direction
            20, 0, 1, 0x80, 8, 0, 1, 0, 127, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2,
            28, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 2, 0, 0x3a, 0xcd, 0, 0, 6, 0, 3, 0, 0x9c, 0x40, 0, 0,
        ];
        assert_eq!(&message.bytes()[codec::HEADER..], expected);
    }

    #[test]
    fn an_answer_is_read_and_a_cut_one_is_none() {
        #[rustfmt::skip]
        let answer = [
            76, 0, 1, 0x80, // the tuple of the first direction
            44, 0, 1, 0x80,
            20, 0, 3, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
            20, 0, 4, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10,
            28, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 53, 0, 0,
        ];
        assert_eq!(destination(&answer), Some("[fd00::a]:53".parse().unwrap()));
        for length in 0..answer.len() - 2 {
            assert_eq!(destination(&answer[..length]), None, "{length}");
        }
    }
}
