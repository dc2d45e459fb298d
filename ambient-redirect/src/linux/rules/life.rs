//! What is done to a namespace at the edges of a pod's life: refused, joined without harm, let go without harm.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use ambient_core::ports;

use super::{
    ApplyError, Difference, Inside, Lists, Mark, add_rules,
    around::{Ends, Outsider, Sought, goes_around, of},
    is_marked, named_as_ours, of_ours,
    opened::direction,
    owner_of, replacement, same_chains,
};
use crate::{
    netlink::{Asked, Batch, Connection, Entry, Family, Pages, Progress, STATUS_ANSWERED, STATUS_DNAT, STATUS_SNAT, Tracked, Transport},
    plan::{IpFamily, KEPT_MARK, MARK_MASK, Plan, REPLY_MARK},
    pods::{Direction, Kept},
};

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
    pub(crate) fn join(&mut self, plan: &Plan, mark: &Mark, at_once: usize) -> Result<Joined, ApplyError> {
        let there = self.nftables.tables()?;
        if let Some((table, _)) = named_as_ours(&there).find(|(_, table)| owner_of(table).is_none()) {
            return Err(ApplyError::Foreign { table });
        }
        if named_as_ours(&there).next().is_none() {
            let tracking = Plan::tracking();
            self.transaction(|tables, chains| replacement(&tracking, mark, &names_of(&tracking), tables, chains))?;
        }
        let joined = self.join_tracked(plan, mark, at_once);
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

    fn join_tracked(&mut self, plan: &Plan, mark: &Mark, at_once: usize) -> Result<Joined, ApplyError> {
        let own = self.own_addresses()?;
        let coming = plan.coming();
        let tell = |inside: &mut Self, told: &mut Told| {
            let mut pages = Pages::of(at_once);
            while !pages.is_over() {
                let (live, _) = inside.leaving(&mut pages, &own, Sought::Tracked)?;
                let listening = inside.listening()?;
                let way = |c: &Connection| direction(c, None, &listening, &inside.clients);
                let live: Vec<_> = live.into_iter().map(|c| (way(&c), c)).collect();
                inside.tell(told, &live)?;
            }
            Ok(())
        };
        let mut joined = self.kept_unless_it_fails(at_once, tell, |inside| inside.put(&coming, mark))?;
        // What was opened before and is still underway passed the place of redirection: it must not meet the guard.
        thread::sleep(UNDERWAY);
        self.forget_outlived(&own, at_once)?;
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
    fn forget_outlived(&mut self, own: &HashSet<IpAddr>, at_once: usize) -> Result<(), ApplyError> {
        let mut pages = Pages::of(at_once);
        while !self.tracks_nothing() && !pages.is_over() {
            // Before the sockets: what is remembered, and has none by then, has ended.
            let page = self.conntrack.gather_connections(
                || pages.next(),
                |page, entry| {
                    if may_have_outlived(&entry, own) {
                        page.take((entry.source, entry.destination), (entry.source, entry.destination));
                    }
                },
            );
            let mut remembered = pages.turn(page?);
            if remembered.is_empty() {
                continue;
            }
            let asked: HashSet<Ends> = remembered.iter().copied().collect();
            let live = self.sockets.gather_connections(Asked::Ends, HashSet::new, |live, c| {
                let both = [(c.local, c.remote), (c.remote, c.local)];
                live.extend(both.into_iter().filter(|ends| asked.contains(ends)));
                Ok(())
            })?;
            remembered.retain(|ends| !live.contains(ends));
            for (source, destination) in remembered {
                let (local, remote) = if own.contains(&source.ip()) {
                    (source, destination)
                } else {
                    (destination, source)
                };
                self.forget_unheld(local, remote)?;
            }
        }
        Ok(())
    }

    /// As [`Inside::forget_outlived`], where it is not known which these are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn forget_outlived_here(&mut self, at_once: usize) -> Result<(), ApplyError> {
        let own = self.own_addresses()?;
        self.forget_outlived(&own, at_once)
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
    pub(crate) fn forget_queries(&mut self, at_once: usize) -> Result<(), ApplyError> {
        if self.tracks_nothing() {
            return Ok(());
        }
        let own = self.own_addresses()?;
        let mut pages = Pages::of(at_once);
        while !pages.is_over() {
            let page = self.conntrack.gather_datagrams(
                || pages.next(),
                |page, ends: Ends| {
                    let (source, destination) = ends;
                    if destination.port() == DNS && own.contains(&source.ip()) && !destination.ip().is_loopback() {
                        page.take(ends, ends);
                    }
                },
            );
            let asked = pages.turn(page?);
            self.conntrack.forget_datagrams(&asked)?;
        }
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

    /// Whether a TCP socket is in the namespace that is not a proxy's: something runs there, or did a moment ago.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn has_sockets(&mut self) -> Result<bool, ApplyError> {
        let listens = self
            .sockets
            .gather_listeners(Transport::Tcp, false, |found, l| *found |= !is_marked(l.mark))?;
        let is_open = |found: &mut bool, c: Connection| {
            *found |= !is_marked(c.mark);
            Ok(())
        };
        Ok(listens || self.sockets.gather_connections(Asked::Ends, || false, is_open)?)
    }

    /// Whether the kernel tells which connections it tracks.
    ///
    /// # Errors
    /// When it does not.
    pub(in crate::linux) fn tracked(&mut self) -> Result<(), ApplyError> {
        self.conntrack.gather_connections(|| (), |(), _| ())?;
        Ok(())
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
        at_once: usize,
        is_kept: impl Fn(&Connection, Direction) -> bool,
    ) -> Result<Joined, ApplyError> {
        let tell = |inside: &mut Self, told: &mut Told| {
            inside.around(Sought::All, at_once, |inside, mut page| {
                page.retain(|o| is_kept(&o.connection, o.direction));
                let around: Vec<_> = page.into_iter().map(|o| (o.direction, o.connection)).collect();
                inside.tell(told, &around)
            })
        };
        self.kept_unless_it_fails(at_once, tell, |inside| inside.put(plan, mark))
    }

    /// Has the kernel remember as kept what it is told of, and what it follows already, while something is put in force; where that
    /// fails nothing of it bears the mark any more.
    fn kept_unless_it_fails(
        &mut self,
        at_once: usize,
        tell: impl FnOnce(&mut Self, &mut Told) -> Result<(), ApplyError>,
        put: impl FnOnce(&mut Self) -> Result<(Vec<Difference>, Lists), ApplyError>,
    ) -> Result<Joined, ApplyError> {
        let mut told = Told::of(at_once);
        let done = tell(self, &mut told).and_then(|()| put(self));
        let Told {
            entries, seen, lost, more, ..
        } = told;
        match done {
            Ok((added, lists)) => Ok(Joined {
                added,
                lost,
                told: entries.iter().map(|entry| (entry.local, entry.remote)).collect(),
                more,
                lists,
            }),
            Err(why) => {
                let marked: Vec<Ends> = entries.iter().map(Entry::ends).chain(seen).collect();
                // That which failed is what is told. Whoever ended meanwhile was not seen to.
                let _ = self.conntrack.mark(&marked, 0, MARK_MASK);
                let _ = self.forget_ended(entries.iter().map(|entry| (entry.local, entry.remote)));
                Err(why)
            }
        }
    }

    /// Tells the kernel of those connections that it does not follow, and marks the others as it has them. Those that are captured, as of
    /// a pod that is back before it has left, are neither.
    fn tell(&mut self, told: &mut Told, connections: &[(Direction, Connection)]) -> Result<(), ApplyError> {
        let live: Vec<Connection> = connections.iter().map(|(_, c)| c.clone()).collect();
        let known = self.tracked_of(&live)?;
        let (mut entries, mut seen) = (Vec::new(), Vec::new());
        for (way, c) in connections {
            match of(&known, c).map(|(entry, _)| entry) {
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
        // Before it is done: where it is done by half all of it is taken back.
        told.note(&entries, &seen);
        told.lost += self.conntrack.remember(&entries, KEPT_MARK)?.count;
        self.conntrack.mark(&seen, KEPT_MARK, MARK_MASK)?;
        Ok(())
    }

    /// Marks connections as kept, so that the next process knows them too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn mark_kept(&mut self, outsiders: &[Outsider]) -> Result<(), ApplyError> {
        let tuples: Vec<Ends> = outsiders.iter().filter(|o| !o.kept).filter_map(|o| o.tracked).collect();
        self.conntrack.mark(&tuples, KEPT_MARK, MARK_MASK)?;
        Ok(())
    }

    /// Those that are still open. Of more than so many it is not asked one by one: the kernel lists all in less time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn still_open(&mut self, kept: &[Kept], one_by_one: usize) -> Result<Vec<Kept>, ApplyError> {
        let open: HashSet<u64> = match kept.len() > one_by_one {
            true => {
                let asked: HashSet<u64> = kept.iter().map(|one| one.cookie).collect();
                self.sockets.gather_connections(Asked::Ends, HashSet::new, |open, c| {
                    open.extend(Some(c.cookie).filter(|cookie| asked.contains(cookie)));
                    Ok(())
                })?
            }
            false => {
                let mut open = HashSet::new();
                for one in kept {
                    open.extend(self.sockets.is_open(&one.connection())?.then_some(one.cookie));
                }
                open
            }
        };
        let (open, ended): (Vec<Kept>, Vec<Kept>) = kept.iter().cloned().partition(|one| open.contains(&one.cookie));
        self.forget_ended(ended.iter().map(|one| (one.local, one.remote)))?;
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
        let count = |count: &mut usize, c: Connection| {
            *count += usize::from(is_marked(c.mark) && accepted.contains(&c.local.port()));
            Ok(())
        };
        Ok(self.sockets.gather_connections(Asked::Ends, || 0, count)?)
    }

    /// The ports on which somebody listens.
    pub(super) fn listening(&mut self) -> Result<HashSet<u16>, ApplyError> {
        let ports = self.sockets.gather_listeners(Transport::Tcp, HashSet::new(), |ports, l| {
            ports.insert(l.local.port());
        });
        Ok(ports?)
    }

    pub(super) fn own_addresses(&mut self) -> Result<HashSet<IpAddr>, ApplyError> {
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
    /// The pod's and the other ends of those that the kernel was told of; not of all of them, where there are many.
    pub(crate) told: HashSet<Ends>,
    /// It was told of others as well.
    pub(crate) more: bool,
    /// As it was before.
    pub(crate) lists: Lists,
}

impl From<(Vec<Difference>, Lists)> for Joined {
    fn from((added, lists): (Vec<Difference>, Lists)) -> Self {
        Self {
            added,
            lost: 0,
            told: HashSet::new(),
            more: false,
            lists,
        }
    }
}

/// What the kernel was told of, so that it can be taken back: of many the first, as the mark on the rest harms nobody. Whoever joins the
/// next time goes through all of it.
#[derive(Debug)]
struct Told {
    most: usize,
    entries: Vec<Entry>,
    seen: Vec<Ends>,
    more: bool,
    /// How much it refused to remember.
    lost: usize,
}

impl Told {
    fn of(most: usize) -> Self {
        Self {
            most,
            entries: Vec::new(),
            seen: Vec::new(),
            more: false,
            lost: 0,
        }
    }

    fn note(&mut self, entries: &[Entry], seen: &[Ends]) {
        let room = self.most.saturating_sub(self.entries.len());
        self.more |= entries.len() > room;
        self.entries.extend(entries.iter().take(room));
        self.seen.extend(seen.iter().take(self.most.saturating_sub(self.seen.len())));
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

/// Whether what is remembered is of a connection of this namespace's own, and would be in the way where that has ended and was not seen
/// to.
fn may_have_outlived(entry: &Tracked, own: &HashSet<IpAddr>) -> bool {
    (own.contains(&entry.source.ip()) || own.contains(&entry.destination.ip())) && is_in_the_way(entry)
}

/// Whether whoever had its addresses and ports next would pass for this connection, which is redirected by nobody.
fn is_in_the_way(entry: &Tracked) -> bool {
    let translated = entry.status & (STATUS_DNAT | STATUS_SNAT) != 0 || entry.mark & MARK_MASK == REPLY_MARK;
    !translated && !entry.ended
}

/// Where nameservers are asked.
const DNS: u16 = 53;
/// A packet's way from one hook to the next takes microseconds; this is for a machine that pauses.
const UNDERWAY: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::KnownBy;

    #[test]
    fn what_may_have_outlived_its_connection_is_told_from_what_is_others() {
        let own = HashSet::from([IpAddr::from([10, 0, 0, 2])]);
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
        let in_the_way: Vec<bool> = remembered.iter().map(|entry| may_have_outlived(entry, &own)).collect();
        assert_eq!(in_the_way, [true, true, true, false, false, false, false]);
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
}
