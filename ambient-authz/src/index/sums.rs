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

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    BitsOfBlocks,
    dictionary::{Dictionary, Lists, Value},
    filed::Filed,
    posting::{Bits, Edit, Posting, WORDS},
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
    /// Those that fail by that: that refuse one of them, or ask in this lane alone, and for none of them. So a decision
    /// reads one bitmap in the place of three.
    pub(crate) fails: Derived,
    /// Of a text, those that ask about it from both sides, and in this lane for none of them: which fail if they do in
    /// the other lane as well.
    pub(crate) lacks: Derived,
    /// Whether these are right but for the blocks that are being changed.
    made: bool,
}

/// A bitmap for each block where any row is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Derived(Vec<Arc<[Option<Arc<Bits>>; GROUP]>>);

impl Derived {
    pub(crate) fn at(&self, block: u32) -> Option<&Bits> {
        let (group, at) = (block as usize / GROUP, block as usize % GROUP);
        self.0.get(group)?[at].as_deref()
    }

    fn put(&mut self, block: u32, bits: &Bits) {
        let bits = (*bits != NO_BITS).then_some(bits);
        if self.at(block) == bits {
            return;
        }
        let (group, at) = (block as usize / GROUP, block as usize % GROUP);
        if self.0.len() <= group {
            self.0.resize_with(group + 1, || Arc::new([const { None }; GROUP]));
        }
        Arc::make_mut(&mut self.0[group])[at] = bits.map(|bits| Arc::new(*bits));
    }
}

impl Sum {
    /// What of a block fails, and what lacks, given the rows that ask in this lane alone, and from both sides.
    fn derive(&self, used: Option<&Bits>, mixed: Option<&Bits>, block: u32) -> [Bits; 2] {
        let mut asked = [0; WORDS];
        self.asked.add_to(&mut asked, block);
        let without = |rows: Option<&Bits>| {
            let mut rows = rows.copied().unwrap_or(NO_BITS);
            rows.iter_mut().zip(asked).for_each(|(rows, asked)| *rows &= !asked);
            rows
        };
        let [mut fails, lacks] = [used, mixed].map(without);
        self.refused.add_to(&mut fails, block);
        [fails, lacks]
    }

    fn is(&self, [fails, lacks]: &[Bits; 2], block: u32) -> bool {
        self.fails.at(block).unwrap_or(&NO_BITS) == fails && self.lacks.at(block).unwrap_or(&NO_BITS) == lacks
    }
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
    /// The values that keep sums, in the order of their numbers.
    kept: Arc<Vec<Kept>>,
    /// How many rows came and went since those were chosen.
    drift: usize,
}

