//! Rules of whose clauses each has rows of its own, side by side in one block: which of them hold, for a block at once.

use super::posting::{Bits, WORDS, is_set, set};

/// The rows of a block that are matches of clauses. Those of a clause follow each other, and so do the clauses of a rule.
#[derive(Clone, Debug)]
pub(crate) struct Clauses {
    /// All such rows.
    members: Bits,
    /// The last row of each clause.
    ends: Bits,
    /// The last row of each rule.
    rule_ends: Bits,
}

impl Default for Clauses {
    fn default() -> Self {
        Self {
            members: [0; WORDS],
            ends: [0; WORDS],
            rule_ends: [0; WORDS],
        }
    }
}

impl Clauses {
    pub(crate) fn members(&self) -> &Bits {
        &self.members
    }

    /// Takes a rule in, whose rows begin at a place, by how many each clause has.
    pub(crate) fn insert(&mut self, first: u32, clauses: impl IntoIterator<Item = usize>) {
        let mut next = first;
        for rows in clauses {
            (next..next + rows as u32).for_each(|at| set(&mut self.members, at));
            next += rows as u32;
            set(&mut self.ends, next - 1);
        }
        set(&mut self.rule_ends, next - 1);
    }

    /// Takes out the rule whose rows begin at a place; gives how many they are, 0 where no such row is.
    pub(crate) fn remove(&mut self, first: u32) -> u32 {
        let mut at = first;
        while (at as usize) < 64 * WORDS && is_set(&self.members, at) {
            let is_last = is_set(&self.rule_ends, at);
            for bits in [&mut self.members, &mut self.ends, &mut self.rule_ends] {
                bits[at as usize / 64] &= !(1 << (at % 64));
            }
            at += 1;
            if is_last {
                break;
            }
        }
        at - first
    }

    /// The last rows of the rules of which each clause has a row among some.
    pub(crate) fn that_hold(&self, rows: &Bits) -> Bits {
        // A sum carries from any bit that is set up to the end of its clause: the bits between are all set in the addend,
        // and the end in neither. In the same way from a clause without a row up to the end of its rule.
        let (mut carries, mut holds) = ([false; 2], [0; WORDS]);
        for (at, holds) in holds.iter_mut().enumerate() {
            let (members, ends, rule_ends) = (self.members[at], self.ends[at], self.rule_ends[at]);
            let rows = rows[at] & members;
            let any = if members == ends && !carries[0] {
                // Where each clause is one row nothing is carried within them: that is so of most.
                rows
            } else {
                let inner = members & !ends;
                (add(rows & inner, inner, &mut carries[0]) | rows) & ends
            };
            let (failed, inner) = (ends & !any, members & !rule_ends);
            let any_failed = add(failed & inner, inner, &mut carries[1]) | failed;
            *holds = rule_ends & !any_failed;
        }
        holds
    }
}

fn add(a: u64, b: u64, carry: &mut bool) -> u64 {
    let (sum, over) = a.overflowing_add(b);
    let (sum, over_again) = sum.overflowing_add(u64::from(*carry));
    *carry = over | over_again;
    sum
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_rule_holds_where_each_clause_has_a_row(
            rules in prop_oneof![
                vec((0..9u32, vec(1..90usize, 1..5)), 1..40),
                vec((0..3u32, vec(prop_oneof![9 => Just(1), 1 => 1..4usize], 1..90)), 1..120),
            ],
            seed in any::<u64>(),
            leaves in 0..4u64,
        ) {
            let (mut clauses, mut bits, mut state) = (Clauses::default(), [0; WORDS], seed);
            let mut random = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state >> 33
            };
            let (mut at, mut wanted, mut firsts) = (0, Vec::new(), Vec::new());
            for (gap, of_rule) in rules {
                let first = at + gap;
                let len = of_rule.iter().sum::<usize>() as u32;
                if first + len > 64 * WORDS as u32 {
                    break;
                }
                clauses.insert(first, of_rule.iter().copied());
                // Rows of others stand between, and must not count.
                (at..first).for_each(|at| set(&mut bits, at));
                at = first;
                let mut holds = true;
                for rows in of_rule {
                    // Seldom a whole clause without one.
                    let (once_in, mut any) = (if random() % 8 == 0 { 1000 } else { 3 }, false);
                    for row in at..at + rows as u32 {
                        if random() % once_in == leaves % once_in {
                            set(&mut bits, row);
                            any = true;
                        }
                    }
                    holds &= any;
                    at += rows as u32;
                }
                firsts.push((first, len));
                if holds {
                    wanted.push(at - 1);
                }
            }
            let holds = clauses.that_hold(&bits);
            prop_assert_eq!((0..64 * WORDS as u32).filter(|at| is_set(&holds, *at)).collect::<Vec<_>>(), wanted);
            for (first, len) in firsts {
                prop_assert_eq!(clauses.remove(first), len);
            }
            prop_assert_eq!(clauses.members(), &[0; WORDS]);
        }
    }
}
