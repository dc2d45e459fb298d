//! Sums of rows along chains of values, so that a connection with many values reads few sets.
//!
//! The beginnings of a text that rules ask for lie one in the other, and so do its ends, and the blocks around an
//! address: whoever has one of them has all that it lies in. Where many rows ask for them, some of the values keep the
//! rows of all that they lie in together with their own. A decision reads the sum of the innermost such value, and beside
//! it what lies further in, and what few rows ask for.
//!
//! Which values keep sums is so chosen that on no chain more than `rows / SHARE` rows are to be read beside one, by as
//! few sums as that takes: each stands for more than as many rows of its own, and is four bitmaps of all rows at most. So
//! all of them together take no more than `SHARE / 2` bytes for each time that a row asks for a value or refuses it,
//! mostly far less. A chain that needs no more than `FEW_SUMS` of them may have that many, where it leaves fewer rows to read.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    BitsOfBlocks,
    dictionary::{Dictionary, Value},
    posting::{BLOCK, Edit},
};

mod table;
#[cfg(test)]
mod tests;

use table::{Column, Derived, Table};

pub(crate) use table::Sum;

/// A value that lies in others.
pub(crate) trait Nested: Value {
    /// The chain that it belongs to, of those of its dictionary: what one text or address has of a chain lies one in the
    /// other. None for a value that never lies in another.
    fn chain(&self) -> Option<usize>;

    /// Of two values of a chain that something has, the one that lies in the other is deeper; equal ones say the same.
    fn depth(&self) -> u32;

    /// Whether all that has another value of its chain has this one.
    fn covers(&self, other: &Self) -> bool;

    /// An order of a chain in which the values that lie in one follow right behind it.
    fn order(&self, other: &Self) -> Ordering;
}

/// The sums of a dictionary with so many chains.
#[derive(Clone, Debug)]
pub(crate) struct Sums<const CHAINS: usize> {
    chains: [Chain; CHAINS],
    /// The values whose rows are in the sums of what lies in them; the few rows of others are not.
    heavy: Arc<BTreeSet<u32>>,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    /// The values that keep sums, in the order of their numbers.
    kept: Arc<Vec<Kept>>,
    /// The sums, in the same order.
    table: Table,
    /// How many rows came and went since those were chosen.
    drift: usize,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    number: u32,
    /// Whether what fails by the sum is right but for the blocks that are being changed.
    made: bool,
}

impl Chain {
    fn find(&self, number: u32) -> Option<usize> {
        self.kept.binary_search_by_key(&number, |kept| kept.number).ok()
    }

    /// Lets other values keep sums, in the order of their numbers: those that do already, and some with what they are.
    fn keep(&mut self, numbers: &[u32], mut columns: BTreeMap<u32, Column>) {
        let sums: Vec<_> = numbers
            .iter()
            .map(|number| self.find(*number).ok_or_else(|| columns.remove(number).unwrap_or_default()))
            .collect();
        let kept = numbers.iter().zip(&sums).map(|(number, sum)| Kept {
            number: *number,
            made: sum.as_ref().is_ok_and(|at| self.kept[*at].made),
        });
        let kept = Arc::new(kept.collect());
        self.table = self.table.of_others(&sums);
        self.kept = kept;
    }
}

/// What has changed in one list of a value: rows that came or left.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) number: u32,
    /// Whether the rows refuse the value.
    pub(crate) refused: bool,
    pub(crate) edits: Vec<Edit<()>>,
}

/// How many blocks there are, and where rows have come or gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangedBlocks<'a> {
    pub(crate) all: u32,
    pub(crate) changed: &'a [u32],
}

impl<const CHAINS: usize> Default for Sums<CHAINS> {
    fn default() -> Self {
        Self {
            chains: std::array::from_fn(|_| Chain::default()),
            heavy: Arc::default(),
        }
    }
}

