//! A map whose versions share all that does not differ between them.

use std::{borrow::Borrow, fmt, hash::Hash, iter, slice, sync::Arc};

mod hash;
#[cfg(test)]
mod tests;

pub(crate) use hash::Quick;
use hash::hash;

/// Entries that stand together before they are parted: few enough to look through, many enough to cost little memory.
const MOST: usize = 32;
/// Ways at each parting.
const WAYS: usize = 16;
const BITS: u32 = WAYS.ilog2();

/// A map whose versions share all that does not differ between them: what a snapshot is made of.
///
/// Cloning is one reference count. A look-up, a change and [`Shards::nth`] take steps that grow with the logarithm of the
/// size: a change copies some dozens of entries, and only where another version still holds them. The order of entries
/// depends on the entries and on the process, and means nothing: no one who chooses keys can choose where they come to stand.
#[derive(Clone)]
pub struct Shards<K, V>(Link<K, V>);

/// A tree by the bits of a key's hash, four at each step.
#[derive(Clone)]
enum Link<K, V> {
    Leaf(Leaf<K, V>),
    Branch(Arc<Branch<K, V>>),
}

#[derive(Clone)]
struct Branch<K, V> {
    count: usize,
    ways: [Link<K, V>; WAYS],
}

/// Some entries, from the first slot on, and marks of the first [`MOST`] of them.
///
/// The marks stand where the leaf is pointed to, so that of a leaf, which in a large map is far away, only the entry that is
/// meant is touched.
#[derive(Clone)]
struct Leaf<K, V> {
    marks: Marks,
    count: usize,
    slots: Arc<[Option<(K, V)>]>,
}

/// A byte of each entry's hash.
#[derive(Clone, Copy, Default)]
struct Marks([u64; MOST / 8]);

impl Marks {
    /// The places beyond the last have none.
    fn set(&mut self, at: usize, mark: u8) {
        if let Some(eight) = self.0.get_mut(at / 8) {
            let shift = at % 8 * 8;
            *eight = (*eight & !(0xff << shift)) | (u64::from(mark) << shift);
        }
    }

    /// A bit for each place that bears a mark. All are looked at at once: where one stands in a leaf cannot be foreseen, and a
    /// processor that has to wait for that looks for nothing else meanwhile.
    fn places(&self, mark: u8) -> u32 {
        const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let wanted = u64::from_ne_bytes([mark; 8]);
        let eights = self.0.iter().enumerate().map(|(n, eight)| {
            let differ = eight ^ wanted;
            // The upper bit of each byte that is zero, and of no other.
            let equal = !(((differ & LOW) + LOW) | differ | LOW);
            // These bits side by side.
            let bits = (equal >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            (bits as u32) << (n * 8)
        });
        eights.fold(0, |all, eight| all | eight)
    }
}

impl<K, V> Default for Leaf<K, V> {
    fn default() -> Self {
        Self {
            marks: Marks::default(),
            count: 0,
            slots: Arc::default(),
        }
    }
}

impl<K, V> Leaf<K, V> {
    fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.slots.iter().flatten()
    }

    fn position<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let is_at = |at: usize| matches!(self.slots.get(at), Some(Some((of, _))) if of.borrow() == key);
        let mut places = self.marks.places(mark(hash));
        while places != 0 {
            let at = places.trailing_zeros() as usize;
            if is_at(at) {
                return Some(at);
            }
            places &= places - 1;
        }
        // More only share the whole of their hash.
        (MOST..self.count).find(|at| is_at(*at))
    }

    fn get<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let at = self.position(hash, key)?;
        self.slots[at].as_ref().map(|(key, value)| (key, value))
    }
}

