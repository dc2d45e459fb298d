//! Rules as numbers: what a policy is kept as, and the rows that a decision finds it by.
//!
//! A packed policy is a list of numbers: for each rule how many clauses it has, for each clause how many matches, for
//! each match how many lists, and for each list which it is, how many words it has, and those: the terms of values, or how
//! values are written that are the same as others. It says all that the policy said, so that it can be read back.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    term::{Term, Word},
    terms::Terms,
    value::{Name, NameOf, TextField},
};
use crate::{Clause, Match, Rule, ServiceAccount, StringMatch};

#[cfg(test)]
mod tests;

/// A way in which a rule can match: one match of each clause.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// Groups of which one must hit, then what must not.
    words: Vec<Word>,
    /// How many words the groups are.
    wanted: usize,
    /// A bit for each list of which it asks for something.
    asks: u16,
}

impl Way {
    /// What a row keeps of it.
    pub(crate) fn words(&self) -> &[Word] {
        &self.words
    }

    /// Asks for one of some terms as well.
    pub(crate) fn want(&mut self, terms: impl IntoIterator<Item = Term>) {
        let before = self.words.len();
        self.words.extend(terms.into_iter().map(|term| Word::wanted(term, false)));
        sort_from(&mut self.words, before);
        if let Some(last) = self.words[before..].last_mut() {
            *last = Word::wanted(last.term(), true);
        }
        self.words[self.wanted..].rotate_left(before - self.wanted);
        self.wanted += self.words.len() - before;
    }

    fn refuse(&mut self, terms: impl Iterator<Item = Term>) {
        self.words.extend(terms.map(Word::refused));
        sort_from(&mut self.words, self.wanted);
    }

    fn joined(&self, other: &Self) -> Self {
        let (wanted, refused) = self.words.split_at(self.wanted);
        let (also_wanted, also_refused) = other.words.split_at(other.wanted);
        let mut joined = Self {
            words: [wanted, also_wanted, refused, also_refused].concat(),
            wanted: self.wanted + other.wanted,
            asks: self.asks | other.asks,
        };
        sort_from(&mut joined.words, joined.wanted);
        joined
    }
}

/// Puts what stands from a place on in order, each once.
fn sort_from(words: &mut Vec<Word>, place: usize) {
    if words.len() - place > 1 {
        let mut tail = words.split_off(place);
        tail.sort_unstable();
        tail.dedup();
        words.append(&mut tail);
    }
}

/// What must be given for a rule to match.
#[derive(Clone, Debug)]
pub(crate) enum Ways {
    /// One of these.
    One(Vec<Way>),
    /// Of each clause one.
    OneOfEach(Vec<Vec<Way>>),
}

/// Packs rules; gives also the ways in which they can match, each with where its rule begins.
pub(crate) fn pack(terms: &mut Terms, rules: &[Rule]) -> (Arc<[u32]>, Vec<(u32, Ways)>) {
    let mut words = Vec::with_capacity(rules.len() * 8);
    let mut ways = Vec::with_capacity(rules.len());
    let mut names = Vec::with_capacity(rules.len());
    let matches = rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.for_each(|found| each_name(found, |name| names.push(name)));
    let mut terms = Taking {
        found: terms.names.find_all(&names).into_iter(),
        terms,
    };
    for rule in rules {
        let begin = words.len() as u32;
        words.push(rule.clauses.len() as u32);
        let mut clauses = Vec::with_capacity(rule.clauses.len());
        for clause in &rule.clauses {
            let matches = pack_clause(&mut terms, clause, &mut words);
            // One without matches is true in any case.
            if !clause.matches.is_empty() {
                clauses.push(matches);
            }
        }
        ways.push((begin, ways_of(clauses)));
    }
    (words.into(), ways)
}

/// The dictionaries, and for each name that is going to be taken its number, where it had one before.
struct Taking<'a> {
    terms: &'a mut Terms,
    found: std::vec::IntoIter<Option<u32>>,
}

impl Taking<'_> {
    fn name(&mut self, name: NameOf<'_>) -> u32 {
        let found = self.found.next().flatten();
        self.terms.name(name, found).bits()
    }
}

