//! What is done to a namespace at the edges of a pod's life: refused, joined without harm, let go without harm.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, SystemTime},
};

use ambient_core::ports;

use super::{
    ApplyError, Difference, Inside, Lists, Mark, add_rules, is_marked, named_as_ours, of_ours, opened::direction, owner_of, replacement,
    same_chains,
};
use crate::{
    netlink::{Batch, Connection, Entry, Family, Progress, STATUS_ANSWERED, STATUS_DNAT, STATUS_SNAT, Tracked, Transport},
    plan::{IpFamily, KEPT_MARK, MARK_MASK, PROBE_SOURCES, Plan, REPLY_MARK},
    pods::{Direction, Kept},
};

/// Source and destination.
type Ends = (SocketAddr, SocketAddr);

impl Inside {
    /// Puts the tables of a plan in force, in one transaction, and touches no other of ours, and no route. Nothing is done
    /// where they stand.
    ///
    /// # Errors
    /// When a table of such a name is somebody else's, or the kernel refuses.
    pub(crate) fn add(&mut self, plan: &Plan, mark: &Mark) -> Result<(), ApplyError> {
        let names = names_of(plan);
        let differs = self.tables(plan, mark)?.into_iter().any(|d| match d {
            Difference::Table(name) | Difference::ForeignTable(name) => names.contains(&name),
            _ => false,
        });
        if differs {
            self.transaction(|tables, chains| replacement(plan, mark, &names, tables, chains))?;
        }
        Ok(())
    }

    /// Puts a plan in force in a namespace whose connections are to go on: the kernel tracks them before anything of them is
    /// translated, and remembers those that it did not see begin. The rules come in one transaction after that. Gives what was
    /// not there before, and how many connections could not be kept.
    ///
    /// # Errors
    /// As [`Inside::apply`].
    pub(crate) fn join(&mut self, plan: &Plan, mark: &Mark) -> Result<Joined, ApplyError> {
        let there = self.nftables.tables()?;
        if let Some((table, _)) = named_as_ours(&there).find(|(_, table)| owner_of(table).is_none()) {
            return Err(ApplyError::Foreign { table });
        }
        if named_as_ours(&there).next().is_none() {
            let tracking = Plan::tracking();
            self.transaction(|tables, chains| replacement(&tracking, mark, &names_of(&tracking), tables, chains))?;
        }
        let joined = self.join_tracked(plan, mark);
        if joined.is_err() {
            // Nothing is to stay of what did not come about.
            let _ = self.transaction(|tables, _| {
                let mut batch = Batch::default();
                for (name, table) in named_as_ours(tables) {
                    if owner_of(table).is_some() && Plan::tracking().tables.iter().any(|t| t.name == name) {
                        batch.delete_table(Family::Inet, name);
                    }
                }
                Ok(batch)
            });
        }
        joined
    }