impl<K: Clone, V: Clone> Leaf<K, V> {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: iter::repeat_with(|| None).take(capacity).collect(),
            ..Self::default()
        }
    }

    /// All entries, which go on being another version's where one holds them.
    fn take(&mut self) -> Vec<(K, V)> {
        let mut leaf = std::mem::take(self);
        match Arc::get_mut(&mut leaf.slots) {
            Some(own) => own.iter_mut().filter_map(Option::take).collect(),
            None => leaf.iter().cloned().collect(),
        }
    }

    /// Room for half as many again, where a vector would take twice as much: most leaves never fill.
    fn push(&mut self, hash: u64, key: K, value: V) {
        if self.count == self.slots.len() {
            let (marks, count) = (self.marks, self.count);
            let entries = self.take().into_iter().map(Some);
            let room = iter::repeat_with(|| None).take((count / 2).max(1));
            *self = Self {
                marks,
                count,
                slots: entries.chain(room).collect(),
            };
        }
        self.marks.set(self.count, mark(hash));
        Arc::make_mut(&mut self.slots)[self.count] = Some((key, value));
        self.count += 1;
    }

    fn entry_mut(&mut self, at: usize) -> Option<&mut (K, V)> {
        Arc::make_mut(&mut self.slots)[at].as_mut()
    }
}

impl<K: Clone + Hash, V: Clone> Leaf<K, V> {
    /// The last one takes its place.
    fn swap_remove(&mut self, at: usize) -> Option<V> {
        let slots = Arc::make_mut(&mut self.slots);
        let (removed, last) = (slots[at].take(), self.count - 1);
        self.count = last;
        if let Some(moved) = slots[last].take() {
            self.marks.set(at, mark(hash(&moved.0)));
            slots[at] = Some(moved);
        }
        if last == 0 {
            *self = Self::default();
        }
        removed.map(|(_, value)| value)
    }
}

impl<K, V> Default for Link<K, V> {
    fn default() -> Self {
        Self::Leaf(Leaf::default())
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self(Link::default())
    }
}

impl<K, V> Shards<K, V> {
    /// Every key and its value.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            leaf: [].iter(),
            ways: vec![slice::from_ref(&self.0).iter()],
        }
    }

    /// Every value.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key and value at a place in this version's order; `None` from [`Shards::len`] on. For drawing one at random.
    pub fn nth(&self, mut place: usize) -> Option<(&K, &V)> {
        let mut link = &self.0;
        loop {
            match link {
                Link::Leaf(leaf) => return leaf.slots.get(place)?.as_ref().map(|(key, value)| (key, value)),
                Link::Branch(branch) => {
                    let mut ways = branch.ways.iter();
                    link = loop {
                        let way = ways.next()?;
                        match place.checked_sub(way.count()) {
                            Some(beyond) => place = beyond,
                            None => break way,
                        }
                    };
                }
            }
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entry(key).map(|(_, value)| value)
    }

    /// A key as it stands here, and its value.
    pub fn entry<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let hash = hash(key);
        let mut link = &self.0;
        let mut bits = hash;
        loop {
            match link {
                Link::Leaf(leaf) => return leaf.get(hash, key),
                Link::Branch(branch) => {
                    link = &branch.ways[way(bits)];
                    bits >>= BITS;
                }
            }
        }
    }

    /// The value of a key, to be changed in this version.
    pub fn value_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // A miss must copy nothing.
        self.get(key)?;
        let hash = hash(key);
        let mut bits = hash;
        let mut link = &mut self.0;
        loop {
            match link {
                Link::Leaf(leaf) => {
                    let at = leaf.position(hash, key)?;
                    return leaf.entry_mut(at).map(|(_, value)| value);
                }
                Link::Branch(shared) => {
                    link = &mut Arc::make_mut(shared).ways[way(bits)];
                    bits >>= BITS;
                }
            }
        }
    }

    /// Whether there is a value of a key.
    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Puts a value under a key; gives what stood under it.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = hash(&key);
        insert(&mut self.0, hash, 0, key, value)
    }

    /// Takes a key out; gives what stood under it.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // A miss must copy nothing.
        self.get(key)?;
        remove(&mut self.0, hash(key), 0, key)
    }
}

impl<K, V> Link<K, V> {
    fn count(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.count,
            Self::Branch(branch) => branch.count,
        }
    }
}

