//! Bitmaps that are brought in together.

use super::super::posting::{Bits, WORDS};

/// What is known of the rows of a block, to be brought in a piece of all bitmaps after the other.
pub(super) struct Steps<'a> {
    failing: [&'a Bits; MOST],
    len: usize,
    /// They fail, but for those beside.
    unless: [[&'a Bits; 2]; MOST_UNLESS],
    len_unless: usize,
    /// What is in the first two and in none of the others fails.
    both: [[&'a Bits; 4]; MOST_BOTH],
    len_both: usize,
}

impl<'a> Steps<'a> {
    pub(super) fn new() -> Self {
        Self {
            failing: [&NO_BITS; MOST],
            len: 0,
            unless: [[&NO_BITS; 2]; MOST_UNLESS],
            len_unless: 0,
            both: [[&NO_BITS; 4]; MOST_BOTH],
            len_both: 0,
        }
    }

    /// These rows fail.
    pub(super) fn fail(&mut self, bits: &mut Bits, rows: &'a Bits) {
        if self.len == MOST {
            bring_in(bits, &self.failing, &[], &[]);
            self.len = 0;
        }
        self.failing[self.len] = rows;
        self.len += 1;
    }

    /// These rows fail but for some; once a lane.
    pub(super) fn fail_unless(&mut self, rows: &'a Bits, but: &'a Bits) {
        self.unless[self.len_unless] = [rows, but];
        self.len_unless += 1;
    }

    /// What is in both of these fails but for some; once a text.
    pub(super) fn fail_if_both(&mut self, [front, back]: [&'a Bits; 2], but: [Option<&'a Bits>; 2]) {
        let [but, or_but] = but.map(|rows| rows.unwrap_or(&NO_BITS));
        self.both[self.len_both] = [front, back, but, or_but];
        self.len_both += 1;
    }

    /// Brings all of them in.
    pub(super) fn take(self, bits: &mut Bits) {
        let (unless, both) = (&self.unless[..self.len_unless], &self.both[..self.len_both]);
        bring_in(bits, &self.failing[..self.len], unless, both);
    }
}

fn bring_in(bits: &mut Bits, failing: &[&Bits], unless: &[[&Bits; 2]], both: &[[&Bits; 4]]) {
    for (at, left) in bits.as_chunks_mut::<PIECE>().0.iter_mut().enumerate() {
        let piece = |rows: &Bits| -> [u64; PIECE] { rows.as_chunks().0[at] };
        let mut fails = [0; PIECE];
        for rows in failing {
            fails.iter_mut().zip(piece(rows)).for_each(|(fails, rows)| *fails |= rows);
        }
        for [rows, but] in unless {
            let rows = piece(rows).into_iter().zip(piece(but));
            fails.iter_mut().zip(rows).for_each(|(fails, (rows, but))| *fails |= rows & !but);
        }
        for [front, back, but, or_but] in both {
            let both = piece(front).into_iter().zip(piece(back));
            let but = piece(but).into_iter().zip(piece(or_but));
            for (fails, ((front, back), (but, or_but))) in fails.iter_mut().zip(both.zip(but)) {
                *fails |= front & back & !(but | or_but);
            }
        }
        left.iter_mut().zip(fails).for_each(|(left, fails)| *left &= !fails);
    }
}

static NO_BITS: Bits = [0; WORDS];
/// More are brought in at several times.
const MOST: usize = 32;
/// As many as lanes.
const MOST_UNLESS: usize = 11;
/// As many as texts.
const MOST_BOTH: usize = 3;
/// Words that are held in registers.
const PIECE: usize = 16;
