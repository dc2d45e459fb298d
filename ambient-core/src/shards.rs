//! A map in pieces, each shared with other snapshots until it changes.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

/// Of 100,000 entries a change copies some 400: a few microseconds, where a plain map would cost milliseconds.
const PIECES: usize = 256;

/// Keys come from the control plane, not from peers, so a fixed hash is safe; it keeps snapshots reproducible.
type Piece<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A map in pieces: what a snapshot is made of.
///
/// Cloning is one reference count; a change copies one piece of 256, and only if another snapshot still holds it.
#[derive(Clone)]
pub struct Shards<K, V>(Arc<[Arc<Piece<K, V>>]>);

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(Piece::default());
        Self((0..PIECES).map(|_| empty.clone()).collect())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0[place(key)].get(key)
    }

    /// Puts a value under a key, in the place of any before.
    pub fn insert(&mut self, key: K, value: V) {
        self.piece(&key).insert(key, value);
    }

    /// Takes a key out; gives what stood under it.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // A miss must not copy the piece.
        self.get(key)?;
        self.piece(key).remove(key)
    }

    /// Every value, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().flat_map(|piece| piece.values())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|piece| piece.is_empty())
    }

    fn piece(&mut self, key: &K) -> &mut Piece<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[place(key)])
    }
}

impl<K: Clone + Eq + Hash, I: Clone + Ord, V: Clone> Shards<K, BTreeMap<I, V>> {
    pub(crate) fn entry(&mut self, key: K) -> &mut BTreeMap<I, V> {
        self.piece(&key).entry(key).or_default()
    }

    /// Takes something out of a key's map, and the key out when nothing is left under it.
    pub(crate) fn remove_from(&mut self, key: &K, take: impl FnOnce(&mut BTreeMap<I, V>) -> Option<V>) {
        let piece = self.piece(key);
        if let Some(inner) = piece.get_mut(key) {
            take(inner);
            if inner.is_empty() {
                piece.remove(key);
            }
        }
    }
}

impl<K, V> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards")
            .field("entries", &self.0.iter().map(|piece| piece.len()).sum::<usize>())
            .finish()
    }
}

fn place<Q: Hash + ?Sized>(key: &Q) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // The map inside uses the low bits of the same hash: take others for the piece.
    (hasher.finish() >> 48) as usize % PIECES
}
