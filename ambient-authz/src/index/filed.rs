//! The rows that are looked for by a value, near to its number: a decision reads here for each value that it has, and
//! mostly nowhere else.

use std::sync::Arc;

use super::{
    posting::{Edit, Posting},
    term::{Marks, Sort, Word},
};

/// The rows that are looked for by one value; each with something else that it asks for or refuses, so that most need
/// not be looked at themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filed {
    rows: Posting<Word>,
    /// Without any of these a connection matches none of them.
    marks: Marks,
}

impl Filed {
    pub(crate) const NONE: Self = Self {
        rows: Posting::None,
        marks: Marks::NONE,
    };

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn rows(&self) -> &Posting<Word> {
        &self.rows
    }

    /// Whether a connection with these marks may match any of them.
    pub(crate) fn may_match(&self, marks: Marks) -> bool {
        self.marks.meets(marks)
    }

    /// Brings edits in, which are in order of rows; of one row the leaving comes first.
    pub(crate) fn edit(&mut self, edits: &[Edit<Word>]) {
        self.rows.edit(edits);
        let mut marks = Marks::NONE;
        if self.rows.is_many() {
            marks = Marks::ALL;
        } else {
            self.rows.each(|_, guard| marks = marks.and(of_guard(guard)));
        }
        self.marks = marks;
    }
}

/// What a connection has that a row with a guard may match.
fn of_guard(guard: Word) -> Marks {
    let term = guard.term();
    match term.sort() {
        // Who has it not may match; every connection has a mark.
        _ if guard.is_refused() => Marks::ALL,
        Sort::Place => Marks::of(term).and(Marks::LISTS),
        _ => Marks::of(term),
    }
}

/// The rows of each value by its number, shared with other snapshots until they change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    chunks: Vec<Arc<Chunk>>,
}

/// In line with the lines of caches, so that what is read of a value is in one.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Chunk([Filed; CHUNK]);

impl Table {
    pub(crate) fn at(&self, number: u32) -> Option<&Filed> {
        let (chunk, place) = split(number);
        self.chunks.get(chunk).map(|chunk| &chunk.0[place])
    }

    /// The same, to be changed.
    pub(crate) fn at_mut(&mut self, number: u32) -> &mut Filed {
        let (chunk, place) = split(number);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, Arc::default);
        }
        &mut Arc::make_mut(&mut self.chunks[chunk]).0[place]
    }
}

fn split(number: u32) -> (usize, usize) {
    (number as usize / CHUNK, number as usize % CHUNK)
}

/// A change copies 1 KiB, and each snapshot a pointer for so many values.
const CHUNK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::term::Term;

    #[test]
    fn a_value_is_read_in_one_line() {
        assert_eq!((size_of::<Filed>(), align_of::<Chunk>()), (32, 64));
    }

    #[test]
    fn marks_follow_the_guards() {
        let port = |number| Word::wanted(Term::new(Sort::Port, number), true);
        let mut filed = Filed::default();
        assert!(!filed.may_match(Marks::ALL));
        filed.edit(&[Edit {
            row: 1,
            comes: Some(port(7)),
        }]);
        assert!(filed.may_match(Marks::of(Term::new(Sort::Port, 7))));
        assert!(!filed.may_match(Marks::of(Term::new(Sort::Port, 8))));
        filed.edit(&[Edit {
            row: 2,
            comes: Some(Word::NONE),
        }]);
        assert!(filed.may_match(Marks::of(Term::ALWAYS)));
        filed.edit(&[Edit { row: 2, comes: None }]);
        assert!(!filed.may_match(Marks::of(Term::new(Sort::Port, 8))));
        filed.edit(&[Edit {
            row: 2,
            comes: Some(Word::wanted(Term::new(Sort::Place, 3), true)),
        }]);
        assert!(filed.may_match(Marks::LISTS) && filed.may_match(Marks::of(Term::new(Sort::Place, 3))));
        filed.edit(&[Edit { row: 1, comes: None }, Edit { row: 2, comes: None }]);
        assert!(!filed.may_match(Marks::ALL));
    }
}