    fn join_tracked(&mut self, plan: &Plan, mark: &Mark) -> Result<Joined, ApplyError> {
        let own = self.own_addresses()?;
        let mut live = self.sockets.connections()?;
        live.retain(|c| !is_marked(c.mark) && leaves(c, &own));
        let listening = self.listening()?;
        let with_way = |c: Connection| {
            let way = direction(&c, None, &listening, &self.clients);
            (c, way)
        };
        let live: Vec<_> = live.into_iter().map(with_way).collect();
        let (told, seen) = self.by_tracking(&live)?;
        let coming = plan.coming();
        let mut joined = self.kept_unless_it_fails(told, &seen, |inside| inside.put(&coming, mark))?;
        // What was opened before and is still underway passed the place of redirection: it must not meet the guard.
        thread::sleep(UNDERWAY);
        self.forget_outlived(&own)?;
        let (before, after) = (names_of(&coming), names_of(plan));
        let only = |those: &[&'static str], others: &[&'static str]| -> Vec<&'static str> {
            those.iter().filter(|name| !others.contains(name)).copied().collect()
        };
        let (come, gone) = (only(&after, &before), only(&before, &after));
        let others = [&come[..], &gone[..]].concat();
        self.transaction(|tables, chains| replacement(plan, mark, &others, tables, chains))?;
        joined.added.extend(come.into_iter().map(Difference::Table));
        Ok(joined)
    }

    /// Forgets what is remembered of connections whose end was not seen: nothing was tracked then, or only their last packets were,
    /// or the kernel was told of them in that moment. Whoever had their addresses and ports next would pass for one of them, and be
    /// refused.
    fn forget_outlived(&mut self, own: &HashSet<IpAddr>) -> Result<(), ApplyError> {
        // Before the sockets: what is remembered, and has none by then, has ended.
        let remembered = self.remembered()?;
        if remembered.is_empty() {
            return Ok(());
        }
        let live = self.sockets.connections()?;
        for entry in outlived(&remembered, &live, own) {
            let (source, destination) = (entry.source, entry.destination);
            let (local, remote) = if own.contains(&source.ip()) {
                (source, destination)
            } else {
                (destination, source)
            };
            self.forget_unheld(local, remote)?;
        }
        Ok(())
    }

    /// Forgets what is remembered of a connection that has ended and was not seen to. Of one that was nothing is in anybody's way: a
    /// new connection with its addresses and ports takes the entry's place, and with it its identifier. To forget that one would
    /// take its redirection from under it; therefore all of it is asked again in the last moment.
    fn forget_unheld(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<(), ApplyError> {
        let Some(entry) = self.conntrack.connection(local, remote)?.filter(is_in_the_way) else {
            return Ok(());
        };
        if self.sockets.holds(local, remote)? {
            return Ok(());
        }
        match self.conntrack.forget_entry(&entry) {
            Err(e) if !e.missing() => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// What the kernel tracks here; it is listed only if there is something, as that takes a walk through what it tracks anywhere.
    fn remembered(&mut self) -> Result<Vec<Tracked>, ApplyError> {
        match self.conntrack.count() {
            Ok(0) => Ok(Vec::new()),
            // A kernel that does not count can list.
            _ => Ok(self.conntrack.connections()?),
        }
    }

    /// Forgets connections that have ended where the kernel was told of them and may not have seen the end: else it would
    /// remember them for days, and refuse whoever has their addresses and ports next. What is redirected is another one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn forget_ended(&mut self, ended: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> Result<(), ApplyError> {
        for (local, remote) in ended {
            self.forget_unheld(local, remote)?;
        }
        Ok(())
    }

    /// Forgets what is remembered of DNS queries of the pod's by UDP that go around the proxy: as long as a socket goes on asking, its
    /// next datagrams would be the same to the kernel, and go where its first has gone. Of nobody's translation but ours is anything
    /// forgotten, nor of what the proxy asks itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn forget_queries(&mut self) -> Result<(), ApplyError> {
        // A kernel that does not count can list.
        if matches!(self.conntrack.count(), Ok(0)) {
            return Ok(());
        }
        let own = self.own_addresses()?;
        let mut asked = self.conntrack.datagrams_to(DNS)?;
        asked.retain(|(source, destination)| own.contains(&source.ip()) && !destination.ip().is_loopback());
        self.conntrack.forget_datagrams(&asked)?;
        Ok(())
    }

    /// Has no new connection captured; what is captured stays so, as NAT stays hooked, and the way back to the proxy stays. Two
    /// transactions: what refuses goes first, as the kernel asks a deleted chain for some microseconds more, and would refuse
    /// what is redirected no longer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn release(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        // What is for speed alone stands in the way of nothing.
        let segments = self.clear_segments();
        let leaving = plan.leaving();
        let stays = |name: &str| leaving.tables.iter().find(|t| t.name == name);
        self.transaction(|tables, chains| {
            let mut batch = Batch::default();
            for table in of_ours(tables) {
                if stays(&table.name).is_none_or(|stays| !same_chains(stays, chains)) {
                    batch.delete_table(Family::Inet, &table.name);
                }
            }
            Ok(batch)
        })?;
        thread::sleep(UNDERWAY);
        self.transaction(|tables, chains| {
            let mut batch = Batch::default();
            for (name, _) in named_as_ours(tables).filter(|(_, table)| owner_of(table).is_some()) {
                if let Some(stays) = stays(name).filter(|stays| same_chains(stays, chains)) {
                    batch.flush_table(Family::Inet, name);
                    add_rules(&mut batch, stays);
                }
            }
            Ok(batch)
        })?;
        segments
    }

    /// The connections of the pod's processes to and from elsewhere that go around the proxy, and whether they bear the mark
    /// of those that are kept. Empty where nothing is tracked.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn outsiders(&mut self) -> Result<Vec<Outsider>, ApplyError> {
        let own = self.own_addresses()?;
        self.outsiders_of(&own)
    }

    /// As [`Inside::outsiders`], of a namespace that has these addresses.
    pub(super) fn outsiders_of(&mut self, own: &HashSet<IpAddr>) -> Result<Vec<Outsider>, ApplyError> {
        let mut live = self.sockets.connections()?;
        live.retain(|c| !is_marked(c.mark) && leaves(c, own));
        if live.is_empty() {
            return Ok(Vec::new());
        }
        let tracked = self.conntrack.connections()?;
        let known: HashMap<(SocketAddr, SocketAddr), &Tracked> = tracked.iter().map(|t| ((t.source, t.destination), t)).collect();
        let listening = self.listening()?;
        let clients = &self.clients;
        let outsider = |connection: Connection| {
            let ends = [
                (connection.local, connection.remote, Direction::Outbound),
                (connection.remote, connection.local, Direction::Inbound),
            ];
            let (entry, first) = ends.into_iter().find_map(|(a, b, way)| Some((*known.get(&(a, b))?, way)))?;
            goes_around(entry).then(|| Outsider {
                direction: direction(&connection, Some((entry, first)), &listening, clients),
                kept: entry.mark & MARK_MASK == KEPT_MARK,
                tuple: (entry.source, entry.destination),
                connection,
            })
        };
        Ok(live.into_iter().filter_map(outsider).collect())
    }

    /// Whether a TCP socket is in the namespace that is not a proxy's: something runs there, or did a moment ago.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn has_sockets(&mut self) -> Result<bool, ApplyError> {
        let listens = self.sockets.listeners(Transport::Tcp)?.iter().any(|l| !is_marked(l.mark));
        Ok(listens || self.sockets.connections()?.iter().any(|c| !is_marked(c.mark)))
    }

    /// Whether the kernel tells which connections it tracks.
    ///
    /// # Errors
    /// When it does not.
    pub(in crate::linux) fn tracked(&mut self) -> Result<(), ApplyError> {
        self.conntrack.connections()?;
        Ok(())
    }

    /// The connections of the pod's processes to and from elsewhere whose other end in this namespace is none of the proxy's
    /// sockets, whatever the kernel has tracked of them: when rules are taken away it tracks no more, and forgets. Which of them
    /// are kept is not known here.
    ///
    /// Of a connection that is captured the other end is here: what the pod opened comes to a port of capture from the pod's
    /// socket, what came to it was opened by the proxy from the client's address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn around(&mut self) -> Result<Vec<(Connection, Direction)>, ApplyError> {
        let own = self.own_addresses()?;
        self.around_of(&own)
    }

    /// As [`Inside::around`], of a namespace that has these addresses.
    pub(super) fn around_of(&mut self, own: &HashSet<IpAddr>) -> Result<Vec<(Connection, Direction)>, ApplyError> {
        // The pod's sockets before the proxy's, which may be of IPv6: what ends meanwhile is missing at the other end only.
        let live = self.sockets.connections()?;
        let proxys: HashSet<(SocketAddr, SocketAddr)> = live.iter().filter(|c| is_marked(c.mark)).map(|c| (c.local, c.remote)).collect();
        let taken_from: HashSet<SocketAddr> = proxys
            .iter()
            .filter(|(local, _)| ports::is_proxys_own(local.port()))
            .map(|(_, remote)| *remote)
            .collect();
        let listening = self.listening()?;
        let is_around = |c: &Connection| {
            c.progress == Progress::Established && !is_marked(c.mark) && leaves(c, own) && !is_captured(c, &proxys, &taken_from)
        };
        let outside = live.into_iter().filter(is_around);
        Ok(outside
            .map(|c| {
                let direction = direction(&c, None, &listening, &self.clients);
                (c, direction)
            })
            .collect())
    }

    /// As [`Inside::apply`]; before that the kernel is told of those among what goes around the proxy that it tracks no longer and that
    /// are to be kept: after it their next packets would be the first of new ones, and captured.
    ///
    /// # Errors
    /// As [`Inside::apply`]; nothing is kept then that was not before.
    pub(crate) fn apply_keeping(
        &mut self,
        plan: &Plan,
        mark: &Mark,
        is_kept: impl Fn(&Connection, Direction) -> bool,
    ) -> Result<Joined, ApplyError> {
        let mut around = self.around()?;
        around.retain(|(c, way)| is_kept(c, *way));
        let (entries, _) = self.by_tracking(&around)?;
        self.kept_unless_it_fails(entries, &[], |inside| inside.put(plan, mark))
    }

    /// Has the kernel remember as kept what it is told of, and what it follows already, while something is put in force; where that
    /// fails nothing of it bears the mark any more.
    fn kept_unless_it_fails(
        &mut self,
        told: Vec<Entry>,
        seen: &[Ends],
        put: impl FnOnce(&mut Self) -> Result<(Vec<Difference>, Lists), ApplyError>,
    ) -> Result<Joined, ApplyError> {
        let remembered = self.conntrack.remember(&told, KEPT_MARK).map_err(ApplyError::from);
        let done = remembered.and_then(|refused| {
            self.conntrack.mark(seen, KEPT_MARK, MARK_MASK)?;
            Ok((put(self)?, refused.count))
        });
        match done {
            Ok(((added, lists), lost)) => Ok(Joined { added, lost, told, lists }),
            Err(why) => {
                let marked: Vec<Ends> = told.iter().map(Entry::ends).chain(seen.iter().copied()).collect();
                // That which failed is what is told. Whoever ended meanwhile was not seen to.
                let _ = self.conntrack.mark(&marked, 0, MARK_MASK);
                let _ = self.forget_ended(told.iter().map(|entry| (entry.local, entry.remote)));
                Err(why)
            }
        }
    }

    /// What the kernel is to be told of, of connections that it does not follow, and the ends of the others as it has them. Those that
    /// are captured, as of a pod that is back before it has left, are neither.
    fn by_tracking(&mut self, connections: &[(Connection, Direction)]) -> Result<(Vec<Entry>, Vec<Ends>), ApplyError> {
        let tracked = self.remembered()?;
        let known: HashMap<Ends, &Tracked> = tracked.iter().map(|t| ((t.source, t.destination), t)).collect();
        let (mut entries, mut seen) = (Vec::new(), Vec::new());
        for (c, way) in connections {
            let entry = known.get(&(c.local, c.remote)).or_else(|| known.get(&(c.remote, c.local)));
            match entry {
                Some(entry) if !goes_around(entry) => {}
                Some(entry) if is_followed(entry, c.progress) => {
                    // What is kept already stays so, whatever becomes of the rest.
                    if entry.mark & MARK_MASK != KEPT_MARK {
                        seen.push((entry.source, entry.destination));
                    }
                }
                _ => entries.push(Entry {
                    local: c.local,
                    remote: c.remote,
                    progress: c.progress,
                    inbound: *way == Direction::Inbound,
                }),
            }
        }
        Ok((entries, seen))
    }

    /// Marks connections as kept, so that the next process knows them too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn mark_kept(&mut self, outsiders: &[Outsider]) -> Result<(), ApplyError> {
        let tuples: Vec<(SocketAddr, SocketAddr)> = outsiders.iter().filter(|o| !o.kept).map(|o| o.tuple).collect();
        self.conntrack.mark(&tuples, KEPT_MARK, MARK_MASK)?;
        Ok(())
    }

    /// Those that are still open.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn still_open(&mut self, kept: &[Kept]) -> Result<Vec<Kept>, ApplyError> {
        let mut open = Vec::with_capacity(kept.len());
        let mut ended = Vec::new();
        for one in kept {
            match self.sockets.is_open(&one.connection())? {
                true => open.push(one.clone()),
                false => ended.push((one.local, one.remote)),
            }
        }
        self.forget_ended(ended.into_iter())?;
        Ok(open)
    }

    /// Closes connections with a reset to both ends, and gives how many there were to close.
    ///
    /// Where the kernel cannot close sockets of others, a connection is forgotten instead: its next packet is captured, by a
    /// proxy that does not know it, and reset.
    ///
    /// # Errors
    /// When the kernel refuses both.
    pub(crate) fn close<'a>(&mut self, connections: impl IntoIterator<Item = &'a Connection>) -> Result<u64, ApplyError> {
        let mut closed = 0;
        for connection in connections {
            match self.sockets.destroy(connection) {
                Ok(there) => closed += u64::from(there),
                Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => {
                    let (local, remote) = (connection.local, connection.remote);
                    let forgotten = self
                        .conntrack
                        .forget(local, remote)
                        .or_else(|_| self.conntrack.forget(remote, local));
                    match forgotten {
                        Ok(()) => closed += 1,
                        Err(e) if e.missing() => (),
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(closed)
    }

    /// How many connections have a proxy's socket for their end that was accepted on one of the ports of capture.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn captured(&mut self) -> Result<usize, ApplyError> {
        let accepted = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE];
        let live = self.sockets.connections()?;
        Ok(live
            .iter()
            .filter(|c| is_marked(c.mark) && accepted.contains(&c.local.port()))
            .count())
    }

    /// The ports on which somebody listens.
    fn listening(&mut self) -> Result<HashSet<u16>, ApplyError> {
        Ok(self.sockets.listeners(Transport::Tcp)?.iter().map(|l| l.local.port()).collect())
    }

    fn own_addresses(&mut self) -> Result<HashSet<IpAddr>, ApplyError> {
        Ok(self.routing.addresses()?.into_iter().map(|a| a.ip.to_canonical()).collect())
    }
}

fn names_of(plan: &Plan) -> Vec<&'static str> {
    plan.tables.iter().map(|table| table.name).collect()
}

