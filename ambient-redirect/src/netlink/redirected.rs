//! ctnetlink: where a datagram was going before it was redirected.

use std::net::SocketAddr;

use super::{
    Error,
    codec::{Writer, fixed},
    conntrack::{self, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, IPCTNL_MSG_CT_GET},
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
    let mut message = conntrack::begin(IPCTNL_MSG_CT_GET, 0, at);
    conntrack::tuple(&mut message, CTA_TUPLE_REPLY, IPPROTO_UDP, at, client);
    message
}

/// Where the first datagram of a connection was sent to.
pub(super) fn destination(attributes: &[u8]) -> Option<SocketAddr> {
    conntrack::read_tuple(attributes, CTA_TUPLE_ORIG).map(|(_, _, destination)| destination)
}

const IPPROTO_UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec;

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
