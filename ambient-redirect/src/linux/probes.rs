//! The node's own table, put into its namespace, compared and taken out again.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ambient_core::PodUid;

use super::{
    ApplyError, Mark, Netns,
    rules::{base_chain, comment, compile, owner_of},
};
use crate::{
    netlink::{Batch, Family, Nftables, SetKey},
    plan::{Chain, IpFamily, Set, Table},
    probes::TABLE,
};

/// The node's own namespace, seen through a socket that was made in it. Its calls block, each for some hundred microseconds.
#[derive(Debug)]
pub struct NodeSide {
    nftables: Nftables,
    node: Arc<str>,
}

/// Something in the node's namespace that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ProbeDifference {
    /// The table, or a chain, a set or a rule in it, is missing or changed.
    Table,
    /// A pod's address is not in the set.
    Missing(IpAddr),
    /// An address is in the set that is no pod's.
    Stray(IpAddr),
}

impl fmt::Display for ProbeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => write!(f, "table {TABLE} is missing or changed"),
            Self::Missing(ip) => write!(f, "{ip} is missing in table {TABLE}"),
            Self::Stray(ip) => write!(f, "{ip} is in table {TABLE} and no pod's"),
        }
    }
}

impl NodeSide {
    /// Opens the socket in a namespace, for a node of this name.
    ///
    /// # Errors
    /// When it cannot be entered or descriptors are short.
    pub fn open(namespace: &Netns, node: &str) -> Result<Self, ApplyError> {
        Ok(Self {
            nftables: namespace.run(Nftables::open)??,
            node: node.into(),
        })
    }

    /// The addresses that the table holds; none where there is no table of this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, ApplyError> {
        let mut addresses = BTreeSet::new();
        if self.is_ours()? == Some(true) {
            for set in self.nftables.sets(Family::Inet, TABLE)? {
                if set.key.is_some() && set.flags == 0 {
                    addresses.extend(self.nftables.elements(Family::Inet, TABLE, &set.name)?);
                }
            }
        }
        Ok(addresses)
    }

    /// What is not as the table has it. Empty is proof that all of it stands.
    ///
    /// # Errors
    /// When a table of its name is not this node's, or the kernel refuses.
    pub fn verify(&mut self, table: &Table) -> Result<Vec<ProbeDifference>, ApplyError> {
        Ok(self.look(table)?.differences(table))
    }

    /// Puts a table in force, in one transaction: what stands of it stays as it is. Gives what was not so before.
    ///
    /// # Errors
    /// When a table of its name is not this node's, so that nothing was changed, or the kernel refuses.
    pub fn apply(&mut self, table: &Table) -> Result<Vec<ProbeDifference>, ApplyError> {
        let mut tries = 0;
        loop {
            let generation = self.nftables.generation()?;
            let there = self.look(table)?;
            let batch = there.replacement(table, &self.comment());
            match self.nftables.commit(batch, Some(generation)) {
                Err(e) if e.stale() && tries < TRANSACTIONS => tries += 1,
                Err(e) => return Err(e.into()),
                Ok(()) => return Ok(there.differences(table)),
            }
        }
    }

    /// Takes the table out. One that is not this node's stays, and none is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&mut self) -> Result<(), ApplyError> {
        if self.is_ours()? != Some(true) {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, TABLE);
        match self.nftables.commit(batch, None) {
            Err(e) if !e.missing() => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Whether the table that is there is this node's.
    fn is_ours(&mut self) -> Result<Option<bool>, ApplyError> {
        let there = self.nftables.table(Family::Inet, TABLE)?;
        Ok(there.map(|t| owner_of(&t).is_some_and(|owner| owner.is_node(&self.node))))
    }

    fn look(&mut self, wanted: &Table) -> Result<There, ApplyError> {
        let Some(table) = self.nftables.table(Family::Inet, TABLE)? else {
            return Ok(There::default());
        };
        if !owner_of(&table).is_some_and(|owner| owner.is_node(&self.node)) {
            return Err(ApplyError::Foreign { table: TABLE });
        }
        let mut there = There {
            table: true,
            shape: table.flags == 0,
            rules: true,
            sets: Vec::new(),
        };
        for chain in &wanted.chains {
            let listed = self.nftables.chain(Family::Inet, TABLE, chain.hook.name())?;
            let base = base_chain(chain);
            there.shape &= listed.is_some_and(|c| {
                let place = c.hook == Some((base.hook.number(), base.priority)) && c.kind.as_deref() == Some(base.kind.name());
                place && c.accepts()
            });
        }
        let sets = self.nftables.sets(Family::Inet, TABLE)?;
        for set in &wanted.sets {
            there.shape &= sets
                .iter()
                .any(|s| s.name == set.name && s.key == Some(key(set.family)) && s.flags == 0);
        }
        there.shape &= sets.len() == wanted.sets.len();
        if there.shape {
            there.rules = self.same_rules(&wanted.chains)?;
            for set in &wanted.sets {
                there.sets.push(self.nftables.elements(Family::Inet, TABLE, set.name)?);
            }
        }
        Ok(there)
    }

    fn same_rules(&mut self, chains: &[Chain]) -> Result<bool, ApplyError> {
        let there = self.nftables.rules(Family::Inet, TABLE)?;
        let wanted: usize = chains.iter().map(|c| c.rules.len()).sum();
        let same = chains.iter().all(|chain| {
            let listed: Vec<_> = there.iter().filter(|r| r.chain == chain.hook.name()).collect();
            listed.len() == chain.rules.len() && listed.iter().zip(&chain.rules).all(|(is, wanted)| is.is(&compile(wanted)))
        });
        Ok(same && there.len() == wanted)
    }

    fn comment(&self) -> Vec<u8> {
        comment(&Mark::new(&self.node, &PodUid::from("")))
    }
}

