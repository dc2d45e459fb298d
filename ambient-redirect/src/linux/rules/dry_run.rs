//! What putting a plan in force would change, without changing it.

use std::{fmt, sync::Arc};

use super::{ApplyError, Aside, Difference, Inside, Mark, compile, named_as_ours, owner_of, unknown};
use crate::{
    netlink::{Family, NftRule},
    plan::{Hook, IpFamily, Options, Plan, Rule, TABLES, Table},
};

/// What [`Inside::apply`] would change in a namespace; printed, a line for each thing with `+`, `-` or a blank before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DryRun {
    /// In the order in which it stands: tables with their rules, then routing.
    pub lines: Vec<Line>,
}

/// A thing of ours, and what would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What would become of it.
    pub change: Change,
    /// What it is.
    pub what: Thing,
}

/// What would become of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It would be put there.
    Added,
    /// It would be taken away.
    Removed,
    /// It stands, and would stay.
    Stays,
    /// It is somebody else's under a name of ours: nothing at all would be changed.
    Foreign,
}

/// Something that a plan has, or that stands where it would.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Thing {
    /// A table.
    Table(Arc<str>),
    /// A rule.
    Rule {
        /// Its table.
        table: Arc<str>,
        /// Its chain.
        chain: String,
        /// The rule as text; for one that no plan has, the names of its steps.
        text: String,
    },
    /// The routing rule that leads back to the proxy.
    RoutingRule(IpFamily),
    /// The route that it leads to.
    Route(IpFamily),
    /// The routing rule by which what is captured has the loopback device's segments, and the routes of its table.
    Segments(IpFamily),
    /// That there is nothing of this although it is asked for, and why.
    NoSegments(IpFamily, Aside),
}

impl DryRun {
    /// Whether all stands as it should.
    pub fn is_nothing(&self) -> bool {
        self.lines.iter().all(|line| line.change == Change::Stays)
    }
}

impl Inside {
    /// What [`apply`](Self::apply) would change. Changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses, or its answers keep changing while they are read.
    pub fn dry_run(&mut self, plan: &Plan, mark: &Mark) -> Result<DryRun, ApplyError> {
        let (differences, lists) = self.standing(plan, mark)?;
        let tables = self.nftables.tables()?;
        let mut lines = Vec::new();
        for name in TABLES {
            let wanted = plan.tables.iter().find(|t| t.name == name);
            let there = named_as_ours(&tables).find(|(n, _)| *n == name).map(|(_, t)| t);
            let change = match (wanted, there) {
                (None, None) => continue,
                (_, Some(there)) if owner_of(there).is_none() => Change::Foreign,
                (Some(_), None) => Change::Added,
                (None, Some(_)) => Change::Removed,
                (Some(_), Some(_)) => Change::Stays,
            };
            lines.push(Line {
                change,
                what: Thing::Table(name.into()),
            });
            if change == Change::Foreign {
                continue;
            }
            let listed = match there {
                Some(_) => self.nftables.rules(Family::Inet, name)?,
                None => Vec::new(),
            };
            lines.extend(rules(name, wanted, &listed));
        }
        for table in unknown(&tables) {
            lines.push(Line {
                change: Change::Removed,
                what: Thing::Table(table.name.as_str().into()),
            });
            let listed = self.nftables.rules(Family::Inet, &table.name)?;
            lines.extend(rules(&table.name, None, &listed));
        }
        for family in lists.families(&plan.rules) {
            for (missing, what) in [
                (Difference::Rule(family), Thing::RoutingRule(family)),
                (Difference::Route(family), Thing::Route(family)),
            ] {
                let change = match differences.contains(&missing) {
                    true => Change::Added,
                    false => Change::Stays,
                };
                lines.push(Line { change, what });
            }
        }
        let segments = self.segments_would_change(&plan.segments, &lists)?;
        lines.extend(segments.into_iter().map(|(family, would)| match would {
            Ok(change) => Line {
                change,
                what: Thing::Segments(family),
            },
            Err(aside) => Line {
                change: Change::Stays,
                what: Thing::NoSegments(family, aside),
            },
        }));
        Ok(DryRun { lines })
    }
}

