//! Finding the rows that match a connection.

use std::{cell::Cell, net::IpAddr};

use super::{
    Index, Reader, Row, blocks,
    dictionary::Lists,
    filed::Filed,
    names::CHAINS as NAME_CHAINS,
    nets::Nets,
    sums::Nested,
    term::{Field, Marks, Sort, Term, Word},
};
use crate::policies::Kind;

/// A connection to a workload, as numbers.
pub(crate) struct Asked<'a> {
    pub(crate) index: &'a Index,
    /// The peer's names, in order.
    pub(crate) names: &'a [u32],
    pub(crate) source: Address<'a>,
    pub(crate) destination: Address<'a>,
    pub(crate) port: Option<u32>,
    /// The workload's namespace.
    pub(crate) place: Option<u32>,
    pub(crate) listed: Listed<'a>,
    /// The rule that was last asked as a whole, and whether it holds: its rows come one after the other.
    pub(crate) last_rule: Cell<Option<(u32, u32, bool)>>,
    /// How many words of whole rules may still be read.
    pub(crate) words_left: Cell<usize>,
}

/// An address, and the blocks that it lies in.
pub(crate) struct Address<'a> {
    ip: IpAddr,
    nets: &'a Nets,
    blocks: Numbers<MOST_BLOCKS>,
}

impl<'a> Address<'a> {
    pub(crate) fn new(ip: IpAddr, nets: &'a Nets) -> Self {
        // Sockets that listen on both families see IPv4 peers as mapped addresses.
        let ip = ip.to_canonical();
        let mut blocks = Numbers::new();
        nets.covering(ip, |block| blocks.push(block));
        Self { ip, nets, blocks }
    }

    fn lies_in(&self, block: u32) -> bool {
        match self.blocks.all() {
            Some(blocks) => blocks.contains(&block),
            None => self.nets.blocks.value(block).is_some_and(|net| net.contains(&self.ip)),
        }
    }

    fn each(&self, call: impl FnMut(u32)) {
        match self.blocks.all() {
            Some(blocks) => blocks.iter().copied().for_each(call),
            None => self.nets.covering(self.ip, call),
        }
    }
}

/// The policies that a workload lists and that are in force.
pub(crate) struct Listed<'a> {
    numbers: &'a [u32],
    /// A bit for the number of each, where they are many.
    filter: [u64; FILTER],
    marks: Marks,
}

impl<'a> Listed<'a> {
    pub(crate) fn new(numbers: &'a [u32]) -> Self {
        let mut new = Self {
            numbers,
            filter: [0; FILTER],
            marks: Marks::NONE,
        };
        for number in numbers {
            new.filter[*number as usize / 64 % FILTER] |= 1 << (number % 64);
            new.marks = new.marks.and(Marks::LISTS).and(Marks::of(Term::new(Sort::Listed, *number)));
        }
        new
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    fn has(&self, wanted: u32) -> bool {
        self.filter[wanted as usize / 64 % FILTER] >> (wanted % 64) & 1 == 1 && self.numbers.contains(&wanted)
    }

    fn each(&self, call: impl FnMut(u32)) {
        self.numbers.iter().copied().for_each(call);
    }
}

/// Numbers that need no allocation, as long as they are few.
struct Numbers<const MOST: usize> {
    numbers: [u32; MOST],
    len: usize,
}

impl<const MOST: usize> Numbers<MOST> {
    fn new() -> Self {
        Self {
            numbers: [0; MOST],
            len: 0,
        }
    }

    fn push(&mut self, number: u32) {
        if let Some(place) = self.numbers.get_mut(self.len) {
            *place = number;
        }
        self.len += 1;
    }

