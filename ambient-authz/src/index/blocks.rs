//! The rows that may match a connection, a block at a time, by bitmaps.

use super::{
    posting::{BLOCK, Bits, Cursor, Posting, WORDS, each_bit},
    scan::{Asked, CHAINS},
    sums::Sum,
    term::{Field, Word},
};

/// Calls for every row of which each group and no refused value hits, in order of blocks; at most so many are filed under
/// values that the connection has. Of rules whose clauses have rows of their own it calls for the last row, and says that
/// the rule holds. False, without calls, where the connection has too many values.
pub(crate) fn each_candidate(asked: &Asked<'_>, filed: usize, mut call: impl FnMut(u32, bool)) -> bool {
    // Where about every block has rows that are filed so, to look which costs more than it spares.
    each_of(asked, filed > asked.index.blocks().len() * SELDOM, &mut call)
}

/// The same, in all blocks or in those only where rows are filed under what the connection has.
#[inline(never)] // its stack is large
fn each_of(asked: &Asked<'_>, all: bool, call: &mut impl FnMut(u32, bool)) -> bool {
    let Some(mut cursors) = Cursors::new(asked) else {
        return false;
    };
    let all = all || !cursors.filed_fit;
    let blocks = asked.index.blocks();
    for (block, occupied) in (0..).zip(blocks) {
        let mut bits = if all { **occupied } else { [0; WORDS] };
        for cursor in cursors.filed.held().iter_mut().filter(|_| !all) {
            cursor.add_to(&mut bits, block);
        }
        if is_empty(&bits) {
            continue;
        }
        let clauses = asked.index.clauses(block);
        if let Some(clauses) = clauses {
            // Of a rule that is found by one of its clauses the others are wanted too.
            bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits |= members);
        }
        for cursor in cursors.refused.held() {
            cursor.take_from(&mut bits, block);
        }
        if is_empty(&bits) || !cursors.keep_wanted(asked, &mut bits, block) {
            continue;
        }
        if let Some(clauses) = clauses {
            each_bit(&clauses.that_hold(&bits), |at| call(block * BLOCK + at, true));
            bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits &= !members);
        }
        each_bit(&bits, |at| call(block * BLOCK + at, false));
    }
    true
}

/// The sets of rows that a connection's values are in, each as far as it was read.
struct Cursors<'a> {
    filed: Room<Cursor<'a, Word>>,
    /// Whether all of those had room. Without them every block is gone over.
    filed_fit: bool,
    refused: Room<Cursor<'a, ()>>,
    /// In the order of fields; the sets under which rows are filed stand with those of other rows.
    wanted: Room<(Field, Lists<'a>)>,
}

/// The rows that ask for a value.
#[derive(Clone, Copy)]
struct Lists<'a> {
    filed: Cursor<'a, Word>,
    others: Cursor<'a, ()>,
}

impl<'a> Cursors<'a> {
    fn new(asked: &Asked<'a>) -> Option<Self> {
        let (filed, others) = (Cursor::new(&NO_FILED), Cursor::new(&NO_OTHERS));
        let mut new = Self {
            filed: Room::new(filed),
            filed_fit: true,
            refused: Room::new(others),
            wanted: Room::new((Field::Scope, Lists { filed, others })),
        };
        new.filed.push(Cursor::new(asked.index.terms.always.rows()));
        let mut fits = true;
        let mut sums: [Option<(u32, Field, &Sum)>; CHAINS] = [None; CHAINS];
        asked.each_list(|rows| {
            if let (Some((chain, depth)), Some(sum)) = (rows.chain, rows.lists.sum.as_deref())
                && sums[chain].is_none_or(|(deepest, ..)| deepest < depth)
            {
                sums[chain] = Some((depth, rows.field, sum));
            }
        });
        asked.each_list(|rows| {
            let (filed, lists) = (rows.filed.rows(), rows.lists);
            new.filed_fit &= filed.is_empty() || new.filed.push(Cursor::new(filed));
            let summed_to = rows
                .chain
                .and_then(|(chain, depth)| sums[chain].map(|(deepest, ..)| depth <= deepest));
            if lists.in_sums && summed_to == Some(true) {
                return;
            }
            let (filed, others) = (Cursor::new(filed), Cursor::new(&lists.others));
            let asks = !(rows.filed.rows().is_empty() && lists.others.is_empty());
            fits &= lists.negated.is_empty() || new.refused.push(Cursor::new(&lists.negated));
            fits &= !asks || new.wanted.push((rows.field, Lists { filed, others }));
        });
        for (_, field, sum) in sums.into_iter().flatten() {
            let others = Cursor::new(&sum.asked);
            fits &= sum.refused.is_empty() || new.refused.push(Cursor::new(&sum.refused));
            fits &= new.wanted.push((field, Lists { filed, others }));
        }
        new.wanted.held().sort_unstable_by_key(|(field, _)| *field);
        fits.then_some(new)
    }

    /// Takes out the rows that ask about a field for something else; says whether any is left.
    fn keep_wanted(&mut self, asked: &Asked<'_>, bits: &mut Bits, block: u32) -> bool {
        let mut rest = self.wanted.held();
        for field in Field::ALL {
            let (of_field, after) = rest.split_at_mut(rest.partition_point(|(other, _)| *other <= field));
            rest = after;
            let Some(used) = asked.index.used(field, block) else { continue };
            let mut hit = [0; WORDS];
            for (_, lists) in of_field {
                lists.filed.add_to(&mut hit, block);
                lists.others.add_to(&mut hit, block);
            }
            bits.iter_mut()
                .zip(used)
                .zip(hit)
                .for_each(|((bits, used), hit)| *bits &= !used | hit);
            if is_empty(bits) {
                return false;
            }
        }
        !is_empty(bits)
    }
}

