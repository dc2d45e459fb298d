//! Sums of rows along chains of values, so that a connection with many values reads few sets.
//!
//! The beginnings of a text that rules ask for lie one in the other, and so do its ends, and the blocks around an
//! address: whoever has one of them has all that it lies in. Where many rows ask for them, some of the values keep the
//! rows of all that they lie in together with their own. A decision reads the sum of the innermost such value, and beside
//! it what lies further in, and what few rows ask for.
//!
//! Which values keep sums is so chosen that on no chain more than `rows / SHARE` rows are to be read beside one, by as
//! few sums as that takes: each stands for more than as many rows of its own. So all of them together take no more
//! than `SHARE / 8` bytes for each time that a row asks for a value or refuses it, mostly far less.

use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

use super::{
    dictionary::{Dictionary, Lists, Value},
    filed::Filed,
    posting::{Edit, Posting},
};

#[cfg(test)]
mod tests;

/// The rows of a value and of all that it lies in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    /// Those that ask for one of them.
    pub(crate) asked: Posting<()>,
    /// Those that refuse one of them.
    pub(crate) refused: Posting<()>,
}

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
    /// The values that keep sums.
    kept: Arc<Vec<u32>>,
    /// How many rows came and went since those were chosen.
    drift: usize,
}

/// What has changed in one list of a value: rows that came or left.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) number: u32,
    /// Whether the rows refuse the value.
    pub(crate) refused: bool,
    pub(crate) edits: Vec<Edit<()>>,
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
    /// Whether a change of a list with so many rows, before or after, is to be brought in.
    pub(crate) fn concern(&self, number: u32, rows: usize) -> bool {
        rows >= HEAVY || self.heavy.contains(&number)
    }

    /// Brings changes in, of values that they concern; the lists have changed already, and there are so many rows in all.
    pub(crate) fn edit<V: Nested>(&mut self, values: &mut Dictionary<V>, changes: &[Changed], rows: usize) {
        let mut of_chains = [const { Vec::new() }; CHAINS];
        for of_value in changes.chunk_by(|a, b| a.number == b.number) {
            let number = of_value[0].number;
            let Some(chain) = values.value(number).and_then(Nested::chain) else {
                continue;
            };
            if self.heavy.contains(&number) {
                of_chains[chain].extend(of_value.iter().map(Part::Edits));
            } else {
                Arc::make_mut(&mut self.heavy).insert(number);
                if let Some(lists) = values.lists_mut(number) {
                    lists.in_sums = true;
                }
                of_chains[chain].push(Part::All(number));
            }
        }
        let most = (rows / SHARE).max(HEAVY);
        for (at, parts) in of_chains.iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let came: usize = parts.iter().map(|part| part.rows(values)).sum();
            if came > most * SHARE / 4 {
                // To begin anew costs less.
                self.forget(values, at);
            }
            for kept in &*self.chains[at].kept {
                bring_in(values, *kept, parts);
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
        gone.into_iter().for_each(|number| self.leave(values, number));
    }

    /// A value that no row asks for any more.
    fn leave<V: Nested>(&mut self, values: &mut Dictionary<V>, number: u32) {
        Arc::make_mut(&mut self.heavy).remove(&number);
        for chain in &mut self.chains {
            if chain.kept.contains(&number) {
                Arc::make_mut(&mut chain.kept).retain(|kept| *kept != number);
            }
        }
        if let Some(lists) = values.lists_mut(number) {
            (lists.sum, lists.in_sums) = (None, false);
        }
    }

    fn forget<V: Nested>(&mut self, values: &mut Dictionary<V>, chain: usize) {
        for number in std::mem::take(&mut self.chains[chain].kept).iter() {
            if let Some(lists) = values.lists_mut(*number) {
                lists.sum = None;
            }
        }
    }

    /// Chooses the values of a chain that keep sums, so that beside them there are at most so many rows.
    fn choose<V: Nested>(&mut self, values: &mut Dictionary<V>, chain: usize, most: usize) {
        let nodes = nodes(values, self.heavy.iter().copied(), chain);
        let keeps = keepers(&nodes, most);
        let kept: Vec<_> = nodes
            .iter()
            .zip(&keeps)
            .filter(|(_, keeps)| **keeps)
            .map(|(node, _)| node.values[0])
            .collect();
        let before = std::mem::take(&mut self.chains[chain].kept);
        for number in before.iter().filter(|number| !kept.contains(number)) {
            if let Some(lists) = values.lists_mut(*number) {
                lists.sum = None;
            }
        }
        for (at, node) in nodes.iter().enumerate().filter(|(at, _)| keeps[*at]) {
            if values.item(node.values[0]).is_some_and(|(_, _, lists)| lists.sum.is_some()) {
                continue;
            }
            let sum = sum(values, &nodes, at);
            if let Some(lists) = values.lists_mut(node.values[0]) {
                lists.sum = Some(Arc::new(sum));
            }
        }
        self.chains[chain] = Chain {
            kept: Arc::new(kept),
            drift: 0,
        };
    }
}

