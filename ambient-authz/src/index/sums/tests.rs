use std::collections::BTreeSet;

use super::{super::posting::Posting, *};
use crate::{Action, Match, Policies, Policy, Rule, Scope, StringMatch, policy::Update};

const TEXT: &str = "cluster.local/ns/team/sa/caller";

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn text(&mut self) -> StringMatch {
        let at = self.below(TEXT.len() + 1);
        match self.below(8) {
            0 => StringMatch::Exact(TEXT.into()),
            1 => StringMatch::Presence,
            2..5 => StringMatch::Prefix(TEXT[..at].into()),
            5 | 6 => StringMatch::Suffix(TEXT[at..].into()),
            // Of another branch.
            _ => StringMatch::Prefix(format!("{}-", &TEXT[..at]).as_str().into()),
        }
    }

    fn block(&mut self) -> ipnet::IpNet {
        // Some are written in several ways.
        let ip = [10, 1, 2, self.below(4) as u8];
        ipnet::IpNet::new(ip.into(), 8 + self.below(25) as u8).unwrap()
    }

    fn policy(&mut self) -> Update {
        let key = format!("a/p{}", self.below(60));
        if self.below(5) == 0 {
            return Update::Remove(key.as_str().into());
        }
        let rule = |random: &mut Self| {
            let found = Match {
                principals: (0..1 + random.below(2)).map(|_| random.text()).collect(),
                not_principals: (0..random.below(2)).map(|_| random.text()).collect(),
                source_ips: (0..random.below(3)).map(|_| random.block()).collect(),
                not_source_ips: (0..random.below(2)).map(|_| random.block()).collect(),
                ..Match::default()
            };
            Rule {
                clauses: vec![found.into()],
            }
        };
        let rules = self.below(400);
        Update::Set(Arc::new(Policy {
            key: key.as_str().into(),
            namespace: "a".into(),
            scope: Scope::Global,
            action: Action::Deny,
            rules: (0..rules).map(|_| rule(self)).collect(),
            dry_run: false,
        }))
    }
}

fn rows<T: Copy + Default>(posting: &Posting<T>) -> BTreeSet<u32> {
    let mut rows = BTreeSet::new();
    posting.each(|row, _| {
        rows.insert(row);
    });
    rows
}

/// The rows of a sum in all blocks: those that ask, and those that refuse.
fn rows_of(column: &Column) -> [BTreeSet<u32>; 2] {
    let mut rows = [BTreeSet::new(), BTreeSet::new()];
    for (part, first) in column.iter().zip((0..).step_by(BLOCK as usize)) {
        part.each_row(|at, refused| {
            rows[usize::from(refused)].insert(first + at);
        });
    }
    rows
}

