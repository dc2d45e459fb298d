//! Policies in the form in which decisions find them.
//!
//! Each way in which a rule can match is a row: groups of values of which one must be there, and values that must not
//! be. A row is filed under the values of one of its groups, the one that the fewest rows ask for; a decision looks up
//! the values that its connection has, and finds the rows filed there: few, since a connection has few values, and
//! those that many rows share are seldom filed under. Where it finds many all the same, it goes over bitmaps of all
//! that the values are asked for by (`blocks`), so that its cost is bounded by the rows' number divided by 64.
//!
//! Where a policy applies is one more group: its namespace, or its own name, which a workload lists.
//!
//! All of it is made of pieces that snapshots share: a change copies those that it touches.

use std::sync::Arc;

use ambient_core::PolicyKey;

use crate::{Policy, Scope, policies::Kind, policy::Unreadable};

pub(crate) mod blocks;
mod dictionary;
mod names;
mod nets;
mod pack;
pub(crate) mod posting;
pub(crate) mod scan;
mod slots;
mod term;
mod terms;
mod value;

use dictionary::Lists;
use pack::Way;
use posting::{BLOCK, Bits, Edit, WORDS};
use slots::Slots;
use term::{Field, Sort, Term, Word};
use terms::Role;

pub(crate) use pack::Reader;
pub(crate) use terms::Terms;
pub(crate) use value::Place;

/// All policies in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) terms: Terms,
    entries: Slots<Entry>,
    rows: Slots<Row>,
    /// For each field the rows that ask about it.
    used: [Vec<Arc<Bits>>; 8],
}

/// A policy in force.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: PolicyKey,
    pub(crate) namespace: Arc<str>,
    pub(crate) scope: Scope,
    pub(crate) kind: Kind,
    /// Its rules, packed.
    pub(crate) words: Arc<[u32]>,
    rows: Arc<[u32]>,
    /// The rows that are found by its being listed.
    pub(crate) listed: Lists,
}

/// One way in which one rule can match.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) entry: u32,
    /// Where the rule begins in the policy's words.
    pub(crate) rule: u32,
    pub(crate) kind: Kind,
    /// Whether the whole rule has to be asked as well.
    pub(crate) partial: bool,
    words: Words,
}

/// A few words in the row, where most are.
#[derive(Clone, Debug)]
enum Words {
    Few([Word; FEW], u8),
    Many(Arc<[Word]>),
}

impl Row {
    pub(crate) fn words(&self) -> &[Word] {
        match &self.words {
            Words::Few(words, len) => &words[..usize::from(*len)],
            Words::Many(words) => words,
        }
    }
}

impl Index {
    pub(crate) fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.at(number)
    }

    pub(crate) fn row(&self, number: u32) -> Option<&Row> {
        self.rows.at(number)
    }

    /// How many blocks of rows there are.
    pub(crate) fn blocks(&self) -> u32 {
        self.rows.places().div_ceil(BLOCK)
    }

    /// The rows of a block that ask about a field; none where no row ever did.
    pub(crate) fn used(&self, field: Field, block: u32) -> Option<&Bits> {
        self.used[field as usize].get(block as usize).map(|bits| &**bits)
    }

    /// Whether a policy is the one under a number.
    pub(crate) fn holds(&self, number: u32, policy: &Policy) -> bool {
        self.entry(number).is_some_and(|entry| {
            let same = entry.kind == Kind::of(policy) && entry.scope == policy.scope && entry.namespace == policy.namespace;
            same && self.policy(entry) == *policy
        })
    }

    /// A policy as it was put in.
    pub(crate) fn policy(&self, entry: &Entry) -> Policy {
        let (action, dry_run) = entry.kind.parts();
        Policy {
            key: entry.key.clone(),
            namespace: entry.namespace.clone(),
            scope: entry.scope,
            action,
            rules: Reader::new(&entry.words, 0).rules(&self.terms),
            dry_run,
        }
    }
}

/// A change of an index: first what goes, then what comes, then [`Revision::finish`].
#[derive(Debug)]
pub(crate) struct Revision<'a> {
    index: &'a mut Index,
    /// What is to be changed in lists: the list, the row, and whether it comes; packed, to be put in order at once.
    edits: Vec<u64>,
    /// What is used no longer: released last, as edits name it.
    released: Vec<Term>,
    /// Rows that are not filed yet.
    fresh: Vec<u32>,
}