/// What joining did.
#[derive(Debug)]
pub(crate) struct Joined {
    /// What was not there before.
    pub(crate) added: Vec<Difference>,
    /// How many connections could not be kept.
    pub(crate) lost: usize,
    /// Those that the kernel was told of.
    pub(crate) told: Vec<Entry>,
    /// As it was before.
    pub(crate) lists: Lists,
}

impl From<(Vec<Difference>, Lists)> for Joined {
    fn from((added, lists): (Vec<Difference>, Lists)) -> Self {
        Self {
            added,
            lost: 0,
            told: Vec::new(),
            lists,
        }
    }
}

/// A connection that goes around the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Outsider {
    pub(crate) connection: Connection,
    pub(crate) direction: Direction,
    pub(crate) kept: bool,
    tuple: (SocketAddr, SocketAddr),
}

impl Outsider {
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

impl Kept {
    /// The family of its addresses.
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(self.local.ip())
    }

    pub(crate) fn connection(&self) -> Connection {
        Connection {
            local: self.local,
            remote: self.remote,
            progress: Progress::Established,
            mark: None,
            opened_here: None,
            device: self.device,
            cookie: self.cookie,
        }
    }
}

/// Whether the kernel has seen enough of a connection to follow it by itself: both ends, or its first packet.
fn is_followed(entry: &Tracked, progress: Progress) -> bool {
    entry.status & STATUS_ANSWERED != 0 || matches!(progress, Progress::Sent | Progress::Received)
}