/// Compares every sum with the lists that it is of, and what fails by it with the rows, and looks that no chain is left with much beside sums; gives how many
/// sums there are.
fn check<V: Nested + std::fmt::Debug, const CHAINS: usize>(
    sums: &Sums<CHAINS>,
    values: &Dictionary<V>,
    (used, mixed): (&[BitsOfBlocks], &[BitsOfBlocks]),
    most: usize,
) -> usize {
    let heavy: Vec<_> = sums.heavy.iter().map(|number| (values.item(*number).unwrap(), *number)).collect();
    assert!(heavy.iter().all(|((_, _, lists), _)| lists.in_sums));
    let all = sums
        .chains
        .iter()
        .flat_map(|chain| chain.kept.iter().map(move |kept| (chain, kept)));
    let all: Vec<_> = all.collect();
    assert!(sums.chains.iter().all(|chain| chain.kept.is_sorted_by_key(|kept| kept.number)));
    let kept: Vec<u32> = all.iter().map(|(_, kept)| kept.number).collect();
    for (of_chain, Kept { number, made }) in all {
        let (inner, ..) = values.item(*number).unwrap();
        let chain = inner.chain().unwrap();
        let sum = of_chain.find(*number).unwrap();
        assert!(made);
        for block in 0..40 {
            let of = |rows: &BitsOfBlocks| rows.get(block as usize).cloned().flatten();
            let (used, mixed) = (of(&used[chain]), mixed.get(chain / 2).and_then(of));
            let part = of_chain.table.at(sum, block);
            assert!(Derived::of(part, used.as_deref(), mixed.as_deref()).is_in(part), "{inner:?}");
        }
        let outer = heavy
            .iter()
            .filter(|((value, ..), _)| value.chain() == inner.chain() && value.covers(inner));
        let (mut asked, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for ((_, filed, lists), _) in outer {
            asked.extend(rows(filed.rows()));
            asked.extend(rows(&lists.others));
            refused.extend(rows(&lists.negated));
        }
        let column = of_chain.table.column(sum);
        assert_eq!(rows_of(&column), [asked, refused], "{inner:?}");
    }
    for ((inner, ..), _) in &heavy {
        let covering = |number: &u32| {
            values
                .value(*number)
                .filter(|value| value.chain() == inner.chain() && value.covers(inner))
        };
        let summed_to = kept.iter().filter_map(covering).map(Nested::depth).max();
        let beside = heavy
            .iter()
            .filter(|((value, ..), _)| value.chain() == inner.chain() && value.covers(inner));
        let beside = beside.filter(|((value, ..), _)| summed_to.is_none_or(|to| value.depth() > to));
        let beside: usize = beside.map(|(_, number)| values.listed(*number)).sum();
        assert!(beside <= most, "{beside} rows beside the sum above {inner:?}");
    }
    kept.len()
}

#[test]
fn sums_are_those_of_what_they_lie_in_however_policies_come_and_go() {
    let mut most_sums = 0;
    for seed in 0..4 {
        let mut random = Random(seed);
        let mut policies = Policies::default();
        for _ in 0..12 {
            let most = [60, 4, 4][random.below(3)];
            let batch = 1 + random.below(most);
            policies = policies.apply((0..batch).map(|_| random.policy()).collect::<Vec<_>>());
            let index = policies.index();
            // Half as much may have come since sums were chosen.
            let most = (index.rows().blocks() * 4096 / SHARE).max(HEAVY) * 3 / 2;
            let names = &index.terms.names;
            let sources = &index.terms.sources;
            let used = &index.used;
            let sums = check(&names.sums, &names.dictionary, (&used[..7], &index.mixed), most)
                + check(&sources.sums, &sources.blocks, (&used[7..8], &[]), most)
                + check(&index.terms.port_sums, &index.terms.ports, (&used[9..10], &[]), most);
            most_sums = most_sums.max(sums);
        }
    }
    assert!(most_sums > 50, "{most_sums} sums");
}

/// Some values that lie one in the other, each with so many rows.
fn nested(values: u32, rows: usize) -> Vec<Node> {
    let node = |number: u32| Node {
        values: vec![number],
        rows,
        inside: number.checked_sub(1).map(|outer| outer as usize),
    };
    (0..values).map(node).collect()
}

/// The most rows that are beside any sum, or beside none, and how many sums there are.
fn beside(nodes: &[Node], keeps: &[bool]) -> (usize, usize) {
    let (mut rows, mut most) = (0, 0);
    for (node, keeps) in nodes.iter().zip(keeps) {
        rows = if *keeps { 0 } else { rows + node.rows };
        most = most.max(rows);
    }
    (most, keeps.iter().filter(|keeps| **keeps).count())
}

#[test]
fn where_few_sums_are_needed_they_stand_closer() {
    // Of very many values with few rows, as of each few rules ask: one sum would do, and leave thousands of rows beside it.
    let few_rows = nested(333, 62);
    assert_eq!(beside(&few_rows, &keepers(&few_rows, 20_000)), (19_964, 1));
    let (rows, sums) = beside(&few_rows, &finest(&few_rows, 20_000));
    assert!(rows <= 1000 && (16..=FEW_SUMS).contains(&sums), "{rows} rows, {sums} sums");
    // Where each needs one there are no more of them.
    let many_rows = nested(129, 5000);
    assert_eq!(finest(&many_rows, 3906), keepers(&many_rows, 3906));
    // And never so close that nothing is left beside.
    let small = nested(40, 10);
    assert!(beside(&small, &finest(&small, 20_000)).1 <= 400 / (FINEST / 2));
}
