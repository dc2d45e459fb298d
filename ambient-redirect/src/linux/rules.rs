//! A plan put into a namespace, compared with what the kernel lists, and taken out again.

mod around;
mod compile;
mod dry_run;
mod life;
mod opened;
mod routed;
mod segments;
mod served;
mod strangers;

use std::{collections::HashSet, fmt, io, net::IpAddr, sync::Arc};

use ambient_core::PodUid;

pub(crate) use self::around::{MOST_HELD, Outsider, Sought};
pub(super) use self::compile::{base_chain, compile};
pub use self::dry_run::{Change, DryRun, Line, Thing};
pub(crate) use self::life::Joined;
use self::opened::ClientPorts;
pub use self::segments::{Aside, Segments};
pub use self::strangers::{RulePlace, Stranger};
use self::{routed::Listed, segments::Known};
use super::{Netns, NetnsError, own::Own};
use crate::{
    netlink::{self, Batch, Chain, Conntrack, Family, Generation, Nftables, Packet, Policy, Route, Routing, Rule, Table},
    plan::{self, IpFamily, MARK_MASK, PROXY_MARK, Plan, Port, REPLY_MARK, ROUTE_TABLE, RULE_PRIORITY, TABLES},
    pods::LeftBehind,
    probes,
};

/// The inside of a namespace, seen through sockets that were made in it. Its calls block, each for some hundred
/// microseconds: for a thread that may.
#[derive(Debug)]
pub struct Inside {
    routing: Routing,
    nftables: Nftables,
    sockets: netlink::Sockets,
    own: Arc<Own>,
    /// The last generation of nftables in which the tables were those of a plan.
    stood: Option<(Generation, Plan, Mark)>,
    /// What others had in the way when all was listed last.
    strangers: Arc<[Stranger]>,
    /// Of these, what stands in tables.
    in_tables: Vec<Stranger>,
    conntrack: Conntrack,
    clients: ClientPorts,
    /// As of the last listing.
    segments: Known,
}

/// For whom tables are made: what stands in them as their mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    node: u32,
    pod: PodUid,
}

impl Mark {
    /// The mark of a node, which tells it what it left behind itself from what another node of the machine has in force,
    /// and of the pod.
    pub fn new(node: &str, pod: &PodUid) -> Self {
        let pod = pod.clone();
        Self { node: tag(node), pod }
    }
}

/// The addresses and the routing of a namespace, as the kernel listed them: once for all that a look asks of them.
#[derive(Debug)]
pub(crate) struct Lists {
    addresses: Vec<IpAddr>,
    policies: Vec<Policy>,
    routes: Vec<Route>,
}

impl Lists {
    /// The families of these that the namespace has.
    fn families(&self, wanted: &[IpFamily]) -> Vec<IpFamily> {
        families_of(&self.addresses, wanted)
    }

    /// The addresses, as sockets are compared with them.
    fn own(&self) -> HashSet<IpAddr> {
        self.addresses.iter().map(IpAddr::to_canonical).collect()
    }
}

/// What a look has found.
#[derive(Debug)]
pub(crate) struct Looked {
    /// What is not as the plan has it.
    pub(crate) differences: Vec<Difference>,
    /// The families that are captured.
    pub(crate) families: Vec<IpFamily>,
    pub(crate) lists: Lists,
}

/// Who put our tables into a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The pod for which it was done; `None` where the mark cannot be read.
    pub pod: Option<PodUid>,
    node: Option<u32>,
}

impl Owner {
    /// Whether a node of this name did it. No where the mark cannot be read.
    pub fn is_node(&self, name: &str) -> bool {
        self.node == Some(tag(name))
    }
}