impl<'a> Revision<'a> {
    pub(crate) fn new(index: &'a mut Index) -> Self {
        Self {
            index,
            edits: Vec::new(),
            released: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// Takes a policy out.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(entry) = self.index.entries.remove(number) else {
            return;
        };
        Reader::new(&entry.words, 0).each_term(|term| self.released.push(term));
        for row in &*entry.rows {
            let Some(gone) = self.index.rows.remove(*row) else { continue };
            for (field, group) in first_groups(&self.index.terms, gone.words()) {
                set_used(&mut self.index.used[field as usize], *row, false);
                for term in group {
                    self.edit(term.term(), Role::Filed, *row, false);
                    self.edit(term.term(), Role::Others, *row, false);
                }
            }
            for word in gone.words().iter().filter(|word| word.is_refused()) {
                self.edit(word.term(), Role::Negated, *row, false);
            }
            if !gone.words().iter().any(|word| !word.is_refused()) {
                self.edit(Term::ALWAYS, Role::Filed, *row, false);
            }
        }
        if let Some(place) = self.index.terms.place_mut(entry.scope, &entry.namespace) {
            place.kinds[entry.kind as usize] -= 1;
        }
        if entry.scope == Scope::Namespace
            && let Some(place) = self.index.terms.place(&entry.namespace)
        {
            let uses = 1 + entry.rows.len();
            self.released.extend(std::iter::repeat_n(Term::new(Sort::Place, place), uses));
        }
    }

    /// Takes a policy in; gives its number.
    pub(crate) fn insert(&mut self, policy: &Policy) -> u32 {
        let index = &mut *self.index;
        let kind = Kind::of(policy);
        let (words, ways) = pack::pack(&mut index.terms, &policy.rules);
        let number = index.entries.insert(Entry {
            key: policy.key.clone(),
            namespace: policy.namespace.clone(),
            scope: policy.scope,
            kind,
            words,
            rows: Arc::from([]),
            listed: Lists::default(),
        });
        let scope = index.scope(policy, number);
        if let Some(place) = index.terms.place_mut(policy.scope, &policy.namespace) {
            place.kinds[kind as usize] += 1;
        }
        let mut rows = Vec::with_capacity(ways.len());
        for (rule, mut way) in ways
            .into_iter()
            .flat_map(|(rule, ways)| ways.into_iter().map(move |way| (rule, way)))
        {
            if !scope.is_empty() {
                way.wanted.push((Field::Scope, scope.clone()));
            }
            for term in scope.iter().filter(|term| term.sort() == Sort::Place) {
                index.terms.places.use_again(term.number());
            }
            rows.push(index.insert_row(number, rule, kind, &way));
        }
        self.fresh.extend_from_slice(&rows);
        if let Some(entry) = index.entries.at_mut(number) {
            entry.rows = rows.into();
        }
        number
    }

    /// Refuses what a policy applies to that cannot be read.
    pub(crate) fn unreadable(&mut self, unreadable: &Arc<Unreadable>) {
        let terms = &mut self.index.terms;
        if unreadable.scope == Scope::Namespace {
            terms.take_place(&unreadable.namespace);
        }
        if let Some(place) = terms.place_mut(unreadable.scope, &unreadable.namespace) {
            place.unreadable.insert(unreadable.key.clone(), unreadable.clone());
        }
    }

    /// Refuses it no longer.
    pub(crate) fn readable(&mut self, unreadable: &Unreadable) {
        let terms = &mut self.index.terms;
        if let Some(place) = terms.place_mut(unreadable.scope, &unreadable.namespace) {
            place.unreadable.remove(&unreadable.key);
        }
        if unreadable.scope == Scope::Namespace
            && let Some(place) = terms.place(&unreadable.namespace)
        {
            self.released.push(Term::new(Sort::Place, place));
        }
    }

    /// Brings what has changed into the lists.
    pub(crate) fn finish(mut self) {
        for row in std::mem::take(&mut self.fresh) {
            self.file(row);
        }
        self.edits.sort_unstable();
        let mut batch = Vec::new();
        for of_list in self.edits.chunk_by(|a, b| a >> LIST_SHIFT == b >> LIST_SHIFT) {
            batch.clear();
            batch.extend(of_list.iter().map(|edit| Edit {
                row: (edit >> 1) as u32 & ROW,
                comes: edit & 1 == 1,
            }));
            let list = (of_list[0] >> LIST_SHIFT) as u32;
            let (term, role) = (Word::from_bits(list).term(), Role::ALL[(list >> ROLE_SHIFT) as usize % 3]);
            match term.sort() {
                Sort::Listed => {
                    if let Some(entry) = self.index.entries.at_mut(term.number()) {
                        role.of(&mut entry.listed).edit(&batch);
                    }
                }
                _ => self.index.terms.edit(term, role, &batch),
            }
        }
        for term in self.released {
            self.index.terms.release(term);
        }
        self.index.terms.renew();
    }