#[derive(Clone, Debug)]
struct Kept {
    number: u32,
    sum: Arc<Sum>,
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
    pub(crate) fn of(&self, chain: usize, number: u32) -> Option<&Sum> {
        let kept = &self.chains[chain].kept;
        let at = kept.binary_search_by_key(&number, |kept| kept.number).ok()?;
        Some(&kept[at].sum)
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
                of_chains[chain].extend(of_value.iter().map(Part::Edits));
            } else {
                Arc::make_mut(&mut self.heavy).insert(number);
                if let Some(lists) = values.lists_mut(number) {
                    lists.in_sums = true;
                }
                of_chains[chain].push(Part::All(number));
            }
        }
        for (at, parts) in of_chains.iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let came: usize = parts.iter().map(|part| part.rows(values)).sum();
            if came > most.saturating_mul(SHARE) / 4 {
                // To begin anew costs less.
                self.chains[at].kept = Arc::default();
            }
            for kept in Arc::make_mut(&mut self.chains[at].kept) {
                bring_in(values, kept, parts);
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
            for at in 0..chain.kept.len() {
                let (sum, mut differing) = (&chain.kept[at].sum, Vec::new());
                let mut look = |block: u32| {
                    let derived = sum.derive(of(used, block), mixed.and_then(|mixed| of(mixed, block)), block);
                    if !sum.is(&derived, block) {
                        differing.push((block, derived));
                    }
                };
                match sum.made {
                    true => blocks.changed.iter().copied().for_each(&mut look),
                    false => (0..blocks.all).for_each(&mut look),
                }
                if differing.is_empty() && sum.made {
                    continue;
                }
                let sum = Arc::make_mut(&mut Arc::make_mut(&mut chain.kept)[at].sum);
                sum.made = true;
                for (block, [fails, lacks]) in differing {
                    sum.fails.put(block, &fails);
                    sum.lacks.put(block, &lacks);
                }
            }
        }
    }

    /// A value that no row asks for any more.
    fn leave<V: Nested>(&mut self, values: &mut Dictionary<V>, number: u32) {
        Arc::make_mut(&mut self.heavy).remove(&number);
        for chain in &mut self.chains {
            if chain.kept.iter().any(|kept| kept.number == number) {
                Arc::make_mut(&mut chain.kept).retain(|kept| kept.number != number);
            }
        }
        if let Some(lists) = values.lists_mut(number) {
            lists.in_sums = false;
        }
    }

    /// Chooses the values of a chain that keep sums, so that beside them there are at most so many rows.
    fn choose<V: Nested>(&mut self, values: &Dictionary<V>, chain: usize, most: usize) {
        let nodes = nodes(values, self.heavy.iter().copied(), chain);
        let keeps = keepers(&nodes, most);
        let before = std::mem::take(&mut self.chains[chain].kept);
        // Those further out come first.
        let mut sums = BTreeMap::new();
        for (at, node) in nodes.iter().enumerate().filter(|(at, _)| keeps[*at]) {
            let number = node.values[0];
            let kept = before.binary_search_by_key(&number, |kept| kept.number);
            let sum = kept.map_or_else(|_| Arc::new(sum(values, &nodes, at, &sums)), |at| before[at].sum.clone());
            sums.insert(number, sum);
        }
        let kept = sums.into_iter().map(|(number, sum)| Kept { number, sum });
        self.chains[chain] = Chain {
            kept: Arc::new(kept.collect()),
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
fn bring_in<V: Nested>(values: &Dictionary<V>, kept: &mut Kept, parts: &[Part<'_>]) {
    let Some(inner) = values.value(kept.number) else { return };
    let mut edits = [Vec::new(), Vec::new()];
    let mut anywhere = false;
    for part in parts {
        if !values.value(part.number()).is_some_and(|outer| outer.covers(inner)) {
            continue;
        }
        match part {
            Part::Edits(changed) => edits[usize::from(changed.refused)].extend(changed.edits.iter().map(|e| (e.row, e.comes.is_some()))),
            Part::All(number) => {
                anywhere = true;
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
    if asked.is_empty() && refused.is_empty() {
        return;
    }
    let sum = Arc::make_mut(&mut kept.sum);
    sum.asked.edit(&asked);
    sum.refused.edit(&refused);
    sum.made &= !anywhere;
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
fn sum<V: Value>(values: &Dictionary<V>, nodes: &[Node], at: usize, sums: &BTreeMap<u32, Arc<Sum>>) -> Sum {
    let mut sum = Sum::default();
    let mut next = Some(at);
    let mut between: Vec<(&Filed, &Lists)> = Vec::new();
    while let Some(node) = next.map(|at| &nodes[at]) {
        if let Some(kept) = sums.get(&node.values[0]) {
            (sum.asked, sum.refused) = (kept.asked.clone(), kept.refused.clone());
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

/// How many rows a value has whose rows are not read one by one, where so many lie one in the other at most.
fn least(depth: usize, heavy: usize) -> usize {
    (MOST_LIGHT / depth.max(1)).clamp(1, heavy)
}

static NO_BITS: Bits = [0; WORDS];
const GROUP: usize = 16;
/// Of values with fewer rows the rows are read one by one,
pub(super) const HEAVY: usize = 64;
/// and about so many in all.
const MOST_LIGHT: usize = 2048;
/// Of all rows this part may be read beside a sum.
pub(super) const SHARE: usize = 256;
