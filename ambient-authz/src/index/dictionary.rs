//! Values that rules ask for, each under a number, with the rows that ask for it.

use std::sync::Arc;

use super::{
    filed::{Filed, Table},
    keys::Keys,
    posting::Posting,
    slots::Slots,
};

/// The rows of one value that are not looked for by it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    /// Those that ask for it, and are looked for by another value.
    pub(crate) others: Posting<()>,
    /// Those that refuse it.
    pub(crate) negated: Posting<()>,
    /// Whether its rows are in the sums of what lies in it.
    pub(crate) in_sums: bool,
}

/// What has a number in a dictionary.
pub(crate) trait Value: Clone + Eq {
    /// Equal values have equal hashes.
    fn hash(&self, keys: &Keys) -> u64;

    /// What a number tells of its value without the value's being read.
    fn tag(&self) -> u8 {
        0
    }
}

/// Values by number, and numbers by value. A value is kept as long as it is used.
#[derive(Clone, Debug)]
pub(crate) struct Dictionary<V> {
    keys: Keys,
    items: Slots<Item<V>>,
    uses: Uses,
    filed: Table,
    /// Pieces of pieces: a change copies one of each.
    buckets: Arc<[Arc<[Bucket]>]>,
}

/// A part of the hash, and the number.
type Bucket = Arc<[(u32, u32)]>;

#[derive(Clone, Debug)]
struct Item<V> {
    value: V,
    lists: Lists,
}

/// How often each value is used, apart from the values: so small that what is used often is at hand.
#[derive(Clone, Debug, Default)]
struct Uses(Vec<Arc<[Use; USES]>>);

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    count: u32,
    tag: u8,
}

impl Uses {
    fn at(&self, number: u32) -> Option<Use> {
        self.0.get(number as usize / USES).map(|uses| uses[number as usize % USES])
    }

    fn at_mut(&mut self, number: u32) -> &mut Use {
        let (chunk, place) = (number as usize / USES, number as usize % USES);
        if self.0.len() <= chunk {
            self.0.resize_with(chunk + 1, || Arc::new([Use::default(); USES]));
        }
        &mut Arc::make_mut(&mut self.0[chunk])[place]
    }
}

impl<V> Default for Dictionary<V> {
    fn default() -> Self {
        let piece: Arc<[Bucket]> = std::iter::repeat_n(Bucket::from([]), PIECES).collect();
        Self {
            keys: Keys::of_this_process(),
            items: Slots::default(),
            uses: Uses::default(),
            filed: Table::default(),
            buckets: std::iter::repeat_n(piece, PIECES).collect(),
        }
    }
}

impl<V: Value> Dictionary<V> {
    /// What the hashes hang on by which values are found.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The number of a value.
    pub(crate) fn number(&self, value: &V) -> Option<u32> {
        self.find(value.hash(&self.keys), |other| other == value)
    }

