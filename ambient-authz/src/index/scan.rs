//! Finding the rows that match a connection.

use std::{cell::Cell, net::IpAddr};

use super::{
    Begin, Index, Passing, Reader, Row,
    blocks::{self, Part},
    dictionary::Lists,
    filed::Filed,
    listed::Listed,
    nets::Nets,
    sums::{Nested, Sum},
    term::{Lane, Marks, Sort, Term, Word},
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
    /// The rows that the peer's names let through, where it keeps them.
    pub(crate) passing: Option<&'a Passing>,
    /// The rule that was last asked as a whole, and whether it holds: its rows come one after the other.
    pub(crate) last_rule: Cell<Option<(u32, u32, bool)>>,
    /// How many words of whole rules may still be read.
    pub(crate) words_left: Cell<usize>,
}

/// The blocks that an address lies in.
pub(crate) struct Address<'a> {
    nets: &'a Nets,
    blocks: [u32; MOST_BLOCKS],
    len: usize,
}

impl<'a> Address<'a> {
    pub(crate) fn new(ip: IpAddr, nets: &'a Nets) -> Self {
        let (mut blocks, mut len) = ([0; MOST_BLOCKS], 0);
        // Sockets that listen on both families see IPv4 peers as mapped addresses.
        nets.covering(ip.to_canonical(), |block| {
            blocks[len] = block;
            len += 1;
        });
        Self { nets, blocks, len }
    }

    /// Those of no address.
    fn none(nets: &'a Nets) -> Self {
        Self {
            nets,
            blocks: [0; MOST_BLOCKS],
            len: 0,
        }
    }

    fn blocks(&self) -> &[u32] {
        &self.blocks[..self.len]
    }
}

/// Who is told of rows that match, and says of which there is no need any more.
pub(crate) trait Seeker<'a> {
    /// Whether any row of a kind may still matter.
    fn wants(&self, kind: Kind) -> bool;

    /// Whether a row of a kind may still matter that stands there, or any after it, in the order of keys and rules.
    fn may_matter(&self, kind: Kind, from: &Begin) -> bool;

    /// A row matches. Of a rule whose clauses have rows of their own any of them may stand for it.
    fn found(&mut self, row: &'a Row);
}

impl<'a> Asked<'a> {
    /// What is known of a connection where its peer's names are.
    pub(crate) fn of_names(index: &'a Index, names: &'a [u32], listed: Listed<'a>) -> Self {
        Self {
            index,
            names,
            source: Address::none(&index.terms.sources),
            destination: Address::none(&index.terms.destinations),
            port: None,
            place: None,
            listed,
            passing: None,
            last_rule: Cell::new(None),
            words_left: Cell::new(0),
        }
    }

