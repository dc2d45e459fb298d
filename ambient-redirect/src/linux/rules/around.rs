//! What goes around the proxy: a pod may have as much of it as it likes, and no more than a part of it is held at a time.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use ambient_core::ports;

use super::{ApplyError, Inside, is_marked, opened::direction};
use crate::{
    netlink::{Asked, Connection, Error, Pages, Progress, STATUS_DNAT, Tracked},
    plan::{IpFamily, KEPT_MARK, MARK_MASK, PROBE_SOURCES, REPLY_MARK},
    pods::{Direction, Kept},
};

/// Source and destination.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// A connection of the pod's processes to or from elsewhere that goes around the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Outsider {
    pub(crate) connection: Connection,
    pub(crate) direction: Direction,
    /// It bears the mark of those that are kept.
    pub(crate) kept: bool,
    /// Its ends as the kernel tracks them, if it does.
    pub(super) tracked: Option<Ends>,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// What the kernel tracks, and redirects nowhere. Nothing where nothing is tracked.
    Tracked,
    /// Besides that what stands and whose other end in this namespace is none of the proxy's sockets, whatever the kernel has tracked of
    /// it: when rules are taken away it tracks no more, and forgets. Which of that is kept is not known here.
    ///
    /// Of a connection that is captured the other end is here: what the pod opened comes to a port of capture from the pod's socket, what
    /// came to it was opened by the proxy from the client's address.
    All,
}

impl Outsider {
    /// Whether the kernel tracks it.
    pub(crate) fn is_tracked(&self) -> bool {
        self.tracked.is_some()
    }

    /// The family of its addresses.
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(self.connection.local.ip())
    }

    /// As one that is kept, and was known as such `before` or becomes so `now`. Who opened it stays as it was first told: a server
    /// may close its listener meanwhile.
    pub(crate) fn kept(&self, before: Option<&Kept>, now: SystemTime) -> Kept {
        Kept {
            direction: before.map_or(self.direction, |before| before.direction),
            local: self.connection.local,
            remote: self.connection.remote,
            since: before.map_or(now, |before| before.since),
            device: self.connection.device,
            cookie: self.connection.cookie,
        }
    }
}

impl Inside {
    /// Goes through what goes around the proxy: all of it, so many of the pod's sockets at a time, in the order of their cookies.
    ///
    /// # Errors
    /// When the kernel refuses, or what `deal` gives.
    pub(crate) fn around(
        &mut self,
        sought: Sought,
        at_once: usize,
        deal: impl FnMut(&mut Self, Vec<Outsider>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let own = self.own_addresses()?;
        self.around_of(&own, sought, at_once, deal)
    }

    /// As [`Inside::around`], of a namespace that has these addresses.
    pub(super) fn around_of(
        &mut self,
        own: &HashSet<IpAddr>,
        sought: Sought,
        at_once: usize,
        mut deal: impl FnMut(&mut Self, Vec<Outsider>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let mut pages = Pages::of(at_once);
        while !pages.is_over() {
            let page = self.outsiders(&mut pages, own, sought)?;
            deal(self, page)?;
        }
        Ok(())
    }

    /// How much of each family goes around the proxy.
    pub(super) fn count_around(&mut self, own: &HashSet<IpAddr>, sought: Sought) -> Result<HashMap<IpFamily, usize>, ApplyError> {
        let mut counts = HashMap::new();
        self.around_of(own, sought, MOST_HELD, |_, page| {
            page.iter().for_each(|one| *counts.entry(one.family()).or_default() += 1);
            Ok(())
        })?;
        Ok(counts)
    }

    fn outsiders(&mut self, pages: &mut Pages<u64>, own: &HashSet<IpAddr>, sought: Sought) -> Result<Vec<Outsider>, ApplyError> {
        let (live, proxys) = self.leaving(pages, own, sought)?;
        if live.is_empty() {
            return Ok(Vec::new());
        }
        let (known, listening) = (self.tracked_of(&live)?, self.listening()?);
        let outsider = |connection: Connection| {
            let tracked = of(&known, &connection).filter(|(entry, _)| goes_around(entry));
            let stands = || connection.progress == Progress::Established;
            let is_around = tracked.is_some() || sought == Sought::All && stands() && !proxys.have_other_end_of(&connection);
            is_around.then(|| Outsider {
                direction: direction(&connection, tracked, &listening, &self.clients),
                kept: tracked.is_some_and(|(entry, _)| entry.mark & MARK_MASK == KEPT_MARK),
                tracked: tracked.map(|(entry, _)| (entry.source, entry.destination)),
                connection,
            })
        };
        Ok(live.into_iter().filter_map(outsider).collect())
    }

    /// The next of the connections of the pod's processes to and from elsewhere, captured or not; and the proxy's sockets, where it is
    /// sought what has none of them. In one walk, in which the
    /// pod's sockets come before the proxy's, which may be of IPv6: what ends meanwhile is missing at the other end only.
    pub(super) fn leaving(
        &mut self,
        pages: &mut Pages<u64>,
        own: &HashSet<IpAddr>,
        sought: Sought,
    ) -> Result<(Vec<Connection>, Proxys), ApplyError> {
        let begin = || (pages.next(), Proxys::default());
        let (page, proxys) = self
            .sockets
            .gather_connections(Asked::Opener, begin, |(page, proxys), connection| {
                match is_marked(connection.mark) {
                    true if sought == Sought::All => proxys.take(&connection)?,
                    false if leaves(&connection, own) => page.take(connection.cookie, connection),
                    _ => (),
                }
                Ok(())
            })?;
        Ok((pages.turn(page), proxys))
    }

    /// What the kernel tracks of these connections. It is listed only if there is something, as that takes a walk through what it tracks
    /// anywhere.
    pub(super) fn tracked_of(&mut self, live: &[Connection]) -> Result<HashMap<Ends, Tracked>, ApplyError> {
        if live.is_empty() || self.tracks_nothing() {
            return Ok(HashMap::new());
        }
        let both = |c: &Connection| [(c.local, c.remote), (c.remote, c.local)];
        let ends: HashSet<Ends> = live.iter().flat_map(both).collect();
        let known = self.conntrack.gather_connections(HashMap::new, |known, tracked| {
            let of = (tracked.source, tracked.destination);
            if ends.contains(&of) {
                known.insert(of, tracked);
            }
        });
        Ok(known?)
    }

    /// Whether the kernel tracks nothing here. One that does not count can list.
    pub(super) fn tracks_nothing(&mut self) -> bool {
        matches!(self.conntrack.count(), Ok(0))
    }
}

/// What is known of a connection, and who has opened it as that says.
pub(super) fn of<'a>(known: &'a HashMap<Ends, Tracked>, connection: &Connection) -> Option<(&'a Tracked, Direction)> {
    let (local, remote) = (connection.local, connection.remote);
    let opened = known.get(&(local, remote)).map(|entry| (entry, Direction::Outbound));
    opened.or_else(|| known.get(&(remote, local)).map(|entry| (entry, Direction::Inbound)))
}

/// The proxy's sockets in a namespace, by a number of each: there are as many as there are captured connections.
#[derive(Debug, Default)]
pub(super) struct Proxys {
    numbers: RandomState,
    ends: HashSet<u64>,
    /// The other ends of those that were accepted.
    taken_from: HashSet<u64>,
}

impl Proxys {
    fn take(&mut self, socket: &Connection) -> Result<(), Error> {
        if self.ends.len() >= PROXYS {
            return Err(Error::too_many("listing connections", "sockets with the proxy's mark", PROXYS));
        }
        self.ends.insert(self.numbers.hash_one((socket.local, socket.remote)));
        if ports::is_proxys_own(socket.local.port()) {
            self.taken_from.insert(self.numbers.hash_one(socket.remote));
        }
        Ok(())
    }