fn insert<K: Clone + Eq + Hash, V: Clone>(link: &mut Link<K, V>, hash: u64, depth: u32, key: K, value: V) -> Option<V> {
    match link {
        Link::Leaf(leaf) => {
            if let Some(entry) = leaf.position(hash, &key).and_then(|at| leaf.entry_mut(at)) {
                return Some(std::mem::replace(entry, (key, value)).1);
            }
            // Where the bits have come to an end, all that is left stands together.
            if leaf.count < MOST || depth * BITS >= u64::BITS {
                leaf.push(hash, key, value);
                return None;
            }
            *link = part(leaf, depth);
            insert(link, hash, depth, key, value)
        }
        Link::Branch(shared) => {
            let branch = Arc::make_mut(shared);
            let replaced = insert(&mut branch.ways[way(hash >> (depth * BITS))], hash, depth + 1, key, value);
            branch.count += usize::from(replaced.is_none());
            replaced
        }
    }
}

fn part<K: Clone + Eq + Hash, V: Clone>(leaf: &mut Leaf<K, V>, depth: u32) -> Link<K, V> {
    let entries = leaf.take();
    let count = entries.len();
    let mut ways: [Link<K, V>; WAYS] = std::array::from_fn(|_| Link::default());
    for (key, value) in entries {
        let hash = hash(&key);
        insert(&mut ways[way(hash >> (depth * BITS))], hash, depth + 1, key, value);
    }
    Link::Branch(Arc::new(Branch { count, ways }))
}

/// Only for a key that is there.
fn remove<K: Clone + Eq + Hash + Borrow<Q>, V: Clone, Q: Eq + ?Sized>(link: &mut Link<K, V>, hash: u64, depth: u32, key: &Q) -> Option<V> {
    match link {
        Link::Leaf(leaf) => {
            let at = leaf.position(hash, key)?;
            leaf.swap_remove(at)
        }
        Link::Branch(shared) => {
            let branch = Arc::make_mut(shared);
            let removed = remove(&mut branch.ways[way(hash >> (depth * BITS))], hash, depth + 1, key)?;
            branch.count -= 1;
            // Well below what is parted, so that one key that comes and goes does not part and join each time.
            if branch.count <= MOST / 2 {
                *link = join(branch);
            }
            Some(removed)
        }
    }
}

/// Branches below one that is joined were joined before it: they hold fewer.
fn join<K: Clone + Eq + Hash, V: Clone>(branch: &Branch<K, V>) -> Link<K, V> {
    let mut joined = Leaf::with_capacity(branch.count);
    for way in &branch.ways {
        if let Link::Leaf(leaf) = way {
            for (key, value) in leaf.iter() {
                joined.push(hash(key), key.clone(), value.clone());
            }
        }
    }
    Link::Leaf(joined)
}

/// The entries of a [`Shards`].
pub struct Iter<'a, K, V> {
    leaf: slice::Iter<'a, Option<(K, V)>>,
    ways: Vec<slice::Iter<'a, Link<K, V>>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Behind the last entry of a leaf is room alone.
            if let Some(Some((key, value))) = self.leaf.next() {
                return Some((key, value));
            }
            match self.ways.last_mut()?.next() {
                None => drop(self.ways.pop()),
                Some(Link::Leaf(leaf)) => self.leaf = leaf.slots.iter(),
                Some(Link::Branch(branch)) => self.ways.push(branch.ways.iter()),
            }
        }
    }
}

impl<K, V> iter::FusedIterator for Iter<'_, K, V> {}

impl<K, V> fmt::Debug for Iter<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

impl<'a, K, V> IntoIterator for &'a Shards<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("entries", &self.len()).finish()
    }
}

/// Bits of the hash that hardly any parting looks at.
fn mark(hash: u64) -> u8 {
    (hash >> 56) as u8
}

fn way(bits: u64) -> usize {
    (bits % WAYS as u64) as usize
}
