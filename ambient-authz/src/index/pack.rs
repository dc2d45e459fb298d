//! Rules as numbers: what a policy is kept as, and the rows that a decision finds it by.
//!
//! A packed policy is a list of numbers: for each rule how many clauses it has, for each clause how many matches, for
//! each match how many lists of values, and for each list which it is, how many values it has and their terms. It says
//! all that the policy said, so that it can be read back.

use std::sync::Arc;

use super::{
    term::{Field, Term, Word},
    terms::Terms,
    value::{Name, TextField},
};
use crate::{Clause, Match, Rule, ServiceAccount, StringMatch};

#[cfg(test)]
mod tests;

/// A way in which a rule can match: one match of each clause.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// Of each group one must hit.
    pub(crate) wanted: Vec<(Field, Vec<Term>)>,
    /// None of these may.
    pub(crate) refused: Vec<Term>,
    /// Whether clauses are left out, so that the whole rule has to be asked as well.
    pub(crate) partial: bool,
}

/// For each rule where it begins, and the ways in which it can match.
pub(crate) type Ways = Vec<(u32, Vec<Way>)>;

/// Packs rules.
pub(crate) fn pack(terms: &mut Terms, rules: &[Rule]) -> (Arc<[u32]>, Ways) {
    let mut words = Vec::with_capacity(rules.len() * 8);
    let mut ways = Vec::with_capacity(rules.len());
    for rule in rules {
        let begin = words.len() as u32;
        words.push(rule.clauses.len() as u32);
        let clauses: Vec<_> = rule.clauses.iter().map(|clause| pack_clause(terms, clause, &mut words)).collect();
        ways.push((begin, ways_of(clauses)));
    }
    (words.into(), ways)
}

/// The matches of a clause that can be true; `None` where it is true in any case.
fn pack_clause(terms: &mut Terms, clause: &Clause, words: &mut Vec<u32>) -> Option<Vec<Way>> {
    words.push(clause.matches.len() as u32);
    let matches = clause.matches.iter().filter_map(|m| pack_match(terms, m, words)).collect();
    (!clause.matches.is_empty()).then_some(matches)
}

fn pack_match(terms: &mut Terms, found: &Match, words: &mut Vec<u32>) -> Option<Way> {
    let (begin, mut lists) = (words.len(), 0);
    words.push(0);
    let mut way = Way::default();
    for list in List::ALL {
        let of_list = list.terms(terms, found);
        if of_list.is_empty() {
            continue;
        }
        lists += 1;
        words.push((list.0 as u32) << LIST_SHIFT | of_list.len() as u32);
        words.extend(of_list.iter().map(|term| term.bits()));
        if list.is_negative() {
            way.refused.extend(of_list);
        } else {
            way.wanted.push((list.field(), of_list));
        }
    }
    words[begin] = lists;
    (lists > 0).then_some(way)
}

/// Multiplies clauses out, as far as that stays small.
fn ways_of(clauses: Vec<Option<Vec<Way>>>) -> Vec<Way> {
    let mut clauses: Vec<_> = clauses.into_iter().flatten().collect();
    // Of a clause that cannot be true the product is empty.
    clauses.sort_by_key(Vec::len);
    let mut ways = vec![Way::default()];
    for clause in clauses {
        if ways.len() > 1 && ways.len() * clause.len() > MOST_WAYS {
            ways.iter_mut().for_each(|way| way.partial = true);
            continue;
        }
        let product = |way: &Way| {
            let joined = |other: &Way| Way {
                wanted: way.wanted.iter().chain(&other.wanted).cloned().collect(),
                refused: way.refused.iter().chain(&other.refused).copied().collect(),
                partial: way.partial,
            };
            clause.iter().map(joined).collect::<Vec<_>>()
        };
        ways = match &ways[..] {
            // By far the most common case needs no copies.
            [first] if first.wanted.is_empty() && first.refused.is_empty() => clause,
            _ => ways.iter().flat_map(product).collect(),
        };
    }
    ways
}