    /// The number of the value that has a hash and is the one.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<u32> {
        let (piece, bucket, part) = split(hash);
        let candidates = self.buckets[piece][bucket].iter().filter(|(other, _)| *other == part);
        candidates
            .map(|(_, number)| *number)
            .find(|number| self.value(*number).is_some_and(&is))
    }

    /// The same for many at once, each step for all of them before the next: so what one step reads for one need not wait
    /// for what it reads for another, where all of it comes from memory.
    pub(crate) fn find_all(&self, hashes: &[u64], is: impl Fn(usize, &V) -> bool) -> Vec<Option<u32>> {
        let candidate = |hash: &u64| {
            let (piece, bucket, part) = split(*hash);
            self.buckets[piece][bucket]
                .iter()
                .find(|(other, _)| *other == part)
                .map(|(_, number)| *number)
        };
        let candidates: Vec<_> = hashes.iter().map(candidate).collect();
        let values: Vec<_> = candidates
            .iter()
            .map(|number| number.and_then(|number| self.value(number)))
            .collect();
        let found = values
            .iter()
            .enumerate()
            .map(|(at, value)| value.is_some_and(|value| is(at, value)));
        let found: Vec<_> = found.collect();
        let all = candidates.iter().zip(hashes).zip(found).enumerate();
        all.map(|(at, ((number, hash), is_it))| match number {
            Some(_) if !is_it => self.find(*hash, |value| is(at, value)),
            _ => *number,
        })
        .collect()
    }

    /// Calls for the number of each value of which the hash is given and that is the one: at most [`AT_ONCE`] of them, of which
    /// again each step is done for all before the next.
    pub(crate) fn find_each(&self, hashes: &[u64], is: impl Fn(usize, &V) -> bool, mut call: impl FnMut(u32)) {
        let mut candidates = [None; AT_ONCE];
        for (place, hash) in candidates.iter_mut().zip(hashes) {
            let (piece, bucket, part) = split(*hash);
            let candidate = self.buckets[piece][bucket].iter().find(|(other, _)| *other == part);
            *place = candidate.map(|(_, number)| *number);
        }
        let mut values = [None; AT_ONCE];
        for ((place, number), _) in values.iter_mut().zip(candidates).zip(hashes) {
            *place = number.and_then(|number| self.value(number));
        }
        for (at, hash) in hashes.iter().enumerate().take(AT_ONCE) {
            let number = match values[at] {
                Some(value) if is(at, value) => candidates[at],
                Some(_) => self.find(*hash, |value| is(at, value)),
                None => None,
            };
            number.into_iter().for_each(&mut call);
        }
    }

    pub(crate) fn value(&self, number: u32) -> Option<&V> {
        self.items.at(number).map(|item| &item.value)
    }

    pub(crate) fn value_mut(&mut self, number: u32) -> Option<&mut V> {
        self.items.at_mut(number).map(|item| &mut item.value)
    }

    /// How many rows ask for a value, more or less: how often it is used.
    pub(crate) fn weight(&self, number: u32) -> usize {
        self.uses.at(number).map_or(0, |of| of.count as usize)
    }

    /// The tag of a value that is used.
    pub(crate) fn tag(&self, number: u32) -> Option<u8> {
        self.uses.at(number).filter(|of| of.count > 0).map(|of| of.tag)
    }

    /// The rows that are looked for by a value.
    pub(crate) fn filed(&self, number: u32) -> Option<&Filed> {
        self.filed.at(number)
    }

    pub(crate) fn filed_mut(&mut self, number: u32) -> &mut Filed {
        self.filed.at_mut(number)
    }

    /// A value and all its rows.
    pub(crate) fn item(&self, number: u32) -> Option<(&V, &Filed, &Lists)> {
        let item = self.items.at(number)?;
        Some((&item.value, self.filed(number).unwrap_or(&NO_ROWS), &item.lists))
    }

    pub(crate) fn lists_mut(&mut self, number: u32) -> Option<&mut Lists> {
        self.items.at_mut(number).map(|item| &mut item.lists)
    }

    /// How many rows ask for a value or refuse it, by the lists of them.
    pub(crate) fn listed(&self, number: u32) -> usize {
        self.item(number)
            .map_or(0, |(_, filed, lists)| filed.len() + lists.others.len() + lists.negated.len())
    }

    /// Uses a value once more; gives its number, and whether it is new.
    pub(crate) fn take(&mut self, value: &V) -> (u32, bool) {
        self.take_by(value.hash(&self.keys), |other| other == value, || value.clone())
    }

    /// The same of the value that has a hash and is the one.
    pub(crate) fn take_by(&mut self, hash: u64, is: impl Fn(&V) -> bool, make: impl FnOnce() -> V) -> (u32, bool) {
        if let Some(number) = self.find(hash, is) {
            self.use_again(number);
            return (number, false);
        }
        let value = make();
        let tag = value.tag();
        let number = self.items.insert(Item {
            value,
            lists: Lists::default(),
        });
        *self.uses.at_mut(number) = Use { count: 1, tag };
        let (_, _, part) = split(hash);
        let bucket = self.bucket(hash);
        *bucket = bucket.iter().copied().chain([(part, number)]).collect();
        (number, true)
    }

    /// Uses a value once more that is used already.
    pub(crate) fn use_again(&mut self, number: u32) {
        self.uses.at_mut(number).count += 1;
    }

    /// Uses a value once less; gives it when nothing uses it any more.
    pub(crate) fn release(&mut self, number: u32) -> Option<V> {
        let of = self.uses.at_mut(number);
        of.count = of.count.checked_sub(1)?;
        if of.count > 0 {
            return None;
        }
        let value = self.items.remove(number)?.value;
        let bucket = self.bucket(value.hash(&self.keys));
        *bucket = bucket.iter().copied().filter(|(_, other)| *other != number).collect();
        Some(value)
    }

    fn bucket(&mut self, hash: u64) -> &mut Bucket {
        let (piece, bucket, _) = split(hash);
        &mut Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[piece])[bucket]
    }
}

fn split(hash: u64) -> (usize, usize, u32) {
    let piece = hash >> (64 - PIECES.ilog2());
    let bucket = (hash >> 32) % PIECES as u64;
    (piece as usize, bucket as usize, hash as u32)
}

/// So many values are found together.
pub(crate) const AT_ONCE: usize = 32;
static NO_ROWS: Filed = Filed::NONE;
/// A change copies 512 bytes, and each snapshot a pointer for so many values.
const USES: usize = 64;
/// Of a million values a bucket has some 244.
const PIECES: usize = 64;