/// Something that is not as the plan has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Difference {
    /// A table, or something in it, is missing or changed.
    Table(&'static str),
    /// A table of ours is there that is not in the plan: of another moment of the pod's life, or of another version of this crate, whose
    /// names of tables may be others.
    Leftover(Arc<str>),
    /// A table has our name and not our mark.
    ForeignTable(&'static str),
    /// The routing rule is missing.
    Rule(IpFamily),
    /// The route is missing.
    Route(IpFamily),
    /// The route is missing, and somebody else's to everywhere stands in its table: the proxy's takes its place.
    ForeignRoute(IpFamily),
    /// Rule and route stand, and what is to come back to the proxy goes elsewhere: those of others come before.
    Diverted(IpFamily),
    /// Nobody listens there.
    Listener(Port, IpFamily),
    /// Another process of the pod listens there.
    ForeignListener(Port),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "table {name} is missing or changed"),
            Self::Leftover(name) => write!(f, "table {name} is there and not wanted"),
            Self::ForeignTable(name) => write!(f, "table {name} is somebody else's"),
            Self::Rule(family) => write!(f, "the {family} routing rule is missing"),
            Self::Route(family) => write!(f, "the {family} route to the proxy is missing"),
            Self::ForeignRoute(family) => write!(f, "somebody else's {family} route to everywhere is in table {ROUTE_TABLE}"),
            Self::Diverted(family) => write!(
                f,
                "{family} replies do not go back to the proxy: a routing rule or a route of somebody else's comes before the proxy's"
            ),
            Self::Listener(port, family) => write!(f, "nobody listens on {family} port {port}"),
            Self::ForeignListener(port) => write!(f, "a process of the pod listens on port {port}, which is the proxy's"),
        }
    }
}

/// How listeners are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    /// As socket diagnostics list them: the kernel walks those of every namespace for that.
    Whole,
    /// Only where this process's own descriptors do not say that all is well: while those listen, nobody else can.
    Descriptors,
}

/// Why a plan could not be put into a namespace or looked for there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// A table of our name belongs to somebody else; nothing was changed.
    #[error("the namespace holds a table inet {table} that is not ours: remove or rename it")]
    Foreign {
        /// Its name.
        table: &'static str,
    },
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
}

impl ApplyError {
    /// Whether descriptors, memory or threads were short: another try may come through.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Self::Netns(error) => error.is_shortage(),
            Self::Kernel(error) => error.errno().is_some_and(|n| super::is_shortage(&io::Error::from_raw_os_error(n))),
            Self::Foreign { .. } => false,
        }
    }
}

impl Inside {
    /// Opens the sockets in a namespace.
    ///
    /// # Errors
    /// When it cannot be entered or descriptors are short.
    pub fn open(namespace: &Netns) -> Result<Self, ApplyError> {
        let own = namespace.own().clone();
        namespace.run(|| Self::here(own))?
    }

    /// Opens the sockets in the calling thread's namespace.
    pub(crate) fn here(own: Arc<Own>) -> Result<Self, ApplyError> {
        Ok(Self {
            own,
            stood: None,
            strangers: Arc::from([]),
            in_tables: Vec::new(),
            routing: Routing::open()?,
            nftables: Nftables::open()?,
            sockets: netlink::Sockets::open()?,
            conntrack: Conntrack::open()?,
            clients: ClientPorts::here(),
            segments: Known::default(),
        })
    }

