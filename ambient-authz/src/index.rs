//! Policies in the form in which decisions find them.
//!
//! Each way in which a rule can match is a row: groups of values of which one must be there, and values that must not
//! be. A row is filed under the values of one of its groups, the one that the fewest rows ask for; a decision looks up
//! the values that its connection has, and finds the rows filed there: few, since a connection has few values, and
//! those that many rows share are seldom filed under. Where it finds many all the same, it goes over bitmaps of all
//! that the values are asked for by (`blocks`), so that its cost is bounded by the rows' number divided by 64, for each
//! list of a match: values that lie one in the other share a bitmap (`sums`).
//!
//! A rule with several clauses is multiplied out into rows where they are few and ask about different fields. Else each
//! match of each clause is a row, side by side in one block: one of the clauses finds the rule, and bitmaps tell of a
//! block at once which of its rules hold (`clauses`). What is too long for a block has several to itself (`pieces`).
//!
//! What a peer's names let through, of all rows, may be kept with the peer, and is told of a block as long as the block is what
//! it was (`passing`). Of who has no names, as in plaintext, it is kept with the policies.
//!
//! Values are found by hashes that hang on numbers of the process's own (`keys`): nobody who writes policies can choose names that
//! lie together.
//!
//! Where a policy applies is one more group: its namespace, or its own name, which a workload lists.
//!
//! All of it is made of pieces that snapshots share: a change copies those that it touches.

use std::{ops::Range, sync::Arc};

use ambient_core::PolicyKey;

use crate::{Policy, Scope, policies::Kind, policy::Unreadable};

pub(crate) mod blocks;
mod clauses;
mod dictionary;
mod filed;
mod keys;
mod lengths;
mod limits;
mod listed;
mod names;
mod nets;
mod pack;
mod passing;
mod pieces;
pub(crate) mod posting;
pub(crate) mod scan;
mod shelves;
mod slots;
mod sums;
mod term;
mod terms;
mod value;

use clauses::Clauses;
use dictionary::Lists;
use filed::Filed;
use limits::Limits;
use pack::{Way, Ways};
use passing::{CROWD, Room, Stamps};
use pieces::{Piece, Pieces};
use posting::{BLOCK, Bits, Edit, WORDS, is_set};
use shelves::Shelves;
use slots::Slots;
use sums::{Changed, ChangedBlocks};
use term::{Field, Lane, Sort, Term, Word};
use value::TextField;

pub(crate) use keys::Keys;
pub(crate) use listed::{Listed, Together};
pub(crate) use pack::Reader;
pub(crate) use passing::Passing;
pub(crate) use shelves::Begin;
pub(crate) use terms::Terms;
pub(crate) use value::Place;

/// All policies in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) terms: Terms,
    entries: Slots<Entry>,
    rows: Shelves<Row>,
    /// For each lane the rows that ask in it, and about its field in no other.
    used: [BitsOfBlocks; Lane::ALL.len()],
    /// For each field that is a text the rows that ask about it both from the front and from the back.
    mixed: [BitsOfBlocks; TextField::ALL.len()],
    /// For each block the rows that are matches of clauses; none where there never were such.
    clauses: Vec<Option<Arc<Clauses>>>,
    /// For each block whether it is a piece of one rule.
    pieces: Pieces,
    /// For those who have kept something of the blocks.
    stamps: Stamps,
    /// How many values have so many rows filed under them that they are a crowd.
    crowded: usize,
    /// What peers may keep.
    room: Arc<Room>,
    limits: Limits,
}

/// A bitmap for each block where any row ever was in it.
type BitsOfBlocks = Vec<Option<Arc<Bits>>>;

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
    /// The rows that are looked for by its being listed.
    pub(crate) filed: Filed,
    /// Those that ask for that, and are looked for by something else.
    pub(crate) listed: Lists,
}

/// One way in which one rule can match, or one match of one of its clauses.
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

impl Words {
    fn new(words: &[Word]) -> Self {
        let mut few = [Word::NONE; FEW];
        if words.len() > FEW {
            return Self::Many(words.into());
        }
        few[..words.len()].copy_from_slice(words);
        Self::Few(few, words.len() as u8)
    }
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

    /// All rows, in blocks.
    pub(crate) fn rows(&self) -> &Shelves<Row> {
        &self.rows
    }

    /// The rows of a block that ask in a lane, and about its field in no other; none where no row ever did.
    pub(crate) fn used(&self, lane: Lane, block: u32) -> Option<&Bits> {
        self.used[lane as usize].get(block as usize)?.as_deref()
    }

