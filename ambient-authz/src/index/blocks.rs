//! The rows that may match a connection, a block at a time, by bitmaps.

use super::{
    posting::{BLOCK, Bits, Cursor, Posting, WORDS, each_bit, set},
    scan::{Asked, Seeker},
    sums::Sum,
    term::{Lane, Word},
    value::TextField,
};
use crate::policies::Kind;

/// Tells of every row of which each group and no refused value hits, and that may matter, in order of blocks; at most so
/// many are filed under values that the connection has. Of rules whose clauses have rows of their own it tells by the last
/// row. False, and nothing is told, where the connection has too many values.
pub(crate) fn each_candidate<'a>(asked: &Asked<'a>, filed: usize, seeker: &mut impl Seeker<'a>) -> bool {
    // Where about every block has rows that are filed so, to look which costs more than it spares.
    each_of(asked, filed > asked.index.rows().blocks() * SELDOM, seeker)
}

/// The same, in all blocks or in those only where rows are filed under what the connection has.
#[inline(never)] // its stack is large
fn each_of<'a>(asked: &Asked<'a>, all: bool, seeker: &mut impl Seeker<'a>) -> bool {
    let Some(mut cursors) = Cursors::new(asked) else {
        return false;
    };
    let mut scratch = Scratch {
        of_lanes: [Loose::NONE; LANES],
        of_texts: [Loose::NONE; TextField::ALL.len()],
    };
    let all = all || !cursors.filed_fit;
    for kind in Kind::ALL {
        if !seeker.wants(kind) {
            continue;
        }
        for shelf in asked.index.rows().order(kind) {
            if !seeker.may_matter(kind, &shelf.from) {
                break;
            }
            cursors.each_of_block(asked, &mut scratch, all, (kind, shelf.block), seeker);
        }
    }
    true
}

/// The sets of rows that a connection's values are in, each as far as it was read.
struct Cursors<'a> {
    filed: Room<Cursor<'a, Word>>,
    /// Whether all of those had room. Without them every block is gone over.
    filed_fit: bool,
    /// For each lane the sum of the innermost value that keeps one.
    sums: [Option<&'a Sum>; LANES],
    /// What is not in these.
    refused: Room<Cursor<'a, ()>>,
    /// In the order of lanes; the sets under which rows are filed stand with those of other rows.
    wanted: Room<(Lane, Lists<'a>)>,
}

/// The rows that ask for a value.
#[derive(Clone, Copy)]
struct Lists<'a> {
    filed: Cursor<'a, Word>,
    others: Cursor<'a, ()>,
}

/// Rows that are not kept as bitmaps, as bitmaps.
struct Scratch {
    of_lanes: [Loose; LANES],
    of_texts: [Loose; TextField::ALL.len()],
}

struct Loose {
    bits: Bits,
    any: bool,
}

impl Loose {
    const NONE: Self = Self {
        bits: [0; WORDS],
        any: false,
    };

    fn note(&mut self, at: u32) {
        set(&mut self.bits, at);
        self.any = true;
    }

    fn get(&self) -> Option<&Bits> {
        self.any.then_some(&self.bits)
    }

    fn clear(&mut self) {
        if self.any {
            *self = Self::NONE;
        }
    }
}

impl<'a> Cursors<'a> {
    fn new(asked: &Asked<'a>) -> Option<Self> {
        let (filed, others) = (Cursor::new(&NO_FILED), Cursor::new(&NO_OTHERS));
        let mut new = Self {
            filed: Room::new(filed),
            filed_fit: true,
            sums: [None; LANES],
            refused: Room::new(others),
            wanted: Room::new((Lane::Scope, Lists { filed, others })),
        };
        new.filed.push(Cursor::new(asked.index.terms.always.rows()));
        let mut fits = true;
        let mut summed_to = [None; LANES];
        asked.each_list(|rows| {
            if let Some(sum) = rows.sum
                && summed_to[rows.lane as usize].is_none_or(|deepest| deepest < rows.depth)
            {
                summed_to[rows.lane as usize] = Some(rows.depth);
                new.sums[rows.lane as usize] = Some(sum);
            }
        });
        asked.each_list(|rows| {
            let (filed, lists) = (rows.filed.rows(), rows.lists);
            new.filed_fit &= filed.is_empty() || new.filed.push(Cursor::new(filed));
            if lists.in_sums && summed_to[rows.lane as usize].is_some_and(|deepest| rows.depth <= deepest) {
                return;
            }
            let (filed, others) = (Cursor::new(filed), Cursor::new(&lists.others));
            let asks = !(rows.filed.rows().is_empty() && lists.others.is_empty());
            fits &= lists.negated.is_empty() || new.refused.push(Cursor::new(&lists.negated));
            fits &= !asks || new.wanted.push((rows.lane, Lists { filed, others }));
        });
        new.wanted.held().sort_unstable_by_key(|(lane, _)| *lane);
        fits.then_some(new)
    }