    /// All of them, unless there were too many.
    fn all(&self) -> Option<&[u32]> {
        self.numbers.get(..self.len)
    }
}

impl<'a> Asked<'a> {
    /// Calls for every row that matches, at least once, in no order. Of a rule whose clauses have rows of their own any of
    /// them may stand for it.
    pub(crate) fn each_match(&self, wanted: impl Fn(Kind) -> bool, mut call: impl FnMut(&'a Row)) {
        let mut found = 0;
        let marks = self.marks();
        self.words_left.set(MOST_WORDS);
        let mut look = |filed: &'a Filed| {
            if !filed.may_match(marks) {
                return;
            }
            found += filed.len();
            if found <= MOST_CANDIDATES && self.words_left.get() > 0 {
                self.look_at_all(filed, &wanted, &mut call);
            }
        };
        look(&self.index.terms.always);
        self.each_filed(look);
        if found > MOST_CANDIDATES || self.words_left.get() == 0 {
            self.each_by_blocks(found, &wanted, &mut call);
        }
    }

    fn each_by_blocks(&self, found: usize, wanted: &impl Fn(Kind) -> bool, call: &mut impl FnMut(&'a Row)) {
        self.words_left.set(usize::MAX);
        let done = blocks::each_candidate(self, found, |row, holds| match self.index.row(row) {
            Some(row) if holds && wanted(row.kind) => call(row),
            Some(_) if holds => {}
            _ => self.look_at(row, wanted, call),
        });
        if !done {
            // A peer with more names, in more blocks, than there is room for: one by one.
            self.look_at_all(&self.index.terms.always, wanted, call);
            self.each_filed(|filed| self.look_at_all(filed, wanted, call));
        }
    }

    /// Those of everything that the connection has.
    fn marks(&self) -> Marks {
        let mut marks = self.listed.marks.and(Marks::of(Term::ALWAYS));
        let mut note = |sort: Sort, number: u32| marks = marks.and(Marks::of(Term::new(sort, number)));
        self.names.iter().for_each(|name| note(Sort::Name, *name));
        self.port.into_iter().for_each(|port| note(Sort::Port, port));
        self.source.each(|block| note(Sort::Source, block));
        self.destination.each(|block| note(Sort::Destination, block));
        self.place.into_iter().for_each(|place| note(Sort::Place, place));
        marks
    }

    fn look_at_all(&self, filed: &Filed, wanted: &impl Fn(Kind) -> bool, call: &mut impl FnMut(&'a Row)) {
        filed.rows().each(|row, guard| {
            if self.passes(guard) {
                self.look_at(row, wanted, call);
            }
        });
    }

    /// Whether a row with a guard may match; needs nothing but what is at hand.
    fn passes(&self, guard: Word) -> bool {
        let (term, refused) = (guard.term(), guard.is_refused());
        match term.sort() {
            // Whoever lists policies may list the row's.
            Sort::Place => self.place == Some(term.number()) || !self.listed.is_empty(),
            _ => self.hits(term) != refused,
        }
    }

    fn look_at(&self, row: u32, wanted: &impl Fn(Kind) -> bool, call: &mut impl FnMut(&'a Row)) {
        if let Some(row) = self.index.row(row)
            && wanted(row.kind)
            && self.matches(row)
        {
            call(row);
        }
    }

    fn matches(&self, row: &Row) -> bool {
        let mut any = false;
        for word in row.words() {
            if word.is_refused() {
                if self.hits(word.term()) {
                    return false;
                }
                continue;
            }
            any = any || self.hits(word.term());
            if word.is_last() {
                if !any {
                    return false;
                }
                any = false;
            }
        }
        !row.partial || self.whole_rule_holds(row)
    }

    fn whole_rule_holds(&self, row: &Row) -> bool {
        if let Some((entry, rule, holds)) = self.last_rule.get()
            && (entry, rule) == (row.entry, row.rule)
        {
            return holds;
        }
        let left = self.words_left.get();
        if left == 0 {
            // It will be asked again, in another way.
            return false;
        }
        let Some(entry) = self.index.entry(row.entry) else { return false };
        let mut reader = Reader::new(&entry.words, row.rule);
        let before = reader.words_left();
        let holds = reader.rule_holds(&|term| self.hits(term));
        self.words_left.set(left.saturating_sub(before - reader.words_left()));
        self.last_rule.set(Some((row.entry, row.rule, holds)));
        holds
    }

    fn hits(&self, term: Term) -> bool {
        let number = term.number();
        match term.sort() {
            Sort::Name => match self.names {
                few if few.len() <= LINEAR => few.contains(&number),
                many => many.binary_search(&number).is_ok(),
            },
            Sort::Port => self.port == Some(number),
            Sort::Source => self.source.lies_in(number),
            Sort::Destination => self.destination.lies_in(number),
            Sort::Place => self.place == Some(number),
            Sort::Listed => self.listed.has(number),
            Sort::Always => true,
        }
    }

    /// Calls for the rows that are looked for by each value that the connection has.
    fn each_filed(&self, mut call: impl FnMut(&'a Filed)) {
        let terms = &self.index.terms;
        self.names
            .iter()
            .filter_map(|name| terms.names.dictionary.filed(*name))
            .for_each(&mut call);
        self.port.and_then(|port| terms.ports.filed(port)).into_iter().for_each(&mut call);
        for address in [&self.source, &self.destination] {
            address.each(|block| address.nets.blocks.filed(block).into_iter().for_each(&mut call));
        }
        self.place
            .and_then(|place| terms.places.filed(place))
            .into_iter()
            .for_each(&mut call);
        self.listed.each(|number| {
            if let Some(entry) = self.index.entry(number) {
                call(&entry.filed);
            }
        });
    }

    /// Calls for all rows of each value that the connection has.
    pub(crate) fn each_list(&self, mut call: impl FnMut(Rows<'a>)) {
        let terms = &self.index.terms;
        for number in self.names {
            if let Some((name, filed, lists)) = terms.names.dictionary.item(*number) {
                let (field, chain) = (Field::of_name(name), name.chain().map(|chain| (chain, name.depth())));
                call(Rows {
                    field,
                    chain,
                    filed,
                    lists,
                });
            }
        }
        if let Some((_, filed, lists)) = self.port.and_then(|port| terms.ports.item(port)) {
            call(Rows::of(Field::Port, filed, lists));
        }
        for (address, field, chain) in [
            (&self.source, Field::Source, NAME_CHAINS),
            (&self.destination, Field::Destination, NAME_CHAINS + 1),
        ] {
            address.each(|block| {
                if let Some((block, filed, lists)) = address.nets.blocks.item(block) {
                    let chain = Some((chain, block.depth()));
                    call(Rows {
                        field,
                        chain,
                        filed,
                        lists,
                    });
                }
            });
        }
        if let Some((_, filed, lists)) = self.place.and_then(|place| terms.places.item(place)) {
            call(Rows::of(Field::Scope, filed, lists));
        }
        self.listed.each(|number| {
            if let Some(entry) = self.index.entry(number) {
                call(Rows::of(Field::Scope, &entry.filed, &entry.listed));
            }
        });
    }
}

/// All rows of a value that a connection has.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) field: Field,
    /// The chain of values that this one belongs to, and how deep it lies there.
    pub(crate) chain: Option<(usize, u32)>,
    pub(crate) filed: &'a Filed,
    pub(crate) lists: &'a Lists,
}

impl<'a> Rows<'a> {
    fn of(field: Field, filed: &'a Filed, lists: &'a Lists) -> Self {
        Self {
            field,
            chain: None,
            filed,
            lists,
        }
    }
}

/// The chains of names, and one of each end's blocks.
pub(crate) const CHAINS: usize = NAME_CHAINS + 2;
/// One by one these cost some microseconds; more are cheaper in blocks.
const MOST_CANDIDATES: usize = 256;
/// Of whole rules so many words are read in some ten microseconds.
const MOST_WORDS: usize = 4096;
/// Of IPv6 an address lies in no more, unless the same block is written in several ways.
const MOST_BLOCKS: usize = 130;
/// With so many words one in a few is let through that is not listed, where a thousand are.
const FILTER: usize = 64;
/// Up to so many are found faster one after the other.
const LINEAR: usize = 8;
