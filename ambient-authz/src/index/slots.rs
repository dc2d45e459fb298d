//! Numbered places for values, shared with other snapshots until they change.

use std::{collections::BTreeMap, sync::Arc};

/// Values by number, alone or in runs of numbers; the numbers of those that were taken out are given again.
///
/// A change copies one leaf and one branch; cloning copies the root, a pointer for each [`LEAF`] × [`BRANCH`] values.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    root: Vec<Branch<T>>,
    /// The first free place, for a value alone.
    free: u32,
    /// Where the free places begin that stand in runs, and how many each has.
    runs: Arc<BTreeMap<u32, u32>>,
    /// How many places there are, free ones too.
    places: u32,
}

type Branch<T> = Arc<[Leaf<T>]>;
type Leaf<T> = Arc<[Place<T>]>;

#[derive(Clone, Debug)]
enum Place<T> {
    /// The next free place after this one; [`NONE`] for the last, and in runs.
    Free(u32),
    Held(T),
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            root: Vec::new(),
            free: NONE,
            runs: Arc::default(),
            places: 0,
        }
    }
}

impl<T> Slots<T> {
    /// The value under a number.
    pub(crate) fn at(&self, number: u32) -> Option<&T> {
        let (branch, leaf, place) = split(number);
        match self.root.get(branch)?.get(leaf)?.get(place)? {
            Place::Held(value) => Some(value),
            Place::Free(_) => None,
        }
    }
}

impl<T: Clone> Slots<T> {
    /// The same, to be changed.
    pub(crate) fn at_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.place_mut(number)? {
            Place::Held(value) => Some(value),
            Place::Free(_) => None,
        }
    }

    /// Takes a value in and gives its number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if self.free == NONE {
            self.free = self.places;
            self.grow(|next| (!next.is_multiple_of(LEAF as u32)).then_some(next));
        }
        let number = self.free;
        if let Some(place) = self.place_mut(number)
            && let Place::Free(next) = std::mem::replace(place, Place::Held(value))
        {
            self.free = next;
        }
        number
    }

    /// Takes the value under a number out.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        self.at(number)?; // a miss must copy nothing
        let free = self.free;
        match std::mem::replace(self.place_mut(number)?, Place::Free(free)) {
            Place::Held(value) => {
                self.free = number;
                Some(value)
            }
            Place::Free(_) => None,
        }
    }

    /// Takes values in under numbers that follow each other, all in one of the windows of so many numbers; gives the
    /// first. A window has room for them, and is of whole leaves.
    pub(crate) fn insert_run(&mut self, values: Vec<T>, window: u32) -> u32 {
        let len = values.len() as u32;
        let fits = |first: u32, most: u32| {
            let first = if first % window + len <= window {
                first
            } else {
                first.next_multiple_of(window)
            };
            (first + len <= most).then_some(first)
        };
        let found = self.runs.iter().find_map(|(first, len)| fits(*first, first + len));
        let number = found.unwrap_or_else(|| {
            let last = self.runs.last_key_value().filter(|(first, len)| *first + **len == self.places);
            let first = last.map_or(self.places, |(first, _)| *first);
            let mut number = fits(first, u32::MAX).unwrap_or(first);
            while self.places < number + len {
                self.free_run(self.places, LEAF as u32);
                self.grow(|_| None);
                number = fits(first, u32::MAX).unwrap_or(first);
            }
            number
        });
        self.use_run(number, len);
        for (place, value) in (number..).zip(values) {
            if let Some(place) = self.place_mut(place) {
                *place = Place::Held(value);
            }
        }
        number
    }

    /// Takes the values of a run out.
    pub(crate) fn remove_run(&mut self, first: u32, len: u32) -> Vec<T> {
        let mut values = Vec::with_capacity(len as usize);
        for number in first..first + len {
            if let Some(place) = self.place_mut(number)
                && let Place::Held(value) = std::mem::replace(place, Place::Free(NONE))
            {
                values.push(value);
            }
        }
        self.free_run(first, len);
        values
    }

    /// Notes free places, as one run with those beside them.
    fn free_run(&mut self, first: u32, len: u32) {
        let runs = Arc::make_mut(&mut self.runs);
        let (mut first, mut len) = (first, len);
        if let Some(after) = runs.remove(&(first + len)) {
            len += after;
        }
        if let Some((before, of_before)) = runs.range(..first).next_back().map(|(first, len)| (*first, *len))
            && before + of_before == first
        {
            (first, len) = (before, of_before + len);
        }
        runs.insert(first, len);
    }

    /// Takes places off the run that they are in.
    fn use_run(&mut self, number: u32, len: u32) {
        let runs = Arc::make_mut(&mut self.runs);
        let Some((first, of_run)) = runs.range(..=number).next_back().map(|(first, len)| (*first, *len)) else {
            return;
        };
        runs.remove(&first);
        let end = number + len;
        for (first, end) in [(first, number), (end, first + of_run)] {
            if first < end {
                runs.insert(first, end - first);
            }
        }
    }

    fn place_mut(&mut self, number: u32) -> Option<&mut Place<T>> {
        let (branch, leaf, place) = split(number);
        let branch = Arc::make_mut(self.root.get_mut(branch)?);
        Arc::make_mut(branch.get_mut(leaf)?).get_mut(place)
    }

    /// Adds a leaf of free places, each leading to what is told for the number after it.
    fn grow(&mut self, next: impl Fn(u32) -> Option<u32>) {
        let first = self.places;
        let leaf: Leaf<T> = (1..=LEAF as u32).map(|i| Place::Free(next(first + i).unwrap_or(NONE))).collect();
        let (branch, at, _) = split(first);
        if branch == self.root.len() {
            let none: Leaf<T> = Arc::from([]);
            self.root.push(std::iter::repeat_n(none, BRANCH).collect());
        }
        Arc::make_mut(&mut self.root[branch])[at] = leaf;
        self.places += LEAF as u32;
    }
}