    fn each_of_block(
        &mut self,
        asked: &Asked<'a>,
        scratch: &mut Scratch,
        all: bool,
        (kind, block): (Kind, u32),
        seeker: &mut impl Seeker<'a>,
    ) {
        let Some(occupied) = asked.index.rows().occupied(block) else {
            return;
        };
        let mut bits = if all { *occupied } else { [0; WORDS] };
        for cursor in self.filed.held().iter_mut().filter(|_| !all) {
            cursor.add_to(&mut bits, block);
        }
        if is_empty(&bits) {
            return;
        }
        let clauses = asked.index.clauses(block);
        if let Some(clauses) = clauses {
            // Of a rule that is found by one of its clauses the others are wanted too.
            bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits |= members);
        }
        if !self.keep(asked, scratch, &mut bits, block) {
            return;
        }
        let mut holds = [0; WORDS];
        if let Some(clauses) = clauses {
            holds = clauses.that_hold(&bits);
            bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits &= !members);
        }
        for (word, (bits, holds)) in bits.into_iter().zip(holds).enumerate() {
            let from = asked.index.rows().from(block, word);
            if bits | holds == 0 || from.is_some_and(|from| !seeker.may_matter(kind, from)) {
                continue;
            }
            let first = block * BLOCK + word as u32 * 64;
            each_bit(bits, |at| asked.look_at(first + at, seeker));
            each_bit(holds, |at| {
                if let Some(row) = asked.index.row(first + at) {
                    seeker.found(row);
                }
            });
        }
    }

    /// Takes out the rows that refuse a value that is there, or ask about a field for something else; says whether any is
    /// left.
    fn keep(&mut self, asked: &Asked<'a>, scratch: &mut Scratch, bits: &mut Bits, block: u32) -> bool {
        // First all bitmaps are found, then all are read at once, a piece of each: to wait for memory for one of them after
        // the other would take most of the time.
        self.gather(asked, scratch, bits, block);
        let mut steps = Steps::new();
        for cursor in self.refused.held() {
            steps.push_some(bits, What::Refused, cursor.bitmap(block));
        }
        let mut rest: &[(Lane, Lists<'_>)] = self.wanted.held();
        let mut before: &[(Lane, Lists<'_>)] = &[];
        for lane in Lane::ALL {
            let (of_lane, after) = rest.split_at(rest.partition_point(|(other, _)| *other <= lane));
            rest = after;
            let (sum, loose) = (self.sums[lane as usize], &scratch.of_lanes[lane as usize]);
            let fails = match sum {
                Some(sum) => sum.fails.at(block),
                None => asked.index.used(lane, block),
            };
            if let Some(fails) = fails {
                let any = steps.push_lists(bits, of_lane, loose, block);
                steps.push(bits, What::Used, fails);
                if let Some(sum) = sum.filter(|_| any) {
                    // What asks for another value beside the sum's may refuse one of the sum's.
                    steps.push_some(bits, What::Refused, Cursor::new(&sum.refused).bitmap(block));
                }
            }
            if let Some(text) = is_back(lane)
                && let Some(mixed) = asked.index.mixed(text, block)
            {
                let front = lane as usize - 1;
                steps.push_lists(bits, before, &scratch.of_lanes[front], block);
                steps.push_lists(bits, of_lane, loose, block);
                for sum in self.sums[front..=lane as usize].iter().flatten() {
                    steps.push_some(bits, What::Asked, Cursor::new(&sum.asked).bitmap(block));
                }
                steps.push_some(bits, What::Asked, scratch.of_texts[text as usize].get());
                steps.push(bits, What::Used, mixed);
            }
            before = of_lane;
        }
        steps.take(bits);
        scratch.of_lanes.iter_mut().chain(&mut scratch.of_texts).for_each(Loose::clear);
        !is_empty(bits)
    }

    /// Brings together what is not kept as bitmaps.
    fn gather(&mut self, asked: &Asked<'a>, scratch: &mut Scratch, bits: &mut Bits, block: u32) {
        let mut refuse = |at: u32| bits[at as usize / 64] &= !(1 << (at % 64));
        for cursor in self.refused.held() {
            cursor.each_else(block, &mut refuse);
        }
        for (lane, lists) in self.wanted.held() {
            let loose = &mut scratch.of_lanes[*lane as usize];
            lists.filed.each_else(block, |at| loose.note(at));
            lists.others.each_else(block, |at| loose.note(at));
        }
        for (lane, sum) in Lane::ALL.into_iter().zip(self.sums) {
            let Some(sum) = sum else { continue };
            // Those fail in any case.
            Cursor::new(&sum.refused).each_else(block, &mut refuse);
            if let Some(text) = of_text(lane)
                && asked.index.mixed(text, block).is_some()
            {
                Cursor::new(&sum.asked).each_else(block, |at| scratch.of_texts[text as usize].note(at));
            }
        }
    }
}

/// The text that a lane is a lane of.
fn of_text(lane: Lane) -> Option<TextField> {
    TextField::ALL.get(lane as usize / 2).copied()
}

/// The same where it is compared from the back.
fn is_back(lane: Lane) -> Option<TextField> {
    of_text(lane).filter(|_| lane as usize % 2 == 1)
}

/// Bitmaps that are to be brought in.
struct Steps<'a> {
    steps: [(What, &'a Bits); MOST_STEPS],
    len: usize,
    /// What was asked for in the field that the first of them are about.
    asked: Bits,
}

/// What a bitmap tells of a block's rows.
#[derive(Clone, Copy)]
enum What {
    /// They refuse what is there.
    Refused,
    /// They ask for what is there, in the field that is being looked at.
    Asked,
    /// They ask about that field.
    Used,
}

impl<'a> Steps<'a> {
    fn new() -> Self {
        Self {
            steps: [(What::Refused, &NO_BITS); MOST_STEPS],
            len: 0,
            asked: [0; WORDS],
        }
    }

    fn push_some(&mut self, bits: &mut Bits, what: What, rows: Option<&'a Bits>) {
        if let Some(rows) = rows {
            self.push(bits, what, rows);
        }
    }

    /// The rows that ask for some values; says whether there are any.
    fn push_lists(&mut self, bits: &mut Bits, lists: &[(Lane, Lists<'a>)], loose: &'a Loose, block: u32) -> bool {
        let bitmaps = lists
            .iter()
            .flat_map(|(_, lists)| [lists.filed.bitmap(block), lists.others.bitmap(block)]);
        let mut any = false;
        for rows in bitmaps.chain([loose.get()]).flatten() {
            self.push(bits, What::Asked, rows);
            any = true;
        }
        any
    }

    fn push(&mut self, bits: &mut Bits, what: What, rows: &'a Bits) {
        if self.len == MOST_STEPS {
            self.take(bits);
        }
        self.steps[self.len] = (what, rows);
        self.len += 1;
    }

    /// Brings all of them in.
    fn take(&mut self, bits: &mut Bits) {
        let steps = &self.steps[..self.len];
        for (at, (bits, asked)) in bits
            .as_chunks_mut::<PIECE>()
            .0
            .iter_mut()
            .zip(self.asked.as_chunks_mut().0)
            .enumerate()
        {
            let (mut left, mut of_field): ([u64; PIECE], [u64; PIECE]) = (*bits, *asked);
            for (what, rows) in steps {
                let rows: &[u64; PIECE] = &rows.as_chunks().0[at];
                match what {
                    What::Refused => left.iter_mut().zip(rows).for_each(|(left, rows)| *left &= !rows),
                    What::Asked => of_field.iter_mut().zip(rows).for_each(|(of_field, rows)| *of_field |= rows),
                    What::Used => {
                        for ((left, of_field), rows) in left.iter_mut().zip(&mut of_field).zip(rows) {
                            *left &= !rows | *of_field;
                            *of_field = 0;
                        }
                    }
                }
            }
            (*bits, *asked) = (left, of_field);
        }
        self.len = 0;
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

static NO_BITS: Bits = [0; WORDS];
static NO_FILED: Posting<Word> = Posting::None;
static NO_OTHERS: Posting<()> = Posting::None;

const LANES: usize = Lane::ALL.len();
/// More are brought in at several times.
const MOST_STEPS: usize = 32;
/// Words that are held in registers.
const PIECE: usize = 16;
/// So many rows in a block are found faster than gone over.
const SELDOM: usize = 16;
/// Some 40 KiB of a stack.
const MOST: usize = 512;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use crate::{
        Action, Match, Policies, Policy, Rule, Scope, StringMatch,
        index::{
            Begin, Row,
            scan::{Address, Listed},
        },
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

    /// Where those rules of the one policy begin whose numbers are told.
    fn rules(policies: &Policies, wanted: impl Fn(usize) -> bool) -> Vec<u32> {
        let entry = policies.entry(0).unwrap();
        let rows = entry.rows.iter().map(|row| policies.index().row(*row).unwrap());
        rows.enumerate().filter(|(i, _)| wanted(*i)).map(|(_, row)| row.rule).collect()
    }

    /// Takes down where the rules of rows begin.
    #[derive(Default)]
    struct Rows(Vec<u32>);

    impl<'a> Seeker<'a> for Rows {
        fn wants(&self, kind: Kind) -> bool {
            kind == Kind::Deny
        }

        fn may_matter(&self, _: Kind, _: &Begin) -> bool {
            true
        }

        fn found(&mut self, row: &'a Row) {
            self.0.push(row.rule);
        }
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
        let wanted = rules(&policies, |i| i % 3 == 0);
        for all in [true, false] {
            let mut rows = Rows::default();
            assert!(each_of(&asked, all, &mut rows));
            assert_eq!(rows.0, wanted);
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
            let mut rows = Rows::default();
            assert!(each_of(&asked, all, &mut rows));
            rows.0
        });
        let wanted = rules(&policies, |i| i / 3 % 2 == 0 && (i % 5 == 0 || i % 2 == 0) && i % 7 != 0);
        assert_eq!(everywhere, wanted);
        assert_eq!(everywhere, where_filed);
    }
}
