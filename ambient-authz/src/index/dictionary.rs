//! Values that rules ask for, each under a number, with the rows that ask for it.

use std::sync::Arc;

use super::{
    filed::{Filed, Table},
    posting::Posting,
    slots::Slots,
    sums::Sum,
};

/// The rows of one value that are not looked for by it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    /// Those that ask for it, and are looked for by another value.
    pub(crate) others: Posting<()>,
    /// Those that refuse it.
    pub(crate) negated: Posting<()>,
    /// Its rows and those of all that it lies in, where they are kept together.
    pub(crate) sum: Option<Arc<Sum>>,
    /// Whether its rows are in the sums of what lies in it.
    pub(crate) in_sums: bool,
}

/// What has a number in a dictionary.
pub(crate) trait Value: Clone + Eq {
    /// Equal values have equal hashes. What is looked up often hashes well in all bits.
    fn hash(&self) -> u64;

    /// The same to keep: near to what else is kept, where it is not in one piece.
    fn to_keep(&self) -> Self {
        self.clone()
    }
}

/// Values by number, and numbers by value. A value is kept as long as it is used.
#[derive(Clone, Debug)]
pub(crate) struct Dictionary<V> {
    items: Slots<Item<V>>,
    filed: Table,
    /// Pieces of pieces: a change copies one of each.
    buckets: Arc<[Arc<[Bucket]>]>,
}

/// A part of the hash, and the number.
type Bucket = Arc<[(u32, u32)]>;

#[derive(Clone, Debug)]
struct Item<V> {
    value: V,
    uses: u32,
    lists: Lists,
}

impl<V> Default for Dictionary<V> {
    fn default() -> Self {
        let piece: Arc<[Bucket]> = std::iter::repeat_n(Bucket::from([]), PIECES).collect();
        Self {
            items: Slots::default(),
            filed: Table::default(),
            buckets: std::iter::repeat_n(piece, PIECES).collect(),
        }
    }
}

impl<V: Value> Dictionary<V> {
    /// The number of a value.
    pub(crate) fn number(&self, value: &V) -> Option<u32> {
        self.find(value.hash(), |other| other == value)
    }

    /// The number of the value that has a hash and is the one.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<u32> {
        let (piece, bucket, part) = split(hash);
        let candidates = self.buckets[piece][bucket].iter().filter(|(other, _)| *other == part);
        candidates
            .map(|(_, number)| *number)
            .find(|number| self.value(*number).is_some_and(&is))
    }

    pub(crate) fn value(&self, number: u32) -> Option<&V> {
        self.items.at(number).map(|item| &item.value)
    }

    pub(crate) fn value_mut(&mut self, number: u32) -> Option<&mut V> {
        self.items.at_mut(number).map(|item| &mut item.value)
    }

    /// How many rows ask for a value, more or less: what is about to be filed is counted by its uses.
    pub(crate) fn weight(&self, number: u32) -> usize {
        let Some(item) = self.items.at(number) else { return 0 };
        let asked = self.filed(number).map_or(0, Filed::len) + item.lists.others.len();
        asked.max(item.uses as usize)
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
        let hash = value.hash();
        if let Some(number) = self.find(hash, |other| other == value) {
            if let Some(item) = self.items.at_mut(number) {
                item.uses += 1;
            }
            return (number, false);
        }
        let number = self.items.insert(Item {
            value: value.to_keep(),
            uses: 1,
            lists: Lists::default(),
        });
        let (_, _, part) = split(hash);
        let bucket = self.bucket(hash);
        *bucket = bucket.iter().copied().chain([(part, number)]).collect();
        (number, true)
    }

    /// Uses a value once more that is used already.
    pub(crate) fn use_again(&mut self, number: u32) {
        if let Some(item) = self.items.at_mut(number) {
            item.uses += 1;
        }
    }

    /// Uses a value once less; gives it when nothing uses it any more.
    pub(crate) fn release(&mut self, number: u32) -> Option<V> {
        let item = self.items.at_mut(number)?;
        item.uses -= 1;
        if item.uses > 0 {
            return None;
        }
        let value = self.items.remove(number)?.value;
        let bucket = self.bucket(value.hash());
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

/// A hash that can be taken of every beginning of a text in one pass, or of every end.
///
/// Values come from the control plane and not from peers, so a fixed one is safe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rolling(u64);

impl Rolling {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    pub(crate) fn bytes(mut self, bytes: impl IntoIterator<Item = u8>) -> Self {
        bytes.into_iter().for_each(|byte| self.byte(byte));
        self
    }

    /// The hash of what was taken in so far, as a value of a sort.
    pub(crate) fn of(self, sort: u8) -> u64 {
        mix(self.0 ^ u64::from(sort) << 56)
    }
}

/// Spreads what differs anywhere over all bits.
pub(crate) fn mix(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^ bits >> 32
}

static NO_ROWS: Filed = Filed::NONE;
/// Of a million values a bucket has some 244.
const PIECES: usize = 64;