/// Calls for the names of a match, in the order in which they are packed.
fn each_name<'a>(found: &'a Match, mut call: impl FnMut(NameOf<'a>)) {
    for list in List::ALL {
        list.names(found, &mut call);
    }
}

/// The matches of a clause that can be true.
fn pack_clause(terms: &mut Taking<'_>, clause: &Clause, words: &mut Vec<u32>) -> Vec<Way> {
    words.push(clause.matches.len() as u32);
    let mut ways = Vec::with_capacity(clause.matches.len());
    ways.extend(clause.matches.iter().filter_map(|m| pack_match(terms, m, words)));
    ways
}

fn pack_match(terms: &mut Taking<'_>, found: &Match, words: &mut Vec<u32>) -> Option<Way> {
    let (begin, mut lists) = (words.len(), 0);
    words.push(0);
    let mut way = Way::default();
    for list in List::ALL {
        let head = words.len();
        words.push(0);
        list.pack(terms, found, words);
        let len = words.len() - head - 1;
        if len == 0 {
            words.truncate(head);
            continue;
        }
        lists += 1;
        words[head] = list.head(len);
        let of_list = terms_of(&words[head + 1..]);
        if list.is_negative() {
            way.refuse(of_list);
        } else {
            way.asks |= 1 << list.0;
            way.want(of_list);
        }
        let head = words.len();
        words.push(0);
        list.write(found, words);
        match words.len() - head - 1 {
            0 => words.truncate(head),
            len => {
                lists += 1;
                words[head] = list.written().head(len);
            }
        }
    }
    words[begin] = lists;
    (lists > 0).then_some(way)
}

/// Multiplies clauses out, if that stays small and no field is asked about twice.
fn ways_of(mut clauses: Vec<Vec<Way>>) -> Ways {
    if clauses.len() < 2 {
        // By far the most common case needs no copies.
        return Ways::One(clauses.pop().unwrap_or_else(|| vec![Way::default()]));
    }
    let product = clauses.iter().fold(1usize, |product, clause| product.saturating_mul(clause.len()));
    let mut asked = 0;
    let apart = clauses.iter().all(|clause| {
        let asks = clause.iter().fold(0, |asks, way| asks | way.asks);
        let apart = asked & asks == 0;
        asked |= asks;
        apart
    });
    // Of a clause that cannot be true the product is empty.
    let in_clauses = clauses.iter().map(Vec::len).sum::<usize>();
    if product == 0 || (product <= MOST_WAYS.max(in_clauses) && apart) {
        let product = |ways: Vec<Way>, clause: Vec<Way>| ways.iter().flat_map(|way| clause.iter().map(|other| way.joined(other))).collect();
        return Ways::One(clauses.into_iter().reduce(product).unwrap_or_default());
    }
    Ways::OneOfEach(clauses)
}

/// Reads packed rules.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a>(std::slice::Iter<'a, u32>);

impl<'a> Reader<'a> {
    pub(crate) fn new(words: &'a [u32], begin: u32) -> Self {
        Self(words.get(begin as usize..).unwrap_or_default().iter())
    }

    /// How many words are not read yet.
    pub(crate) fn words_left(&self) -> usize {
        self.0.as_slice().len()
    }

    fn next(&mut self) -> u32 {
        self.0.next().copied().unwrap_or(0)
    }

    /// Whether the rule that is next holds, given which terms hit. Reads past it.
    pub(crate) fn rule_holds(&mut self, hits: &impl Fn(Term) -> bool) -> bool {
        (0..self.next()).fold(true, |all, _| all & self.clause_holds(hits))
    }

    fn clause_holds(&mut self, hits: &impl Fn(Term) -> bool) -> bool {
        let matches = self.next();
        (0..matches).fold(matches == 0, |any, _| any | self.match_holds(hits))
    }

    fn match_holds(&mut self, hits: &impl Fn(Term) -> bool) -> bool {
        let lists = self.next();
        (0..lists).fold(lists > 0, |all, _| {
            let (list, words) = self.list();
            all & (list.is_written() || terms_of(words).any(hits) != list.is_negative())
        })
    }

