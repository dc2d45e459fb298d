//! The policies that a workload lists.

use super::{
    Index,
    dictionary::Lists,
    filed::Filed,
    posting::Edit,
    scan::{Asked, LINEAR},
    term::{Marks, Sort, Term, Word},
};

/// Those that are in force.
pub(crate) struct Listed<'a> {
    /// In order.
    numbers: &'a [u32],
    pub(super) marks: Marks,
    /// Their rows, where those were brought together.
    together: Option<&'a Together>,
}

impl<'a> Listed<'a> {
    /// Puts their numbers in order.
    pub(crate) fn new(numbers: &'a mut [u32]) -> Self {
        numbers.sort_unstable();
        Self {
            marks: marks(numbers),
            numbers,
            together: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub(super) fn has(&self, wanted: u32) -> bool {
        match self.numbers {
            few if few.len() <= LINEAR => few.contains(&wanted),
            many => many.binary_search(&wanted).is_ok(),
        }
    }

    /// Calls for the rows that are looked for by their being listed; where they were brought together, for those alone that a
    /// connection may match.
    pub(super) fn each_filed(&self, asked: &Asked<'a>, mut call: impl FnMut(&'a Filed)) {
        let Some(rows) = self.together else {
            return self.entries(asked.index).for_each(|(filed, _)| call(filed));
        };
        call(&rows.unguarded);
        if !rows.guarded.is_empty() {
            asked.each_term(|term| {
                if let Ok(at) = rows.guarded.binary_search_by_key(&term, |(guard, _)| *guard) {
                    call(&rows.guarded[at].1);
                }
            });
        }
    }

    /// Calls for those, and for the others that ask for their being listed.
    pub(super) fn each_list<'i: 'a>(&self, index: &'i Index, mut call: impl FnMut(&'a Filed, &'a Lists)) {
        match self.together {
            Some(rows) => call(&rows.filed, &rows.lists),
            None => self.entries(index).for_each(|(filed, lists)| call(filed, lists)),
        }
    }

    fn entries<'i>(&self, index: &'i Index) -> impl Iterator<Item = (&'i Filed, &'i Lists)> {
        let entries = self.numbers.iter().filter_map(|number| index.entry(*number));
        entries.map(|entry| (&entry.filed, &entry.listed))
    }
}

/// The rows of all policies that a workload lists and that are in force.
#[derive(Debug)]
pub(crate) struct Together {
    numbers: Vec<u32>,
    marks: Marks,
    /// Those that are looked for by one of the policies being listed.
    filed: Filed,
    /// The others.
    lists: Lists,
    /// Of the first, where they are many, by what else they ask for, which a connection must have.
    guarded: Vec<(Term, Filed)>,
    /// And those that need nothing else.
    unguarded: Filed,
}

impl Together {
    pub(crate) fn new(index: &Index, mut numbers: Vec<u32>) -> Self {
        numbers.sort_unstable();
        numbers.dedup();
        let (mut rows, mut others) = (Vec::new(), Vec::new());
        for entry in numbers.iter().filter_map(|number| index.entry(*number)) {
            entry.filed.rows().each(|row, guard| rows.push((guard, row)));
            entry.listed.others.each(|row, ()| others.push(row));
        }
        others.sort_unstable();
        let mut lists = Lists::default();
        let come = |row: u32| Edit { row, comes: Some(()) };
        lists.others.edit(&others.into_iter().map(come).collect::<Vec<_>>());
        rows.sort_unstable();
        let many = rows.len() > FEW;
        let needs = |guard: &Word| match guard.term().sort() {
            _ if !many => None,
            // Whoever lists policies may list the row's.
            Sort::Place | Sort::Listed | Sort::Always => None,
            _ => (!guard.is_refused()).then_some(guard.term()),
        };
        let (guarded, unguarded): (Vec<_>, Vec<_>) = rows.iter().copied().partition(|(guard, _)| needs(guard).is_some());
        let mut guarded: Vec<_> = guarded
            .chunk_by(|(a, _), (b, _)| a.term() == b.term())
            .map(|rows| (rows[0].0.term(), filed(rows)))
            .collect();
        guarded.sort_unstable_by_key(|(term, _)| *term);
        Self {
            marks: marks(&numbers),
            numbers,
            filed: filed(&rows),
            lists,
            guarded,
            unguarded: filed(&unguarded),
        }
    }

    pub(crate) fn listed(&self) -> Listed<'_> {
        Listed {
            numbers: &self.numbers,
            marks: self.marks,
            together: Some(self),
        }
    }
}

fn filed(rows: &[(Word, u32)]) -> Filed {
    let edits = rows.iter().map(|(guard, row)| Edit {
        row: *row,
        comes: Some(*guard),
    });
    let mut edits: Vec<_> = edits.collect();
    edits.sort_unstable_by_key(|edit| edit.row);
    let mut filed = Filed::default();
    filed.edit(&edits);
    filed
}

fn marks(numbers: &[u32]) -> Marks {
    let marks = numbers.iter().map(|number| Marks::of(Term::new(Sort::Listed, *number)));
    marks.fold(Marks::NONE, |all, one| all.and(Marks::LISTS).and(one))
}

/// So few are looked at as they are.
const FEW: usize = 128;
