//! What the kernel tells by itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::{
    Error,
    socket::{Socket, Speaks},
};

/// Changes of one network namespace, as they happen.
///
/// Not reading for long loses events; the kernel says so once with ENOBUFS. After any error, look at everything again.
#[derive(Debug)]
pub struct Events(Socket);

/// That something changed; what it is now is to be listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// Tables, chains or rules of nftables.
    pub nftables: bool,
    /// Routing rules, routes, addresses or devices.
    pub routing: bool,
}

impl Events {
    /// Subscribes to changes of nftables, in the calling thread's network namespace. Never blocks afterwards.
    pub fn nftables() -> Result<Self, Error> {
        Self::open(Speaks::Netfilter, group(NFNLGRP_NFTABLES))
    }

    /// Subscribes to changes of routes and routing rules, in the calling thread's network namespace, and of the devices and
    /// addresses with which routes may go without a word. Never blocks afterwards.
    pub fn routing() -> Result<Self, Error> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV6_RULE,
        ];
        Self::open(Speaks::Route, groups.into_iter().map(group).fold(0, |all, one| all | one))
    }

    /// Takes all that has come.
    ///
    /// # Errors
    /// With errno EAGAIN when nothing has come; with ENOBUFS when events were lost.
    pub fn take(&mut self) -> Result<Notice, Error> {
        let mut notice = Notice::default();
        let mut first = true;
        loop {
            let taken = self.0.next_datagram("receiving events", |m| match m.kind {
                RTM_FIRST..RTM_END => notice.routing = true,
                kind if kind >> 8 == NFNL_SUBSYS_NFTABLES => notice.nftables = true,
                _ => (),
            });
            match taken {
                Ok(()) => first = false,
                Err(_) if !first => return Ok(notice),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether nothing has come that is not taken.
    pub(crate) fn is_quiet(&self) -> bool {
        self.0.is_quiet()
    }

    fn open(speaks: Speaks, groups: u32) -> Result<Self, Error> {
        let socket = Socket::open(speaks, groups)?;
        rustix::io::ioctl_fionbio(socket.as_fd(), true).map_err(|e| Error::new("opening a netlink socket", e))?;
        Ok(Self(socket))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn group(number: u32) -> u32 {
    1 << (number - 1)
}

const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
/// The messages of devices, addresses, routes and rules have the numbers 16 to 34.
const RTM_FIRST: u16 = 16;
const RTM_END: u16 = 36;