/// The rules of a table, chain by chain.
fn rules(table: &str, wanted: Option<&Table>, listed: &[NftRule]) -> Vec<Line> {
    let (mut lines, table) = (Vec::new(), Arc::<str>::from(table));
    let chains = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting].map(Hook::name);
    let mut names: Vec<&str> = chains.to_vec();
    names.extend(listed.iter().map(|r| r.chain.as_str()).filter(|name| !chains.contains(name)));
    names.dedup();
    for chain in names {
        let there: Vec<&NftRule> = listed.iter().filter(|r| r.chain == chain).collect();
        let is_chain = |c: &&crate::plan::Chain| c.hook.name() == chain;
        let wanted = wanted.and_then(|t| t.chains.iter().find(is_chain)).map_or(&[][..], |c| &c.rules);
        for (change, text) in compared(wanted, &there) {
            let (table, chain) = (table.clone(), chain.to_owned());
            lines.push(Line {
                change,
                what: Thing::Rule { table, chain, text },
            });
        }
    }
    lines
}

/// What stays is the longest that both have in the same order.
fn compared(wanted: &[Rule], there: &[&NftRule]) -> Vec<(Change, String)> {
    let same: Vec<Vec<bool>> = wanted
        .iter()
        .map(|rule| {
            let expressions = compile(rule);
            there.iter().map(|is| is.is(&expressions)).collect()
        })
        .collect();
    // lengths[w][t]: of what the rest from w on and the rest from t on have in common.
    let mut lengths = vec![vec![0usize; there.len() + 1]; wanted.len() + 1];
    for w in (0..wanted.len()).rev() {
        for t in (0..there.len()).rev() {
            lengths[w][t] = match same[w][t] {
                true => lengths[w + 1][t + 1] + 1,
                false => lengths[w + 1][t].max(lengths[w][t + 1]),
            };
        }
    }
    let (mut w, mut t, mut lines) = (0, 0, Vec::new());
    while w < wanted.len() || t < there.len() {
        if w < wanted.len() && t < there.len() && same[w][t] {
            lines.push((Change::Stays, wanted[w].to_string()));
            (w, t) = (w + 1, t + 1);
        } else if t < there.len() && (w == wanted.len() || lengths[w][t + 1] >= lengths[w + 1][t]) {
            lines.push((Change::Removed, told(there[t])));
            t += 1;
        } else {
            lines.push((Change::Added, wanted[w].to_string()));
            w += 1;
        }
    }
    lines
}

/// A rule that stands, as text if any plan has it.
fn told(rule: &NftRule) -> String {
    let known = |options: &Options| {
        let plan = Plan::new(options).and_closed(options);
        let rules = plan.tables.into_iter().flat_map(|t| t.chains).flat_map(|c| c.rules);
        rules.into_iter().find(|known| rule.is(&compile(known)))
    };
    let all = [true, false].map(|ipv6| Options {
        ipv6,
        probes: true,
        ..Options::default()
    });
    match all.iter().find_map(known) {
        Some(known) => known.to_string(),
        None => format!("(no rule of ours, handle {}: {})", rule.handle, rule.steps().join(", ")),
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Stays => ' ',
            Change::Foreign => '!',
        };
        write!(f, "{sign} {}", self.what)?;
        match self.change {
            Change::Foreign => f.write_str(" is somebody else's: nothing would be changed"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "table inet {name}"),
            Self::Rule { table, chain, text } => write!(f, "rule {table} {chain}: {text}"),
            Self::RoutingRule(family) => write!(f, "routing rule, {family}"),
            Self::Route(family) => write!(f, "route to the proxy, {family}"),
            Self::Segments(family) => write!(f, "loopback segments, {family}"),
            Self::NoSegments(family, aside) => write!(f, "no loopback segments, {family}: {aside}"),
        }
    }
}
