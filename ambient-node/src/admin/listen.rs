//! The ports that pages are served at.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use crate::{accept::has_no_such_address, builder::unblock};

/// Why pages cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// A port is not to be had.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        address: SocketAddr,
        what: &'static str,
        flag: &'static str,
        source: io::Error,
    },
    /// The admin pages change the node and tell all of it: they are for who is on it.
    #[error("the admin pages are served on a loopback address alone, and {0} is none")]
    NotLoopback(SocketAddr),
}

/// What to do where an address cannot be had that a flag names.
pub(crate) fn otherwise(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("; is another node proxy running here? (choose another port with {flag})"),
        io::ErrorKind::AddrNotAvailable => format!(": no device of this machine has that address; choose another with {flag}"),
        _ => format!("; choose another address with {flag}"),
    }
}

/// Where pages are to be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) metrics: SocketAddr,
    pub(crate) readiness: SocketAddr,
    /// A loopback address.
    pub(crate) admin: SocketAddr,
    pub(crate) ipv6: bool,
}

/// Listeners that whoever embeds the node has opened.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) metrics: Option<TcpListener>,
    pub(crate) readiness: Option<TcpListener>,
    pub(crate) admin: Option<TcpListener>,
}

impl Given {
    /// What one of them is for, if there is any.
    pub(crate) fn any(&self) -> Option<&'static str> {
        let each = [(&self.metrics, METRICS), (&self.readiness, READINESS), (&self.admin, ADMIN)];
        each.into_iter().find_map(|(given, what)| given.as_ref().map(|_| what))
    }
}

/// Listeners for every kind of page.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) metrics: TcpListener,
    pub(crate) readiness: TcpListener,
    /// The first, and where that is 127.0.0.1 the same port of `::1` too, where there is one.
    pub(crate) admin: Vec<TcpListener>,
}

impl Doors {
    /// Takes the ports, in the network namespace of the calling thread, but for those that were given.
    pub(crate) fn open(wanted: At, given: Given) -> Result<Self, OpenError> {
        let at = given.admin.as_ref().and_then(|listener| listener.local_addr().ok());
        let at = at.unwrap_or(wanted.admin);
        if !at.ip().is_loopback() {
            return Err(OpenError::NotLoopback(at));
        }
        let listen = |given: Option<TcpListener>, address, what, flag| {
            given.map_or_else(|| bind(address), unblock).map_err(|source| OpenError::Listen {
                address,
                what,
                flag,
                source,
            })
        };
        let is_given = given.admin.is_some();
        let mut admin = vec![listen(given.admin, wanted.admin, ADMIN, "--admin")?];
        let port = admin[0].local_addr().map_or_else(|_| wanted.admin.port(), |at| at.port());
        if !is_given && wanted.ipv6 && wanted.admin.ip() == Ipv4Addr::LOCALHOST {
            // `localhost` is either, for some clients; that somebody else has this one harms nobody.
            admin.extend(bind(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)).ok());
        }
        Ok(Self {
            metrics: listen(given.metrics, wanted.metrics, METRICS, "--metrics")?,
            readiness: listen(given.readiness, wanted.readiness, READINESS, "--readiness")?,
            admin,
        })
    }
}

/// Listens in the node's own namespace; on IPv4 alone where there is no IPv6.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = match TcpListener::bind(address) {
        Err(error) if address.ip().is_unspecified() && has_no_such_address(&error) => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    }?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

/// What the pages are called.
const METRICS: &str = "metrics";
const READINESS: &str = "readiness";
const ADMIN: &str = "the admin pages";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_an_address_is_told_by_why_it_cannot_be_had() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let told = |address: SocketAddr| otherwise(&TcpListener::bind(address).unwrap_err(), "--metrics");
        let taken = told(first.local_addr().unwrap());
        assert!(
            taken.contains("another node proxy") && taken.contains("another port with --metrics"),
            "{taken}"
        );
        // Of the addresses that are for documentation nobody has one.
        let nobodys = told("192.0.2.1:0".parse().unwrap());
        assert!(
            nobodys.contains("no device of this machine") && !nobodys.contains("proxy"),
            "{nobodys}"
        );
    }
}