/// What was found of a table.
#[derive(Debug, Default)]
struct There {
    /// One of its name and this node's.
    table: bool,
    /// With its chains and sets.
    shape: bool,
    /// And its rules.
    rules: bool,
    /// What its sets hold, in the order of those that are wanted; nothing where its shape is another.
    sets: Vec<BTreeSet<IpAddr>>,
}

impl There {
    /// Each wanted set, and what is in its place.
    fn pairs<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = (&'a Set, &'a BTreeSet<IpAddr>)> {
        static NOTHING: BTreeSet<IpAddr> = BTreeSet::new();
        let there = self.sets.iter().chain(std::iter::repeat(&NOTHING));
        table.sets.iter().zip(there)
    }

    fn differences(&self, table: &Table) -> Vec<ProbeDifference> {
        let mut differences = Vec::new();
        if !(self.table && self.shape && self.rules) {
            differences.push(ProbeDifference::Table);
        }
        for (set, there) in self.pairs(table) {
            differences.extend(set.addresses.difference(there).map(|ip| ProbeDifference::Missing(*ip)));
            differences.extend(there.difference(&set.addresses).map(|ip| ProbeDifference::Stray(*ip)));
        }
        differences
    }

    fn replacement(&self, table: &Table, comment: &[u8]) -> Batch {
        let mut batch = Batch::default();
        if self.table && !self.shape {
            batch.delete_table(Family::Inet, table.name);
        }
        if !self.shape {
            batch.add_table(Family::Inet, table.name, comment);
            for set in &table.sets {
                batch.add_set(Family::Inet, table.name, set.name, key(set.family));
            }
            for chain in &table.chains {
                batch.add_base_chain(Family::Inet, table.name, chain.hook.name(), &base_chain(chain));
            }
        } else if !self.rules {
            batch.flush_table(Family::Inet, table.name);
        }
        for (set, there) in self.pairs(table) {
            batch.delete_elements(Family::Inet, table.name, set.name, there.difference(&set.addresses));
            batch.add_elements(Family::Inet, table.name, set.name, set.addresses.difference(there));
        }
        if !(self.shape && self.rules) {
            for chain in &table.chains {
                for rule in &chain.rules {
                    batch.add_rule(Family::Inet, table.name, chain.hook.name(), &compile(rule));
                }
            }
        }
        batch
    }
}

fn key(family: IpFamily) -> SetKey {
    match family {
        IpFamily::V4 => SetKey::Ipv4,
        IpFamily::V6 => SetKey::Ipv6,
    }
}

/// A transaction that others overtook is made again so many times.
const TRANSACTIONS: usize = 10;
