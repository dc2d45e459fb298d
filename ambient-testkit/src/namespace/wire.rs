//! Veth pairs, addresses and routes.

use std::{fs, io, net::IpAddr, os::fd::AsFd, thread, time::Duration};

use ambient_redirect::netlink::{self, Batch, Family, Nftables, Route, Routing};
use ipnet::IpNet;

use super::{Namespace, NamespaceError};
use crate::sys;

/// One end of a wire: an interface in a namespace, and its addresses.
#[derive(Debug, Clone)]
pub struct End<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) interface: &'a str,
    addresses: Vec<IpNet>,
}

impl<'a> End<'a> {
    /// An interface of this name, to be made in this namespace.
    pub fn new(namespace: &'a Namespace, interface: &'a str) -> Self {
        Self {
            namespace,
            interface,
            addresses: Vec::new(),
        }
    }

    /// Gives it an address, with the length of the prefix that is reached through it. It is usable at once: there is
    /// no duplicate address detection.
    pub fn address(mut self, address: impl Into<IpNet>) -> Self {
        self.addresses.push(address.into());
        self
    }
}

/// Joins two namespaces by a veth pair, both ends up.
///
/// # Errors
/// When a name is taken, an address is refused, or the kernel has no veth.
pub fn link(a: &End<'_>, b: &End<'_>) -> Result<(), NamespaceError> {
    a.namespace.inside("making a veth pair", || {
        open()?
            .add_veth(a.interface, b.interface, Some(b.namespace.as_fd()))
            .map_err(plain)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EOPNOTSUPP) => io::Error::new(io::ErrorKind::Unsupported, "the kernel has no veth: `modprobe veth` as root"),
                _ => e,
            })
    })?;
    for end in [a, b] {
        end.namespace.inside("setting an interface up", || end.set_up())?;
    }
    // Only now that both are up have they a carrier.
    for end in [a, b] {
        end.namespace.inside("waiting for an interface", || {
            sys::settle_carrier(end.interface)?;
            await_neighbours(end.interface, &end.addresses)
        })?;
    }
    Ok(())
}

impl End<'_> {
    pub(super) fn set_up(&self) -> io::Result<()> {
        let mut routing = open()?;
        let index = routing.link(self.interface).map_err(plain)?.index;
        for address in &self.addresses {
            routing.add_address(index, address.addr(), address.prefix_len()).map_err(plain)?;
        }
        routing.set_up(index).map_err(plain)
    }
}

/// Waits until an interface works with IPv6 as it should, if one of its addresses is of that family.
///
/// The kernel takes an address at once, but joins the group in which neighbours ask for it (RFC 4861, 4.3) and gives
/// the interface its link-local address, from which a router asks, a moment later. A first packet that comes before is
/// lost, and the next one comes a second later.
fn await_neighbours(interface: &str, addresses: &[IpNet]) -> io::Result<()> {
    let group = |address: &IpNet| match address.addr() {
        IpAddr::V6(v6) => v6
            .octets()
            .last_chunk::<3>()
            .map(|[a, b, c]| format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}")),
        IpAddr::V4(_) => None,
    };
    let groups: Vec<String> = addresses.iter().filter_map(group).collect();
    for _ in 0..2_000 {
        // Number, name, group, and more.
        let joined = fs::read_to_string("/proc/thread-self/net/igmp6")?;
        let joined: Vec<Vec<&str>> = joined.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
        // Address, number, prefix, scope, flags, name.
        let held = fs::read_to_string("/proc/thread-self/net/if_inet6")?;
        let is_settled = |fields: &[&str]| {
            const TENTATIVE: u8 = 0x40;
            let [_, _, _, "20", flags, name] = fields else { return false };
            *name == interface && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & TENTATIVE == 0)
        };
        let has_local = || {
            held.lines()
                .any(|line| is_settled(&line.split_ascii_whitespace().collect::<Vec<_>>()))
        };
        let has_joined = |group: &String| {
            joined
                .iter()
                .any(|fields| fields.get(1) == Some(&interface) && fields.get(2) == Some(&group.as_str()))
        };
        if groups.is_empty() || groups.iter().all(has_joined) && has_local() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{interface} does not answer for its addresses"),
    ))
}

impl Namespace {
    /// Adds an address to an interface that is joined to another; see [`End::address`].
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn add_address(&self, interface: &str, address: impl Into<IpNet>) -> Result<(), NamespaceError> {
        let address = address.into();
        self.inside("adding an address", || {
            let mut routing = open()?;
            let index = routing.link(interface).map_err(plain)?.index;
            routing.add_address(index, address.addr(), address.prefix_len()).map_err(plain)?;
            await_neighbours(interface, &[address])
        })
    }

    /// Adds a route to `destination` through an interface, and through the router `via` where one is named. The router
    /// need not lie in a network of the interface.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn add_route(&self, destination: impl Into<IpNet>, via: Option<IpAddr>, interface: &str) -> Result<(), NamespaceError> {
        let destination = destination.into();
        self.inside("adding a route", || {
            let mut routing = open()?;
            let index = routing.link(interface).map_err(plain)?.index;
            let route = Route::to(destination).dev(index);
            let route = if let Some(via) = via { route.via(via).onlink() } else { route };
            routing.add_route(&route).map_err(plain)
        })
    }

    /// Takes an interface away, and with a veth its other end.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn delete_interface(&self, interface: &str) -> Result<(), NamespaceError> {
        self.inside("deleting an interface", || {
            let mut routing = open()?;
            let index = routing.link(interface).map_err(plain)?.index;
            routing.delete_link(index).map_err(plain)
        })
    }
}

/// Brings the loopback device of the calling thread's namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    open()?.set_loopback_up().map_err(plain)
}

/// Makes a table in the calling thread's namespace and removes it.
pub(crate) fn prove_nftables() -> io::Result<()> {
    const PROBE: &str = "ambient-probe";
    let mut nftables = Nftables::open().map_err(plain)?;
    let mut batch = Batch::default();
    batch.add_table(Family::Inet, PROBE, b"");
    nftables.commit(batch, None).map_err(plain)?;
    let mut batch = Batch::default();
    batch.delete_table(Family::Inet, PROBE);
    nftables.commit(batch, None).map_err(plain)
}

pub(super) fn open() -> io::Result<Routing> {
    Routing::open().map_err(plain)
}

/// The kernel's error number where there is one, so that the reason can be told from it.
pub(super) fn plain(error: netlink::Error) -> io::Error {
    error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}