fn split(number: u32) -> (usize, usize, usize) {
    let number = number as usize;
    (number / (LEAF * BRANCH), number / LEAF % BRANCH, number % LEAF)
}

/// No place has this number.
const NONE: u32 = u32::MAX;
const LEAF: usize = 16;
const BRANCH: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn numbers_are_stable_and_given_again() {
        let mut slots = Slots::default();
        let numbers: Vec<_> = (0..5000).map(|i| slots.insert(i)).collect();
        let before = slots.clone();
        assert!(numbers.iter().enumerate().all(|(i, n)| slots.at(*n) == Some(&i)));
        assert_eq!((slots.remove(numbers[17]), slots.remove(numbers[17])), (Some(17), None));
        assert_eq!((slots.at(numbers[17]), before.at(numbers[17])), (None, Some(&17)));
        assert_eq!(slots.insert(99), numbers[17]);
        *slots.at_mut(numbers[4999]).unwrap() = 7;
        assert_eq!((slots.at(numbers[4999]), before.at(numbers[4999])), (Some(&7), Some(&4999)));
        assert!(slots.at(1 << 30).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Runs stay in their windows, nobody's place is given twice, and what goes and comes again takes no more room.
        #[test]
        fn runs_and_values_alone_share_the_numbers(steps in vec((1..=64u32, any::<u32>(), 0..4u8), 1..120)) {
            let (mut slots, mut held) = (Slots::default(), Vec::<(u32, Vec<u32>)>::new());
            for (step, (len, pick, what)) in (0u32..).zip(steps) {
                let run: Vec<u32> = (0..len).map(|i| step << 8 | i).collect();
                match what {
                    0 => held.push((slots.insert(step), vec![step])),
                    3 if !held.is_empty() => {
                        let (first, run) = held.swap_remove(pick as usize % held.len());
                        if run.len() > 1 {
                            prop_assert_eq!(slots.remove_run(first, run.len() as u32), run);
                        } else {
                            prop_assert_eq!(slots.remove(first), Some(run[0]));
                        }
                    }
                    _ if len > 1 => {
                        let first = slots.insert_run(run.clone(), 64);
                        prop_assert_eq!(first / 64, (first + len - 1) / 64);
                        held.push((first, run));
                    }
                    _ => {}
                }
                let known: usize = held.iter().map(|(_, run)| run.len()).sum();
                let there = (0..slots.places).filter(|number| slots.at(*number).is_some()).count();
                prop_assert_eq!(there, known);
                for (first, run) in &held {
                    prop_assert!((*first..).zip(run).all(|(number, value)| slots.at(number) == Some(value)));
                }
            }
            let places = slots.places;
            for _ in 0..20 {
                for (first, run) in held.iter_mut().filter(|(_, run)| run.len() > 1) {
                    let values = slots.remove_run(*first, run.len() as u32);
                    *first = slots.insert_run(values, 64);
                }
            }
            prop_assert_eq!(slots.places, places);
        }
    }
}