    /// The rows of a block that ask about a text both from the front and from the back; none where no row ever did.
    pub(crate) fn mixed(&self, field: TextField, block: u32) -> Option<&Bits> {
        self.mixed[field as usize].get(block as usize)?.as_deref()
    }

    /// What a block is a piece of, if it is one.
    pub(crate) fn piece(&self, block: u32) -> Option<Piece> {
        self.pieces.at(block)
    }

    /// The rows of a block that are matches of clauses.
    pub(crate) fn clauses(&self, block: u32) -> Option<&Clauses> {
        self.clauses.get(block as usize)?.as_deref()
    }

    /// Which rows some names let through, where that is worth keeping.
    pub(crate) fn passing(&self, names: &[u32]) -> Option<Arc<Passing>> {
        Passing::of(self, names)
    }

    /// The same for the one peer of whom it is kept here, given what that was before.
    pub(crate) fn kept_passing(&self, names: &[u32], before: Option<&Arc<Passing>>) -> Option<Arc<Passing>> {
        Passing::kept(self, names, before)
    }

    /// The same rows, which are gone over by bitmaps however few they are.
    pub(crate) fn by_bitmaps(self) -> Self {
        Self {
            limits: Limits::NONE,
            ..self
        }
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
    /// What is to be changed in lists; to be put in order and brought in at once.
    edits: Vec<Change>,
    /// What is used no longer: released last, as edits name it.
    released: Vec<Term>,
    /// Rows that are not filed yet.
    fresh: Vec<u32>,
    /// Those that are matches of clauses: of a rule each clause with its rows.
    fresh_clauses: Vec<Vec<Vec<Range<u32>>>>,
}

impl<'a> Revision<'a> {
    pub(crate) fn new(index: &'a mut Index) -> Self {
        Self {
            index,
            edits: Vec::new(),
            released: Vec::new(),
            fresh: Vec::new(),
            fresh_clauses: Vec::new(),
        }
    }