    /// Files a row under the group that the fewest ask for.
    fn file(&mut self, number: u32) {
        let index = &mut *self.index;
        let Some(row) = index.rows.at(number).cloned() else { return };
        let weight = |group: &[Word]| group.iter().map(|word| index.weight(word.term())).sum::<usize>();
        let groups = first_groups(&index.terms, row.words());
        let best = groups
            .iter()
            .min_by_key(|(field, group)| (weight(group), *field))
            .map(|(field, _)| *field);
        for (field, group) in groups {
            set_used(&mut self.index.used[field as usize], number, true);
            let role = if Some(field) == best { Role::Filed } else { Role::Others };
            for word in group {
                self.edit(word.term(), role, number, true);
            }
        }
        for word in row.words().iter().filter(|word| word.is_refused()) {
            self.edit(word.term(), Role::Negated, number, true);
        }
        if best.is_none() {
            self.edit(Term::ALWAYS, Role::Filed, number, true);
        }
    }

    fn edit(&mut self, term: Term, role: Role, row: u32, comes: bool) {
        let list = (role as u32) << ROLE_SHIFT | term.bits();
        self.edits
            .push(u64::from(list) << LIST_SHIFT | u64::from(row) << 1 | u64::from(comes));
    }
}

impl Index {
    /// What a workload must have for a policy to apply to it; nothing where it applies to all.
    fn scope(&mut self, policy: &Policy, number: u32) -> Vec<Term> {
        let listed = Term::new(Sort::Listed, number);
        match policy.scope {
            Scope::Global => Vec::new(),
            Scope::Selector => vec![listed],
            Scope::Namespace => {
                let place = self.terms.take_place(&policy.namespace);
                vec![Term::new(Sort::Place, place), listed]
            }
        }
    }

    fn insert_row(&mut self, entry: u32, rule: u32, kind: Kind, way: &Way) -> u32 {
        let words = way.words();
        let mut few = [Word::NONE; FEW];
        let words = if words.len() <= FEW {
            few[..words.len()].copy_from_slice(&words);
            Words::Few(few, words.len() as u8)
        } else {
            Words::Many(words.into())
        };
        self.rows.insert(Row {
            entry,
            rule,
            kind,
            partial: way.partial,
            words,
        })
    }

    /// How many rows ask for a value.
    fn weight(&self, term: Term) -> usize {
        match term.sort() {
            Sort::Listed => self.entries.at(term.number()).map_or(0, |entry| entry.rows.len()),
            _ => self.terms.weight(term),
        }
    }
}

/// The first group of each field. Where a row asks about a field twice, the second group is in no list.
fn first_groups<'w>(terms: &Terms, words: &'w [Word]) -> Vec<(Field, &'w [Word])> {
    let mut groups: Vec<(Field, &[Word])> = Vec::with_capacity(4);
    let wanted = words.iter().position(|word| word.is_refused()).unwrap_or(words.len());
    for group in words[..wanted].split_inclusive(|word| word.is_last()) {
        let field = terms.field(group[0].term());
        if let Some(field) = field.filter(|field| groups.iter().all(|(other, _)| other != field)) {
            groups.push((field, group));
        }
    }
    groups
}

fn set_used(used: &mut Vec<Arc<Bits>>, row: u32, is: bool) {
    let (block, at) = ((row / BLOCK) as usize, row % BLOCK);
    if used.len() <= block {
        used.resize(block + 1, Arc::new([0; WORDS]));
    }
    let word = &mut Arc::make_mut(&mut used[block])[at as usize / 64];
    *word = if is { *word | 1 << (at % 64) } else { *word & !(1 << (at % 64)) };
}

/// With these a row is 40 bytes.
const FEW: usize = 6;

const ROLE_SHIFT: u32 = 30;
const LIST_SHIFT: u32 = 32;
const ROW: u32 = u32::MAX >> 1;
