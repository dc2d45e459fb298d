//! A map whose versions share all that does not differ between them.

use std::{
    borrow::Borrow,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    iter, slice,
    sync::Arc,
};

#[cfg(test)]
mod tests;

/// Entries that stand together before they are parted: few enough to look through, many enough to cost little memory.
const MOST: usize = 32;
/// Ways at each parting.
const WAYS: usize = 16;
const BITS: u32 = WAYS.ilog2();

/// A map whose versions share all that does not differ between them: what a snapshot is made of.
///
/// Cloning is one reference count. A look-up, a change and [`Shards::nth`] take steps that grow with the logarithm of the
/// size: a change copies some dozens of entries, and only where another version still holds them. The order of entries
/// depends on the entries alone and means nothing.
#[derive(Clone)]
pub struct Shards<K, V>(Link<K, V>);

/// A tree by the bits of a key's hash, four at each step.
#[derive(Clone)]
enum Link<K, V> {
    Empty,
    Leaf(Arc<Leaf<K, V>>),
    Branch(Arc<Branch<K, V>>),
}

#[derive(Clone)]
struct Branch<K, V> {
    count: usize,
    ways: [Link<K, V>; WAYS],
}

/// Some entries, and marks of the first [`MOST`] of them: of those that are looked at only what may be meant is touched.
#[derive(Clone)]
struct Leaf<K, V> {
    marks: [u8; MOST],
    entries: Vec<(K, V)>,
}

impl<K, V> Leaf<K, V> {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            marks: [0; MOST],
            entries: Vec::with_capacity(capacity),
        }
    }

    fn position<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let wanted = mark(hash);
        let marked = self
            .entries
            .iter()
            .zip(&self.marks)
            .position(|((of, _), mark)| *mark == wanted && of.borrow() == key);
        // More only share the whole of their hash.
        let beyond = || {
            self.entries
                .iter()
                .skip(MOST)
                .position(|(of, _)| of.borrow() == key)
                .map(|at| MOST + at)
        };
        marked.or_else(beyond)
    }

    /// Room for half as many again, where a vector would take twice as much: most leaves never fill.
    fn push(&mut self, hash: u64, key: K, value: V) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact((self.entries.len() / 2).max(1));
        }
        if let Some(place) = self.marks.get_mut(self.entries.len()) {
            *place = mark(hash);
        }
        self.entries.push((key, value));
    }
}

impl<K: Hash, V> Leaf<K, V> {
    /// The last one takes its place.
    fn swap_remove(&mut self, at: usize) -> V {
        let (_, value) = self.entries.swap_remove(at);
        if let (Some(place), Some((moved, _))) = (self.marks.get_mut(at), self.entries.get(at)) {
            *place = mark(hash(moved));
        }
        value
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self(Link::Empty)
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
                Link::Empty => return None,
                Link::Leaf(leaf) => return leaf.entries.get(place).map(|(key, value)| (key, value)),
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
        let hash = hash(key);
        let mut link = &self.0;
        let mut bits = hash;
        loop {
            match link {
                Link::Empty => return None,
                Link::Leaf(leaf) => return leaf.position(hash, key).map(|at| &leaf.entries[at].1),
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
                Link::Empty => return None,
                Link::Leaf(shared) => {
                    let at = shared.position(hash, key)?;
                    return Some(&mut Arc::make_mut(shared).entries[at].1);
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
            Self::Empty => 0,
            Self::Leaf(leaf) => leaf.entries.len(),
            Self::Branch(branch) => branch.count,
        }
    }
}

fn insert<K: Clone + Eq + Hash, V: Clone>(link: &mut Link<K, V>, hash: u64, depth: u32, key: K, value: V) -> Option<V> {
    match link {
        Link::Empty => {
            let mut leaf = Leaf::with_capacity(1);
            leaf.push(hash, key, value);
            *link = Link::Leaf(Arc::new(leaf));
            None
        }
        Link::Leaf(shared) => {
            if let Some(at) = shared.position(hash, &key) {
                return Some(std::mem::replace(&mut Arc::make_mut(shared).entries[at], (key, value)).1);
            }
            // Where the bits have come to an end, all that is left stands together.
            if shared.entries.len() < MOST || depth * BITS >= u64::BITS {
                Arc::make_mut(shared).push(hash, key, value);
                return None;
            }
            *link = part(shared, depth);
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

fn part<K: Clone + Eq + Hash, V: Clone>(shared: &mut Arc<Leaf<K, V>>, depth: u32) -> Link<K, V> {
    let entries = std::mem::take(&mut Arc::make_mut(shared).entries);
    let count = entries.len();
    let mut ways: [Link<K, V>; WAYS] = std::array::from_fn(|_| Link::Empty);
    for (key, value) in entries {
        let hash = hash(&key);
        insert(&mut ways[way(hash >> (depth * BITS))], hash, depth + 1, key, value);
    }
    Link::Branch(Arc::new(Branch { count, ways }))
}

/// Only for a key that is there.
fn remove<K: Clone + Eq + Hash + Borrow<Q>, V: Clone, Q: Eq + ?Sized>(link: &mut Link<K, V>, hash: u64, depth: u32, key: &Q) -> Option<V> {
    match link {
        Link::Empty => None,
        Link::Leaf(shared) => {
            let at = shared.position(hash, key)?;
            let removed = Arc::make_mut(shared).swap_remove(at);
            if shared.entries.is_empty() {
                *link = Link::Empty;
            }
            Some(removed)
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
            for (key, value) in &leaf.entries {
                joined.push(hash(key), key.clone(), value.clone());
            }
        }
    }
    match joined.entries.is_empty() {
        true => Link::Empty,
        false => Link::Leaf(Arc::new(joined)),
    }
}

/// The entries of a [`Shards`].
pub struct Iter<'a, K, V> {
    leaf: slice::Iter<'a, (K, V)>,
    ways: Vec<slice::Iter<'a, Link<K, V>>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            match self.ways.last_mut()?.next() {
                None => drop(self.ways.pop()),
                Some(Link::Empty) => {}
                Some(Link::Leaf(leaf)) => self.leaf = leaf.entries.iter(),
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

/// Keys come from the control plane, not from peers, so a fixed hash is safe; it keeps snapshots reproducible.
fn hash<Q: Hash + ?Sized>(key: &Q) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Bits of the hash that hardly any parting looks at.
fn mark(hash: u64) -> u8 {
    (hash >> 56) as u8
}

fn way(bits: u64) -> usize {
    (bits % WAYS as u64) as usize
}
