//! One netlink socket: requests, listings, batches.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect,
    netlink::{NETFILTER, SOCK_DIAG, SocketAddrNetlink},
    recv, send, socket_with,
};

use crate::linux::option;

use super::{
    Error, TIMEOUT,
    codec::{self, HEADER, Message, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_MULTI, Writer},
};

/// Which family of netlink a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Route,
    Netfilter,
    SockDiag,
}

/// A message of a listing, taken out of its datagram.
pub(crate) type Listed = (u16, Vec<u8>);

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// How long an answer may take, of however many datagrams.
    patience: Duration,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace, subscribed to `groups` (a bit mask).
    pub(crate) fn open(speaks: Speaks, groups: u32) -> Result<Self, Error> {
        let what = "opening a netlink socket";
        let protocol: Option<Protocol> = match speaks {
            Speaks::Route => None, // NETLINK_ROUTE is protocol 0
            Speaks::Netfilter => Some(NETFILTER),
            Speaks::SockDiag => Some(SOCK_DIAG),
        };
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map_err(|e| Error::new(what, e))?;
        bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(|e| Error::new(what, e))?;
        // To the kernel: what anybody else in the namespace sends to this socket alone is refused to him. He could answer in its place.
        connect(&fd, &SocketAddrNetlink::new(0, 0)).map_err(|e| Error::new(what, e))?;
        let reference = socket2::SockRef::from(&fd);
        reference.set_read_timeout(Some(TIMEOUT)).map_err(|e| Error::new(what, e))?;
        reference.set_write_timeout(Some(TIMEOUT)).map_err(|e| Error::new(what, e))?;
        for name in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // Kernels before 4.12 lack them; what they give is only a better error text.
            let _ = option::set_int(fd.as_fd(), libc::SOL_NETLINK, name, 1);
        }
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
            patience: PATIENCE,
        })
    }

    /// One that speaks with a kernel of a test's.
    #[cfg(test)]
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
            patience: PATIENCE,
        }
    }

    /// Sends one message and waits for its answer.
    pub(crate) fn request(&mut self, what: &str, mut message: Writer) -> Result<(), Error> {
        message.ask_ack();
        let first = self.send(what, message)?;
        self.receive(what, |m| match m.kind {
            NLMSG_ERROR if m.sequence == first => Some(outcome(what, m)),
            _ => None,
        })
    }

    /// Sends many messages that do not depend on each other, and gives what was refused of them, in their order.
    pub(crate) fn many(&mut self, what: &str, mut messages: Writer) -> Result<Vec<Error>, Error> {
        // One answer for all; those that are refused are told of by themselves.
        messages.ask_ack();
        let last = self.sequence.wrapping_add(messages.messages()).wrapping_sub(1);
        self.send(what, messages)?;
        let mut refused = Vec::new();
        self.receive(what, |m| {
            if m.kind != NLMSG_ERROR {
                return None;
            }
            refused.extend(outcome(what, m).err());
            (m.sequence == last).then_some(Ok(()))
        })?;
        Ok(refused)
    }

    /// Sends one message and gives the one that answers it.
    pub(crate) fn query(&mut self, what: &str, message: Writer) -> Result<Listed, Error> {
        let first = self.send(what, message)?;
        self.receive(what, |m| {
            if m.sequence != first {
                return None;
            }
            match m.kind {
                NLMSG_ERROR => Some(match outcome(what, m) {
                    Ok(()) => Err(Error::malformed(what)),
                    Err(e) => Err(e),
                }),
                _ => Some(Ok((m.kind, m.payload.to_vec()))),
            }
        })
    }

    /// Asks for a listing, and again where a change has overtaken it, and holds no more of it than what is made of each message in turn,
    /// from what `begin` gives on.
    pub(crate) fn gather<T>(
        &mut self,
        what: &str,
        ask: impl Fn() -> Writer,
        begin: impl Fn() -> T,
        mut take: impl FnMut(&mut T, u16, &[u8]) -> Result<(), Error>,
    ) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            let mut gathered = begin();
            match self.show(what, ask(), |m| take(&mut gathered, m.kind, m.payload)) {
                Err(e) if e.interrupted() && tries < LISTINGS => tries += 1,
                result => return result.map(|()| gathered),
            }
        }
    }

    /// Sends a request for a listing and gives all of it; what has more bytes than `most` is an error, for which [`Error::too_large`]
    /// holds. What is listed may be as much as somebody else likes. The rest of it is not waited for: this socket is to be asked for no
    /// other listing then.
    ///
    /// A listing that a change has overtaken is an error for which [`Error::interrupted`] holds.
    pub(crate) fn list_within(&mut self, what: &str, message: Writer, most: usize) -> Result<Vec<Listed>, Error> {
        let (mut all, mut left) = (Vec::new(), most);
        self.show(what, message, |m| {
            left = left
                .checked_sub(m.payload.len() + HEADER)
                .ok_or_else(|| Error::excessive(what, most))?;
            all.push((m.kind, m.payload.to_vec()));
            Ok(())
        })?;
        Ok(all)
    }

    /// As [`Socket::list_within`], and of what is longer the first so many messages; gives whether there is more.
    pub(crate) fn list_some(&mut self, what: &str, message: Writer, most: usize) -> Result<(Vec<Listed>, bool), Error> {
        let (mut all, mut more) = (Vec::new(), false);
        self.show(what, message, |m| {
            match all.len() < most {
                true => all.push((m.kind, m.payload.to_vec())),
                // What was asked for comes whole.
                false => more = true,
            }
            Ok(())
        })?;
        Ok((all, more))
    }

    /// Sends a request for a listing and shows each message of it, to its end, or to the first of which an error is made.
    fn show(&mut self, what: &str, message: Writer, mut each: impl FnMut(Message<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let first = self.send(what, message)?;
        let mut torn = false;
        self.receive(what, |m| {
            if m.sequence != first {
                return None;
            }
            torn |= m.flags & NLM_F_DUMP_INTR != 0;
            match m.kind {
                NLMSG_ERROR => Some(outcome(what, m)),
                NLMSG_DONE => Some(ended(what, m)),
                _ => match each(m) {
                    // Some answers to a listing of one thing are not marked as parts of many.
                    Ok(()) => (m.flags & NLM_F_MULTI == 0).then_some(Ok(())),
                    Err(e) => Some(Err(e)),
                },
            }
        })?;
        if torn { Err(overtaken(what)) } else { Ok(()) }
    }

    /// Sends a batch whose last message but one asks for an answer, and waits for the outcome of all of it.
    pub(crate) fn batch(&mut self, what: &str, batch: Writer, names: &[String]) -> Result<(), Error> {
        let last = self.sequence.wrapping_add(batch.messages()).wrapping_sub(2);
        let first = self.send(what, batch)?;
        let mut refused: Option<Error> = None;
        self.receive(what, |m| {
            if m.kind != NLMSG_ERROR {
                return None;
            }
            let position = m.sequence.wrapping_sub(first) as usize;
            let name = names.get(position).map_or(what, String::as_str);
            let outcome = outcome(&format!("{what}: {name}"), m);
            if m.sequence == first {
                // The whole batch was turned away: stale, or not allowed. No other answer will come.
                return Some(outcome);
            }
            if let Err(e) = outcome {
                refused.get_or_insert(e);
            }
            (m.sequence == last).then_some(Ok(()))
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// Receives one datagram and shows its messages.
    pub(crate) fn next_datagram(&mut self, what: &str, mut each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        let (_, length) = recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC).map_err(|e| Error::new(what, e))?;
        let Some(bytes) = self.buffer.get(..length) else {
            return Err(Error::new(
                what,
                io::Error::new(io::ErrorKind::InvalidData, "a datagram larger than the buffer"),
            ));
        };
        codec::messages(bytes).for_each(&mut each);
        Ok(())
    }

    /// Whether no datagram waits to be received, nor an error.
    pub(crate) fn is_quiet(&self) -> bool {
        let peeked = recv(&self.fd, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        peeked.is_err_and(|e| e == rustix::io::Errno::AGAIN)
    }

    fn send(&mut self, what: &str, message: Writer) -> Result<u32, Error> {
        let first = self.sequence;
        let (bytes, last) = message.finish(first);
        self.sequence = last.wrapping_add(1);
        send(&self.fd, &bytes, SendFlags::empty()).map_err(|e| Error::new(what, e))?;
        Ok(first)
    }

    /// Shows every message that comes until one of them settles the matter.
    fn receive<T>(&mut self, what: &str, mut each: impl FnMut(Message<'_>) -> Option<Result<T, Error>>) -> Result<T, Error> {
        let deadline = now() + self.patience;
        loop {
            let mut settled = None;
            self.next_datagram(what, |m| {
                if settled.is_none() {
                    settled = each(m);
                }
            })?;
            if let Some(settled) = settled {
                return settled;
            }
            if now() >= deadline {
                // Each datagram has its own time; this is for those that settle nothing.
                return Err(Error::new(what, io::Error::new(io::ErrorKind::TimedOut, "the answer does not end")));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "whoever waits here blocks a thread, by the kernel's time")]
fn now() -> Instant {
    Instant::now()
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// What the end of a listing says: nothing, or the errno for which it has ended, as where nobody in the kernel has what is to be listed.
pub(super) fn ended(what: &str, message: Message<'_>) -> Result<(), Error> {
    let errno = codec::read_u32(message.payload, 0).map_or(0, |n| n as i32);
    let Some(errno) = errno.checked_neg().filter(|errno| *errno > 0) else {
        return Ok(());
    };
    let words = message.payload.get(4..).and_then(|rest| codec::find(rest, NLMSGERR_ATTR_MSG));
    Err(Error::refused(what, errno, words.map(codec::read_text)))
}

fn overtaken(what: &str) -> Error {
    Error::new(
        what,
        io::Error::new(io::ErrorKind::Interrupted, "changed while it was being listed"),
    )
}

/// What an NLMSG_ERROR says: an errno of 0 is a yes.
pub(super) fn outcome(what: &str, message: Message<'_>) -> Result<(), Error> {
    let Some(errno) = codec::read_u32(message.payload, 0).map(|n| n as i32) else {
        return Err(Error::malformed(what));
    };
    if errno == 0 {
        return Ok(());
    }
    // Errors are told as negative numbers.
    let Some(errno) = errno.checked_neg().filter(|errno| *errno > 0) else {
        return Err(Error::malformed(what));
    };
    // The request's header follows, all of the request unless the answer is capped, then attributes with words.
    let copied = codec::read_u32(message.payload, 4).unwrap_or(0) as usize;
    let skip = if message.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        copied.next_multiple_of(4)
    };
    let words = message
        .payload
        .get(4 + skip..)
        .and_then(|rest| codec::find(rest, NLMSGERR_ATTR_MSG));
    Err(Error::refused(what, errno, words.map(codec::read_text)))
}

/// A listing that changes have overtaken is asked for again so many times.
const LISTINGS: usize = 10;
/// A listing of all that a busy node tracks takes a fraction of it.
const PATIENCE: Duration = TIMEOUT.saturating_mul(2);
/// Larger than any datagram of the kernel's: a listing read in smaller pieces can lose rules without a sign.
const DATAGRAM: usize = 64 * 1024;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests;
