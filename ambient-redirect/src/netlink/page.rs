//! What may be as long as somebody else likes, gone through page by page.

use std::collections::BTreeMap;

/// Where whoever goes through a listing stands: each page of it is a listing of its own, of which the first are held in the order of
/// their keys, from where the last page ended. So none is left out, however many come or go meanwhile, and no more is held than a page.
#[derive(Clone, Debug)]
pub(crate) struct Pages<K> {
    most: usize,
    after: Option<K>,
    /// The last of those that were there when the first page was read. What comes later is not gone through: it might have no end.
    until: Option<K>,
    is_over: bool,
}

/// One page, while it is read.
#[derive(Debug)]
pub(crate) struct Page<K, T> {
    most: usize,
    after: Option<K>,
    until: Option<K>,
    held: BTreeMap<K, T>,
    last: Option<K>,
    more: bool,
}

impl<K: Ord + Copy> Pages<K> {
    /// From the start, so many at a time.
    pub(crate) fn of(most: usize) -> Self {
        Self {
            most: most.max(1),
            after: None,
            until: None,
            is_over: false,
        }
    }

    /// Whether there is no other page.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next page, with nothing on it yet.
    pub(crate) fn next<T>(&self) -> Page<K, T> {
        Page {
            most: self.most,
            after: self.after,
            until: self.until,
            held: BTreeMap::new(),
            last: self.until,
            more: false,
        }
    }

    /// Gives what is on a page, now that it was read, in order.
    pub(crate) fn turn<T>(&mut self, page: Page<K, T>) -> Vec<T> {
        self.after = page.held.last_key_value().map(|(key, _)| *key).or(self.after);
        self.until = page.last;
        self.is_over = !page.more;
        page.held.into_values().collect()
    }
}

impl<K: Ord + Copy, T> Page<K, T> {
    /// Takes one of what is listed, where its place is on this page.
    pub(crate) fn take(&mut self, key: K, value: T) {
        if self.after.is_some_and(|after| key <= after) {
            return;
        }
        match self.until {
            Some(until) if key > until => return,
            Some(_) => (),
            None => self.last = self.last.max(Some(key)),
        }
        if self.held.len() >= self.most && !self.held.contains_key(&key) {
            self.more = true;
            match self.held.last_entry() {
                Some(last) if *last.key() > key => drop(last.remove()),
                _ => return,
            }
        }
        self.held.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pages: &mut Pages<u64>, listed: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut page = pages.next();
        for key in listed {
            page.take(key, key);
            assert!(page.held.len() <= pages.most);
        }
        pages.turn(page)
    }

    #[test]
    fn all_is_gone_through_and_never_more_than_a_page_is_held() {
        let listed = [7, 3, 9, 1, 5, 8, 2, 6, 4];
        let mut pages = Pages::of(4);
        let mut turn = || (read(&mut pages, listed), pages.is_over());
        assert_eq!(turn(), (vec![1, 2, 3, 4], false));
        assert_eq!(turn(), (vec![5, 6, 7, 8], false));
        assert_eq!(turn(), (vec![9], true));
        for (most, whole) in [(9, true), (8, false)] {
            let mut pages = Pages::of(most);
            read(&mut pages, listed);
            assert_eq!(pages.is_over(), whole, "{most}");
        }
    }

    #[test]
    fn what_comes_meanwhile_makes_no_page_more_and_what_goes_hides_no_other() {
        let mut pages = Pages::of(2);
        assert_eq!(read(&mut pages, [3, 1, 4, 2, 5]), [1, 2]);
        // Of those that were read none is there any more, and others have come.
        assert_eq!(read(&mut pages, [10, 11, 12, 5, 3, 4]), [3, 4]);
        assert_eq!(read(&mut pages, [13, 5, 14]), [5]);
        assert!(pages.is_over());
    }

    #[test]
    fn what_is_listed_twice_is_on_its_page_once() {
        let mut pages = Pages::of(2);
        assert_eq!(read(&mut pages, [1, 2, 2, 1]), [1, 2]);
        assert!(pages.is_over());
        assert_eq!(read(&mut Pages::of(0), [2, 1]), [1], "a page has room for one");
    }
}