/// What of a value is to be brought into sums.
enum Part<'c> {
    Edits(&'c Changed),
    /// All its rows.
    All(u32),
}

impl Part<'_> {
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

/// Brings what has changed into the sum that a value keeps.
fn bring_in<V: Nested>(values: &mut Dictionary<V>, kept: u32, parts: &[Part<'_>]) {
    let Some(inner) = values.value(kept) else { return };
    let mut edits = [Vec::new(), Vec::new()];
    for part in parts {
        if !values.value(part.number()).is_some_and(|outer| outer.covers(inner)) {
            continue;
        }
        match part {
            Part::Edits(changed) => edits[usize::from(changed.refused)].extend(changed.edits.iter().map(|e| (e.row, e.comes.is_some()))),
            Part::All(number) => {
                if let Some((_, filed, lists)) = values.item(*number) {
                    filed.rows().each(|row, _| edits[0].push((row, true)));
                    lists.others.each(|row, ()| edits[0].push((row, true)));
                    lists.negated.each(|row, ()| edits[1].push((row, true)));
                }
            }
        }
    }
    let [asked, refused] = edits.map(|mut edits| {
        // A row leaves before another comes under its number.
        edits.sort_unstable();
        let edit = |(row, comes): (u32, bool)| Edit {
            row,
            comes: comes.then_some(()),
        };
        edits.into_iter().map(edit).collect::<Vec<_>>()
    });
    if let Some(sum) = values.lists_mut(kept).and_then(|lists| lists.sum.as_mut()) {
        let sum = Arc::make_mut(sum);
        sum.asked.edit(&asked);
        sum.refused.edit(&refused);
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

/// The sum of a node: of the next one outwards that keeps one, and of all between.
fn sum<V: Value>(values: &Dictionary<V>, nodes: &[Node], at: usize) -> Sum {
    let mut sum = Sum::default();
    let mut next = Some(at);
    let mut between: Vec<(&Filed, &Lists)> = Vec::new();
    while let Some(node) = next.map(|at| &nodes[at]) {
        let kept = values.item(node.values[0]).and_then(|(_, _, lists)| lists.sum.as_deref());
        if let Some(kept) = kept {
            sum = kept.clone();
            break;
        }
        let items = node.values.iter().filter_map(|number| values.item(*number));
        between.extend(items.map(|(_, filed, lists)| (filed, lists)));
        next = node.inside;
    }
    for (filed, lists) in between {
        sum.asked.add_all(filed.rows());
        sum.asked.add_all(&lists.others);
        sum.refused.add_all(&lists.negated);
    }
    sum
}

/// Of values with fewer rows the rows are read one by one.
const HEAVY: usize = 64;
/// Of all rows this part may be read beside a sum.
const SHARE: usize = 256;