    fn list(&mut self) -> (List, &'a [u32]) {
        let head = self.next();
        let (list, len) = (List((head >> LIST_SHIFT) as u8), head & ((1 << LIST_SHIFT) - 1));
        let (words, rest) = self.0.as_slice().split_at(len as usize);
        self.0 = rest.iter();
        (list, words)
    }

    /// All rules from here on.
    pub(crate) fn rules(&mut self, terms: &Terms) -> Vec<Rule> {
        let mut rules = Vec::new();
        while !self.0.as_slice().is_empty() {
            let clauses = self.next();
            let clauses = (0..clauses).map(|_| {
                let matches = self.next();
                let matches = (0..matches).map(|_| self.read_match(terms)).collect();
                Clause { matches }
            });
            rules.push(Rule {
                clauses: clauses.collect(),
            });
        }
        rules
    }

    fn read_match(&mut self, terms: &Terms) -> Match {
        let mut found = Match::default();
        for _ in 0..self.next() {
            let (list, words) = self.list();
            if list.is_written() {
                list.put_written(words, &mut found);
            } else {
                terms_of(words).for_each(|term| list.put(terms, term, &mut found));
            }
        }
        found
    }

    /// Calls for every term from here on.
    pub(crate) fn each_term(&mut self, mut call: impl FnMut(Term)) {
        while !self.0.as_slice().is_empty() {
            for _ in 0..self.next() {
                for _ in 0..self.next() {
                    for _ in 0..self.next() {
                        let (list, words) = self.list();
                        if !list.is_written() {
                            terms_of(words).for_each(&mut call);
                        }
                    }
                }
            }
        }
    }

    /// How many rules end before a place in the words.
    pub(crate) fn rules_before(words: &[u32], begin: u32) -> usize {
        let (mut reader, end) = (Reader::new(words, 0), words.len().saturating_sub(begin as usize));
        let mut rules = 0;
        while reader.0.as_slice().len() > end {
            reader.rule_holds(&|_| true);
            rules += 1;
        }
        rules
    }
}

fn terms_of(words: &[u32]) -> impl Iterator<Item = Term> {
    words.iter().map(|bits| Word::from_bits(*bits).term())
}

/// One of the lists of a match; or of a list of blocks those that are written with bits behind their length, which changes
/// nothing in what they cover: where each stands in its list, and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct List(u8);

impl List {
    const ALL: [Self; 14] = {
        let mut all = [Self(0); 14];
        let mut i = 0;
        while i < 14 {
            all[i] = Self(i as u8);
            i += 1;
        }
        all
    };

    fn is_negative(self) -> bool {
        self.0 % 2 == 1
    }

    fn written(self) -> Self {
        Self(self.0 | WRITTEN)
    }

    fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }

    /// The word before its words.
    fn head(self, len: usize) -> u32 {
        u32::from(self.0) << LIST_SHIFT | len as u32
    }

    /// Its blocks, if it is a list of blocks.
    fn blocks(self, found: &mut Match) -> Option<&mut Vec<IpNet>> {
        match self.0 & !WRITTEN {
            8 => Some(&mut found.source_ips),
            9 => Some(&mut found.not_source_ips),
            10 => Some(&mut found.destination_ips),
            11 => Some(&mut found.not_destination_ips),
            _ => None,
        }
    }

    /// Packs how those of its blocks are written that are not written as they are kept.
    fn write(self, found: &Match, words: &mut Vec<u32>) {
        let blocks = match self.0 {
            8 => &found.source_ips,
            9 => &found.not_source_ips,
            10 => &found.destination_ips,
            11 => &found.not_destination_ips,
            _ => return,
        };
        for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.addr() != block.network()) {
            let bits = match block.addr() {
                IpAddr::V4(ip) => u32::from(ip).into(),
                IpAddr::V6(ip) => u128::from(ip),
            };
            words.extend([
                at as u32,
                (bits >> 96) as u32,
                (bits >> 64) as u32,
                (bits >> 32) as u32,
                bits as u32,
            ]);
        }
    }

    /// Writes blocks as they were written.
    fn put_written(self, words: &[u32], found: &mut Match) {
        let Some(blocks) = self.blocks(found) else { return };
        for [at, address @ ..] in words.as_chunks::<5>().0 {
            let bits = address.iter().fold(0u128, |bits, word| bits << 32 | u128::from(*word));
            if let Some(block) = blocks.get_mut(*at as usize) {
                let ip = match block {
                    IpNet::V4(_) => IpAddr::V4((bits as u32).into()),
                    IpNet::V6(_) => IpAddr::V6(bits.into()),
                };
                *block = IpNet::new(ip, block.prefix_len()).unwrap_or(*block);
            }
        }
    }

    /// Calls for the names that a match has in it.
    fn names<'a>(self, found: &'a Match, call: &mut impl FnMut(NameOf<'a>)) {
        let (field, texts) = match self.0 {
            0 => (TextField::Namespace, &found.namespaces),
            1 => (TextField::Namespace, &found.not_namespaces),
            2 => (TextField::Principal, &found.principals),
            3 => (TextField::Principal, &found.not_principals),
            4 => (TextField::TrustDomain, &found.trust_domains),
            5 => (TextField::TrustDomain, &found.not_trust_domains),
            6 => return found.service_accounts.iter().map(NameOf::Account).for_each(call),
            7 => return found.not_service_accounts.iter().map(NameOf::Account).for_each(call),
            _ => return,
        };
        texts.iter().map(|one| NameOf::Text(field, one)).for_each(call);
    }

    /// Packs the values that a match has in it.
    fn pack(self, taking: &mut Taking<'_>, found: &Match, words: &mut Vec<u32>) {
        self.names(found, &mut |name| words.push(taking.name(name)));
        let terms = &mut *taking.terms;
        match self.0 {
            8 => words.extend(found.source_ips.iter().map(|one| terms.source(one).bits())),
            9 => words.extend(found.not_source_ips.iter().map(|one| terms.source(one).bits())),
            10 => words.extend(found.destination_ips.iter().map(|one| terms.destination(one).bits())),
            11 => words.extend(found.not_destination_ips.iter().map(|one| terms.destination(one).bits())),
            12 => words.extend(found.destination_ports.iter().map(|one| terms.port(*one).bits())),
            13 => words.extend(found.not_destination_ports.iter().map(|one| terms.port(*one).bits())),
            _ => {}
        }
    }

    /// Puts the value of a term back where it came from.
    fn put(self, terms: &Terms, term: Term, found: &mut Match) {
        let number = term.number();
        let name = || terms.names.dictionary.value(number).cloned();
        let text = |list: &mut Vec<StringMatch>| {
            if let Some(Name::Text(_, one)) = name() {
                list.push(one);
            }
        };
        let account = |list: &mut Vec<ServiceAccount>| {
            if let Some(Name::Account(one)) = name() {
                list.push(one);
            }
        };
        match self.0 {
            0 => text(&mut found.namespaces),
            1 => text(&mut found.not_namespaces),
            2 => text(&mut found.principals),
            3 => text(&mut found.not_principals),
            4 => text(&mut found.trust_domains),
            5 => text(&mut found.not_trust_domains),
            6 => account(&mut found.service_accounts),
            7 => account(&mut found.not_service_accounts),
            8 | 9 => {
                let block = terms.sources.blocks.value(number);
                self.blocks(found).into_iter().for_each(|blocks| blocks.extend(block));
            }
            10 | 11 => {
                let block = terms.destinations.blocks.value(number);
                self.blocks(found).into_iter().for_each(|blocks| blocks.extend(block));
            }
            12 => found.destination_ports.extend(terms.ports.value(number)),
            _ => found.not_destination_ports.extend(terms.ports.value(number)),
        }
    }
}

/// The number of a list fits the bits that its length leaves: a list of 2^27 values is none that memory holds.
const LIST_SHIFT: u32 = 27;
/// Beside the number of a list of blocks.
const WRITTEN: u8 = 16;

/// Rules of Kubernetes have some sources, some operations and a few conditions. More are fewer rows in clauses.
const MOST_WAYS: usize = 16;