    /// Whether one of them is the other end of a connection of the pod's: that is captured.
    fn have_other_end_of(&self, connection: &Connection) -> bool {
        let (local, remote) = (connection.local, connection.remote);
        self.taken_from.contains(&self.numbers.hash_one(local)) || self.ends.contains(&self.numbers.hash_one((remote, local)))
    }
}

/// Whether a tracked connection is one around the proxy: neither redirected to it, nor made by it.
pub(super) fn goes_around(entry: &Tracked) -> bool {
    entry.status & STATUS_DNAT == 0 && entry.mark & MARK_MASK != REPLY_MARK
}

/// Whether a connection leaves the namespace, and is none of the node's probes.
fn leaves(connection: &Connection, own: &HashSet<IpAddr>) -> bool {
    let remote = connection.remote.ip();
    let probe = remote == IpAddr::from(PROBE_SOURCES.0) || remote == IpAddr::from(PROBE_SOURCES.1);
    !remote.is_loopback() && !own.contains(&remote) && !probe
}

/// So many connections of a pod are held at a time, with what is tracked of them some 50 MiB: as many as one address can have to one
/// server, and as a small node tracks of all its pods.
pub(crate) const MOST_HELD: usize = 1 << 16;
/// So many sockets of the proxy's are known of a pod, some 16 MiB: more than a node carries of one. A pod that has more with the proxy's
/// mark has made them itself, and what goes around the proxy cannot be told from what is captured then.
const PROXYS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(local: &str, remote: &str) -> Connection {
        Connection {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            progress: Progress::Established,
            mark: None,
            opened_here: None,
            device: 0,
            cookie: 1,
        }
    }

    #[test]
    fn a_connection_is_captured_where_its_other_end_is_the_proxys() {
        // The proxy took one from port 50000, and opened one to the application for 10.0.0.9.
        let mut proxys = Proxys::default();
        for (local, remote) in [("127.0.0.1:15001", "10.0.0.2:50000"), ("10.0.0.9:41000", "10.0.0.2:8080")] {
            proxys.take(&connection(local, remote)).unwrap();
        }
        let captured = |local: &str, remote: &str| proxys.have_other_end_of(&connection(local, remote));
        assert!(captured("10.0.0.2:50000", "10.0.0.8:80"));
        assert!(captured("10.0.0.2:8080", "10.0.0.9:41000"));
        assert!(!captured("10.0.0.2:50001", "10.0.0.8:80"));
        assert!(!captured("10.0.0.2:8080", "10.0.0.9:41001"));
    }

    #[test]
    fn more_of_the_proxys_sockets_than_are_known_are_an_error() {
        let mut proxys = Proxys {
            ends: (0..PROXYS as u64 - 1).collect(),
            ..Proxys::default()
        };
        let one = connection("127.0.0.1:15001", "10.0.0.2:50000");
        proxys.take(&one).unwrap();
        let error = proxys.take(&one).unwrap_err();
        assert!(error.too_large() && error.to_string().contains("1048576 sockets"), "{error}");
    }

    #[test]
    fn what_stays_inside_and_probes_are_left_alone() {
        let own = HashSet::from([IpAddr::from([10, 0, 0, 2])]);
        for (remote, leaves_it) in [
            ("10.0.0.9:80", true),
            ("10.0.0.2:80", false),
            ("127.0.0.1:80", false),
            ("169.254.7.127:80", false),
        ] {
            assert_eq!(leaves(&connection("10.0.0.2:50000", remote), &own), leaves_it, "{remote}");
        }
    }
}