impl<const CHAINS: usize> Sums<CHAINS> {
    /// The sum that a value keeps; one that has none in sums keeps none.
    pub(crate) fn of(&self, chain: usize, number: u32) -> Option<Sum<'_>> {
        let chain = &self.chains[chain];
        Some(Sum::new(&chain.table, chain.find(number)?))
    }

    /// Whether a change of a value's rows is to be brought in, of which so many lie one in the other at most.
    pub(crate) fn concern<V: Value>(&self, values: &Dictionary<V>, number: u32, depth: usize, heavy: usize) -> bool {
        values.listed(number) >= least(depth, heavy) || self.heavy.contains(&number)
    }

    /// Brings changes in, of values that they concern; the lists have changed already, and beside a sum so many rows may be read at most.
    pub(crate) fn edit<V: Nested>(&mut self, values: &mut Dictionary<V>, changes: &[Changed], most: usize) {
        let mut of_chains = [const { Vec::new() }; CHAINS];
        for of_value in changes.chunk_by(|a, b| a.number == b.number) {
            let number = of_value[0].number;
            let Some(chain) = values.value(number).and_then(Nested::chain) else {
                continue;
            };
            if self.heavy.contains(&number) {
                of_chains[chain].extend(of_value.iter().map(Change::Edits));
            } else {
                Arc::make_mut(&mut self.heavy).insert(number);
                if let Some(lists) = values.lists_mut(number) {
                    lists.in_sums = true;
                }
                of_chains[chain].push(Change::All(number));
            }
        }
        for (at, parts) in of_chains.iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let came: usize = parts.iter().map(|part| part.rows(values)).sum();
            if came > most.saturating_mul(SHARE) / 4 {
                // To begin anew costs less.
                self.chains[at] = Chain::default();
            }
            let mut edits = Vec::new();
            for sum in 0..self.chains[at].kept.len() {
                edits.clear();
                bring_in(values, &mut self.chains[at], sum, parts, &mut edits);
            }
            self.chains[at].drift += came;
            if self.chains[at].drift > most / 2 {
                self.choose(values, at, most);
            }
        }
        let gone: Vec<_> = changes
            .iter()
            .map(|change| change.number)
            .filter(|n| values.listed(*n) == 0)
            .collect();
        if !gone.is_empty() {
            self.leave(values, &gone);
        }
    }

    /// Brings up to date in some blocks what fails by each sum, given for each chain the rows that ask in its lane alone, and for
    /// those of texts the rows that ask from both sides.
    pub(crate) fn renew_fails<'b>(
        &mut self,
        rows: impl Fn(usize) -> (&'b BitsOfBlocks, Option<&'b BitsOfBlocks>),
        blocks: ChangedBlocks<'_>,
    ) {
        for (at, chain) in self.chains.iter_mut().enumerate() {
            let (used, mixed) = rows(at);
            let of = |rows: &'b BitsOfBlocks, block: u32| rows.get(block as usize)?.as_deref();
            let Chain { kept, table, .. } = chain;
            for sum in 0..kept.len() {
                let mut look = |block: u32| {
                    let part = table.at(sum, block);
                    let derived = Derived::of(part, of(used, block), mixed.and_then(|mixed| of(mixed, block)));
                    if !derived.is_in(part) {
                        table.change((sum, kept.len()), block, |part| derived.put_in(part));
                    }
                };
                if kept[sum].made {
                    blocks.changed.iter().copied().for_each(look);
                } else {
                    (0..blocks.all).for_each(&mut look);
                    Arc::make_mut(kept)[sum].made = true;
                }
            }
        }
    }

    /// Values that no row asks for any more.
    fn leave<V: Nested>(&mut self, values: &mut Dictionary<V>, gone: &[u32]) {
        let heavy = Arc::make_mut(&mut self.heavy);
        for number in gone {
            heavy.remove(number);
            if let Some(lists) = values.lists_mut(*number) {
                lists.in_sums = false;
            }
        }
        for chain in &mut self.chains {
            if gone.iter().any(|number| chain.find(*number).is_some()) {
                let left = chain.kept.iter().map(|kept| kept.number).filter(|number| !gone.contains(number));
                chain.keep(&left.collect::<Vec<_>>(), BTreeMap::new());
            }
        }
    }

    /// Chooses the values of a chain that keep sums, so that beside them there are at most so many rows.
    fn choose<V: Nested>(&mut self, values: &Dictionary<V>, chain: usize, most: usize) {
        let nodes = nodes(values, self.heavy.iter().copied(), chain);
        let keeps = finest(&nodes, most);
        let chain = &mut self.chains[chain];
        chain.drift = 0;
        let mut numbers = Vec::new();
        let mut columns = BTreeMap::new();
        // Those further out come first.
        for (at, node) in nodes.iter().enumerate().filter(|(at, _)| keeps[*at]) {
            let number = node.values[0];
            numbers.push(number);
            if chain.find(number).is_none() {
                let column = column(values, (&nodes, &keeps), at, |outer| match chain.find(outer) {
                    Some(sum) => chain.table.column(sum),
                    None => columns.get(&outer).cloned().unwrap_or_default(),
                });
                columns.insert(number, column);
            }
        }
        numbers.sort_unstable();
        if !numbers.iter().copied().eq(chain.kept.iter().map(|kept| kept.number)) {
            chain.keep(&numbers, columns);
        }
    }
}

/// What of a value is to be brought into sums.
enum Change<'c> {
    Edits(&'c Changed),
    /// All its rows.
    All(u32),
}

impl Change<'_> {
    fn number(&self) -> u32 {
        match self {
            Self::Edits(changed) => changed.number,
            Self::All(number) => *number,
        }
    }

    fn rows<V: Value>(&self, values: &Dictionary<V>) -> usize {
        match self {
            Self::Edits(changed) => changed.edits.len(),
            Self::All(number) => values.listed(*number),
        }
    }
}

/// A row of a sum, whether it refuses, and whether it comes: of one row the leaving is first.
type RowEdit = (u32, bool, bool);