/// Of what is remembered of connections of this namespace's own, and is translated by nobody: that whose connection has ended, and
/// was not seen to.
fn outlived<'a>(remembered: &'a [Tracked], live: &[Connection], own: &HashSet<IpAddr>) -> impl Iterator<Item = &'a Tracked> {
    let ends: HashSet<(SocketAddr, SocketAddr)> = live.iter().map(|c| (c.local, c.remote)).collect();
    let own = own.clone();
    remembered.iter().filter(move |entry| {
        let (source, destination) = (entry.source, entry.destination);
        let is_own = own.contains(&source.ip()) || own.contains(&destination.ip());
        is_own && is_in_the_way(entry) && !ends.contains(&(source, destination)) && !ends.contains(&(destination, source))
    })
}

/// Whether a tracked connection is one around the proxy: neither redirected to it, nor made by it.
fn goes_around(entry: &Tracked) -> bool {
    entry.status & STATUS_DNAT == 0 && entry.mark & MARK_MASK != REPLY_MARK
}

/// Whether whoever had its addresses and ports next would pass for this connection, which is redirected by nobody.
fn is_in_the_way(entry: &Tracked) -> bool {
    let translated = entry.status & (STATUS_DNAT | STATUS_SNAT) != 0 || entry.mark & MARK_MASK == REPLY_MARK;
    !translated && !entry.ended
}

