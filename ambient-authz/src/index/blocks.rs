//! The rows that may match a connection, a block at a time, by bitmaps.

use super::{
    pieces::{Piece, Reading},
    posting::{BLOCK, Bits, Block, Many, Posting, WORDS, each_bit, set},
    scan::{Asked, Seeker},
    sums::Sum,
    term::{Lane, Word},
    value::TextField,
};
use crate::policies::Kind;

mod few;
mod steps;

use few::{Few, MOST_ROWS, MOST_SETS, Role, SOME_ROWS, SOME_SETS, Set};
use steps::Steps;

/// Tells of every row of which each group and no refused value hits, and that may matter, in order of blocks; at most so
/// many are filed under values that the connection has. Of rules whose clauses have rows of their own it tells by the last
/// row. False, and nothing is told, where the connection has too many values.
pub(crate) fn each_candidate<'a>(asked: &Asked<'a>, filed: usize, seeker: &mut impl Seeker<'a>) -> bool {
    // Where about every block has rows that are filed so, to look which costs more than it spares.
    let all = filed > asked.index.rows().blocks() * SELDOM;
    let mut each = |part| {
        let some = asked.values(part) <= SOME_VALUES && each_of::<SOME_SETS, SOME_ROWS>(asked, all, part, seeker);
        some || each_of::<MOST_SETS, MOST_ROWS>(asked, all, part, seeker)
    };
    match asked.passing {
        None => each(Part::All),
        Some(passing) => each(Part::ButNames) && (passing.is_whole(asked.index) || each(Part::All)),
    }
}

/// Of each of some blocks the rows that the names let through. False, and nothing is told, where there are too many names.
pub(super) fn that_names_pass<'b>(asked: &Asked<'_>, mut blocks: impl Iterator<Item = (u32, &'b mut Bits)>) -> bool {
    let some = asked.values(Part::Names) <= SOME_VALUES && names_of::<SOME_SETS, SOME_ROWS>(asked, &mut blocks);
    some || names_of::<MOST_SETS, MOST_ROWS>(asked, &mut blocks)
}

#[inline(never)] // its stack is large
fn names_of<'b, const SETS: usize, const ROWS: usize>(asked: &Asked<'_>, blocks: &mut impl Iterator<Item = (u32, &'b mut Bits)>) -> bool {
    let mut few = Few::new();
    let Some(sets) = Sets::<SETS, ROWS>::new(asked, true, Part::Names, &mut few) else {
        return false;
    };
    let mut scratch = Scratch::default();
    for (block, bits) in blocks {
        sets.few.read(block, |role, at| scratch.note(role, at));
        *bits = sets.that_pass(asked, &mut scratch, block, true).unwrap_or([0; WORDS]);
        scratch.clear();
    }
    true
}

/// What is asked of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All; where the rows are kept that the peer's names let through, of those blocks alone that have changed since.
    All,
    /// What they ask about names.
    Names,
    /// What they ask beside that, of the rows that are kept.
    ButNames,
}

impl Part {
    fn lanes(self) -> &'static [Lane] {
        match self {
            Self::All => &Lane::ALL,
            Self::Names => Lane::OF_NAMES,
            Self::ButNames => Lane::BUT_NAMES,
        }
    }
}

/// The same, in all blocks or in those only where rows are filed under what the connection has; with room for so many small sets
/// and so many rows of them, which is exceeded only where there is no larger.
#[inline(never)] // its stack is large
fn each_of<'a, const SETS: usize, const ROWS: usize>(asked: &Asked<'a>, all: bool, part: Part, seeker: &mut impl Seeker<'a>) -> bool {
    let mut few = Few::new();
    let Some(sets) = Sets::<SETS, ROWS>::new(asked, all, part, &mut few) else {
        return false;
    };
    let mut scratch = Scratch::default();
    for kind in Kind::ALL {
        if !seeker.wants(kind) {
            continue;
        }
        let mut reading = Reading::new();
        for shelf in asked.index.rows().order(kind) {
            if !seeker.may_matter(kind, &shelf.from) {
                break;
            }
            let is_kept = asked.passing.is_some_and(|passing| passing.at(asked.index, shelf.block).is_some());
            if is_kept != (part == Part::ButNames) {
                continue;
            }
            match asked.index.piece(shelf.block) {
                Some(piece) => sets.of_piece(asked, &mut scratch, (piece, shelf.block), &mut reading, seeker),
                None => sets.each_of_block(asked, &mut scratch, (kind, shelf.block), seeker),
            }
        }
    }
    true
}