impl Way {
    /// What a row keeps of it.
    pub(crate) fn words(&self) -> Vec<Word> {
        let mut words = Vec::with_capacity(8);
        for (_, group) in &self.wanted {
            let mut group = group.clone();
            group.sort_unstable();
            group.dedup();
            let last = group.len() - 1;
            words.extend(group.iter().enumerate().map(|(i, term)| Word::wanted(*term, i == last)));
        }
        let mut refused = self.refused.clone();
        refused.sort_unstable();
        refused.dedup();
        words.extend(refused.into_iter().map(Word::refused));
        words
    }
}

/// Reads packed rules.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a>(std::slice::Iter<'a, u32>);

impl<'a> Reader<'a> {
    pub(crate) fn new(words: &'a [u32], begin: u32) -> Self {
        Self(words.get(begin as usize..).unwrap_or_default().iter())
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
            let (list, mut terms) = self.list();
            all & (terms.any(hits) != list.is_negative())
        })
    }

    fn list(&mut self) -> (List, impl Iterator<Item = Term> + use<'a>) {
        let head = self.next();
        let (list, len) = (List((head >> LIST_SHIFT) as u8), head & ((1 << LIST_SHIFT) - 1));
        let (terms, rest) = self.0.as_slice().split_at(len as usize);
        self.0 = rest.iter();
        (list, terms.iter().map(|bits| Word::from_bits(*bits).term()))
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
            let (list, of_list) = self.list();
            of_list.for_each(|term| list.put(terms, term, &mut found));
        }
        found
    }

    /// Calls for every term from here on.
    pub(crate) fn each_term(&mut self, mut call: impl FnMut(Term)) {
        while !self.0.as_slice().is_empty() {
            for _ in 0..self.next() {
                for _ in 0..self.next() {
                    for _ in 0..self.next() {
                        self.list().1.for_each(&mut call);
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

/// One of the lists of a match.
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

    fn field(self) -> Field {
        match self.0 / 2 {
            0 => Field::Namespace,
            1 => Field::Principal,
            2 => Field::TrustDomain,
            3 => Field::Account,
            4 => Field::Source,
            5 => Field::Destination,
            _ => Field::Port,
        }
    }

    fn terms(self, terms: &mut Terms, found: &Match) -> Vec<Term> {
        let texts = |terms: &mut Terms, field, list: &[StringMatch]| list.iter().map(|one| terms.text(field, one)).collect();
        match self.0 {
            0 => texts(terms, TextField::Namespace, &found.namespaces),
            1 => texts(terms, TextField::Namespace, &found.not_namespaces),
            2 => texts(terms, TextField::Principal, &found.principals),
            3 => texts(terms, TextField::Principal, &found.not_principals),
            4 => texts(terms, TextField::TrustDomain, &found.trust_domains),
            5 => texts(terms, TextField::TrustDomain, &found.not_trust_domains),
            6 => found.service_accounts.iter().map(|one| terms.account(one)).collect(),
            7 => found.not_service_accounts.iter().map(|one| terms.account(one)).collect(),
            8 => found.source_ips.iter().map(|one| terms.source(one)).collect(),
            9 => found.not_source_ips.iter().map(|one| terms.source(one)).collect(),
            10 => found.destination_ips.iter().map(|one| terms.destination(one)).collect(),
            11 => found.not_destination_ips.iter().map(|one| terms.destination(one)).collect(),
            12 => found.destination_ports.iter().map(|one| terms.port(*one)).collect(),
            _ => found.not_destination_ports.iter().map(|one| terms.port(*one)).collect(),
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
            8 => found.source_ips.extend(terms.sources.blocks.value(number)),
            9 => found.not_source_ips.extend(terms.sources.blocks.value(number)),
            10 => found.destination_ips.extend(terms.destinations.blocks.value(number)),
            11 => found.not_destination_ips.extend(terms.destinations.blocks.value(number)),
            12 => found.destination_ports.extend(terms.ports.value(number)),
            _ => found.not_destination_ports.extend(terms.ports.value(number)),
        }
    }
}

/// The number of a list fits the bits that its length leaves: a list of 2^27 values is none that memory holds.
const LIST_SHIFT: u32 = 27;

/// Rules of Kubernetes have some sources, some operations and a few conditions.
const MOST_WAYS: usize = 64;