fn is_captured(c: &Connection, proxys: &HashSet<(SocketAddr, SocketAddr)>, taken_from: &HashSet<SocketAddr>) -> bool {
    taken_from.contains(&c.local) || proxys.contains(&(c.remote, c.local))
}

/// Whether a connection leaves the namespace, and is none of the node's probes.
fn leaves(connection: &Connection, own: &HashSet<IpAddr>) -> bool {
    let remote = connection.remote.ip();
    let probe = remote == IpAddr::from(PROBE_SOURCES.0) || remote == IpAddr::from(PROBE_SOURCES.1);
    !remote.is_loopback() && !own.contains(&remote) && !probe
}

/// Where nameservers are asked.
const DNS: u16 = 53;
/// A packet's way from one hook to the next takes microseconds; this is for a machine that pauses.
const UNDERWAY: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::KnownBy;

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
        let socket = |ip: &str| ip.parse::<SocketAddr>().unwrap();
        // The proxy took one from port 50000, and opened one to the application for 10.0.0.9.
        let proxys = HashSet::from([
            (socket("127.0.0.1:15001"), socket("10.0.0.2:50000")),
            (socket("10.0.0.9:41000"), socket("10.0.0.2:8080")),
        ]);
        let taken_from = HashSet::from([socket("10.0.0.2:50000")]);
        let captured = |local: &str, remote: &str| is_captured(&connection(local, remote), &proxys, &taken_from);
        assert!(captured("10.0.0.2:50000", "10.0.0.8:80"));
        assert!(captured("10.0.0.2:8080", "10.0.0.9:41000"));
        assert!(!captured("10.0.0.2:50001", "10.0.0.8:80"));
        assert!(!captured("10.0.0.2:8080", "10.0.0.9:41001"));
    }

    #[test]
    fn what_outlived_its_connection_is_told_from_what_is_others_or_lives() {
        let own = HashSet::from([IpAddr::from([10, 0, 0, 2])]);
        let live = [
            connection("10.0.0.2:50000", "10.0.0.9:80"),
            connection("10.0.0.2:8080", "10.0.0.9:41000"),
        ];
        let entry = |source: &str, destination: &str, status| Tracked {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            status,
            mark: 0,
            id: 1,
            ended: false,
            known_by: KnownBy::Beginning,
        };
        let answered = STATUS_ANSWERED;
        let remembered = [
            entry("10.0.0.2:50000", "10.0.0.9:80", answered),
            entry("10.0.0.9:41000", "10.0.0.2:8080", answered),
            entry("10.0.0.2:50001", "10.0.0.9:80", answered),
            entry("10.0.0.9:41001", "10.0.0.2:8080", answered),
            // Only its last packet was seen.
            entry("10.0.0.9:80", "10.0.0.2:50002", 0),
            entry("10.0.0.2:50003", "10.0.0.9:80", answered | STATUS_DNAT),
            entry("10.0.0.2:50004", "10.0.0.9:80", answered | STATUS_SNAT),
            entry("172.17.0.2:50005", "10.0.0.9:80", answered),
            Tracked {
                ended: true,
                ..entry("10.0.0.2:50006", "10.0.0.9:80", answered)
            },
        ];
        let outlived: Vec<&Tracked> = outlived(&remembered, &live, &own).collect();
        assert_eq!(outlived, [&remembered[2], &remembered[3], &remembered[4]]);
    }

    #[test]
    fn what_the_kernel_follows_by_itself_is_not_told_it() {
        let entry = |status| Tracked {
            source: "10.0.0.2:50000".parse().unwrap(),
            destination: "10.0.0.9:80".parse().unwrap(),
            status,
            mark: 0,
            id: 1,
            ended: false,
            known_by: KnownBy::Beginning,
        };
        assert!(is_followed(&entry(STATUS_ANSWERED), Progress::Established));
        assert!(is_followed(&entry(0), Progress::Sent) && is_followed(&entry(0), Progress::Received));
        // A packet in the middle of it, in one direction.
        assert!(!is_followed(&entry(0), Progress::Established) && !is_followed(&entry(0), Progress::HalfClosed));
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