    /// The addresses of all devices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>, ApplyError> {
        Ok(self.routing.addresses()?.into_iter().map(|a| a.ip).collect())
    }

    /// Who put our tables here; `None` where there are none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn owner(&mut self) -> Result<Option<Owner>, ApplyError> {
        let tables = self.nftables.tables()?;
        Ok(of_ours(&tables).find_map(owner_of))
    }

    /// What a node of this name has left here, if it has. Where nobody has left anything what is for speed alone goes as well.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn left_behind(&mut self, node: &str) -> Result<Option<LeftBehind>, ApplyError> {
        let tables = self.nftables.tables()?;
        let Some(owner) = of_ours(&tables).find_map(owner_of) else {
            // No reason not to see the pod.
            let _ = self.clear_stray_segments();
            return Ok(None);
        };
        if !owner.is_node(node) {
            return Ok(None);
        }
        let has = |name: &str| of_ours(&tables).any(|table| table.name == name);
        Ok(Some(LeftBehind {
            pod: owner.pod,
            captures: has(plan::NAT),
            refuses: has(plan::CLOSED),
        }))
    }

    /// Puts a plan in force for a pod: routes and routing rules, which concern nothing yet, then all tables in one
    /// transaction. What an earlier process put there for the same pod is replaced within it; NAT stays hooked, so that
    /// captured connections live on. Gives what was not there before.
    ///
    /// Connections that are open in the namespace are reset by this, each at its next packet. That they go on takes more than a plan:
    /// [`Enrolment`](crate::Enrolment) alone tells the kernel of them first.
    ///
    /// # Errors
    /// When a table of our name is somebody else's, or the kernel refuses.
    pub fn apply(&mut self, plan: &Plan, mark: &Mark) -> Result<Vec<Difference>, ApplyError> {
        let (put, lists) = self.put(plan, mark)?;
        self.keep_segments(&plan.segments, lists);
        Ok(put)
    }

    /// As [`Inside::apply`], without what is for speed alone; gives what was listed for it as well.
    pub(crate) fn put(&mut self, plan: &Plan, mark: &Mark) -> Result<(Vec<Difference>, Lists), ApplyError> {
        let (differences, lists) = self.standing(plan, mark)?;
        none_is_foreign(&differences)?;
        for difference in &differences {
            match difference {
                Difference::Rule(family) => match self.routing.add_rule(&routing_rule(*family)) {
                    Err(e) if !e.exists() => return Err(e.into()),
                    _ => (),
                },
                Difference::Route(family) => self.routing.add_route(&route(*family))?,
                _ => (),
            }
        }
        if differences
            .iter()
            .any(|d| matches!(d, Difference::Table(_) | Difference::Leftover(_)))
        {
            self.transaction(|tables, chains| replacement(plan, mark, &TABLES, tables, chains))?;
        }
        // Nothing is put in the way of what others have there.
        let put = differences.into_iter().filter(|d| !matches!(d, Difference::Diverted(_)));
        Ok((put.collect(), lists))
    }

    /// Takes everything of ours out: the tables in one transaction, then what conntrack remembers, then routing rules and
    /// routes. Nothing else of others is touched, and it is no error where nothing of ours is there.
    ///
    /// What conntrack remembers goes because from here on it learns of no connection's end: when the pod is captured again,
    /// an entry that outlived its connection would keep its addresses and ports from being used. Redirected connections do
    /// not live on. Those that others in the namespace translate do not either.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&mut self) -> Result<(), ApplyError> {
        let were_there = self.owner()?.is_some();
        let segments = self.clear_segments();
        self.transaction(|tables, _| {
            let mut batch = Batch::default();
            of_ours(tables).for_each(|table| batch.delete_table(Family::Inet, &table.name));
            Ok(batch)
        })?;
        if were_there {
            // A kernel may lack ctnetlink. What is remembered then is only refused later, by the guard.
            let _ = self.conntrack.forget_all();
            // The kernel goes on tracking until it has taken the tables apart, which it does later: what it learned until then
            // would be remembered without its end.
            std::thread::sleep(UNTRACKED);
            let _ = self.conntrack.forget_all();
        }
        let rules = self.routing.rules()?;
        for rule in rules.iter().filter(|r| is_ours(r)) {
            absent_is_fine(self.routing.delete_rule(rule))?;
        }
        let routes = self.routing.routes(ROUTE_TABLE)?;
        for family in [IpFamily::V4, IpFamily::V6] {
            let route = route(family);
            if routes.iter().any(|r| same_route(r, &route)) {
                absent_is_fine(self.routing.delete_route(&route))?;
            }
        }
        segments
    }

    /// What is not as the plan has it: tables, routing rules, routes, and the proxy's listeners. Empty is proof that all of it
    /// stands.
    ///
    /// The proxy's listeners are those that [`Sockets`](super::Sockets) of this process made by the very [`Netns`] that this was
    /// opened with, known by their inodes; where it made none there, those with the proxy's mark.
    ///
    /// # Errors
    /// When the kernel refuses, or its answers keep changing while they are read.
    pub fn verify(&mut self, plan: &Plan, mark: &Mark) -> Result<Vec<Difference>, ApplyError> {
        self.look(plan, mark, Listing::Whole).map(|looked| looked.differences)
    }

    /// The rules of others that come before those of the plan that was verified or applied last, as they were then. They are no
    /// difference: what they send elsewhere is refused, lost, or stays in the pod, as [`Stranger`] says.
    pub fn strangers(&self) -> &Arc<[Stranger]> {
        &self.strangers
    }

    /// As [`Inside::verify`]; gives the families that are captured as well, and what was listed.
    pub(crate) fn look(&mut self, plan: &Plan, mark: &Mark, listing: Listing) -> Result<Looked, ApplyError> {
        let (mut differences, lists) = self.standing(plan, mark)?;
        let families = lists.families(&plan.rules);
        if listing == Listing::Whole || !self.own.listens_at(&plan.listeners, &families) {
            differences.extend(self.unserved(&plan.listeners, &families)?);
        }
        Ok(Looked {
            differences,
            families,
            lists,
        })
    }

    /// Sets the loopback device up, as it is in every pod.
    pub(super) fn set_loopback_up(&mut self) -> Result<(), ApplyError> {
        Ok(self.routing.set_loopback_up()?)
    }

    /// The families of these that the namespace has. Nothing but addresses is listed for that: a kernel may have no routing rules.
    pub(super) fn families(&mut self, wanted: &[IpFamily]) -> Result<Vec<IpFamily>, ApplyError> {
        Ok(families_of(&self.addresses()?, wanted))
    }

    /// As [`Inside::verify`] without the listeners.
    pub(super) fn rules(&mut self, plan: &Plan, mark: &Mark) -> Result<Vec<Difference>, ApplyError> {
        self.standing(plan, mark).map(|(differences, _)| differences)
    }

    fn lists(&mut self) -> Result<Lists, ApplyError> {
        Ok(Lists {
            addresses: self.addresses()?,
            policies: self.routing.policies()?,
            routes: self.routing.all_routes()?,
        })
    }

    fn standing(&mut self, plan: &Plan, mark: &Mark) -> Result<(Vec<Difference>, Lists), ApplyError> {
        let (mut differences, mut strangers) = (Vec::new(), Vec::new());
        let lists = self.lists()?;
        self.look_at_segments(&plan.segments, &lists);
        let rules: Vec<Rule> = lists.policies.iter().filter_map(Policy::plain).collect();
        let routes: Vec<&Route> = lists.routes.iter().filter(|r| r.table == ROUTE_TABLE).collect();
        for family in lists.families(&plan.rules) {
            if !rules.contains(&routing_rule(family)) {
                differences.push(Difference::Rule(family));
            }
            let wanted = route(family);
            let has_route = routes.iter().any(|r| same_route(r, &wanted));
            if !has_route {
                differences.push(Difference::Route(family));
                if routes.iter().any(|r| r.destination == wanted.destination) {
                    differences.push(Difference::ForeignRoute(family));
                }
            }
            let has_both = has_route && !differences.contains(&Difference::Rule(family));
            if !has_both {
                continue;
            }
            if self.is_diverted(family, &lists.addresses)? {
                differences.push(Difference::Diverted(family));
                continue;
            }
            let listed = Listed {
                family,
                own: &routed::own_of(family, &lists.addresses),
                policies: &lists.policies,
                tables: &routed::tables_of(family, &lists.routes),
            };
            strangers.extend(routed::look(&mut self.routing, listed)?);
        }
        differences.extend(self.tables(plan, mark)?);
        strangers.extend(self.in_tables.iter().cloned());
        strangers.truncate(strangers::STRANGERS);
        if *self.strangers != *strangers {
            self.strangers = strangers.into();
        }
        Ok((differences, lists))
    }

    /// Whether replies to the proxy go elsewhere although rule and route stand, as the kernel routes TCP of root's from each of the
    /// namespace's addresses to somewhere that no rule names. What others have narrowed to some of it is told, as [`Stranger`] says.
    fn is_diverted(&mut self, family: IpFamily, own: &[IpAddr]) -> Result<bool, ApplyError> {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == (family == IpFamily::V6) && is_routed(ip);
        let wanted = route(family);
        for ip in own.iter().filter(of_family).take(ADDRESSES_ASKED) {
            let reply = Packet {
                from: Some(*ip),
                ..Packet::tcp(family.probe(), REPLY_MARK)
            };
            let is_well = match self.routing.taken(&reply)? {
                Some(taken) => taken.kind == wanted.kind && taken.link == wanted.link,
                // From an address that has gone since it was listed the kernel refuses a packet as a blackhole does.
                None => !self.addresses()?.contains(ip),
            };
            if !is_well {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Which tables are not as the plan has them. Where the kernel has made no transaction since they last were, they are: only
    /// that is asked then.
    fn tables(&mut self, plan: &Plan, mark: &Mark) -> Result<Vec<Difference>, ApplyError> {
        let now = self.nftables.generation()?;
        if self
            .stood
            .as_ref()
            .is_some_and(|(then, p, m)| *then == now && p == plan && m == mark)
        {
            return Ok(Vec::new());
        }
        let ((differences, strangers), generation) = self.nftables.steadily(|nftables| compare(nftables, plan, mark))?;
        self.in_tables = strangers;
        self.stood = differences.is_empty().then(|| (generation, plan.clone(), mark.clone()));
        Ok(differences)
    }

    /// Commits what is made of the tables and chains that are there, made again where they have changed meanwhile.
    fn transaction(&mut self, make: impl Fn(&[Table], &[Chain]) -> Result<Batch, ApplyError>) -> Result<(), ApplyError> {
        let mut tries = 0;
        loop {
            let generation = self.nftables.generation()?;
            let batch = make(&self.nftables.tables()?, &self.nftables.chains()?)?;
            match self.nftables.commit(batch, Some(generation)) {
                Err(e) if e.stale() && tries < TRANSACTIONS => tries += 1,
                result => return Ok(result?),
            }
        }
    }
}

fn compare(nftables: &mut Nftables, plan: &Plan, mark: &Mark) -> Result<(Vec<Difference>, Vec<Stranger>), netlink::Error> {
    let mut differences = Vec::new();
    let tables = nftables.tables()?;
    let chains = nftables.chains()?;
    for name in TABLES {
        let wanted = plan.tables.iter().find(|t| t.name == name);
        let there = named_as_ours(&tables).find(|(n, _)| *n == name).map(|(_, t)| t);
        match (wanted, there) {
            (None, None) => (),
            (_, Some(there)) if owner_of(there).is_none() => differences.push(Difference::ForeignTable(name)),
            (None, Some(_)) => differences.push(Difference::Leftover(name.into())),
            (Some(_), None) => differences.push(Difference::Table(name)),
            (Some(wanted), Some(there)) => {
                // Unlike its place, a chain's policy can be changed, and is put right where it stands.
                let accept = chains_of(wanted, &chains).all(Chain::accepts);
                let stands = there.userdata == comment(mark) && there.flags == 0 && same_chains(wanted, &chains);
                if !stands || !accept || !same_rules(nftables, wanted)? {
                    differences.push(Difference::Table(name));
                }
            }
        }
    }
    differences.extend(unknown(&tables).map(|table| Difference::Leftover(table.name.as_str().into())));
    let strangers = strangers::look(nftables, plan, &chains)?;
    Ok((differences, strangers))
}

fn same_rules(nftables: &mut Nftables, table: &plan::Table) -> Result<bool, netlink::Error> {
    // What is more than it should be differs.
    let wanted = table.chains.iter().map(|chain| chain.rules.len()).sum();
    let Some(there) = nftables.rules_once(Family::Inet, table.name, wanted)? else {
        return Ok(false);
    };
    Ok(table.chains.iter().all(|chain| {
        let listed: Vec<_> = there.iter().filter(|r| r.chain == chain.hook.name()).collect();
        listed.len() == chain.rules.len() && listed.iter().zip(&chain.rules).all(|(is, wanted)| is.is(&compile(wanted)))
    }))
}

/// The batch that makes the namespace hold the plan's tables, and no others of these names, nor of names that no plan has.
fn replacement(plan: &Plan, mark: &Mark, names: &[&'static str], tables: &[Table], chains: &[Chain]) -> Result<Batch, ApplyError> {
    let mut batch = Batch::default();
    for name in names.iter().copied() {
        let wanted = plan.tables.iter().find(|t| t.name == name);
        let there = named_as_ours(tables).find(|(n, _)| *n == name).map(|(_, t)| t);
        if let Some(there) = there {
            if owner_of(there).is_none() {
                return Err(ApplyError::Foreign { table: name });
            }
            // A table's mark and a chain's place cannot be changed; deleting the table cuts what it translates, so it is done
            // for nothing less.
            let reusable = wanted.is_some_and(|w| there.userdata == comment(mark) && same_chains(w, chains));
            if reusable {
                batch.flush_table(Family::Inet, name);
            } else {
                batch.delete_table(Family::Inet, name);
            }
        }
        let Some(table) = wanted else { continue };
        batch.add_table(Family::Inet, name, &comment(mark));
        for chain in &table.chains {
            batch.add_base_chain(Family::Inet, name, chain.hook.name(), &base_chain(chain));
        }
        add_rules(&mut batch, table);
    }
    unknown(tables).for_each(|table| batch.delete_table(Family::Inet, &table.name));
    Ok(batch)
}

fn none_is_foreign(differences: &[Difference]) -> Result<(), ApplyError> {
    let foreign = differences.iter().find_map(|d| match d {
        Difference::ForeignTable(table) => Some(*table),
        _ => None,
    });
    foreign.map_or(Ok(()), |table| Err(ApplyError::Foreign { table }))
}

fn add_rules(batch: &mut Batch, table: &plan::Table) {
    for chain in &table.chains {
        for rule in &chain.rules {
            batch.add_rule(Family::Inet, table.name, chain.hook.name(), &compile(rule));
        }
    }
}

/// The tables that bear a mark of ours, under whatever name.
fn of_ours(tables: &[Table]) -> impl Iterator<Item = &Table> {
    let known = named_as_ours(tables)
        .map(|(_, table)| table)
        .filter(|table| owner_of(table).is_some());
    known.chain(unknown(tables))
}

/// Those of them under a name that no plan has: another version of this has put them there. The node's own is none of a pod's.
fn unknown(tables: &[Table]) -> impl Iterator<Item = &Table> {
    let named = |t: &&Table| t.name.starts_with("ambient-") && t.name != probes::TABLE && !TABLES.contains(&&*t.name);
    let others = tables.iter().filter(|t| t.family == Family::Inet).filter(named);
    others.filter(|table| owner_of(table).is_some())
}

fn named_as_ours(tables: &[Table]) -> impl Iterator<Item = (&'static str, &Table)> {
    TABLES.into_iter().filter_map(|name| {
        tables
            .iter()
            .find(|t| t.family == Family::Inet && t.name == name)
            .map(|t| (name, t))
    })
}

fn chains_of<'a>(table: &plan::Table, chains: &'a [Chain]) -> impl Iterator<Item = &'a Chain> {
    let name = table.name;
    chains.iter().filter(move |c| c.family == Family::Inet && c.table == name)
}

fn same_chains(table: &plan::Table, chains: &[Chain]) -> bool {
    let there: Vec<&Chain> = chains_of(table, chains).collect();
    there.len() == table.chains.len()
        && table.chains.iter().all(|wanted| {
            let base = base_chain(wanted);
            there.iter().any(|c| c.name == wanted.hook.name() && c.is(&base))
        })
}

/// The mark in a table: a comment, as every `nft` since 0.9.7 shows it, with the node's tag and the pod's UID.
pub(super) fn comment(mark: &Mark) -> Vec<u8> {
    let mut uid = mark.pod.as_str();
    while uid.len() > LONGEST_UID {
        // Never seen of Kubernetes; cut at a whole character.
        uid = &uid[..uid.len() - uid.chars().next_back().map_or(1, char::len_utf8)];
    }
    let text = format!("{OWNER_MARK}{:08x}{POD_MARK}{uid}", mark.node);
    let mut bytes = vec![COMMENT, (text.len() + 1) as u8];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

pub(super) fn owner_of(table: &Table) -> Option<Owner> {
    let [COMMENT, length, text @ ..] = &table.userdata[..] else {
        return None;
    };
    let text = text.get(..usize::from(*length).checked_sub(1)?)?;
    let rest = text.strip_prefix(OWNER_MARK.as_bytes())?;
    let rest = std::str::from_utf8(rest).ok().and_then(|rest| rest.split_once(POD_MARK));
    let node = rest.and_then(|(node, _)| u32::from_str_radix(node, 16).ok());
    let pod = rest.map(|(_, uid)| uid).filter(|uid| !uid.is_empty()).map(PodUid::from);
    Some(Owner { pod, node })
}

/// A node's name in 32 bits (FNV-1a): names may be longer than a comment.
fn tag(node: &str) -> u32 {
    node.bytes()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn is_marked(mark: Option<u32>) -> bool {
    mark.is_some_and(|mark| mark & MARK_MASK == PROXY_MARK)
}

pub(super) fn routing_rule(family: IpFamily) -> Rule {
    Rule {
        ipv6: family == IpFamily::V6,
        priority: RULE_PRIORITY,
        mark: REPLY_MARK,
        mask: MARK_MASK,
        table: ROUTE_TABLE,
    }
}

fn is_ours(rule: &Rule) -> bool {
    [IpFamily::V4, IpFamily::V6].into_iter().any(|f| *rule == routing_rule(f))
}

pub(super) fn route(family: IpFamily) -> Route {
    let everything = match family {
        IpFamily::V4 => ipnet::Ipv4Net::default().into(),
        IpFamily::V6 => ipnet::Ipv6Net::default().into(),
    };
    Route::local(everything, ROUTE_TABLE)
}

fn same_route(listed: &Route, wanted: &Route) -> bool {
    listed.destination == wanted.destination && listed.kind == wanted.kind && listed.link == wanted.link
}

/// The families of these that a namespace with such addresses has: with IPv6 switched off there is no address to redirect to, and the
/// kernel refuses its routes.
fn families_of(addresses: &[IpAddr], wanted: &[IpFamily]) -> Vec<IpFamily> {
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    wanted.iter().copied().filter(|f| *f == IpFamily::V4 || ipv6).collect()
}

/// Whether an application may answer from an address to somebody elsewhere.
fn is_routed(ip: &IpAddr) -> bool {
    !ip.is_loopback() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn absent_is_fine(result: Result<(), netlink::Error>) -> Result<(), ApplyError> {
    match result {
        Err(e) if !e.missing() => Err(e.into()),
        _ => Ok(()),
    }
}

impl From<ApplyError> for io::Error {
    fn from(error: ApplyError) -> Self {
        Self::other(error)
    }
}

const OWNER_MARK: &str = "ambient node ";
const POD_MARK: &str = " pod ";
/// A comment of nftables has at most 128 bytes.
const LONGEST_UID: usize = 96;
/// The kind of userdata that is a comment.
const COMMENT: u8 = 0;
/// A transaction that others overtook is made again so many times.
const TRANSACTIONS: usize = 10;
/// More addresses than a pod has, most often by far.
const ADDRESSES_ASKED: usize = 8;
/// A grace period of the kernel's or two, generously.
const UNTRACKED: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(test)]
mod tests;
