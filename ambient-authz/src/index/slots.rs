//! Numbered places for values, shared with other snapshots until they change.

use std::sync::Arc;

/// Values by number; the numbers of those that were taken out are given again.
///
/// A change copies one leaf and one branch; cloning copies the root, a pointer for each [`LEAF`] × [`BRANCH`] values.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    root: Vec<Branch<T>>,
    /// The first free place.
    free: u32,
    /// How many places there are, free ones too.
    places: u32,
}

type Branch<T> = Arc<[Leaf<T>]>;
type Leaf<T> = Arc<[Place<T>]>;

#[derive(Clone, Debug)]
enum Place<T> {
    /// The next free place after this one; [`NONE`] for the last.
    Free(u32),
    Held(T),
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            root: Vec::new(),
            free: NONE,
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
            self.grow();
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

    fn place_mut(&mut self, number: u32) -> Option<&mut Place<T>> {
        let (branch, leaf, place) = split(number);
        let branch = Arc::make_mut(self.root.get_mut(branch)?);
        Arc::make_mut(branch.get_mut(leaf)?).get_mut(place)
    }

    /// Adds a leaf of free places, each leading to the next.
    fn grow(&mut self) {
        let first = self.places;
        let end = first + LEAF as u32;
        let leaf: Leaf<T> = (first + 1..=end)
            .map(|next| Place::Free(if next == end { NONE } else { next }))
            .collect();
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
}