    /// Takes a policy out.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(entry) = self.index.entries.remove(number) else {
            return;
        };
        // Its list goes with it.
        self.index.crowded -= usize::from(entry.filed.len() > CROWD);
        Reader::new(&entry.words, 0).each_term(|term| self.released.push(term));
        for row in &*entry.rows {
            // Those of clauses go with the first of their rule.
            let run = self.index.remove_clauses(*row);
            for row in *row..row + run.max(1) {
                if let Some(gone) = self.index.rows.remove(entry.kind, row) {
                    self.index.pieces.remove(row / BLOCK);
                    self.take_off(row, gone.words());
                }
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
            filed: Filed::default(),
            listed: Lists::default(),
        });
        let scope = index.scope(policy, number);
        if let Some(place) = index.terms.place_mut(policy.scope, &policy.namespace) {
            place.kinds[kind as usize] += 1;
        }
        let mut rows = Vec::with_capacity(ways.len());
        for (rule, ways) in ways {
            let begin = Begin {
                key: policy.key.clone(),
                rule,
            };
            let new = |way: &Way, partial| Row {
                entry: number,
                rule,
                kind,
                partial,
                words: Words::new(way.words()),
            };
            match ways {
                Ways::One(mut ways) => {
                    for way in &mut ways {
                        index.narrow(way, &scope);
                        let row = index.rows.insert(kind, &begin, std::iter::once(new(way, false)));
                        rows.push(row);
                        self.fresh.push(row);
                    }
                }
                Ways::OneOfEach(mut clauses) => {
                    clauses.iter_mut().flatten().for_each(|way| index.narrow(way, &scope));
                    let clauses = clauses.iter().map(|clause| clause.iter().map(|way| new(way, true)).collect());
                    let clauses = index.insert_clauses(kind, &begin, clauses.collect());
                    clauses.iter().flatten().cloned().for_each(|of_block| rows.extend(of_block));
                    self.fresh_clauses.push(clauses);
                }
            }
        }
        if let Some(entry) = index.entries.at_mut(number) {
            entry.rows = rows.into();
        }
        number
    }

    /// Refuses what a policy applies to that cannot be read, unless it is in dry run.
    pub(crate) fn unreadable(&mut self, unreadable: &Arc<Unreadable>) {
        if unreadable.dry_run {
            return;
        }
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
        if unreadable.dry_run {
            return;
        }
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
            self.file(row, true);
        }
        for clauses in std::mem::take(&mut self.fresh_clauses) {
            self.file_clauses(&clauses);
        }
        self.edits.sort_unstable();
        let mut in_sums: Vec<(Sort, Vec<Changed>)> = Vec::new();
        for of_list in self.edits.chunk_by(|a, b| a.list() == b.list()) {
            let (term, role) = of_list[0].list();
            self.index.edit_list(of_list);
            if self.index.terms.sums_concern(term, self.index.limits.heavy) {
                let changed = Changed {
                    number: term.number(),
                    refused: role == Role::Negated,
                    edits: of_list.iter().map(Change::bare).collect(),
                };
                match in_sums.last_mut().filter(|(sort, _)| *sort == term.sort()) {
                    Some((_, changes)) => changes.push(changed),
                    None => in_sums.push((term.sort(), vec![changed])),
                }
            }
        }
        for (sort, changes) in in_sums {
            let rows = self.index.rows.blocks() * BLOCK as usize;
            let limits = &self.index.limits;
            let most = (rows / limits.share).max(limits.heavy);
            self.index.terms.edit_sums(sort, &changes, most);
        }
        let mut blocks: Vec<_> = self.edits.iter().map(|edit| edit.row() / BLOCK).collect();
        blocks.sort_unstable();
        blocks.dedup();
        self.index.stamps.note(&blocks);
        let blocks = ChangedBlocks {
            all: self.index.rows.blocks() as u32,
            changed: &blocks,
        };
        self.index.terms.renew_fails(&self.index.used, &self.index.mixed, blocks);
        for term in self.released {
            self.index.terms.release(term);
        }
        self.index.terms.renew();
    }

    /// Files those of the clause for which the fewest ask.
    fn file_clauses(&mut self, clauses: &[Vec<Range<u32>>]) {
        let rows = |at: usize| clauses[at].iter().cloned().flatten();
        let weight = |at: &usize| -> usize {
            rows(*at)
                .map(|row| self.index.row(row).map_or(0, |row| self.index.least_weight(row)))
                .sum()
        };
        let filed = (0..clauses.len()).min_by_key(weight);
        for at in 0..clauses.len() {
            rows(at).for_each(|row| self.file(row, filed == Some(at)));
        }
    }

    /// Notes a row, and files it under the group that the fewest ask for, if it is to be found so.
    fn file(&mut self, number: u32, to_be_found: bool) {
        let Some(row) = self.index.rows.at(number).cloned() else { return };
        let groups = self.index.groups(row.words());
        let guard = self.index.guard(&groups, row.words());
        for (place, group) in groups.iter().enumerate() {
            self.index.note_use(group.words, number, true);
            let role = if place == 0 && to_be_found { Role::Filed } else { Role::Others };
            for word in group.words {
                self.change(word.term(), role, number, Some(guard));
            }
        }
        for word in refused(row.words()) {
            self.change(word.term(), Role::Negated, number, Some(guard));
        }
        if groups.is_empty() && to_be_found {
            self.change(Term::ALWAYS, Role::Filed, number, Some(guard));
        }
    }

    /// Takes a row off all lists that it may stand in.
    fn take_off(&mut self, number: u32, words: &[Word]) {
        for group in all_groups(words) {
            self.index.note_use(group, number, false);
            for word in group {
                self.change(word.term(), Role::Filed, number, None);
                self.change(word.term(), Role::Others, number, None);
            }
        }
        for word in refused(words) {
            self.change(word.term(), Role::Negated, number, None);
        }
        if all_groups(words).next().is_none() {
            self.change(Term::ALWAYS, Role::Filed, number, None);
        }
    }

    fn change(&mut self, term: Term, role: Role, row: u32, comes: Option<Word>) {
        self.edits.push(Change::new((term, role), row, comes));
    }
}

/// A row that comes to a list or leaves it. In the order in which lists take them: of one row, the leaving comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    /// The list, and then the row: a million of them are put in order by one comparison each.
    place: u64,
    /// With what it is filed.
    comes: Option<Word>,
}

impl Change {
    fn new((term, role): (Term, Role), row: u32, comes: Option<Word>) -> Self {
        let list = term.bits() << ROLE_BITS | role as u32;
        Self {
            place: u64::from(list) << 32 | u64::from(row),
            comes,
        }
    }

    fn list(&self) -> (Term, Role) {
        let list = (self.place >> 32) as u32;
        let role = Role::ALL[(list & ((1 << ROLE_BITS) - 1)) as usize % Role::ALL.len()];
        (Word::from_bits(list >> ROLE_BITS).term(), role)
    }

    fn row(&self) -> u32 {
        self.place as u32
    }

    fn guarded(&self) -> Edit<Word> {
        Edit {
            row: self.row(),
            comes: self.comes,
        }
    }