/// Brings what has changed into a sum, given room for edits.
fn bring_in<V: Nested>(values: &Dictionary<V>, chain: &mut Chain, sum: usize, parts: &[Change<'_>], edits: &mut Vec<RowEdit>) {
    let Some(inner) = values.value(chain.kept[sum].number) else {
        return;
    };
    let mut anywhere = false;
    for part in parts {
        if !values.value(part.number()).is_some_and(|outer| outer.covers(inner)) {
            continue;
        }
        match part {
            Change::Edits(changed) => edits.extend(changed.edits.iter().map(|edit| (edit.row, changed.refused, edit.comes.is_some()))),
            Change::All(number) => {
                anywhere = true;
                each_row(values, *number, |row, refused| edits.push((row, refused, true)));
            }
        }
    }
    edits.sort_unstable();
    let sums = chain.kept.len();
    for of_block in edits.chunk_by(|a, b| a.0 / BLOCK == b.0 / BLOCK) {
        chain.table.change((sum, sums), of_block[0].0 / BLOCK, |part| {
            for (row, refused, comes) in of_block {
                part.edit(*row, *refused, *comes);
            }
        });
    }
    if anywhere && chain.kept[sum].made {
        Arc::make_mut(&mut chain.kept)[sum].made = false;
    }
}

/// Calls for all rows of a value, and whether each refuses it.
fn each_row<V: Value>(values: &Dictionary<V>, number: u32, mut call: impl FnMut(u32, bool)) {
    if let Some((_, filed, lists)) = values.item(number) {
        filed.rows().each(|row, _| call(row, false));
        lists.others.each(|row, ()| call(row, false));
        lists.negated.each(|row, ()| call(row, true));
    }
}

/// Values that say the same, and the node that they lie in first.
struct Node {
    values: Vec<u32>,
    rows: usize,
    inside: Option<usize>,
}

/// The values of a chain, each behind those that it lies in.
fn nodes<V: Nested>(values: &Dictionary<V>, numbers: impl Iterator<Item = u32>, chain: usize) -> Vec<Node> {
    let of_chain = numbers.filter_map(|number| Some((values.value(number)?, number)));
    let mut all: Vec<_> = of_chain.filter(|(value, _)| value.chain() == Some(chain)).collect();
    all.sort_unstable_by(|(a, n), (b, m)| a.order(b).then(n.cmp(m)));
    let mut nodes: Vec<Node> = Vec::with_capacity(all.len());
    let mut open: Vec<(&V, usize)> = Vec::new();
    for (value, number) in all {
        while open.pop_if(|(outer, _)| !outer.covers(value)).is_some() {}
        let rows = values.listed(number);
        if let Some((outer, at)) = open.last()
            && value.covers(outer)
        {
            nodes[*at].values.push(number);
            nodes[*at].rows += rows;
            continue;
        }
        nodes.push(Node {
            values: vec![number],
            rows,
            inside: open.last().map(|(_, at)| *at),
        });
        open.push((value, nodes.len() - 1));
    }
    nodes
}

/// Which nodes keep sums. From the innermost on outwards: where what is to be read below one and its own would be too
/// much, it keeps one.
fn keepers(nodes: &[Node], most: usize) -> Vec<bool> {
    let mut below = vec![0; nodes.len()];
    let mut keeps = vec![false; nodes.len()];
    for (at, node) in nodes.iter().enumerate().rev() {
        let rows = below[at] + node.rows;
        keeps[at] = rows > most;
        if let Some(outer) = node.inside
            && !keeps[at]
        {
            below[outer] = rows.max(below[outer]);
        }
    }
    keeps
}

/// The same, where so few sums are needed that more of them leave less to read beside one.
fn finest(nodes: &[Node], most: usize) -> Vec<bool> {
    let (mut keeps, mut most) = (keepers(nodes, most), most);
    while most > FINEST {
        most /= 2;
        let finer = keepers(nodes, most);
        if finer.iter().filter(|keeps| **keeps).count() > FEW_SUMS {
            break;
        }
        keeps = finer;
    }
    keeps
}

/// What the sum of a node is: of the next one outwards that keeps one, which is given, and of all between.
fn column<V: Value>(values: &Dictionary<V>, (nodes, keeps): (&[Node], &[bool]), at: usize, kept: impl FnOnce(u32) -> Column) -> Column {
    let mut between = vec![at];
    let mut next = nodes[at].inside;
    while let Some(outer) = next.filter(|outer| !keeps[*outer]) {
        between.push(outer);
        next = nodes[outer].inside;
    }
    let mut column = next.map_or_else(Column::new, |outer| kept(nodes[outer].values[0]));
    for number in between.iter().flat_map(|at| &nodes[*at].values) {
        each_row(values, *number, |row, refused| table::add(&mut column, row, refused));
    }
    column
}

/// How many rows a value has whose rows are not read one by one, where so many lie one in the other at most.
fn least(depth: usize, heavy: usize) -> usize {
    (MOST_LIGHT / depth.max(1)).clamp(1, heavy)
}

/// Of values with fewer rows the rows are read one by one,
pub(super) const HEAVY: usize = 64;
/// and about so many in all.
const MOST_LIGHT: usize = 1024;
/// A chain with so few sums has them so close
const FEW_SUMS: usize = 32;
/// that not much more than so many rows are read beside one.
const FINEST: usize = 256;
/// Of all rows this part may be read beside a sum.
pub(super) const SHARE: usize = 256;