    /// Tells of every row that matches and may matter, at least once, in no order.
    pub(crate) fn seek(&self, seeker: &mut impl Seeker<'a>) {
        let mut found = 0;
        let marks = self.marks();
        let limits = &self.index.limits;
        self.words_left.set(limits.words);
        let mut look = |filed: &'a Filed| {
            if !filed.may_match(marks) {
                return;
            }
            found += filed.len();
            if found <= limits.candidates && self.words_left.get() > 0 {
                self.look_at_all(filed, seeker);
            }
        };
        look(&self.index.terms.always);
        self.each_filed(look);
        if found > limits.candidates || self.words_left.get() == 0 {
            self.seek_by_blocks(found, seeker);
        }
    }

    fn seek_by_blocks(&self, found: usize, seeker: &mut impl Seeker<'a>) {
        self.words_left.set(usize::MAX);
        let done = blocks::each_candidate(self, found, seeker);
        if !done {
            // A peer with more names, in more blocks, than there is room for: one by one.
            self.look_at_all(&self.index.terms.always, seeker);
            self.each_filed(|filed| self.look_at_all(filed, seeker));
        }
    }

    /// Those of everything that the connection has.
    fn marks(&self) -> Marks {
        let mut marks = self.listed.marks.and(Marks::of(Term::ALWAYS));
        self.each_term(|term| marks = marks.and(Marks::of(term)));
        marks
    }

    /// Calls for everything that the connection has, but for what its workload lists.
    pub(super) fn each_term(&self, mut call: impl FnMut(Term)) {
        let mut note = |sort: Sort, number: u32| call(Term::new(sort, number));
        self.names.iter().for_each(|name| note(Sort::Name, *name));
        self.port.into_iter().for_each(|port| note(Sort::Port, port));
        self.source.blocks().iter().for_each(|block| note(Sort::Source, *block));
        self.destination.blocks().iter().for_each(|block| note(Sort::Destination, *block));
        self.place.into_iter().for_each(|place| note(Sort::Place, place));
    }

    fn look_at_all(&self, filed: &Filed, seeker: &mut impl Seeker<'a>) {
        filed.rows().each(|row, guard| {
            if self.passes(guard) {
                self.look_at(row, seeker);
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

    /// Tells of a row if it matches.
    pub(crate) fn look_at(&self, row: u32, seeker: &mut impl Seeker<'a>) {
        if let Some(row) = self.index.row(row)
            && seeker.wants(row.kind)
            && self.matches(row)
        {
            seeker.found(row);
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
            Sort::Source => self.source.blocks().contains(&number),
            Sort::Destination => self.destination.blocks().contains(&number),
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
            let blocks = address.blocks().iter();
            blocks.filter_map(|block| address.nets.blocks.filed(*block)).for_each(&mut call);
        }
        self.place
            .and_then(|place| terms.places.filed(place))
            .into_iter()
            .for_each(&mut call);
        self.listed.each_filed(self, call);
    }

    /// Calls for all rows of each value that the connection has, or of a part of them.
    pub(crate) fn each_list(&self, part: Part, mut call: impl FnMut(Rows<'a>)) {
        let terms = &self.index.terms;
        let names = if part == Part::ButNames { &[] } else { self.names };
        for number in names {
            if let Some((name, filed, lists)) = terms.names.dictionary.item(*number) {
                call(Rows::of(Lane::of_name(name), (*number, name.depth()), filed, lists));
            }
        }
        if part == Part::Names {
            return;
        }
        if let Some(number) = self.port
            && let Some((port, filed, lists)) = terms.ports.item(number)
        {
            call(Rows::of(Lane::Port, (number, port.depth()), filed, lists));
        }
        for (address, lane) in [(&self.source, Lane::Source), (&self.destination, Lane::Destination)] {
            for number in address.blocks() {
                if let Some((block, filed, lists)) = address.nets.blocks.item(*number) {
                    call(Rows::of(lane, (*number, block.depth()), filed, lists));
                }
            }
        }
        if let Some((_, filed, lists)) = self.place.and_then(|place| terms.places.item(place)) {
            call(Rows::of(Lane::Scope, (0, 0), filed, lists));
        }
        self.listed
            .each_list(self.index, |filed, lists| call(Rows::of(Lane::Scope, (0, 0), filed, lists)));
    }

    /// The sum that a value keeps.
    pub(crate) fn sum(&self, rows: &Rows<'a>) -> Option<Sum<'a>> {
        let terms = &self.index.terms;
        match rows.lane {
            _ if !rows.lists.in_sums => None,
            Lane::Scope => None,
            Lane::Port => terms.port_sums.of(0, rows.number),
            Lane::Source => self.source.nets.sums.of(0, rows.number),
            Lane::Destination => self.destination.nets.sums.of(0, rows.number),
            of_name => terms.names.sums.of(of_name as usize, rows.number),
        }
    }

    /// How many values the connection has that rows may ask for, but for what its workload lists.
    pub(crate) fn values(&self, part: Part) -> usize {
        let names = if part == Part::ButNames { 0 } else { self.names.len() };
        let addresses = if part == Part::Names {
            0
        } else {
            self.source.len + self.destination.len
        };
        names + addresses
    }
}

/// All rows of a value that a connection has.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) lane: Lane,
    /// How deep the value lies in others of its lane.
    pub(crate) depth: u32,
    pub(crate) filed: &'a Filed,
    pub(crate) lists: &'a Lists,
    /// Among the values of its sort.
    number: u32,
}

impl<'a> Rows<'a> {
    fn of(lane: Lane, (number, depth): (u32, u32), filed: &'a Filed, lists: &'a Lists) -> Self {
        Self {
            lane,
            depth,
            filed,
            lists,
            number,
        }
    }
}

/// An address lies in one block of each length at most, and is at most so long.
const MOST_BLOCKS: usize = 129;
/// Up to so many are found faster one after the other.
pub(super) const LINEAR: usize = 8;