    fn bare(&self) -> Edit<()> {
        Edit {
            row: self.row(),
            comes: self.comes.map(|_| ()),
        }
    }
}

/// Which list of a value a row stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Filed,
    Others,
    Negated,
}

impl Role {
    const ALL: [Self; 3] = [Self::Filed, Self::Others, Self::Negated];
}

/// What a row asks about one field.
struct Group<'w> {
    /// How many rows ask for it.
    weight: usize,
    field: Field,
    words: &'w [Word],
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

    /// Changes one list.
    fn edit_list(&mut self, changes: &[Change]) {
        let (term, role) = changes[0].list();
        if role == Role::Filed {
            let filed = match term.sort() {
                Sort::Listed => self.entries.at_mut(term.number()).map(|entry| &mut entry.filed),
                _ => self.terms.filed_mut(term),
            };
            let Some(filed) = filed else { return };
            let before = filed.len();
            filed.edit(&changes.iter().map(Change::guarded).collect::<Vec<_>>());
            let after = filed.len();
            self.crowded = self.crowded + usize::from(after > CROWD) - usize::from(before > CROWD);
            return;
        }
        let lists = match term.sort() {
            Sort::Listed => self.entries.at_mut(term.number()).map(|entry| &mut entry.listed),
            _ => self.terms.lists_mut(term),
        };
        let Some(lists) = lists else { return };
        let list = match role {
            Role::Others => &mut lists.others,
            _ => &mut lists.negated,
        };
        list.edit(&changes.iter().map(Change::bare).collect::<Vec<_>>());
    }

    /// Lets a way apply to some workloads only.
    fn narrow(&mut self, way: &mut Way, scope: &[Term]) {
        if !scope.is_empty() {
            way.want(scope.iter().copied());
        }
        for term in scope.iter().filter(|term| term.sort() == Sort::Place) {
            self.terms.places.use_again(term.number());
        }
    }

    /// Notes that a row asks about the field of a group, or does no longer.
    fn note_use(&mut self, group: &[Word], row: u32, is: bool) {
        let mut lanes = group.iter().filter_map(|word| self.terms.lane(word.term()));
        let Some(first) = lanes.next() else { return };
        let bits = match lanes.all(|lane| lane == first) {
            true => &mut self.used[first as usize],
            false => &mut self.mixed[first as usize / 2],
        };
        set_bit(bits, row, is);
    }

    /// Takes in the matches of a rule's clauses; gives of each clause its rows.
    fn insert_clauses(&mut self, kind: Kind, begin: &Begin, clauses: Vec<Vec<Row>>) -> Vec<Vec<Range<u32>>> {
        if clauses.iter().map(Vec::len).sum::<usize>() <= self.limits.in_block {
            let lens: Vec<_> = clauses.iter().map(Vec::len).collect();
            let run: Vec<_> = clauses.into_iter().flatten().collect();
            let first = self.rows.insert(kind, begin, run.into_iter());
            return self.note_clauses(first, &lens);
        }
        self.insert_pieces(kind, begin, clauses)
    }

    /// The same of a rule that does not fit into a block: what is too long for one takes several, and has them alone; of the
    /// others as many stand together as fit.
    fn insert_pieces(&mut self, kind: Kind, begin: &Begin, clauses: Vec<Vec<Row>>) -> Vec<Vec<Range<u32>>> {
        let (most, mut placed, mut blocks) = (self.limits.in_block, Vec::with_capacity(clauses.len()), Vec::new());
        let mut together: Vec<Vec<Row>> = Vec::new();
        let mut flush = |index: &mut Self, together: &mut Vec<Vec<Row>>, placed: &mut Vec<_>| {
            if together.is_empty() {
                return;
            }
            let lens: Vec<_> = together.iter().map(Vec::len).collect();
            let run: Vec<_> = together.drain(..).flatten().collect();
            let first = index.rows.insert_alone(kind, begin, run.into_iter());
            placed.extend(index.note_clauses(first, &lens));
            blocks.push((first / BLOCK, true));
        };
        let mut long = Vec::new();
        for clause in clauses {
            if clause.len() > most {
                long.push(clause);
                continue;
            }
            if together.iter().map(Vec::len).sum::<usize>() + clause.len() > most {
                flush(self, &mut together, &mut placed);
            }
            together.push(clause);
        }
        flush(self, &mut together, &mut placed);
        for clause in long {
            let mut ranges = Vec::new();
            let (mut rest, mut pieces) = (clause.as_slice(), clause.len().div_ceil(most));
            while let Some((piece, after)) = rest.split_at_checked(rest.len().min(most)).filter(|(piece, _)| !piece.is_empty()) {
                let first = self.rows.insert_alone(kind, begin, piece.iter().cloned());
                ranges.push(first..first + piece.len() as u32);
                pieces -= 1;
                blocks.push((first / BLOCK, pieces == 0));
                rest = after;
            }
            placed.push(ranges);
        }
        let last = blocks.len() - 1;
        for (at, (block, ends_clause)) in blocks.into_iter().enumerate() {
            self.pieces.put(
                block,
                Piece {
                    ends_clause,
                    ends_rule: at == last,
                },
            );
        }
        placed
    }

    /// Notes where the clauses of a rule stand that are all in one block.
    fn note_clauses(&mut self, first: u32, lens: &[usize]) -> Vec<Vec<Range<u32>>> {
        let block = (first / BLOCK) as usize;
        if self.clauses.len() <= block {
            self.clauses.resize(block + 1, None);
        }
        let of_block = Arc::make_mut(self.clauses[block].get_or_insert_default());
        of_block.insert(first % BLOCK, lens.iter().copied());
        let mut next = first;
        let rows = |len: &usize| {
            next += *len as u32;
            next - *len as u32..next
        };
        lens.iter().map(rows).map(|rows| Vec::from([rows])).collect()
    }

    /// Takes out the rule whose rows of clauses begin so; gives how many they are, 0 where the row is none of a clause.
    fn remove_clauses(&mut self, first: u32) -> u32 {
        let (block, at) = ((first / BLOCK) as usize, first % BLOCK);
        let Some(Some(of_block)) = self.clauses.get_mut(block) else {
            return 0;
        };
        if !is_set(of_block.members(), at) {
            return 0;
        }
        Arc::make_mut(of_block).remove(at)
    }

    /// How many rows ask for what a row is filed under, if it is.
    fn least_weight(&self, row: &Row) -> usize {
        let weights = all_groups(row.words()).map(|group| group.iter().map(|word| self.weight(word.term())).sum());
        // One without groups is looked at by everybody.
        weights.min().unwrap_or(usize::MAX >> 16)
    }

    /// What a row asks about each field, which it does once; the one for which the fewest ask first.
    fn groups<'w>(&self, words: &'w [Word]) -> Vec<Group<'w>> {
        let mut groups: Vec<Group<'_>> = Vec::with_capacity(4);
        for words in all_groups(words) {
            let Some(lane) = self.terms.lane(words[0].term()) else { continue };
            let field = lane.field();
            let weight = words.iter().map(|word| self.weight(word.term())).sum();
            groups.push(Group { weight, field, words });
        }
        groups.sort_unstable_by_key(|group| (group.weight, group.field));
        groups
    }

    /// What tells most of those apart who find a row: something else that it asks for, else something that it refuses.
    fn guard(&self, groups: &[Group<'_>], words: &[Word]) -> Word {
        let others = groups.iter().skip(1).filter_map(|group| match group.words {
            [word] => Some(*word),
            // Of a namespace, and of those that list it.
            [word, _] if word.term().sort() == Sort::Place => Some(Word::wanted(word.term(), true)),
            _ => None,
        });
        others.chain(refused(words).copied()).next().unwrap_or(Word::NONE)
    }

    /// How many rows ask for a value.
    fn weight(&self, term: Term) -> usize {
        match term.sort() {
            Sort::Listed => self.entries.at(term.number()).map_or(0, |entry| entry.rows.len()),
            _ => self.terms.weight(term),
        }
    }
}

fn all_groups(words: &[Word]) -> impl Iterator<Item = &[Word]> {
    let wanted = words.iter().position(|word| word.is_refused()).unwrap_or(words.len());
    words[..wanted].split_inclusive(|word| word.is_last())
}

fn refused(words: &[Word]) -> impl Iterator<Item = &Word> {
    words.iter().filter(|word| word.is_refused())
}

fn set_bit(rows: &mut BitsOfBlocks, row: u32, is: bool) {
    let (block, at) = ((row / BLOCK) as usize, row % BLOCK);
    if rows.len() <= block {
        rows.resize(block + 1, None);
    }
    let bits = rows[block].get_or_insert_with(|| Arc::new([0; WORDS]));
    let word = &mut Arc::make_mut(bits)[at as usize / 64];
    *word = if is { *word | 1 << (at % 64) } else { *word & !(1 << (at % 64)) };
}

/// What the bits of a term leave of a word.
const ROLE_BITS: u32 = 2;
/// With these a row is 40 bytes.
const FEW: usize = 6;