/// Room for as many values as a connection may have.
struct Room<T> {
    values: [T; MOST],
    len: usize,
}

impl<T: Copy> Room<T> {
    fn new(any: T) -> Self {
        Self {
            values: [any; MOST],
            len: 0,
        }
    }

    /// Says whether there was room.
    fn push(&mut self, value: T) -> bool {
        let place = self.values.get_mut(self.len);
        self.len += usize::from(place.is_some());
        place.map(|place| *place = value).is_some()
    }

    fn held(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

fn is_empty(bits: &Bits) -> bool {
    bits.iter().fold(0, |all, word| all | word) == 0
}

static NO_FILED: Posting<Word> = Posting::None;
static NO_OTHERS: Posting<()> = Posting::None;

/// So many rows in a block are found faster than gone over.
const SELDOM: usize = 16;
/// Some 40 KiB of a stack.
const MOST: usize = 512;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use crate::{
        Action, Match, Policies, Policy, Rule, Scope, StringMatch,
        index::scan::{Address, Listed},
        policy::Update,
    };

    use super::*;

    /// Fifty thousand rules in blocks: those of a name, refused and asked for on some ports.
    fn crowded() -> Policies {
        let rule = |i: u16| {
            let found = Match {
                principals: vec![StringMatch::Exact(["td/ns/a/sa/x", "td/ns/a/sa/y"][usize::from(i / 3 % 2)].into())],
                destination_ports: (!i.is_multiple_of(5)).then_some(80 + i % 2).into_iter().collect(),
                not_destination_ports: i.is_multiple_of(7).then_some(80).into_iter().collect(),
                ..Match::default()
            };
            Rule {
                clauses: vec![found.into()],
            }
        };
        let policy = Policy {
            key: "a/p".into(),
            namespace: "a".into(),
            scope: Scope::Global,
            action: Action::Deny,
            rules: (0..50_000).map(rule).collect(),
            dry_run: false,
        };
        Policies::default().apply([Update::Set(Arc::new(policy))])
    }

    /// More names than there is room for, most of them in sums.
    #[test]
    fn a_peer_of_very_many_names_is_found_by_sums() {
        let name = format!("td/ns/a/sa/{}", "x".repeat(390));
        let rule = |i: usize| {
            let at = i % name.len();
            let wanted = match i / name.len() % 2 {
                0 => StringMatch::Prefix(name[..at].into()),
                _ => StringMatch::Suffix(name[at..].into()),
            };
            let found = Match {
                principals: vec![wanted],
                destination_ports: vec![80 + (i % 3) as u16],
                ..Match::default()
            };
            Rule {
                clauses: vec![found.into()],
            }
        };
        let policy = Policy {
            key: "a/p".into(),
            namespace: "a".into(),
            scope: Scope::Global,
            action: Action::Deny,
            rules: (0..2 * 401 * 70).map(rule).collect(),
            dry_run: false,
        };
        let policies = Policies::default().apply([Update::Set(Arc::new(policy))]);
        let (index, terms) = (policies.index(), &policies.index().terms);
        let peer = policies.resolve(Some(&format!("spiffe://{name}").parse().unwrap()));
        assert!(peer.names().len() > MOST);
        let asked = Asked {
            index,
            names: peer.names(),
            source: Address::new([10, 0, 0, 1].into(), &terms.sources),
            destination: Address::new([10, 0, 0, 2].into(), &terms.destinations),
            port: terms.ports.number(&80),
            place: None,
            listed: Listed::new(&[]),
            last_rule: Cell::new(None),
            words_left: Cell::new(0),
        };
        for all in [true, false] {
            let mut rows = 0;
            assert!(each_of(&asked, all, &mut |row, _| {
                assert!(row.is_multiple_of(3));
                rows += 1;
            }));
            assert_eq!(rows, (2 * 401 * 70_usize).div_ceil(3));
        }
    }

    #[test]
    fn blocks_find_what_matches_whether_or_not_they_look_where_rows_are_filed() {
        let policies = crowded();
        let (index, terms) = (policies.index(), &policies.index().terms);
        let id = "spiffe://td/ns/a/sa/x".parse().unwrap();
        let peer = policies.resolve(Some(&id));
        let asked = Asked {
            index,
            names: peer.names(),
            source: Address::new([10, 0, 0, 1].into(), &terms.sources),
            destination: Address::new([10, 0, 0, 2].into(), &terms.destinations),
            port: terms.ports.number(&80),
            place: None,
            listed: Listed::new(&[]),
            last_rule: Cell::new(None),
            words_left: Cell::new(0),
        };
        let [everywhere, where_filed] = [true, false].map(|all| {
            let mut rows = Vec::new();
            assert!(each_of(&asked, all, &mut |row, _| rows.push(row)));
            rows
        });
        let wanted = (0..50_000u16).filter(|i| i / 3 % 2 == 0 && (i % 5 == 0 || i % 2 == 0) && i % 7 != 0);
        assert_eq!(everywhere, wanted.map(u32::from).collect::<Vec<_>>());
        assert_eq!(everywhere, where_filed);
    }
}