/// The sets of rows that a connection's values are in.
struct Sets<'a, 'f, const SETS: usize, const ROWS: usize> {
    part: Part,
    /// Whether all blocks are gone over, also those where no row is looked for.
    all: bool,
    /// Those of few rows, whatever they are sets of.
    few: &'f mut Few<'a, SETS, ROWS>,
    /// The rows that are looked for.
    found: Room<&'a Many>,
    /// For each lane the sum of the innermost value that keeps one.
    sums: [Option<Sum<'a>>; LANES],
    /// What is not in these, and refused.
    refusing: Room<&'a Many>,
    /// What is asked for, in the order of lanes.
    asking: Room<(Lane, &'a Many)>,
}

/// What is known of a block's rows beside bitmaps that others keep.
#[derive(Default)]
struct Scratch {
    found: Loose,
    /// For each lane those that ask for what is not in its sum, and last those that refuse.
    lists: [Loose; LANES + 1],
}

struct Loose {
    bits: Bits,
    any: bool,
}

impl Default for Loose {
    fn default() -> Self {
        Self {
            bits: [0; WORDS],
            any: false,
        }
    }
}

impl Loose {
    fn note(&mut self, at: u32) {
        set(&mut self.bits, at);
        self.any = true;
    }

    fn add(&mut self, rows: &Block) {
        rows.add_to(&mut self.bits);
        self.any = true;
    }

    fn get(&self) -> Option<&Bits> {
        self.any.then_some(&self.bits)
    }

    fn clear(&mut self) {
        if self.any {
            *self = Self::default();
        }
    }
}

impl Scratch {
    fn note(&mut self, role: Role, at: u32) {
        if role.is_found() {
            self.found.note(at);
        }
        if let Some(list) = self.lists.get_mut(role.list()) {
            list.note(at);
        }
    }

    fn clear(&mut self) {
        self.lists.iter_mut().chain([&mut self.found]).for_each(Loose::clear);
    }
}

impl<'a, 'f, const SETS: usize, const ROWS: usize> Sets<'a, 'f, SETS, ROWS> {
    /// None where there are too many.
    fn new(asked: &Asked<'a>, all: bool, part: Part, few: &'f mut Few<'a, SETS, ROWS>) -> Option<Self> {
        let mut new = Self {
            part,
            // What is kept tells better where there is anything.
            all: all || part != Part::All,
            few,
            found: Room::new(&NO_ROWS),
            sums: [None; LANES],
            refusing: Room::new(&NO_ROWS),
            asking: Room::new((Lane::Scope, &NO_ROWS)),
        };
        let mut summed_to = [None; LANES];
        asked.each_list(part, |rows| {
            if summed_to[rows.lane as usize].is_none_or(|deepest| deepest < rows.depth)
                && let Some(sum) = asked.sum(&rows)
            {
                summed_to[rows.lane as usize] = Some(rows.depth);
                new.sums[rows.lane as usize] = Some(sum);
            }
        });
        let mut fit = new.filed(asked.index.terms.always.rows(), None);
        asked.each_list(part, |rows| {
            let (filed, lists) = (rows.filed.rows(), rows.lists);
            if lists.in_sums && summed_to[rows.lane as usize].is_some_and(|deepest| rows.depth <= deepest) {
                fit &= new.filed(filed, None);
                return;
            }
            fit &= new.filed(filed, Some(rows.lane));
            fit &= new.others(&lists.others, Some(rows.lane)) && new.others(&lists.negated, None);
        });
        new.asking.held_mut().sort_unstable_by_key(|(lane, _)| *lane);
        let sorted = new.few.sort() || ROWS == MOST_ROWS;
        (fit && sorted).then_some(new)
    }

    /// Takes in rows that are looked for, and ask in a lane for what is not in its sum; says whether there was room.
    fn filed(&mut self, rows: &'a Posting<Word>, asking: Option<Lane>) -> bool {
        let (fits, found) = match rows {
            Posting::None => (true, true),
            Posting::Many(many) => {
                let fits = asking.is_none_or(|lane| self.asking.push((lane, many)));
                (fits, self.all || self.found.push(many))
            }
            Posting::One(..) | Posting::Few(_) => match asking {
                Some(lane) => (self.few.add(Set::Filed(rows), Role::found_asking(lane)), true),
                None => (true, self.all || self.few.add(Set::Filed(rows), Role::FOUND)),
            },
        };
        // Where there is no room for what is only looked for, all blocks are gone over.
        self.all |= !found;
        fits
    }

    /// Takes in other rows, which ask in a lane, or refuse; says whether there was room.
    fn others(&mut self, rows: &'a Posting<()>, asking: Option<Lane>) -> bool {
        match (rows, asking) {
            (Posting::None, _) => true,
            (Posting::Many(many), Some(lane)) => self.asking.push((lane, many)),
            (Posting::Many(many), None) => self.refusing.push(many),
            (Posting::One(..) | Posting::Few(_), _) => self.few.add(Set::Bare(rows), asking.map_or(Role::REFUSING, Role::asking)),
        }
    }

    /// Reads a block that is a piece of one rule: all rows of it, also where none is looked for.
    fn of_piece(
        &self,
        asked: &Asked<'a>,
        scratch: &mut Scratch,
        (piece, block): (Piece, u32),
        reading: &mut Reading,
        seeker: &mut impl Seeker<'a>,
    ) {
        let rows = reading.needs().then(|| {
            self.few.read(block, |role, at| scratch.note(role, at));
            let rows = self.that_pass(asked, scratch, block, true);
            scratch.clear();
            rows
        });
        let holds = reading.take(piece, asked.index.clauses(block), rows.flatten().as_ref());
        if holds && let Some(row) = asked.index.row(block * BLOCK) {
            seeker.found(row);
        }
    }

    fn each_of_block(&self, asked: &Asked<'a>, scratch: &mut Scratch, (kind, block): (Kind, u32), seeker: &mut impl Seeker<'a>) {
        self.few.read(block, |role, at| scratch.note(role, at));
        let bits = self.that_pass(asked, scratch, block, self.all);
        scratch.clear();
        let Some(mut bits) = bits else { return };
        let mut holds = [0; WORDS];
        if let Some(clauses) = asked.index.clauses(block) {
            holds = clauses.that_hold(&bits);
            bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits &= !members);
        }
        for (word, (bits, holds)) in bits.into_iter().zip(holds).enumerate() {
            let may_matter = || {
                let from = asked.index.rows().from(block, word);
                from.is_none_or(|from| seeker.may_matter(kind, from))
            };
            if bits | holds == 0 || !may_matter() {
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

    /// The rows of a block that may match, if there are any: without those that refuse a value that is there, and those that
    /// ask about a field for something else. Of all of them, or of those that are looked for.
    fn that_pass(&self, asked: &Asked<'a>, scratch: &mut Scratch, block: u32, all: bool) -> Option<Bits> {
        let occupied = match self.part {
            Part::ButNames => asked.passing?.at(asked.index, block).filter(|bits| **bits != [0; WORDS])?,
            Part::All | Part::Names => asked.index.rows().occupied(block)?,
        };
        let clauses = asked.index.clauses(block);
        let mut bits = *occupied;
        if !all {
            self.found
                .held()
                .iter()
                .filter_map(|many| many.block(block))
                .for_each(|rows| scratch.found.add(rows));
            bits = *scratch.found.get()?;
            if let Some(clauses) = clauses {
                // Of a rule that is found by one of its clauses the others are wanted too.
                bits.iter_mut().zip(clauses.members()).for_each(|(bits, members)| *bits |= members);
            }
        }
        // First all bitmaps are found, then all are read at once, a piece of each: to wait for memory for one of them after
        // the other would take most of the time.
        let asking = self.gather(scratch, block);
        let mut steps = Steps::new();
        for many in self.refusing.held() {
            if let Some(Block::Dense(rows, _)) = many.block(block) {
                steps.fail(&mut bits, rows);
            }
        }
        scratch.lists[LANES].get().into_iter().for_each(|rows| steps.fail(&mut bits, rows));
        let asking: [Option<&Bits>; LANES] = std::array::from_fn(|lane| asking[lane].or_else(|| scratch.lists[lane].get()));
        for lane in self.part.lanes().iter().copied() {
            let (sum, asking) = (self.sums[lane as usize], asking[lane as usize]);
            let fails = match sum {
                Some(sum) => sum.fails(block),
                None => asked.index.used(lane, block),
            };
            let Some(fails) = fails else { continue };
            let Some(asking) = asking else {
                steps.fail(&mut bits, fails);
                continue;
            };
            steps.fail_unless(fails, asking);
        }
        let texts: &[TextField] = if self.part == Part::ButNames { &[] } else { &TextField::ALL };
        for text in texts.iter().copied() {
            let Some(mixed) = asked.index.mixed(text, block) else { continue };
            let lanes = [0, 1].map(|side| 2 * text as usize + side);
            let lacking = lanes.map(|lane| self.sums[lane].map_or(Some(mixed), |sum| sum.lacks(block)));
            if let [Some(front), Some(back)] = lacking {
                steps.fail_if_both([front, back], lanes.map(|lane| asking[lane]));
            }
        }
        steps.take(&mut bits);
        if bits == [0; WORDS] {
            return None;
        }
        for lane in self.part.lanes().iter().map(|lane| *lane as usize) {
            if let (Some(sum), Some(asking)) = (self.sums[lane], asking[lane]) {
                refuse(&mut bits, asking, || sum.refused(block));
            }
        }
        (bits != [0; WORDS]).then_some(bits)
    }

    /// Brings together what is asked for in each lane beside its sum. Gives that of lanes where it is kept in one bitmap.
    fn gather(&self, scratch: &mut Scratch, block: u32) -> [Option<&'a Bits>; LANES] {
        let mut alone: [Option<&'a Bits>; LANES] = [None; LANES];
        for of_lane in self.asking.held().chunk_by(|(a, _), (b, _)| a == b) {
            let lane = of_lane[0].0 as usize;
            let loose = &mut scratch.lists[lane];
            let mut blocks = of_lane.iter().filter_map(|(_, many)| many.block(block)).peekable();
            if let Some(Block::Dense(rows, _)) = blocks.peek()
                && of_lane.len() == 1
                && !loose.any
            {
                alone[lane] = Some(rows);
                continue;
            }
            blocks.for_each(|rows| loose.add(rows));
        }
        alone
    }
}

/// What asks for another value beside a sum's may refuse one of the sum's, and is let through by what it asks. It is looked for
/// last, where such rows are left: mostly none are, and to find what refuses is to wait for memory.
fn refuse<'a>(bits: &mut Bits, asking: &Bits, refused: impl FnOnce() -> Option<&'a Block>) {
    if bits.iter().zip(asking).all(|(bits, asking)| bits & asking == 0) {
        return;
    }
    match refused() {
        None => {}
        Some(Block::Sparse(rows)) => rows.iter().for_each(|at| bits[usize::from(*at) / 64] &= !(1 << (at % 64))),
        Some(Block::Dense(rows, _)) => bits.iter_mut().zip(rows.iter()).for_each(|(bits, rows)| *bits &= !rows),
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

    fn held(&self) -> &[T] {
        &self.values[..self.len]
    }

    fn held_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

static NO_ROWS: Many = Many::NONE;
const LANES: usize = Lane::ALL.len();
/// So many rows in a block are found faster than gone over.
const SELDOM: usize = 16;
/// With more values there are mostly more of their rows than the smaller room is for.
const SOME_VALUES: usize = 256;
/// Each has hundreds of rows; some 16 KiB of a stack.
const MOST: usize = 512;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use crate::{
        Action, Match, Policies, Policy, Rule, Scope, StringMatch,
        index::{Begin, Row, listed::Listed, scan::Address},
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
            listed: Listed::new(&mut []),
            passing: None,
            last_rule: Cell::new(None),
            words_left: Cell::new(0),
        };
        let wanted = rules(&policies, |i| i % 3 == 0);
        for all in [true, false] {
            let mut rows = Rows::default();
            assert!(each_of::<MOST_SETS, MOST_ROWS>(&asked, all, Part::All, &mut rows));
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
            listed: Listed::new(&mut []),
            passing: None,
            last_rule: Cell::new(None),
            words_left: Cell::new(0),
        };
        let [everywhere, where_filed] = [true, false].map(|all| {
            let mut rows = Rows::default();
            assert!(each_of::<MOST_SETS, MOST_ROWS>(&asked, all, Part::All, &mut rows));
            rows.0
        });
        let wanted = rules(&policies, |i| i / 3 % 2 == 0 && (i % 5 == 0 || i % 2 == 0) && i % 7 != 0);
        assert_eq!(everywhere, wanted);
        assert_eq!(everywhere, where_filed);
    }
}
