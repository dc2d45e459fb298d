//! The rows that may match a connection, a block at a time, by bitmaps.

use super::{
    posting::{Bits, Cursor, Posting, WORDS, each_bit},
    scan::Asked,
    term::Field,
};

/// Calls for every row of which each group and no refused value hits, in order. False, without calls, where the connection
/// has too many values.
#[inline(never)] // its stack is large
pub(crate) fn each_candidate(asked: &Asked<'_>, mut call: impl FnMut(u32)) -> bool {
    let Some(mut cursors) = Cursors::new(asked) else {
        return false;
    };
    for block in 0..asked.index.blocks() {
        let mut bits = [0; WORDS];
        for cursor in cursors.filed.held() {
            cursor.add_to(&mut bits, block);
        }
        if is_empty(&bits) {
            continue;
        }
        for cursor in cursors.refused.held() {
            cursor.take_from(&mut bits, block);
        }
        if cursors.keep_wanted(asked, &mut bits, block) {
            each_bit(&bits, |at| call(block * super::BLOCK + at));
        }
    }
    true
}

/// The sets of rows that a connection's values are in, each as far as it was read.
struct Cursors<'a> {
    filed: Room<Cursor<'a>>,
    refused: Room<Cursor<'a>>,
    /// In the order of fields.
    wanted: Room<(Field, Cursor<'a>)>,
}

impl<'a> Cursors<'a> {
    fn new(asked: &Asked<'a>) -> Option<Self> {
        let none = Cursor::new(&NONE);
        let mut new = Self {
            filed: Room::new(none),
            refused: Room::new(none),
            wanted: Room::new((Field::Scope, none)),
        };
        let mut fits = new.filed.push(Cursor::new(&asked.index.terms.always));
        asked.each_list(|field, lists| {
            let of = |posting: &'a Posting| (!posting.is_empty()).then(|| Cursor::new(posting));
            let (filed, others, negated) = (of(&lists.filed), of(&lists.others), of(&lists.negated));
            fits &= filed.is_none_or(|cursor| new.filed.push(cursor));
            fits &= negated.is_none_or(|cursor| new.refused.push(cursor));
            for cursor in [filed, others].into_iter().flatten() {
                fits &= new.wanted.push((field, cursor));
            }
        });
        new.wanted.held().sort_unstable_by_key(|(field, _)| *field);
        fits.then_some(new)
    }

    /// Takes out the rows that ask about a field for something else; says whether any is left.
    fn keep_wanted(&mut self, asked: &Asked<'_>, bits: &mut Bits, block: u32) -> bool {
        let mut rest = self.wanted.held();
        for field in Field::ALL {
            let (of_field, after) = rest.split_at_mut(rest.partition_point(|(other, _)| *other <= field));
            rest = after;
            let Some(used) = asked.index.used(field, block) else { continue };
            let mut hit = [0; WORDS];
            for (_, cursor) in of_field {
                cursor.add_to(&mut hit, block);
            }
            bits.iter_mut()
                .zip(used)
                .zip(hit)
                .for_each(|((bits, used), hit)| *bits &= !used | hit);
            if is_empty(bits) {
                return false;
            }
        }
        !is_empty(bits)
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

    fn held(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

fn is_empty(bits: &Bits) -> bool {
    bits.iter().fold(0, |all, word| all | word) == 0
}

static NONE: Posting = Posting::None;

/// Some 20 KiB of a stack.
const MOST: usize = 512;
